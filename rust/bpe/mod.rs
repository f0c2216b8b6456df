//! Byte-pair encoding: loading tokenizers, text to ids, ids to text.
//!
//! `tokenizer` is the whole; the files are its parts in the order in which a text meets them:
//! `special`, `normalize`, `pretokenize` (with `scan`, `boundaries`, `masks` and `classes`), `lookup` (in
//! `cache`, to `output`), `encode` (with `merges`, `merge_table`, `backtrack`, `trie`, `long_pieces`, `cuts`,
//! `alphabet`, `sentencepiece`), `spelling`, `decode`. `batch` and `truncate` cut texts at `seams`; `spares`
//! keeps buffers. `load` opens a file, whose parts a loader a format (`json`, `gguf`, `tiktoken`,
//! `vocab_merges`) fills in. `train` makes a new vocabulary.

pub mod alphabet;
mod backtrack;
pub mod batch;
mod boundaries;
mod cache;
mod classes;
mod cuts;
pub mod decode;
pub mod encode;
pub mod gguf;
pub mod json;
pub mod jsonl;
pub mod load;
mod long_pieces;
mod lookup;
mod masks;
mod merge_table;
pub mod merges;
pub mod normalize;
pub mod offsets;
mod output;
pub mod pretokenize;
pub mod scan;
pub mod seams;
pub mod sentencepiece;
pub mod source;
mod spares;
pub mod special;
pub mod spelling;
pub mod tiktoken;
pub mod tokenizer;
pub mod train;
mod trie;
mod truncate;
pub mod vocab;
pub mod vocab_merges;

pub use decode::StreamDecoder;
pub use source::Source;
pub use special::Allowed;
pub use tokenizer::{Encoding, Options, Tokenizer};
