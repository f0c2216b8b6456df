//! The compiled model for Python.

use std::collections::HashMap;

use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyUntypedArray};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::formats::source;
use super::lent::Lendable;
use crate::blocks::tape::Dropout;
use crate::error::{Error, Result};
use crate::formats::DType;
use crate::kernels::attention::KvDtype;
use crate::model::{self, Arena, Batch, CHUNK, Loss, Model, Trainable};
use crate::parameters::{Storage, View};
use crate::random::Philox;
use crate::sites::Capture;
use crate::step::Step;
use crate::threads;

/// What errors call it.
const NAME: &str = "model";

/// A compiled model, its parameters, and its pool of keys and values. Calls on one model queue.
#[pyclass(name = "Model", module = "llmcore._core", frozen)]
pub struct PyModel {
    model: Lendable<Model>,
    pub(super) threads: Option<usize>,
    pub(super) vocab_size: usize,
    pub(super) max_positions: usize,
}

impl PyModel {
    /// Runs `job` on the model as a search sees it. The caller must not hold the GIL: whoever has the
    /// model may be waiting for it.
    ///
    /// Errors: see [`Lendable::lock`].
    pub fn with_step<R>(&self, job: impl FnOnce(&mut dyn Step) -> R) -> Result<R> {
        let mut model = self.model.lock(NAME)?;
        Ok(threads::with_limit(self.threads, || job(&mut *model)))
    }

    /// Lets an optimiser change the parameters that train, given their gradients; see [`Model::step_arenas`].
    pub fn with_arenas<R: Send>(
        &self,
        py: Python<'_>,
        job: impl FnOnce(&mut [f32], &[f32]) -> Result<R> + Send,
    ) -> PyResult<R> {
        self.run(py, |model| {
            let (parameters, gradients) = model.step_arenas()?;
            job(parameters, gradients)
        })
    }

    /// Lets `job` read or change the parameters that train; gradients that were added stay.
    pub fn with_parameters<R: Send>(
        &self,
        py: Python<'_>,
        job: impl FnOnce(&mut [f32]) -> Result<R> + Send,
    ) -> PyResult<R> {
        self.run(py, |model| job(model.arena(Arena::Parameters)?))
    }

    fn run<R: Send>(&self, py: Python<'_>, job: impl FnOnce(&mut Model) -> Result<R> + Send) -> PyResult<R> {
        Ok(py.detach(|| {
            let mut model = self.model.lock(NAME)?;
            threads::with_limit(self.threads, || job(&mut model))
        })?)
    }
}

/// Name, shape, first float, and whether it trains.
type TensorFields = (String, Vec<usize>, usize, bool);

/// Logits of each sequence, and captured arrays by path.
type Forwarded<'py> = (Vec<Bound<'py, PyArray2<f32>>>, Bound<'py, PyDict>);

