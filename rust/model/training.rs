//! The loss of a batch, and its gradients.

use super::Model;
use crate::blocks::decoder::Targets;
use crate::blocks::pass::{Memory, Pass, Segment};
use crate::blocks::tape::{Dropout, Tape};
use crate::error::{Error, Result};
use crate::kernels::{IGNORED, Precision, clear};
use crate::parameters::{Flat, Sink, Tensor};
use crate::step::SeqId;
use crate::weights::Piece;

/// Sequences to learn from, one after the other, each from its beginning.
pub struct Batch<'a> {
    /// `[rows]`, of all sequences.
    pub tokens: &'a [u32],
    /// How many rows each sequence has.
    pub lengths: &'a [usize],
    /// `[rows]`: the token that comes after each, or [`IGNORED`].
    pub labels: &'a [i32],
}

/// What is minimised.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// The gradients are those of Σ losses / denominator.
    pub denominator: f64,
    /// Label smoothing, from 0 to 1.
    pub smoothing: f32,
    pub dropout: Option<Dropout>,
    /// Trades the memory of activations for a second forward pass of each layer.
    pub checkpointing: bool,
}

/// The arrays of a model that trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arena {
    Parameters,
    Gradients,
}

/// What a model that trains has beside its parameters.
pub(super) struct Training {
    gradients: Piece,
    /// The gradients hold a sum that the next batch adds to.
    summed: bool,
    precision: Precision,
}

impl Training {
    pub fn new(flat: &Flat, precision: Precision) -> Result<Self> {
        let gradients = Piece::new(flat.trained().len(), "the gradients")?;
        Ok(Training { gradients, summed: false, precision })
    }
}

impl Model {
    /// Adds the gradients of a batch; the first batch after a step of an optimiser overwrites what was there.
    /// Gives Σ losses, in nats. A batch that is refused changes nothing; after Ctrl-C the sum is lost, and the
    /// next batch begins anew.
    ///
    /// Errors: a model that does not train; tokens or labels that are none; sequences that are too long;
    /// Ctrl-C.
    pub fn loss_and_grad(&mut self, batch: &Batch<'_>, loss: &Loss) -> Result<f64> {
        self.check_batch(batch)?;
        let Model { decoder, parameters, ropes, scratch, training, .. } = self;
        let training = training.as_mut().ok_or_else(not_trainable)?;
        // What ends the pass early, even a panic, ends the sum.
        if !std::mem::replace(&mut training.summed, false) {
            clear(&mut training.gradients);
        }
        let sink = Sink::new(parameters.flat(), &mut training.gradients, training.precision);
        let memory = Memory::Tape(Tape::new(sink, loss.checkpointing, loss.dropout));
        let mut pass = Pass::new(parameters, memory, batch.segments(), Vec::new(), ropes, None, scratch);
        pass.precision = training.precision;
        let scale = (1.0 / loss.denominator) as f32;
        let targets = Targets { labels: batch.labels, smoothing: loss.smoothing, scale };
        let total = decoder.loss(&mut pass, batch.tokens, &targets);
        training.summed = total.is_ok();
        total
    }

    /// Σ losses of a batch, in nats, without gradients and without dropout.
    ///
    /// Errors: as [`Model::loss_and_grad`].
    pub fn evaluate(&mut self, batch: &Batch<'_>) -> Result<f64> {
        self.check_batch(batch)?;
        let Model { decoder, parameters, ropes, scratch, training, .. } = self;
        let training = training.as_ref().ok_or_else(not_trainable)?;
        let memory = Memory::Tape(Tape::default());
        let mut pass = Pass::new(parameters, memory, batch.segments(), Vec::new(), ropes, None, scratch);
        pass.precision = training.precision;
        let targets = Targets { labels: batch.labels, smoothing: 0.0, scale: 1.0 };
        decoder.loss(&mut pass, batch.tokens, &targets)
    }

    /// The tensors of the checkpoint, those that train first.
    ///
    /// Errors: a model that does not train.
    pub fn tensors(&self) -> Result<&[Tensor]> {
        self.training.as_ref().ok_or_else(not_trainable)?;
        Ok(self.parameters.flat().tensors())
    }

    /// A copy of a tensor's values.
    ///
    /// Errors: a model that does not train; a name that no tensor has.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensors()?.iter().find(|tensor| tensor.name == name).ok_or_else(|| {
            Error::argument("name", format!("{name:?}"), "the name of a tensor of the checkpoint")
        })?;
        Ok(self.parameters.flat().tensor(tensor))
    }

    /// The parameters that train, or their gradients, one after the other.
    ///
    /// Errors: a model that does not train.
    pub fn arena(&mut self, arena: Arena) -> Result<&mut Piece> {
        let training = self.training.as_mut().ok_or_else(not_trainable)?;
        Ok(match arena {
            Arena::Parameters => self.parameters.flat_mut().trained_mut(),
            Arena::Gradients => &mut training.gradients,
        })
    }

    /// The parameters that train, and their gradients, for a step of an optimiser.
    ///
    /// Errors: a model that does not train, or has no gradients since the last step.
    pub fn step_arenas(&mut self) -> Result<(&mut [f32], &[f32])> {
        let training = self.training.as_mut().ok_or_else(not_trainable)?;
        if !std::mem::replace(&mut training.summed, false) {
            let expected = "at least one loss_and_grad since the last step";
            return Err(Error::argument("gradients", "none", expected));
        }
        Ok((self.parameters.flat_mut().trained_mut(), &training.gradients))
    }

    fn check_batch(&self, batch: &Batch<'_>) -> Result<()> {
        self.check_tokens(batch.tokens)?;
        batch.lengths.iter().try_for_each(|&len| self.check_sequence(len))?;
        let rows: usize = batch.lengths.iter().sum();
        if rows != batch.tokens.len() || rows != batch.labels.len() {
            let found = format!("{} tokens and {} labels", batch.tokens.len(), batch.labels.len());
            return Err(Error::argument("lengths", found, format!("{rows} of each")));
        }
        let vocab = self.decoder.vocab_size;
        let is_label = |label: i32| usize::try_from(label).is_ok_and(|label| label < vocab);
        match batch.labels.iter().find(|&&label| label != IGNORED && !is_label(label)) {
            None => Ok(()),
            Some(label) => {
                let expected = format!("{IGNORED}, or ids less than vocab_size = {vocab}");
                Err(Error::argument("labels", label, expected))
            }
        }
    }
}

fn not_trainable() -> Error {
    Error::argument("model", "one loaded to infer", "one loaded with trainable=True")
}

impl Batch<'_> {
    fn segments(&self) -> Vec<Segment> {
        let mut start = 0;
        let segment = |&len: &usize| {
            start += len;
            // No cache knows of these sequences.
            Segment { seq: SeqId(0), first_position: 0, rows: start - len..start }
        };
        self.lengths.iter().map(segment).collect()
    }
}
