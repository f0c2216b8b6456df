//! What a pass carries beside its rows.

use crate::blocks::builder::{DropoutId, RopeId};
pub use crate::blocks::rows::{Rows, Segment};
use crate::blocks::spec::RopeSpec;
use crate::blocks::tape::Tape;
use crate::cache::KvPool;
use crate::error::Result;
use crate::kernels::Precision;
use crate::memory;
use crate::parameters::{Parameters, Sink};
use crate::sites::{Hook, SiteId};

/// The cosines and sines of the turns of every row of a pass, `[rows, frequencies]` each.
pub struct Turns {
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl Turns {
    /// The angle is rounded to float32 before its sine is taken, as the reference implementations do;
    /// `libm` makes the result the same on every machine.
    pub fn new(rope: &RopeSpec, positions: impl Iterator<Item = usize>) -> Self {
        let mut turns = Turns { cos: Vec::new(), sin: Vec::new() };
        for position in positions {
            for &frequency in &rope.frequencies {
                let (sin, cos) = libm::sincos(f64::from(position as f32 * frequency));
                turns.cos.push(cos as f32 * rope.scale);
                turns.sin.push(sin as f32 * rope.scale);
            }
        }
        turns
    }
}

/// Memory that passes use again: buffers come back through [`Pass::give`].
#[derive(Default)]
pub struct Scratch {
    free: Vec<Vec<f32>>,
    /// Buffers that the pass has taken and not given back, and the most that were at any time.
    out: usize,
    most_out: usize,
}

impl Scratch {
    /// A buffer of `len` floats: one that was of this length, since a longer one has to be filled up, else the
    /// smallest that has the room and not more than twice as much.
    fn take(&mut self, len: usize) -> Vec<f32> {
        self.out += 1;
        self.most_out = self.most_out.max(self.out);
        let fits = |buffer: &Vec<f32>| (len..=2 * len).contains(&buffer.capacity());
        let fitting = (0..self.free.len()).filter(|&i| fits(&self.free[i]));
        match fitting.min_by_key(|&i| (self.free[i].len() != len, self.free[i].capacity())) {
            Some(index) => {
                let mut buffer = self.free.swap_remove(index);
                buffer.resize(len, 0.0);
                buffer
            }
            None => memory::filled(0.0, len),
        }
    }

    /// Passes of other sizes leave buffers that nothing asks for again: no more are kept than twice as many as were
    /// ever in use, since those of a layer that are not in use at the same time differ in size.
    fn give(&mut self, buffer: Vec<f32>) {
        self.out = self.out.saturating_sub(1);
        if self.free.len() + self.out >= 2 * self.most_out && !self.free.is_empty() {
            self.free.remove(0);
        }
        self.free.push(buffer);
    }
}

/// What outlives a pass over its rows.
pub enum Memory<'a> {
    /// Keys and values, to infer.
    Cache(&'a mut KvPool),
    /// Activations, to train: every sequence is there from its beginning.
    Tape(Tape<'a>),
}

/// One pass over the rows of a batch. Padding never exists: sequences lie one after the other.
pub struct Pass<'a> {
    pub params: &'a Parameters,
    pub memory: Memory<'a>,
    /// What the factors of products with weights are rounded to.
    pub precision: Precision,
    /// The sequences of the rows, in order; after narrowing, of the rows that are left.
    pub segments: Vec<Segment>,
    turns: Vec<Turns>,
    /// The rows whose logits are wanted, ascending.
    wanted: Vec<usize>,
    narrowed: bool,
    hook: Option<&'a mut dyn Hook>,
    scratch: &'a mut Scratch,
}

impl<'a> Pass<'a> {
    pub fn new(
        params: &'a Parameters,
        memory: Memory<'a>,
        segments: Vec<Segment>,
        wanted: Vec<usize>,
        ropes: &[RopeSpec],
        hook: Option<&'a mut dyn Hook>,
        scratch: &'a mut Scratch,
    ) -> Self {
        let turns = ropes.iter().map(|rope| Turns::new(rope, positions(&segments))).collect();
        scratch.out = 0;
        let precision = Precision::Float32;
        Pass { params, memory, precision, segments, turns, wanted, narrowed: false, hook, scratch }
    }

    /// The tape of a pass that trains.
    pub fn tape(&mut self) -> Option<&mut Tape<'a>> {
        match &mut self.memory {
            Memory::Tape(tape) => Some(tape),
            Memory::Cache(_) => None,
        }
    }

    /// Whether activations may be dropped.
    pub fn trains(&self) -> bool {
        matches!(&self.memory, Memory::Tape(Tape { dropout: Some(_), .. }))
    }

    /// Keeps what the backward pass needs, if there will be one.
    pub fn keep(&mut self, x: Rows) {
        let left = match self.tape() {
            Some(tape) => tape.push(x),
            None => Some(x),
        };
        if let Some(x) = left {
            self.give(x);
        }
    }

    /// Whether [`Pass::keep`] keeps.
    pub fn keeps(&self) -> bool {
        matches!(&self.memory, Memory::Tape(tape) if tape.keeps())
    }

    /// Whether only the inputs of layers are kept.
    pub fn checkpoints(&mut self) -> bool {
        self.tape().is_some_and(|tape| tape.checkpointing)
    }

