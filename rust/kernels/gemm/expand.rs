//! Quantised matrices as operands of a product of floats: blocks are expanded as they are about to be packed.

use std::ops::Range;

use crate::weights::Quantized;

/// `[n, k]`, or its transpose: parts whose outputs stand side by side.
#[derive(Clone)]
pub struct Expanded {
    parts: Vec<Quantized>,
    transposed: bool,
}

impl Expanded {
    pub fn new(parts: Vec<Quantized>) -> Self {
        Expanded { parts, transposed: false }
    }

    pub fn transposed(self) -> Self {
        Expanded { transposed: !self.transposed, ..self }
    }

    pub(super) fn shape(&self) -> (usize, usize) {
        let (n, k) = shape(&self.parts);
        if self.transposed { (k, n) } else { (n, k) }
    }

    /// The rows of a range that begins and ends at borders of parts or panels, of what is not transposed.
    pub(super) fn row_range(&self, rows: Range<usize>) -> Self {
        assert!(!self.transposed);
        Expanded { parts: row_range(&self.parts, rows), transposed: false }
    }

    pub(super) fn row(&self, i: usize, out: &mut [f32]) {
        assert!(!self.transposed);
        row(&self.parts, i, 0..out.len(), out);
    }

    /// Some rows and columns into `out`; gives the distances there from row to row and from column to column.
    pub(super) fn block(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut Vec<f32>,
    ) -> (usize, usize) {
        let (outputs, inputs) = if self.transposed { (columns, rows) } else { (rows, columns) };
        let width = inputs.len();
        out.resize(outputs.len() * width, 0.0);
        for (i, out) in outputs.zip(out.chunks_exact_mut(width.max(1))) {
            row(&self.parts, i, inputs.clone(), out);
        }
        if self.transposed { (1, width) } else { (width, 1) }
    }
}

/// `[n, k]` of parts.
pub(super) fn shape(parts: &[Quantized]) -> (usize, usize) {
    (parts.iter().map(|part| part.n).sum(), parts.first().map_or(0, |part| part.k))
}

/// Some columns of row `i`.
pub(super) fn row(parts: &[Quantized], i: usize, columns: Range<usize>, out: &mut [f32]) {
    let mut i = i;
    for part in parts {
        if i < part.n {
            return part.expand(i, columns, out);
        }
        i -= part.n;
    }
}

/// The parts, or what there is of each, of some rows.
pub(super) fn row_range(parts: &[Quantized], rows: Range<usize>) -> Vec<Quantized> {
    let mut first = 0;
    let mut some = Vec::new();
    for part in parts {
        let within = |row: usize| row.clamp(first, first + part.n) - first;
        let range = within(rows.start)..within(rows.end);
        if !range.is_empty() {
            some.push(part.outputs(range));
        }
        first += part.n;
    }
    some
}
