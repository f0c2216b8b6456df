//! The tokenizer that a GGUF file's metadata describes.

use std::path::Path;

use super::encode::{ByteLevel, Model};
use super::normalize::{Normalizer, Prepend};
use super::pretokenize::Split;
use super::scan::{self, Scanner};
use super::sentencepiece::{Piece, SentencePiece, TokenType};
use super::special::AddedToken;
use super::spelling::{Decoder, Spelling, Start, byte_token};
use super::tokenizer::{Parts, PostProcessor, Roles};
use super::vocab::Vocab;
use super::vocab_merges::MergeList;
use crate::error::{Error, Result};
use crate::formats::{FileBytes, Gguf, Value};

/// The values of the keys `tokenizer.ggml.…` (and `tokenizer.chat_template`).
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec {
    /// `gpt2` for byte-level BPE, `llama` for SentencePiece's.
    pub model: String,
    pub pre: Option<String>,
    pub tokens: Vec<String>,
    pub scores: Vec<f32>,
    pub token_types: Vec<i64>,
    /// Two tokens with a space between.
    pub merges: Vec<String>,
    pub bos_token_id: Option<u64>,
    /// `eos_token_id`, `eot_token_id`, `eom_token_id`, as far as they are there.
    pub eos_token_ids: Vec<u64>,
    pub unknown_token_id: Option<u64>,
    pub padding_token_id: Option<u64>,
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    pub add_space_prefix: Option<bool>,
    pub chat_template: Option<String>,
}

impl TokenizerSpec {
    /// The tokenizer's keys of a file, which `path` names in errors.
    pub fn read(path: &Path, gguf: &Gguf) -> Result<Self> {
        let id = |key: &str| {
            let read = |value: &Value<'_>| value.as_int().and_then(|id| u64::try_from(id).ok());
            gguf.get_as(&format!("tokenizer.ggml.{key}"), "an integer of 0 or more", read)
        };
        let flag = |key: &str| gguf.get_as(&format!("tokenizer.ggml.{key}"), "bool", |value| value.as_bool());
        let text =
            |key: &str| gguf.get_as(key, "a string of UTF-8", |value| value.as_str().map(str::to_owned));
        let mut eos_token_ids = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            eos_token_ids.extend(id(key)?);
        }
        Ok(TokenizerSpec {
            model: text("tokenizer.ggml.model")?.ok_or_else(|| {
                Error::file(path, "tokenizer.ggml.model", "no such key", "the kind of tokenizer")
            })?,
            pre: text("tokenizer.ggml.pre")?,
            tokens: list(path, gguf, "tokens", "UTF-8", |item| item.as_str().map(str::to_owned))?,
            scores: list(path, gguf, "scores", "a float", |item| item.as_float().map(|score| score as f32))?,
            token_types: list(path, gguf, "token_type", "an integer", |item| item.as_int())?,
            merges: list(path, gguf, "merges", "UTF-8", |item| item.as_str().map(str::to_owned))?,
            bos_token_id: id("bos_token_id")?,
            eos_token_ids,
            unknown_token_id: id("unknown_token_id")?,
            padding_token_id: id("padding_token_id")?,
            add_bos_token: flag("add_bos_token")?,
            add_eos_token: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            chat_template: text("tokenizer.chat_template")?,
        })
    }
}

/// The items of an array of the tokenizer; none if there is no such key.
fn list<T>(
    path: &Path,
    gguf: &Gguf,
    key: &str,
    expected: &str,
    read: impl Fn(&Value<'_>) -> Option<T>,
) -> Result<Vec<T>> {
    let key = format!("tokenizer.ggml.{key}");
    let Some(array) = gguf.get_as(&key, "an array", |value| value.as_array())? else {
        return Ok(Vec::new());
    };
    let item = |(i, item): (usize, Value<'_>)| {
        read(&item).ok_or_else(|| Error::file(path, format!("{key}[{i}]"), format!("{item:?}"), expected))
    };
    array.iter().enumerate().map(item).collect()
}

/// What `tokenizer.ggml.pre` names: the pre-tokenisation of a family of models.
pub struct Pre {
    pub names: &'static [&'static str],
    /// Patterns, each cutting the pieces of the one before.
    pub patterns: &'static [&'static str],
    pub nfc: bool,
    pub ignore_merges: bool,
    add_bos: bool,
}

