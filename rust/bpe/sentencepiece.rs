//! BPE as SentencePiece does it (Kudo and Richardson 2018, arXiv:1808.06226): over the characters of
//! a whole text, any two symbols that spell a token merging, the token of the highest score first.

use aho_corasick::AhoCorasick;
use rustc_hash::FxHashMap;

use super::merges::{Merge, Merges, Scratch, Symbol};
use crate::error::Result;

/// The type of a token, numbered as in GGUF and in SentencePiece's own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    Normal,
    /// The token of what has no other; never met in a text.
    Unknown,
    /// Steers the model; never met in a text.
    Control,
    /// Always one token where it is met.
    UserDefined,
    /// Takes part in merges, yet comes apart again at the end.
    Unused,
    /// `<0x00>` … `<0xFF>`: a byte of a character without a token.
    Byte,
}

impl TokenType {
    pub fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => return None,
        })
    }
}

/// One token of the vocabulary.
pub struct Piece<'a> {
    pub id: u32,
    pub text: &'a str,
    pub score: f32,
    pub kind: TokenType,
}

/// A character that no token holds.
const STRANGER: u32 = u32::MAX;

pub struct SentencePiece {
    merges: Merges,
    /// The symbol of each character of the tokens: its token, or a number above all ids.
    characters: FxHashMap<char, u32>,
    /// Symbols from here on are characters without a token.
    first_virtual: u32,
    user_defined: Option<(AhoCorasick, Vec<u32>)>,
    unused: Vec<u32>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
}

