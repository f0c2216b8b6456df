//! What a pass that trains carries: the activations that the backward pass needs, the place for gradients,
//! and dropout.

use crate::blocks::builder::DropoutId;
use crate::blocks::rows::{Rows, Segment};
use crate::kernels::{RowKey, dropout};
use crate::parameters::Sink;
use crate::random::Philox;

/// A stack: blocks lay down what they need, and the backward pass, in the reverse order, takes it up.
#[derive(Default)]
pub struct Tape<'a> {
    saved: Vec<Rows>,
    /// Where gradients of parameters go; without it nothing is kept.
    pub sink: Option<Sink<'a>>,
    /// Of a layer only the input is kept; the rest is computed again (Chen et al. 2016).
    pub checkpointing: bool,
    /// Within a layer whose activations will be computed again.
    paused: bool,
    pub dropout: Option<Dropout>,
}

impl<'a> Tape<'a> {
    /// A tape for a backward pass, whose gradients go to `sink`.
    pub fn new(sink: Sink<'a>, checkpointing: bool, dropout: Option<Dropout>) -> Self {
        Tape { sink: Some(sink), checkpointing, dropout, ..Tape::default() }
    }

    pub fn keeps(&self) -> bool {
        self.sink.is_some() && !self.paused
    }

    /// Gives the rows back if nothing is to be kept.
    pub fn push(&mut self, x: Rows) -> Option<Rows> {
        if !self.keeps() {
            return Some(x);
        }
        self.saved.push(x);
        None
    }

    pub fn pop(&mut self) -> Rows {
        self.saved.pop().expect("a backward pass takes up what the forward pass laid down")
    }

    /// Whether blocks lay nothing down from here on; how it was before.
    pub fn pause(&mut self, paused: bool) -> bool {
        std::mem::replace(&mut self.paused, paused)
    }
}

/// Dropout (Srivastava et al. 2014) of one step of training.
#[derive(Clone, Copy, Debug)]
pub struct Dropout {
    /// The probability to drop in the residual stream, less than 1.
    pub rate: f32,
    /// The draws of this step.
    pub draws: Philox,
    /// The number, within the step, of the pass's first sequence.
    pub first_sequence: u64,
}

impl Dropout {
    /// Drops at one place, at a rate of its own. Applied to a gradient it drops the same elements.
    pub fn apply(&self, place: DropoutId, rate: f32, segments: &[Segment], x: &mut Rows) {
        if rate == 0.0 {
            return;
        }
        let keys: Vec<RowKey> = (self.first_sequence..)
            .zip(segments)
            .flat_map(|(sequence, segment)| {
                let positions = segment.first_position..segment.first_position + segment.rows.len();
                positions.map(move |position| RowKey { sequence, position: position as u32 })
            })
            .collect();
        dropout(&mut x.values, x.width, rate, self.draws.derive(place.0.into(), 0), &keys);
    }
}