const GPT2: &str = scan::PATTERNS[0].0;
const LLAMA3: &str = scan::PATTERNS[3].0;
const QWEN2: &str = scan::PATTERNS[4].0;
const O200K: &str = scan::PATTERNS[5].0;
const TEKKEN: &str = scan::PATTERNS[6].0;
const DIGIT: &str = r"\p{N}";

/// Every value of `tokenizer.ggml.pre` that is known. The patterns are those of the models' own
/// tokenizer.json where llama.cpp's only approximate them.
const PRES: &[Pre] = &[
    Pre {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..Pre::PLAIN
    },
    Pre { names: &["gpt-2", "phi-2"], patterns: &[GPT2], ..Pre::PLAIN },
    Pre { names: &["mpt", "olmo"], patterns: &[GPT2], nfc: true, ..Pre::PLAIN },
    Pre { names: &["smollm", "starcoder", "refact"], patterns: &[DIGIT, GPT2], ..Pre::PLAIN },
    Pre { names: &["command-r"], patterns: &[DIGIT, GPT2], nfc: true, ..Pre::PLAIN },
    Pre { names: &["falcon"], patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], ..Pre::PLAIN },
    Pre {
        names: &["llama-bpe", "llama3", "llama-v3"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..Pre::PLAIN
    },
    Pre { names: &["smaug-bpe", "glm4", "chatglm-bpe"], patterns: &[LLAMA3], ..Pre::PLAIN },
    Pre { names: &["qwen2", "deepseek-r1-qwen", "megrez"], patterns: &[QWEN2], nfc: true, ..Pre::PLAIN },
    Pre { names: &["gpt-4o", "llama4"], patterns: &[O200K], ..Pre::PLAIN },
    Pre { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..Pre::PLAIN },
    Pre {
        names: &["deepseek-coder"],
        patterns: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT],
        ..Pre::PLAIN
    },
    Pre {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
                r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        ..Pre::PLAIN
    },
];

impl Pre {
    const PLAIN: Pre = Pre { names: &[], patterns: &[], nfc: false, ignore_merges: false, add_bos: false };

    /// What a name stands for, by default `default`; `path` says where it was read.
    pub fn of(path: &Path, name: Option<&str>) -> Result<&'static Pre> {
        let name = name.unwrap_or("default");
        PRES.iter().find(|pre| pre.names.contains(&name)).ok_or_else(|| {
            let known: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
            Error::file(
                path,
                "tokenizer.ggml.pre",
                format!("{name:?}"),
                format!("one of {}", known.join(", ")),
            )
        })
    }
}

/// The name of a pre-tokenisation, if it has one. Patterns may be spelled in any way that is known.
pub fn pre_name(patterns: &[String], nfc: bool, ignore_merges: bool) -> Option<&'static str> {
    let same = |known: &str, other: &str| match Scanner::of(known) {
        Some(scanner) => Scanner::of(other) == Some(scanner),
        None => known == other,
    };
    let found = PRES.iter().find(|pre| {
        let patterns_agree = pre.patterns.len() == patterns.len()
            && pre.patterns.iter().zip(patterns).all(|(known, other)| same(known, other));
        patterns_agree && (pre.nfc, pre.ignore_merges) == (nfc, ignore_merges)
    });
    found.and_then(|pre| pre.names.first()).copied()
}

/// The parts that the bytes of a GGUF file describe.
pub fn from_file(file: FileBytes) -> Result<Parts> {
    let path = file.path().to_owned();
    let gguf = Gguf::from_bytes(file)?;
    from_spec(&path, &TokenizerSpec::read(&path, &gguf)?)
}

/// The parts that metadata describes; `path` says where it was read.
pub fn from_spec(path: &Path, spec: &TokenizerSpec) -> Result<Parts> {
    match spec.model.as_str() {
        "gpt2" => byte_level(path, spec),
        "llama" => sentencepiece(path, spec),
        other => {
            Err(Error::file(path, "tokenizer.ggml.model", format!("{other:?}"), "\"gpt2\" or \"llama\""))
        }
    }
}

