//! Search over one trait, `Step`; knows nothing of models.
//!
//! A `Session` advances any mix of requests, one pass of the model at a time. Each request has a
//! strategy (`sample` for greedy search and sampling, `beam`), which sees rows of logits and decides
//! how the request's sequences go on. What depends on a sequence's tokens (processors, text,
//! log-probabilities) is its `Hypothesis`, and forks with it.

mod beam;
pub mod hypothesis;
pub mod options;
pub mod processors;
mod sample;
mod select;
pub mod session;
pub mod strategy;
pub mod text;
pub mod warpers;

#[cfg(test)]
mod toy;
