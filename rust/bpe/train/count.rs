//! Counting the pieces of texts, on all threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;

use crate::bpe::cache;
use crate::bpe::pretokenize::{Split, each_piece};
use crate::error::{Error, Result};
use crate::{interrupt, threads};

/// Texts that one thread counts at a time add up to about this many bytes.
const CHUNK_BYTES: usize = 1 << 17;

/// Between two looks at the memory that the tables take.
const ROUND_CHUNKS: usize = 128;

/// Pieces between two looks for Ctrl-C.
const PIECES_BETWEEN_CHECKS: usize = 1 << 12;

/// What a hash table takes for an entry besides the entry: a byte of control, and the slots that its
/// greatest load of 7/8 leaves empty.
const fn table_bytes(capacity: usize, entry: usize) -> usize {
    capacity / 7 * 8 * (entry + 1)
}

/// How often each piece occurs.
#[derive(Default)]
pub struct Counts {
    /// Pieces that fit a key of `cache::key`.
    short: FxHashMap<u128, u64>,
    long: FxHashMap<Box<[u8]>, u64>,
    /// The lengths of the long pieces.
    long_bytes: usize,
}

impl Counts {
    /// Counts `text[range]`.
    #[inline]
    fn add(&mut self, text: &[u8], range: Range<usize>, count: u64) {
        if let Some(key) = cache::key(text, range.start, range.end) {
            *self.short.entry(key).or_default() += count;
        } else {
            self.add_long(&text[range], count);
        }
    }

    fn add_long(&mut self, piece: &[u8], count: u64) {
        if let Some(known) = self.long.get_mut(piece) {
            *known += count;
        } else {
            self.long_bytes += piece.len();
            self.long.insert(piece.into(), count);
        }
    }

    fn absorb(&mut self, other: Counts) {
        for (key, count) in other.short {
            *self.short.entry(key).or_default() += count;
        }
        for (piece, count) in other.long {
            self.add_long(&piece, count);
        }
    }

    /// The memory that the tables take.
    fn bytes(&self) -> usize {
        let long_entry = size_of::<(Box<[u8]>, u64)>();
        table_bytes(self.short.capacity(), size_of::<(u128, u64)>())
            + table_bytes(self.long.capacity(), long_entry)
            + self.long_bytes
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        self.short.len() + self.long.len()
    }

    /// Calls `piece` with every piece, in no order, and its count.
    pub fn each(&self, mut piece: impl FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
        for (&key, &count) in &self.short {
            let bytes = key.to_le_bytes();
            piece(cache::piece(&bytes), count)?;
        }
        self.long.iter().try_for_each(|(long, &count)| piece(long, count))
    }
}

/// What the texts that are counted together are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texts {
    /// Each is a document.
    Documents,
    /// Each of their lines is a document, the line break included.
    Lines,
}

/// Counts pieces into a table a thread. Sums do not depend on who counted what.
pub struct Counter {
    splits: Vec<Split>,
    tables: Mutex<Vec<Counts>>,
    max_memory: usize,
}

impl Counter {
    /// The tables take at most `max_memory` bytes, but for what one round adds.
    pub fn new(splits: Vec<Split>, max_memory: usize) -> Self {
        Counter { splits, tables: Mutex::default(), max_memory }
    }

    /// Counts the pieces of texts.
    pub fn add(&mut self, texts: &[&str], kind: Texts) -> Result<()> {
        let parts: Vec<&str> = texts.iter().flat_map(|text| self.cut(text, kind)).collect();
        let chunks = chunks(&parts);
        for round in chunks.chunks(ROUND_CHUNKS) {
            let failure = Mutex::new(None);
            threads::for_each(round.len(), |i| {
                if lock(&failure).is_some() {
                    return;
                }
                let mut table = lock(&self.tables).pop().unwrap_or_default();
                let mut chunk = parts[round[i].clone()].iter();
                let done = interrupt::check()
                    .and_then(|()| chunk.try_for_each(|part| self.count(part, kind, &mut table)));
                lock(&self.tables).push(table);
                if let Err(error) = done {
                    lock(&failure).get_or_insert(error);
                }
            });
            if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(error);
            }
            interrupt::check()?;
            self.keep_within_memory()?;
        }
        Ok(())
    }

    /// The counts of all texts.
    pub fn finish(self) -> Counts {
        let tables = self.tables.into_inner().unwrap_or_else(PoisonError::into_inner);
        sum(tables)
    }

    fn count(&self, part: &str, kind: Texts, table: &mut Counts) -> Result<()> {
        let mut pieces = 0;
        let mut document = |text: &str| {
            each_piece(&self.splits, text, &mut |piece| {
                pieces += 1;
                if pieces % PIECES_BETWEEN_CHECKS == 0 {
                    interrupt::check()?;
                }
                table.add(text.as_bytes(), piece, 1);
                Ok(())
            })
        };
        match kind {
            Texts::Documents => document(part),
            Texts::Lines => part.split_inclusive('\n').try_for_each(document),
        }
    }

    /// The parts of a text whose pieces together are those of the text.
    fn cut<'a>(&self, text: &'a str, kind: Texts) -> Vec<&'a str> {
        let may_cut: fn(&[u8], usize) -> bool = match (kind, self.splits.as_slice()) {
            (Texts::Lines, _) => |bytes, at| bytes[at - 1] == b'\n',
            // In the patterns that have a scanner no piece goes on from a letter or a digit to a space,
            // and none looks past the one to the other.
            (Texts::Documents, [Split::Scan(_)]) => {
                |bytes, at| bytes[at] == b' ' && bytes[at - 1].is_ascii_alphanumeric()
            }
            (Texts::Documents, _) => return vec![text],
        };
        let mut parts = Vec::new();
        let mut rest = text;
        while rest.len() > CHUNK_BYTES {
            let bytes = rest.as_bytes();
            match (CHUNK_BYTES..bytes.len()).find(|&at| may_cut(bytes, at)) {
                Some(at) => {
                    let (part, after) = rest.split_at(at);
                    parts.push(part);
                    rest = after;
                }
                None => break,
            }
        }
        parts.push(rest);
        parts
    }

    /// An error if one table of all counts takes more memory than is allowed.
    fn keep_within_memory(&mut self) -> Result<()> {
        let tables = self.tables.get_mut().unwrap_or_else(PoisonError::into_inner);
        if tables.iter().map(Counts::bytes).sum::<usize>() <= self.max_memory {
            return Ok(());
        }
        let one = sum(std::mem::take(tables));
        let (bytes, pieces) = (one.bytes(), one.len());
        tables.push(one);
        within_memory(bytes, self.max_memory, || format!("the {pieces} different pieces met so far"))
    }
}

