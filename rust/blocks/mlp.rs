//! The two forms of the position-wise network.

use crate::blocks::builder::Builder;
use crate::blocks::linear::Linear;
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::interrupt;
use crate::kernels::activation::{Activation, apply, apply_backward, gate, gate_backward};
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
        let raised = self.up.forward(pass, x);
        let hidden = self.activate(pass, raised);
        pass.site(self.hidden, &hidden)?;
        let y = self.down.forward(pass, &hidden);
        pass.give(hidden);
        pass.site(self.output, &y)?;
        Ok(y)
    }

    /// Keeps what was raised, if that is asked for; what is activated is cheap to compute again.
    fn activate(&self, pass: &mut Pass<'_>, raised: Rows) -> Rows {
        let mut hidden = if pass.keeps() {
            let hidden = pass.copy(&raised);
            pass.keep(raised);
            hidden
        } else {
            raised
        };
        apply(self.act, &mut hidden.values);
        hidden
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
        let raised = pass.recall();
        let mut hidden = pass.copy(&raised);
        apply(self.act, &mut hidden.values);
        let mut draised = self.down.backward(pass, &hidden, dy);
        pass.give(hidden);
        interrupt::check()?;
        apply_backward(self.act, &raised.values, &mut draised.values);
        pass.give(raised);
        let dx = self.up.backward(pass, x, &draised);
        pass.give(draised);
        Ok(dx)
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
        pass.keep(gate_up);
        pass.site(self.hidden, &hidden)?;
        let y = self.down.forward(pass, &hidden);
        pass.give(hidden);
        pass.site(self.output, &y)?;
        Ok(y)
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
        let gate_up = pass.recall();
        let mut hidden = pass.take(x.rows, self.width);
        gate(self.act, &gate_up.values, self.width, &mut hidden.values);
        let dhidden = self.down.backward(pass, &hidden, dy);
        pass.give(hidden);
        interrupt::check()?;
        let mut dgate_up = pass.take(gate_up.rows, gate_up.width);
        gate_backward(self.act, &gate_up.values, self.width, &dhidden.values, &mut dgate_up.values);
        pass.give(gate_up);
        pass.give(dhidden);
        let dx = self.gate_up.backward(pass, x, &dgate_up);
        pass.give(dgate_up);
        Ok(dx)
    }
}
