//! Where a text may be cut in two without a change to its ids: long texts are shared out among threads
//! there, read from files in parts, and not read to their end when only the first ids are wanted.
//!
//! A *seam* is a place between a letter or number on its left and a character on its right that is none of
//! letter, number, mark and apostrophe. What becomes of the text on either side does not depend on the other:
//!
//! - **Added tokens.** Nothing that is spelled like one touches the seam, so every one that is found lies on
//!   one side, and so does the character before and after it that `single_word` asks for. The white space
//!   that `lstrip` and `rstrip` take ends at the letter or number.
//! - **Normal forms** never join or reorder across a place before a character that composes with none
//!   before it; small letters are made one character at a time. A seam of a tokenizer that normalises has
//!   characters on both sides that stay what they are, or of the same kind, in every normal form: ASCII, and
//!   what Chinese is written with. A space that is put before a text is not put before one that begins with a
//!   space: only there is a seam then.
//! - **Splits.** A split into numbers looks at one character at a time. It may cut at the seam, between a
//!   number and what is none; it joins nothing across it.
//! - **The patterns of `scan`** match at every place, and look behind at nothing: from the seam on, the
//!   pieces are those of the right side alone, if a piece ends there. One does: no pattern has a match in which
//!   a letter or number stands directly before a character of the right kind. (White space and signs only
//!   follow white space and signs, or begin a match; only the apostrophe of a contraction, or a mark,
//!   follows a letter.) For the same reason no match from the left, or attempt at one, looks past the seam: a
//!   run of white space, whose end and successor are looked at, ends at the letter or number at the latest.
//! - **Merging** sees one piece.
//!
//! Other patterns and normalisers may look anywhere; their tokenizers have no seams.

use std::ops::Range;

use super::classes::{Classes, LETTER, LOWER, NUMBER, UPPER, classes};
use super::normalize::Normalizer;
use super::pretokenize::{Behavior, Pattern, Split};
use super::tokenizer::Tokenizer;

/// The seams of a tokenizer's texts.
pub struct Seams<'a> {
    tokenizer: &'a Tokenizer,
    classes: &'static Classes,
    /// What one side of a seam must hold for an added token that touches it to be seen.
    reach: usize,
    right: Right,
}

/// What may stand on the right of a seam.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Right {
    Any,
    /// What normalising leaves; so on its left.
    Stable,
    Space,
}

impl<'a> Seams<'a> {
    /// None if the tokenizer does more than what is proved above.
    pub fn of(tokenizer: &'a Tokenizer) -> Option<Self> {
        let parts = &tokenizer.parts;
        let scans = parts.splits.iter().any(|split| matches!(split, Split::Scan(_)));
        let plain = |normalizer: &Normalizer| {
            use Normalizer::{Lowercase, Nfc, Nfd, Nfkc, Nfkd};
            matches!(normalizer, Nfc | Nfd | Nfkc | Nfkd | Lowercase)
        };
        // A token is looked for as it is spelled here; in a normalised text others may be spelled like it.
        let seen = parts.normalizers.is_empty() || !parts.added.iter().any(|token| token.normalized);
        let proved = scans
            && seen
            && parts.splits.iter().all(is_local)
            && parts.normalizers.iter().all(plain)
            && parts.rewrites.iter().all(|rewrite| matches!(rewrite, Normalizer::PrefixSpace));
        let right = match (parts.rewrites.is_empty(), parts.normalizers.is_empty()) {
            (true, true) => Right::Any,
            (true, false) => Right::Stable,
            (false, _) => Right::Space,
        };
        let reach = parts.added.iter().map(|token| token.content.len()).max().unwrap_or(0).max(4);
        proved.then(|| Seams { tokenizer, classes: classes(), reach, right })
    }

    /// The first seam in a range of a text, of which no more follows.
    pub fn first(&self, text: &[u8], range: Range<usize>) -> Option<usize> {
        (range.start..range.end.min(text.len())).find(|&place| self.is_seam(text, place))
    }

    /// The last seam of the beginning of a text, of which more may follow.
    pub fn last(&self, text: &[u8]) -> Option<usize> {
        let places = 0..text.len().saturating_sub(self.reach) + 1;
        places.rev().find(|&place| self.is_seam(text, place))
    }

    fn is_seam(&self, text: &[u8], place: usize) -> bool {
        let (left, right) = text.split_at(place);
        if let (Some(left), Some(right)) = (left.last(), right.first())
            && left.is_ascii_alphanumeric()
            && right.is_ascii_alphanumeric()
        {
            return false;
        }
        let (Some(left), Some(right)) = (last_character(left), first_character(right)) else { return false };
        let of_words = self.classes.of(right) & (LETTER | NUMBER | UPPER | LOWER) != 0 || right.is_numeric();
        self.classes.of(left) & (LETTER | NUMBER) != 0
            && !of_words
            && right != '\''
            && match self.right {
                Right::Any => true,
                Right::Stable => stays_a_letter(left) && stays_a_sign(right),
                Right::Space => stays_a_letter(left) && right == ' ',
            }
            && self.touches_no_token(text, place)
    }

    fn touches_no_token(&self, text: &[u8], place: usize) -> bool {
        let around = &text[place.saturating_sub(self.reach)..text.len().min(place + self.reach)];
        !self.tokenizer.raw.occurs_in(around) && !self.tokenizer.normalized.occurs_in(around)
    }
}

/// Whether a split may stand in the proof.
fn is_local(split: &Split) -> bool {
    match split {
        Split::Scan(_) => true,
        Split::Pattern { pattern: Pattern::Number, behavior, invert: false } => {
            matches!(behavior, Behavior::Isolated | Behavior::Contiguous)
        }
        Split::Pattern { .. } => false,
    }
}

/// Whether every normal form leaves a letter or number one; that of a unified ideograph is itself.
fn stays_a_letter(c: char) -> bool {
    c.is_ascii() || ('\u{4E00}'..='\u{9FFF}').contains(&c)
}

/// Whether every normal form leaves white space or a sign what it is, and apart from what is before it. (The wide
/// comma becomes an ASCII one.)
fn stays_a_sign(c: char) -> bool {
    c.is_ascii() || matches!(c, '。' | '、' | '，')
}

/// The character that bytes end with. One starts wherever a first byte of UTF-8 stands, whatever is before
/// it, so that this is a character of the whole too.
fn last_character(bytes: &[u8]) -> Option<char> {
    let tail = &bytes[bytes.len().saturating_sub(4)..];
    let start = tail.iter().rposition(|byte| byte & 0xC0 != 0x80)?;
    std::str::from_utf8(&tail[start..]).ok()?.chars().next()
}

/// The character that bytes begin with.
fn first_character(bytes: &[u8]) -> Option<char> {
    let head = &bytes[..bytes.len().min(4)];
    head.utf8_chunks().next()?.valid().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_at_the_ends_of_bytes() {
        assert_eq!(last_character("a漢".as_bytes()), Some('漢'));
        assert_eq!(last_character(b"\xE6\xBC"), None);
        assert_eq!(last_character(b"\xFFa"), Some('a'));
        assert_eq!(last_character(b"a\x80"), None);
        assert_eq!(first_character("🙂a".as_bytes()), Some('🙂'));
        assert_eq!(first_character(b"\x80a"), None);
        assert_eq!(first_character(b""), None);
    }
}