fn byte_level(path: &Path, spec: &TokenizerSpec) -> Result<Parts> {
    let pre = Pre::of(path, spec.pre.as_deref())?;
    let vocab = vocab(path, spec)?;
    let mut merges = MergeList::new(path, "tokenizer.ggml.merges", &vocab);
    spec.merges.iter().try_for_each(|merge| merges.line(merge))?;
    let merges = merges.merges;
    let splits = pre
        .patterns
        .iter()
        .map(|pattern| match *pattern {
            DIGIT => Ok(Split::digits(true)),
            pattern => Split::isolated(pattern, false),
        })
        .collect::<std::result::Result<_, _>>()
        .map_err(|message| Error::file(path, "tokenizer.ggml.pre", message, "a pattern"))?;
    let space = match spec.add_space_prefix {
        Some(true) => vec![Normalizer::PrefixSpace],
        _ => Vec::new(),
    };
    Ok(Parts {
        added: added_tokens(path, spec, |_, kind| {
            matches!(kind, TokenType::Control | TokenType::Unknown | TokenType::UserDefined)
        })?,
        normalizers: if pre.nfc { vec![Normalizer::Nfc] } else { Vec::new() },
        rewrites: space,
        splits,
        model: Model::Bytes(ByteLevel::new(&vocab, merges, pre.ignore_merges, None)),
        post: post_processor(path, spec, pre.add_bos)?,
        decoder: Decoder::new(vocab.iter(), Spelling::Bytes, Start::Keep, false),
        roles: roles(path, spec)?,
        chat_template: spec.chat_template.clone(),
        vocab,
    })
}

/// What stands for a space in the tokens of SentencePiece.
const MARK: char = '▁';

fn sentencepiece(path: &Path, spec: &TokenizerSpec) -> Result<Parts> {
    let vocab = vocab(path, spec)?;
    if spec.scores.len() != spec.tokens.len() {
        return Err(Error::file(
            path,
            "tokenizer.ggml.scores",
            format!("{} scores", spec.scores.len()),
            format!("{}, one a token", spec.tokens.len()),
        ));
    }
    if let Some(i) = spec.scores.iter().position(|score| score.is_nan()) {
        return Err(Error::file(path, format!("tokenizer.ggml.scores[{i}]"), "NaN", "a number"));
    }
    let mut bytes = [None; 256];
    let mut pieces = Vec::with_capacity(spec.tokens.len());
    for (id, (text, &score)) in spec.tokens.iter().zip(&spec.scores).enumerate() {
        let kind = token_type(path, spec, id)?;
        if kind == TokenType::Byte {
            let byte = byte_token(text).ok_or_else(|| {
                Error::file(
                    path,
                    format!("tokenizer.ggml.tokens[{id}]"),
                    format!("{text:?} as a byte"),
                    "\"<0x00>\" … \"<0xFF>\"",
                )
            })?;
            bytes[byte as usize] = Some(id as u32);
        }
        // Markup is an added token, so that the model does not find it in text that is not trusted.
        let kind = if is_markup(text, kind) { TokenType::Control } else { kind };
        pieces.push(Piece { id: id as u32, text, score, kind });
    }
    let roles = roles(path, spec)?;
    let model = SentencePiece::new(&pieces, bytes, roles.unk).map_err(|message| {
        Error::file(path, "tokenizer.ggml.tokens", message, "user-defined tokens that can be searched for")
    })?;
    let prefixed = spec.add_space_prefix.unwrap_or(true);
    let mut post = post_processor(path, spec, true)?;
    post.trim = None;
    let spelling = Spelling::Text { replaced: vec![(MARK.to_string(), " ".into())], byte_tokens: true };
    let start = if prefixed { Start::StripSpaces(1) } else { Start::Keep };
    let mark = Normalizer::Metaspace { mark: MARK, prepend: Prepend::Never };
    Ok(Parts {
        added: added_tokens(path, spec, |text, kind| kind == TokenType::Control || is_markup(text, kind))?,
        normalizers: Vec::new(),
        rewrites: if prefixed { vec![Normalizer::Prepend(" ".into()), mark] } else { vec![mark] },
        splits: Vec::new(),
        model: Model::SentencePiece(model),
        post,
        decoder: Decoder::new(vocab.iter(), spelling, start, false),
        roles,
        chat_template: spec.chat_template.clone(),
        vocab,
    })
}

