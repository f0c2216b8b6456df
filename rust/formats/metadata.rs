//! GGUF's metadata values: scalars, strings, and arrays that stay in the file until they are asked for.

use std::ops::Range;
use std::path::Path;

use super::truncated;
use crate::error::{Error, Result};

/// How deep arrays of arrays may nest; a bound on recursion.
const DEEPEST: usize = 4;

/// A value, as the file types it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// UTF-8 by the specification, but nothing keeps a file to it.
    String(&'a [u8]),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// The items of an array, all of one type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    item: Kind,
    len: usize,
    bytes: &'a [u8],
}

/// The type of a value; the discriminants are the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Kind; 13] = [
        Kind::U8,
        Kind::I8,
        Kind::U16,
        Kind::I16,
        Kind::U32,
        Kind::I32,
        Kind::F32,
        Kind::Bool,
        Kind::String,
        Kind::Array,
        Kind::U64,
        Kind::I64,
        Kind::F64,
    ];

    /// The bytes of a value, at the least.
    fn min_size(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::String => 8,
            Kind::Array => 12,
        }
    }
}

impl<'a> Value<'a> {
    /// What an error calls the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::U8(_) => "uint8",
            Value::I8(_) => "int8",
            Value::U16(_) => "uint16",
            Value::I16(_) => "int16",
            Value::U32(_) => "uint32",
            Value::I32(_) => "int32",
            Value::F32(_) => "float32",
            Value::Bool(_) => "bool",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::U64(_) => "uint64",
            Value::I64(_) => "int64",
            Value::F64(_) => "float64",
        }
    }

    /// Any integer.
    pub fn as_int(&self) -> Option<i64> {
        match *self {
            Value::U8(x) => Some(x.into()),
            Value::I8(x) => Some(x.into()),
            Value::U16(x) => Some(x.into()),
            Value::I16(x) => Some(x.into()),
            Value::U32(x) => Some(x.into()),
            Value::I32(x) => Some(x.into()),
            Value::I64(x) => Some(x),
            Value::U64(x) => x.try_into().ok(),
            _ => None,
        }
    }

    /// Any float.
    pub fn as_float(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(x) = *self { Some(x) } else { None }
    }

    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        if let Value::String(x) = *self { Some(x) } else { None }
    }

    /// A string that is UTF-8.
    pub fn as_str(&self) -> Option<&'a str> {
        self.as_bytes().and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn as_array(&self) -> Option<Array<'a>> {
        if let Value::Array(x) = *self { Some(x) } else { None }
    }
}

impl<'a> Array<'a> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let item = self.item;
        let mut cursor = Cursor::new(Path::new(""), self.bytes);
        // All were read once when the file was opened, so that none fails now.
        (0..self.len).map_while(move |_| read_value(&mut cursor, item, 0).ok())
    }

    /// The type of the items and their bytes, for a caller that converts them all at once.
    pub(crate) fn raw(&self) -> (Kind, &'a [u8]) {
        (self.item, self.bytes)
    }
}

/// Reads a file front to back; each error names the field at hand.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
    pub field: String,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, at: 0, field: String::new() }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn fail(&self, found: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
        Error::file(self.path, &self.field, found, expected)
    }

    pub fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let left = &self.bytes[self.at..];
        match usize::try_from(count).ok().and_then(|count| left.get(..count)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(truncated(self.path, &self.field, self.at, count, left.len())),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes[self.at..].first_chunk::<N>() {
            Some(taken) => {
                self.at += N;
                Ok(*taken)
            }
            None => self.take(N as u64).map(|_| [0; N]),
        }
    }

    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn string(&mut self) -> Result<&'a [u8]> {
        let length = self.u64()?;
        self.take(length)
    }

    /// A count of things that take `min_size` bytes each, at the least: checked before anything is
    /// done `count` times.
    pub fn count(&mut self, min_size: usize) -> Result<usize> {
        let count = self.u64()?;
        let most = (self.bytes.len() - self.at) / min_size;
        match usize::try_from(count).ok().filter(|&count| count <= most) {
            Some(count) => Ok(count),
            None => Err(self.fail(
                format!("a count of {count}"),
                format!("no more than the {most} that fit in the rest of the file"),
            )),
        }
    }

    pub fn kind(&mut self) -> Result<Kind> {
        let number = self.u32()?;
        Kind::ALL
            .get(number as usize)
            .copied()
            .ok_or_else(|| self.fail(format!("value type {number}"), "a type from 0 to 12"))
    }
}

