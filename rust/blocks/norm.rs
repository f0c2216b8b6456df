//! Norms over each row.

use crate::blocks::builder::Builder;
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::kernels::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
use crate::parameters::VectorId;
use crate::sites::SiteId;

/// `(x - mean) / sqrt(variance + eps) * weight + bias` (Ba et al. 2016).
pub struct LayerNorm {
    weight: VectorId,
    bias: Option<VectorId>,
    eps: f32,
    output: SiteId,
}

impl LayerNorm {
    pub fn compile(eps: f32, bias: bool, width: usize, builder: &mut Builder) -> Self {
        LayerNorm {
            weight: builder.vector("weight", width),
            bias: bias.then(|| builder.vector("bias", width)),
            eps,
            output: builder.site(""),
        }
    }

    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut y = pass.take(x.rows, x.width);
        let bias = self.bias.map(|bias| pass.params.vector(bias));
        layer_norm(&x.values, x.width, pass.params.vector(self.weight), bias, self.eps, &mut y.values);
        pass.site(self.output, &y)?;
        Ok(y)
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Rows {
        let mut dx = pass.take(x.rows, x.width);
        let weight = pass.params.vector(self.weight);
        let [dweight, dbias] = pass.sink().vectors([Some(self.weight), self.bias]);
        let (x, width, dy) = (&x.values, x.width, &dy.values);
        layer_norm_backward(x, width, weight, self.eps, dy, &mut dx.values, dweight, dbias);
        dx
    }
}

/// `x / sqrt(mean(x²) + eps) * weight` (Zhang and Sennrich 2019).
pub struct RmsNorm {
    weight: VectorId,
    eps: f32,
    output: SiteId,
}

impl RmsNorm {
    pub fn compile(eps: f32, width: usize, builder: &mut Builder) -> Self {
        RmsNorm { weight: builder.vector("weight", width), eps, output: builder.site("") }
    }

    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut y = pass.take(x.rows, x.width);
        rms_norm(&x.values, x.width, pass.params.vector(self.weight), self.eps, &mut y.values);
        pass.site(self.output, &y)?;
        Ok(y)
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Rows {
        let mut dx = pass.take(x.rows, x.width);
        let weight = pass.params.vector(self.weight);
        let [dweight, _] = pass.sink().vectors([Some(self.weight), None]);
        rms_norm_backward(&x.values, x.width, weight, self.eps, &dy.values, &mut dx.values, dweight);
        dx
    }
}
