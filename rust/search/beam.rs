//! Beam search, in one group of beams or in several that keep apart.
//!
//! The search is `_beam_search` of Transformers 5, for one prompt; a batch of prompts is a batch of
//! such searches. Scores are sums of processed log-probabilities in float32, in the order of the
//! tokens. Diverse groups follow Vijayakumar et al., "Diverse Beam Search", 2018, with Hamming
//! diversity.

use std::cmp::Ordering;

use rustc_hash::FxHashMap;

use crate::error::{Error, Result};
use crate::kernels::log_softmax;
use crate::search::hypothesis::{Ends, FinishReason, Hypothesis, Output};
use crate::search::options::{EarlyStopping, Options};
use crate::search::select::{self, top_k};
use crate::search::strategy::{Pass, Strategy};
use crate::step::{SeqId, regrow};

/// Stands for -∞ where scores are still added and compared: the score of a place that no sequence
/// has taken, and the shift of one that must not go on. Transformers' constant: it decides ties.
const EXCLUDED: f32 = -1.0e9;

/// Highest first; the two zeros are equal, so that ties stay in the order they have.
fn descending(a: f32, b: f32) -> Ordering {
    (b + 0.0).total_cmp(&(a + 0.0))
}

/// A search over `num_beam_groups` groups of beams.
pub struct BeamSearch {
    rules: Rules,
    groups: Vec<Group>,
    /// The sequence of the prompt, until the first token.
    prompt: Option<SeqId>,
    rows: Vec<SeqId>,
    next: Vec<u32>,
}

/// What all groups have in common.
struct Rules {
    ends: Ends,
    prompt_len: usize,
    /// Beams of a group.
    beams: usize,
    /// Continuations of a group that are looked at in each step: enough that `beams` of them go on
    /// even if all others end.
    candidates: usize,
    length_penalty: f64,
    early_stopping: EarlyStopping,
    diversity_penalty: f32,
    num_return_sequences: usize,
}

impl Rules {
    /// What a sum of log-probabilities over `length` generated tokens is divided by.
    fn norm(&self, length: usize) -> f32 {
        (length as f64).powf(self.length_penalty) as f32
    }
}

struct Group {
    /// By descending score.
    running: Vec<Beam>,
    /// By descending score; a place that no sequence has taken yet is `None`.
    finished: Vec<(f32, Option<Finished>)>,
    done: bool,
}

struct Beam {
    hypothesis: Hypothesis,
    score: f32,
}

struct Finished {
    hypothesis: Hypothesis,
    reason: FinishReason,
}

/// A beam extended by one token.
struct Child {
    hypothesis: Hypothesis,
    score: f32,
    row: usize,
    token: u32,
    end: Option<FinishReason>,
}

impl BeamSearch {
    pub fn new(options: &Options, prompt: &Hypothesis, ends: Ends, seq: SeqId) -> Self {
        let beams = options.num_beams / options.num_beam_groups;
        let groups = (0..options.num_beam_groups)
            .map(|_| Group {
                // All but one start excluded, so that the first tokens come from one of these equal beams.
                running: (0..beams)
                    .map(|i| Beam { hypothesis: prompt.fork(), score: if i == 0 { 0.0 } else { EXCLUDED } })
                    .collect(),
                finished: (0..beams).map(|_| (EXCLUDED, None)).collect(),
                done: false,
            })
            .collect();
        let rules = Rules {
            prompt_len: prompt.ids.len(),
            beams,
            candidates: beams * (1 + ends.eos_token_id.len()).max(2),
            ends,
            length_penalty: options.length_penalty,
            early_stopping: options.early_stopping,
            diversity_penalty: options.diversity_penalty,
            num_return_sequences: options.num_return_sequences,
        };
        BeamSearch { rules, groups, prompt: Some(seq), rows: vec![seq], next: vec![] }
    }
}

impl Strategy for BeamSearch {
    fn pending(&self) -> (&[SeqId], &[u32]) {
        (&self.rows, &self.next)
    }

    fn advance(&mut self, logits: &[f32], pass: &mut Pass<'_>) -> Result<()> {
        let width = pass.step.vocab_size();
        let first = self.prompt.take().is_some();
        let mut parents = vec![];
        let mut used = FxHashMap::default();
        let mut start = 0;
        self.next.clear();
        for group in self.groups.iter_mut().filter(|group| !group.done) {
            let rows = if first { 1 } else { group.running.len() };
            let logits = &logits[start * width..(start + rows) * width];
            let chosen = group.advance(logits, width, &used, &self.rules, pass.scratch)?;
            for (row, token) in chosen {
                *used.entry(token).or_insert(0) += 1;
                if !group.done {
                    parents.push(start + row);
                    self.next.push(token);
                }
            }
            // The first step has one row, which every group reads.
            start += if first { 0 } else { rows };
        }
        self.rows = regrow(pass.step, &self.rows, &parents);
        Ok(())
    }

