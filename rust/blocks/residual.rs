//! `x + blocks(x)`.

use super::{Block, forward_all};
use crate::blocks::pass::{Pass, Rows};
use crate::error::Result;

pub struct Residual {
    pub blocks: Vec<Block>,
}

impl Residual {
    /// If the blocks narrowed the pass, the sum is of the rows that are left.
    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut y = forward_all(&self.blocks, pass, x)?;
        if y.rows == x.rows {
            add(&mut y.values, &x.values);
        } else {
            for (sum, &row) in y.values.chunks_exact_mut(x.width).zip(pass.wanted()) {
                add(sum, x.row(row));
            }
        }
        Ok(y)
    }
}

fn add(sum: &mut [f32], x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
}
