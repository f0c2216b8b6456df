//! What tokens spell: the bytes of each, and where they stand in a text.

use std::ops::Range;

use super::alphabet;

/// What happens to the very start of a decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Keep,
    /// Up to so many leading spaces go, which encoding had put in front.
    StripSpaces(usize),
    /// All spaces of the first token go (tokenizer.json's `Metaspace`).
    StripFirstToken,
}

/// How tokens spell bytes.
pub enum Spelling {
    /// In the byte alphabet; a token with other characters spells itself.
    Bytes,
    /// As text in which each pair's first string stands for its second; `<0x41>` is the byte 0x41 if
    /// `byte_tokens`.
    Text { replaced: Vec<(String, String)>, byte_tokens: bool },
}

/// The bytes of every token.
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the bytes of each id lie.
    places: Vec<Range<usize>>,
    spelling: Spelling,
    start: Start,
    /// Whether a space stands between tokens (a tokenizer.json without a decoder).
    spaced: bool,
}

impl Decoder {
    /// A decoder of these tokens.
    pub fn new<'a>(
        tokens: impl Iterator<Item = (u32, &'a str)>,
        spelling: Spelling,
        start: Start,
        spaced: bool,
    ) -> Self {
        let mut decoder = Decoder { bytes: Vec::new(), places: Vec::new(), spelling, start, spaced };
        tokens.for_each(|(id, token)| decoder.insert(id, token));
        decoder
    }

    /// Adds a token.
    pub fn insert(&mut self, id: u32, token: &str) {
        let start = self.bytes.len();
        self.spelling.spell(token, &mut self.bytes);
        let id = id as usize;
        if id >= self.places.len() {
            self.places.resize(id + 1, 0..0);
        }
        self.places[id] = start..self.bytes.len();
    }

    /// Whether the bytes of a text are those of its tokens, wherever they stand.
    pub fn joins_as_they_are(&self) -> bool {
        self.start == Start::Keep && !self.spaced
    }

    /// Adds the bytes of a token.
    #[inline]
    pub fn push(&self, id: u32, out: &mut Vec<u8>) {
        const FEW: usize = 16;
        let Some(place) = self.places.get(id as usize) else { return };
        match self.bytes.get(place.start..).and_then(|bytes| bytes.first_chunk::<FEW>()) {
            // A copy of a constant length is an instruction or two; what is too much goes again.
            Some(few) if place.len() <= FEW => {
                let end = out.len() + place.len();
                out.extend_from_slice(few);
                out.truncate(end);
            }
            _ => out.extend_from_slice(&self.bytes[place.clone()]),
        }
    }

    /// The bytes of a token; none for an id without a token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.places.get(id as usize).map_or(&[], |place| &self.bytes[place.clone()])
    }
}

impl Spelling {
    fn spell(&self, token: &str, out: &mut Vec<u8>) {
        match self {
            Spelling::Bytes => match alphabet::bytes_of(token) {
                Some(bytes) => out.extend(bytes),
                None => out.extend(token.as_bytes()),
            },
            Spelling::Text { replaced, byte_tokens } => match byte_token(token) {
                Some(byte) if *byte_tokens => out.push(byte),
                _ => {
                    let text = replaced
                        .iter()
                        .fold(token.to_owned(), |text, (from, to)| text.replace(from.as_str(), to));
                    out.extend(text.as_bytes());
                }
            },
        }
    }
}

/// The byte that a token of the form `<0x41>` stands for.
pub fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Where a decoding stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// No token has been decoded yet.
    pub first: bool,
    /// Leading spaces that may yet go.
    pub spaces: usize,
}

impl Place {
    pub fn start_of_text(decoder: &Decoder) -> Self {
        let spaces = match decoder.start {
            Start::StripSpaces(spaces) => spaces,
            Start::Keep | Start::StripFirstToken => 0,
        };
        Place { first: true, spaces }
    }

    /// Adds the bytes of a token that comes here.
    pub fn add(&mut self, decoder: &Decoder, id: u32, out: &mut Vec<u8>) {
        let mut bytes = decoder.bytes(id);
        if self.first {
            self.first = false;
            if decoder.start == Start::StripFirstToken {
                out.extend(bytes.iter().filter(|&&byte| byte != b' '));
                return;
            }
        } else if decoder.spaced {
            out.push(b' ');
        }
        while self.spaces > 0 && !bytes.is_empty() {
            match bytes.strip_prefix(b" ") {
                Some(rest) => {
                    bytes = rest;
                    self.spaces -= 1;
                }
                None => self.spaces = 0,
            }
        }
        out.extend(bytes);
    }
}
