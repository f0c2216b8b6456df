//! The bytes of a file: mapped, or in memory.

use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};

/// The bytes of one file and the path that errors name.
pub struct FileBytes {
    path: PathBuf,
    storage: Storage,
}

enum Storage {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps a file. Anything but a regular file that is not empty is an error.
    pub fn map(path: &Path) -> Result<Self> {
        // Asked before opening, for opening a named pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(|error| Error::io(path, error))?;
        if !metadata.is_file() {
            let found =
                if metadata.is_dir() { "a directory" } else { "something that is not a regular file" };
            return Err(Error::file(path, "path", found, "a file"));
        }
        if metadata.len() == 0 {
            return Err(Error::file(path, "size", "an empty file", "a header"));
        }
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        // SAFETY: the mapping is private to this struct, read-only, and lives as long as its borrowers.
        // Changes by other processes are out of scope, as the module says: no reader relies on reading
        // the same byte twice for memory safety, since lengths and offsets are kept, not read again.
        let mapped = unsafe { Mmap::map(&file) }.map_err(|error| Error::io(path, error))?;
        Ok(FileBytes { path: path.to_owned(), storage: Storage::Mapped(mapped) })
    }

    /// Bytes that are in memory already; `path` only serves the errors.
    pub fn owned(path: &Path, bytes: Vec<u8>) -> Self {
        FileBytes { path: path.to_owned(), storage: Storage::Owned(bytes) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Drops the pages under `range` (which lies within the file) from this process's memory.
    pub(super) fn release(&self, range: Range<usize>) -> Result<()> {
        #[cfg(unix)]
        if let Storage::Mapped(mapped) = &self.storage {
            // SAFETY: the mapping is shared and never written, so a dropped page is read again from the
            // file, with the same content, when it is next touched.
            unsafe {
                mapped.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            }
            .map_err(|error| Error::io(&self.path, error))?;
        }
        Ok(())
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.storage {
            Storage::Mapped(mapped) => mapped,
            Storage::Owned(bytes) => bytes,
        }
    }
}
