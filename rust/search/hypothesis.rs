//! One sequence being generated, and what a finished one is reported as.

use std::sync::Arc;

use crate::error::Result;
use crate::kernels::log_sum_exp;
use crate::search::processors::Processor;
use crate::search::select::{self, top_k_of};
use crate::search::text::Text;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token, a stop string or a stopping criterion.
    Stop,
    /// `max_new_tokens`, `max_length` or the end of the context.
    Length,
}

/// A generated token's log-probability under the model, before any processor, with the likeliest
/// tokens of its position.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: u32,
    pub logprob: f32,
    pub top: Vec<(u32, f32)>,
}

/// A finished sequence.
#[derive(Clone, Debug)]
pub struct Output {
    /// The generated tokens, an end token included.
    pub ids: Vec<u32>,
    /// Their text up to an end token or stop string; `None` for a request without a decoder.
    pub text: Option<String>,
    /// The beam score: the sum of (processed) log-probabilities over the length to the power
    /// `length_penalty`. `None` without beams.
    pub score: Option<f32>,
    /// One entry per token, if `logprobs` was asked for.
    pub logprobs: Vec<Arc<TokenLogprob>>,
    pub finish_reason: FinishReason,
}

/// A rule that ends a sequence.
pub trait StoppingCriterion: Send + Sync {
    /// Whether `ids`, the prompt and what has been generated, is to end here.
    fn stop(&self, ids: &[u32]) -> Result<bool>;
}

/// What ends the sequences of a request.
#[derive(Clone)]
pub struct Ends {
    pub eos_token_id: Vec<u32>,
    pub max_length: usize,
    pub criteria: Vec<Arc<dyn StoppingCriterion>>,
}

/// A sequence being generated, with everything that depends on its tokens.
pub struct Hypothesis {
    /// The prompt and what has been generated.
    pub ids: Vec<u32>,
    prompt_len: usize,
    processors: Vec<Box<dyn Processor>>,
    text: Option<Text>,
    /// `None` if they are not wanted.
    logprobs: Option<(usize, Vec<Arc<TokenLogprob>>)>,
}

impl Hypothesis {
    pub fn new(
        prompt: &[u32],
        processors: Vec<Box<dyn Processor>>,
        text: Option<Text>,
        logprobs: Option<usize>,
    ) -> Self {
        Hypothesis {
            ids: prompt.to_vec(),
            prompt_len: prompt.len(),
            processors,
            text,
            logprobs: logprobs.map(|alternatives| (alternatives, vec![])),
        }
    }

    pub fn fork(&self) -> Self {
        Hypothesis {
            ids: self.ids.clone(),
            prompt_len: self.prompt_len,
            processors: self.processors.iter().map(|processor| processor.fork()).collect(),
            text: self.text.as_ref().map(Text::fork),
            logprobs: self.logprobs.clone(),
        }
    }

    pub fn generated(&self) -> &[u32] {
        &self.ids[self.prompt_len..]
    }

    /// The text that can no longer change; empty without a decoder.
    pub fn text(&self) -> &str {
        self.text.as_ref().map_or("", Text::released)
    }

    pub fn logprobs(&self) -> &[Arc<TokenLogprob>] {
        self.logprobs.as_ref().map_or(&[], |(_, list)| list)
    }

    /// Whether the scores of a choice are the model's own.
    pub fn is_plain(&self) -> bool {
        self.processors.is_empty()
    }

    pub fn process(&mut self, scores: &mut [f32]) -> Result<()> {
        self.processors.iter_mut().try_for_each(|processor| processor.process(&self.ids, scores))
    }

    /// Appends the token chosen from a row of the model's logits; says whether it is the last.
    pub fn push(&mut self, token: u32, logits: &[f32], ends: &Ends) -> Result<Option<FinishReason>> {
        if let Some((alternatives, list)) = &mut self.logprobs {
            let total = log_sum_exp(logits);
            let best = select::at(self.ids.len(), top_k_of(logits, *alternatives))?;
            list.push(Arc::new(TokenLogprob {
                token,
                logprob: logits[token as usize] - total,
                top: best.iter().map(|candidate| (candidate.token, candidate.score - total)).collect(),
            }));
        }
        self.ids.push(token);
        self.processors.iter_mut().for_each(|processor| processor.accept(token));
        if ends.eos_token_id.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        if self.text.as_mut().is_some_and(|text| text.push(token)) {
            return Ok(Some(FinishReason::Stop));
        }
        for criterion in &ends.criteria {
            if criterion.stop(&self.ids)? {
                return Ok(Some(FinishReason::Stop));
            }
        }
        Ok((self.ids.len() >= ends.max_length).then_some(FinishReason::Length))
    }

    /// The report of a sequence that has ended.
    pub fn finish(&mut self, score: Option<f32>, finish_reason: FinishReason) -> Output {
        Output {
            ids: self.generated().to_vec(),
            text: self.text.as_mut().map(|text| {
                text.finish();
                text.released().to_owned()
            }),
            score,
            logprobs: self.logprobs().to_vec(),
            finish_reason,
        }
    }
}
