//! The description of a model as Python sends it: `python/llmcore/blocks.py`, field for field.

use serde::Deserialize;

use crate::kernels::activation::Activation;

#[derive(Deserialize, Clone, Debug)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Spec {
    Decoder(DecoderSpec),
    Embed(EmbedSpec),
    Serial { name: Option<String>, blocks: Vec<Spec> },
    Residual { name: Option<String>, blocks: Vec<Spec> },
    Repeat { name: Option<String>, block: Box<Spec>, count: usize },
    LayerNorm { name: Option<String>, eps: f32, bias: bool },
    RmsNorm { name: Option<String>, eps: f32 },
    Attention(AttentionSpec),
    Mlp { name: Option<String>, hidden: usize, act: Activation, bias: bool },
    GatedMlp { name: Option<String>, hidden: usize, act: Activation, bias: bool },
    Linear { name: Option<String>, outputs: usize, bias: bool },
    Tied {},
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    pub name: Option<String>,
    pub embed: Box<Spec>,
    pub layers: Box<Spec>,
    pub norm: Box<Spec>,
    pub head: Box<Spec>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct EmbedSpec {
    pub name: Option<String>,
    pub vocab_size: usize,
    pub width: usize,
    pub positions: Option<usize>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AttentionSpec {
    pub name: Option<String>,
    pub heads: usize,
    pub kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub causal: bool,
    pub bias: bool,
    pub out_bias: Option<bool>,
    pub rope: Option<RopeSpec>,
    pub scale: Option<f32>,
}

#[derive(Deserialize, Clone, Debug, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RopeSpec {
    pub frequencies: Vec<f32>,
    pub scale: f32,
}

/// Low-rank adapters (LoRA, Hu et al. 2021): what `python/llmcore/training/lora.py` sends.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct AdaptersSpec {
    pub rank: usize,
    /// Factor of what an adapter adds.
    pub scale: f32,
    /// The rate at which inputs of adapters are dropped while training.
    pub dropout: f32,
    /// What each adapter is for: the paths of neighbouring outputs of one product.
    pub targets: Vec<Vec<String>>,
}

impl Spec {
    /// What the block is called in paths unless it has a name: its kind; nothing for a mere grouping.
    pub fn default_name(&self) -> &'static str {
        match self {
            Spec::Decoder(_) | Spec::Serial { .. } | Spec::Residual { .. } => "",
            Spec::Embed(_) => "embed",
            Spec::Repeat { .. } => "layers",
            Spec::LayerNorm { .. } | Spec::RmsNorm { .. } => "norm",
            Spec::Attention(_) => "attn",
            Spec::Mlp { .. } | Spec::GatedMlp { .. } => "mlp",
            Spec::Linear { .. } => "linear",
            Spec::Tied {} => "head",
        }
    }

    pub fn name(&self) -> Option<&str> {
        match self {
            Spec::Decoder(DecoderSpec { name, .. })
            | Spec::Embed(EmbedSpec { name, .. })
            | Spec::Attention(AttentionSpec { name, .. })
            | Spec::Serial { name, .. }
            | Spec::Residual { name, .. }
            | Spec::Repeat { name, .. }
            | Spec::LayerNorm { name, .. }
            | Spec::RmsNorm { name, .. }
            | Spec::Mlp { name, .. }
            | Spec::GatedMlp { name, .. }
            | Spec::Linear { name, .. } => name.as_deref(),
            Spec::Tied {} => None,
        }
    }
}
