//! Added tokens: words of the tokenizer that are found in a text before anything else is done to it.
//!
//! A *special* token steers the model (`<|im_start|>`). Text from a user must not turn into one, so
//! every call says which added tokens it allows, and a text may hold parts that are not trusted.

use std::ops::Range;

use aho_corasick::{AhoCorasick, Input};

use super::sentencepiece::longest_first;
use crate::error::{Error, Result};

/// One added token, with the flags of tokenizer.json.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    pub id: u32,
    pub content: String,
    /// Steers the model; `decode(skip_special_tokens=True)` leaves it out.
    pub special: bool,
    /// Whether it is looked for in the normalised text, itself normalised.
    pub normalized: bool,
    /// Whether it takes the white space on its left with it.
    pub lstrip: bool,
    /// Whether it takes the white space on its right with it.
    pub rstrip: bool,
    /// Whether it must not touch a letter, digit or underscore.
    pub single_word: bool,
}

impl AddedToken {
    /// A token that is found wherever it is spelled.
    pub fn new(id: u32, content: impl Into<String>, special: bool) -> Self {
        AddedToken {
            id,
            content: content.into(),
            special,
            normalized: false,
            lstrip: false,
            rstrip: false,
            single_word: false,
        }
    }

    /// A token of white space only lays a text out and so is safe to find in any text.
    fn is_layout(&self) -> bool {
        !self.special && self.content.chars().all(char::is_whitespace)
    }
}

/// Which added tokens a text may hold.
#[derive(Clone, Copy, Debug)]
pub enum Allowed<'a> {
    All,
    /// None but those made of white space only.
    None,
    /// These, and those made of white space only.
    Only(&'a [String]),
}

/// A part of a text: an added token, or text between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub range: Range<usize>,
    pub token: Option<u32>,
}

/// Finds one set of added tokens.
#[derive(Default)]
struct Finder {
    automaton: Option<AhoCorasick>,
    tokens: Vec<AddedToken>,
}

impl Finder {
    fn new<'a>(tokens: impl Iterator<Item = &'a AddedToken>) -> std::result::Result<Self, String> {
        let tokens: Vec<AddedToken> = tokens.filter(|token| !token.content.is_empty()).cloned().collect();
        if tokens.is_empty() {
            return Ok(Finder::default());
        }
        let words: Vec<&str> = tokens.iter().map(|token| token.content.as_str()).collect();
        Ok(Finder { automaton: Some(longest_first(&words)?), tokens })
    }

    /// Calls `part` with the parts that tokens found in `text[range]` end. What lies between them, or before the
    /// first from `done` on, is text; `done` is where the last token ends.
    fn each_part(
        &self,
        text: &str,
        range: Range<usize>,
        done: &mut usize,
        part: &mut impl FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        let Some(automaton) = &self.automaton else { return Ok(()) };
        for found in automaton.find_iter(Input::new(text).range(range)) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if token.single_word && !stands_alone(text, start..end) {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(*done);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            // A token found in the white space that the one before took counts too: `tokenizers`
            // looks for all tokens first and lets them take white space later.
            if *done < start {
                part(Part { range: *done..start, token: None })?;
            }
            part(Part { range: start..end, token: Some(token.id) })?;
            *done = end;
        }
        Ok(())
    }
}

/// Whether neither side of a range touches a character of a word.
fn stands_alone(text: &str, range: Range<usize>) -> bool {
    let word = regex_syntax::is_word_character;
    !text[..range.start].chars().next_back().is_some_and(word)
        && !text[range.end..].chars().next().is_some_and(word)
}

/// One pass over a text: the tokens found as they are, or those found after normalisation.
#[derive(Default)]
pub struct Pass {
    all: Finder,
    layout: Finder,
}

impl Pass {
    /// The error is what `aho_corasick` says of the tokens.
    pub fn new(tokens: &[AddedToken]) -> std::result::Result<Self, String> {
        Ok(Pass {
            all: Finder::new(tokens.iter())?,
            layout: Finder::new(tokens.iter().filter(|token| token.is_layout()))?,
        })
    }

