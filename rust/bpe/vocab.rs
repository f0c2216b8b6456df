//! The vocabulary: tokens as they are spelled in the file, and their ids.

use std::path::Path;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::error::{Error, Result};

/// A vocabulary may leave ids unused, yet not so many that a small file could claim much memory.
const MOST_UNUSED: usize = 1 << 20;

/// Tokens by id and ids by token. Ids may have gaps.
#[derive(Default)]
pub struct Vocab {
    tokens: Vec<Option<Arc<str>>>,
    ids: FxHashMap<Arc<str>, u32>,
}

impl Vocab {
    /// A vocabulary of `(token, id)` pairs; `path` and `field` say where they were read.
    pub fn new(path: &Path, field: &str, entries: Vec<(String, u64)>) -> Result<Self> {
        let mut vocab = Vocab::default();
        let most = entries.len() + MOST_UNUSED;
        for (token, id) in entries {
            let fits = usize::try_from(id).is_ok_and(|id| id < most);
            let id = u32::try_from(id).ok().filter(|_| fits).ok_or_else(|| {
                Error::file(path, format!("{field}[{token:?}]"), id, format!("an id below {most}"))
            })?;
            vocab.insert(path, field, &token, id)?;
        }
        Ok(vocab)
    }

    /// Adds a token. The same token or the same id twice is an error.
    pub fn insert(&mut self, path: &Path, field: &str, token: &str, id: u32) -> Result<()> {
        let place = id as usize;
        if place >= self.ids.len() + MOST_UNUSED {
            return Err(Error::file(
                path,
                format!("{field}[{token:?}]"),
                id,
                format!("an id below {}", self.ids.len() + MOST_UNUSED),
            ));
        }
        if place >= self.tokens.len() {
            self.tokens.resize(place + 1, None);
        }
        if let Some(other) = &self.tokens[place] {
            return Err(Error::file(
                path,
                format!("{field}[{token:?}]"),
                format!("id {id}, which is {other:?}"),
                "an id of its own",
            ));
        }
        let token: Arc<str> = token.into();
        if let Some(other) = self.ids.insert(token.clone(), id) {
            return Err(Error::file(
                path,
                format!("{field}[{token:?}]"),
                format!("ids {other} and {id}"),
                "one id a token",
            ));
        }
        self.tokens[place] = Some(token);
        Ok(())
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize)?.as_deref()
    }

    /// One more than the highest id.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Every token with its id, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.tokens.iter().enumerate().filter_map(|(id, token)| Some((id as u32, token.as_deref()?)))
    }
}
