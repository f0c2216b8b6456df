//! Counts that outgrow the memory: sorted runs in a temporary file, and their sum.
//!
//! The file has no name, or loses it when it is closed, so that nothing is left of it whatever happens.
//! A run is pieces in the order of their bytes, each as its length in four bytes, its count in eight, and itself.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::table::Sorted;
use crate::error::{Error, Result};
use crate::interrupt;

/// Bytes that are written, and at most read, at a time.
const BLOCK: usize = 1 << 20;
/// Bytes that are read at a time at least.
const SMALLEST_BLOCK: usize = 1 << 12;
/// Runs that are read together, at most: more are added up before the next is written.
const MOST_RUNS: usize = 256;
/// The length and the count of a piece.
const HEAD: usize = 12;
/// Pieces between two looks for Ctrl-C.
const PIECES_BETWEEN_CHECKS: u64 = 1 << 14;

fn failed(error: io::Error) -> Error {
    Error::io(&std::env::temp_dir(), error)
}

/// A temporary file that is written from the start to the end, and read where one wants.
struct Spilled {
    file: Mutex<File>,
    end: u64,
    unwritten: Vec<u8>,
}

impl Spilled {
    fn new() -> Result<Self> {
        let file = tempfile::tempfile().map_err(failed)?;
        Ok(Spilled { file: Mutex::new(file), end: 0, unwritten: Vec::new() })
    }

    fn write(&mut self, piece: &[u8], count: u64) -> Result<()> {
        self.unwritten.extend((piece.len() as u32).to_le_bytes());
        self.unwritten.extend(count.to_le_bytes());
        self.unwritten.extend(piece);
        if self.unwritten.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let file = self.file.get_mut().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.end)).and_then(|_| file.write_all(&self.unwritten)).map_err(failed)?;
        self.end += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }
}

/// Reads a run.
struct Reader<'a> {
    file: &'a Mutex<File>,
    rest: Range<u64>,
    block: usize,
    buffer: Vec<u8>,
    /// Where in the buffer the next piece begins.
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(file: &'a Mutex<File>, run: Range<u64>, block: usize) -> Self {
        Reader { file, rest: run, block, buffer: Vec::new(), at: 0 }
    }

    /// Puts the next piece into `piece` and gives its count.
    fn next(&mut self, piece: &mut Vec<u8>) -> Result<Option<u64>> {
        if self.at == self.buffer.len() && self.rest.is_empty() {
            return Ok(None);
        }
        let mut len = [0; 4];
        let mut count = [0; 8];
        len.copy_from_slice(&self.bytes(HEAD)?[..4]);
        count.copy_from_slice(&self.bytes(HEAD)?[4..HEAD]);
        self.at += HEAD;
        let len = u32::from_le_bytes(len) as usize;
        piece.clear();
        piece.extend(&self.bytes(len)?[..len]);
        self.at += len;
        Ok(Some(u64::from_le_bytes(count)))
    }

    /// The next bytes, at least so many.
    fn bytes(&mut self, wanted: usize) -> Result<&[u8]> {
        let there = self.buffer.len() - self.at;
        if there < wanted {
            self.buffer.drain(..self.at);
            self.at = 0;
            let more = (self.rest.end - self.rest.start).min(self.block.max(wanted - there) as u64);
            self.buffer.resize(there + more as usize, 0);
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(self.rest.start))
                .and_then(|_| file.read_exact(&mut self.buffer[there..]))
                .map_err(failed)?;
            self.rest.start += more;
        }
        Ok(&self.buffer[self.at..])
    }
}

/// Sorted runs.
pub struct Runs {
    spilled: Option<Spilled>,
    runs: Vec<Range<u64>>,
    memory: usize,
}

impl Runs {
    /// Runs that are read through buffers of `memory` bytes together, or of `MOST_RUNS` smallest blocks if
    /// that is more.
    pub fn new(memory: usize) -> Self {
        Runs { spilled: None, runs: Vec::new(), memory }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn write(&mut self, pieces: &Sorted) -> Result<()> {
        if self.runs.len() == MOST_RUNS {
            let Sum(sum) = std::mem::replace(self, Runs::new(self.memory)).sum()?;
            self.runs.push(0..sum.end);
            self.spilled = Some(sum);
        }
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            none => none.insert(Spilled::new()?),
        };
        let start = spilled.end;
        pieces.each(|piece, count| spilled.write(piece, count))?;
        spilled.flush()?;
        self.runs.push(start..spilled.end);
        Ok(())
    }

    /// The sum of the runs.
    pub fn sum(self) -> Result<Sum> {
        let mut sum = Spilled::new()?;
        let block = (self.memory / self.runs.len().max(1)).clamp(SMALLEST_BLOCK, BLOCK);
        let readers = self
            .spilled
            .iter()
            .flat_map(|spilled| self.runs.iter().map(|run| Reader::new(&spilled.file, run.clone(), block)));
        let mut readers: Vec<Reader> = readers.collect();
        // The next piece of each run, the smallest on top.
        let mut heads = BinaryHeap::new();
        for (i, reader) in readers.iter_mut().enumerate() {
            let mut piece = Vec::new();
            if let Some(count) = reader.next(&mut piece)? {
                heads.push(Reverse((piece, i, count)));
            }
        }
        let mut last = Vec::new();
        let mut total = 0;
        let mut pieces = 0u64;
        while let Some(Reverse((mut piece, i, count))) = heads.pop() {
            if piece != last {
                if total > 0 {
                    sum.write(&last, total)?;
                }
                last.clone_from(&piece);
                total = 0;
            }
            total += count;
            if let Some(count) = readers[i].next(&mut piece)? {
                heads.push(Reverse((piece, i, count)));
            }
            pieces += 1;
            if pieces.is_multiple_of(PIECES_BETWEEN_CHECKS) {
                interrupt::check()?;
            }
        }
        if total > 0 {
            sum.write(&last, total)?;
        }
        sum.flush()?;
        Ok(Sum(sum))
    }
}

/// All pieces with their counts, in one run.
pub struct Sum(Spilled);

impl Sum {
    /// Calls `piece` with every piece and its count; may be done in several threads at once.
    pub fn each(&self, mut piece: impl FnMut(&[u8], u64) -> Result<()>) -> Result<()> {
        let mut reader = Reader::new(&self.0.file, 0..self.0.end, BLOCK);
        let mut bytes = Vec::new();
        while let Some(count) = reader.next(&mut bytes)? {
            piece(&bytes, count)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::train::table::Table;

    #[test]
    fn the_sum_of_runs_is_that_of_their_tables() {
        // With the smallest blocks, pieces lie across their borders.
        let mut runs = Runs::new(0);
        let mut all = Table::default();
        for table in 0..2 * MOST_RUNS + 3 {
            let mut part = Table::default();
            for i in 0..200u32 {
                let piece = vec![b'a' + (i % 26) as u8; 16 + (i as usize * (table + 1)) % 60];
                part.add_long(&piece, u64::from(i));
                all.add_long(&piece, u64::from(i));
            }
            runs.write(&part.sort()).unwrap();
        }
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        assert!(runs.runs.len() < MOST_RUNS);
        let sum = runs.sum().unwrap();
        sum.each(|piece, count| {
            found.push((piece.to_vec(), count));
            Ok(())
        })
        .unwrap();
        all.sort()
            .each(|piece, count| {
                expected.push((piece.to_vec(), count));
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_eq!(found, expected);
    }
}