impl SentencePiece {
    /// The error is what `aho_corasick` says of the user-defined tokens.
    pub fn new(
        pieces: &[Piece<'_>],
        bytes: [Option<u32>; 256],
        unknown: Option<u32>,
    ) -> std::result::Result<Self, String> {
        let in_text = |piece: &&Piece<'_>| {
            matches!(piece.kind, TokenType::Normal | TokenType::UserDefined | TokenType::Unused)
        };
        let tokens: FxHashMap<&str, u32> =
            pieces.iter().filter(in_text).map(|piece| (piece.text, piece.id)).collect();

        let first_virtual = pieces.iter().map(|piece| piece.id + 1).max().unwrap_or(0);
        let mut next = first_virtual;
        let mut characters = FxHashMap::default();
        for c in pieces.iter().filter(in_text).flat_map(|piece| piece.text.chars()) {
            characters.entry(c).or_insert_with(|| {
                tokens.get(&*c.encode_utf8(&mut [0; 4])).copied().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                })
            });
        }

        // Equal scores are equal ranks, so that the leftmost pair goes first.
        let mut by_score: Vec<&Piece<'_>> = pieces.iter().filter(in_text).collect();
        by_score.sort_by(|a, b| b.score.total_cmp(&a.score));
        let mut merges = Merges::default();
        let mut rank = 0;
        let mut previous = None;
        let symbol = |text: &str| {
            let mut chars = text.chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => characters.get(&c).copied(),
                _ => tokens.get(text).copied(),
            }
        };
        for piece in by_score {
            if previous.is_some_and(|score: f32| score != piece.score) {
                rank += 1;
            }
            previous = Some(piece.score);
            for (cut, _) in piece.text.char_indices().skip(1) {
                let (left, right) = piece.text.split_at(cut);
                if let (Some(left), Some(right)) = (symbol(left), symbol(right)) {
                    merges.insert(left, right, Merge { rank, id: piece.id });
                }
            }
        }

        let of_kind = |kind| pieces.iter().filter(move |piece| piece.kind == kind);
        let (words, ids): (Vec<&str>, Vec<u32>) = of_kind(TokenType::UserDefined)
            .filter(|piece| !piece.text.is_empty())
            .map(|piece| (piece.text, piece.id))
            .unzip();
        let user_defined = match words.is_empty() {
            true => None,
            false => Some((longest_first(&words)?, ids)),
        };
        let mut unused: Vec<u32> = of_kind(TokenType::Unused).map(|piece| piece.id).collect();
        unused.sort_unstable();
        Ok(SentencePiece { merges, characters, first_virtual, user_defined, unused, bytes, unknown })
    }

    /// Leaves the tokens of a text in `scratch.symbols`.
    pub fn encode(&self, text: &[u8], scratch: &mut Scratch) -> Result<()> {
        let Some((automaton, ids)) = &self.user_defined else {
            return self.encode_plain(text, scratch);
        };
        let mut tokens = Vec::new();
        let mut done = 0;
        for found in automaton.find_iter(text) {
            self.encode_plain(&text[done..found.start()], scratch)?;
            tokens.append(&mut scratch.symbols);
            let id = ids[found.pattern().as_usize()];
            tokens.push(Symbol { id, len: found.len() as u32 });
            done = found.end();
        }
        self.encode_plain(&text[done..], scratch)?;
        tokens.append(&mut scratch.symbols);
        scratch.symbols = tokens;
        Ok(())
    }

    /// A text without user-defined tokens.
    fn encode_plain(&self, text: &[u8], scratch: &mut Scratch) -> Result<()> {
        scratch.symbols.clear();
        for chunk in text.utf8_chunks() {
            scratch.symbols.extend(chunk.valid().chars().map(|c| Symbol {
                id: self.characters.get(&c).copied().unwrap_or(STRANGER),
                len: c.len_utf8() as u32,
            }));
            scratch.symbols.extend(chunk.invalid().iter().map(|_| Symbol { id: STRANGER, len: 1 }));
        }
        if self.unused.is_empty() {
            self.merges.apply(scratch)?;
        } else {
            // The last pair that offered to become an unused token is what it comes apart into.
            let mut parts = FxHashMap::default();
            self.merges.apply_observed(scratch, |left, right, merged| {
                if self.unused.binary_search(&merged).is_ok() {
                    parts.insert(merged, (left, right));
                }
            })?;
            take_apart(&parts, &mut scratch.symbols);
        }
        self.finish(text, scratch);
        Ok(())
    }

    /// Symbols without a token become bytes, or else the unknown token, a run of them only one.
    fn finish(&self, text: &[u8], scratch: &mut Scratch) {
        if scratch.symbols.iter().all(|symbol| symbol.id < self.first_virtual) {
            return;
        }
        let mut tokens: Vec<Symbol> = Vec::with_capacity(scratch.symbols.len());
        let mut start = 0;
        let mut after_unknown = false;
        for symbol in scratch.symbols.drain(..) {
            let bytes = &text[start..start + symbol.len as usize];
            start += bytes.len();
            let strange = symbol.id >= self.first_virtual;
            let spelled = strange && bytes.iter().all(|&byte| self.bytes[byte as usize].is_some());
            let unknown = strange && !spelled;
            match (spelled, unknown, self.unknown) {
                (true, ..) => {
                    let ids = bytes.iter().filter_map(|&byte| self.bytes[byte as usize]);
                    tokens.extend(ids.map(|id| Symbol { id, len: 1 }));
                }
                (_, true, Some(id)) => match tokens.last_mut() {
                    Some(last) if after_unknown => last.len += symbol.len,
                    _ => tokens.push(Symbol { id, len: symbol.len }),
                },
                (_, true, None) => {}
                _ => tokens.push(symbol),
            }
            after_unknown = unknown;
        }
        scratch.symbols = tokens;
    }
}

/// An automaton that takes the leftmost match and the longest of those.
pub fn longest_first(words: &[&str]) -> std::result::Result<AhoCorasick, String> {
    AhoCorasick::builder()
        .match_kind(aho_corasick::MatchKind::LeftmostLongest)
        .build(words)
        .map_err(|error| error.to_string())
}

/// Replaces symbols by their parts. A part is shorter than its whole, so this ends.
fn take_apart(parts: &FxHashMap<u32, (Symbol, Symbol)>, symbols: &mut Vec<Symbol>) {
    let mut waiting: Vec<Symbol> = symbols.drain(..).rev().collect();
    while let Some(symbol) = waiting.pop() {
        match parts.get(&symbol.id) {
            Some(&(left, right)) => waiting.extend([right, left]),
            None => symbols.push(symbol),
        }
    }
}
