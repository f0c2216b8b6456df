//! Opening a tokenizer file of any format.

use std::path::Path;

use super::normalize::Normalizer;
use super::pretokenize::Split;
use super::scan::{CL100K, LLAMA3, O200K, QWEN2, Scanner};
use super::special::AddedToken;
use super::tokenizer::{Parts, Tokenizer};
use super::{gguf, json, tiktoken, vocab_merges};
use crate::error::{Error, Result};
use crate::formats::FileBytes;

/// What a caller, or files beside the tokenizer's own, say of it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The pre-tokenisation of a format that has none: the name of a known pattern or a regular
    /// expression.
    pub pattern: Option<String>,
    /// Whether text is normalised to NFC, of a format that does not say.
    pub nfc: bool,
    /// Tokens to add. One without an id takes that of the vocabulary, or else the next free one.
    pub added: Vec<(AddedToken, Option<u64>)>,
    pub bos_token: Option<Role>,
    /// The tokens that end a text, the first of them first.
    pub eos_tokens: Vec<Role>,
    pub unk_token: Option<Role>,
    pub pad_token: Option<Role>,
    /// Those among the tokens above that go without a role where the vocabulary lacks them.
    pub assumed: Vec<String>,
    /// Whether a text begins with the bos token, in place of what the file says.
    pub add_bos: Option<bool>,
    /// Whether a text ends with the eos token.
    pub add_eos: Option<bool>,
}

/// A token that is given a role.
#[derive(Clone, Debug)]
pub enum Role {
    /// By its spelling. The vocabulary must have it, unless it is for padding: no model ever sees that, so
    /// that it is added.
    Token(String),
    /// By its id, as a model's configuration names it; an id that the vocabulary lacks has no role.
    Id(u64),
}

const NAMES: [(&str, Scanner); 5] =
    [("gpt2", Scanner::Gpt2), ("cl100k", CL100K), ("o200k", O200K), ("llama3", LLAMA3), ("qwen2", QWEN2)];

fn known_patterns() -> String {
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    format!("one of {}, or a regular expression", names.join(", "))
}

/// The split that the name of a known pattern, or a regular expression, stands for. `lines` is as in
/// `Pattern::compile`.
pub fn named_or_regex(pattern: &str, lines: bool) -> Result<Split> {
    if let Some((_, scanner)) = NAMES.iter().find(|(name, _)| *name == pattern) {
        return Ok(Split::Scan(*scanner));
    }
    // A bare word would be a pattern that matches itself: no doubt a name that is not known.
    let split = match pattern.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        true => Err("a name that is not known".into()),
        false => Split::isolated(pattern, lines),
    };
    split.map_err(|message| Error::argument("pattern", format!("{pattern:?} ({message})"), known_patterns()))
}

impl Tokenizer {
    /// Opens a `tokenizer.json`, a `vocab.json` with `merges.txt` beside it, a `.tiktoken` or a `.gguf`.
    pub fn open(path: &Path, settings: &Settings) -> Result<Self> {
        let extension = path.extension().unwrap_or_default();
        let parts = if extension == "gguf" {
            settings.without_pattern(path)?;
            gguf::from_file(FileBytes::map(path)?)?
        } else if extension == "tiktoken" {
            tiktoken::from_slice(path, &FileBytes::map(path)?, settings.splits(path, None)?)?
        } else if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with("vocab.json")) {
            let merges = path.with_file_name(
                path.file_name().unwrap_or_default().to_string_lossy().replace("vocab.json", "merges.txt"),
            );
            let (vocab, lines) = (FileBytes::map(path)?, FileBytes::map(&merges)?);
            vocab_merges::from_slices(path, &vocab, &merges, &lines, settings.splits(path, Some("gpt2"))?)?
        } else if extension == "json" {
            settings.without_pattern(path)?;
            json::from_slice(path, &FileBytes::map(path)?)?
        } else {
            return Err(Error::file(
                path,
                "path",
                format!("the name {:?}", path.file_name().unwrap_or_default()),
                "tokenizer.json, vocab.json, or a name that ends in .tiktoken or .gguf",
            ));
        };
        Self::with_settings(path, parts, settings)
    }

    /// The tokenizer of parts, changed as the settings say; `path` serves the errors.
    pub fn with_settings(path: &Path, mut parts: Parts, settings: &Settings) -> Result<Self> {
        settings.add_tokens(path, &mut parts)?;
        settings.set_roles(path, &mut parts)?;
        if settings.nfc {
            parts.normalizers.push(Normalizer::Nfc);
        }
        Tokenizer::new(parts).map_err(|message| {
            Error::file(path, "added tokens", message, "tokens that can be searched for together")
        })
    }
}

impl Settings {
    fn without_pattern(&self, path: &Path) -> Result<()> {
        match &self.pattern {
            Some(pattern) => Err(Error::argument(
                "pattern",
                format!("{pattern:?}"),
                format!("None, for {} brings its own", path.display()),
            )),
            None => Ok(()),
        }
    }

