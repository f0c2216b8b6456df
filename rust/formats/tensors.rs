//! One table of tensors over one or several files, whatever their format.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::dequantize::dequantize;
use super::{DType, FileBytes, TensorSource, brief, quote};
use crate::error::{Error, Result};

/// What a file says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    pub name: String,
    /// Outermost dimension first, as NumPy counts; GGUF's order is reversed on reading.
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl TensorInfo {
    /// Elements of a row: the last dimension, or 1 of a scalar.
    pub fn row_len(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The product of all dimensions but the last: one for vectors and scalars.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    fn row_bytes(&self) -> usize {
        let (elements, bytes) = self.dtype.block();
        self.row_len() / elements * bytes
    }
}

/// A tensor and the bytes of its file that hold it.
pub(super) struct Entry {
    pub info: TensorInfo,
    pub bytes: Range<usize>,
}

/// How many bytes a tensor takes, or what is wrong with its shape: found and expected.
pub(super) fn byte_len(dtype: DType, shape: &[usize]) -> std::result::Result<usize, (String, String)> {
    let (elements, bytes) = dtype.block();
    let last = shape.last().copied().unwrap_or(1);
    if last % elements != 0 {
        let expected =
            format!("a last dimension that is a multiple of {elements}, the block of {}", dtype.name());
        return Err((brief(format!("{shape:?}")), expected));
    }
    // Zeros are left out of the product: an empty tensor's other dimensions must be sane, too.
    let product = shape
        .iter()
        .try_fold(bytes, |product, &dim| product.checked_mul(dim.max(1)))
        .filter(|&product| isize::try_from(product).is_ok());
    match product {
        Some(product) => Ok(if shape.contains(&0) { 0 } else { product / elements }),
        None => {
            Err((brief(format!("{shape:?}")), "a shape whose size in bytes fits the address space".into()))
        }
    }
}

/// Tensors of one file or of several shards, each name once.
pub struct Tensors {
    path: PathBuf,
    files: Vec<FileBytes>,
    entries: Vec<(usize, Entry)>,
    by_name: HashMap<String, usize>,
}

impl Tensors {
    /// `path` is what was opened. Checks that names are unique, and that within each file every tensor
    /// lies inside of it and no two share a byte.
    pub(super) fn new(path: &Path, parts: Vec<(FileBytes, Vec<Entry>)>) -> Result<Self> {
        let mut tensors = Tensors {
            path: path.to_owned(),
            files: Vec::new(),
            entries: Vec::new(),
            by_name: HashMap::new(),
        };
        for (file, entries) in parts {
            check_disjoint(&file, &entries)?;
            for entry in entries {
                let name = entry.info.name.clone();
                if tensors.by_name.insert(name, tensors.entries.len()).is_some() {
                    let field = format!("tensor {}", quote(&entry.info.name));
                    return Err(Error::file(
                        file.path(),
                        field,
                        "a second tensor of this name",
                        "each name once",
                    ));
                }
                tensors.entries.push((tensors.files.len(), entry));
            }
            tensors.files.push(file);
        }
        Ok(tensors)
    }

    /// Every tensor, in the order of the file.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.entries.iter().map(|(_, entry)| &entry.info)
    }

    pub(super) fn file(&self) -> Option<&FileBytes> {
        self.files.first()
    }

    fn find(&self, name: &str) -> Result<(&FileBytes, &Entry)> {
        match self.by_name.get(name) {
            Some(&i) => {
                let (file, entry) = &self.entries[i];
                Ok((&self.files[*file], entry))
            }
            None => {
                let found = format!("none of this name among {}", self.entries.len());
                Err(Error::file(&self.path, format!("tensor {}", quote(name)), found, "the tensor"))
            }
        }
    }
}

impl TensorSource for Tensors {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.infos().map(|info| info.name.as_str()))
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.find(name).map(|(_, entry)| &entry.info)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (file, Entry { info, .. }) = self.find(name)?;
        if !info.dtype.is_float() {
            let field = format!("tensor {}", quote(name));
            return Err(Error::file(file.path(), field, info.dtype.name(), DType::list(DType::is_float)));
        }
        let stored = self.stored_rows(name, rows.clone())?;
        let wanted = rows.len().checked_mul(info.row_len());
        if wanted != Some(out.len()) {
            let expected = format!("{} rows of {}", rows.len(), info.row_len());
            return Err(Error::argument("out", format!("{} floats", out.len()), expected));
        }
        dequantize(info.dtype, stored, out);
        Ok(())
    }

    fn stored_rows(&self, name: &str, rows: Range<usize>) -> Result<&[u8]> {
        let (file, Entry { info, bytes }) = self.find(name)?;
        if rows.start > rows.end || rows.end > info.rows() {
            return Err(Error::argument(
                "rows",
                format!("{rows:?}"),
                format!("a range within 0..{}", info.rows()),
            ));
        }
        let start = bytes.start + rows.start * info.row_bytes();
        Ok(&file[start..start + rows.len() * info.row_bytes()])
    }

    fn release_pages(&self, name: &str) -> Result<()> {
        let (file, entry) = self.find(name)?;
        file.release(entry.bytes.clone())
    }
}

