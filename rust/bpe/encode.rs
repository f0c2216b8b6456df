//! From a piece of text to token ids: the models of byte-pair encoding.

use rustc_hash::FxHashMap;

use super::alphabet;
use super::merges::{Merges, Scratch, Symbol};
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

/// Byte-level BPE (GPT-2): every byte is a symbol.
pub struct ByteLevel {
    /// The token of each byte; bytes without one are left out of the result.
    bytes: [Option<u32>; 256],
    merges: Merges,
    /// `ignore_merges`: pieces that are tokens as they stand.
    whole: Option<FxHashMap<Box<[u8]>, u32>>,
}

impl ByteLevel {
    /// Tokens are spelled in the byte alphabet.
    pub fn new(vocab: &Vocab, merges: Merges, ignore_merges: bool) -> Self {
        let mut bytes = [None; 256];
        for (byte, id) in (0..=255).zip(&mut bytes) {
            *id = vocab.id(alphabet::char_of(byte).encode_utf8(&mut [0; 4]));
        }
        let whole = ignore_merges.then(|| {
            let spelled = |(id, token)| Some((alphabet::bytes_of(token)?.into(), id));
            vocab.iter().filter_map(spelled).collect()
        });
        ByteLevel { bytes, merges, whole }
    }

    fn encode(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        scratch.symbols.clear();
        if let Some(&id) = self.whole.as_ref().and_then(|whole| whole.get(piece)) {
            scratch.symbols.push(Symbol { id, len: piece.len() as u32 });
            return Ok(());
        }
        let symbols = piece.iter().filter_map(|&byte| self.bytes[byte as usize]);
        scratch.symbols.extend(symbols.map(|id| Symbol { id, len: 1 }));
        self.merges.apply(scratch)
    }
}

/// BPE over characters, those without a token becoming bytes or the unknown token (Llama 2's
/// tokenizer.json).
pub struct Characters {
    pub merges: Merges,
    pub characters: FxHashMap<char, u32>,
    /// The tokens `<0x00>` … `<0xFF>`, if bytes stand in for unknown characters.
    pub bytes: Option<[Option<u32>; 256]>,
    pub unknown: Option<u32>,
    /// Whether a run of unknown characters is one token.
    pub fuse_unknown: bool,
    /// `ignore_merges`: pieces that are tokens as they stand.
    pub whole: Option<FxHashMap<Box<[u8]>, u32>>,
}

impl Characters {
    fn encode(&self, piece: &[u8], scratch: &mut Scratch) -> Result<()> {
        scratch.symbols.clear();
        if let Some(&id) = self.whole.as_ref().and_then(|whole| whole.get(piece)) {
            scratch.symbols.push(Symbol { id, len: piece.len() as u32 });
            return Ok(());
        }
        // The unknown token that runs up to here, not yet among the symbols.
        let mut pending: Option<Symbol> = None;
        for chunk in piece.utf8_chunks() {
            for c in chunk.valid().chars() {
                let len = c.len_utf8() as u32;
                if let Some(&id) = self.characters.get(&c) {
                    scratch.symbols.extend(pending.take());
                    scratch.symbols.push(Symbol { id, len });
                } else if !self.spell(c.encode_utf8(&mut [0; 4]).as_bytes(), scratch) {
                    self.add_unknown(len, &mut pending, scratch);
                }
            }
            if !chunk.invalid().is_empty() && !self.spell(chunk.invalid(), scratch) {
                self.add_unknown(chunk.invalid().len() as u32, &mut pending, scratch);
            }
        }
        scratch.symbols.extend(pending);
        self.merges.apply(scratch)
    }

    fn add_unknown(&self, len: u32, pending: &mut Option<Symbol>, scratch: &mut Scratch) {
        let Some(id) = self.unknown else { return };
        match pending {
            Some(unknown) if self.fuse_unknown => unknown.len += len,
            _ => scratch.symbols.extend(pending.replace(Symbol { id, len })),
        }
    }

    /// Adds the byte tokens of a character; `false` if any of them is missing.
    fn spell(&self, bytes: &[u8], scratch: &mut Scratch) -> bool {
        let Some(table) = &self.bytes else { return false };
        let start = scratch.symbols.len();
        for &byte in bytes {
            match table[byte as usize] {
                Some(id) => scratch.symbols.push(Symbol { id, len: 1 }),
                None => {
                    scratch.symbols.truncate(start);
                    return false;
                }
            }
        }
        true
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