    /// Whether any of the tokens is spelled anywhere in a part of a text.
    pub fn occurs_in(&self, part: &[u8]) -> bool {
        self.all.automaton.as_ref().is_some_and(|automaton| automaton.is_match(part))
    }

    /// Calls `part` with the parts of a text, in order and without gaps, until it fails. Byte ranges that are
    /// not trusted hold no added token but white space; every other range may hold those that `allowed` names.
    pub fn each_part(
        &self,
        text: &str,
        allowed: Allowed<'_>,
        untrusted: &[Range<usize>],
        mut part: impl FnMut(Part) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        if self.all.automaton.is_some() && !text.is_empty() {
            let some;
            let trusted = match allowed {
                Allowed::All => &self.all,
                Allowed::None => &self.layout,
                Allowed::Only(names) => {
                    let named = |token: &&AddedToken| names.contains(&token.content) || token.is_layout();
                    some = Finder::new(self.all.tokens.iter().filter(named)).map_err(|message| {
                        Error::argument("allowed_special", message, "fewer or shorter tokens")
                    })?;
                    &some
                }
            };
            let mut from = 0;
            for range in untrusted {
                trusted.each_part(text, from..range.start, &mut done, &mut part)?;
                self.layout.each_part(text, range.clone(), &mut done, &mut part)?;
                from = range.end;
            }
            trusted.each_part(text, from..text.len(), &mut done, &mut part)?;
        }
        match done < text.len() {
            true => part(Part { range: done..text.len(), token: None }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'a>(
        tokens: &[AddedToken],
        text: &'a str,
        allowed: Allowed<'_>,
        untrusted: &[Range<usize>],
    ) -> Vec<(&'a str, Option<u32>)> {
        let mut parts = Vec::new();
        let part = |part: Part| {
            parts.push((&text[part.range], part.token));
            Ok(())
        };
        Pass::new(tokens).unwrap().each_part(text, allowed, untrusted, part).unwrap();
        parts
    }

    #[test]
    fn the_longest_of_the_leftmost_tokens_is_found() {
        let tokens = [AddedToken::new(1, "<a>", true), AddedToken::new(2, "<a>b", true)];
        assert_eq!(
            split(&tokens, "x<a>b<a>", Allowed::All, &[]),
            [("x", None), ("<a>b", Some(2)), ("<a>", Some(1))]
        );
        assert_eq!(
            split(&tokens, "<a>b", Allowed::Only(&["<a>".into()]), &[]),
            [("<a>", Some(1)), ("b", None)]
        );
    }

    #[test]
    fn untrusted_text_holds_no_token_and_takes_part_in_none() {
        let tokens = [
            AddedToken::new(1, "<a>", true),
            AddedToken::new(2, "<a>b", true),
            AddedToken::new(3, "  ", false),
        ];
        let text = "<a>b<a>  <a>";
        let untrusted = 3..9;
        assert_eq!(
            split(&tokens, text, Allowed::All, std::slice::from_ref(&untrusted)),
            [("<a>", Some(1)), ("b<a>", None), ("  ", Some(3)), ("<a>", Some(1))]
        );
        assert_eq!(split(&tokens, "a<a>", Allowed::None, &[]), [("a<a>", None)]);
    }

    #[test]
    fn flags_take_white_space_and_refuse_parts_of_words() {
        let both = AddedToken { lstrip: true, rstrip: true, ..AddedToken::new(1, "<a>", true) };
        assert_eq!(
            split(&[both], "x <a> \n<a> y", Allowed::All, &[]),
            [("x", None), (" <a> \n", Some(1)), ("<a> ", Some(1)), ("y", None)]
        );
        let word = AddedToken { single_word: true, ..AddedToken::new(1, "ab", false) };
        assert_eq!(split(&[word], "ab abé_ab", Allowed::All, &[]), [("ab", Some(1)), (" abé_ab", None)]);
    }
}
