//! The blocks: one a file, compiled from the description that Python sends.
//!
//! A block maps rows to rows. [`pass::Pass`] carries what a pass needs beside them: the parameters,
//! the sequences that the rows belong to, the cache, hooks, and scratch memory.

pub mod adapter;
pub mod attention;
pub mod builder;
pub mod decoder;
pub mod embed;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod pass;
pub mod repeat;
pub mod residual;
pub mod rows;
pub mod spec;
pub mod tape;

use crate::error::{Error, Result};
#[cfg(test)]
mod contract;

use attention::Attention;
use builder::Builder;
use mlp::{GatedMlp, Mlp};
use norm::{LayerNorm, RmsNorm};
use pass::{Pass, Rows};
use repeat::Repeat;
use residual::Residual;
use spec::Spec;

/// A compiled block.
pub enum Block {
    Serial(Vec<Block>),
    Residual(Residual),
    Repeat(Repeat),
    LayerNorm(LayerNorm),
    RmsNorm(RmsNorm),
    Attention(Attention),
    Mlp(Mlp),
    GatedMlp(GatedMlp),
}

impl Block {
    /// Compiles a block that maps rows of `width` to rows of `width`.
    ///
    /// Errors: a size out of range, or a kind that does not stand here, with its path.
    pub fn compile(spec: &Spec, width: usize, builder: &mut Builder) -> Result<Block> {
        builder.within(spec, |b| match spec {
            Spec::Serial { blocks, .. } => Ok(Block::Serial(Self::compile_all(blocks, width, b)?)),
            Spec::Residual { blocks, .. } => {
                let blocks = Self::compile_all(blocks, width, b)?;
                Ok(Block::Residual(Residual { blocks, dropout: b.dropout() }))
            }
            Spec::Repeat { block, count, .. } => Ok(Block::Repeat(Repeat::compile(block, *count, width, b)?)),
            Spec::LayerNorm { eps, bias, .. } => {
                Ok(Block::LayerNorm(LayerNorm::compile(*eps, *bias, width, b)))
            }
            Spec::RmsNorm { eps, .. } => Ok(Block::RmsNorm(RmsNorm::compile(*eps, width, b))),
            Spec::Attention(attention) => Ok(Block::Attention(Attention::compile(attention, width, b)?)),
            Spec::Mlp { hidden, act, bias, .. } => {
                Ok(Block::Mlp(Mlp::compile(*hidden, *act, *bias, width, b)?))
            }
            Spec::GatedMlp { hidden, act, bias, .. } => {
                Ok(Block::GatedMlp(GatedMlp::compile(*hidden, *act, *bias, width, b)?))
            }
            Spec::Decoder(_) | Spec::Embed(_) | Spec::Linear { .. } | Spec::Tied {} => Err(Error::argument(
                b.path("kind"),
                spec.default_name(),
                "a block that keeps the width of its rows",
            )),
        })
    }

    fn compile_all(specs: &[Spec], width: usize, builder: &mut Builder) -> Result<Vec<Block>> {
        specs.iter().map(|spec| Self::compile(spec, width, builder)).collect()
    }

    /// `[rows, width]` to `[rows, width]`; only the wanted rows if the block narrowed the pass.
    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        match self {
            Block::Serial(blocks) => forward_all(blocks, pass, x),
            Block::Residual(block) => block.forward(pass, x),
            Block::Repeat(block) => block.forward(pass, x),
            Block::LayerNorm(block) => block.forward(pass, x),
            Block::RmsNorm(block) => block.forward(pass, x),
            Block::Attention(block) => block.forward(pass, x),
            Block::Mlp(block) => block.forward(pass, x),
            Block::GatedMlp(block) => block.forward(pass, x),
        }
    }

    /// Takes the input of [`Block::forward`] and the gradient at its output, `[rows, width]` each, to the gradient
    /// at its input, and adds those of its parameters to the pass's sink. Blocks go backward in the reverse order
    /// of their forward passes; the pass has not narrowed.
    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
        match self {
            Block::Serial(blocks) => backward_all(blocks, pass, x, dy),
            Block::Residual(block) => block.backward(pass, x, dy),
            Block::Repeat(block) => block.backward(pass, x, dy),
            Block::LayerNorm(block) => Ok(block.backward(pass, x, dy)),
            Block::RmsNorm(block) => Ok(block.backward(pass, x, dy)),
            Block::Attention(block) => block.backward(pass, x, dy),
            Block::Mlp(block) => block.backward(pass, x, dy),
            Block::GatedMlp(block) => block.backward(pass, x, dy),
        }
    }

    /// The attention that runs last, where a pass may narrow.
    pub fn last_attention(&mut self) -> Option<&mut Attention> {
        match self {
            Block::Attention(block) => Some(block),
            Block::Serial(blocks) | Block::Residual(Residual { blocks, .. }) => {
                blocks.iter_mut().rev().find_map(Block::last_attention)
            }
            Block::Repeat(repeat) => {
                repeat.copies.iter_mut().rev().find_map(|copy| copy.block.last_attention())
            }
            Block::LayerNorm(_) | Block::RmsNorm(_) | Block::Mlp(_) | Block::GatedMlp(_) => None,
        }
    }
}

/// One block after the other.
fn forward_all(blocks: &[Block], pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
    let mut latest: Option<Rows> = None;
    for block in blocks {
        let next = block.forward(pass, latest.as_ref().unwrap_or(x))?;
        if let Some(done) = latest.replace(next) {
            pass.keep(done);
        }
    }
    Ok(latest.unwrap_or_else(|| pass.copy(x)))
}

/// The reverse: every block but the first finds its input where [`forward_all`] kept it.
fn backward_all(blocks: &[Block], pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
    let mut latest: Option<Rows> = None;
    for (index, block) in blocks.iter().enumerate().rev() {
        let kept = (index > 0).then(|| pass.recall());
        let next = block.backward(pass, kept.as_ref().unwrap_or(x), latest.as_ref().unwrap_or(dy))?;
        for done in kept.into_iter().chain(latest.replace(next)) {
            pass.give(done);
        }
    }
    Ok(latest.unwrap_or_else(|| pass.copy(dy)))
}
