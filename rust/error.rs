//! The one error type of the crate and its one mapping to Python exceptions.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

use pyo3::exceptions::{PyFileNotFoundError, PyKeyboardInterrupt, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;

/// What can go wrong. Every message says where, what was found, and what was expected.
#[derive(Debug)]
pub enum Error {
    /// A file that is not what it claims to be.
    File { path: PathBuf, field: String, found: String, expected: String },
    /// An argument, option or input outside what the call accepts.
    Argument { name: String, found: String, expected: String },
    /// The operating system refused.
    Io { path: PathBuf, source: io::Error },
    /// More memory was needed than can be had.
    Memory { what: String, bytes: usize },
    /// Ctrl-C.
    Interrupted,
    /// An exception that a Python callback raised.
    Python(PyErr),
}

pub type Result<T> = std::result::Result<T, Error>;

/// An empty vector with room for `len` values, or the error that `what` needs too many.
pub fn room<T>(len: usize, what: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match values.try_reserve_exact(len) {
        Ok(()) => Ok(values),
        Err(_) => Err(Error::Memory { what: what.to_owned(), bytes: len.saturating_mul(size_of::<T>()) }),
    }
}

impl Error {
    pub fn file(path: &Path, field: impl Display, found: impl Display, expected: impl Display) -> Self {
        Error::File {
            path: path.to_owned(),
            field: field.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    pub fn argument(name: impl Display, found: impl Display, expected: impl Display) -> Self {
        Error::Argument { name: name.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    pub fn io(path: &Path, source: io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { path, field, found, expected } => {
                write!(f, "{}: {field}: found {found}, expected {expected}", path.display())
            }
            Error::Argument { name, found, expected } => {
                write!(f, "{name}: found {found}, expected {expected}")
            }
            Error::Io { path, source } => write!(f, "{}: {source}", path.display()),
            Error::Memory { what, bytes } => {
                write!(f, "{what} needs {bytes} bytes of memory, which cannot be had")
            }
            Error::Interrupted => write!(f, "interrupted"),
            Error::Python(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<PyErr> for Error {
    fn from(error: PyErr) -> Self {
        Error::Python(error)
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let message = error.to_string();
        match error {
            Error::File { .. } | Error::Argument { .. } => PyValueError::new_err(message),
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                PyFileNotFoundError::new_err(message)
            }
            Error::Io { .. } => PyOSError::new_err(message),
            Error::Memory { .. } => PyMemoryError::new_err(message),
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
            Error::Python(error) => error,
        }
    }
}
