//! Pre-tokenisation: cutting a text into the pieces that are merged one by one.
//!
//! A pre-tokeniser is a row of splits, each of which cuts the pieces of the one before it. A split
//! sees a piece as if it were the whole text, so that `(?!\S)` and `$` hold at its end.

use std::ops::Range;

use super::scan::Scanner;
use crate::error::{Error, Result};

/// What becomes of the matches of a pattern; the names are those of tokenizer.json.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    /// Matches are dropped.
    Removed,
    /// Each match is a piece.
    Isolated,
    /// A match ends the piece before it.
    MergedWithPrevious,
    /// A match begins the piece after it.
    MergedWithNext,
    /// Adjacent matches are one piece.
    Contiguous,
}

/// What a split looks for.
pub enum Pattern {
    Literal(String),
    /// `char::is_numeric`: `\p{N}`.
    Number,
    /// Without look-around: linear in the text.
    Regex(regex::Regex),
    /// With look-around: may backtrack, up to a limit.
    Fancy(Box<fancy_regex::Regex>),
}

/// One step of a pre-tokeniser.
pub enum Split {
    Scan(Scanner),
    Pattern {
        pattern: Pattern,
        behavior: Behavior,
        /// Whether what lies between the matches counts as the matches.
        invert: bool,
    },
}

/// Steps that one match may backtrack; a pattern that needs more is refused for this text.
const BACKTRACK_LIMIT: usize = 1_000_000;

/// The greatest size of a compiled regular expression, in bytes.
const SIZE_LIMIT: usize = 16 << 20;

impl Pattern {
    /// Compiles a regular expression; `$` and `^` hold at line breaks if `lines`, as in Oniguruma.
    /// The error is the compiler's message.
    pub fn compile(pattern: &str, lines: bool) -> std::result::Result<Self, String> {
        let simple = regex::RegexBuilder::new(pattern).multi_line(lines).size_limit(SIZE_LIMIT).build();
        if let Ok(regex) = simple {
            return Ok(Pattern::Regex(regex));
        }
        let pattern = if lines { format!("(?m:{pattern})") } else { pattern.to_owned() };
        fancy_regex::RegexBuilder::new(&pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(SIZE_LIMIT)
            .build()
            .map(|regex| Pattern::Fancy(Box::new(regex)))
            .map_err(|error| error.to_string())
    }

    /// Calls `found` with every match, in order.
    pub fn each_match(&self, text: &str, mut found: impl FnMut(Range<usize>)) -> Result<()> {
        match self {
            Pattern::Literal(literal) => {
                text.match_indices(literal).for_each(|(at, part)| found(at..at + part.len()));
            }
            Pattern::Number => {
                text.match_indices(char::is_numeric).for_each(|(at, part)| found(at..at + part.len()));
            }
            Pattern::Regex(regex) => regex.find_iter(text).for_each(|found_at| found(found_at.range())),
            Pattern::Fancy(regex) => {
                for found_at in regex.find_iter(text) {
                    let found_at = found_at.map_err(|error| {
                        Error::argument(
                            "pattern",
                            format!("{error} on a text of {} bytes", text.len()),
                            format!("a pattern that backtracks fewer than {BACKTRACK_LIMIT} steps"),
                        )
                    })?;
                    found(found_at.range());
                }
            }
        }
        Ok(())
    }
}

impl Split {
    /// A split into the matches of a regular expression and what lies between them: by the scanner
    /// of the pattern if it has one. `lines` is as in `Pattern::compile`.
    pub fn isolated(pattern: &str, lines: bool) -> std::result::Result<Self, String> {
        if let Some(scanner) = Scanner::of(pattern) {
            return Ok(Split::Scan(scanner));
        }
        let pattern = Pattern::compile(pattern, lines)?;
        Ok(Split::Pattern { pattern, behavior: Behavior::Isolated, invert: false })
    }

    pub fn digits(individual: bool) -> Self {
        let behavior = if individual { Behavior::Isolated } else { Behavior::Contiguous };
        Split::Pattern { pattern: Pattern::Number, behavior, invert: false }
    }

