//! Byte-pair encoding: loading tokenizers, text to ids, ids to text.
//!
//! `tokenizer` is the whole; the files are its parts in the order in which a text meets them:
//! `special`, `normalize`, `pretokenize` (with `scan` and `classes`), `encode` (with `merges`,
//! `cache`, `alphabet`, `sentencepiece`), `decode`. A loader a format (`gguf`) fills in the parts.

pub mod alphabet;
mod cache;
mod classes;
pub mod decode;
pub mod encode;
pub mod gguf;
pub mod merges;
pub mod normalize;
pub mod pretokenize;
pub mod scan;
pub mod sentencepiece;
pub mod special;
pub mod tokenizer;
pub mod vocab;

pub use decode::StreamDecoder;
pub use special::Allowed;
pub use tokenizer::{Encoding, Options, Tokenizer};
