//! From ids back to bytes and text.

use std::ops::Range;
use std::sync::Arc;

use super::alphabet;
use super::tokenizer::Tokenizer;

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
struct Place {
    /// No token has been decoded yet.
    first: bool,
    /// Leading spaces that may yet go.
    spaces: usize,
}

impl Place {
    fn start_of_text(decoder: &Decoder) -> Self {
        let spaces = match decoder.start {
            Start::StripSpaces(spaces) => spaces,
            Start::Keep | Start::StripFirstToken => 0,
        };
        Place { first: true, spaces }
    }

    /// Adds the bytes of a token that comes here.
    fn add(&mut self, decoder: &Decoder, id: u32, out: &mut Vec<u8>) {
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

impl Tokenizer {
    /// The bytes that ids stand for. Ids without a token stand for none.
    pub fn decode_bytes(&self, ids: &[u32], skip_special_tokens: bool) -> Vec<u8> {
        let decoder = self.decoder();
        let mut place = Place::start_of_text(decoder);
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            if !(skip_special_tokens && self.is_special(id)) {
                place.add(decoder, id, &mut out);
            }
        }
        out
    }

    /// The text that ids stand for; invalid UTF-8 becomes U+FFFD as in Python's `errors="replace"`.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        match String::from_utf8(self.decode_bytes(ids, skip_special_tokens)) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }
}

/// Decodes ids as they come, never giving out part of a character. What it gives, joined, is what
/// `Tokenizer::decode` gives for all the ids.
#[derive(Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    place: Place,
    /// The start of a character that is not yet whole.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let place = Place::start_of_text(tokenizer.decoder());
        StreamDecoder { tokenizer, skip_special_tokens, place, pending: Vec::new() }
    }

    /// A decoder of what follows other text, so that a leading space stays.
    pub fn continuing(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let place = Place { first: false, spaces: 0 };
        StreamDecoder { tokenizer, skip_special_tokens, place, pending: Vec::new() }
    }

    /// The text that is certain once this id has come.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.place.add(self.tokenizer.decoder(), id, &mut self.pending);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() || (done + invalid.len() == self.pending.len() && is_cut_short(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        text
    }

    /// The rest: U+FFFD if the last character never became whole.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether bytes are the start of a character that more bytes could complete.
fn is_cut_short(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
