//! Normalisation of a text before it is cut into pieces, keeping track of where each byte came from.

use std::borrow::Cow;
use std::ops::Range;

use unicode_normalization_alignments::UnicodeNormalization;

use super::pretokenize::Pattern;

/// A change to a text; the names are those of tokenizer.json.
pub enum Normalizer {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    /// Text put before every text that is not empty.
    Prepend(String),
    Replace {
        pattern: Pattern,
        content: String,
    },
    /// White space taken from the ends.
    Strip {
        left: bool,
        right: bool,
    },
    /// `Metaspace`: a mark for every space, and one more in front where there is none.
    Metaspace {
        mark: char,
        prepend: Prepend,
    },
    /// `ByteLevel`'s `add_prefix_space`: a space in front where there is none.
    PrefixSpace,
}

/// Which texts `Metaspace` puts a mark in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepend {
    Always,
    /// Only the one that starts the whole text.
    First,
    Never,
}

/// A part of the caller's text, perhaps changed.
pub struct Text<'a> {
    pub text: Cow<'a, str>,
    /// Where the unchanged text starts in the caller's.
    start: usize,
    /// For each byte of a changed text, the range of the caller's text that it stands for; kept only
    /// if somebody will ask.
    origins: Option<Vec<(usize, usize)>>,
    tracked: bool,
}

impl<'a> Text<'a> {
    /// The part of the caller's text that starts at byte `start`.
    pub fn new(text: &'a str, start: usize, tracked: bool) -> Self {
        Text { text: Cow::Borrowed(text), start, origins: None, tracked }
    }

