//! The tokenizer for Python: `Tokenizer`, `StreamDecoder`.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyInt, PyList, PyString};

use crate::bpe::json;
use crate::bpe::load::{Role, Settings};
use crate::bpe::special::AddedToken;
use crate::bpe::{Allowed, Encoding, Options, StreamDecoder, Tokenizer};
use crate::error::{Error, Result};
use crate::threads;

/// Byte-pair encoding, byte-level or SentencePiece's. Immutable; threads may share it.
#[pyclass(name = "Tokenizer", module = "llmcore._core", frozen, subclass)]
pub struct PyTokenizer {
    pub tokenizer: Arc<Tokenizer>,
    /// The integers that lists of ids hold, made once.
    ints: PyOnceLock<Vec<Py<PyInt>>>,
    /// The tokenizer.json that it was made of, where no file holds that.
    json: Option<String>,
}

/// Lists of so many ids are made of integers that are kept; making those for fewer is not worth it.
const KEPT_INTS_FROM: usize = 1 << 10;

/// `allowed_special` as Python gives it.
enum AllowedSpecial {
    Word(String),
    Tokens(Vec<String>),
}

impl<'py> FromPyObject<'_, 'py> for AllowedSpecial {
    type Error = PyErr;

    fn extract(allowed: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(word) = allowed.extract::<String>() {
            return Ok(AllowedSpecial::Word(word));
        }
        let tokens = allowed.try_iter()?.map(|token| token?.extract::<String>());
        Ok(AllowedSpecial::Tokens(tokens.collect::<PyResult<_>>()?))
    }
}

impl AllowedSpecial {
    fn allowed(&self) -> Result<Allowed<'_>> {
        match self {
            AllowedSpecial::Word(word) if word == "all" => Ok(Allowed::All),
            AllowedSpecial::Word(word) if word == "none" => Ok(Allowed::None),
            AllowedSpecial::Word(word) => Err(Error::argument(
                "allowed_special",
                format!("{word:?}"),
                "\"all\", \"none\", or a list of tokens",
            )),
            AllowedSpecial::Tokens(tokens) => Ok(Allowed::Only(tokens)),
        }
    }
}

/// A text as Python gives it: `bytes` as they are, a `str` as UTF-8.
enum Input<'py> {
    Bytes(Bound<'py, PyBytes>),
    Text(Bound<'py, PyString>),
}

impl<'py> Input<'py> {
    /// A `str` with surrogates is read as UTF-16: pairs are characters, a lone one is U+FFFD.
    fn new(text: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = text.cast::<PyBytes>() {
            return Ok(Input::Bytes(bytes.clone()));
        }
        let Ok(string) = text.cast::<PyString>() else {
            let found = text.get_type().name()?;
            return Err(PyTypeError::new_err(format!("text: found {found}, expected str or bytes")));
        };
        if string.to_str().is_ok() {
            return Ok(Input::Text(string.clone()));
        }
        let utf16 = string.call_method1("encode", ("utf-16", "surrogatepass"))?;
        let mended = utf16.call_method1("decode", ("utf-16", "replace"))?;
        Ok(Input::Text(mended.cast_into::<PyString>()?))
    }

    fn view(&self) -> PyResult<View<'_>> {
        Ok(match self {
            Input::Bytes(bytes) => View::Bytes(bytes.as_bytes()),
            Input::Text(text) => View::Text(text.to_str()?),
        })
    }
}

/// What an `Input` holds, for use without the interpreter.
#[derive(Clone, Copy)]
enum View<'a> {
    Bytes(&'a [u8]),
    Text(&'a str),
}

impl View<'_> {
    fn encode(self, tokenizer: &Tokenizer, options: &Options<'_>) -> Result<Encoding> {
        match self {
            View::Bytes(bytes) => tokenizer.encode_bytes(bytes, options),
            View::Text(text) => tokenizer.encode(text, options),
        }
    }

    fn len(self) -> usize {
        match self {
            View::Bytes(bytes) => bytes.len(),
            View::Text(text) => text.len(),
        }
    }
}

/// Token ids as Python gives them: one, a list, or a NumPy array of integers.
struct Ids(Vec<u32>);

impl<'py> FromPyObject<'_, 'py> for Ids {
    type Error = PyErr;

    fn extract(ids: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = ids.extract::<PyReadonlyArray1<'py, u32>>() {
            return Ok(Ids(array.as_array().to_vec()));
        }
        let wide: Vec<i64> = if let Ok(array) = ids.extract::<PyReadonlyArray1<'py, i64>>() {
            array.as_array().to_vec()
        } else if let Ok(list) = ids.extract::<Vec<u32>>() {
            return Ok(Ids(list));
        } else if let Ok(id) = ids.extract::<i64>() {
            vec![id]
        } else {
            ids.extract().map_err(|_| {
                Error::argument("ids", describe(&ids), "an id, a list or a one-dimensional array of ids")
            })?
        };
        let narrow =
            |id: i64| u32::try_from(id).map_err(|_| Error::argument("ids", id, "ids from 0 to 2³² − 1"));
        Ok(Ids(wide.into_iter().map(narrow).collect::<Result<_>>()?))
    }
}

/// One token id as Python gives it.
struct Id(u32);

impl<'py> FromPyObject<'_, 'py> for Id {
    type Error = PyErr;

    fn extract(id: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        id.extract().map(Id).map_err(|_: PyErr| {
            let found = id.repr().map_or_else(|_| describe(&id), |repr| repr.to_string());
            Error::argument("id", found, "an id from 0 to 2³² − 1").into()
        })
    }
}

