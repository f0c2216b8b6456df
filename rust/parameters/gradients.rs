//! Where blocks write the gradients of parameters.

use std::ops::Range;

use super::flat::Place;
use super::{Flat, MatrixId, TableId, VectorId};
use crate::kernels::{Matrix, MatrixMut, Precision, add_row_sums, add_to_rows, gemm_add};

/// Adds to an array in the order of the parameters. What is frozen is passed over.
pub struct Sink<'a> {
    flat: &'a Flat,
    gradients: &'a mut [f32],
    precision: Precision,
}

impl<'a> Sink<'a> {
    /// `gradients [flat.trained().len()]`; products are of factors of the given precision.
    pub fn new(flat: &'a Flat, gradients: &'a mut [f32], precision: Precision) -> Self {
        assert!(gradients.len() == flat.trained().len());
        Sink { flat, gradients, precision }
    }

    fn trains(&self, range: &Range<usize>) -> bool {
        range.end <= self.gradients.len()
    }

    /// `x [rows, inputs]`, `dy [rows, outputs]`: the matrix of y = x · wᵀ gets dyᵀ · x.
    pub fn outer(&mut self, id: MatrixId, x: Matrix<'_>, dy: Matrix<'_>) {
        let Some(place) = self.flat.place(id).filter(|place| place.start < self.gradients.len()) else {
            return;
        };
        let Place { start, rows, columns, row_stride, column_stride } = place;
        let gradient = &mut self.gradients[start..];
        // A matrix of one output that is stored [inputs, outputs] has columns one float apart, too.
        if column_stride == 1 && columns <= row_stride {
            let gradient = MatrixMut::strided(gradient, rows, columns, row_stride);
            gemm_add(dy.transposed(), x.transposed(), gradient, self.precision);
        } else {
            let gradient = MatrixMut::strided(gradient, columns, rows, column_stride);
            gemm_add(x.transposed(), dy.transposed(), gradient, self.precision);
        }
    }

    /// `dy [rows, len]`: the vector, added to every row, gets the sum of the rows.
    pub fn row_sum(&mut self, id: VectorId, dy: &[f32]) {
        let range = self.flat.vector_range(id);
        if self.trains(&range) {
            add_row_sums(dy, range.len(), &mut self.gradients[range]);
        }
    }

    /// `dy [indices, width]`: the rows that were looked up get theirs.
    pub fn scatter(&mut self, id: TableId, indices: &[u32], dy: &[f32]) {
        self.scatter_to(self.flat.table(id), indices, dy);
    }

    /// As [`Sink::scatter`], to a matrix whose rows were looked up.
    pub fn scatter_to_matrix(&mut self, id: MatrixId, indices: &[u32], dy: &[f32]) {
        if let Some(place) = self.flat.place(id) {
            self.scatter_to(place, indices, dy);
        }
    }

    fn scatter_to(&mut self, place: Place, indices: &[u32], dy: &[f32]) {
        assert!(place.column_stride == 1 && place.row_stride == place.columns, "a table of whole rows");
        let range = place.range();
        if self.trains(&range) {
            add_to_rows(dy, place.columns, indices, &mut self.gradients[range]);
        }
    }

    /// The gradients of two vectors, to add to; None for one that is not there or frozen.
    pub fn vectors(&mut self, ids: [Option<VectorId>; 2]) -> [Option<&mut [f32]>; 2] {
        let range = |id: VectorId| Some(self.flat.vector_range(id)).filter(|range| self.trains(range));
        let [first, second] = ids.map(|id| id.and_then(range));
        two_ranges(self.gradients, first, second)
    }
}

/// Two ranges that do not overlap.
fn two_ranges(
    values: &mut [f32],
    first: Option<Range<usize>>,
    second: Option<Range<usize>>,
) -> [Option<&mut [f32]>; 2] {
    match (first, second) {
        (Some(a), Some(b)) if a.end <= b.start => {
            let (left, right) = values.split_at_mut(b.start);
            [Some(&mut left[a]), Some(&mut right[..b.len()])]
        }
        (Some(a), Some(b)) => {
            let (left, right) = values.split_at_mut(a.start);
            [Some(&mut right[..a.len()]), Some(&mut left[b])]
        }
        (Some(a), None) => [Some(&mut values[a]), None],
        (None, Some(b)) => [None, Some(&mut values[b])],
        (None, None) => [None, None],
    }
}
