//! Independent continuations of a prompt: drawn by their probabilities, or greedily.

use crate::error::Result;
use crate::random::Philox;
use crate::search::hypothesis::{Ends, FinishReason, Hypothesis, Output};
use crate::search::options::Options;
use crate::search::select::{self, argmax};
use crate::search::strategy::{Pass, Strategy};
use crate::search::warpers::Warpers;
use crate::step::{SeqId, regrow};

/// How a token is chosen from processed scores.
enum Choice {
    /// The highest score, the lowest token on ties.
    Greedy,
    Draw(Warpers, Philox),
}

/// `num_return_sequences` continuations, each as if it were the only one.
pub struct Samples {
    choice: Choice,
    ends: Ends,
    live: Vec<Sample>,
    outputs: Vec<Option<Output>>,
    /// One sequence of the model per live sample; one for all of them until the first token.
    rows: Vec<SeqId>,
    next: Vec<u32>,
}

struct Sample {
    index: usize,
    hypothesis: Hypothesis,
}

impl Samples {
    pub fn new(options: &Options, prompt: Hypothesis, ends: Ends, seq: SeqId) -> Self {
        let count = options.num_return_sequences;
        let choice = if options.do_sample {
            Choice::Draw(Warpers::new(options), Philox::new(options.seed))
        } else {
            Choice::Greedy
        };
        let live = (0..count).map(|index| Sample { index, hypothesis: prompt.fork() }).collect();
        Samples {
            choice,
            ends,
            live,
            outputs: (0..count).map(|_| None).collect(),
            rows: vec![seq],
            next: vec![],
        }
    }
}

impl Choice {
    /// Chooses the token after `sample` from a row of logits.
    fn choose(&self, sample: &mut Sample, logits: &[f32], scratch: &mut Vec<f32>) -> Result<u32> {
        let position = sample.hypothesis.ids.len();
        if matches!(self, Choice::Greedy) && sample.hypothesis.is_plain() {
            return select::at(position, argmax(logits));
        }
        // Processors may hide a flaw of the model, so it is looked for before them.
        select::at(position, argmax(logits))?;
        scratch.clear();
        scratch.extend_from_slice(logits);
        sample.hypothesis.process(scratch)?;
        let outcome = match self {
            Choice::Greedy => argmax(scratch),
            Choice::Draw(warpers, random) => {
                warpers.draw(scratch, random.uniform(sample.index as u64, position as u64))
            }
        };
        select::at(position, outcome)
    }
}

impl Strategy for Samples {
    fn pending(&self) -> (&[SeqId], &[u32]) {
        (&self.rows, &self.next)
    }

    fn advance(&mut self, logits: &[f32], pass: &mut Pass<'_>) -> Result<()> {
        let width = pass.step.vocab_size();
        let last_row = self.rows.len().saturating_sub(1);
        let mut parents = vec![];
        let mut live = vec![];
        self.next.clear();
        for (i, mut sample) in std::mem::take(&mut self.live).into_iter().enumerate() {
            let row = i.min(last_row);
            let logits = &logits[row * width..(row + 1) * width];
            let token = self.choice.choose(&mut sample, logits, pass.scratch)?;
            let sent = sample.hypothesis.text().len();
            let end = sample.hypothesis.push(token, logits, &self.ends)?;
            let output = end.map(|reason: FinishReason| sample.hypothesis.finish(None, reason));
            pass.report(sample.index, &sample.hypothesis, sent, end);
            match output {
                Some(output) => self.outputs[sample.index] = Some(output),
                None => {
                    parents.push(row);
                    self.next.push(token);
                    live.push(sample);
                }
            }
        }
        self.live = live;
        self.rows = regrow(pass.step, &self.rows, &parents);
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<Output>> {
        Ok(self.outputs.drain(..).flatten().collect())
    }
}
