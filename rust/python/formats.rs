//! Files of tensors for Python: `SafeTensors` and `Gguf`.

use std::path::PathBuf;
use std::sync::Arc;

use numpy::{Element, PyArray1, PyArrayMethods, PyReadonlyArray2, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::error::{Error, Result, room};
use crate::formats::metadata::Kind;
use crate::formats::quantize::{can_quantize, quantize as quantize_row};
use crate::formats::{Array, DType, Gguf, TensorSource, Value, blocks, first_non_finite, safetensors};
use crate::interrupt;
use crate::threads;

/// The Rust side of a `SafeTensors` or `Gguf`.
pub fn source(object: &Bound<'_, PyAny>) -> PyResult<Arc<dyn TensorSource>> {
    if let Ok(file) = object.cast::<PySafeTensors>() {
        return Ok(file.get().tensors.clone());
    }
    if let Ok(file) = object.cast::<PyGguf>() {
        return Ok(file.get().gguf.tensors().clone());
    }
    let found = object.get_type().name()?;
    Err(PyTypeError::new_err(format!("source: found {found}, expected SafeTensors or Gguf")))
}

/// A safetensors checkpoint, memory-mapped: one file, or shards listed by an index.
#[pyclass(name = "SafeTensors", module = "llmcore._core", frozen)]
pub struct PySafeTensors {
    tensors: Arc<dyn TensorSource>,
    metadata: Vec<(String, String)>,
}

#[pymethods]
impl PySafeTensors {
    /// Opens `path`: a `.safetensors` file, a `*.safetensors.index.json`, or a folder that holds
    /// `model.safetensors` or `model.safetensors.index.json`.
    ///
    /// Raises `FileNotFoundError` if there is no such file, and `ValueError`, which names file, field,
    /// what was found and what was expected, if it is not what it claims to be.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let opened = py.detach(|| safetensors::open(&path))?;
        let metadata = opened.metadata.into_iter().collect();
        Ok(PySafeTensors { tensors: Arc::new(opened.tensors), metadata })
    }

    /// The free-form strings of the header (`__metadata__`); empty for shards.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (key, value) in &self.metadata {
            dict.set_item(key, value)?;
        }
        Ok(dict)
    }

    /// The names of all tensors, in the order of the file.
    fn names(&self) -> Vec<String> {
        names(&*self.tensors)
    }

    /// Shape (outermost dimension first) and type of a tensor, as in `((49152, 576), "BF16")`.
    fn info<'py>(&self, py: Python<'py>, name: &str) -> PyResult<(Bound<'py, PyTuple>, &'static str)> {
        info(py, &*self.tensors, name)
    }

    /// A tensor of floats as float32, in its shape.
    fn read<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
        read(py, &*self.tensors, name)
    }

    fn __repr__(&self) -> String {
        format!("SafeTensors({:?}, {} tensors)", self.tensors.path(), self.tensors.names().count())
    }
}

/// A GGUF file (version 2 or 3), memory-mapped.
#[pyclass(name = "Gguf", module = "llmcore._core", frozen)]
pub struct PyGguf {
    pub gguf: Gguf,
}

