//! `x + blocks(x)`.

use super::{Block, backward_all, forward_all};
use crate::blocks::builder::DropoutId;
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;
use crate::kernels::add;

pub struct Residual {
    pub blocks: Vec<Block>,
    /// While training, some of what is added is dropped.
    pub dropout: DropoutId,
}

impl Residual {
    /// If the blocks narrowed the pass, the sum is of the rows that are left.
    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut y = forward_all(&self.blocks, pass, x)?;
        pass.drop_out(self.dropout, &mut y);
        if y.rows == x.rows {
            add(&x.values, &mut y.values);
        } else {
            for (sum, &row) in y.values.chunks_exact_mut(x.width).zip(pass.wanted()) {
                sum.iter_mut().zip(x.row(row)).for_each(|(sum, x)| *sum += x);
            }
        }
        Ok(y)
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
        let mut dx = if pass.dropout_rate() > 0.0 {
            let mut left = pass.copy(dy);
            pass.drop_out(self.dropout, &mut left);
            let dx = backward_all(&self.blocks, pass, x, &left)?;
            pass.give(left);
            dx
        } else {
            backward_all(&self.blocks, pass, x, dy)?
        };
        add(&dy.values, &mut dx.values);
        Ok(dx)
    }
}
