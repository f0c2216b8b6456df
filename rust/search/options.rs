//! What a caller may ask of a search. Names and meanings are Transformers'.

use crate::error::{Error, Result};
use crate::step::Step;

/// The widest search of one request: sequences, of which each holds a row of logits in every pass.
pub const MAX_WIDTH: usize = 1024;

/// The most end tokens; a beam search looks at one continuation more per beam for each.
pub const MAX_END_TOKENS: usize = 64;

/// When a beam search stops although beams could go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `False`: as soon as the best running beam, at its present length, cannot beat the worst finished one.
    Heuristic,
    /// `True`: as soon as `num_beams` sequences have finished.
    Always,
    /// `"never"`: only when no running beam can beat the worst finished one at the length that suits it best.
    Never,
}

/// The options of one request. `Options::default()` is greedy search to the end of the context.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens to generate at most; wins over `max_length`.
    pub max_new_tokens: Option<usize>,
    /// Tokens of prompt and continuation together, at most.
    pub max_length: Option<usize>,
    /// No end token before so many generated tokens, or so many tokens in all.
    pub min_new_tokens: usize,
    pub min_length: usize,
    /// Tokens that end a sequence.
    pub eos_token_id: Vec<u32>,
    /// Texts that end a sequence; not part of its text.
    pub stop_strings: Vec<String>,
    pub num_return_sequences: usize,

    pub do_sample: bool,
    pub seed: u64,
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub typical_p: f32,

    pub num_beams: usize,
    pub num_beam_groups: usize,
    pub diversity_penalty: f32,
    pub early_stopping: EarlyStopping,
    pub length_penalty: f64,

    pub logit_bias: Vec<(u32, f32)>,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    /// 0 forbids nothing.
    pub no_repeat_ngram_size: usize,
    pub bad_words_ids: Vec<Vec<u32>>,
    pub forced_bos_token_id: Option<u32>,
    pub forced_eos_token_id: Vec<u32>,
    pub suppress_tokens: Vec<u32>,

    /// How many alternatives to report with each token's log-probability; `None` reports neither.
    pub logprobs: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_new_tokens: None,
            max_length: None,
            min_new_tokens: 0,
            min_length: 0,
            eos_token_id: vec![],
            stop_strings: vec![],
            num_return_sequences: 1,
            do_sample: false,
            seed: 0,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            num_beams: 1,
            num_beam_groups: 1,
            diversity_penalty: 0.0,
            early_stopping: EarlyStopping::Heuristic,
            length_penalty: 1.0,
            logit_bias: vec![],
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            no_repeat_ngram_size: 0,
            bad_words_ids: vec![],
            forced_bos_token_id: None,
            forced_eos_token_id: vec![],
            suppress_tokens: vec![],
            logprobs: None,
        }
    }
}

fn require(holds: bool, name: &str, found: impl std::fmt::Display, expected: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::argument(name, found, expected)) }
}

impl Options {
    /// Whether this is beam search rather than independent continuations.
    pub fn beams(&self) -> bool {
        self.num_beams > 1
    }

    /// How many sequences run at once.
    pub fn width(&self) -> usize {
        self.num_beams.max(self.num_return_sequences)
    }

    /// The length of prompt and continuation at which a sequence ends: the least of what was asked
    /// for and what the model can hold.
    ///
    /// Errors: an option out of its range, a token outside the vocabulary, an empty prompt, or one
    /// that leaves no room for a token.
    pub fn check(&self, prompt: &[u32], step: &dyn Step) -> Result<usize> {
        self.check_counts()?;
        self.check_numbers()?;
        self.check_tokens(prompt, step.vocab_size())?;
        self.check_room(prompt.len(), step.max_positions())
    }

