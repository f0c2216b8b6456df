//! A language model: embeddings, layers, a last norm, and a head.

use super::Block;
use crate::blocks::builder::Builder;
use crate::blocks::embed::Embed;
use crate::blocks::linear::Linear;
use crate::blocks::pass::{Pass, Rows};
use crate::blocks::spec::{DecoderSpec, Spec};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::kernels::{IGNORED, cross_entropy};

pub struct Decoder {
    embed: Embed,
    layers: Block,
    norm: Block,
    head: Linear,
    /// Tokens that can be embedded.
    pub vocab_size: usize,
    /// How many positions have a learned embedding, if they are learned.
    pub positions: Option<usize>,
}

impl Decoder {
    pub fn compile(spec: &DecoderSpec, builder: &mut Builder) -> Result<Self> {
        let Spec::Embed(embed_spec) = &*spec.embed else {
            return Err(Error::argument("embed", spec.embed.default_name(), "a block of kind Embed"));
        };
        let (vocab_size, width) = (embed_spec.vocab_size, embed_spec.width);
        let embed = builder.within(&spec.embed, |b| Embed::compile(embed_spec, b))?;
        let mut layers = Block::compile(&spec.layers, width, builder)?;
        if let Some(attention) = layers.last_attention() {
            attention.narrow_if_it_can();
        }
        let norm = Block::compile(&spec.norm, width, builder)?;
        let head = match &*spec.head {
            Spec::Tied {} => Linear::tied(embed.matrix(), vocab_size),
            Spec::Linear { name, outputs, bias } if *outputs == vocab_size => builder
                .named(name.as_deref().unwrap_or("head"), |b| {
                    Linear::compile(&[("", *outputs)], *bias, width, b)
                })?,
            other => {
                let expected = format!("Tied, or Linear with outputs = vocab_size = {vocab_size}");
                return Err(Error::argument("head", format!("{other:?}"), expected));
            }
        };
        Ok(Decoder { embed, layers, norm, head, vocab_size, positions: embed_spec.positions })
    }

    /// `tokens [rows]` to the logits of the wanted rows, `[wanted, vocab_size]`.
    pub fn forward(&self, pass: &mut Pass<'_>, tokens: &[u32]) -> Result<Rows> {
        let x = self.embed.forward(pass, tokens)?;
        let layered = self.layers.forward(pass, &x)?;
        pass.give(x);
        let normed = self.norm.forward(pass, &layered)?;
        pass.give(layered);
        let wanted = pass.keep_wanted(normed);
        let logits = self.head.forward(pass, &wanted);
        pass.give(wanted);
        Ok(logits)
    }

    /// The sum of the losses of a batch, in nats; if the pass keeps what that needs, it also goes backward.
    ///
    /// Only rows with a label go through the head, some at a time: their logits become their gradients at once,
    /// so that there are never more of either.
    pub fn loss(&self, pass: &mut Pass<'_>, tokens: &[u32], targets: &Targets<'_>) -> Result<f64> {
        let x = self.embed.forward(pass, tokens)?;
        let layered = self.layers.forward(pass, &x)?;
        let normed = self.norm.forward(pass, &layered)?;
        let mut dnormed = pass.keeps().then(|| pass.take(normed.rows, normed.width));
        if let Some(dnormed) = &mut dnormed {
            dnormed.values.fill(0.0);
        }
        let labelled: Vec<usize> = (0..tokens.len()).filter(|&row| targets.labels[row] != IGNORED).collect();
        let mut total = 0.0;
        for rows in labelled.chunks(HEAD_ROWS) {
            interrupt::check()?;
            total += self.head_loss(pass, rows, &normed, targets, dnormed.as_mut())?;
        }
        pass.give(normed);
        if let Some(dnormed) = dnormed {
            let dlayered = self.norm.backward(pass, &layered, &dnormed)?;
            pass.give(dnormed);
            let dx = self.layers.backward(pass, &x, &dlayered)?;
            pass.give(dlayered);
            self.embed.backward(pass, tokens, dx);
        }
        pass.give(layered);
        pass.give(x);
        Ok(total)
    }

    /// The losses of some rows, and their part of `dnormed`.
    fn head_loss(
        &self,
        pass: &mut Pass<'_>,
        rows: &[usize],
        normed: &Rows,
        targets: &Targets<'_>,
        dnormed: Option<&mut Rows>,
    ) -> Result<f64> {
        let mut x = pass.take(rows.len(), normed.width);
        for (to, &row) in x.values.chunks_exact_mut(normed.width).zip(rows) {
            to.copy_from_slice(normed.row(row));
        }
        let mut logits = self.head.forward(pass, &x);
        interrupt::check()?;
        let labels: Vec<i32> = rows.iter().map(|&row| targets.labels[row]).collect();
        let mut losses = vec![0.0; rows.len()];
        let Targets { smoothing, scale, .. } = *targets;
        cross_entropy(&mut logits.values, self.vocab_size, &labels, smoothing, scale, &mut losses);
        if let Some(dnormed) = dnormed {
            let dx = self.head.backward(pass, &x, &logits);
            for (from, &row) in dx.values.chunks_exact(dx.width).zip(rows) {
                dnormed.row_mut(row).copy_from_slice(from);
            }
            pass.give(dx);
        }
        pass.give(logits);
        pass.give(x);
        Ok(losses.iter().copied().map(f64::from).sum())
    }
}

/// Rows of the head at a time: enough for its products to run at full speed.
const HEAD_ROWS: usize = 512;

/// What a batch is to learn.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// The token after each row, or [`IGNORED`].
    pub labels: &'a [i32],
    /// See [`cross_entropy`].
    pub smoothing: f32,
    /// Factor of the gradients.
    pub scale: f32,
}
