//! Searches for Python: requests in, pieces and completions out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::model::PyModel;
use super::tokenizer::PyTokenizer;
use crate::bpe::StreamDecoder;
use crate::error::{Error, Result};
use crate::search::hypothesis::{FinishReason, Output, StoppingCriterion, TokenLogprob};
use crate::search::options::{EarlyStopping, Options};
use crate::search::processors::Processor;
use crate::search::session::{Request, Session};
use crate::search::strategy::{Piece, RequestId};
use crate::search::text::TextDecoder;
use crate::search::warpers::Warpers;
use crate::step::{SeqId, Step, Work};
use crate::threads;

/// A token, its log-probability, and those of the likeliest tokens.
type LogprobTuple = (u32, f32, Vec<(u32, f32)>);
/// Request, index of the sequence, ids, text, log-probabilities, reason.
type PieceTuple = (usize, usize, Vec<u32>, String, Vec<LogprobTuple>, Option<&'static str>);
/// Ids, text, score, log-probabilities, reason.
type OutputTuple = (Vec<u32>, Option<String>, Option<f32>, Vec<LogprobTuple>, &'static str);

/// Requests that a model works on together, one pass at a time. Iterating gives a list of pieces for each pass.
#[pyclass(name = "Generation", module = "llmcore._core", frozen)]
pub struct PyGeneration {
    model: Py<PyModel>,
    session: Mutex<Session>,
    requests: Vec<RequestId>,
}

#[pymethods]
impl PyGeneration {
    /// Takes prompts (ids) with their options, a dict of fields of `Options`; without a tokenizer there
    /// is no text. Raises `ValueError`, which names the option.
    #[new]
    #[pyo3(signature = (model, requests, tokenizer=None))]
    fn new(
        py: Python<'_>,
        model: Py<PyModel>,
        requests: Vec<(Vec<u32>, Bound<'_, PyDict>)>,
        tokenizer: Option<PyRef<'_, PyTokenizer>>,
    ) -> PyResult<Self> {
        let mut list = vec![];
        for (prompt, given) in requests {
            let decoder = tokenizer.as_ref().map(|tokenizer| {
                Box::new(Stream(StreamDecoder::continuing(tokenizer.tokenizer.clone(), true))) as _
            });
            list.push(request(prompt, &given, decoder)?);
        }
        let mut session = Session::new();
        let shared = Shared(model.get());
        let requests = py.detach(|| {
            list.into_iter().map(|request| session.add(request, &shared)).collect::<Result<Vec<_>>>()
        })?;
        Ok(PyGeneration { model, session: Mutex::new(session), requests })
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    /// Runs one pass.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Vec<PieceTuple>>> {
        py.detach(|| {
            let mut session = self.lock()?;
            if session.is_finished() {
                return Ok(None);
            }
            let pieces = self.step(&mut session)?;
            let tuple = |piece: Piece| {
                let reason = piece.finish_reason.map(reason);
                (piece.request.0, piece.index, piece.ids, piece.text, logprobs(&piece.logprobs), reason)
            };
            Ok(Some(pieces.into_iter().map(tuple).collect()))
        })
    }

    /// Runs all passes.
    fn run(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let mut session = self.lock()?;
            while !session.is_finished() {
                self.step(&mut session)?;
            }
            Ok(())
        })
    }

    /// The completions of every request, once; none for one that has not finished.
    fn results(&self, py: Python<'_>) -> PyResult<Vec<Vec<OutputTuple>>> {
        py.detach(|| {
            let mut session = self.lock()?;
            let tuples = |id: &RequestId| {
                let outputs = session.take(*id).unwrap_or_default();
                let tuple = |output: Output| {
                    let reason = reason(output.finish_reason);
                    (output.ids, output.text, output.score, logprobs(&output.logprobs), reason)
                };
                outputs.into_iter().map(tuple).collect()
            };
            Ok(self.requests.iter().map(tuples).collect())
        })
    }

    /// Ends what has not finished, and gives its memory back.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            self.lock()?.close(&mut Shared(self.model.get()));
            Ok(())
        })
    }
}

impl PyGeneration {
    /// Runs one pass, with no more threads than the model may have.
    fn step(&self, session: &mut Session) -> Result<Vec<Piece>> {
        let model = self.model.get();
        threads::with_limit(model.threads, || session.step(&mut Shared(model)))
    }

    /// The session, unless a call is using it: a callback of its own, or another thread.
    fn lock(&self) -> PyResult<MutexGuard<'_, Session>> {
        match self.session.try_lock() {
            Ok(session) => Ok(session),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(PyRuntimeError::new_err("this generation is already running, in another call"))
            }
        }
    }
}