#[pymethods]
impl PyGguf {
    /// Opens the file at `path`.
    ///
    /// Raises `FileNotFoundError` if there is no such file, and `ValueError`, which names file, field,
    /// what was found and what was expected, if it is not what it claims to be.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let gguf = py.detach(|| Gguf::open(&path))?;
        Ok(PyGguf { gguf })
    }

    /// The keys of the metadata, in alphabetical order.
    fn keys(&self) -> Vec<&str> {
        self.gguf.keys().collect()
    }

    /// The value of a key of the metadata, or `default`: `int`, `float`, `bool`, `str` (`bytes` if it is
    /// not UTF-8); of an array, a list of strings or a NumPy array of the file's own type.
    #[pyo3(signature = (key, default=None))]
    fn get<'py>(
        &self,
        py: Python<'py>,
        key: &str,
        default: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.gguf.get(key) {
            Some(value) => value_to_python(py, value).map(Some),
            None => Ok(default),
        }
    }

    /// All metadata, as `get` returns it.
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for key in self.gguf.keys() {
            dict.set_item(key, self.get(py, key, None)?)?;
        }
        Ok(dict)
    }

    /// The names of all tensors, in the order of the file.
    fn names(&self) -> Vec<String> {
        names(&**self.gguf.tensors())
    }

    /// Shape (outermost dimension first, the reverse of ggml's order) and type of a tensor, as in
    /// `((49152, 576), "Q8_0")`.
    fn info<'py>(&self, py: Python<'py>, name: &str) -> PyResult<(Bound<'py, PyTuple>, &'static str)> {
        info(py, &**self.gguf.tensors(), name)
    }

    /// A tensor of floats, quantised or not, as float32, in its shape.
    fn read<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
        read(py, &**self.gguf.tensors(), name)
    }

    fn __repr__(&self) -> String {
        format!("Gguf({:?}, {} tensors)", self.gguf.tensors().path(), self.gguf.tensors().names().count())
    }
}

fn names(source: &dyn TensorSource) -> Vec<String> {
    source.names().map(str::to_owned).collect()
}

fn info<'py>(
    py: Python<'py>,
    source: &dyn TensorSource,
    name: &str,
) -> PyResult<(Bound<'py, PyTuple>, &'static str)> {
    let info = source.info(name)?;
    Ok((PyTuple::new(py, &info.shape)?, info.dtype.name()))
}

fn read<'py>(py: Python<'py>, source: &dyn TensorSource, name: &str) -> PyResult<Bound<'py, PyUntypedArray>> {
    let info = source.info(name)?;
    let values = py.detach(|| read_all(source, name))?;
    Ok(PyArray1::from_vec(py, values).reshape(info.shape.as_slice())?.as_untyped().clone())
}

/// Reads in pieces of about four megabytes, between which Ctrl-C is looked for.
fn read_all(source: &dyn TensorSource, name: &str) -> Result<Vec<f32>> {
    const PIECE: usize = 1 << 20;
    let info = source.info(name)?;
    let (rows, row_len) = (info.rows(), info.row_len());
    let count = rows * row_len;
    let mut values = room(count, name)?;
    values.resize(count, 0.0);
    let step = (PIECE / row_len.max(1)).max(1);
    let mut row = 0;
    for piece in values.chunks_mut((step * row_len).max(1)) {
        let end = (row + step).min(rows);
        source.read_rows(name, row..end, piece)?;
        interrupt::check()?;
        row = end;
    }
    // Of a tensor without elements nothing was read; it is refused all the same if it holds no floats.
    if count == 0 {
        source.read_rows(name, 0..0, &mut [])?;
    }
    Ok(values)
}

/// x [rows, k], k a multiple of 32, as the bytes of blocks of a type, "Q8_0", "Q4_0" or "Q4_1", [rows, bytes]. Raises
/// `ValueError`: another type or width, or numbers that are not finite or need a scale that float16 has no number for.
#[pyfunction]
fn quantize<'py>(
    py: Python<'py>,
    x: PyReadonlyArray2<'py, f32>,
    dtype: &str,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let [rows, k] = [x.shape()[0], x.shape()[1]];
    let dtype = DType::ALL.iter().copied().find(|known| known.name() == dtype && can_quantize(*known));
    let dtype = dtype.ok_or_else(|| Error::argument("dtype", "another type", "Q8_0, Q4_0 or Q4_1"))?;
    let (elements, bytes) = dtype.block();
    if !k.is_multiple_of(elements) {
        return Err(Error::argument("x", format!("rows of {k}"), format!("a multiple of {elements}")).into());
    }
    let x = x.as_slice()?;
    let row_bytes = k / elements * bytes;
    let blocks = py.detach(|| {
        let wrong = |found: f32, at: usize| {
            let found = format!("{found} at number {} of row {}", at % k, at / k);
            Err(Error::argument("x", found, "finite numbers that float16 has a scale for"))
        };
        if let Some(at) = first_non_finite(x) {
            return wrong(x[at], at);
        }
        let mut blocks = room(rows * row_bytes, "blocks")?;
        blocks.resize(rows * row_bytes, 0);
        threads::for_each_mut(&mut blocks, row_bytes, |row, out| {
            quantize_row(dtype, &x[row * k..][..k], out)
        });
        match blocks::first_non_finite(dtype, &blocks) {
            Some((block, _)) => wrong(x[block * elements], block * elements),
            None => Ok(blocks),
        }
    })?;
    Ok(PyArray1::from_vec(py, blocks).reshape([rows, row_bytes])?.as_untyped().clone())
}

