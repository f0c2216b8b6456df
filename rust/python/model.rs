//! The compiled model for Python.

use std::collections::HashMap;

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::formats::source;
use super::locked::Locked;
use crate::error::{Error, Result};
use crate::model::{CHUNK, Model};
use crate::parameters::View;
use crate::sites::Capture;
use crate::step::Step;
use crate::threads;

/// A compiled model, its parameters, and its pool of keys and values. Calls on one model queue.
#[pyclass(name = "Model", module = "llmcore._core", frozen)]
pub struct PyModel {
    model: Locked<Model>,
    pub(super) threads: Option<usize>,
    pub(super) vocab_size: usize,
    pub(super) max_positions: usize,
}

impl PyModel {
    /// Runs `job` on the model as a search sees it. The caller must not hold the GIL: whoever has the
    /// model may be waiting for it.
    ///
    /// Errors: see [`Locked::lock`].
    pub fn with_step<R>(&self, job: impl FnOnce(&mut dyn Step) -> R) -> Result<R> {
        let mut model = self.model.lock("model")?;
        Ok(threads::with_limit(self.threads, || job(&mut *model)))
    }

    fn run<R: Send>(&self, py: Python<'_>, job: impl FnOnce(&mut Model) -> Result<R> + Send) -> PyResult<R> {
        Ok(py.detach(|| {
            let mut model = self.model.lock("model")?;
            threads::with_limit(self.threads, || job(&mut model))
        })?)
    }
}

/// Logits of each sequence, and captured arrays by path.
type Forwarded<'py> = (Vec<Bound<'py, PyArray2<f32>>>, Bound<'py, PyDict>);

#[pymethods]
impl PyModel {
    /// Compiles a description and loads its parameters.
    ///
    /// `description` is JSON, what `llmcore.blocks.describe` gives; `views` is JSON, a table of `View`s by the
    /// path of the parameter. Raises `ValueError`, which names the parameter or tensor, what was found and
    /// what was expected; `MemoryError`.
    #[new]
    #[pyo3(signature = (description, tensors, views, max_positions, threads=None))]
    fn new(
        py: Python<'_>,
        description: &str,
        tensors: &Bound<'_, PyAny>,
        views: &str,
        max_positions: usize,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let tensors = source(tensors)?;
        let model = py.detach(|| {
            let views: HashMap<String, View> = serde_json::from_str(views)
                .map_err(|error| Error::argument("views", error, "a table of views by path"))?;
            threads::with_limit(threads, || Model::load(description, &*tensors, &views, max_positions))
        })?;
        let (vocab_size, max_positions) = (model.vocab_size(), model.max_positions());
        Ok(PyModel { model: Locked::new(model), threads, vocab_size, max_positions })
    }

    /// How many logits follow each token: ids are below this.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// How many tokens a sequence may hold.
    #[getter]
    fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// The paths of all sites, in the order of execution.
    fn sites(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.run(py, |model| Ok(model.sites().paths().to_vec()))
    }

    /// The paths and shapes of all parameters.
    fn parameters(&self, py: Python<'_>) -> PyResult<Vec<(String, Vec<usize>)>> {
        self.run(py, |model| {
            Ok(model.parameters().params().iter().map(|p| (p.path.clone(), p.shape.clone())).collect())
        })
    }

    /// Bytes that the packed parameters take.
    fn weight_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.run(py, |model| Ok(model.parameters().bytes()))
    }

    /// Bytes of keys and values that one position of a sequence takes.
    fn kv_bytes_per_position(&self, py: Python<'_>) -> PyResult<usize> {
        self.run(py, |model| Ok(model.cache_bytes_per_position()))
    }

    /// The logits `[tokens, vocab_size]` of each sequence in one pass, and by path what the sites named in
    /// `capture` saw: `[tokens, width]` of all sequences one after the other, and of attention's scores and
    /// probabilities `[heads, tokens, tokens]`, a list of one array a sequence.
    ///
    /// Without `capture` a sequence runs by itself, `chunk` rows a pass; that changes no bits.
    #[pyo3(signature = (sequences, capture=Vec::new(), chunk=CHUNK))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        sequences: Vec<PyReadonlyArray1<'py, u32>>,
        capture: Vec<String>,
        chunk: usize,
    ) -> PyResult<Forwarded<'py>> {
        if chunk == 0 {
            return Err(Error::argument("chunk", chunk, "at least one row a pass").into());
        }
        let sequences: Vec<Vec<u32>> =
            sequences.iter().map(|ids| ids.as_array().iter().copied().collect()).collect();
        let (logits, capture, paths) = self.run(py, |model| {
            let mut hook = Capture::new(model.sites(), &capture)?;
            let logits = if capture.is_empty() {
                sequences.iter().map(|ids| model.logits(ids, chunk)).collect::<Result<Vec<_>>>()?
            } else {
                model.logits_hooked(&sequences, &mut hook)?
            };
            let paths: Vec<String> =
                hook.seen.iter().map(|seen| model.sites().path(seen.site).to_owned()).collect();
            Ok::<_, Error>((logits, hook, paths))
        })?;
        let logits = logits
            .into_iter()
            .zip(&sequences)
            .map(|(rows, ids)| PyArray1::from_vec(py, rows).reshape([ids.len(), self.vocab_size]))
            .collect::<PyResult<_>>()?;
        let captured = PyDict::new(py);
        for (path, seen) in paths.iter().zip(capture.seen) {
            let array = PyArray1::from_vec(py, seen.values).reshape(seen.shape)?;
            append(&captured, path, array.as_untyped())?;
        }
        Ok((logits, captured))
    }

    /// `log P(ids[t] | ids[:t])` for t = 1, 2, …, `[tokens - 1]`. More tokens than the model can hold are
    /// cut into windows, each of which begins with the last token of the one before.
    fn token_logprobs<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, u32>,
    ) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let ids: Vec<u32> = ids.as_array().iter().copied().collect();
        let logprobs = self.run(py, |model| model.token_logprobs(&ids))?;
        Ok(PyArray1::from_vec(py, logprobs))
    }
}

/// Adds an array to the list under `path`.
fn append(captured: &Bound<'_, PyDict>, path: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    match captured.get_item(path)? {
        Some(list) => list.cast::<PyList>()?.append(array),
        None => captured.set_item(path, PyList::new(captured.py(), [array])?),
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyModel>()
}
