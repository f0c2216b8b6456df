//! From ids back to bytes and text.

use std::sync::Arc;

use super::spelling::Place;
use super::tokenizer::Tokenizer;

impl Tokenizer {
    /// The bytes that ids stand for. Ids without a token stand for none.
    pub fn decode_bytes(&self, ids: &[u32], skip_special_tokens: bool) -> Vec<u8> {
        let decoder = self.decoder();
        let mut place = Place::start_of_text(decoder);
        let mut out = Vec::with_capacity(ids.len() * 4);
        if decoder.joins_as_they_are() && !(skip_special_tokens && ids.iter().any(|&id| self.is_special(id)))
        {
            ids.iter().for_each(|&id| decoder.push(id, &mut out));
            return out;
        }
        for &id in ids {
            if !(skip_special_tokens && self.is_special(id)) {
                place.add(decoder, id, &mut out);
            }
        }
        out
    }

    /// The text that ids stand for; invalid UTF-8 becomes U+FFFD as in Python's `errors="replace"`.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        match String::from_utf8(self.decode_bytes(ids, skip_special_tokens)) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }
}

/// Decodes ids as they come, never giving out part of a character. What it gives, joined, is what
/// `Tokenizer::decode` gives for all the ids.
#[derive(Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    place: Place,
    /// The start of a character that is not yet whole.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let place = Place::start_of_text(tokenizer.decoder());
        StreamDecoder { tokenizer, skip_special_tokens, place, pending: Vec::new() }
    }

    /// A decoder of what follows other text, so that a leading space stays.
    pub fn continuing(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool) -> Self {
        let place = Place { first: false, spaces: 0 };
        StreamDecoder { tokenizer, skip_special_tokens, place, pending: Vec::new() }
    }

    /// The text that is certain once this id has come.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special_tokens && self.tokenizer.is_special(id) {
            return String::new();
        }
        self.place.add(self.tokenizer.decoder(), id, &mut self.pending);
        let mut text = String::new();
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() || (done + invalid.len() == self.pending.len() && is_cut_short(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.pending.drain(..done);
        text
    }

    /// The rest: U+FFFD if the last character never became whole.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether bytes are the start of a character that more bytes could complete.
fn is_cut_short(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