    /// The pre-tokenisation that the pattern, or else `default`, stands for.
    fn splits(&self, path: &Path, default: Option<&str>) -> Result<Vec<Split>> {
        match self.pattern.as_deref().or(default) {
            Some(pattern) => Ok(vec![named_or_regex(pattern, false)?]),
            None => Err(Error::file(path, "pattern", "none given", known_patterns())),
        }
    }

    fn add_tokens(&self, path: &Path, parts: &mut Parts) -> Result<()> {
        for (token, id) in &self.added {
            parts.add_token(path, token.clone(), *id)?;
        }
        // A token with a role is special even where no list says so.
        let spelled = |role: &Role| match role {
            Role::Token(token) => Some(token.clone()),
            Role::Id(_) => None,
        };
        let others = [&self.bos_token, &self.unk_token].into_iter().flatten().chain(&self.eos_tokens);
        let others: Vec<String> = others.filter_map(spelled).collect();
        let pad = self.pad_token.as_ref().and_then(spelled);
        let pad_may_be_new = pad.iter().all(|pad| !others.contains(pad) && !self.assumed.contains(pad));
        let may_be_new =
            others.iter().map(|token| (token, false)).chain(pad.iter().map(|p| (p, pad_may_be_new)));
        for (token, may_be_new) in may_be_new {
            let listed = parts.added.iter().any(|added| added.content == *token);
            if !listed && (may_be_new || parts.vocab.id(token).is_some()) {
                parts.add_token(path, AddedToken::new(0, token, true), None)?;
            }
        }
        Ok(())
    }

    fn set_roles(&self, path: &Path, parts: &mut Parts) -> Result<()> {
        let file = path.file_name().unwrap_or_default().display();
        let id = |key: &str, role: &Role| match role {
            Role::Token(token) => match parts.vocab.id(token) {
                None if !self.assumed.contains(token) => {
                    let expected = format!("a token of the vocabulary of {file}");
                    Err(Error::argument(key, format!("{token:?}"), expected))
                }
                id => Ok(id),
            },
            Role::Id(id) => Ok(u32::try_from(*id).ok().filter(|id| parts.vocab.token(*id).is_some())),
        };
        let find = |key: &str, role: &Option<Role>| role.as_ref().map_or(Ok(None), |role| id(key, role));
        let bos = find("bos_token", &self.bos_token)?;
        let unk = find("unk_token", &self.unk_token)?;
        let mut eos = Vec::new();
        for role in &self.eos_tokens {
            eos.extend(id("eos_token", role)?);
        }
        let pad = find("pad_token", &self.pad_token)?;
        let roles = &mut parts.roles;
        roles.bos = bos.or(roles.bos);
        roles.unk = unk.or(roles.unk);
        roles.pad = pad.or(roles.pad);
        roles.eos.retain(|other| !eos.contains(other));
        roles.eos.splice(0..0, eos);
        let needed = |key: &str, id: Option<u32>| {
            id.ok_or_else(|| Error::argument(key, "true, and no such token", "false, or the token"))
        };
        match self.add_bos {
            Some(true) => {
                let bos = needed("add_bos_token", roles.bos)?;
                if !parts.post.prefix.contains(&bos) {
                    parts.post.prefix.insert(0, bos);
                }
            }
            Some(false) => parts.post.prefix.retain(|id| Some(*id) != roles.bos),
            None => {}
        }
        match self.add_eos {
            Some(true) => {
                let eos = needed("add_eos_token", roles.eos.first().copied())?;
                if !parts.post.suffix.contains(&eos) {
                    parts.post.suffix.push(eos);
                }
            }
            Some(false) => parts.post.suffix.retain(|id| !roles.eos.contains(id)),
            None => {}
        }
        Ok(())
    }
}

impl Parts {
    /// Adds a token, or changes the flags of one. Without an id it takes that of the vocabulary, or
    /// else the next free one.
    fn add_token(&mut self, path: &Path, token: AddedToken, id: Option<u64>) -> Result<()> {
        let here = || format!("added token {:?}", token.content);
        if token.content.is_empty() {
            return Err(Error::file(path, here(), "nothing", "at least one character"));
        }
        let given = id
            .map(|id| u32::try_from(id).map_err(|_| Error::file(path, here(), id, "an id below 2³²")))
            .transpose()?;
        let id = match (self.vocab.id(&token.content), given) {
            (Some(known), Some(given)) if known != given => {
                let expected = format!("{known}, its id in the vocabulary");
                return Err(Error::file(path, here(), given, expected));
            }
            (Some(known), _) => known,
            (None, given) => {
                let id = given.unwrap_or(self.vocab.len() as u32);
                self.vocab.insert(path, "added tokens", &token.content, id)?;
                self.decoder.insert(id, &token.content);
                id
            }
        };
        self.added.retain(|other| other.id != id);
        self.added.push(AddedToken { id, ..token });
        Ok(())
    }
}
