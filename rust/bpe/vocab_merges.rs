//! `vocab.json` with `merges.txt` beside it: byte-level BPE as GPT-2 published it.

use std::path::Path;

use super::encode::ByteLevel;
use super::merges::{Merge, Merges};
use super::pretokenize::Split;
use super::tokenizer::Parts;
use super::vocab::Vocab;
use crate::error::{Error, Result};
use crate::formats::json::UniqueMap;

/// Merges as they are read, the earliest of the lowest rank.
pub struct MergeList<'a> {
    path: &'a Path,
    field: &'a str,
    vocab: &'a Vocab,
    pub merges: Merges,
    read: u32,
}

impl<'a> MergeList<'a> {
    /// An empty list; `path` and `field` serve the errors.
    pub fn new(path: &'a Path, field: &'a str, vocab: &'a Vocab) -> Self {
        MergeList { path, field, vocab, merges: Merges::default(), read: 0 }
    }

    fn fail(&self, found: impl std::fmt::Display, expected: &str) -> Error {
        Error::file(self.path, format!("{}[{}]", self.field, self.read), found, expected)
    }

    /// The next merge, of two tokens. They and the token they become must be in the vocabulary.
    pub fn pair(&mut self, left: &str, right: &str) -> Result<()> {
        let id = |token: &str| {
            self.vocab.id(token).ok_or_else(|| self.fail(format!("{token:?}"), "a token of the vocabulary"))
        };
        let (first, second, merged) = (id(left)?, id(right)?, id(&format!("{left}{right}"))?);
        self.merges.insert(first, second, Merge { rank: self.read, id: merged });
        self.read = self.read.checked_add(1).ok_or_else(|| self.fail("one more merge", "fewer than 2³²"))?;
        Ok(())
    }

    /// The next merge, written as two tokens with a space between.
    pub fn line(&mut self, line: &str) -> Result<()> {
        match line.split_once(' ').filter(|(_, right)| !right.contains(' ')) {
            Some((left, right)) => self.pair(left, right),
            None => Err(self.fail(format!("{line:?}"), "two tokens with a space between")),
        }
    }
}

/// The parts that the bytes of the two files describe, with the pre-tokenisation `splits`.
pub fn from_slices(
    vocab_path: &Path,
    vocab: &[u8],
    merges_path: &Path,
    merges: &[u8],
    splits: Vec<Split>,
) -> Result<Parts> {
    let UniqueMap(entries): UniqueMap<u64> = serde_json::from_slice(vocab)
        .map_err(|error| Error::file(vocab_path, "vocab.json", error, "an object of tokens and ids"))?;
    let vocab = Vocab::new(vocab_path, "vocab.json", entries)?;
    let text = std::str::from_utf8(merges)
        .map_err(|error| Error::file(merges_path, "merges.txt", error, "UTF-8"))?;
    let mut list = MergeList::new(merges_path, "merges.txt", &vocab);
    for line in text.lines().filter(|line| !line.starts_with("#version") && !line.is_empty()) {
        list.line(line)?;
    }
    let merges = list.merges;
    let model = ByteLevel::new(&vocab, merges, false, None);
    Ok(Parts::byte_level(vocab, model, splits))
}
