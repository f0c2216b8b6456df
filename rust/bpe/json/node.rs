//! A strict view of a JSON value: every complaint names the file and the place in it, and a member
//! that nobody asked for is an error.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A value, and where it stands.
#[derive(Clone)]
pub struct Node<'a> {
    pub path: &'a Path,
    pub at: String,
    pub value: &'a Value,
}

impl<'a> Node<'a> {
    pub fn new(path: &'a Path, at: impl Into<String>, value: &'a Value) -> Self {
        Node { path, at: at.into(), value }
    }

    pub fn fail(&self, found: impl std::fmt::Display, expected: impl std::fmt::Display) -> Error {
        Error::file(self.path, &self.at, found, expected)
    }

    fn wrong(&self, expected: &str) -> Error {
        self.fail(describe(self.value), expected)
    }

    pub fn str(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub fn bool(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    pub fn count(&self) -> Result<u64> {
        self.value.as_u64().ok_or_else(|| self.wrong("an integer of 0 or more"))
    }

    /// The only character of a string.
    pub fn char(&self) -> Result<char> {
        let mut chars = self.str()?.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) => Ok(c),
            _ => Err(self.wrong("a string of one character")),
        }
    }

    fn map(&self) -> Result<&'a Map<String, Value>> {
        self.value.as_object().ok_or_else(|| self.wrong("an object"))
    }

    pub fn items(&self) -> Result<Vec<Node<'a>>> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let item = |(i, value)| Node::new(self.path, format!("{}[{i}]", self.at), value);
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A member that must be there.
    pub fn member(&self, key: &str) -> Result<Node<'a>> {
        self.optional(key)?.ok_or_else(|| self.fail("nothing", format!("a member {key:?}")))
    }

    /// A member that may be missing or null.
    pub fn optional(&self, key: &str) -> Result<Option<Node<'a>>> {
        let value = self.map()?.get(key).filter(|value| !value.is_null());
        Ok(value.map(|value| Node::new(self.path, format!("{}.{key}", self.at), value)))
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        self.optional(key)?.map_or(Ok(default), |node| node.bool())
    }

    /// Members and their keys.
    pub fn members(&self) -> Result<Vec<(&'a str, Node<'a>)>> {
        let member = |(key, value): (&'a String, &'a Value)| {
            (key.as_str(), Node::new(self.path, format!("{}.{key}", self.at), value))
        };
        Ok(self.map()?.iter().map(member).collect())
    }

    /// The member `type`.
    pub fn kind(&self) -> Result<&'a str> {
        self.member("type")?.str()
    }

    /// Refuses members other than `type` and these: they would be ignored in silence.
    pub fn only(&self, keys: &[&str]) -> Result<()> {
        match self.map()?.keys().find(|key| *key != "type" && !keys.contains(&key.as_str())) {
            Some(key) => Err(self.fail(format!("a member {key:?}"), "none that is not implemented")),
            None => Ok(()),
        }
    }

    /// The error for a component that is not implemented.
    pub fn unknown(&self, kind: &str, known: &str) -> Error {
        Error::file(self.path, format!("{}.type", self.at), format!("{kind:?}"), format!("one of {known}"))
    }
}

/// A value in a few words.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Array(items) => format!("a list of {} items", items.len()),
        Value::Object(members) => format!("an object of {} members", members.len()),
        Value::String(text) if text.chars().count() > 40 => {
            format!("{:?}…", text.chars().take(40).collect::<String>())
        }
        scalar => scalar.to_string(),
    }
}
