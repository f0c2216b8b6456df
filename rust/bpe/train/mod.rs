//! Training a byte-level vocabulary: `count` counts the pieces of texts (in a `table` a thread, or, if they
//! are too many, in `runs` on disk; `read` reads files), `merge` finds the merges in the `words` that the
//! pieces are, `file` writes them as a tokenizer.json.
//!
//! The result is that of `tokenizers` 0.23 with `BpeTrainer(initial_alphabet=ByteLevel.alphabet())`
//! over `Split(pattern, "isolated")` and `ByteLevel(add_prefix_space=False, use_regex=False)`, whatever
//! the number of threads. Its counts have 32 bits and overflow; these have 64.

mod count;
mod file;
mod merge;
mod read;
mod runs;
mod table;
mod words;

use std::path::Path;

use rustc_hash::FxHashMap;

pub use self::count::Dropped;
use self::count::{Counter, Pieces};
use self::merge::Merger;
use self::words::Symbol;
use super::alphabet;
use super::load::named_or_regex;
use super::pretokenize::Split;
use crate::error::{Error, Result};

/// Counts texts, then makes a vocabulary.
pub struct Trainer {
    wanted: Wanted,
    counter: Counter,
    /// The special tokens, then the bytes.
    names: Names,
    symbol_of: [u32; 256],
}

/// What the vocabulary shall be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How many tokens, special ones and the 256 bytes among them; fewer if no pair is left.
    pub vocab_size: usize,
    /// The name of a known pattern or a regular expression as Oniguruma reads it.
    pub pattern: String,
    /// They come first, in this order.
    pub special_tokens: Vec<String>,
    /// A pair that occurs less often is not merged.
    pub min_frequency: u64,
    /// A piece that occurs less often is left out.
    pub min_piece_count: u64,
    /// Bytes that counts may take before they are written to a temporary file, and then that merging may take.
    pub max_memory: Option<usize>,
}

/// A vocabulary that was trained.
pub struct Trained {
    /// The regular expression of the pre-tokenisation.
    pattern: String,
    special_tokens: Vec<String>,
    /// In the order of their ids, in the byte alphabet but for the special ones.
    tokens: Vec<String>,
    merges: Vec<(u32, u32)>,
    /// What was left out.
    pub dropped: Dropped,
}

impl Trainer {
    pub fn new(mut wanted: Wanted) -> Result<Self> {
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
        if wanted.vocab_size < least || wanted.vocab_size > u32::MOST {
            let expected = format!("at least {least}, the bytes and special tokens, and below 2³² - 1");
            return Err(Error::argument("vocab_size", wanted.vocab_size, expected));
        }
        let split = named_or_regex(&wanted.pattern, true)?;
        if let Split::Scan(scanner) = &split {
            wanted.pattern = scanner.pattern().to_owned();
        }
        let counter = Counter::new(vec![split], wanted.max_memory.unwrap_or(usize::MAX));
        Ok(Trainer { wanted, counter, names, symbol_of })
    }

    /// Counts the pieces of texts, each of which is a document.
    pub fn add_texts(&mut self, texts: &[&str]) -> Result<()> {
        self.counter.add_documents(texts)
    }

    /// Counts the pieces of a file of UTF-8, each line of which is a document, the line break included.
    /// `report` is called with the number of bytes that have been counted.
    pub fn add_file(&mut self, path: &Path, report: impl FnMut(usize) -> Result<()>) -> Result<()> {
        read::add_file(&mut self.counter, path, report)
    }

    /// Makes the vocabulary. `report` is called with its size after each merge.
    pub fn finish(self, report: impl FnMut(usize) -> Result<()>) -> Result<Trained> {
        let Trainer { wanted, counter, mut names, symbol_of } = self;
        let pieces = counter.finish(wanted.min_piece_count)?;
        let dropped = pieces.dropped()?;
        let merges = if wanted.vocab_size <= u16::MOST {
            merges::<u16>(pieces, &symbol_of, &wanted, &mut names, report)?
        } else {
            merges::<u32>(pieces, &symbol_of, &wanted, &mut names, report)?
        };
        let Wanted { pattern, special_tokens, .. } = wanted;
        Ok(Trained { pattern, special_tokens, tokens: names.tokens, merges, dropped })
    }
}

/// Finds the merges and names the tokens that they make.
fn merges<S: Symbol>(
    pieces: Pieces,
    symbol_of: &[u32; 256],
    wanted: &Wanted,
    names: &mut Names,
    mut report: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<(u32, u32)>> {
    let mut merges = Vec::new();
    let mut merger = Merger::<S>::new(pieces, symbol_of, wanted.max_memory.unwrap_or(usize::MAX))?;
    merger.run(wanted.vocab_size, wanted.min_frequency, |left, right| {
        report(names.tokens.len())?;
        if names.tokens.len() >= wanted.vocab_size {
            return Ok(None);
        }
        merges.push((left, right));
        let name = format!("{}{}", names.tokens[left as usize], names.tokens[right as usize]);
        Ok(Some(names.id(name)))
    })?;
    Ok(merges)
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
