//! `tokenizer.json`, the format of Hugging Face's `tokenizers`, version 1.0.
//!
//! Ids equal those of that library for every file that is read here. A component or option that is
//! not implemented is an error that names it. `truncation` and `padding` are settings of a call, not
//! of the tokenizer, and are left alone, as Transformers does.

mod components;
mod node;

use std::path::Path;

use rustc_hash::FxHashMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use self::components::{Decoding, PreTokenizer};
use self::node::Node;
use super::encode::{ByteLevel, Characters, Model, Unknown, Whole, byte_tokens};
use super::merges::Merges;
use super::normalize::Text;
use super::special::AddedToken;
use super::spelling::Decoder;
use super::tokenizer::{Parts, PostProcessor, Roles};
use super::vocab::Vocab;
use super::vocab_merges::MergeList;
use crate::error::{Error, Result};
use crate::formats::json::UniqueMap;

/// The file; what is large or optional is looked at later.
#[derive(Deserialize)]
struct File<'a> {
    version: Option<String>,
    #[serde(default)]
    added_tokens: Vec<Added>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: &'a RawValue,
}

#[derive(Deserialize)]
struct Added {
    id: u64,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile<'a> {
    #[serde(rename = "type")]
    _kind: Option<IgnoredAny>,
    dropout: Option<f64>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: Option<bool>,
    #[serde(default)]
    byte_fallback: Option<bool>,
    #[serde(default)]
    ignore_merges: Option<bool>,
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
}

/// Only the type of a model, whose other members may be any.
#[derive(Deserialize)]
struct ModelKind {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// One merge: two tokens, or, in older files, one string with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum MergeFile {
    Pair(String, String),
    Line(String),
}

/// The parts that the bytes of a tokenizer.json describe; `path` serves the errors.
pub fn from_slice(path: &Path, bytes: &[u8]) -> Result<Parts> {
    let file: File<'_> = parse(path, "tokenizer.json", bytes)?;
    if let Some(version) = file.version.filter(|version| version != "1.0") {
        return Err(Error::file(path, "version", format!("{version:?}"), "\"1.0\""));
    }
    let model = read_model(path, file.model)?;
    let mut vocab = read_vocab(path, "model.vocab", &model)?;
    let merges = read_merges(path, &model, &vocab)?;

    let mut pre = PreTokenizer::default();
    if let Some(value) = &file.pre_tokenizer {
        components::pre_tokenizer(&Node::new(path, "pre_tokenizer", value), &mut pre)?;
    }
    let mut normalizers = Vec::new();
    if let Some(value) = &file.normalizer {
        components::normalizer(&Node::new(path, "normalizer", value), &mut normalizers)?;
    }
    // The model knows its own vocabulary, without the tokens that are added to it.
    let model = match pre.byte_level {
        true => Model::Bytes(byte_level(path, &model, &vocab, merges)?),
        false => Model::Characters(characters(path, &model, &vocab, merges)?),
    };
    let added = add_tokens(path, file.added_tokens, &mut vocab)?;
    let mut post = PostProcessor::default();
    if let Some(value) = &file.post_processor {
        components::post_processor(&Node::new(path, "post_processor", value), &vocab, &mut post)?;
    }
    let node = file.decoder.as_ref().map(|value| Node::new(path, "decoder", value));
    let Decoding { spelling, start, spaced } = components::decoder(node.as_ref())?;

    // A token that is looked for in normalised text is decoded as it is spelled there.
    let mut respelled = FxHashMap::default();
    for token in added.iter().filter(|token| token.normalized) {
        let mut text = Text::new(&token.content, 0, false);
        text.normalize(&normalizers)?;
        respelled.insert(token.id, text.text.into_owned());
    }
    let spelled = |(id, token)| (id, respelled.get(&id).map_or(token, String::as_str));
    let decoder = Decoder::new(vocab.iter().map(spelled), spelling, start, spaced);
    Ok(Parts {
        vocab,
        added,
        normalizers,
        rewrites: pre.rewrites,
        splits: pre.splits,
        model,
        post,
        decoder,
        roles: Roles::default(),
        chat_template: None,
    })
}

fn parse<'a, T: Deserialize<'a>>(path: &Path, field: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::file(path, field, error, "JSON of the format"))
}

