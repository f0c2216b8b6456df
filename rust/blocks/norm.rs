//! Norms over each row.

use crate::blocks::builder::Builder;
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::kernels::{layer_norm, rms_norm};
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
}
