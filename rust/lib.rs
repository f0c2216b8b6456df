//! llmcore: language models on a CPU.
//!
//! Imports run one way: `python → model → blocks → kernels → simd`, with `weights` beside `kernels`;
//! `model` implements the trait `step`, which `search` runs over; `bpe` stands on `formats` alone,
//! which stands on its own. See ARCHITECTURE.md.

pub mod blocks;
pub mod bpe;
pub mod cache;
pub mod error;
pub mod formats;
pub mod interrupt;
pub mod kernels;
pub mod limits;
pub mod memory;
pub mod model;
pub mod parameters;
pub mod random;
pub mod search;
pub mod simd;
pub mod sites;
pub mod step;
pub mod threads;
pub mod weights;

mod python;
