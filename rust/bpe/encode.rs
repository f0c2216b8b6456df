//! From a piece of text to token ids: the models of byte-pair encoding.

use rustc_hash::FxHashMap;

use super::alphabet;
use super::backtrack::{Backtrack, Spelled};
use super::cache::{self, Words};
use super::cuts::Pairs;
use super::merges::{Merge, Merges, NO_MERGE, SCANNED, Scratch, Symbol};
use super::sentencepiece::SentencePiece;
use super::vocab::Vocab;
use crate::error::Result;

/// How a piece becomes symbols, and symbols become tokens.
pub enum Model {
    Bytes(ByteLevel),
    Characters(Characters),
    SentencePiece(SentencePiece),
}

impl Model {
    /// Leaves the tokens of a piece in `scratch.symbols`. `bytes` is UTF-8, or an invalid sequence
    /// that stands alone.
    pub fn encode(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        match self {
            Model::Bytes(model) => model.encode(piece, scratch),
            Model::Characters(model) => model.encode(piece, scratch),
            Model::SentencePiece(model) => model.encode(piece, scratch),
        }
    }

    /// Whether a piece gives the same tokens wherever it stands, so that they may be remembered.
    pub fn has_pieces(&self) -> bool {
        !matches!(self, Model::SentencePiece(_))
    }
}

/// The token of what has no other.
#[derive(Clone, Copy)]
pub struct Unknown {
    pub id: u32,
    /// Whether a run of unknown symbols is one token.
    pub fused: bool,
}

/// A run of unknown symbols that has not ended yet.
#[derive(Default)]
struct Pending(Option<Symbol>);

impl Pending {
    fn add(&mut self, unknown: Option<Unknown>, len: u32, symbols: &mut Vec<Symbol>) {
        let Some(Unknown { id, fused }) = unknown else { return };
        match &mut self.0 {
            Some(run) if fused => run.len += len,
            run => symbols.extend(run.replace(Symbol { id, len })),
        }
    }

    fn end(&mut self, symbols: &mut Vec<Symbol>) {
        symbols.extend(self.0.take());
    }
}

/// Pieces that are tokens as they stand, whatever the merges say (`ignore_merges`).
pub type Whole = FxHashMap<Box<[u8]>, u32>;

/// Byte-level BPE (GPT-2): every byte is a symbol.
pub struct ByteLevel {
    bytes: [Option<u32>; 256],
    merges: Merges,
    /// The merge of every two bytes, which is most of what merging looks up; none if a byte has no token.
    merges_of_bytes: Option<Box<[[Merge; 256]]>>,
    whole: Whole,
    unknown: Option<Unknown>,
    pairs: Pairs,
    words: Words,
    backtrack: Option<Backtrack>,
}

impl ByteLevel {
    /// Tokens are spelled in the byte alphabet. A byte without a token becomes the unknown token, and
    /// without that is left out.
    pub fn new(vocab: &Vocab, merges: Merges, ignore_merges: bool, unknown: Option<Unknown>) -> Self {
        let mut bytes = [None; 256];
        for (byte, id) in (0..=255).zip(&mut bytes) {
            *id = vocab.id(alphabet::char_of(byte).encode_utf8(&mut [0; 4]));
        }
        let spelled = |(id, token)| Some((alphabet::bytes_of(token)?.into_boxed_slice(), id));
        let tokens: Vec<Spelled> = vocab.iter().filter_map(spelled).collect();
        let mut pairs = Pairs::default();
        tokens.iter().for_each(|(token, _)| pairs.add(token));
        let whole = if ignore_merges { tokens.iter().cloned().collect() } else { Whole::default() };
        let backtrack = Backtrack::new(&merges, &bytes, &tokens);
        let merges_of_bytes = merges_of_bytes(&merges, &bytes);
        let words = Words::default();
        let mut model = ByteLevel { bytes, merges, merges_of_bytes, whole, unknown, pairs, words, backtrack };
        model.words = model.make_words(&tokens);
        model
    }

    /// The short pieces that become one token. Not every token is one: some cannot be reached by merges.
    fn make_words(&self, tokens: &[Spelled]) -> Words {
        let mut scratch = Scratch::default();
        let mut stays_whole = |token: &[u8], id: u32| match &self.backtrack {
            _ if !self.whole.is_empty() => true,
            Some(backtrack) => backtrack.is_made(id),
            // Short ones do not look for Ctrl-C, and fail in no other way.
            None => self.merge(token, &mut scratch).is_ok() && scratch.symbols.len() == 1,
        };
        let words = tokens.iter().filter_map(|(token, id)| {
            let key = cache::key(token, 0, token.len())?;
            stays_whole(token, *id).then_some((key, *id))
        });
        Words::new(&words.collect::<Vec<_>>())
    }

    /// The token of a short piece that is one.
    #[inline]
    pub fn word(&self, key: u128) -> Option<u32> {
        self.words.get(key)
    }