    /// Calls `piece` with each non-empty piece of the text, in order.
    fn each_piece(&self, text: &str, piece: &mut dyn FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        match self {
            Split::Scan(scanner) => scanner.each_piece(text, piece),
            Split::Pattern { pattern, behavior, invert } => {
                let mut parts = Vec::new();
                let mut done = 0;
                pattern.each_match(text, |found| {
                    if found.start > done {
                        parts.push((done..found.start, *invert));
                    }
                    if !found.is_empty() {
                        parts.push((found.clone(), !invert));
                    }
                    done = found.end;
                })?;
                if done < text.len() {
                    parts.push((done..text.len(), *invert));
                }
                behavior.arrange(parts).into_iter().try_for_each(piece)
            }
        }
    }
}

impl Behavior {
    /// The pieces that come of adjacent parts, each a match or not.
    fn arrange(self, parts: Vec<(Range<usize>, bool)>) -> Vec<Range<usize>> {
        let mut pieces: Vec<Range<usize>> = Vec::with_capacity(parts.len());
        let mut previous_matched = None;
        for (part, matched) in parts {
            let joins = match self {
                Behavior::Removed if matched => continue,
                Behavior::Removed | Behavior::Isolated => false,
                Behavior::Contiguous => previous_matched == Some(matched),
                Behavior::MergedWithPrevious => matched && previous_matched == Some(false),
                Behavior::MergedWithNext => !matched && previous_matched == Some(true),
            };
            match pieces.last_mut() {
                Some(last) if joins => last.end = part.end,
                _ => pieces.push(part),
            }
            previous_matched = Some(matched);
        }
        pieces
    }
}

/// Calls `piece` with each piece that the splits, one after the other, cut the text into.
pub fn each_piece(
    splits: &[Split],
    text: &str,
    piece: &mut impl FnMut(Range<usize>) -> Result<()>,
) -> Result<()> {
    match splits {
        // The usual case has a loop of its own, into which `piece` is compiled.
        [Split::Scan(scanner)] => scanner.each_piece(text, piece),
        _ => each_piece_of(splits, text, piece),
    }
}

fn each_piece_of(
    splits: &[Split],
    text: &str,
    piece: &mut dyn FnMut(Range<usize>) -> Result<()>,
) -> Result<()> {
    match splits {
        [] if text.is_empty() => Ok(()),
        [] => piece(0..text.len()),
        [last] => last.each_piece(text, piece),
        [first, rest @ ..] => first.each_piece(text, &mut |outer| {
            each_piece_of(rest, &text[outer.clone()], &mut |inner| {
                piece(outer.start + inner.start..outer.start + inner.end)
            })
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'a>(splits: &[Split], text: &'a str) -> Vec<&'a str> {
        let mut pieces = Vec::new();
        each_piece(splits, text, &mut |piece| {
            pieces.push(&text[piece]);
            Ok(())
        })
        .unwrap();
        pieces
    }

    #[test]
    fn behaviors_are_those_of_the_documentation() {
        let cut = |behavior| {
            let pattern = Pattern::Literal("-".into());
            pieces(&[Split::Pattern { pattern, behavior, invert: false }], "the-final--countdown")
        };
        assert_eq!(cut(Behavior::Removed), ["the", "final", "countdown"]);
        assert_eq!(cut(Behavior::Isolated), ["the", "-", "final", "-", "-", "countdown"]);
        assert_eq!(cut(Behavior::MergedWithPrevious), ["the-", "final-", "-", "countdown"]);
        assert_eq!(cut(Behavior::MergedWithNext), ["the", "-final", "-", "-countdown"]);
        assert_eq!(cut(Behavior::Contiguous), ["the", "-", "final", "--", "countdown"]);
    }

    #[test]
    fn a_split_sees_only_the_piece_of_the_one_before() {
        let splits = [Split::digits(true), Split::Scan(Scanner::Gpt2)];
        assert_eq!(pieces(&splits, "a  12 b"), ["a", "  ", "1", "2", " b"]);
    }

    #[test]
    fn endless_backtracking_is_an_error() {
        let split = Split::isolated(r"(?:(?=a)a|aa|a)*b", false).unwrap();
        let text = "a".repeat(64);
        let error = each_piece(&[split], &text, &mut |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("pattern"), "{error}");
    }
}
