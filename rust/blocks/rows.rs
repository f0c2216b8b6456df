//! Rows of activations, and the sequences that they belong to.

use std::ops::Range;

use crate::kernels::Matrix;
use crate::step::SeqId;

/// Activations, `[rows, width]`, row-major.
pub struct Rows {
    pub values: Vec<f32>,
    pub rows: usize,
    pub width: usize,
}

impl Rows {
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.width..][..self.width]
    }

    pub fn matrix(&self) -> Matrix<'_> {
        Matrix::new(&self.values, self.rows, self.width)
    }
}

/// Rows of a pass that continue one sequence.
#[derive(Clone, Debug)]
pub struct Segment {
    pub seq: SeqId,
    /// The position of the first row in its sequence.
    pub first_position: usize,
    pub rows: Range<usize>,
}