/// Reads one value; every item of an array is looked at.
pub(super) fn read_value<'a>(cursor: &mut Cursor<'a>, kind: Kind, depth: usize) -> Result<Value<'a>> {
    Ok(match kind {
        Kind::U8 => Value::U8(u8::from_le_bytes(cursor.array()?)),
        Kind::I8 => Value::I8(i8::from_le_bytes(cursor.array()?)),
        Kind::U16 => Value::U16(u16::from_le_bytes(cursor.array()?)),
        Kind::I16 => Value::I16(i16::from_le_bytes(cursor.array()?)),
        Kind::U32 => Value::U32(cursor.u32()?),
        Kind::I32 => Value::I32(i32::from_le_bytes(cursor.array()?)),
        Kind::F32 => Value::F32(f32::from_le_bytes(cursor.array()?)),
        Kind::U64 => Value::U64(cursor.u64()?),
        Kind::I64 => Value::I64(i64::from_le_bytes(cursor.array()?)),
        Kind::F64 => Value::F64(f64::from_le_bytes(cursor.array()?)),
        Kind::Bool => Value::Bool(read_bool(cursor)?),
        Kind::String => Value::String(cursor.string()?),
        Kind::Array => Value::Array(read_array(cursor, depth)?),
    })
}

fn read_bool(cursor: &mut Cursor<'_>) -> Result<bool> {
    match cursor.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(cursor.fail(format!("a bool of {other}"), "0 or 1")),
    }
}

fn read_array<'a>(cursor: &mut Cursor<'a>, depth: usize) -> Result<Array<'a>> {
    if depth == DEEPEST {
        return Err(cursor.fail("arrays within arrays", format!("no more than {DEEPEST} levels")));
    }
    let item = cursor.kind()?;
    let len = cursor.count(item.min_size())?;
    let start = cursor.at;
    match item {
        Kind::String => {
            for _ in 0..len {
                cursor.string()?;
            }
        }
        Kind::Array => {
            for _ in 0..len {
                read_array(cursor, depth + 1)?;
            }
        }
        Kind::Bool => {
            for _ in 0..len {
                read_bool(cursor)?;
            }
        }
        _ => {
            cursor.take((len * item.min_size()) as u64)?;
        }
    }
    Ok(Array { item, len, bytes: &cursor.bytes[start..cursor.at] })
}

/// A value that does not borrow the file: what is large is kept as its place in it.
pub(super) enum Stored {
    Scalar(Value<'static>),
    String(Range<usize>),
    Array { item: Kind, len: usize, bytes: Range<usize> },
}

impl Stored {
    /// Reads the value at the cursor.
    pub fn read(cursor: &mut Cursor<'_>, kind: Kind) -> Result<Self> {
        let value = read_value(cursor, kind, 0)?;
        let end = cursor.position();
        Ok(match value {
            Value::String(bytes) => Stored::String(end - bytes.len()..end),
            Value::Array(Array { item, len, bytes }) => {
                Stored::Array { item, len, bytes: end - bytes.len()..end }
            }
            Value::U8(x) => Stored::Scalar(Value::U8(x)),
            Value::I8(x) => Stored::Scalar(Value::I8(x)),
            Value::U16(x) => Stored::Scalar(Value::U16(x)),
            Value::I16(x) => Stored::Scalar(Value::I16(x)),
            Value::U32(x) => Stored::Scalar(Value::U32(x)),
            Value::I32(x) => Stored::Scalar(Value::I32(x)),
            Value::F32(x) => Stored::Scalar(Value::F32(x)),
            Value::Bool(x) => Stored::Scalar(Value::Bool(x)),
            Value::U64(x) => Stored::Scalar(Value::U64(x)),
            Value::I64(x) => Stored::Scalar(Value::I64(x)),
            Value::F64(x) => Stored::Scalar(Value::F64(x)),
        })
    }

    /// The value again, given the bytes of the same file.
    pub fn view<'a>(&self, file: &'a [u8]) -> Value<'a> {
        match self {
            Stored::Scalar(value) => *value,
            Stored::String(range) => Value::String(&file[range.clone()]),
            Stored::Array { item, len, bytes } => {
                Value::Array(Array { item: *item, len: *len, bytes: &file[bytes.clone()] })
            }
        }
    }
}