    /// Runs a layer; where only the inputs of layers are kept, it keeps nothing.
    pub fn once<R>(&mut self, layer: impl FnOnce(&mut Self) -> R) -> R {
        if !self.checkpoints() {
            return layer(self);
        }
        let mut pause = |paused| self.tape().map(|tape| tape.pause(paused));
        pause(true);
        let result = layer(self);
        self.tape().map(|tape| tape.pause(false));
        result
    }

    /// What was kept last.
    pub fn recall(&mut self) -> Rows {
        self.tape().expect("a backward pass has a tape").pop()
    }

    /// Where a backward pass puts the gradients of parameters.
    pub fn sink(&mut self) -> &mut Sink<'a> {
        self.tape().and_then(|tape| tape.sink.as_mut()).expect("a backward pass has a sink")
    }

    /// Drops activations, or gradients, of the residual stream while training.
    pub fn drop_out(&mut self, place: DropoutId, x: &mut Rows) {
        self.drop_out_at(place, self.dropout_rate(), x);
    }

    /// As [`Pass::drop_out`], at a rate of the place's own.
    pub fn drop_out_at(&mut self, place: DropoutId, rate: f32, x: &mut Rows) {
        if let Memory::Tape(Tape { dropout: Some(dropout), .. }) = &self.memory {
            dropout.apply(place, rate, &self.segments, x);
        }
    }

    /// The rate of [`Pass::drop_out`].
    pub fn dropout_rate(&self) -> f32 {
        match &self.memory {
            Memory::Tape(Tape { dropout: Some(dropout), .. }) => dropout.rate,
            _ => 0.0,
        }
    }

    /// The position of every row.
    pub fn positions(&self) -> impl Iterator<Item = usize> {
        positions(&self.segments)
    }

    /// The turns of every row that the pass began with.
    pub fn turns(&self, rope: RopeId) -> &Turns {
        &self.turns[rope.0]
    }

    /// The rows whose logits are wanted, ascending.
    pub fn wanted(&self) -> &[usize] {
        &self.wanted
    }

    /// Whether a layer may go on with only the wanted rows: not while a hook looks at all of them.
    pub fn may_narrow(&self) -> bool {
        self.hook.is_none() && !self.narrowed
    }

    /// From here on only the wanted rows run.
    pub fn narrow(&mut self) {
        let mut narrowed: Vec<Segment> = Vec::new();
        let mut segments = self.segments.iter().peekable();
        for (left, &row) in self.wanted.iter().enumerate() {
            while segments.next_if(|segment| segment.rows.end <= row).is_some() {}
            let Some(segment) = segments.peek() else { break };
            let first_position = segment.first_position + (row - segment.rows.start);
            match narrowed.last_mut() {
                Some(last)
                    if last.seq == segment.seq && last.first_position + last.rows.len() == first_position =>
                {
                    last.rows.end += 1;
                }
                _ => narrowed.push(Segment { seq: segment.seq, first_position, rows: left..left + 1 }),
            }
        }
        self.segments = narrowed;
        self.narrowed = true;
    }

    /// The wanted rows of all rows; all that are there if the pass has narrowed.
    pub fn keep_wanted(&mut self, x: Rows) -> Rows {
        if self.narrowed || self.wanted.len() == x.rows {
            return x;
        }
        let kept = self.select_wanted(&x);
        self.give(x);
        kept
    }

    /// A copy of the wanted rows of all rows.
    pub fn select_wanted(&mut self, x: &Rows) -> Rows {
        let mut kept = self.take(self.wanted.len(), x.width);
        for (to, &from) in kept.values.chunks_exact_mut(x.width).zip(&self.wanted) {
            to.copy_from_slice(x.row(from));
        }
        kept
    }

    /// Shows rows to the hook, if it wants the site.
    pub fn site(&mut self, site: SiteId, x: &Rows) -> Result<()> {
        self.site_of(site, &[x.rows, x.width], &x.values)
    }

    /// Shows some columns of rows to the hook, if it wants the site.
    pub fn site_of_columns(&mut self, site: SiteId, x: &Rows, start: usize, width: usize) -> Result<()> {
        if self.wants(site) {
            let columns: Vec<f32> =
                x.values.chunks_exact(x.width).flat_map(|row| &row[start..][..width]).copied().collect();
            self.site_of(site, &[x.rows, width], &columns)?;
        }
        Ok(())
    }

    /// Shows values of any shape to the hook, if it wants the site.
    pub fn site_of(&mut self, site: SiteId, shape: &[usize], values: &[f32]) -> Result<()> {
        match self.hook.as_deref_mut().filter(|hook| hook.wants(site)) {
            Some(hook) => hook.visit(site, shape, values),
            None => Ok(()),
        }
    }

    pub fn wants(&self, site: SiteId) -> bool {
        self.hook.as_deref().is_some_and(|hook| hook.wants(site))
    }

    /// A buffer of `[rows, width]` whose values are yet to be written.
    pub fn take(&mut self, rows: usize, width: usize) -> Rows {
        Rows { values: self.scratch.take(rows * width), rows, width }
    }

    pub fn copy(&mut self, x: &Rows) -> Rows {
        let mut copy = self.take(x.rows, x.width);
        copy.values.copy_from_slice(&x.values);
        copy
    }

    /// Gives a buffer back for later use.
    pub fn give(&mut self, x: Rows) {
        self.scratch.give(x.values);
    }
}

fn positions(segments: &[Segment]) -> impl Iterator<Item = usize> {
    segments.iter().flat_map(|segment| segment.first_position..segment.first_position + segment.rows.len())
}
