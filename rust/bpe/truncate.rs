//! The beginning of a text that has so many ids.

use super::seams::Seams;
use super::source::Source;
use super::special::Allowed;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// What is read at first holds more ids than are wanted of most texts.
const BYTES_AN_ID: usize = 8;
const LEAST_BYTES: usize = 1 << 10;
/// Parts grow up to here.
const MOST_BYTES: usize = 1 << 16;

impl Tokenizer {
    /// The part of a text that its first `room` ids stand for, what is put around it not counted. No more of
    /// the text is read than that takes, if it has seams. A character that only a part of the ids stands
    /// for is left out; so is what follows where the part alone would have more than `room` ids.
    pub fn truncate<'a>(&self, text: &'a str, mut room: usize, allowed: Allowed<'_>) -> Result<&'a str> {
        let seams = Seams::of(self);
        let mut ids = Vec::new();
        let mut start = 0;
        let mut bytes = room.saturating_mul(BYTES_AN_ID).clamp(LEAST_BYTES, MOST_BYTES);
        loop {
            let seam =
                seams.as_ref().and_then(|seams| seams.first(text.as_bytes(), start + bytes..text.len()));
            let end = seam.unwrap_or(text.len());
            let part = &text[start..end];
            ids.clear();
            self.encode_onto(&mut ids, Source::Text(part), allowed)?;
            if ids.len() > room {
                return Ok(&text[..start + self.beginning(part, room, allowed)?.len()]);
            }
            if end == text.len() {
                return Ok(text);
            }
            room -= ids.len();
            start = end;
            bytes = MOST_BYTES.min(2 * bytes);
        }
    }

    /// As `truncate` of a text of which this is the beginning, if it is enough to tell.
    pub fn truncate_head<'a>(
        &self,
        head: &'a str,
        room: usize,
        allowed: Allowed<'_>,
    ) -> Result<Option<&'a str>> {
        let Some(seam) = Seams::of(self).and_then(|seams| seams.last(head.as_bytes())) else {
            return Ok(None);
        };
        let beginning = self.truncate(&head[..seam], room, allowed)?;
        Ok((beginning.len() < seam).then_some(beginning))
    }

    /// As `truncate`, all of the text read.
    fn beginning<'a>(&self, mut text: &'a str, room: usize, allowed: Allowed<'_>) -> Result<&'a str> {
        loop {
            let starts = self.starts(text, allowed)?;
            let Some(&next) = starts.get(room) else { return Ok(text) };
            // The beginning of a text may be cut otherwise than with what follows, and have more ids.
            let shorter = (0..text.len().min(next + 1)).rev().find(|&end| text.is_char_boundary(end));
            text = &text[..shorter.unwrap_or(0)];
        }
    }
}
