//! Many requests advanced together, one pass of the model at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::search::beam::BeamSearch;
use crate::search::hypothesis::{Ends, Hypothesis, Output, StoppingCriterion};
use crate::search::options::Options;
use crate::search::processors::{self, Processor};
use crate::search::sample::Samples;
use crate::search::strategy::{Pass, Piece, RequestId, Strategy};
use crate::search::text::{Text, TextDecoder};
use crate::simd::mxcsr;
use crate::step::{Step, Wanted, Work};

/// Rows of a pass: more would not make a row cheaper, and would make a caller wait longer.
const PASS_ROWS: usize = 512;

/// Sequences that run at once, each with a row of logits; a wider request runs alone.
const MAX_RUNNING: usize = 64;

/// A prompt and what is to be made of it.
pub struct Request {
    pub prompt: Vec<u32>,
    pub options: Options,
    /// Makes text of tokens; without one there is none, and there can be no stop strings.
    pub decoder: Option<Box<dyn TextDecoder>>,
    /// Applied after the processors that the options ask for.
    pub processors: Vec<Box<dyn Processor>>,
    pub criteria: Vec<Arc<dyn StoppingCriterion>>,
}

/// A request that runs.
struct Task {
    id: RequestId,
    prompt: Vec<u32>,
    /// Tokens of the prompt that the model has seen.
    filled: usize,
    width: usize,
    beams: bool,
    search: Box<dyn Strategy>,
}

impl Task {
    fn open(id: RequestId, request: Request, max_length: usize, step: &mut dyn Step) -> Self {
        let Request { prompt, options, decoder, processors: extra, criteria } = request;
        let mut list = processors::build(&options, &prompt, max_length);
        list.extend(extra);
        let text = decoder.map(|decoder| Text::new(decoder, options.stop_strings.clone().into()));
        let hypothesis = Hypothesis::new(&prompt, list, text, options.logprobs);
        let ends = Ends { eos_token_id: options.eos_token_id.clone(), max_length, criteria };
        let seq = step.start();
        let search: Box<dyn Strategy> = if options.beams() {
            Box::new(BeamSearch::new(&options, &hypothesis, ends, seq))
        } else {
            Box::new(Samples::new(&options, hypothesis, ends, seq))
        };
        Task { id, prompt, filled: 0, width: options.width(), beams: options.beams(), search }
    }

    fn release(&self, step: &mut dyn Step) {
        self.search.pending().0.iter().for_each(|&seq| step.release(seq));
    }
}

/// The requests that are being searched for. Which others run beside it never changes a request's
/// tokens, only when they come. Whoever drops a session that has not finished calls `close` first.
#[derive(Default)]
pub struct Session {
    added: usize,
    waiting: VecDeque<(RequestId, Request, usize)>,
    running: Vec<Task>,
    results: BTreeMap<RequestId, Vec<Output>>,
    logits: Vec<f32>,
    scratch: Vec<f32>,
}

impl Session {
    pub fn new() -> Self {
        Session::default()
    }

    /// Adds a request, which takes part from the next step on.
    ///
    /// Errors: whatever `Options::check` finds.
    pub fn add(&mut self, request: Request, step: &dyn Step) -> Result<RequestId> {
        let max_length = request.options.check(&request.prompt, step)?;
        if request.decoder.is_none() && !request.options.stop_strings.is_empty() {
            let found = format!("{:?} without a tokenizer", request.options.stop_strings);
            return Err(Error::argument("stop_strings", found, "a model with a tokenizer"));
        }
        let id = RequestId(self.added);
        self.added += 1;
        self.waiting.push_back((id, request, max_length));
        Ok(id)
    }

