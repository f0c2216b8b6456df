//! Low-rank adapters (LoRA, Hu et al. 2021) of products with weights that do not train.

use std::ops::Range;

use crate::blocks::builder::{Builder, DropoutId};
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::kernels::{Matrix, MatrixMut, add, gemm, gemm_add};
use crate::parameters::MatrixId;

/// Adds `scale · (x aᵀ) bᵀ` to some neighbouring outputs of a product: `a [rank, inputs]`, `b [outputs, rank]`.
/// While training, some of x is dropped first.
pub struct Adapter {
    a: MatrixId,
    b: MatrixId,
    rank: usize,
    scale: f32,
    /// Of all outputs of the product.
    columns: Range<usize>,
    dropout: (DropoutId, f32),
}

impl Adapter {
    /// The adapters of a product's outputs, each a name and a size, which begin at `starts`.
    pub fn compile(
        outputs: &[(&str, usize)],
        starts: &[usize],
        inputs: usize,
        builder: &mut Builder,
    ) -> Result<Vec<Adapter>> {
        let Some(spec) = builder.adapters.clone() else { return Ok(Vec::new()) };
        let paths: Vec<String> = outputs.iter().map(|(name, _)| builder.path(name)).collect();
        let mut adapters = Vec::new();
        for target in spec.targets.iter().filter(|target| !target.is_empty()) {
            let Some(first) = paths.windows(target.len()).position(|paths| paths == target) else { continue };
            let range = first..first + target.len();
            let rank = builder.size("rank", spec.rank)?;
            let leaf =
                |name: &str, end: &str| format!("{name}{}{end}", if name.is_empty() { "" } else { "." });
            let a = [(leaf(outputs[first].0, "lora_A"), rank)];
            let b: Vec<(String, usize)> =
                range.clone().map(|i| (leaf(outputs[i].0, "lora_B"), outputs[i].1)).collect();
            adapters.push(Adapter {
                a: builder.added_matrix(&a, inputs),
                b: builder.added_matrix(&b, rank),
                rank,
                scale: spec.scale,
                columns: starts[range.start]..starts[range.end],
                dropout: (builder.dropout(), spec.dropout),
            });
        }
        Ok(adapters)
    }

    /// Adds to `y`, which has the outputs of `columns`.
    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows, y: &mut Rows, columns: &Range<usize>) {
        let start = self.columns.start.max(columns.start);
        let end = self.columns.end.min(columns.end);
        if start >= end || x.rows == 0 {
            return;
        }
        let dropped = self.dropped(pass, x);
        let inner = self.inner(pass, dropped.as_ref().unwrap_or(x));
        let b = pass.params.matrix(self.b).row_range(start - self.columns.start..end - self.columns.start);
        let width = y.width;
        let y = MatrixMut::strided(&mut y.values[start - columns.start..], x.rows, end - start, width);
        gemm_add(inner.matrix(), b, y, pass.precision);
        for done in dropped.into_iter().chain([inner]) {
            pass.give(done);
        }
    }

    /// `x` and the gradient at all outputs, `dy`: adds to `dx`.
    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows, dx: &mut Rows) {
        let dropped = self.dropped(pass, x);
        let input = dropped.as_ref().unwrap_or(x);
        let inner = self.inner(pass, input);
        let dy = Matrix::new(&dy.values, dy.rows, dy.width).column_range(self.columns.clone());
        let mut dinner = pass.take(x.rows, self.rank);
        let b = pass.params.matrix(self.b).transposed();
        gemm(dy, b, None, MatrixMut::new(&mut dinner.values, x.rows, self.rank), pass.precision);
        dinner.values.iter_mut().for_each(|value| *value *= self.scale);
        let sink = pass.sink();
        sink.outer(self.b, inner.matrix(), dy);
        sink.outer(self.a, input.matrix(), dinner.matrix());
        let mut dinput = pass.take(x.rows, x.width);
        let a = pass.params.matrix(self.a).transposed();
        gemm(dinner.matrix(), a, None, MatrixMut::new(&mut dinput.values, x.rows, x.width), pass.precision);
        pass.drop_out_at(self.dropout.0, self.dropout.1, &mut dinput);
        add(&dinput.values, &mut dx.values);
        for done in dropped.into_iter().chain([inner, dinner, dinput]) {
            pass.give(done);
        }
    }

    /// A copy of `x` of which some is dropped, if this is asked for.
    fn dropped(&self, pass: &mut Pass<'_>, x: &Rows) -> Option<Rows> {
        let (place, rate) = self.dropout;
        (rate > 0.0 && pass.trains()).then(|| {
            let mut dropped = pass.copy(x);
            pass.drop_out_at(place, rate, &mut dropped);
            dropped
        })
    }

    /// `scale · x aᵀ`, `[rows, rank]`.
    fn inner(&self, pass: &mut Pass<'_>, x: &Rows) -> Rows {
        let mut inner = pass.take(x.rows, self.rank);
        let a = pass.params.matrix(self.a);
        gemm(x.matrix(), a, None, MatrixMut::new(&mut inner.values, x.rows, self.rank), pass.precision);
        inner.values.iter_mut().for_each(|value| *value *= self.scale);
        inner
    }
}