impl Drop for PyGeneration {
    fn drop(&mut self) {
        let session = self.session.get_mut().unwrap_or_else(PoisonError::into_inner);
        if session.is_finished() {
            return;
        }
        let model = self.model.get();
        // Whoever holds the model may be waiting for the GIL, so it is not held while waiting for the model.
        Python::try_attach(|py| py.detach(|| session.close(&mut Shared(model))));
    }
}

/// A model that is locked for each call alone, so that a Python callback in between may use it, too.
///
/// Where a fork has left the model locked, sequences are made and dropped in name only, and `forward` says why.
struct Shared<'a>(&'a PyModel);

impl Step for Shared<'_> {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.0.max_positions
    }

    fn start(&mut self) -> SeqId {
        self.0.with_step(|step| step.start()).unwrap_or(SeqId(0))
    }

    fn len(&self, seq: SeqId) -> usize {
        self.0.with_step(|step| step.len(seq)).unwrap_or(0)
    }

    fn fork(&mut self, seq: SeqId) -> SeqId {
        self.0.with_step(|step| step.fork(seq)).unwrap_or(seq)
    }

    fn truncate(&mut self, seq: SeqId, len: usize) {
        let _ = self.0.with_step(|step| step.truncate(seq, len));
    }

    fn release(&mut self, seq: SeqId) {
        let _ = self.0.with_step(|step| step.release(seq));
    }

    fn forward(&mut self, work: &[Work<'_>], logits: &mut Vec<f32>) -> Result<()> {
        self.0.with_step(|step| step.forward(work, logits))?
    }
}

fn reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn logprobs(list: &[Arc<TokenLogprob>]) -> Vec<LogprobTuple> {
    list.iter().map(|entry| (entry.token, entry.logprob, entry.top.clone())).collect()
}

fn request(
    prompt: Vec<u32>,
    given: &Bound<'_, PyDict>,
    decoder: Option<Box<dyn TextDecoder>>,
) -> PyResult<Request> {
    let mut request =
        Request { prompt, options: Options::default(), decoder, processors: vec![], criteria: vec![] };
    for (name, value) in given {
        let name = name.cast::<PyString>()?.to_string();
        set(&mut request, &name, &value)?;
    }
    Ok(request)
}

/// Sets one option.
fn set(request: &mut Request, name: &str, value: &Bound<'_, PyAny>) -> PyResult<()> {
    let given = Given { name, value };
    let options = &mut request.options;
    match name {
        "max_new_tokens" => options.max_new_tokens = Some(given.count()?),
        "max_length" => options.max_length = Some(given.count()?),
        "min_new_tokens" => options.min_new_tokens = given.count()?,
        "min_length" => options.min_length = given.count()?,
        "eos_token_id" => options.eos_token_id = given.tokens()?,
        "stop_strings" => options.stop_strings = given.take("a text or a list of texts")?,
        "num_return_sequences" => options.num_return_sequences = given.count()?,
        "num_beams" => options.num_beams = given.count()?,
        "early_stopping" => options.early_stopping = given.early_stopping()?,
        "length_penalty" => options.length_penalty = given.number()?,
        "num_beam_groups" => options.num_beam_groups = given.count()?,
        "diversity_penalty" => options.diversity_penalty = given.number()? as f32,
        "do_sample" => options.do_sample = given.take("True or False")?,
        "temperature" => options.temperature = given.number()? as f32,
        "top_k" => options.top_k = given.count()?,
        "top_p" => options.top_p = given.number()? as f32,
        "min_p" => options.min_p = given.number()? as f32,
        "typical_p" => options.typical_p = given.number()? as f32,
        "seed" => options.seed = given.take("a whole number from 0 to 2**64 - 1")?,
        "logit_bias" => {
            let bias: BTreeMap<u32, f32> = given.take("a dict of numbers by token id")?;
            options.logit_bias = bias.into_iter().collect();
        }
        "repetition_penalty" => options.repetition_penalty = given.number()? as f32,
        "presence_penalty" => options.presence_penalty = given.number()? as f32,
        "frequency_penalty" => options.frequency_penalty = given.number()? as f32,
        "no_repeat_ngram_size" => options.no_repeat_ngram_size = given.count()?,
        "bad_words_ids" => options.bad_words_ids = given.take("a list of lists of token ids")?,
        "forced_bos_token_id" => options.forced_bos_token_id = Some(given.take("a token id")?),
        "forced_eos_token_id" => options.forced_eos_token_id = given.tokens()?,
        "suppress_tokens" => options.suppress_tokens = given.tokens()?,
        "logprobs" => options.logprobs = Some(given.count()?),
        "logits_processor" => {
            for function in given.callables()? {
                request.processors.push(Box::new(Callback { function: Arc::new(function) }));
            }
        }
        "stopping_criteria" => {
            for function in given.callables()? {
                request.criteria.push(Arc::new(Callback { function: Arc::new(function) }));
            }
        }
        _ => return Err(given.unlike("an option of generation").into()),
    }
    Ok(())
}

