//! The tokenizer for Python: `Tokenizer`, `StreamDecoder`.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::PyArray1;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyInt, PyList, PySlice, PyString};

use super::text::{AllowedSpecial, Id, Ids, Input, describe, mended};
use crate::bpe::gguf::{self, Pre};
use crate::bpe::json;
use crate::bpe::jsonl;
use crate::bpe::load::{Role, Settings};
use crate::bpe::seams::Seams;
use crate::bpe::special::AddedToken;
use crate::bpe::{Allowed, Options, Source, StreamDecoder, Tokenizer};
use crate::error::{Error, Result};
use crate::simd;

/// Byte-pair encoding, byte-level or SentencePiece's. Immutable; threads may share it.
#[pyclass(name = "Tokenizer", module = "llmcore._core", frozen, subclass)]
pub struct PyTokenizer {
    pub tokenizer: Arc<Tokenizer>,
    /// The integers that lists of ids hold, made once.
    ints: PyOnceLock<Vec<Py<PyInt>>>,
    /// The tokenizer.json that it was made of, where no file holds that.
    json: Option<String>,
}

impl<'py> FromPyObject<'_, 'py> for Role {
    type Error = PyErr;

    fn extract(role: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match role.cast::<PyString>() {
            Ok(token) => Ok(Role::Token(token.extract()?)),
            Err(_) => Ok(Role::Id(role.extract()?)),
        }
    }
}

/// Content, id, special, normalized, lstrip, rstrip, single_word.
type NewToken = (String, Option<u64>, bool, bool, bool, bool, bool);

/// Texts of fewer bytes are encoded before another thread could have taken the interpreter over.
const SHORT: usize = 1 << 10;

/// More than most texts have.
const CHARACTERS_AN_ID: usize = 16;

/// So many integers before it is needed, one is asked for.
const INTS_AHEAD: usize = 12;

/// Arrays of fewer ids are copied into memory of NumPy's own, which is faster than to lend it ours.
const COPIED_IDS: usize = 1 << 12;