    /// Where pieces may be cut; `merge` gives the tokens of a part. None if a run of unknown bytes might
    /// be cut.
    pub fn cuts(&self) -> Option<&Pairs> {
        self.missing().is_none().then_some(&self.pairs)
    }

    /// The token of a byte.
    #[inline]
    pub fn byte(&self, byte: u8) -> Option<u32> {
        self.bytes[byte as usize]
    }

    /// A byte without a token.
    pub fn missing(&self) -> Option<u8> {
        (0..=255).find(|byte| self.bytes[*byte as usize].is_none())
    }

    pub fn encode(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        if let Some(&id) = self.whole.get(piece) {
            symbols.push(Symbol { id, len: piece.len() as u32 });
            return Ok(());
        }
        self.merge(piece, scratch)
    }

    /// Brings near what says whether a short piece is one token.
    #[inline]
    pub fn prefetch(&self, key: u128) {
        self.words.prefetch(key);
    }

    /// What merges make of bytes, be they a token or not.
    pub fn merge(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        if piece.len() >= LONG
            && let Some(backtrack) = &self.backtrack
            && backtrack.encode(&self.merges, piece, scratch)?
        {
            return Ok(());
        }
        let symbols = &mut scratch.symbols;
        symbols.clear();
        if let Some(merges) = &self.merges_of_bytes
            && piece.len() <= SCANNED
        {
            symbols.extend(piece.iter().flat_map(|&byte| self.byte(byte)).map(|id| Symbol { id, len: 1 }));
            let known = piece.windows(2).map(|two| merges[usize::from(two[0])][usize::from(two[1])]);
            self.merges.apply_known(scratch, known);
            return Ok(());
        }
        let mut pending = Pending::default();
        for &byte in piece {
            match self.bytes[byte as usize] {
                Some(id) => {
                    pending.end(symbols);
                    symbols.push(Symbol { id, len: 1 });
                }
                None => pending.add(self.unknown, 1, symbols),
            }
        }
        pending.end(symbols);
        self.merges.apply(scratch)
    }
}

/// The merge of every two bytes, unless one has no token.
fn merges_of_bytes(merges: &Merges, bytes: &[Option<u32>; 256]) -> Option<Box<[[Merge; 256]]>> {
    let mut all = vec![[NO_MERGE; 256]; 256];
    for (row, left) in all.iter_mut().zip(bytes) {
        for (merge, right) in row.iter_mut().zip(bytes) {
            *merge = merges.get((*left)?, (*right)?).unwrap_or(NO_MERGE);
        }
    }
    Some(all.into_boxed_slice())
}

/// Pieces of so many bytes are encoded by backtracking.
const LONG: usize = 32;

/// BPE over characters, those without a token becoming bytes or the unknown token (Llama 2's
/// tokenizer.json).
pub struct Characters {
    pub merges: Merges,
    pub characters: FxHashMap<char, u32>,
    /// The tokens `<0x00>` … `<0xFF>`, if bytes stand in for unknown characters.
    pub bytes: Option<[Option<u32>; 256]>,
    pub unknown: Option<Unknown>,
    pub whole: Whole,
}

impl Characters {
    fn encode(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        if let Some(&id) = self.whole.get(piece) {
            symbols.push(Symbol { id, len: piece.len() as u32 });
            return Ok(());
        }
        let mut pending = Pending::default();
        for chunk in piece.utf8_chunks() {
            for c in chunk.valid().chars() {
                let len = c.len_utf8() as u32;
                if let Some(&id) = self.characters.get(&c) {
                    pending.end(symbols);
                    symbols.push(Symbol { id, len });
                } else if !self.spell(c.encode_utf8(&mut [0; 4]).as_bytes(), symbols) {
                    pending.add(self.unknown, len, symbols);
                }
            }
            let invalid = chunk.invalid();
            if !invalid.is_empty() && !self.spell(invalid, symbols) {
                pending.add(self.unknown, invalid.len() as u32, symbols);
            }
        }
        pending.end(symbols);
        self.merges.apply(scratch)
    }

    /// Adds the byte tokens of a character; `false` if any of them is missing. An unknown run goes
    /// on across them, as in `tokenizers`.
    fn spell(&self, bytes: &[u8], symbols: &mut Vec<Symbol>) -> bool {
        let Some(table) = &self.bytes else { return false };
        let ids: Option<Vec<u32>> = bytes.iter().map(|&byte| table[byte as usize]).collect();
        symbols.extend(ids.iter().flatten().map(|&id| Symbol { id, len: 1 }));
        ids.is_some()
    }
}

/// The ids of `<0x00>` … `<0xFF>`.
pub fn byte_tokens(vocab: &Vocab) -> [Option<u32>; 256] {
    let mut bytes = [None; 256];
    for (byte, id) in bytes.iter_mut().enumerate() {
        *id = vocab.id(&format!("<0x{byte:02X}>"));
    }
    bytes
}