/// An error if `what` takes more bytes than `max_memory`.
pub fn within_memory(bytes: usize, max_memory: usize, what: impl FnOnce() -> String) -> Result<()> {
    match bytes <= max_memory {
        true => Ok(()),
        false => {
            let expected = format!("at least the {bytes} that {} take", what());
            Err(Error::argument("max_memory", format!("{max_memory} bytes"), expected))
        }
    }
}

fn sum(mut tables: Vec<Counts>) -> Counts {
    // The largest takes the others in.
    tables.sort_by_key(Counts::len);
    let mut all = tables.pop().unwrap_or_default();
    tables.into_iter().for_each(|table| all.absorb(table));
    all
}

/// Ranges of parts, each of `CHUNK_BYTES` together or one longer part.
fn chunks(parts: &[&str]) -> Vec<Range<usize>> {
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let mut bytes = CHUNK_BYTES;
    for (i, part) in parts.iter().enumerate() {
        match chunks.last_mut() {
            Some(chunk) if bytes + part.len() <= CHUNK_BYTES => chunk.end = i + 1,
            _ => {
                chunks.push(i..i + 1);
                bytes = 0;
            }
        }
        bytes += part.len();
    }
    chunks
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bpe::scan::{PATTERNS, Scanner};

    fn counts(counter: Counter) -> BTreeMap<Vec<u8>, u64> {
        let mut all = BTreeMap::new();
        let add = |piece: &[u8], count| {
            assert!(all.insert(piece.to_vec(), count).is_none());
            Ok(())
        };
        counter.finish().each(add).unwrap();
        all
    }

    /// Cutting a long text, for the threads, changes no count.
    #[test]
    fn cuts_do_not_show() {
        let words = [
            "don't",
            " ",
            "  ",
            "\n",
            " \n ",
            "!!",
            "/\n",
            "7",
            "1234",
            " é",
            "x",
            "漢",
            "A",
            "a word of more than sixteen",
        ];
        let mut state = 7u64;
        let mut text = String::new();
        while text.len() < 3 * CHUNK_BYTES {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            text += words[(state >> 33) as usize % words.len()];
        }
        for (_, scanner) in PATTERNS {
            let mut expected: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            let mut piece = |piece: Range<usize>| {
                *expected.entry(text.as_bytes()[piece].to_vec()).or_default() += 1;
                Ok::<(), Error>(())
            };
            scanner.each_piece(&text, &mut piece).unwrap();
            let mut counter = Counter::new(vec![Split::Scan(scanner)], usize::MAX);
            counter.add(&[&text], Texts::Documents).unwrap();
            assert!(counter.cut(&text, Texts::Documents).len() > 1);
            assert_eq!(counts(counter), expected);
        }
    }

    #[test]
    fn lines_are_documents() {
        let mut counter = Counter::new(vec![Split::Scan(Scanner::Gpt2)], usize::MAX);
        counter.add(&["a\n\n b"], Texts::Lines).unwrap();
        counter.add(&["a\n\n b"], Texts::Documents).unwrap();
        // As one document, the line breaks are one piece.
        let expected: [(&[u8], u64); 4] = [(b"a", 2), (b"\n", 2), (b"\n\n", 1), (b" b", 2)];
        assert_eq!(counts(counter), expected.map(|(piece, count)| (piece.to_vec(), count)).into());
    }
}
