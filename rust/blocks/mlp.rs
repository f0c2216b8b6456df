//! The two forms of the position-wise network.

use crate::blocks::builder::Builder;
use crate::blocks::linear::Linear;
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::kernels::activation::{Activation, apply, gate};
use crate::sites::SiteId;

/// `act(x upᵀ) downᵀ`.
pub struct Mlp {
    up: Linear,
    down: Linear,
    act: Activation,
    hidden: SiteId,
    output: SiteId,
}

impl Mlp {
    pub fn compile(
        hidden: usize,
        act: Activation,
        bias: bool,
        width: usize,
        builder: &mut Builder,
    ) -> Result<Self> {
        Ok(Mlp {
            up: Linear::compile(&[("up", hidden)], bias, width, builder)?,
            down: Linear::compile(&[("down", width)], bias, hidden, builder)?,
            act,
            hidden: builder.site("hidden"),
            output: builder.site(""),
        })
    }

    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut hidden = self.up.forward(pass, x);
        apply(self.act, &mut hidden.values);
        pass.site(self.hidden, &hidden)?;
        let y = self.down.forward(pass, &hidden);
        pass.give(hidden);
        pass.site(self.output, &y)?;
        Ok(y)
    }
}

/// `(act(x gateᵀ) · (x upᵀ)) downᵀ` (Shazeer 2020).
pub struct GatedMlp {
    gate_up: Linear,
    down: Linear,
    act: Activation,
    width: usize,
    hidden: SiteId,
    output: SiteId,
}

impl GatedMlp {
    pub fn compile(
        hidden: usize,
        act: Activation,
        bias: bool,
        width: usize,
        builder: &mut Builder,
    ) -> Result<Self> {
        Ok(GatedMlp {
            gate_up: Linear::compile(&[("gate", hidden), ("up", hidden)], bias, width, builder)?,
            down: Linear::compile(&[("down", width)], bias, hidden, builder)?,
            act,
            width: hidden,
            hidden: builder.site("hidden"),
            output: builder.site(""),
        })
    }

    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let gate_up = self.gate_up.forward(pass, x);
        let mut hidden = pass.take(x.rows, self.width);
        gate(self.act, &gate_up.values, self.width, &mut hidden.values);
        pass.give(gate_up);
        pass.site(self.hidden, &hidden)?;
        let y = self.down.forward(pass, &hidden);
        pass.give(hidden);
        pass.site(self.output, &y)?;
        Ok(y)
    }
}
