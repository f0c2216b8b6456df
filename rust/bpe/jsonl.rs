//! Lines of JSON whose texts are documents.

use std::borrow::Cow;

use serde::Deserialize;

use super::batch::each_chunk;
use crate::error::Result;

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    text: Cow<'a, str>,
}

/// Lines that one thread reads one after the other.
const CHUNK: usize = 256;

/// The string "text" of each line; `None` for one that is no object with such a string, or one that only a
/// more lenient reader understands (with lone surrogates, or with two texts).
pub fn texts<'a>(lines: &[&'a [u8]]) -> Result<Vec<Option<Cow<'a, str>>>> {
    let chunks: Vec<&[&'a [u8]]> = lines.chunks(CHUNK).collect();
    let text = |line: &&'a [u8]| {
        // An array would do as well for `serde`, its first element being the first field.
        let is_object = line.trim_ascii_start().starts_with(b"{");
        let line = is_object.then(|| serde_json::from_slice::<Line<'a>>(line).ok());
        line.flatten().map(|line| line.text)
    };
    Ok(each_chunk(&chunks, |lines| Ok(lines.iter().map(text).collect::<Vec<_>>()))?.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_found_or_not() {
        let read = |line: &str| texts(&[line.as_bytes()]).unwrap().remove(0).map(Cow::into_owned);
        assert_eq!(read(r#"{"id": [1, {"text": 2}], "text": "a\né"}"#).as_deref(), Some("a\né"));
        for line in ["", "{", r#"{"text": 1}"#, r#"{"text": "\ud800"}"#, r#"["text"]"#, r#"{"text": "a"} 1"#]
        {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
