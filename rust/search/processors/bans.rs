//! Rules that forbid tokens, force them, or shift them by a constant.

use std::sync::Arc;

use super::Processor;
use crate::error::Result;

fn forbid(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

/// `logit_bias`: adds to the scores of some tokens.
#[derive(Clone)]
pub struct Bias {
    tokens: Arc<[(u32, f32)]>,
}

impl Bias {
    pub fn new(tokens: &[(u32, f32)]) -> Self {
        Bias { tokens: tokens.into() }
    }
}

impl Processor for Bias {
    fn process(&mut self, _ids: &[u32], scores: &mut [f32]) -> Result<()> {
        for &(token, bias) in self.tokens.iter() {
            if let Some(score) = scores.get_mut(token as usize) {
                *score += bias;
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}

/// `no_repeat_ngram_size`: forbids what would complete an n-gram that the sequence already holds.
#[derive(Clone)]
pub struct NoRepeatNgram {
    pub size: usize,
}

impl Processor for NoRepeatNgram {
    fn process(&mut self, ids: &[u32], scores: &mut [f32]) -> Result<()> {
        if ids.len() < self.size {
            return Ok(());
        }
        let (_, beginning) = ids.split_at(ids.len() + 1 - self.size);
        for window in ids.windows(self.size) {
            if let Some((&last, before)) = window.split_last()
                && before == beginning
            {
                forbid(scores, last);
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}

/// `bad_words_ids`: forbids the last token of a word where the sequence ends with the others.
#[derive(Clone)]
pub struct BadWords {
    words: Arc<[Vec<u32>]>,
}

impl BadWords {
    /// A word that is an end token alone is left out.
    pub fn new(words: &[Vec<u32>], eos: &[u32]) -> Self {
        let is_end = |word: &&Vec<u32>| matches!(word[..], [token] if eos.contains(&token));
        BadWords { words: words.iter().filter(|word| !is_end(word)).cloned().collect() }
    }
}

impl Processor for BadWords {
    fn process(&mut self, ids: &[u32], scores: &mut [f32]) -> Result<()> {
        for word in self.words.iter() {
            if let Some((&last, before)) = word.split_last()
                && ids.ends_with(before)
            {
                forbid(scores, last);
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}

/// `suppress_tokens`, and the end tokens under `min_length` and `min_new_tokens`: forbids tokens
/// while the sequence is shorter than some length.
#[derive(Clone)]
pub struct Suppress {
    length: usize,
    tokens: Arc<[u32]>,
}

impl Suppress {
    pub fn below(length: usize, tokens: &[u32]) -> Self {
        Suppress { length, tokens: tokens.into() }
    }
}

impl Processor for Suppress {
    fn process(&mut self, ids: &[u32], scores: &mut [f32]) -> Result<()> {
        if ids.len() < self.length {
            self.tokens.iter().for_each(|&token| forbid(scores, token));
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}

/// `forced_bos_token_id` and `forced_eos_token_id`: allows only some tokens, all with score 0, where
/// the sequence has a certain length.
#[derive(Clone)]
pub struct Force {
    length: usize,
    tokens: Arc<[u32]>,
}

impl Force {
    pub fn at(length: usize, tokens: &[u32]) -> Self {
        Force { length, tokens: tokens.into() }
    }
}

impl Processor for Force {
    fn process(&mut self, ids: &[u32], scores: &mut [f32]) -> Result<()> {
        if ids.len() == self.length {
            scores.fill(f32::NEG_INFINITY);
            for &token in self.tokens.iter() {
                if let Some(score) = scores.get_mut(token as usize) {
                    *score = 0.0;
                }
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Processor> {
        Box::new(self.clone())
    }
}
