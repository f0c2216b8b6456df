//! GGUF, versions 2 and 3, little-endian.
//!
//! A file is `GGUF`, a version, the counts of tensors and of metadata pairs, the pairs, the tensor
//! descriptions, and, from the next multiple of `general.alignment`, the data. See
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::metadata::{Cursor, Stored, Value};
use super::tensors::{Entry, byte_len};
use super::{DType, FileBytes, TensorInfo, TensorSource, Tensors, quote};
use crate::error::{Error, Result};
use crate::interrupt;

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's `GGML_MAX_DIMS`.
const MOST_DIMS: u32 = 4;

/// Tensors and metadata of one file.
pub struct Gguf {
    tensors: Arc<Tensors>,
    metadata: BTreeMap<String, Stored>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(FileBytes::map(path)?)
    }

    pub fn from_bytes(file: FileBytes) -> Result<Self> {
        let path = file.path().to_owned();
        let mut cursor = Cursor::new(&path, &file);
        let (tensor_count, pair_count) = read_counts(&mut cursor)?;
        let metadata = read_metadata(&mut cursor, pair_count)?;
        refuse_split(&path, &metadata)?;
        let alignment = alignment(&path, &metadata)?;
        let headers = read_headers(&mut cursor, tensor_count)?;
        let start = (cursor.position() as u64).next_multiple_of(alignment);
        let mut entries = Vec::with_capacity(headers.len());
        for header in headers {
            entries.push(place(&path, &file, start, alignment, header)?);
        }
        let tensors = Arc::new(Tensors::new(&path, vec![(file, entries)])?);
        Ok(Gguf { tensors, metadata })
    }

    pub fn tensors(&self) -> &Arc<Tensors> {
        &self.tensors
    }

    /// The keys of the metadata, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// A value of the metadata.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let file = self.tensors.file()?;
        self.metadata.get(key).map(|stored| stored.view(file))
    }

    /// A value as `read` takes it: `None` if the key is absent, an error that names file and key if the
    /// value is of another type.
    pub fn get_as<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&Value<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::file(self.tensors.path(), key, value.type_name(), expected)),
        }
    }
}

fn read_counts(cursor: &mut Cursor<'_>) -> Result<(usize, usize)> {
    // The least that a tensor takes (name length, dims, type, offset), and a pair (key length, type, byte).
    const TENSOR: usize = 8 + 4 + 4 + 8;
    const PAIR: usize = 8 + 4 + 1;
    cursor.field = "magic".into();
    let magic = cursor.take(4)?;
    if magic != MAGIC {
        return Err(cursor.fail(format!("{:?}", magic.escape_ascii().to_string()), "\"GGUF\""));
    }
    cursor.field = "version".into();
    match cursor.u32()? {
        2 | 3 => {}
        other if (1..=3).contains(&other.swap_bytes()) => {
            return Err(cursor.fail("a big-endian file", "a little-endian one"));
        }
        other => return Err(cursor.fail(other, "2 or 3")),
    }
    cursor.field = "tensor_count".into();
    let tensors = cursor.count(TENSOR)?;
    cursor.field = "metadata_kv_count".into();
    Ok((tensors, cursor.count(PAIR)?))
}

fn read_name<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str> {
    let bytes = cursor.string()?;
    std::str::from_utf8(bytes).map_err(|error| cursor.fail(error, "UTF-8"))
}

fn read_metadata(cursor: &mut Cursor<'_>, count: usize) -> Result<BTreeMap<String, Stored>> {
    let mut metadata = BTreeMap::new();
    for i in 0..count {
        interrupt::check()?;
        cursor.field = format!("key of metadata pair {i}");
        let key = read_name(cursor)?;
        cursor.field = quote(key);
        let kind = cursor.kind()?;
        let value = Stored::read(cursor, kind)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(cursor.fail("a second value for this key", "each key once"));
        }
    }
    Ok(metadata)
}

/// One part of a model that `gguf-split` took apart holds only some of its tensors.
fn refuse_split(path: &Path, metadata: &BTreeMap<String, Stored>) -> Result<()> {
    const KEY: &str = "split.count";
    let parts = metadata.get(KEY).and_then(|stored| match stored {
        Stored::Scalar(count) => count.as_int(),
        _ => None,
    });
    match parts {
        Some(parts) if parts > 1 => {
            let expected = "a whole file (llama-gguf-split --merge makes one)";
            Err(Error::file(path, KEY, format!("one of {parts} parts"), expected))
        }
        _ => Ok(()),
    }
}

fn alignment(path: &Path, metadata: &BTreeMap<String, Stored>) -> Result<u64> {
    const KEY: &str = "general.alignment";
    match metadata.get(KEY) {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Stored::Scalar(Value::U32(alignment))) if alignment.is_power_of_two() => Ok((*alignment).into()),
        Some(Stored::Scalar(other)) => {
            Err(Error::file(path, KEY, format!("{other:?}"), "a power of two (uint32)"))
        }
        Some(_) => Err(Error::file(path, KEY, "a string or an array", "a power of two (uint32)")),
    }
}

/// A tensor description as it stands in the file.
struct Header {
    info: TensorInfo,
    offset: u64,
}

fn read_headers(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<Header>> {
    let mut headers = Vec::new();
    for i in 0..count {
        interrupt::check()?;
        cursor.field = format!("name of tensor {i}");
        let name = read_name(cursor)?.to_owned();
        let field = |part: &str| format!("tensor {}{part}", quote(&name));
        cursor.field = field(".n_dims");
        let n_dims = cursor.u32()?;
        if n_dims > MOST_DIMS {
            return Err(cursor.fail(n_dims, format!("at most {MOST_DIMS}")));
        }
        cursor.field = field(".dims");
        let mut shape = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            let dim = cursor.u64()?;
            shape.push(
                usize::try_from(dim).map_err(|_| cursor.fail(dim, "a size that fits the address space"))?,
            );
        }
        // The file counts from the innermost dimension.
        shape.reverse();
        cursor.field = field(".type");
        let number = cursor.u32()?;
        let Some(dtype) = DType::from_ggml(number) else {
            return Err(cursor.fail(format!("ggml type {number}"), DType::list_ggml()));
        };
        cursor.field = field(".offset");
        let offset = cursor.u64()?;
        headers.push(Header { info: TensorInfo { name, shape, dtype }, offset });
    }
    Ok(headers)
}

/// Turns the offset, counted from `start`, into bytes of the file.
fn place(path: &Path, file: &FileBytes, start: u64, alignment: u64, header: Header) -> Result<Entry> {
    let Header { info, offset } = header;
    let field = |part: &str| format!("tensor {}{part}", quote(&info.name));
    let size = byte_len(info.dtype, &info.shape)
        .map_err(|(found, expected)| Error::file(path, field(".dims"), found, expected))?;
    if !offset.is_multiple_of(alignment) {
        return Err(Error::file(path, field(".offset"), offset, format!("a multiple of {alignment}")));
    }
    let end = start.checked_add(offset).and_then(|begin| begin.checked_add(size as u64));
    match end.and_then(|end| usize::try_from(end).ok()).filter(|&end| end <= file.len()) {
        Some(end) => Ok(Entry { info, bytes: end - size..end }),
        None => {
            let found = format!("{size} bytes at offset {offset}");
            let left = (file.len() as u64).saturating_sub(start);
            Err(Error::file(path, field(".offset"), found, format!("bytes within the {left} bytes of data")))
        }
    }
}
