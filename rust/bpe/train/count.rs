//! Counting the pieces of texts, on all threads.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::runs::{Runs, Sum};
use super::table::{BATCH, Table};
use crate::bpe::cache;
use crate::bpe::pretokenize::{Split, each_piece};
use crate::error::{Error, Result};
use crate::{interrupt, threads};

/// Texts that one thread counts at a time add up to about this many bytes.
const CHUNK_BYTES: usize = 1 << 17;

/// Batches of pieces between two looks for Ctrl-C.
const BATCHES_BETWEEN_CHECKS: usize = 1 << 8;

/// Slots looked at, or pieces read, between two looks for Ctrl-C.
const PIECES_BETWEEN_CHECKS: usize = 1 << 16;

/// Counts pieces into a table a thread. Sums do not depend on who counted what.
pub struct Counter {
    splits: Vec<Split>,
    tables: Mutex<Vec<Table>>,
    /// How many tables there have been.
    made: AtomicU64,
    runs: Mutex<Runs>,
    max_memory: usize,
}

impl Counter {
    /// Tables that would take more than `max_memory` bytes together are written to a temporary file.
    pub fn new(splits: Vec<Split>, max_memory: usize) -> Self {
        Counter {
            splits,
            tables: Mutex::default(),
            made: AtomicU64::new(0),
            runs: Mutex::new(Runs::new(max_memory)),
            max_memory,
        }
    }

    /// Counts the pieces of texts, each of which is a document.
    pub fn add_documents(&mut self, texts: &[&str]) -> Result<()> {
        let parts: Vec<&str> = texts.iter().flat_map(|text| self.cut(text)).collect();
        let chunks = chunks(&parts);
        self.run(chunks.len(), |i, tally| {
            parts[chunks[i].clone()].iter().try_for_each(|part| self.count(part, tally))
        })
    }

    /// Counts the pieces of lines, each of which is a document, the line break included. Meanwhile a thread
    /// does something else. `invalid` makes an error of the place of bytes that are no UTF-8.
    pub fn add_lines(
        &mut self,
        lines: &[u8],
        meanwhile: impl Fn() + Sync,
        invalid: impl Fn(usize) -> Error + Sync,
    ) -> Result<()> {
        let chunks = chunks_of_lines(lines);
        self.run(chunks.len() + 1, |i, tally| {
            let Some(chunk) = i.checked_sub(1).map(|i| chunks[i].clone()) else {
                meanwhile();
                return Ok(());
            };
            let start = chunk.start;
            let text =
                std::str::from_utf8(&lines[chunk]).map_err(|error| invalid(start + error.valid_up_to()))?;
            text.split_inclusive('\n').try_for_each(|line| self.count(line, tally))
        })
    }

    /// The counts of all texts; of pieces that occur less than `min_count` times, only what they add up to.
    pub fn finish(self, min_count: u64) -> Result<Pieces> {
        let mut tables = self.tables.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut runs = self.runs.into_inner().unwrap_or_else(PoisonError::into_inner);
        let source = if runs.is_empty() {
            // The largest takes the others in.
            tables.sort_by_key(Table::len);
            let mut all = tables.pop().unwrap_or_default();
            for table in tables {
                for slots in table.slots().chunks(PIECES_BETWEEN_CHECKS) {
                    interrupt::check()?;
                    all.absorb(&table, slots);
                }
            }
            Source::Table(all)
        } else {
            for table in tables {
                runs.write(&table.sort())?;
            }
            Source::Sum(runs.sum()?)
        };
        Ok(Pieces { source, min_count })
    }