#[pymethods]
impl PyTokenizer {
    /// Opens a `tokenizer.json`, a `vocab.json` with `merges.txt` beside it, a `.tiktoken` or a `.gguf`.
    ///
    /// `pattern`, `nfc`: pre-tokenisation and normalisation, for the formats that do not say.
    /// `json`: the text of a tokenizer.json to read instead; `path` then serves the errors.
    /// `added_tokens`: `(content, id or None, special, normalized, lstrip, rstrip, single_word)`.
    /// `bos_token` … `add_eos`: what overrides the file; a token that the vocabulary lacks is added for padding,
    /// has no role if it is one of `assumed`, and is else a ValueError.
    #[new]
    #[pyo3(signature = (
        path, *, json=None, pattern=None, nfc=false, added_tokens=Vec::new(), bos_token=None, eos_tokens=Vec::new(),
        unk_token=None, pad_token=None, assumed=Vec::new(), add_bos=None, add_eos=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "named in Python")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        json: Option<String>,
        pattern: Option<String>,
        nfc: bool,
        added_tokens: Vec<NewToken>,
        bos_token: Option<Role>,
        eos_tokens: Vec<Role>,
        unk_token: Option<Role>,
        pad_token: Option<Role>,
        assumed: Vec<String>,
        add_bos: Option<bool>,
        add_eos: Option<bool>,
    ) -> PyResult<Self> {
        let added = added_tokens
            .into_iter()
            .map(|(content, id, special, normalized, lstrip, rstrip, single_word)| {
                let token = AddedToken { id: 0, content, special, normalized, lstrip, rstrip, single_word };
                (token, id)
            })
            .collect();
        let settings = Settings {
            pattern,
            nfc,
            added,
            bos_token,
            eos_tokens,
            unk_token,
            pad_token,
            assumed,
            add_bos,
            add_eos,
        };
        let tokenizer = py.detach(|| match &json {
            Some(json) => {
                let parts = json::from_slice(&path, json.as_bytes())?;
                Tokenizer::with_settings(&path, parts, &settings)
            }
            None => Tokenizer::open(&path, &settings),
        })?;
        Ok(PyTokenizer { tokenizer: Arc::new(tokenizer), ints: PyOnceLock::new(), json })
    }

    /// The ids of a text.
    ///
    /// `add_special_tokens` adds what the tokenizer puts around a text. `allowed_special` says which
    /// added tokens the text may hold: "all", "none", or a list of them; the others are encoded as
    /// ordinary text (tokens of white space only are always found). `with_offsets` also gives, for each
    /// id, the range of characters of `text` that it stands for. Without, all threads encode a long text
    /// together, if the tokenizer can cut it.
    ///
    /// `text` is a `str` or UTF-8 `bytes`; invalid sequences of bytes become tokens of their own. A byte that
    /// the vocabulary has no token for is left out, as `tokenizers` does (SmolLM2's lacks 21 of the 256).
    #[pyo3(signature = (text, *, add_special_tokens=true, allowed_special=None, with_offsets=false))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
        with_offsets: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let allowed = allowed_of(allowed_special.as_ref())?;
        if !with_offsets {
            let ids = self.ids(py, text, add_special_tokens, allowed)?;
            return Ok(self.list(py, &ids)?.into_any());
        }
        let input = Input::new(text)?;
        let source = input.source();
        let options = Options { add_special_tokens, allowed, offsets: true };
        let encoding = py.detach(|| match source {
            Source::Text(text) => self.tokenizer.encode(text, &options),
            Source::Bytes(bytes) => self.tokenizer.encode_bytes(bytes, &options),
        })?;
        Ok((self.list(py, &encoding.ids)?, encoding.offsets).into_pyobject(py)?.into_any())
    }

    /// `encode`, as an array of uint32.
    #[pyo3(signature = (text, *, add_special_tokens=true, allowed_special=None))]
    fn encode_array<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let ids = self.ids(py, text, add_special_tokens, allowed_of(allowed_special.as_ref())?)?;
        Ok(array(py, ids))
    }

    /// How many ids `encode` gives. They are counted part by part and never held together, if the
    /// tokenizer can cut the text.
    #[pyo3(signature = (text, *, add_special_tokens=true, allowed_special=None))]
    fn count(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
    ) -> PyResult<usize> {
        let allowed = allowed_of(allowed_special.as_ref())?;
        let input = Input::new(text)?;
        let source = input.source();
        if source.len() < SHORT {
            let options = Options { add_special_tokens, allowed, offsets: false };
            return Ok(self.tokenizer.encode_source(source, &options)?.len());
        }
        Ok(py.detach(|| self.tokenizer.count(source, add_special_tokens, allowed))?)
    }

    /// The beginning of a text that has at most `n` ids: what the first `n` of its ids stand for, in whole
    /// characters. `n` counts what `encode` puts around the text, if `add_special_tokens`. (A little less,
    /// where the beginning alone would be cut otherwise and have more than `n`; a longer beginning may have as
    /// few, where its last token is another.) Of a long text no more is read than that takes, if the tokenizer
    /// can cut it.
    ///
    /// Raises ValueError if `n` is less than what is put around every text.
    #[pyo3(signature = (text, n, *, add_special_tokens=true, allowed_special=None))]
    fn truncate<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyString>,
        n: usize,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
    ) -> PyResult<Bound<'py, PyString>> {
        let allowed = allowed_of(allowed_special.as_ref())?;
        let post = self.tokenizer.post_processor();
        let around = if add_special_tokens { post.prefix.len() + post.suffix.len() } else { 0 };
        let Some(room) = n.checked_sub(around) else {
            let expected = format!("at least {around}, as many ids as are put around a text");
            return Err(Error::argument("n", n, expected).into());
        };
        // What is not ASCII is copied before it is read: no more than is needed.
        let mut head = room.saturating_mul(CHARACTERS_AN_ID).max(SHORT);
        while head < text.len()? && !text.call_method0("isascii")?.is_truthy()? {
            let slice = text.get_item(PySlice::new(py, 0, head as isize, 1))?.cast_into::<PyString>()?;
            let slice = mended(&slice)?;
            if let Some(beginning) = py.detach(|| self.tokenizer.truncate_head(&slice, room, allowed))? {
                return Ok(PyString::new(py, beginning));
            }
            head = head.saturating_mul(4);
        }
        let whole = mended(text)?;
        let beginning = py.detach(|| self.tokenizer.truncate(&whole, room, allowed))?;
        match &whole {
            Cow::Borrowed(whole) if whole.len() == beginning.len() => Ok(text.clone()),
            _ => Ok(PyString::new(py, beginning)),
        }
    }

    /// `encode_array` of each text, on all threads; or, if `flat`, one array of uint32 with the ids of all
    /// texts, and one of int64 with len(texts) + 1 places in it, where each text starts and the last ends.
    #[pyo3(signature = (texts, *, add_special_tokens=true, allowed_special=None, flat=false))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
        flat: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let texts: Vec<Bound<'py, PyAny>> =
            texts.extract().ok().filter(|_| !texts.is_instance_of::<PyBytes>()).ok_or_else(|| {
                PyTypeError::new_err(format!(
                    "texts: found {}, expected a list of str or bytes",
                    describe(texts)
                ))
            })?;
        let inputs: Vec<Input<'_>> = texts.iter().map(Input::new).collect::<PyResult<_>>()?;
        let sources: Vec<Source<'_>> = inputs.iter().map(Input::source).collect();
        let allowed = allowed_of(allowed_special.as_ref())?;
        let rows = py.detach(|| self.tokenizer.encode_rows(&sources, add_special_tokens, allowed))?;
        if flat {
            let starts = PyArray1::from_vec(py, rows.starts());
            let ids = array(py, py.detach(|| rows.into_flat()));
            return Ok((ids, starts).into_pyobject(py)?.into_any());
        }
        let arrays: Vec<_> = rows.iter().map(|row| PyArray1::from_slice(py, &row)).collect();
        Ok(PyList::new(py, arrays)?.into_any())
    }

    /// The last place in the beginning of a text, of which more may follow, where it may be cut in two without
    /// a change to its ids; None if there is no such place, or the tokenizer cannot tell.
    fn last_seam(&self, py: Python<'_>, text: &[u8]) -> Option<usize> {
        py.detach(|| Seams::of(&self.tokenizer)?.last(text))
    }

    /// The ids of texts, `(text, trusted)`, encoded as if they were one text, in which added tokens are
    /// found only inside the trusted ones (tokens of white space only are found everywhere): what a
    /// template writes may steer the model, what a user writes may not. `with_offsets` also gives, for each id,
    /// the range of characters of the joined text that it stands for, its white space included.
    #[pyo3(signature = (spans, *, add_special_tokens=false, with_offsets=false))]
    fn encode_spans<'py>(
        &self,
        py: Python<'py>,
        spans: Vec<(Bound<'py, PyString>, bool)>,
        add_special_tokens: bool,
        with_offsets: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mended: Vec<(Cow<'_, str>, bool)> =
            spans.iter().map(|(text, trusted)| Ok((mended(text)?, *trusted))).collect::<PyResult<_>>()?;
        let texts: Vec<(&str, bool)> = mended.iter().map(|(text, trusted)| (&**text, *trusted)).collect();
        let encoding = py.detach(|| self.tokenizer.encode_spans(&texts, add_special_tokens, with_offsets))?;
        let ids = self.list(py, &encoding.ids)?;
        match encoding.offsets {
            Some(offsets) => Ok((ids, offsets).into_pyobject(py)?.into_any()),
            None => Ok(ids.into_any()),
        }
    }

    /// The text of ids (one, a list or an array). Bytes that are not UTF-8 become U+FFFD, ids without
    /// a token nothing. What `encode` was given comes back if a byte-level vocabulary has all 256 bytes and
    /// nothing was normalised.
    #[pyo3(signature = (ids, skip_special_tokens=false))]
    fn decode(&self, py: Python<'_>, ids: Ids, skip_special_tokens: bool) -> String {
        py.detach(|| self.tokenizer.decode(&ids.0, skip_special_tokens))
    }

    /// The bytes of ids.
    #[pyo3(signature = (ids, skip_special_tokens=false))]
    fn decode_bytes<'py>(&self, py: Python<'py>, ids: Ids, skip_special_tokens: bool) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &py.detach(|| self.tokenizer.decode_bytes(&ids.0, skip_special_tokens)))
    }

    /// Decodes ids one at a time. `continuing`: what is decoded follows other text, so that a
    /// leading space stays.
    #[pyo3(signature = (*, skip_special_tokens=false, continuing=false))]
    fn stream_decoder(&self, skip_special_tokens: bool, continuing: bool) -> PyStreamDecoder {
        let new = if continuing { StreamDecoder::continuing } else { StreamDecoder::new };
        PyStreamDecoder { decoder: new(self.tokenizer.clone(), skip_special_tokens) }
    }

    /// The id of a token as the vocabulary spells it, or None.
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.vocab().id(token)
    }

    /// The token of an id as the vocabulary spells it, or None.
    fn id_to_token(&self, id: Id) -> Option<&str> {
        self.tokenizer.vocab().token(id.0)
    }

    /// The bytes that one id stands for. Raises ValueError for an id without a token.
    fn token_bytes<'py>(&self, py: Python<'py>, id: Id) -> PyResult<Bound<'py, PyBytes>> {
        let Id(id) = id;
        match self.tokenizer.vocab().token(id) {
            Some(_) => Ok(PyBytes::new(py, self.tokenizer.decoder().bytes(id))),
            None => {
                let expected = format!("an id of a token, below {}", self.tokenizer.vocab().len());
                Err(Error::argument("id", id, expected).into())
            }
        }
    }

    /// One more than the highest id, added tokens included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.tokenizer.vocab().len()
    }

    fn __len__(&self) -> usize {
        self.tokenizer.vocab().len()
    }

    /// The token that begins a text, or None.
    #[getter]
    fn bos_token_id(&self) -> Option<u32> {
        self.tokenizer.roles().bos
    }

    /// The token that ends a text, or None.
    #[getter]
    fn eos_token_id(&self) -> Option<u32> {
        self.tokenizer.roles().eos.first().copied()
    }

    /// The tokens that end a text or a turn.
    #[getter]
    fn eos_token_ids(&self) -> Vec<u32> {
        self.tokenizer.roles().eos.clone()
    }

    /// The token that fills a batch up, or None.
    #[getter]
    fn pad_token_id(&self) -> Option<u32> {
        self.tokenizer.roles().pad
    }

    /// The token of what has no other, or None.
    #[getter]
    fn unk_token_id(&self) -> Option<u32> {
        self.tokenizer.roles().unk
    }

    /// The ids that `encode` puts before every text.
    #[getter]
    fn prefix_ids(&self) -> Vec<u32> {
        self.tokenizer.post_processor().prefix.clone()
    }

    /// The ids that `encode` puts after every text.
    #[getter]
    fn suffix_ids(&self) -> Vec<u32> {
        self.tokenizer.post_processor().suffix.clone()
    }

    /// The ids of all special tokens, in order.
    #[getter]
    fn special_ids(&self) -> Vec<u32> {
        self.tokenizer.special_ids().to_vec()
    }

    /// The `json` that the tokenizer was made of, or None.
    #[getter]
    fn json(&self) -> Option<&str> {
        self.json.as_deref()
    }

    /// The chat template that the tokenizer's file holds, or None.
    #[getter]
    fn embedded_chat_template(&self) -> Option<&str> {
        self.tokenizer.chat_template()
    }
}

