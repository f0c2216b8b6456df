//! Training a vocabulary, for Python: `BpeTrainer`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::bpe::train::{Dropped, Trainer, Wanted};
use crate::error::{Error, Result};

/// Between two calls of a progress callback.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Counts texts, then makes a byte-level vocabulary.
#[pyclass(name = "BpeTrainer", module = "llmcore._core")]
pub struct PyTrainer {
    /// Gone once the vocabulary is made.
    trainer: Option<Trainer>,
}

#[pymethods]
impl PyTrainer {
    /// `pattern`: the name of a known pattern or a regular expression. `max_memory`: bytes that counts may take
    /// before they are written to a temporary file, and then that merging may take.
    #[new]
    #[pyo3(signature = (
        vocab_size, pattern, *, special_tokens=Vec::new(), min_frequency=0, min_piece_count=1, max_memory=None
    ))]
    fn new(
        vocab_size: usize,
        pattern: String,
        special_tokens: Vec<String>,
        min_frequency: u64,
        min_piece_count: u64,
        max_memory: Option<usize>,
    ) -> Result<Self> {
        let wanted =
            Wanted { vocab_size, pattern, special_tokens, min_frequency, min_piece_count, max_memory };
        Ok(PyTrainer { trainer: Some(Trainer::new(wanted)?) })
    }

    /// Counts the pieces of texts, each of which is a document.
    fn add_texts(&mut self, py: Python<'_>, texts: Vec<Bound<'_, PyString>>) -> PyResult<()> {
        let texts: Vec<&str> = texts.iter().map(|text| text.to_str()).collect::<PyResult<_>>()?;
        let trainer = self.trainer.as_mut().ok_or_else(finished)?;
        Ok(py.detach(|| trainer.add_texts(&texts))?)
    }

    /// Counts the pieces of a file of UTF-8, each line of which is a document. `progress` is called
    /// with the number of bytes that have been counted.
    #[pyo3(signature = (path, progress=None))]
    fn add_file(&mut self, py: Python<'_>, path: PathBuf, progress: Option<Py<PyAny>>) -> PyResult<()> {
        let trainer = self.trainer.as_mut().ok_or_else(finished)?;
        let mut progress = Progress::new(progress);
        Ok(py.detach(|| trainer.add_file(&path, |bytes| progress.report(bytes)))?)
    }

    /// The tokenizer.json of the vocabulary, and what `min_piece_count` left out: how many pieces, how
    /// many occurrences, of how many pieces, of how many occurrences (all 0 if it is 1 or less).
    /// `progress` is called with the number of tokens so far.
    #[pyo3(signature = (progress=None))]
    fn finish(
        &mut self,
        py: Python<'_>,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(String, (u64, u64, u64, u64))> {
        let trainer = self.trainer.take().ok_or_else(finished)?;
        let mut progress = Progress::new(progress);
        let made = py.detach(|| {
            let trained = trainer.finish(|tokens| progress.report(tokens))?;
            let Dropped { pieces, occurrences, all_pieces, all_occurrences } = trained.dropped;
            Result::Ok((trained.to_json()?, (pieces, occurrences, all_pieces, all_occurrences)))
        })?;
        Ok(made)
    }
}

fn finished() -> Error {
    Error::argument("BpeTrainer", "one that has made its vocabulary", "a new one")
}

/// A callback, called now and then.
struct Progress {
    callback: Option<Py<PyAny>>,
    last: Instant,
}

impl Progress {
    fn new(callback: Option<Py<PyAny>>) -> Self {
        Progress { callback, last: Instant::now() }
    }

    fn report(&mut self, done: usize) -> Result<()> {
        let Some(callback) = &self.callback else { return Ok(()) };
        if self.last.elapsed() < REPORT_INTERVAL {
            return Ok(());
        }
        self.last = Instant::now();
        Python::try_attach(|py| callback.call1(py, (done,)).map(drop))
            .unwrap_or(Ok(()))
            .map_err(Error::Python)
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTrainer>()
}