fn describe(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string())
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

/// Texts of one chunk of a batch add up to this many bytes, or are one text.
const CHUNK_BYTES: usize = 1 << 16;

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
    /// id, the range of characters of `text` that it stands for.
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
        let encoding = self.run(py, text, add_special_tokens, allowed_special, with_offsets)?;
        let ids = self.list(py, &encoding.ids)?;
        match encoding.offsets {
            Some(offsets) => Ok((ids, offsets).into_pyobject(py)?.into_any()),
            None => Ok(ids.into_any()),
        }
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
        let encoding = self.run(py, text, add_special_tokens, allowed_special, false)?;
        Ok(PyArray1::from_vec(py, encoding.ids))
    }

    /// How many ids `encode` gives.
    #[pyo3(signature = (text, *, add_special_tokens=true, allowed_special=None))]
    fn count(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
    ) -> PyResult<usize> {
        Ok(self.run(py, text, add_special_tokens, allowed_special, false)?.ids.len())
    }

    /// `encode_array` of each text, on all threads.
    #[pyo3(signature = (texts, *, add_special_tokens=true, allowed_special=None))]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
    ) -> PyResult<Vec<Bound<'py, PyArray1<u32>>>> {
        let texts: Vec<Bound<'py, PyAny>> =
            texts.extract().ok().filter(|_| !texts.is_instance_of::<PyBytes>()).ok_or_else(|| {
                PyTypeError::new_err(format!(
                    "texts: found {}, expected a list of str or bytes",
                    describe(texts)
                ))
            })?;
        let inputs: Vec<Input<'py>> = texts.iter().map(Input::new).collect::<PyResult<_>>()?;
        let views: Vec<View<'_>> = inputs.iter().map(Input::view).collect::<PyResult<_>>()?;
        let allowed = allowed_special.as_ref().map_or(Ok(Allowed::All), AllowedSpecial::allowed)?;
        let options = Options { add_special_tokens, allowed, offsets: false };
        let rows = py.detach(|| encode_batch(&self.tokenizer, &views, &options))?;
        Ok(rows.into_iter().map(|ids| PyArray1::from_vec(py, ids)).collect())
    }

    /// The ids of texts, `(text, trusted)`, encoded as if they were one text, in which added tokens are
    /// found only inside the trusted ones (tokens of white space only are found everywhere): what a
    /// template writes may steer the model, what a user writes may not.
    #[pyo3(signature = (spans, *, add_special_tokens=false))]
    fn encode_spans(
        &self,
        py: Python<'_>,
        spans: Vec<(Bound<'_, PyString>, bool)>,
        add_special_tokens: bool,
    ) -> PyResult<Vec<u32>> {
        let inputs: Vec<(Input<'_>, bool)> = spans
            .iter()
            .map(|(text, trusted)| Ok((Input::new(text.as_any())?, *trusted)))
            .collect::<PyResult<_>>()?;
        let mut texts: Vec<(&str, bool)> = Vec::with_capacity(inputs.len());
        for (input, trusted) in &inputs {
            if let View::Text(text) = input.view()? {
                texts.push((text, *trusted));
            }
        }
        Ok(py.detach(|| self.tokenizer.encode_spans(&texts, add_special_tokens))?.ids)
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
        let ints = match self.ints.get(py) {
            None if ids.len() < KEPT_INTS_FROM => return PyList::new(py, ids),
            None => self.ints.get_or_init(py, || {
                (0..self.tokenizer.vocab().len()).map(|id| PyInt::new(py, id).unbind()).collect()
            }),
            Some(ints) => ints,
        };
        let int = |&id: &u32| match ints.get(id as usize) {
            Some(int) => int.bind(py).clone(),
            None => PyInt::new(py, id),
        };
        PyList::new(py, ids.iter().map(int))
    }

    fn run(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        allowed_special: Option<AllowedSpecial>,
        offsets: bool,
    ) -> PyResult<Encoding> {
        let input = Input::new(text)?;
        let view = input.view()?;
        let allowed = allowed_special.as_ref().map_or(Ok(Allowed::All), AllowedSpecial::allowed)?;
        let options = Options { add_special_tokens, allowed, offsets };
        Ok(py.detach(|| view.encode(&self.tokenizer, &options))?)
    }
}

/// The ids of each text; the texts are shared out among the threads.
fn encode_batch(tokenizer: &Tokenizer, texts: &[View<'_>], options: &Options<'_>) -> Result<Vec<Vec<u32>>> {
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let mut bytes = CHUNK_BYTES;
    for (i, text) in texts.iter().enumerate() {
        match chunks.last_mut() {
            Some(chunk) if bytes + text.len() <= CHUNK_BYTES => chunk.end = i + 1,
            _ => {
                chunks.push(i..i + 1);
                bytes = 0;
            }
        }
        bytes += text.len();
    }
    let done: Vec<OnceLock<Result<Vec<Vec<u32>>>>> = chunks.iter().map(|_| OnceLock::new()).collect();
    threads::for_each(chunks.len(), |i| {
        let rows = texts[chunks[i].clone()].iter();
        let rows = rows.map(|text| Ok(text.encode(tokenizer, options)?.ids)).collect();
        // Each chunk is run once, so its cell is empty.
        let _ = done[i].set(rows);
    });
    let mut rows = Vec::with_capacity(texts.len());
    for chunk in done {
        rows.extend(chunk.into_inner().unwrap_or_else(|| Ok(Vec::new()))?);
    }
    Ok(rows)
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

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyTokenizer>()?;
    module.add_class::<PyStreamDecoder>()
}