impl PyTokenizer {
    fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let ints = self.ints.get_or_init(py, || {
            (0..self.tokenizer.vocab().len()).map(|id| PyInt::new(py, id).unbind()).collect()
        });
        let int = |(at, &id): (usize, &u32)| {
            // Each has a count of references, which few of them have in the nearest memory.
            if let Some(int) = ids.get(at + INTS_AHEAD).and_then(|&id| ints.get(id as usize)) {
                simd::prefetch(int.as_ptr());
            }
            match ints.get(id as usize) {
                Some(int) => int.bind(py).clone(),
                None => PyInt::new(py, id),
            }
        };
        PyList::new(py, ids.iter().enumerate().map(int))
    }

    fn ids(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        allowed: Allowed<'_>,
    ) -> PyResult<Vec<u32>> {
        let input = Input::new(text)?;
        let source = input.source();
        let options = Options { add_special_tokens, allowed, offsets: false };
        match source.len() {
            // Letting go of the interpreter costs as much as encoding ten words.
            0..SHORT => Ok(self.tokenizer.encode_source(source, &options)?),
            _ => Ok(py.detach(|| self.tokenizer.encode_long(source, &options))?),
        }
    }
}

fn allowed_of(allowed_special: Option<&AllowedSpecial>) -> Result<Allowed<'_>> {
    allowed_special.map_or(Ok(Allowed::All), AllowedSpecial::allowed)
}

