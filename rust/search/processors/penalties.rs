//! Penalties for tokens that have occurred.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::Processor;
use crate::error::Result;

/// `repetition_penalty`: a token of the prompt or the continuation has its score divided by the
/// penalty where it is positive, multiplied where it is negative.
///
/// Keskar et al., "CTRL", 2019, section 4.1.
#[derive(Clone)]
pub struct Repetition {
    penalty: f32,
    prompt: Arc<FxHashSet<u32>>,
    /// Generated tokens that the prompt does not hold.
    added: FxHashSet<u32>,
}

impl Repetition {
    pub fn new(penalty: f32, prompt: &[u32]) -> Self {
        Repetition {
            penalty,
            prompt: Arc::new(prompt.iter().copied().collect()),
            added: FxHashSet::default(),
        }
    }
}

impl Processor for Repetition {
    fn process(&mut self, _ids: &[u32], scores: &mut [f32]) -> Result<()> {
        for &token in self.prompt.iter().chain(&self.added) {
            if let Some(score) = scores.get_mut(token as usize) {
                *score = if *score < 0.0 { *score * self.penalty } else { *score / self.penalty };
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) {
        if !self.prompt.contains(&token) {
            self.added.insert(token);
        }
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}

/// `presence_penalty` and `frequency_penalty`: a generated token loses the first once and the second
/// for every time that it was generated.
#[derive(Clone)]
pub struct Usage {
    presence: f32,
    frequency: f32,
    counts: FxHashMap<u32, u32>,
}

impl Usage {
    pub fn new(presence: f32, frequency: f32) -> Self {
        Usage { presence, frequency, counts: FxHashMap::default() }
    }
}

impl Processor for Usage {
    fn process(&mut self, _ids: &[u32], scores: &mut [f32]) -> Result<()> {
        for (&token, &count) in &self.counts {
            if let Some(score) = scores.get_mut(token as usize) {
                *score -= self.presence + self.frequency * count as f32;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) {
        *self.counts.entry(token).or_insert(0) += 1;
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}