    /// Runs jobs on the threads, each of which counts into a table. The error is that of the first that fails.
    fn run(&self, jobs: usize, job: impl Fn(usize, &mut Tally) -> Result<()> + Sync) -> Result<()> {
        let failure: Mutex<Option<(usize, Error)>> = Mutex::new(None);
        threads::for_each(jobs, |i| {
            if lock(&failure).as_ref().is_some_and(|(failed, _)| *failed < i) {
                return;
            }
            let table = lock(&self.tables).pop();
            let new = || Table::new(self.made.fetch_add(1, Ordering::Relaxed));
            let mut tally = Tally::new(table.unwrap_or_else(new));
            let done = interrupt::check().and_then(|()| job(i, &mut tally));
            let done = done.and_then(|()| self.keep(tally.finish()));
            if let Err(error) = done {
                let mut failure = lock(&failure);
                if failure.as_ref().is_none_or(|(failed, _)| i < *failed) {
                    *failure = Some((i, error));
                }
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => interrupt::check(),
        }
    }

    /// Keeps a table for the next job, or writes it out if it has got too large.
    fn keep(&self, table: Table) -> Result<()> {
        if table.bytes() <= self.max_memory / threads::size() {
            lock(&self.tables).push(table);
            return Ok(());
        }
        let sorted = table.sort();
        lock(&self.runs).write(&sorted)
    }

    fn count(&self, document: &str, tally: &mut Tally) -> Result<()> {
        each_piece(&self.splits, document, &mut |piece| tally.add(document.as_bytes(), piece))
    }

    /// The parts of a document whose pieces together are those of the document.
    fn cut<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut parts = Vec::new();
        let mut rest = text;
        while rest.len() > CHUNK_BYTES && matches!(self.splits.as_slice(), [Split::Scan(_)]) {
            let bytes = rest.as_bytes();
            // In the patterns that have a scanner no piece goes on from a letter or a digit to a space,
            // and none looks past the one to the other.
            let may_cut = |&at: &usize| bytes[at] == b' ' && bytes[at - 1].is_ascii_alphanumeric();
            let Some(at) = (CHUNK_BYTES..bytes.len()).find(may_cut) else { break };
            let (part, after) = rest.split_at(at);
            parts.push(part);
            rest = after;
        }
        parts.push(rest);
        parts
    }
}

/// A table, and pieces that are counted into it together.
struct Tally {
    table: Table,
    keys: [u128; BATCH],
    waiting: usize,
    batches: usize,
}

impl Tally {
    fn new(table: Table) -> Self {
        Tally { table, keys: [0; BATCH], waiting: 0, batches: 0 }
    }

    /// Counts `text[range]`.
    #[inline]
    fn add(&mut self, text: &[u8], range: Range<usize>) -> Result<()> {
        let Some(key) = cache::key(text, range.start, range.end) else {
            return self.add_long(&text[range]);
        };
        self.keys[self.waiting] = key;
        self.waiting += 1;
        if self.waiting == BATCH { self.count_batch() } else { Ok(()) }
    }

    fn count_batch(&mut self) -> Result<()> {
        self.table.add_keys(&self.keys[..self.waiting]);
        self.waiting = 0;
        self.batches += 1;
        if self.batches.is_multiple_of(BATCHES_BETWEEN_CHECKS) { interrupt::check() } else { Ok(()) }
    }

    fn add_long(&mut self, piece: &[u8]) -> Result<()> {
        if u32::try_from(piece.len()).is_err() {
            return Err(Error::argument("text", "4 GiB in one piece", "a pattern that cuts it"));
        }
        self.table.add_long(piece, 1);
        Ok(())
    }

    fn finish(mut self) -> Table {
        self.table.add_keys(&self.keys[..self.waiting]);
        self.table
    }
}

enum Source {
    Table(Table),
    Sum(Sum),
}

/// The different pieces and how often each occurs.
pub struct Pieces {
    source: Source,
    min_count: u64,
}

/// Pieces that were left out because they are rare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    pub pieces: u64,
    pub occurrences: u64,
    /// Of how many pieces.
    pub all_pieces: u64,
    /// Of how many occurrences.
    pub all_occurrences: u64,
}

impl Pieces {
    #[cfg(test)]
    pub fn of(table: Table) -> Self {
        Pieces { source: Source::Table(table), min_count: 1 }
    }

    /// Calls `piece` with every piece of one of several shares, and its count.
    pub fn each(
        &self,
        share: usize,
        shares: usize,
        mut piece: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        self.each_with_rare(
            share,
            shares,
            |bytes, count| {
                if count >= self.min_count { piece(bytes, count) } else { Ok(()) }
            },
        )
    }

    /// What `each` leaves out.
    pub fn dropped(&self) -> Result<Dropped> {
        let mut dropped = Dropped::default();
        if self.min_count > 1 {
            self.each_with_rare(0, 1, |_, count| {
                dropped.all_pieces += 1;
                dropped.all_occurrences += count;
                if count < self.min_count {
                    dropped.pieces += 1;
                    dropped.occurrences += count;
                }
                Ok(())
            })?;
        }
        Ok(dropped)
    }