fn check_disjoint(file: &FileBytes, entries: &[Entry]) -> Result<()> {
    let mut sorted: Vec<&Entry> = entries.iter().filter(|entry| !entry.bytes.is_empty()).collect();
    sorted.sort_by_key(|entry| entry.bytes.start);
    for entry in &sorted {
        if entry.bytes.end > file.len() {
            let field = format!("tensor {}", quote(&entry.info.name));
            let found = format!("bytes {:?}", entry.bytes);
            return Err(Error::file(
                file.path(),
                field,
                found,
                format!("bytes within the file's {}", file.len()),
            ));
        }
    }
    for pair in sorted.windows(2) {
        let [before, after] = pair else { continue };
        if before.bytes.end > after.bytes.start {
            let field = format!("tensor {}", quote(&after.info.name));
            let found = format!("bytes {:?}", after.bytes);
            let other = quote(&before.info.name);
            let expected = format!("bytes that do not overlap {:?} of {other}", before.bytes);
            return Err(Error::file(file.path(), field, found, expected));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x`, 6 rows of 64 values in blocks, and `n`, three integers, in a file of their own.
    fn table(file: FileBytes) -> Tensors {
        let entry = |name: &str, shape: &[usize], dtype: DType, start: usize| Entry {
            info: TensorInfo { name: name.into(), shape: shape.into(), dtype },
            bytes: start..start + byte_len(dtype, shape).unwrap(),
        };
        let entries = vec![entry("x", &[3, 2, 64], DType::Q5_1, 1), entry("n", &[3], DType::I64, 400)];
        Tensors::new(Path::new("table"), vec![(file, entries)]).unwrap()
    }

    fn content() -> Vec<u8> {
        // Small exponents keep the scales finite.
        (0..1000u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8 & 0x3f).collect()
    }

    #[test]
    fn any_rows_are_those_of_the_whole() {
        let tensors = table(FileBytes::owned(Path::new("t"), content()));
        let mut whole = vec![0.0; 6 * 64];
        tensors.read_rows("x", 0..6, &mut whole).unwrap();
        assert!(whole.iter().any(|&x| x != 0.0));
        for start in 0..=6 {
            for end in start..=6 {
                let mut rows = vec![f32::NAN; (end - start) * 64];
                tensors.read_rows("x", start..end, &mut rows).unwrap();
                assert_eq!(rows, whole[start * 64..end * 64]);
            }
        }
    }

    #[test]
    fn wrong_calls_are_errors() {
        let tensors = table(FileBytes::owned(Path::new("t"), content()));
        let mut out = [0.0; 64];
        #[expect(clippy::reversed_empty_ranges)]
        for rows in [6..7, 2..1, 0..2, 0..0, usize::MAX..usize::MAX, 0..usize::MAX] {
            assert!(matches!(tensors.read_rows("x", rows, &mut out), Err(Error::Argument { .. })));
        }
        assert!(matches!(tensors.read_rows("n", 0..1, &mut out[..3]), Err(Error::File { .. })));
        assert!(matches!(tensors.read_rows("y", 0..1, &mut out), Err(Error::File { .. })));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn released_pages_leave_memory_and_come_back() {
        let path = std::env::temp_dir().join(format!("llmcore-release-{}", std::process::id()));
        std::fs::write(&path, content()).unwrap();
        let tensors = table(FileBytes::map(&path).unwrap());
        let mut before = vec![0.0; 6 * 64];
        tensors.read_rows("x", 0..6, &mut before).unwrap();
        assert!(resident_kib(&path) > 0);
        tensors.release_pages("x").unwrap();
        assert_eq!(resident_kib(&path), 0);
        let mut after = vec![0.0; 6 * 64];
        tensors.read_rows("x", 0..6, &mut after).unwrap();
        assert_eq!(before, after);
        std::fs::remove_file(&path).unwrap();
    }

    /// `Rss` of the mapping of a file.
    #[cfg(target_os = "linux")]
    fn resident_kib(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mapping = maps.split(path.to_str().unwrap()).nth(1).unwrap();
        let line = mapping.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
