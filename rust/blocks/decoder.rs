//! A language model: embeddings, layers, a last norm, and a head.

use super::Block;
use crate::blocks::builder::Builder;
use crate::blocks::embed::Embed;
use crate::blocks::linear::Linear;
use crate::blocks::pass::{Pass, Rows};
use crate::blocks::spec::{DecoderSpec, Spec};
use crate::error::{Error, Result};

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
        let tied = matches!(*spec.head, Spec::Tied {});
        let embed = builder.within(&spec.embed, |b| Embed::compile(embed_spec, tied, b))?;
        let mut layers = Block::compile(&spec.layers, width, builder)?;
        if let Some(attention) = layers.last_attention() {
            attention.narrow_if_it_can();
        }
        let norm = Block::compile(&spec.norm, width, builder)?;
        let head = match (&*spec.head, embed.matrix()) {
            (Spec::Tied {}, Some(matrix)) => Linear::tied(matrix, vocab_size),
            (Spec::Linear { name, outputs, bias }, _) if *outputs == vocab_size => builder
                .named(name.as_deref().unwrap_or("head"), |b| {
                    Linear::compile(&[("", *outputs)], *bias, width, b)
                })?,
            (other, _) => {
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
}
