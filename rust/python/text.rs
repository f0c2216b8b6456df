//! Texts and ids as Python gives them.

use std::borrow::Cow;

use numpy::PyReadonlyArray1;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};

use crate::bpe::{Allowed, Source};
use crate::error::{Error, Result};

/// `allowed_special` as Python gives it.
pub enum AllowedSpecial {
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
    pub fn allowed(&self) -> Result<Allowed<'_>> {
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
pub enum Input<'a> {
    AsItIs(Source<'a>),
    Mended(String),
}

impl<'a> Input<'a> {
    pub fn new(text: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(string) = text.cast::<PyString>() {
            return Ok(match mended(string)? {
                Cow::Borrowed(text) => Input::AsItIs(Source::Text(text)),
                Cow::Owned(text) => Input::Mended(text),
            });
        }
        match text.cast::<PyBytes>() {
            Ok(bytes) => Ok(Input::AsItIs(Source::Bytes(bytes.as_bytes()))),
            Err(_) => {
                let found = text.get_type().name()?;
                Err(PyTypeError::new_err(format!("text: found {found}, expected str or bytes")))
            }
        }
    }

    #[inline]
    pub fn source(&self) -> Source<'_> {
        match self {
            Input::AsItIs(source) => *source,
            Input::Mended(text) => Source::Text(text),
        }
    }
}

/// A `str`; one with surrogates is read as UTF-16: pairs are characters, a lone one is U+FFFD.
pub fn mended<'a>(string: &'a Bound<'_, PyString>) -> PyResult<Cow<'a, str>> {
    if let Ok(text) = string.to_str() {
        return Ok(Cow::Borrowed(text));
    }
    let utf16 = string.call_method1("encode", ("utf-16", "surrogatepass"))?;
    let mended = utf16.call_method1("decode", ("utf-16", "replace"))?;
    Ok(Cow::Owned(mended.extract()?))
}

/// Token ids as Python gives them: one, a list, or a NumPy array of integers.
pub struct Ids(pub Vec<u32>);

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
pub struct Id(pub u32);

impl<'py> FromPyObject<'_, 'py> for Id {
    type Error = PyErr;

    fn extract(id: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        id.extract().map(Id).map_err(|_: PyErr| {
            let found = id.repr().map_or_else(|_| describe(&id), |repr| repr.to_string());
            Error::argument("id", found, "an id from 0 to 2³² − 1").into()
        })
    }
}

pub fn describe(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "an object".into(), |name| name.to_string())
}