    /// A part of this text.
    pub fn slice(&self, range: Range<usize>) -> Text<'_> {
        Text {
            text: Cow::Borrowed(&self.text[range.clone()]),
            start: self.start + range.start,
            origins: self.origins.as_ref().map(|origins| origins[range].to_vec()),
            tracked: self.tracked,
        }
    }

    /// The range of the caller's text that a range of bytes of this one stands for, widened to whole
    /// characters. Only for a tracked text.
    pub fn origin(&self, range: Range<usize>) -> Range<usize> {
        match &self.origins {
            Some(origins) if range.is_empty() => {
                let at = origins.get(range.start).map_or(self.start, |origin| origin.0);
                at..at
            }
            Some(origins) => origins[range.start].0..origins[range.end - 1].1,
            None => {
                let boundary = |at: &usize| self.text.is_char_boundary(*at);
                let start = (0..=range.start).rev().find(boundary).unwrap_or(0);
                let end = (range.end..=self.text.len()).find(boundary).unwrap_or(self.text.len());
                self.start + start..self.start + end
            }
        }
    }

    /// Where ranges of the caller's text lie in this one.
    pub fn places_of(&self, ranges: &[Range<usize>]) -> Vec<Range<usize>> {
        let within = |range: &Range<usize>| {
            let (start, end) = match &self.origins {
                Some(origins) => (
                    origins.partition_point(|origin| origin.1 <= range.start),
                    origins.partition_point(|origin| origin.0 < range.end),
                ),
                None => (
                    range.start.saturating_sub(self.start).min(self.text.len()),
                    range.end.saturating_sub(self.start).min(self.text.len()),
                ),
            };
            start..end.max(start)
        };
        ranges.iter().map(within).filter(|range| !range.is_empty()).collect()
    }

    /// Applies changes in order. The error is that of a pattern.
    pub fn normalize(&mut self, normalizers: &[Normalizer]) -> crate::error::Result<()> {
        normalizers.iter().try_for_each(|normalizer| self.apply(normalizer))
    }

    fn apply(&mut self, normalizer: &Normalizer) -> crate::error::Result<()> {
        match normalizer {
            // ASCII is in every normal form.
            Normalizer::Nfc | Normalizer::Nfd | Normalizer::Nfkc | Normalizer::Nfkd
                if self.text.is_ascii() => {}
            Normalizer::Nfc => self.transform(|text| text.nfc().collect()),
            Normalizer::Nfd => self.transform(|text| text.nfd().collect()),
            Normalizer::Nfkc => self.transform(|text| text.nfkc().collect()),
            Normalizer::Nfkd => self.transform(|text| text.nfkd().collect()),
            Normalizer::Lowercase => self.transform(|text| {
                let small = |c: char| c.to_lowercase().enumerate().map(|(i, c)| (c, isize::from(i > 0)));
                text.chars().flat_map(small).collect()
            }),
            Normalizer::Prepend(prefix) => self.prepend(prefix),
            Normalizer::PrefixSpace if self.text.starts_with(' ') => {}
            Normalizer::PrefixSpace => self.prepend(" "),
            Normalizer::Replace { pattern, content } => self.replace(pattern, content)?,
            Normalizer::Strip { left, right } => {
                let text = &*self.text;
                let start = if *left { text.len() - text.trim_start().len() } else { 0 };
                let end = if *right { text.trim_end().len().max(start) } else { text.len() };
                let kept = self.slice(start..end);
                *self = Text {
                    text: Cow::Owned(kept.text.into_owned()),
                    start: kept.start,
                    origins: kept.origins,
                    tracked: kept.tracked,
                };
            }
            Normalizer::Metaspace { mark, prepend } => {
                let mut buffer = [0; 4];
                let mark = &*mark.encode_utf8(&mut buffer);
                let first = self.starts_at() == 0;
                self.replace(&Pattern::Literal(" ".into()), mark)?;
                let wanted = *prepend == Prepend::Always || (*prepend == Prepend::First && first);
                if wanted && !self.text.starts_with(mark) {
                    self.prepend(mark);
                }
            }
        }
        Ok(())
    }

    /// Where this text starts in the caller's.
    fn starts_at(&self) -> usize {
        self.origins.as_ref().and_then(|origins| origins.first()).map_or(self.start, |origin| origin.0)
    }

    /// The origin of every byte of the text as it stands.
    fn all_origins(&self) -> Vec<(usize, usize)> {
        match &self.origins {
            Some(origins) => origins.clone(),
            None => self
                .text
                .char_indices()
                .flat_map(|(at, c)| {
                    let start = self.start + at;
                    std::iter::repeat_n((start, start + c.len_utf8()), c.len_utf8())
                })
                .collect(),
        }
    }

    /// Rewrites the text as characters, each with a `change`: 0 for one that takes the place of the
    /// next old character, −n for one that takes the place of the next and swallows n more, 1 for a
    /// new one, which shares the origin of the old character before it.
    fn transform(&mut self, changed: impl FnOnce(&str) -> Vec<(char, isize)>) {
        let changed = changed(&self.text);
        let text: String = changed.iter().map(|&(c, _)| c).collect();
        if text == *self.text {
            return;
        }
        if self.tracked {
            let old = self.all_origins();
            let mut old_chars = self.text.chars();
            let mut at = 0;
            let mut origins = Vec::with_capacity(text.len());
            for (c, change) in changed {
                let origin = match change > 0 {
                    true => old.get(at.max(1) - 1),
                    false => old.get(at),
                };
                origins.extend(std::iter::repeat_n(origin.copied().unwrap_or_default(), c.len_utf8()));
                if change <= 0 {
                    let replaced = old_chars.by_ref().take(1 + change.unsigned_abs());
                    at += replaced.map(char::len_utf8).sum::<usize>();
                }
            }
            self.origins = Some(origins);
        }
        self.text = Cow::Owned(text);
    }

    /// Puts text in front, which shares the origin of the first character. Empty text stays empty.
    fn prepend(&mut self, prefix: &str) {
        if self.text.is_empty() {
            return;
        }
        if self.tracked {
            let old = self.all_origins();
            let mut origins = vec![old[0]; prefix.len()];
            origins.extend(old);
            self.origins = Some(origins);
        }
        self.text = Cow::Owned(format!("{prefix}{}", self.text));
    }

    /// Replaces every match; what comes in shares the origin of the last character that goes out.
    fn replace(&mut self, pattern: &Pattern, content: &str) -> crate::error::Result<()> {
        let mut found = Vec::new();
        pattern.each_match(&self.text, |range| found.push(range))?;
        if found.is_empty() {
            return Ok(());
        }
        let old = self.tracked.then(|| self.all_origins());
        let mut text = String::with_capacity(self.text.len());
        let mut origins = Vec::new();
        let mut done = 0;
        for range in found {
            text.push_str(&self.text[done..range.start]);
            text.push_str(content);
            if let Some(old) = &old {
                origins.extend_from_slice(&old[done..range.start]);
                let origin = old.get(range.end.max(1) - 1).copied().unwrap_or_default();
                origins.extend(std::iter::repeat_n(origin, content.len()));
            }
            done = range.end;
        }
        text.push_str(&self.text[done..]);
        if let Some(old) = &old {
            origins.extend_from_slice(&old[done..]);
        }
        self.origins = old.is_some().then_some(origins);
        self.text = Cow::Owned(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_follow_the_characters() {
        let mut text = Text::new("e\u{301} ﬁ", 10, true);
        text.normalize(&[Normalizer::Nfkc, Normalizer::Prepend("__".into())]).unwrap();
        assert_eq!(text.text, "__é fi");
        assert_eq!(text.origin(0..2), 10..11);
        assert_eq!(text.origin(2..4), 10..11);
        assert_eq!(text.origin(4..5), 13..14);
        assert_eq!(text.origin(5..7), 14..17);
    }

    #[test]
    fn an_unchanged_text_widens_to_characters() {
        let text = Text::new("é漢", 3, true);
        assert_eq!(text.origin(0..1), 3..5);
        assert_eq!(text.origin(1..3), 3..8);
    }
}