    pub fn is_finished(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// The outputs of a finished request, which the session then forgets.
    pub fn take(&mut self, id: RequestId) -> Option<Vec<Output>> {
        self.results.remove(&id)
    }

    /// Drops a request, finished or not.
    pub fn cancel(&mut self, id: RequestId, step: &mut dyn Step) {
        self.waiting.retain(|(other, ..)| *other != id);
        self.results.remove(&id);
        self.running.retain(|task| {
            if task.id == id {
                task.release(step);
            }
            task.id != id
        });
    }

    /// Drops all requests that have not finished.
    pub fn close(&mut self, step: &mut dyn Step) {
        self.waiting.clear();
        self.running.drain(..).for_each(|task| task.release(step));
    }

    /// Runs one pass of the model and takes in what it says; returns what became certain. After an
    /// error the session is closed.
    ///
    /// Errors: the model's, those of processors and criteria, Ctrl-C, and logits that no token can
    /// be chosen from.
    pub fn step(&mut self, step: &mut dyn Step) -> Result<Vec<Piece>> {
        let _float_state = mxcsr::Default::enter();
        let outcome = self.pass(step);
        if outcome.is_err() {
            self.close(step);
        }
        outcome
    }

    fn admit(&mut self, step: &mut dyn Step) {
        let mut width: usize = self.running.iter().map(|task| task.width).sum();
        while let Some((id, request, max_length)) = self.waiting.pop_front() {
            let wider = width + request.options.width();
            if width > 0 && wider > MAX_RUNNING {
                self.waiting.push_front((id, request, max_length));
                return;
            }
            width = wider;
            self.running.push(Task::open(id, request, max_length, step));
        }
    }

    fn pass(&mut self, step: &mut dyn Step) -> Result<Vec<Piece>> {
        interrupt::check()?;
        self.admit(step);
        if self.running.is_empty() {
            return Ok(vec![]);
        }
        let (work, shares) = plan(&self.running);
        step.forward(&work, &mut self.logits)?;

        let mut pieces = vec![];
        let mut rest = self.logits.as_slice();
        for (task, share) in self.running.iter_mut().zip(shares) {
            task.filled += share.filled;
            if share.rows == 0 {
                continue;
            }
            let (logits, others) = rest.split_at(share.rows * step.vocab_size());
            rest = others;
            let mut pass = Pass { step, scratch: &mut self.scratch, request: task.id, pieces: &mut pieces };
            task.search.advance(logits, &mut pass)?;
        }
        self.retire(&mut pieces)?;
        Ok(pieces)
    }

    /// Moves what has ended to the results.
    fn retire(&mut self, pieces: &mut Vec<Piece>) -> Result<()> {
        for mut task in self.running.extract_if(.., |task| task.search.pending().0.is_empty()) {
            let outputs = task.search.outputs()?;
            if task.beams {
                pieces.extend(outputs.iter().enumerate().map(|(index, output)| Piece {
                    request: task.id,
                    index,
                    ids: output.ids.clone(),
                    text: output.text.clone().unwrap_or_default(),
                    logprobs: output.logprobs.clone(),
                    finish_reason: Some(output.finish_reason),
                }));
            }
            self.results.insert(task.id, outputs);
        }
        Ok(())
    }
}

/// One task's part of a pass.
struct Share {
    filled: usize,
    rows: usize,
}

/// The work of one pass: a token for every sequence that has begun to answer, and as much of the
/// waiting prompts as fits beside.
fn plan(tasks: &[Task]) -> (Vec<Work<'_>>, Vec<Share>) {
    let decoding: usize = tasks.iter().map(|task| task.search.pending().1.len()).sum();
    let mut room = PASS_ROWS.saturating_sub(decoding).max(1);
    let mut work = vec![];
    let mut shares = vec![];
    for task in tasks {
        let (seqs, tokens) = task.search.pending();
        let prompt = &task.prompt[task.filled..];
        if prompt.is_empty() {
            let rows = seqs.iter().zip(tokens);
            work.extend(rows.map(|(&seq, token)| Work {
                seq,
                tokens: std::slice::from_ref(token),
                wanted: Wanted::Last,
            }));
            shares.push(Share { filled: 0, rows: seqs.len() });
            continue;
        }
        let filled = prompt.len().min(room);
        room -= filled;
        let whole = filled == prompt.len();
        if filled > 0 {
            let wanted = if whole { Wanted::Last } else { Wanted::None };
            work.extend(seqs.iter().map(|&seq| Work { seq, tokens: &prompt[..filled], wanted }));
        }
        shares.push(Share { filled, rows: usize::from(whole) });
    }
    (work, shares)
}