fn read_model<'a>(path: &Path, raw: &'a RawValue) -> Result<ModelFile<'a>> {
    let text = raw.get().as_bytes();
    let ModelKind { kind } = parse(path, "model", text)?;
    if kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(Error::file(path, "model.type", format!("{:?}", kind.unwrap_or_default()), "\"BPE\""));
    }
    let model: ModelFile<'a> = parse(path, "model", text)?;
    if let Some(dropout) = model.dropout.filter(|dropout| *dropout != 0.0) {
        return Err(Error::file(path, "model.dropout", dropout, "null, for encoding is not random here"));
    }
    for (field, affix) in [
        ("model.continuing_subword_prefix", &model.continuing_subword_prefix),
        ("model.end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(affix) = affix.as_ref().filter(|affix| !affix.is_empty()) {
            return Err(Error::file(path, field, format!("{affix:?}"), "null or \"\""));
        }
    }
    Ok(model)
}

fn read_vocab(path: &Path, field: &str, model: &ModelFile<'_>) -> Result<Vocab> {
    let raw = model.vocab.ok_or_else(|| Error::file(path, field, "nothing", "the tokens and their ids"))?;
    let UniqueMap(entries): UniqueMap<u64> = parse(path, field, raw.get().as_bytes())?;
    Vocab::new(path, field, entries)
}

fn read_merges(path: &Path, model: &ModelFile<'_>, vocab: &Vocab) -> Result<Merges> {
    const FIELD: &str = "model.merges";
    let raw = model.merges.ok_or_else(|| Error::file(path, FIELD, "nothing", "a list of merges"))?;
    let list: Vec<MergeFile> = parse(path, FIELD, raw.get().as_bytes())?;
    let mut merges = MergeList::new(path, FIELD, vocab);
    for merge in &list {
        match merge {
            MergeFile::Pair(left, right) => merges.pair(left, right)?,
            MergeFile::Line(line) => merges.line(line)?,
        }
    }
    Ok(merges.merges)
}

fn unknown_token(path: &Path, model: &ModelFile<'_>, vocab: &Vocab) -> Result<Option<Unknown>> {
    let Some(token) = &model.unk_token else { return Ok(None) };
    let fused = model.fuse_unk.unwrap_or(false);
    match vocab.id(token) {
        Some(id) => Ok(Some(Unknown { id, fused })),
        None => Err(Error::file(path, "model.unk_token", format!("{token:?}"), "a token of the vocabulary")),
    }
}

fn byte_level(path: &Path, model: &ModelFile<'_>, vocab: &Vocab, merges: Merges) -> Result<ByteLevel> {
    let ignore_merges = model.ignore_merges.unwrap_or(false);
    let bytes = ByteLevel::new(vocab, merges, ignore_merges, unknown_token(path, model, vocab)?);
    match bytes.missing().filter(|_| model.byte_fallback.unwrap_or(false)) {
        Some(byte) => Err(Error::file(
            path,
            "model.byte_fallback",
            format!("true with ByteLevel, and no token for the byte {byte:#04x}"),
            "false, or a vocabulary of all bytes",
        )),
        None => Ok(bytes),
    }
}

fn characters(path: &Path, model: &ModelFile<'_>, vocab: &Vocab, merges: Merges) -> Result<Characters> {
    let mut characters = FxHashMap::default();
    for (id, token) in vocab.iter() {
        let mut chars = token.chars();
        if let (Some(c), None) = (chars.next(), chars.next()) {
            characters.insert(c, id);
        }
    }
    let whole = match model.ignore_merges.unwrap_or(false) {
        true => vocab.iter().map(|(id, token)| (token.as_bytes().into(), id)).collect(),
        false => Whole::default(),
    };
    Ok(Characters {
        merges,
        characters,
        bytes: model.byte_fallback.unwrap_or(false).then(|| byte_tokens(vocab)),
        unknown: unknown_token(path, model, vocab)?,
        whole,
    })
}

/// The added tokens; those that the model does not have extend the vocabulary.
fn add_tokens(path: &Path, list: Vec<Added>, vocab: &mut Vocab) -> Result<Vec<AddedToken>> {
    const FIELD: &str = "added_tokens";
    let mut added: Vec<AddedToken> = Vec::with_capacity(list.len());
    for Added { id, content, single_word, lstrip, rstrip, normalized, special } in list {
        let here = || format!("{FIELD}[{content:?}]");
        if content.is_empty() {
            return Err(Error::file(path, here(), "an empty token", "a token of at least one character"));
        }
        let number = u32::try_from(id).map_err(|_| Error::file(path, here(), id, "an id below 2³²"))?;
        match vocab.id(&content) {
            Some(known) if known != number => {
                return Err(Error::file(path, here(), id, format!("{known}, the id in the vocabulary")));
            }
            Some(_) => {}
            None => vocab.insert(path, FIELD, &content, number)?,
        }
        added.retain(|token| token.id != number);
        added.push(AddedToken { id: number, content, special, normalized, lstrip, rstrip, single_word });
    }
    Ok(added)
}
