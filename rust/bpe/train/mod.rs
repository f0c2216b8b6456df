//! Training a byte-level vocabulary: `count` counts the pieces of texts, `merge` finds the merges,
//! `file` writes them as a tokenizer.json.
//!
//! The result is that of `tokenizers` 0.23 with `BpeTrainer(initial_alphabet=ByteLevel.alphabet())`
//! over `Split(pattern, "isolated")` and `ByteLevel(add_prefix_space=False, use_regex=False)`, whatever
//! the number of threads. Its counts have 32 bits and overflow; these have 64.

mod count;
mod file;
mod merge;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustc_hash::FxHashMap;

use self::count::{Counter, Texts};
use self::merge::Merger;
use super::alphabet;
use super::load::named_or_regex;
use super::pretokenize::Split;
use crate::error::{Error, Result};

/// So much of a file is read and counted at a time.
const STEP_BYTES: usize = 1 << 21;

/// Counts texts, then makes a vocabulary.
pub struct Trainer {
    pattern: String,
    counter: Counter,
    max_memory: usize,
}

/// What the vocabulary shall be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How many tokens, special ones and the 256 bytes among them; fewer if no pair is left.
    pub vocab_size: usize,
    /// A pair that occurs less often is not merged.
    pub min_frequency: u64,
    /// They come first, in this order.
    pub special_tokens: Vec<String>,
}

/// A vocabulary that was trained.
pub struct Trained {
    /// The regular expression of the pre-tokenisation.
    pattern: String,
    special_tokens: Vec<String>,
    /// In the order of their ids, in the byte alphabet but for the special ones.
    tokens: Vec<String>,
    merges: Vec<(u32, u32)>,
}

impl Trainer {
    /// `pattern` is the name of a known pattern or a regular expression as Oniguruma reads it.
    /// `max_memory`: bytes that counting may take, and then that merging may take.
    pub fn new(pattern: &str, max_memory: Option<usize>) -> Result<Self> {
        let split = named_or_regex(pattern, true)?;
        let pattern = match &split {
            Split::Scan(scanner) => scanner.pattern(),
            Split::Pattern { .. } => pattern,
        };
        let pattern = pattern.to_owned();
        let max_memory = max_memory.unwrap_or(usize::MAX);
        Ok(Trainer { pattern, counter: Counter::new(vec![split], max_memory), max_memory })
    }

    /// Counts the pieces of texts, each of which is a document.
    pub fn add_texts(&mut self, texts: &[&str]) -> Result<()> {
        self.counter.add(texts, Texts::Documents)
    }

    /// Counts the pieces of a file of UTF-8, each line of which is a document, the line break included.
    /// `report` is called with the number of bytes that have been counted.
    pub fn add_file(&mut self, path: &Path, mut report: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let failed = |error| Error::io(path, error);
        let mut file = File::open(path).map_err(failed)?;
        // What has been read and not counted, and where in the file that begins.
        let mut bytes = Vec::with_capacity(2 * STEP_BYTES);
        let mut start = 0;
        loop {
            let before = bytes.len();
            let read = file.by_ref().take(STEP_BYTES as u64).read_to_end(&mut bytes).map_err(failed)?;
            let line_break = bytes[before..].iter().rposition(|&byte| byte == b'\n');
            let lines = match line_break {
                _ if read == 0 => bytes.len(),
                Some(at) => before + at + 1,
                None => continue,
            };
            let text = std::str::from_utf8(&bytes[..lines]).map_err(|error| {
                let at = start + error.valid_up_to();
                Error::file(path, format!("byte {at}"), "bytes that are not UTF-8", "UTF-8")
            })?;
            self.counter.add(&[text], Texts::Lines)?;
            start += lines;
            bytes.drain(..lines);
            report(start)?;
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// Makes the vocabulary. `report` is called with its size after each merge.
    pub fn finish(self, wanted: &Wanted, mut report: impl FnMut(usize) -> Result<()>) -> Result<Trained> {
        let mut names = Names::default();
        for token in &wanted.special_tokens {
            if token.is_empty() {
                return Err(Error::argument("special_tokens", "\"\"", "tokens of at least one character"));
            }
            names.id(token.clone());
        }
        let mut bytes: Vec<(char, u8)> = (0..=255).map(|byte| (alphabet::char_of(byte), byte)).collect();
        bytes.sort_unstable();
        let mut symbol_of = [0; 256];
        for (c, byte) in bytes {
            symbol_of[usize::from(byte)] = names.id(c.to_string());
        }
        let least = names.tokens.len();
        if wanted.vocab_size < least || u32::try_from(wanted.vocab_size).is_err() {
            let expected = format!("at least {least}, the bytes and special tokens, and below 2³²");
            return Err(Error::argument("vocab_size", wanted.vocab_size, expected));
        }
        let mut merges = Vec::new();
        let mut merger = Merger::new(self.counter.finish(), &symbol_of)?;
        merger.run(wanted.min_frequency, self.max_memory, |left, right| {
            report(names.tokens.len())?;
            if names.tokens.len() >= wanted.vocab_size {
                return Ok(None);
            }
            merges.push((left, right));
            let name = format!("{}{}", names.tokens[left as usize], names.tokens[right as usize]);
            Ok(Some(names.id(name)))
        })?;
        Ok(Trained {
            pattern: self.pattern,
            special_tokens: wanted.special_tokens.clone(),
            tokens: names.tokens,
            merges,
        })
    }
}

/// Tokens and their ids.
#[derive(Default)]
struct Names {
    tokens: Vec<String>,
    ids: FxHashMap<String, u32>,
}

impl Names {
    /// The id of a token, which is added if it is new.
    fn id(&mut self, token: String) -> u32 {
        let next = self.tokens.len() as u32;
        *self.ids.entry(token).or_insert_with_key(|token| {
            self.tokens.push(token.clone());
            next
        })
    }
}