    fn outputs(&mut self) -> Result<Vec<Output>> {
        let mut best: Vec<(f32, Finished)> = self
            .groups
            .iter_mut()
            .flat_map(|group| group.finished.drain(..))
            .filter_map(|(score, finished)| Some((score, finished?)))
            .collect();
        best.sort_by(|a, b| descending(a.0, b.0));
        let wanted = self.rules.num_return_sequences;
        if best.len() < wanted {
            return Err(Error::argument(
                "num_return_sequences",
                format!("{wanted}, but the options allow only {} sequences", best.len()),
                "options that leave tokens to continue with",
            ));
        }
        best.truncate(wanted);
        Ok(best.into_iter().map(|(score, mut end)| end.hypothesis.finish(Some(score), end.reason)).collect())
    }
}

impl Group {
    /// Extends the beams by one token, from one row of logits per beam, or one for all of them.
    /// `used` counts the tokens that earlier groups have chosen in this step. Returns the rows and
    /// tokens of the new beams, which go on unless the search of this group is now `done`.
    fn advance(
        &mut self,
        logits: &[f32],
        width: usize,
        used: &FxHashMap<u32, u32>,
        rules: &Rules,
        scratch: &mut Vec<f32>,
    ) -> Result<Vec<(usize, u32)>> {
        let last_row = (logits.len() / width).saturating_sub(1);
        scratch.resize(logits.len(), 0.0);
        log_softmax(logits, width, scratch);
        for (scores, beam) in scratch.chunks_exact_mut(width).zip(&mut self.running) {
            beam.hypothesis.process(scores)?;
            for (&token, &count) in used {
                scores[token as usize] -= rules.diversity_penalty * count as f32;
            }
        }
        let position = self.running.first().map_or(0, |beam| beam.hypothesis.ids.len());
        let rows = self.running.iter().enumerate().map(|(i, beam)| {
            let row = i.min(last_row);
            (beam.score, &scratch[row * width..(row + 1) * width])
        });
        let candidates = select::at(position, top_k(rows, rules.candidates))?;
        let mut children = vec![];
        for candidate in candidates {
            let row = candidate.row.min(last_row);
            let mut hypothesis = self.running[candidate.row].hypothesis.fork();
            let logits = &logits[row * width..(row + 1) * width];
            let end = hypothesis.push(candidate.token, logits, &rules.ends)?;
            children.push(Child { hypothesis, score: candidate.score, row, token: candidate.token, end });
        }
        let length = position + 1 - rules.prompt_len;
        self.collect_finished(&children, length, rules);
        let all_ended = children.iter().all(|child| child.end.is_some());
        let chosen = self.continue_with(children, rules.beams);
        self.done = all_ended || !self.can_improve(length, rules);
        Ok(chosen)
    }

    /// Takes the children that have ended into the finished sequences, if they are among the best.
    /// Only the first `beams` children may; the others are there to continue with.
    fn collect_finished(&mut self, children: &[Child], length: usize, rules: &Rules) {
        for child in children.iter().take(rules.beams) {
            if let Some(reason) = child.end {
                let finished = Finished { hypothesis: child.hypothesis.fork(), reason };
                self.finished.push((child.score / rules.norm(length), Some(finished)));
            }
        }
        self.finished.sort_by(|a, b| descending(a.0, b.0));
        self.finished.truncate(rules.beams);
    }

    /// Makes the best children that have not ended the running beams; returns their rows and tokens.
    fn continue_with(&mut self, mut children: Vec<Child>, beams: usize) -> Vec<(usize, u32)> {
        for child in &mut children {
            if child.end.is_some() {
                child.score += EXCLUDED;
            }
        }
        children.sort_by(|a, b| descending(a.score, b.score));
        children.truncate(beams);
        let chosen = children.iter().map(|child| (child.row, child.token)).collect();
        self.running = children
            .into_iter()
            .map(|child| Beam { hypothesis: child.hypothesis, score: child.score })
            .collect();
        chosen
    }

    /// Whether going on from `length` generated tokens could better the finished sequences.
    fn can_improve(&self, length: usize, rules: &Rules) -> bool {
        let full = self.finished.iter().all(|(_, finished)| finished.is_some());
        if full && rules.early_stopping == EarlyStopping::Always {
            return false;
        }
        let best_length = match rules.early_stopping {
            EarlyStopping::Never if rules.length_penalty > 0.0 => rules.ends.max_length - rules.prompt_len,
            _ => length,
        };
        let Some(best) = self.running.first() else { return false };
        let possible = best.score / rules.norm(best_length);
        let worst = self.finished.last().map_or(EXCLUDED, |(score, _)| *score);
        self.finished.iter().any(|(_, finished)| possible > if finished.is_some() { worst } else { EXCLUDED })
    }
}