    fn each_with_rare(
        &self,
        share: usize,
        shares: usize,
        mut piece: impl FnMut(&[u8], u64) -> Result<()>,
    ) -> Result<()> {
        let mut seen = 0usize;
        let mut due = || {
            seen += 1;
            if seen.is_multiple_of(PIECES_BETWEEN_CHECKS) { interrupt::check() } else { Ok(()) }
        };
        match &self.source {
            Source::Table(table) => {
                let slots = table.slots();
                let bound = |share| slots.len() / shares * share + (slots.len() % shares) * share / shares;
                let mut bytes = [0; 16];
                for &slot in &slots[bound(share)..bound(share + 1)] {
                    due()?;
                    if let Some(found) = table.piece(slot, &mut bytes) {
                        piece(found, slot.count)?;
                    }
                }
                Ok(())
            }
            Source::Sum(sum) => {
                let mut index = 0;
                sum.each(|found, count| {
                    due()?;
                    index += 1;
                    if index % shares == share { piece(found, count) } else { Ok(()) }
                })
            }
        }
    }
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

/// Ranges of whole lines, each of about `CHUNK_BYTES`.
fn chunks_of_lines(lines: &[u8]) -> Vec<Range<usize>> {
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < lines.len() {
        let least = (start + CHUNK_BYTES).min(lines.len());
        let more = lines[least..].iter().position(|&byte| byte == b'\n');
        let end = more.map_or(lines.len(), |more| least + more + 1);
        chunks.push(start..end);
        start = end;
    }
    chunks
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        counter.finish(1).unwrap().each(0, 1, add).unwrap();
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
            counter.add_documents(&[&text]).unwrap();
            assert!(counter.cut(&text).len() > 1);
            assert_eq!(counts(counter), expected);
        }
    }

    #[test]
    fn lines_are_documents() {
        let mut counter = Counter::new(vec![Split::Scan(Scanner::Gpt2)], usize::MAX);
        let invalid = |at: usize| Error::argument("text", at, "UTF-8");
        counter.add_lines(b"a\n\n b", || (), invalid).unwrap();
        counter.add_documents(&["a\n\n b"]).unwrap();
        // As one document, the line breaks are one piece.
        let expected: [(&[u8], u64); 4] = [(b"a", 2), (b"\n", 2), (b"\n\n", 1), (b" b", 2)];
        assert_eq!(counts(counter), expected.map(|(piece, count)| (piece.to_vec(), count)).into());
    }

    #[test]
    fn the_first_bytes_that_are_no_text_are_told() {
        let mut lines = b"abc\n".repeat(CHUNK_BYTES);
        let last = lines.len() - 3;
        lines[last] = 0xff;
        lines[CHUNK_BYTES + 9] = 0xff;
        let mut counter = Counter::new(vec![Split::Scan(Scanner::Gpt2)], usize::MAX);
        let error = counter.add_lines(&lines, || (), |at| Error::argument("text", at, "UTF-8")).unwrap_err();
        assert_eq!(error.to_string(), format!("text: found {}, expected UTF-8", CHUNK_BYTES + 9));
    }

    /// Tables that are written out and those that are not give the same sums, in any number of shares.
    #[test]
    fn what_is_spilled_counts() {
        let text: String =
            (0..200_000u32).map(|i| format!(" {:x} {}", i % 7919, "é".repeat(i as usize % 90))).collect();
        let count = |max_memory| {
            let mut counter = Counter::new(vec![Split::Scan(Scanner::Gpt2)], max_memory);
            counter.add_documents(&[&text]).unwrap();
            assert_eq!(counter.runs.lock().unwrap().is_empty(), max_memory > 1 << 30);
            let pieces = counter.finish(3).unwrap();
            let mut all = BTreeMap::new();
            for share in 0..3 {
                let add = |piece: &[u8], count| {
                    assert!(all.insert(piece.to_vec(), count).is_none());
                    Ok(())
                };
                pieces.each(share, 3, add).unwrap();
            }
            (all, pieces.dropped().unwrap())
        };
        assert_eq!(count(1000), count(usize::MAX));
    }
}