fn array(py: Python<'_>, ids: Vec<u32>) -> Bound<'_, PyArray1<u32>> {
    match ids.len() {
        0..COPIED_IDS => PyArray1::from_slice(py, &ids),
        _ => PyArray1::from_vec(py, ids),
    }
}

/// Decodes ids one at a time, never giving out part of a character.
#[pyclass(name = "StreamDecoder", module = "llmcore._core")]
pub struct PyStreamDecoder {
    decoder: StreamDecoder,
}

#[pymethods]
impl PyStreamDecoder {
    /// The text that is certain once this id has come; it may be empty.
    fn push(&mut self, id: u32) -> String {
        self.decoder.push(id)
    }

    /// The rest, once no more ids come: U+FFFD if the last character is not whole.
    fn finish(&mut self) -> String {
        self.decoder.finish()
    }
}

/// The string "text" of each line, a JSON object; None where another reader should say what is wrong.
#[pyfunction]
fn json_texts<'py>(py: Python<'py>, lines: Vec<Bound<'py, PyBytes>>) -> PyResult<Bound<'py, PyList>> {
    let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    PyList::new(py, py.detach(|| jsonl::texts(&lines))?)
}

/// What a `tokenizer.ggml.pre` names: patterns (each cuts the pieces of the one before), whether text is
/// normalised to NFC, and whether a piece that is a token is taken whole. Raises ValueError for a name that is not
/// known; `path` says where it was read.
#[pyfunction]
fn gguf_pre(path: PathBuf, name: Option<&str>) -> PyResult<(Vec<&'static str>, bool, bool)> {
    let pre = Pre::of(&path, name)?;
    Ok((pre.patterns.to_vec(), pre.nfc, pre.ignore_merges))
}

/// The `tokenizer.ggml.pre` of such a pre-tokenisation; None if it has no name.
#[pyfunction]
fn gguf_pre_name(patterns: Vec<String>, nfc: bool, ignore_merges: bool) -> Option<&'static str> {
    gguf::pre_name(&patterns, nfc, ignore_merges)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(json_texts, module)?)?;
    module.add_function(wrap_pyfunction!(gguf_pre, module)?)?;
    module.add_function(wrap_pyfunction!(gguf_pre_name, module)?)?;
    module.add_class::<PyTokenizer>()?;
    module.add_class::<PyStreamDecoder>()
}
