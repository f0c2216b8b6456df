//! Counting the lines of a file, a block at a time, while the next block is read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::count::Counter;
use crate::error::{Error, Result};

/// So much of a file is read at a time.
const BLOCK_BYTES: u64 = 1 << 22;

/// Counts the pieces of a file of UTF-8, each line of which is a document, the line break included.
/// `report` is called with the number of bytes that have been counted.
pub fn add_file(
    counter: &mut Counter,
    path: &Path,
    mut report: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let failed = |error| Error::io(path, error);
    let file = File::open(path).map_err(failed)?;
    // What has been read and not counted, and where in the file that begins.
    let mut block = Vec::new();
    let mut start = 0;
    let mut read = read_block(&file, &mut block).map_err(failed)?;
    // While one block is counted, the next is read into the other.
    let mut other = Vec::new();
    loop {
        let line_break = block[block.len() - read..].iter().rposition(|&byte| byte == b'\n');
        let lines = match line_break {
            _ if read == 0 => block.len(),
            Some(at) => block.len() - read + at + 1,
            None => {
                read = read_block(&file, &mut block).map_err(failed)?;
                continue;
            }
        };
        other.clear();
        other.extend(&block[lines..]);
        let next = Mutex::new((other, Ok(0)));
        let invalid = |at: usize| {
            Error::file(path, format!("byte {}", start + at), "bytes that are not UTF-8", "UTF-8")
        };
        let read_next = || {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            next.1 = read_block(&file, &mut next.0);
        };
        counter.add_lines(&block[..lines], read_next, invalid)?;
        start += lines;
        report(start)?;
        if read == 0 {
            return Ok(());
        }
        let (next, more) = next.into_inner().unwrap_or_else(PoisonError::into_inner);
        read = more.map_err(failed)?;
        other = std::mem::replace(&mut block, next);
    }
}

/// Reads a block to the end of `bytes`; the number of bytes is 0 at the end of the file.
fn read_block(mut file: &File, bytes: &mut Vec<u8>) -> io::Result<usize> {
    file.by_ref().take(BLOCK_BYTES).read_to_end(bytes)
}
