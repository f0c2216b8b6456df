//! Copies of a block, one after the other, each with parameters of its own.

use super::Block;
use crate::blocks::builder::{Builder, MOST_LAYERS};
use crate::blocks::pass::{Pass, Rows};
use crate::blocks::spec::Spec;
use crate::error::Result;
use crate::interrupt;
use crate::sites::SiteId;

pub struct Repeat {
    pub copies: Vec<Layer>,
}

pub struct Layer {
    pub block: Block,
    output: SiteId,
}

impl Repeat {
    pub fn compile(block: &Spec, count: usize, width: usize, builder: &mut Builder) -> Result<Self> {
        if count > MOST_LAYERS {
            return Err(builder.wrong("count", count, format!("at most {MOST_LAYERS} layers")));
        }
        let layer = |index: usize| {
            builder.named(&index.to_string(), |b| {
                Ok(Layer { block: Block::compile(block, width, b)?, output: b.site("") })
            })
        };
        Ok(Repeat { copies: (0..count).map(layer).collect::<Result<_>>()? })
    }

    pub fn forward(&self, pass: &mut Pass<'_>, x: &Rows) -> Result<Rows> {
        let mut latest: Option<Rows> = None;
        for layer in &self.copies {
            interrupt::check()?;
            let next = pass.once(|pass| layer.block.forward(pass, latest.as_ref().unwrap_or(x)))?;
            pass.site(layer.output, &next)?;
            if let Some(done) = latest.replace(next) {
                pass.keep(done);
            }
        }
        Ok(latest.unwrap_or_else(|| pass.copy(x)))
    }

    pub fn backward(&self, pass: &mut Pass<'_>, x: &Rows, dy: &Rows) -> Result<Rows> {
        let mut latest: Option<Rows> = None;
        for (index, layer) in self.copies.iter().enumerate().rev() {
            interrupt::check()?;
            let kept = (index > 0).then(|| pass.recall());
            let input = kept.as_ref().unwrap_or(x);
            if pass.checkpoints() {
                let again = layer.block.forward(pass, input)?;
                pass.give(again);
            }
            let next = layer.block.backward(pass, input, latest.as_ref().unwrap_or(dy))?;
            for done in kept.into_iter().chain(latest.replace(next)) {
                pass.give(done);
            }
        }
        Ok(latest.unwrap_or_else(|| pass.copy(dy)))
    }
}
