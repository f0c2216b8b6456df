//! The components of tokenizer.json: normalizer, pre_tokenizer, post_processor, decoder.

use super::super::normalize::{Normalizer, Prepend};
use super::super::offsets::Trim;
use super::super::pretokenize::{Behavior, Pattern, Split};
use super::super::scan::Scanner;
use super::super::spelling::{Spelling, Start};
use super::super::tokenizer::PostProcessor;
use super::super::vocab::Vocab;
use super::node::Node;
use crate::error::{Error, Result};

/// Adds what a normalizer does to `out`.
pub fn normalizer(node: &Node<'_>, out: &mut Vec<Normalizer>) -> Result<()> {
    match node.kind()? {
        "Sequence" => {
            node.only(&["normalizers"])?;
            return node.member("normalizers")?.items()?.iter().try_for_each(|item| normalizer(item, out));
        }
        "NFC" => out.push(Normalizer::Nfc),
        "NFD" => out.push(Normalizer::Nfd),
        "NFKC" => out.push(Normalizer::Nfkc),
        "NFKD" => out.push(Normalizer::Nfkd),
        "Lowercase" => out.push(Normalizer::Lowercase),
        "Prepend" => {
            node.only(&["prepend"])?;
            out.push(Normalizer::Prepend(node.member("prepend")?.str()?.to_owned()));
            return Ok(());
        }
        "Replace" => {
            node.only(&["pattern", "content"])?;
            let content = node.member("content")?.str()?.to_owned();
            out.push(Normalizer::Replace { pattern: pattern(&node.member("pattern")?)?, content });
            return Ok(());
        }
        "Strip" => {
            node.only(&["strip_left", "strip_right"])?;
            out.push(Normalizer::Strip {
                left: node.member("strip_left")?.bool()?,
                right: node.member("strip_right")?.bool()?,
            });
            return Ok(());
        }
        other => {
            let known = "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip";
            return Err(node.unknown(other, known));
        }
    }
    node.only(&[])
}

/// `{"String": …}` or `{"Regex": …}`.
fn pattern(node: &Node<'_>) -> Result<Pattern> {
    match node.members()?.as_slice() {
        [("String", literal)] => match literal.str()? {
            "" => Err(literal.fail("\"\"", "a string that is not empty")),
            text => Ok(Pattern::Literal(text.to_owned())),
        },
        [("Regex", regex)] => {
            // Oniguruma, for which these patterns are written, lets `$` hold at line breaks.
            Pattern::compile(regex.str()?, true)
                .map_err(|message| regex.fail(message, "a regular expression"))
        }
        _ => Err(node.fail("another kind of pattern", "{\"String\": …} or {\"Regex\": …}")),
    }
}

/// What a pre-tokeniser does.
#[derive(Default)]
pub struct PreTokenizer {
    pub rewrites: Vec<Normalizer>,
    pub splits: Vec<Split>,
    /// Whether it spells pieces in the byte alphabet.
    pub byte_level: bool,
}

pub fn pre_tokenizer(node: &Node<'_>, out: &mut PreTokenizer) -> Result<()> {
    if out.byte_level {
        return Err(node.fail("a step after ByteLevel", "ByteLevel to be the last step"));
    }
    // Steps that change the text see whole texts only.
    let first = |out: &PreTokenizer| match out.splits.is_empty() && out.rewrites.is_empty() {
        true => Ok(()),
        false => Err(node.fail("a step that changes the text after another step", "it to be the first")),
    };
    match node.kind()? {
        "Sequence" => {
            node.only(&["pretokenizers"])?;
            node.member("pretokenizers")?.items()?.iter().try_for_each(|item| pre_tokenizer(item, out))
        }
        "ByteLevel" => {
            node.only(&["add_prefix_space", "trim_offsets", "use_regex"])?;
            if node.bool_or("add_prefix_space", true)? {
                first(out)?;
                out.rewrites.push(Normalizer::PrefixSpace);
            }
            if node.bool_or("use_regex", true)? {
                out.splits.push(Split::Scan(Scanner::Gpt2));
            }
            out.byte_level = true;
            Ok(())
        }
        "Digits" => {
            node.only(&["individual_digits"])?;
            out.splits.push(Split::digits(node.bool_or("individual_digits", false)?));
            Ok(())
        }
        "Split" => {
            node.only(&["pattern", "behavior", "invert"])?;
            out.splits.push(split(node)?);
            Ok(())
        }
        "Metaspace" => {
            node.only(&["replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"])?;
            first(out)?;
            let (mark, prepend) = metaspace(node)?;
            out.rewrites.push(Normalizer::Metaspace { mark, prepend });
            if node.bool_or("split", true)? {
                out.splits.push(Split::Pattern {
                    pattern: Pattern::Literal(mark.to_string()),
                    behavior: Behavior::MergedWithNext,
                    invert: false,
                });
            }
            Ok(())
        }
        other => Err(node.unknown(other, "Sequence, ByteLevel, Digits, Split, Metaspace")),
    }
}

