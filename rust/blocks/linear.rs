//! The one place of every product with a weight.

use std::ops::Range;

use crate::blocks::adapter::Adapter;
use crate::blocks::builder::Builder;
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::kernels::{MatrixMut, gemm};
use crate::parameters::{MatrixId, VectorId};
use crate::simd::LANES;
use crate::threads;

/// `x weightᵀ + bias` for one or several outputs over the same input, in one product.
pub struct Linear {
    weight: MatrixId,
    /// The biases of all outputs, one after the other.
    bias: Option<VectorId>,
    /// Where each output begins; one more for the end.
    starts: Vec<usize>,
    adapters: Vec<Adapter>,
}

impl Linear {
    /// Compiles the outputs `(name, size)`; an empty name stands for the block's own.
    pub fn compile(
        outputs: &[(&str, usize)],
        bias: bool,
        inputs: usize,
        builder: &mut Builder,
    ) -> Result<Self> {
        let leaf =
            |name: &str, kind: &str| if name.is_empty() { kind.to_owned() } else { format!("{name}.{kind}") };
        let mut starts = vec![0];
        for &(name, size) in outputs {
            starts.push(starts[starts.len() - 1] + builder.size(&leaf(name, "size"), size)?);
        }
        let parts = |kind: &str| -> Vec<(String, usize)> {
            outputs.iter().map(|&(name, size)| (leaf(name, kind), size)).collect()
        };
        let weight = builder.matrix(&parts("weight"), inputs);
        let bias = bias.then(|| builder.vectors(&parts("bias")));
        let adapters = Adapter::compile(outputs, &starts, inputs, builder)?;
        Ok(Linear { weight, bias, starts, adapters })
    }

    /// The head that shares a matrix with the embeddings.
    pub fn tied(weight: MatrixId, outputs: usize) -> Self {
        Linear { weight, bias: None, starts: vec![0, outputs], adapters: Vec::new() }
    }

    /// Where output `index` begins in a row of all outputs; their total size for one past the last.
    pub fn start(&self, index: usize) -> usize {
        self.starts[index]
    }

    /// Whether output `index` begins at a border of panels, so that the outputs on either side can run alone.
    pub fn splits_at(&self, index: usize) -> bool {
        self.starts[index].is_multiple_of(LANES)
    }

    /// `[rows, inputs]` to `[rows, outputs]`, all outputs side by side.
    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Rows {
        self.forward_outputs(pass, x, 0..self.starts.len() - 1)
    }

    /// Only the outputs of a range, which begins and ends where [`Linear::splits_at`] holds.
    pub fn forward_outputs(&self, pass: &mut Pass<'_>, x: &Rows, outputs: Range<usize>) -> Rows {
        let columns = self.starts[outputs.start]..self.starts[outputs.end];
        let mut y = pass.take(x.rows, columns.len());
        let weight = pass.params.matrix(self.weight).row_range(columns.clone());
        let bias = self.bias.map(|bias| &pass.params.vector(bias)[columns.clone()]);
        let output = MatrixMut::new(&mut y.values, x.rows, columns.len());
        threads::soon(pass.params.memory_after(self.weight));
        gemm(x.matrix(), weight, bias, output, pass.precision);
        for adapter in &self.adapters {
            adapter.forward(pass, x, &mut y, &columns);
        }
        y
    }

    /// `x [rows, inputs]` and the gradient at all outputs, `dy [rows, outputs]`, to that at the input,
    /// `[rows, inputs]`.
    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Rows {
        let sink = pass.sink();
        sink.outer(self.weight, x.matrix(), dy.matrix());
        if let Some(bias) = self.bias {
            sink.row_sum(bias, &dy.values);
        }
        let mut dx = pass.take(x.rows, x.width);
        let weight = pass.params.matrix(self.weight).transposed();
        let output = MatrixMut::new(&mut dx.values, x.rows, x.width);
        gemm(dy.matrix(), weight, None, output, pass.precision);
        for adapter in &self.adapters {
            adapter.backward(pass, x, dy, &mut dx);
        }
        dx
    }
}
