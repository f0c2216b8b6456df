//! Files to named tensors, memory-mapped.
//!
//! A format's own file ([`safetensors`], [`gguf`]) checks what the header claims and turns it into one
//! [`Tensors`] table; from there on nobody knows which format it was. Everything is read through
//! [`TensorSource`], as float32.
//!
//! A file may be hostile: no count, size or offset is believed before it is checked against the bytes
//! that are there, and every lie is an [`Error::File`](crate::error::Error::File). Only a file that
//! another process changes or truncates *while it is mapped* is beyond this: the operating system then
//! changes the bytes under us, or raises SIGBUS.

use std::fmt::Display;
use std::ops::Range;
use std::path::Path;

use crate::error::{Error, Result};

pub mod blocks;
mod bytes;
pub mod dequantize;
mod dtype;
pub mod gguf;
pub(crate) mod json;
mod kquants;
pub(crate) mod metadata;
pub mod quantize;
mod quants;
pub mod safetensors;
mod tensors;

pub use bytes::FileBytes;
pub use dtype::DType;
pub use gguf::Gguf;
pub use metadata::{Array, Value};
pub use tensors::{TensorInfo, Tensors};

/// Characters of a file's own words that an error repeats.
const LONGEST: usize = 200;

/// Named tensors, readable as float32 from several threads at once.
pub trait TensorSource: Send + Sync {
    /// The file that was opened; of a sharded checkpoint, its index.
    fn path(&self) -> &Path;

    /// Every tensor, in the order of the file.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;

    /// Name, shape and type; an error that names the file if there is no such tensor.
    fn info(&self, name: &str) -> Result<&TensorInfo>;

    /// Expands rows of a tensor of floats, quantised or not, into `out`, `[rows, row_len]`.
    /// Rows run over all dimensions but the last ([`TensorInfo::rows`]). Values are not looked at:
    /// see [`first_non_finite`].
    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The bytes of rows, as the file has them.
    fn stored_rows(&self, name: &str, rows: Range<usize>) -> Result<&[u8]>;

    /// Tells the operating system that the tensor's file pages are no longer needed, so that they stop
    /// counting as this process's memory. Reading the tensor again brings them back.
    fn release_pages(&self, name: &str) -> Result<()>;
}

/// Where the first NaN or infinity stands.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    // One addition carries into the sign bit exactly when all bits of the exponent are set; the bits of
    // a whole chunk are then looked at together.
    const CHUNK: usize = 256;
    let exponent_full = |x: &f32| (x.to_bits() & 0x7fff_ffff).wrapping_add(0x0080_0000);
    for (i, chunk) in values.chunks(CHUNK).enumerate() {
        if chunk.iter().map(exponent_full).fold(0, |any, bits| any | bits) >> 31 != 0 {
            return chunk.iter().position(|x| !x.is_finite()).map(|at| i * CHUNK + at);
        }
    }
    None
}

/// A name as an error shows it: quoted, escaped, and short however long the file made it.
pub(crate) fn quote(name: &str) -> String {
    let end = name.char_indices().nth(LONGEST).map_or(name.len(), |(end, _)| end);
    format!("{:?}{}", &name[..end], if end < name.len() { "…" } else { "" })
}

/// What an error quotes of a file, cut if it is long.
pub(crate) fn brief(found: impl Display) -> String {
    let mut text = found.to_string();
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// The error of a file that is too short for what it claims.
pub(crate) fn truncated(path: &Path, field: &str, at: usize, needed: u64, left: usize) -> Error {
    Error::file(
        path,
        field,
        format!("{needed} bytes from offset {at}"),
        format!("no more than the {left} bytes left in the file"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_non_finite_value() {
        let mut values = vec![1.0; 1000];
        values[3] = f32::MAX;
        values[4] = -f32::MIN_POSITIVE / 4.0;
        assert_eq!(first_non_finite(&values), None);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 255, 256, 999] {
                let mut values = values.clone();
                values[at] = bad;
                assert_eq!(first_non_finite(&values), Some(at));
            }
        }
        assert_eq!(first_non_finite(&[]), None);
    }

    #[test]
    fn quotes_are_short() {
        assert_eq!(quote("a\nb"), "\"a\\nb\"");
        assert_eq!(quote(&"é".repeat(1 << 20)).chars().count(), LONGEST + 3);
        assert_eq!(brief("é".repeat(1 << 20)).chars().count(), LONGEST + 1);
    }
}
