//! Matrices of float32 in slices, as operands and results of products.

use std::ops::Range;

/// A matrix whose element (i, j) is `data[i · row_stride + j · column_stride]`: any slice or transpose of a
/// matrix in memory.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `data [rows, columns]`, row-major and nothing else.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(data.len() == rows * columns);
        Self::strided(data, rows, columns, columns, 1)
    }

    /// Begins at the first float of `data`, which may be longer.
    pub fn strided(
        data: &'a [f32],
        rows: usize,
        columns: usize,
        row_stride: usize,
        column_stride: usize,
    ) -> Self {
        let last = |n: usize, stride: usize| (n - 1) * stride;
        assert!(
            rows == 0 || columns == 0 || last(rows, row_stride) + last(columns, column_stride) < data.len()
        );
        Matrix { data, rows, columns, row_stride, column_stride }
    }

    /// `[columns, rows]`, over the same floats.
    pub fn transposed(self) -> Self {
        Matrix {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// The rows of a range.
    pub fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows);
        // Of nothing there may be no floats to begin at.
        let start = (range.start * self.row_stride).min(self.data.len());
        Matrix { data: &self.data[start..], rows: range.len(), ..self }
    }

    /// The columns of a range.
    pub fn column_range(self, range: Range<usize>) -> Self {
        self.transposed().row_range(range).transposed()
    }

    /// Row `i` of a matrix whose rows are contiguous.
    #[inline(always)]
    pub(super) fn row_slice(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows && self.column_stride == 1);
        &self.data[i * self.row_stride..][..self.columns]
    }

    /// Row `i` into `out [columns]`.
    pub fn row(&self, i: usize, out: &mut [f32]) {
        assert!(i < self.rows && out.len() == self.columns);
        let row = self.data[i * self.row_stride..].iter().step_by(self.column_stride);
        out.iter_mut().zip(row).for_each(|(out, x)| *out = *x);
    }

    pub(super) fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// A matrix to write to, whose element (i, j) is `data[i · row_stride + j]`.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    data: &'a mut [f32],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
}

impl<'a> MatrixMut<'a> {
    /// `data [rows, columns]`, row-major and nothing else.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert!(data.len() == rows * columns);
        Self::strided(data, rows, columns, columns)
    }

    /// Begins at the first float of `data`, which may be longer; rows do not overlap.
    pub fn strided(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            rows == 0
                || columns == 0
                || columns <= row_stride && (rows - 1) * row_stride + columns <= data.len()
        );
        MatrixMut { data, rows, columns, row_stride }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data.as_mut_ptr()
    }
}