fn split(node: &Node<'_>) -> Result<Split> {
    let behavior = node.member("behavior")?;
    let behavior = match behavior.str()? {
        "Removed" => Behavior::Removed,
        "Isolated" => Behavior::Isolated,
        "MergedWithPrevious" => Behavior::MergedWithPrevious,
        "MergedWithNext" => Behavior::MergedWithNext,
        "Contiguous" => Behavior::Contiguous,
        other => {
            let known = "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous";
            return Err(behavior.fail(format!("{other:?}"), format!("one of {known}")));
        }
    };
    let invert = node.bool_or("invert", false)?;
    let of = node.member("pattern")?;
    // The known patterns match everywhere, so isolating their matches and removing what lies between
    // them are the same.
    let everything = matches!((behavior, invert), (Behavior::Isolated, false) | (Behavior::Removed, true));
    if let (true, Some(regex)) = (everything, of.optional("Regex")?)
        && let Some(scanner) = Scanner::of(regex.str()?)
    {
        return Ok(Split::Scan(scanner));
    }
    Ok(Split::Pattern { pattern: pattern(&of)?, behavior, invert })
}

/// The mark and the scheme of a `Metaspace`; `add_prefix_space` is the older way to say the scheme.
fn metaspace(node: &Node<'_>) -> Result<(char, Prepend)> {
    let mark = node.member("replacement")?.char()?;
    let scheme = match node.optional("prepend_scheme")? {
        None => Prepend::Always,
        Some(scheme) => match scheme.str()? {
            "always" => Prepend::Always,
            "first" => Prepend::First,
            "never" => Prepend::Never,
            other => return Err(scheme.fail(format!("{other:?}"), "always, first or never")),
        },
    };
    match node.optional("add_prefix_space")? {
        Some(flag)
            if !flag.bool()? && scheme == Prepend::Always && node.optional("prepend_scheme")?.is_none() =>
        {
            Ok((mark, Prepend::Never))
        }
        Some(flag) if !flag.bool()? && scheme != Prepend::Never => {
            Err(flag.fail("false", "what prepend_scheme says"))
        }
        _ => Ok((mark, scheme)),
    }
}

pub fn post_processor(node: &Node<'_>, vocab: &Vocab, out: &mut PostProcessor) -> Result<()> {
    match node.kind()? {
        "Sequence" => {
            node.only(&["processors"])?;
            node.member("processors")?.items()?.iter().try_for_each(|item| post_processor(item, vocab, out))
        }
        "ByteLevel" => {
            node.only(&["add_prefix_space", "trim_offsets", "use_regex"])?;
            trim(node, out)
        }
        "RobertaProcessing" => {
            node.only(&["sep", "cls", "trim_offsets", "add_prefix_space"])?;
            trim(node, out)?;
            surround(node, vec![pair(node, "cls", vocab)?], vec![pair(node, "sep", vocab)?], out)
        }
        "BertProcessing" => {
            node.only(&["sep", "cls"])?;
            surround(node, vec![pair(node, "cls", vocab)?], vec![pair(node, "sep", vocab)?], out)
        }
        "TemplateProcessing" => {
            node.only(&["single", "pair", "special_tokens"])?;
            template(node, vocab, out)
        }
        other => {
            let known = "Sequence, ByteLevel, RobertaProcessing, BertProcessing, TemplateProcessing";
            Err(node.unknown(other, known))
        }
    }
}

fn trim(node: &Node<'_>, out: &mut PostProcessor) -> Result<()> {
    let add_prefix_space = node.bool_or("add_prefix_space", true)?;
    if !node.bool_or("trim_offsets", true)? {
        return Ok(());
    }
    if out.trim.is_some() || !out.prefix.is_empty() || !out.suffix.is_empty() {
        return Err(node.fail("a second step that trims offsets, or one after a template", "one, first"));
    }
    out.trim = Some(Trim { add_prefix_space });
    Ok(())
}

/// Puts ids around what earlier steps put there.
fn surround(node: &Node<'_>, prefix: Vec<u32>, suffix: Vec<u32>, out: &mut PostProcessor) -> Result<()> {
    if !out.prefix.is_empty() || !out.suffix.is_empty() {
        return Err(node.fail("a second step that adds tokens", "one"));
    }
    out.prefix = prefix;
    out.suffix = suffix;
    Ok(())
}

/// The id of a `["</s>", 2]`.
fn pair(node: &Node<'_>, key: &str, vocab: &Vocab) -> Result<u32> {
    let pair = node.member(key)?;
    match pair.items()?.as_slice() {
        [token, id] => {
            token.str()?;
            token_id(id, vocab)
        }
        items => Err(pair.fail(format!("a list of {} items", items.len()), "a token and its id")),
    }
}