/// An option as Python gave it.
struct Given<'a, 'py> {
    name: &'a str,
    value: &'a Bound<'py, PyAny>,
}

impl<'py> Given<'_, 'py> {
    fn unlike(&self, expected: &str) -> Error {
        let found = self.value.repr().map_or_else(|_| "something".to_owned(), |repr| repr.to_string());
        Error::argument(self.name, found, expected)
    }

    fn take<T: for<'a> FromPyObject<'a, 'py>>(&self, expected: &str) -> Result<T> {
        self.value.extract().map_err(|_| self.unlike(expected))
    }

    fn count(&self) -> Result<usize> {
        self.take("a whole number, at least 0")
    }

    fn number(&self) -> Result<f64> {
        self.take("a number")
    }

    fn tokens(&self) -> Result<Vec<u32>> {
        self.take("a token id or a list of token ids")
    }

    fn early_stopping(&self) -> Result<EarlyStopping> {
        match self.value.extract::<bool>() {
            Ok(true) => Ok(EarlyStopping::Always),
            Ok(false) => Ok(EarlyStopping::Heuristic),
            Err(_) if self.value.extract::<&str>().is_ok_and(|text| text == "never") => {
                Ok(EarlyStopping::Never)
            }
            Err(_) => Err(self.unlike("True, False or \"never\"")),
        }
    }

    fn callables(&self) -> Result<Vec<Py<PyAny>>> {
        let expected = "a callable or a list of callables";
        let list: Vec<Bound<'_, PyAny>> = self.take(expected)?;
        if !list.iter().all(|function| function.is_callable()) {
            return Err(self.unlike(expected));
        }
        Ok(list.into_iter().map(Bound::unbind).collect())
    }
}

/// Text by the tokenizer of a model.
struct Stream(StreamDecoder);

impl TextDecoder for Stream {
    fn push(&mut self, token: u32) -> String {
        self.0.push(token)
    }

    fn finish(&mut self) -> String {
        self.0.finish()
    }

    fn fork(&self) -> Box<dyn TextDecoder> {
        Box::new(Stream(self.0.clone()))
    }
}

/// A Python function in the place of a processor or a criterion.
struct Callback {
    function: Arc<Py<PyAny>>,
}

fn int64<'py>(py: Python<'py>, ids: &[u32]) -> Bound<'py, PyArray1<i64>> {
    PyArray1::from_iter(py, ids.iter().map(|&id| i64::from(id)))
}

impl Processor for Callback {
    fn process(&mut self, ids: &[u32], scores: &mut [f32]) -> Result<()> {
        Python::attach(|py| {
            let found = self.function.call1(py, (int64(py, ids), PyArray1::from_slice(py, scores)))?;
            let array = py.import("numpy")?.call_method1("asarray", (found, "float32"))?;
            let shape = array.getattr("shape")?;
            let row = array.cast::<PyArray1<f32>>().ok().map(PyArrayMethods::readonly);
            match row {
                Some(row) if row.as_array().len() == scores.len() => {
                    scores.iter_mut().zip(row.as_array()).for_each(|(score, &new)| *score = new);
                    Ok(())
                }
                _ => Err(Error::argument(
                    "logits_processor",
                    format!("a result of shape {shape}"),
                    format!("({},)", scores.len()),
                )),
            }
        })
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(Callback { function: self.function.clone() })
    }
}

impl StoppingCriterion for Callback {
    fn stop(&self, ids: &[u32]) -> Result<bool> {
        Python::attach(|py| Ok(self.function.call1(py, (int64(py, ids),))?.is_truthy(py)?))
    }
}

/// What sampling draws by, `[vocab_size]`: the scores over the temperature, and -inf for what the other options
/// exclude. Raises `ValueError` for scores that nothing can be drawn by.
#[pyfunction]
fn warp<'py>(
    py: Python<'py>,
    scores: PyReadonlyArray1<'py, f32>,
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    typical_p: f32,
) -> PyResult<Bound<'py, PyArray1<f32>>> {
    let options = Options { temperature, top_k, top_p, min_p, typical_p, ..Options::default() };
    let mut warped = scores.as_array().to_vec();
    py.detach(|| Warpers::new(&options).warp(&mut warped)).map_err(|_| {
        Error::argument(
            "scores",
            "nothing to draw by",
            "numbers below +infinity, one of them above -infinity",
        )
    })?;
    Ok(PyArray1::from_vec(py, warped))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(warp, module)?)?;
    module.add_class::<PyGeneration>()
}
