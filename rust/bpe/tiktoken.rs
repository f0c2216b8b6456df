//! `.tiktoken`: lines of a token's bytes in base 64 and its rank, which is also its id.
//!
//! Two adjacent tokens may merge if together they spell a token, whose rank is then the merge's. A
//! piece that is a token stays whole.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::alphabet;
use super::encode::ByteLevel;
use super::merges::{Merge, Merges};
use super::pretokenize::Split;
use super::tokenizer::Parts;
use super::vocab::Vocab;
use crate::error::{Error, Result};

/// The parts that the bytes of a file describe, with the pre-tokenisation `splits`.
pub fn from_slice(path: &Path, bytes: &[u8], splits: Vec<Split>) -> Result<Parts> {
    let mut entries = Vec::new();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let fail = |found: String| {
            Error::file(path, format!("line {}", i + 1), found, "a token in base 64, a space, its rank")
        };
        let text = std::str::from_utf8(line).map_err(|error| fail(error.to_string()))?;
        let (token, rank) = text.split_once(' ').ok_or_else(|| fail(format!("{text:?}")))?;
        let token = STANDARD.decode(token).map_err(|error| fail(format!("{token:?} ({error})")))?;
        let rank: u64 = rank.parse().map_err(|error| fail(format!("{rank:?} ({error})")))?;
        if token.is_empty() {
            return Err(fail("an empty token".into()));
        }
        entries.push((alphabet::spell(&token), rank));
    }
    let vocab = Vocab::new(path, "ranks", entries)?;
    let model = ByteLevel::new(&vocab, merges(&vocab), true, None);
    if let Some(byte) = model.missing() {
        return Err(Error::file(
            path,
            "ranks",
            format!("no token for the byte {byte:#04x}"),
            "all 256 bytes",
        ));
    }
    Ok(Parts::byte_level(vocab, model, splits))
}

/// Every way to cut a token into two tokens is a merge, of the rank of the whole.
fn merges(vocab: &Vocab) -> Merges {
    let mut merges = Merges::default();
    for (id, token) in vocab.iter() {
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left), Some(right)) = (vocab.id(left), vocab.id(right)) {
                merges.insert(left, right, Merge { rank: id, id });
            }
        }
    }
    merges
}
