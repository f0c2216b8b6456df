//! What a way to search is, and what it reports while it goes on.

use std::sync::Arc;

use crate::error::Result;
use crate::search::hypothesis::{FinishReason, Hypothesis, Output, TokenLogprob};
use crate::step::{SeqId, Step};

/// A request of a session, numbered in the order of their addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub usize);

/// What one pass added to one sequence of a request. Beams are reported once they are final.
#[derive(Clone, Debug)]
pub struct Piece {
    pub request: RequestId,
    /// Which of the request's sequences.
    pub index: usize,
    pub ids: Vec<u32>,
    pub text: String,
    pub logprobs: Vec<Arc<TokenLogprob>>,
    /// Set on the last piece of a sequence.
    pub finish_reason: Option<FinishReason>,
}

/// A way to search: owns the model's sequences of one request, and decides how they go on.
pub(crate) trait Strategy: Send {
    /// The sequences to extend, each by one token; none when the search has ended. Before the first
    /// `advance` there is one sequence, to be filled with the prompt, and no token.
    fn pending(&self) -> (&[SeqId], &[u32]);

    /// Takes one row of logits for every pending sequence and decides what follows.
    fn advance(&mut self, logits: &[f32], pass: &mut Pass<'_>) -> Result<()>;

    /// The finished sequences, best first or by index.
    fn outputs(&mut self) -> Result<Vec<Output>>;
}

/// What a strategy may use while it advances.
pub(crate) struct Pass<'a> {
    pub step: &'a mut dyn Step,
    pub scratch: &'a mut Vec<f32>,
    pub request: RequestId,
    pub pieces: &'a mut Vec<Piece>,
}

impl Pass<'_> {
    /// Reports the last token of a sequence, whose text had `sent` bytes before it.
    pub fn report(&mut self, index: usize, of: &Hypothesis, sent: usize, end: Option<FinishReason>) {
        let last = |length: usize| length.saturating_sub(1);
        self.pieces.push(Piece {
            request: self.request,
            index,
            ids: of.generated()[last(of.generated().len())..].to_vec(),
            text: of.text()[sent..].to_owned(),
            logprobs: of.logprobs()[last(of.logprobs().len())..].to_vec(),
            finish_reason: end,
        });
    }
}
