//! Safetensors: one file, or shards listed by an index.
//!
//! A file is the length of the header in eight bytes (little-endian), the header, a JSON object of
//! `{"dtype", "shape", "data_offsets"}` by tensor name, and the data, which the tensors cover without
//! gaps. See <https://huggingface.co/docs/safetensors>.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::json::UniqueMap;
use super::tensors::{Entry, byte_len};
use super::{DType, FileBytes, TensorInfo, Tensors, brief, quote, truncated};
use crate::error::{Error, Result};

/// The format's own limit on the header; the same serves for an index.
const LONGEST_HEADER: usize = 100_000_000;

/// The tensors of a checkpoint and the free-form pairs of its header or index.
pub struct SafeTensors {
    pub tensors: Tensors,
    pub metadata: BTreeMap<String, String>,
}

/// Opens a file, an index (`*.json`), or a folder that holds `model.safetensors` or
/// `model.safetensors.index.json`.
pub fn open(path: &Path) -> Result<SafeTensors> {
    if path.is_dir() {
        let names = ["model.safetensors", "model.safetensors.index.json"];
        return match names.iter().map(|name| path.join(name)).find(|path| path.exists()) {
            Some(path) => open(&path),
            None => Err(Error::file(path, "weights", other_weights(path), names.join(" or "))),
        };
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        return open_index(path);
    }
    from_bytes(FileBytes::map(path)?)
}

/// What a folder without safetensors has for weights.
fn other_weights(folder: &Path) -> String {
    let names = folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let pickles = names.filter(|name| {
        Path::new(name)
            .extension()
            .is_some_and(|extension| ["bin", "pt", "pth"].iter().any(|e| extension == *e))
    });
    match pickles.min() {
        Some(name) => format!("only {} (pickles are never read)", name.display()),
        None => "none".into(),
    }
}

/// One file.
pub fn from_bytes(file: FileBytes) -> Result<SafeTensors> {
    let (entries, metadata) = parse(&file)?;
    let path = file.path().to_owned();
    Ok(SafeTensors { tensors: Tensors::new(&path, vec![(file, entries)])?, metadata })
}

/// Opens the shards beside an index; tensors that the index does not list are left out.
fn open_index(path: &Path) -> Result<SafeTensors> {
    let index = parse_index(&FileBytes::map(path)?)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut parts = Vec::with_capacity(index.len());
    for (shard, names) in index {
        let file = FileBytes::map(&folder.join(&shard))?;
        let (entries, _) = parse(&file)?;
        let mut wanted: BTreeSet<String> = names.into_iter().collect();
        let entries: Vec<_> = entries.into_iter().filter(|entry| wanted.remove(&entry.info.name)).collect();
        if let Some(missing) = wanted.first() {
            let field = format!("tensor {}", quote(missing));
            let expected = format!("the tensor that {} places here", path.display());
            return Err(Error::file(file.path(), field, "none of this name", expected));
        }
        parts.push((file, entries));
    }
    Ok(SafeTensors { tensors: Tensors::new(path, parts)?, metadata: BTreeMap::new() })
}

/// The names in each shard of an index, by shard.
pub fn parse_index(file: &FileBytes) -> Result<BTreeMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    if file.len() > LONGEST_HEADER {
        let found = format!("{} bytes", file.len());
        return Err(Error::file(file.path(), "size", found, format!("at most {LONGEST_HEADER}")));
    }
    let index: Index = serde_json::from_slice(file).map_err(|error| {
        let expected = "an object with a weight_map of shards by name";
        Error::file(file.path(), "index", brief(error), expected)
    })?;
    let mut shards: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, shard) in index.weight_map.0 {
        // A shard stands beside its index: a path to anywhere else is not followed.
        if Path::new(&shard).file_name() != Some(OsStr::new(&shard)) {
            let field = format!("weight_map[{}]", quote(&name));
            let expected = "the name of a file in the same folder";
            return Err(Error::file(file.path(), field, quote(&shard), expected));
        }
        shards.entry(shard).or_default().push(name);
    }
    Ok(shards)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn parse(file: &FileBytes) -> Result<(Vec<Entry>, BTreeMap<String, String>)> {
    let path = file.path();
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(truncated(path, "header length", 0, 8, file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER as u64 {
        return Err(Error::file(path, "header length", length, format!("at most {LONGEST_HEADER}")));
    }
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(truncated(path, "header", 8, length, rest.len()));
    };
    let pairs: UniqueMap<&RawValue> = serde_json::from_slice(header)
        .map_err(|error| Error::file(path, "header", brief(error), "a JSON object"))?;

    let mut entries = Vec::new();
    let mut metadata = BTreeMap::new();
    for (name, value) in pairs.0 {
        if name == "__metadata__" {
            let pairs: UniqueMap<String> = serde_json::from_str(value.get())
                .map_err(|error| Error::file(path, "__metadata__", brief(error), "an object of strings"))?;
            metadata = pairs.0.into_iter().collect();
            continue;
        }
        entries.push(parse_tensor(path, file.len() - data.len(), data.len(), name, value)?);
    }
    check_cover(path, data.len(), &entries)?;
    Ok((entries, metadata))
}

/// `start` is where the data begins in the file, `length` how long it is.
fn parse_tensor(path: &Path, start: usize, length: usize, name: String, value: &RawValue) -> Result<Entry> {
    let field = |part: &str| format!("tensor {}{part}", quote(&name));
    let raw: RawTensor = serde_json::from_str(value.get()).map_err(|error| {
        Error::file(path, field(""), brief(error), "an object of dtype, shape and data_offsets")
    })?;
    let Some(dtype) = DType::from_safetensors(&raw.dtype) else {
        return Err(Error::file(path, field(".dtype"), quote(&raw.dtype), DType::list_safetensors()));
    };
    let size = byte_len(dtype, &raw.shape)
        .map_err(|(found, expected)| Error::file(path, field(".shape"), found, expected))?;
    let (begin, end) = raw.data_offsets;
    if begin > end || end > length {
        let found = format!("[{begin}, {end}]");
        let expected = format!("a range within the {length} bytes of data");
        return Err(Error::file(path, field(".data_offsets"), found, expected));
    }
    if end - begin != size {
        let shape = brief(format!("{:?}", raw.shape));
        let expected = format!("{size}, the size of {shape} in {}", dtype.name());
        return Err(Error::file(path, field(".data_offsets"), format!("{} bytes", end - begin), expected));
    }
    Ok(Entry { info: TensorInfo { name, shape: raw.shape, dtype }, bytes: start + begin..start + end })
}

/// The format wants the tensors to cover the data, without gaps. That they do not overlap is checked
/// for every format.
fn check_cover(path: &Path, length: usize, entries: &[Entry]) -> Result<()> {
    let covered = entries.iter().fold(0, |sum: usize, entry| sum.saturating_add(entry.bytes.len()));
    if covered < length {
        let expected = format!("the {length} bytes of data covered without gaps");
        return Err(Error::file(path, "data_offsets", format!("{covered} bytes in all"), expected));
    }
    Ok(())
}