fn token_id(node: &Node<'_>, vocab: &Vocab) -> Result<u32> {
    let id = node.count()?;
    u32::try_from(id)
        .ok()
        .filter(|&id| vocab.token(id).is_some())
        .ok_or_else(|| node.fail(id, "the id of a token of the vocabulary"))
}

fn template(node: &Node<'_>, vocab: &Vocab, out: &mut PostProcessor) -> Result<()> {
    let special = node.member("special_tokens")?;
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    let mut seen = false;
    for piece in node.member("single")?.items()? {
        match piece.members()?.as_slice() {
            [("Sequence", sequence)] if !seen => {
                sequence.only(&["id", "type_id"])?;
                seen = true;
            }
            [("SpecialToken", token)] => {
                token.only(&["id", "type_id"])?;
                let ids = special.member(token.member("id")?.str()?)?.member("ids")?;
                let side = if seen { &mut suffix } else { &mut prefix };
                for id in ids.items()? {
                    side.push(token_id(&id, vocab)?);
                }
            }
            _ => {
                let expected = "one Sequence, and SpecialTokens around it";
                return Err(piece.fail("another piece", expected));
            }
        }
    }
    if !seen {
        return Err(node.fail("a template without its Sequence", "one Sequence"));
    }
    surround(node, prefix, suffix, out)
}

/// How ids become text.
pub struct Decoding {
    pub spelling: Spelling,
    pub start: Start,
    /// Whether a space stands between tokens.
    pub spaced: bool,
}

/// The decoder; without one, tokens are joined by spaces.
pub fn decoder(node: Option<&Node<'_>>) -> Result<Decoding> {
    let text = Spelling::Text { replaced: Vec::new(), byte_tokens: false };
    let Some(node) = node else {
        return Ok(Decoding { spelling: text, start: Start::Keep, spaced: true });
    };
    let mut out = Decoding { spelling: text, start: Start::Keep, spaced: false };
    let steps = match node.kind()? {
        "Sequence" => {
            node.only(&["decoders"])?;
            node.member("decoders")?.items()?
        }
        _ => vec![node.clone()],
    };
    let mut fused = false;
    for (i, step) in steps.iter().enumerate() {
        let kind = step.kind()?;
        match (kind, &mut out.spelling) {
            ("ByteLevel", _) if steps.len() == 1 => {
                step.only(&["add_prefix_space", "trim_offsets", "use_regex"])?;
                out.spelling = Spelling::Bytes;
            }
            ("Metaspace", Spelling::Text { replaced, .. }) if steps.len() == 1 => {
                step.only(&["replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"])?;
                let (mark, prepend) = metaspace(step)?;
                replaced.push((mark.to_string(), " ".into()));
                if prepend != Prepend::Never {
                    out.start = Start::StripFirstToken;
                }
            }
            ("Replace", Spelling::Text { replaced, byte_tokens: false }) if !fused => {
                step.only(&["pattern", "content"])?;
                let from = step.member("pattern")?.member("String")?;
                if from.str()?.is_empty() {
                    return Err(from.fail("\"\"", "a string that is not empty"));
                }
                replaced.push((from.str()?.to_owned(), step.member("content")?.str()?.to_owned()));
            }
            ("ByteFallback", Spelling::Text { byte_tokens, .. }) if !fused => {
                step.only(&[])?;
                *byte_tokens = true;
            }
            ("Fuse", _) => {
                step.only(&[])?;
                fused = true;
            }
            ("Strip", _) if fused && i + 1 == steps.len() => {
                step.only(&["content", "start", "stop"])?;
                out.start = strip(step)?;
            }
            ("ByteLevel" | "Metaspace" | "Replace" | "ByteFallback" | "Strip", _) => {
                let expected =
                    "ByteLevel or Metaspace alone, or Replace, ByteFallback, Fuse, Strip in this order";
                return Err(step.fail(format!("{kind:?} here"), expected));
            }
            (other, _) => {
                let known = "Sequence, ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip";
                return Err(step.unknown(other, known));
            }
        }
    }
    Ok(out)
}

/// `Strip` of leading spaces; nothing else is put in front of a text.
fn strip(node: &Node<'_>) -> Result<Start> {
    let (content, stop) = (node.member("content")?, node.member("stop")?);
    if content.char()? != ' ' {
        return Err(content.fail(format!("{:?}", content.char()?), "\" \""));
    }
    if stop.count()? != 0 {
        return Err(stop.fail(stop.count()?, 0));
    }
    let start = node.member("start")?;
    let spaces = usize::try_from(start.count()?).map_err(|_: std::num::TryFromIntError| -> Error {
        start.fail("a larger count", "one that fits the address space")
    })?;
    Ok(Start::StripSpaces(spaces))
}
