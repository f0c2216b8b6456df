//! A text as a caller has it.

use std::ops::Range;

/// UTF-8, or bytes that need not be.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'a> Source<'a> {
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Source::Text(text) => text.as_bytes(),
            Source::Bytes(bytes) => bytes,
        }
    }

    pub fn len(self) -> usize {
        self.bytes().len()
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// A part. One that cuts a character of a `Text` in two is bytes.
    pub fn part(self, range: Range<usize>) -> Source<'a> {
        match self {
            Source::Text(text) if text.is_char_boundary(range.start) && text.is_char_boundary(range.end) => {
                Source::Text(&text[range])
            }
            _ => Source::Bytes(&self.bytes()[range]),
        }
    }
}