fn vocab(path: &Path, spec: &TokenizerSpec) -> Result<Vocab> {
    if spec.tokens.is_empty() {
        return Err(Error::file(path, "tokenizer.ggml.tokens", "no tokens", "at least one"));
    }
    if !spec.token_types.is_empty() && spec.token_types.len() != spec.tokens.len() {
        return Err(Error::file(
            path,
            "tokenizer.ggml.token_type",
            format!("{} types", spec.token_types.len()),
            format!("{}, one a token", spec.tokens.len()),
        ));
    }
    let entries = spec.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id as u64));
    Vocab::new(path, "tokenizer.ggml.tokens", entries.collect())
}

fn token_type(path: &Path, spec: &TokenizerSpec, id: usize) -> Result<TokenType> {
    let Some(&number) = spec.token_types.get(id) else { return Ok(TokenType::Normal) };
    TokenType::from_number(number)
        .ok_or_else(|| Error::file(path, format!("tokenizer.ggml.token_type[{id}]"), number, "1 to 6"))
}

/// Whether a token is user-defined and of the form `<…>` or `[…]`: some files give the tokens that
/// steer a model this type.
fn is_markup(text: &str, kind: TokenType) -> bool {
    let enclosed = |open, close| text.len() > 2 && text.starts_with(open) && text.ends_with(close);
    kind == TokenType::UserDefined && (enclosed('<', '>') || enclosed('[', ']'))
}

/// The chosen tokens, to be found in a text before anything else.
fn added_tokens(
    path: &Path,
    spec: &TokenizerSpec,
    chosen: impl Fn(&str, TokenType) -> bool,
) -> Result<Vec<AddedToken>> {
    let mut added = Vec::new();
    for (id, token) in spec.tokens.iter().enumerate() {
        let kind = token_type(path, spec, id)?;
        if chosen(token, kind) {
            added.push(AddedToken::new(id as u32, token, kind != TokenType::UserDefined));
        }
    }
    Ok(added)
}

fn post_processor(path: &Path, spec: &TokenizerSpec, add_bos: bool) -> Result<PostProcessor> {
    let Roles { bos, eos, .. } = roles(path, spec)?;
    let wanted = |wanted: Option<bool>, default: bool, id: Option<u32>, key: &str| match (wanted, id) {
        (Some(true), None) => {
            Err(Error::file(path, format!("tokenizer.ggml.{key}"), "no such key", "the id to add"))
        }
        (Some(true), Some(id)) => Ok(vec![id]),
        (None, Some(id)) if default => Ok(vec![id]),
        _ => Ok(Vec::new()),
    };
    Ok(PostProcessor {
        prefix: wanted(spec.add_bos_token, add_bos, bos, "bos_token_id")?,
        suffix: wanted(spec.add_eos_token, false, eos.first().copied(), "eos_token_id")?,
        trim: None,
    })
}

fn roles(path: &Path, spec: &TokenizerSpec) -> Result<Roles> {
    let id = |id: &u64, key: &str| {
        u32::try_from(*id).ok().filter(|&id| (id as usize) < spec.tokens.len()).ok_or_else(|| {
            let expected = format!("an id below {}", spec.tokens.len());
            Error::file(path, format!("tokenizer.ggml.{key}"), id, expected)
        })
    };
    let mut eos = Vec::new();
    for token in &spec.eos_token_ids {
        let token = id(token, "eos_token_id")?;
        if !eos.contains(&token) {
            eos.push(token);
        }
    }
    Ok(Roles {
        bos: spec.bos_token_id.as_ref().map(|token| id(token, "bos_token_id")).transpose()?,
        eos,
        unk: spec.unknown_token_id.as_ref().map(|token| id(token, "unknown_token_id")).transpose()?,
        pad: spec.padding_token_id.as_ref().map(|token| id(token, "padding_token_id")).transpose()?,
    })
}