#[pymethods]
impl PyModel {
    /// Compiles a description and loads its parameters.
    ///
    /// `description` is JSON, what `llmcore.blocks.describe` gives; `views` is JSON, a table of `View`s by the
    /// path of the parameter. `dtype` keeps matrices as they are stored ("auto"), expands them ("float32"), or rounds
    /// them to "bfloat16", to Q8_0 ("int8") or Q4_1 ("int4").
    /// `kv_cache_dtype` is what keys and values are kept in: "float32", "bfloat16", "int8", or "auto", which is
    /// bfloat16 where any matrix is kept in fewer bits than float32, else float32.
    /// `trainable` makes a model that trains: JSON, the fields of [`Trainable`]. Raises
    /// `ValueError`, which names the parameter or tensor, what was found and what was expected; `MemoryError`.
    #[new]
    #[pyo3(signature = (description, tensors, views, max_positions, threads=None, dtype="auto",
        kv_cache_dtype="auto", trainable=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        description: &str,
        tensors: &Bound<'_, PyAny>,
        views: &str,
        max_positions: usize,
        threads: Option<usize>,
        dtype: &str,
        kv_cache_dtype: &str,
        trainable: Option<&str>,
    ) -> PyResult<Self> {
        let tensors = source(tensors)?;
        let storage = match dtype {
            "auto" => Storage::AsStored,
            "float32" => Storage::Float32,
            "bfloat16" => Storage::Bfloat16,
            "int8" => Storage::Quantized(DType::Q8_0),
            "int4" => Storage::Quantized(DType::Q4_1),
            _ => {
                let expected = "'auto', 'float32', 'bfloat16', 'int8' or 'int4'";
                return Err(Error::argument("dtype", format!("{dtype:?}"), expected).into());
            }
        };
        let kv_dtype = KvDtype::from_name(kv_cache_dtype);
        if kv_dtype.is_none() && kv_cache_dtype != "auto" {
            let expected = "'auto', 'float32', 'bfloat16' or 'int8'";
            return Err(Error::argument("kv_cache_dtype", format!("{kv_cache_dtype:?}"), expected).into());
        }
        let model = py.detach(|| {
            let views: HashMap<String, View> = serde_json::from_str(views)
                .map_err(|error| Error::argument("views", error, "a table of views by path"))?;
            let trainable: Option<Trainable> = trainable
                .map(serde_json::from_str)
                .transpose()
                .map_err(|error| Error::argument("trainable", error, "how a model trains"))?;
            threads::with_limit(threads, || {
                Model::load(description, &*tensors, &views, max_positions, storage, kv_dtype, trainable)
            })
        })?;
        let (vocab_size, max_positions) = (model.vocab_size(), model.max_positions());
        Ok(PyModel { model: Lendable::new(model), threads, vocab_size, max_positions })
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

    /// The tensors of a model that trains, in the order in which they lie in memory: name, shape, first float,
    /// and whether it trains. Those that train come first.
    fn tensors(&self, py: Python<'_>) -> PyResult<Vec<TensorFields>> {
        self.run(py, |model| {
            let tensors = model.tensors()?.iter();
            Ok(tensors.map(|t| (t.name.clone(), t.shape.clone(), t.start, t.trained)).collect())
        })
    }

    /// A copy of a tensor of a model that trains, flat.
    fn tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let values = self.run(py, |model| model.tensor(name))?;
        Ok(PyArray1::from_vec(py, values))
    }

    /// The parameters that train, or with `gradients` their gradients, as one writable array, until `give_back`.
    /// Meanwhile every call on the model raises `RuntimeError`.
    fn lend<'py>(&self, py: Python<'py>, gradients: bool) -> PyResult<Bound<'py, PyArray1<f32>>> {
        let arena = if gradients { Arena::Gradients } else { Arena::Parameters };
        self.model.lend(py, NAME, move |model| model.arena(arena))
    }

    /// Ends the loan; the array that was lent is read-only from now on.
    fn give_back(&self, py: Python<'_>) -> PyResult<()> {
        self.model.give_back(py, NAME)
    }

    /// Σ losses, in nats, of sequences of `lengths` that lie one after the other in `tokens [rows]`, with the token
    /// that is to come after each in `labels [rows]`, -100 for none. Adds the gradients of Σ losses /
    /// `denominator`; the first call after a step of an optimiser overwrites them.
    ///
    /// `dropout` is its rate and what its draws are keyed by: the seed, the step, and the number within the step
    /// of the first sequence. `checkpointing` keeps of each layer only its input, and computes the rest again.
    #[pyo3(signature = (tokens, lengths, labels, denominator, smoothing=0.0, dropout=None, checkpointing=false))]
    #[allow(clippy::too_many_arguments)]
    fn loss_and_grad(
        &self,
        py: Python<'_>,
        tokens: PyReadonlyArray1<'_, u32>,
        lengths: Vec<usize>,
        labels: PyReadonlyArray1<'_, i32>,
        denominator: f64,
        smoothing: f32,
        dropout: Option<(f32, u64, u64, u64)>,
        checkpointing: bool,
    ) -> PyResult<f64> {
        let (tokens, labels) = (to_vec(&tokens), to_vec(&labels));
        if !(denominator.is_finite() && ((1.0 / denominator) as f32).is_normal() && denominator > 0.0) {
            return Err(Error::argument(
                "denominator",
                denominator,
                "a number > 0 that float32 can divide by",
            )
            .into());
        }
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::argument("label_smoothing", smoothing, "a number from 0 to 1").into());
        }
        let dropout = dropout.map(|(rate, seed, step, first_sequence)| {
            if (0.0..1.0).contains(&rate) {
                Ok(Dropout { rate, draws: Philox::new(seed).derive(step, 0), first_sequence })
            } else {
                Err(Error::argument("dropout", rate, "a rate from 0, less than 1"))
            }
        });
        let dropout = dropout.transpose()?;
        self.run(py, |model| {
            let batch = Batch { tokens: &tokens, lengths: &lengths, labels: &labels };
            model.loss_and_grad(&batch, &Loss { denominator, smoothing, dropout, checkpointing })
        })
    }

    /// Σ losses, in nats, of sequences as `loss_and_grad` takes them, without gradients and without dropout.
    fn evaluate(
        &self,
        py: Python<'_>,
        tokens: PyReadonlyArray1<'_, u32>,
        lengths: Vec<usize>,
        labels: PyReadonlyArray1<'_, i32>,
    ) -> PyResult<f64> {
        let (tokens, labels) = (to_vec(&tokens), to_vec(&labels));
        self.run(py, |model| model.evaluate(&Batch { tokens: &tokens, lengths: &lengths, labels: &labels }))
    }

    /// Bytes that the parameters take.
    fn weight_bytes(&self, py: Python<'_>) -> PyResult<usize> {
        self.run(py, |model| Ok(model.parameters().bytes()))
    }

    /// Of each matrix the path of its first parameter, and the bytes that it takes.
    fn matrix_bytes(&self, py: Python<'_>) -> PyResult<Vec<(String, usize)>> {
        self.run(py, |model| Ok(model.parameters().matrix_bytes()))
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
        let sequences: Vec<Vec<u32>> = sequences.iter().map(to_vec).collect();
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
        let ids = to_vec(&ids);
        let logprobs = self.run(py, |model| model.token_logprobs(&ids))?;
        Ok(PyArray1::from_vec(py, logprobs))
    }
}

fn to_vec<T: numpy::Element + Copy>(array: &PyReadonlyArray1<'_, T>) -> Vec<T> {
    array.as_array().iter().copied().collect()
}

/// Adds an array to the list under `path`.
fn append(captured: &Bound<'_, PyDict>, path: &str, array: &Bound<'_, PyUntypedArray>) -> PyResult<()> {
    match captured.get_item(path)? {
        Some(list) => list.cast::<PyList>()?.append(array),
        None => captured.set_item(path, PyList::new(captured.py(), [array])?),
    }
}

/// The paths and shapes of the parameters that a description (as `Model` takes it) has. Raises `ValueError`.
#[pyfunction]
fn parameters_of(py: Python<'_>, description: &str) -> PyResult<Vec<(String, Vec<usize>)>> {
    let parameters = py.detach(|| model::parameters_of(description))?;
    Ok(parameters.into_iter().map(|parameter| (parameter.path, parameter.shape)).collect())
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(parameters_of, module)?)?;
    module.add_class::<PyModel>()
}
