//! A trained vocabulary as a tokenizer.json, as `tokenizers` writes it.

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::Trained;
use crate::error::{Error, Result};

#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    truncation: Value,
    padding: Value,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

#[derive(Serialize)]
struct Model<'a> {
    r#type: &'static str,
    dropout: Value,
    unk_token: Value,
    continuing_subword_prefix: Value,
    end_of_word_suffix: Value,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "by_id")]
    vocab: &'a [String],
    merges: Vec<(&'a str, &'a str)>,
}

/// An object of tokens and their ids, in the order of the ids.
fn by_id<S: Serializer>(tokens: &&[String], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().zip(0u32..))
}

impl Trained {
    /// The text of the file.
    pub fn to_json(&self) -> Result<String> {
        let byte_level = json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
        });
        let split = json!({
            "type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": false,
        });
        let token = |id: u32| self.tokens[id as usize].as_str();
        let file = File {
            version: "1.0",
            truncation: Value::Null,
            padding: Value::Null,
            added_tokens: self.added_tokens(),
            normalizer: Value::Null,
            pre_tokenizer: json!({"type": "Sequence", "pretokenizers": [split, byte_level]}),
            post_processor: Value::Null,
            decoder: byte_level,
            model: Model {
                r#type: "BPE",
                dropout: Value::Null,
                unk_token: Value::Null,
                continuing_subword_prefix: Value::Null,
                end_of_word_suffix: Value::Null,
                fuse_unk: false,
                byte_fallback: false,
                ignore_merges: false,
                vocab: &self.tokens,
                merges: self.merges.iter().map(|&(left, right)| (token(left), token(right))).collect(),
            },
        };
        serde_json::to_string_pretty(&file)
            .map_err(|error| Error::argument("the vocabulary", error, "one that JSON can hold"))
    }

    fn added_tokens(&self) -> Vec<Value> {
        // Special tokens have the first ids, each once.
        let mut tokens: Vec<(usize, &String)> = Vec::new();
        for token in &self.special_tokens {
            if tokens.iter().all(|(_, other)| *other != token) {
                tokens.push((tokens.len(), token));
            }
        }
        let added = |(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        tokens.into_iter().map(added).collect()
    }
}