fn value_to_python<'py>(py: Python<'py>, value: Value<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::U8(x) => x.into_pyobject(py)?.into_any(),
        Value::I8(x) => x.into_pyobject(py)?.into_any(),
        Value::U16(x) => x.into_pyobject(py)?.into_any(),
        Value::I16(x) => x.into_pyobject(py)?.into_any(),
        Value::U32(x) => x.into_pyobject(py)?.into_any(),
        Value::I32(x) => x.into_pyobject(py)?.into_any(),
        Value::U64(x) => x.into_pyobject(py)?.into_any(),
        Value::I64(x) => x.into_pyobject(py)?.into_any(),
        Value::F32(x) => x.into_pyobject(py)?.into_any(),
        Value::F64(x) => x.into_pyobject(py)?.into_any(),
        Value::Bool(x) => x.into_pyobject(py)?.to_owned().into_any(),
        Value::String(x) => string_to_python(py, x),
        Value::Array(array) => array_to_python(py, array)?,
    })
}

fn string_to_python<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyAny> {
    match std::str::from_utf8(bytes) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyBytes::new(py, bytes).into_any(),
    }
}

fn array_to_python<'py>(py: Python<'py>, array: Array<'_>) -> PyResult<Bound<'py, PyAny>> {
    let (kind, bytes) = array.raw();
    Ok(match kind {
        Kind::U8 => numbers(py, bytes, u8::from_le_bytes),
        Kind::I8 => numbers(py, bytes, i8::from_le_bytes),
        Kind::U16 => numbers(py, bytes, u16::from_le_bytes),
        Kind::I16 => numbers(py, bytes, i16::from_le_bytes),
        Kind::U32 => numbers(py, bytes, u32::from_le_bytes),
        Kind::I32 => numbers(py, bytes, i32::from_le_bytes),
        Kind::U64 => numbers(py, bytes, u64::from_le_bytes),
        Kind::I64 => numbers(py, bytes, i64::from_le_bytes),
        Kind::F32 => numbers(py, bytes, f32::from_le_bytes),
        Kind::F64 => numbers(py, bytes, f64::from_le_bytes),
        Kind::Bool => numbers(py, bytes, |[byte]: [u8; 1]| byte != 0),
        Kind::String | Kind::Array => {
            let list = PyList::empty(py);
            for (i, item) in array.iter().enumerate() {
                list.append(value_to_python(py, item)?)?;
                if i % 4096 == 0 {
                    py.check_signals()?;
                }
            }
            list.into_any()
        }
    })
}

fn numbers<'py, T: Element, const N: usize>(
    py: Python<'py>,
    bytes: &[u8],
    convert: impl Fn([u8; N]) -> T,
) -> Bound<'py, PyAny> {
    let values: Vec<T> = bytes.as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)).collect();
    PyArray1::from_vec(py, values).into_any()
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(quantize, module)?)?;
    module.add_class::<PySafeTensors>()?;
    module.add_class::<PyGguf>()
}