    fn check_counts(&self) -> Result<()> {
        let Options { num_beams, num_beam_groups, num_return_sequences, .. } = *self;
        let ends = self.eos_token_id.len();
        require(
            ends <= MAX_END_TOKENS,
            "eos_token_id",
            format!("{ends} tokens"),
            &format!("at most {MAX_END_TOKENS}"),
        )?;
        let range = format!("1 to {MAX_WIDTH}");
        require((1..=MAX_WIDTH).contains(&num_beams), "num_beams", num_beams, &range)?;
        require(
            (1..=MAX_WIDTH).contains(&num_return_sequences),
            "num_return_sequences",
            num_return_sequences,
            &range,
        )?;
        require(
            num_beam_groups >= 1 && num_beams.is_multiple_of(num_beam_groups),
            "num_beam_groups",
            num_beam_groups,
            &format!("a divisor of num_beams ({num_beams})"),
        )?;
        if self.do_sample {
            require(!self.beams(), "num_beams", num_beams, "1 with do_sample (beams are not sampled)")
        } else {
            require(
                num_return_sequences <= num_beams,
                "num_return_sequences",
                num_return_sequences,
                &format!("at most num_beams ({num_beams}) without do_sample"),
            )
        }
    }

    fn check_numbers(&self) -> Result<()> {
        let finite = "a finite number";
        let positive = "a finite number above 0";
        let unit = "a number from 0 to 1";
        let in_unit = |p: f32| (0.0..=1.0).contains(&p);
        let above_zero = |x: f32| x > 0.0 && x.is_finite();
        require(
            above_zero(self.temperature),
            "temperature",
            self.temperature,
            "a finite number above 0 (greedy search is do_sample=False)",
        )?;
        require(in_unit(self.top_p), "top_p", self.top_p, unit)?;
        require(in_unit(self.min_p), "min_p", self.min_p, unit)?;
        require(
            in_unit(self.typical_p) && self.typical_p > 0.0,
            "typical_p",
            self.typical_p,
            "above 0, to 1",
        )?;
        require(self.diversity_penalty.is_finite(), "diversity_penalty", self.diversity_penalty, finite)?;
        require(self.length_penalty.is_finite(), "length_penalty", self.length_penalty, finite)?;
        require(
            above_zero(self.repetition_penalty),
            "repetition_penalty",
            self.repetition_penalty,
            positive,
        )?;
        require(self.presence_penalty.is_finite(), "presence_penalty", self.presence_penalty, finite)?;
        require(self.frequency_penalty.is_finite(), "frequency_penalty", self.frequency_penalty, finite)?;
        for &(token, bias) in &self.logit_bias {
            require(
                bias < f32::INFINITY,
                "logit_bias",
                format!("{bias} for token {token}"),
                "below +infinity",
            )?;
        }
        for (index, stop) in self.stop_strings.iter().enumerate() {
            require(
                !stop.is_empty(),
                "stop_strings",
                format!("an empty text at {index}"),
                "non-empty texts",
            )?;
        }
        Ok(())
    }

    fn check_tokens(&self, prompt: &[u32], vocab_size: usize) -> Result<()> {
        let expected = format!("token ids below {vocab_size}");
        let within = |name: &str, tokens: &[u32]| match tokens.iter().find(|&&t| t as usize >= vocab_size) {
            Some(token) => Err(Error::argument(name, format!("token id {token}"), &expected)),
            None => Ok(()),
        };
        within("prompt", prompt)?;
        within("suppress_tokens", &self.suppress_tokens)?;
        within("forced_eos_token_id", &self.forced_eos_token_id)?;
        within("forced_bos_token_id", self.forced_bos_token_id.as_slice())?;
        for &(token, _) in &self.logit_bias {
            within("logit_bias", &[token])?;
        }
        for word in &self.bad_words_ids {
            require(!word.is_empty(), "bad_words_ids", "an empty list", "lists of at least one token id")?;
            within("bad_words_ids", word)?;
        }
        Ok(())
    }

    fn check_room(&self, prompt_len: usize, max_positions: usize) -> Result<usize> {
        require(prompt_len > 0, "prompt", "no tokens", "at least one token")?;
        require(
            prompt_len < max_positions,
            "prompt",
            format!("{prompt_len} tokens"),
            &format!("fewer than {max_positions}, the model's context"),
        )?;
        let asked = match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => {
                require(new > 0, "max_new_tokens", new, "at least 1")?;
                require(
                    self.min_new_tokens <= new,
                    "min_new_tokens",
                    self.min_new_tokens,
                    &format!("at most max_new_tokens ({new})"),
                )?;
                prompt_len.saturating_add(new)
            }
            (None, Some(length)) => {
                let expected = format!("more than the prompt's {prompt_len} tokens");
                require(length > prompt_len, "max_length", length, &expected)?;
                length
            }
            (None, None) => max_positions,
        };
        Ok(asked.min(max_positions))
    }
}
