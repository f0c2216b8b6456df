//! Processors change a sequence's scores before a token is chosen, each by its own rule.
//!
//! The scores are logits, or log-probabilities in a beam search; the rules and their order are those
//! of Transformers' `_get_logits_processor`, and nothing is renormalised between or after them.

mod bans;
mod penalties;

use crate::error::Result;
use crate::search::options::Options;

/// A rule that may depend on the sequence so far. What it remembers forks with the sequence.
pub trait Processor: Send {
    /// Changes `scores` (one per token of the vocabulary) for the token that follows `ids`, the
    /// prompt and what has been generated.
    fn process(&mut self, ids: &[u32], scores: &mut [f32]) -> Result<()>;

    /// Learns the token that was chosen.
    fn accept(&mut self, _token: u32) {}

    /// A processor in the same state, for a second continuation.
    fn fork(&self) -> Box<dyn Processor>;
}

/// The processors that `options` ask for, in order; `max_length` is the length at which the
/// sequence ends.
pub fn build(options: &Options, prompt: &[u32], max_length: usize) -> Vec<Box<dyn Processor>> {
    let mut list: Vec<Box<dyn Processor>> = vec![];
    if !options.logit_bias.is_empty() {
        list.push(Box::new(bans::Bias::new(&options.logit_bias)));
    }
    if options.repetition_penalty != 1.0 {
        list.push(Box::new(penalties::Repetition::new(options.repetition_penalty, prompt)));
    }
    if options.presence_penalty != 0.0 || options.frequency_penalty != 0.0 {
        list.push(Box::new(penalties::Usage::new(options.presence_penalty, options.frequency_penalty)));
    }
    if options.no_repeat_ngram_size > 0 {
        list.push(Box::new(bans::NoRepeatNgram { size: options.no_repeat_ngram_size }));
    }
    if !options.bad_words_ids.is_empty() {
        list.push(Box::new(bans::BadWords::new(&options.bad_words_ids, &options.eos_token_id)));
    }
    let min_length = options.min_length.max(prompt.len().saturating_add(options.min_new_tokens));
    if min_length > prompt.len() && !options.eos_token_id.is_empty() {
        list.push(Box::new(bans::Suppress::below(min_length, &options.eos_token_id)));
    }
    if let Some(token) = options.forced_bos_token_id {
        list.push(Box::new(bans::Force::at(1, &[token])));
    }
    if !options.forced_eos_token_id.is_empty() {
        list.push(Box::new(bans::Force::at(max_length.saturating_sub(1), &options.forced_eos_token_id)));
    }
    if !options.suppress_tokens.is_empty() {
        list.push(Box::new(bans::Suppress::below(usize::MAX, &options.suppress_tokens)));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: f32 = f32::NEG_INFINITY;

    fn run(options: Options, prompt: &[u32], generated: &[u32], scores: &[f32]) -> Vec<f32> {
        let mut processors = build(&options, prompt, 8);
        let ids = [prompt, generated].concat();
        let mut scores = scores.to_vec();
        for processor in &mut processors {
            generated.iter().for_each(|&token| processor.accept(token));
            processor.process(&ids, &mut scores).unwrap();
        }
        scores
    }

    #[test]
    fn penalties_count_what_they_say() {
        let scores = [1.0, -1.0, 2.0, -2.0];
        let options = Options { repetition_penalty: 2.0, ..Options::default() };
        assert_eq!(run(options, &[0, 0], &[3], &scores), [0.5, -1.0, 2.0, -4.0]);
        let options = Options { presence_penalty: 0.5, frequency_penalty: 0.25, ..Options::default() };
        assert_eq!(run(options, &[0, 0], &[3, 2, 3], &scores), [1.0, -1.0, 1.25, -3.0]);
    }

    #[test]
    fn a_bias_comes_before_the_repetition_penalty() {
        let options = Options { logit_bias: vec![(1, 3.0)], repetition_penalty: 2.0, ..Options::default() };
        assert_eq!(run(options, &[1], &[], &[0.0, 1.0]), [0.0, 2.0]);
    }

    #[test]
    fn repeated_ngrams_and_bad_words_are_forbidden() {
        let zeros = [0.0; 4];
        let ngram = |size| Options { no_repeat_ngram_size: size, ..Options::default() };
        assert_eq!(run(ngram(2), &[1, 2, 0, 1, 3], &[1], &zeros), [0.0, 0.0, NEVER, NEVER]);
        assert_eq!(run(ngram(1), &[1], &[2], &zeros), [0.0, NEVER, NEVER, 0.0]);
        assert_eq!(run(ngram(3), &[1], &[2], &zeros), zeros);

        let words = |list: &[&[u32]]| Options {
            bad_words_ids: list.iter().map(|word| word.to_vec()).collect(),
            eos_token_id: vec![3],
            ..Options::default()
        };
        // A lone end token is never a bad word; longer words count once their beginning is there.
        assert_eq!(run(words(&[&[0], &[3], &[2, 1]]), &[2], &[], &zeros), [NEVER, NEVER, 0.0, 0.0]);
        assert_eq!(run(words(&[&[2, 2, 1]]), &[2], &[], &zeros), zeros);
    }

    #[test]
    fn ends_are_forbidden_or_forced() {
        let options = Options { min_new_tokens: 2, eos_token_id: vec![0, 2], ..Options::default() };
        assert_eq!(run(options.clone(), &[1], &[1], &[0.0; 3]), [NEVER, 0.0, NEVER]);
        assert_eq!(run(options, &[1], &[1, 1], &[0.0; 3]), [0.0; 3]);
        let options = Options { min_length: 3, eos_token_id: vec![0], ..Options::default() };
        assert_eq!(run(options.clone(), &[1], &[1], &[0.0; 3]), [NEVER, 0.0, 0.0]);
        assert_eq!(run(options, &[1, 1, 1], &[], &[0.0; 3]), [0.0; 3]);
        let options = Options { forced_eos_token_id: vec![2], ..Options::default() };
        assert_eq!(run(options.clone(), &[1], &[1; 6], &[5.0; 3]), [NEVER, NEVER, 0.0]);
        assert_eq!(run(options, &[1], &[1; 5], &[5.0; 3]), [5.0; 3]);
        let options = Options { forced_bos_token_id: Some(1), ..Options::default() };
        assert_eq!(run(options, &[0], &[], &[5.0; 3]), [NEVER, 0.0, NEVER]);
        let options = Options { suppress_tokens: vec![1], ..Options::default() };
        assert_eq!(run(options, &[0], &[], &[5.0; 3]), [5.0, NEVER, 5.0]);
    }

    #[test]
    fn state_forks() {
        let options = Options { frequency_penalty: 1.0, ..Options::default() };
        let mut first = build(&options, &[0], 8).remove(0);
        first.accept(1);
        let mut second = first.fork();
        second.accept(1);
        let mut scores = [[0.0f32; 2]; 2];
        first.process(&[0, 1], &mut scores[0]).unwrap();
        second.process(&[0, 1, 1], &mut scores[1]).unwrap();
        assert_eq!(scores, [[0.0, -1.0], [0.0, -2.0]]);
    }
}
