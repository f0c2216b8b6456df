"""Llama (Touvron et al. 2023): rotary positions, RMSNorm before each block, a gated MLP, grouped queries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore._core import Gguf
from llmcore.blocks import (
    Attention,
    Decoder,
    Embed,
    GatedMlp,
    Linear,
    Repeat,
    Residual,
    RmsNorm,
    Serial,
    Tied,
)
from llmcore.models.base import (
    View,
    check_epsilon,
    check_sizes,
    fields_of,
    in_layers,
    required,
    unsupported,
)
from llmcore.models.initial import Constant, Initial, Normal
from llmcore.rope import llama3_factors, llama3_parameters, rope

# What may stand before every name in a safetensors file, depending on the class that saved it.
PREFIX = "model."

# The class of Transformers that reads a checkpoint.
ARCHITECTURE = "LlamaForCausalLM"


@dataclass(frozen=True)
class Config:
    """The fields of config.json that say what is computed, with the defaults of Transformers."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_factors: list[float] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    pretraining_tp: int | None = 1

    def __post_init__(self) -> None:
        check_sizes(
            layers="num_hidden_layers",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            max_position_embeddings=self.max_position_embeddings,
        )
        check_epsilon("rms_norm_eps", self.rms_norm_eps)
        if self.num_attention_heads % self.kv_heads:
            raise ValueError(
                f"num_key_value_heads: found {self.kv_heads}, "
                f"expected a divisor of num_attention_heads = {self.num_attention_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: found {self.num_attention_heads}, "
                f"expected a divisor of hidden_size = {self.hidden_size}"
            )
        if self.pretraining_tp not in (None, 1):
            raise unsupported("pretraining_tp", self.pretraining_tp, "1")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Entries of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> dict[str, Any]:
        """The parameters of rotary positions, `rope_theta` among them."""
        return {"rope_theta": self.rope_theta, **(self.rope_parameters or self.rope_scaling or {})}

    @property
    def rope_type(self) -> str:
        """How the rotary frequencies are stretched."""
        kind: str = self.rope.get("rope_type", self.rope.get("type", "default"))
        return kind


def max_positions(c: Config) -> int:
    """How long a sequence may be."""
    return c.max_position_embeddings


def build(c: Config) -> Decoder:
    """The model as a composition of blocks."""
    turns = rope(c.head_size, c.rope["rope_theta"], c.rope, c.max_position_embeddings, c.rope_factors)
    attention = Attention(
        heads=c.num_attention_heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_size,
        bias=c.attention_bias,
        rope=turns,
    )
    layer = Serial(
        Residual(RmsNorm(c.rms_norm_eps), attention),
        Residual(RmsNorm(c.rms_norm_eps), GatedMlp(c.intermediate_size, act=c.hidden_act, bias=c.mlp_bias)),
    )
    return Decoder(
        Embed(c.vocab_size, c.hidden_size),
        Repeat(layer, c.num_hidden_layers),
        RmsNorm(c.rms_norm_eps),
        head=Tied() if c.tie_word_embeddings else Linear(c.vocab_size),
    )


def tensors(c: Config) -> dict[str, View]:
    """Where the parameters stand in Transformers' checkpoints."""
    table = {"embed.weight": View("model.embed_tokens.weight"), "norm.weight": View("model.norm.weight")}
    layer = {
        "layers.{i}.norm.weight": View("model.layers.{i}.input_layernorm.weight"),
        "layers.{i}.norm_2.weight": View("model.layers.{i}.post_attention_layernorm.weight"),
    }
    for part in ("q", "k", "v", "o"):
        layer[f"layers.{{i}}.attn.{part}.weight"] = View(f"model.layers.{{i}}.self_attn.{part}_proj.weight")
        if c.attention_bias:
            layer[f"layers.{{i}}.attn.{part}.bias"] = View(f"model.layers.{{i}}.self_attn.{part}_proj.bias")
    for part in ("gate", "up", "down"):
        layer[f"layers.{{i}}.mlp.{part}.weight"] = View(f"model.layers.{{i}}.mlp.{part}_proj.weight")
        if c.mlp_bias:
            layer[f"layers.{{i}}.mlp.{part}.bias"] = View(f"model.layers.{{i}}.mlp.{part}_proj.bias")
    if not c.tie_word_embeddings:
        table["head.weight"] = View("lm_head.weight")
    return table | in_layers(c.num_hidden_layers, layer)


def initial(c: Config, std: float, pad: int | None) -> Initial:
    """How a new model begins, in Transformers: all matrices alike, whatever they add to."""
    return {
        "*norm*.weight": Constant(1.0),
        "*.bias": Constant(0.0),
        "embed.weight": Normal(std, zero_row=pad),
        "*": Normal(std),
    }


def gguf_config(gguf: Gguf) -> dict[str, object]:
    """The fields of [`Config`] from a GGUF file's metadata."""
    names = gguf.names()
    heads = required(gguf, "llama.attention.head_count")
    head_dim = gguf.get("llama.attention.key_length", gguf.get("llama.rope.dimension_count"))
    rotated = gguf.get("llama.rope.dimension_count", head_dim)
    if rotated != head_dim:
        raise unsupported("llama.rope.dimension_count", rotated, f"the size of a head, {head_dim}")
    if gguf.get("llama.expert_count", 0):
        raise unsupported("llama.expert_count", gguf.get("llama.expert_count"), "0")
    return {
        "vocab_size": gguf.info("token_embd.weight")[0][0],
        "hidden_size": required(gguf, "llama.embedding_length"),
        "intermediate_size": required(gguf, "llama.feed_forward_length"),
        "num_hidden_layers": required(gguf, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": required(gguf, "llama.context_length"),
        "rms_norm_eps": required(gguf, "llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": gguf.get("llama.rope.freq_base", 10000.0),
        "rope_scaling": _gguf_scaling(gguf),
        "rope_factors": gguf.read("rope_freqs.weight").tolist() if "rope_freqs.weight" in names else None,
        "tie_word_embeddings": "output.weight" not in names,
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_gate.bias" in names,
    }


def _gguf_scaling(gguf: Gguf) -> dict[str, Any] | None:
    kind = gguf.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": gguf.get("llama.rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = gguf.get("llama.rope.scaling.original_context_length")
        for beta in ("beta_fast", "beta_slow"):
            scaling[beta] = gguf.get(f"llama.rope.scaling.yarn_{beta}")
        for factor in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
            value = gguf.get(f"llama.rope.scaling.{factor}", 1.0)
            if value != 1.0:
                raise unsupported(f"llama.rope.scaling.{factor}", value, "1")
    return scaling


def gguf_metadata(c: Config) -> dict[str, object]:
    """The metadata that `gguf_config` reads, and what else llama.cpp asks for.

    Raises:
        ValueError: a field for which GGUF has no key.
    """
    if c.hidden_act != "silu":
        raise unsupported("hidden_act", c.hidden_act, "'silu'")
    sizes = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "block_count": c.num_hidden_layers,
        "vocab_size": c.vocab_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_size,
        "attention.value_length": c.head_size,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "rope.dimension_count": c.head_size,
        "rope.freq_base": float(c.rope["rope_theta"]),
    }
    return {f"llama.{key}": value for key, value in (sizes | _scaling_metadata(c)).items()}


def _scaling_metadata(c: Config) -> dict[str, object]:
    kind = c.rope_type
    if kind in ("default", "llama3"):  # of which there is a table
        return {}
    metadata: dict[str, object] = {"rope.scaling.type": kind, "rope.scaling.factor": float(c.rope["factor"])}
    if kind == "yarn":
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if c.rope.get(key) is not None:
                raise unsupported(f"rope_parameters.{key}", c.rope[key], "null")
        if not c.rope.get("truncate", True):
            raise unsupported("rope_parameters.truncate", False, "true")
        context = c.rope.get("original_max_position_embeddings") or c.max_position_embeddings
        metadata["rope.scaling.original_context_length"] = int(context)
        for beta in ("beta_fast", "beta_slow"):
            if c.rope.get(beta) is not None:
                metadata[f"rope.scaling.yarn_{beta}"] = float(c.rope[beta])
    return metadata


def gguf_tables(c: Config) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors of a GGUF file that are no parameters: what the rotary frequencies are divided by."""
    if c.rope_type == "llama3":
        return {"rope_freqs.weight": llama3_factors(c.head_size, c.rope["rope_theta"], c.rope)}
    if c.rope_factors is not None:
        return {"rope_freqs.weight": np.asarray(c.rope_factors, np.float32)}
    return {}


def config_json(c: Config) -> dict[str, Any]:
    """The fields of a config.json that says the same as a [`Config`] read from GGUF.

    Raises:
        ValueError: rotary factors that are not those of Llama 3, for which config.json has no field.
    """
    fields = fields_of(c)
    if (factors := fields.pop("rope_factors", None)) is not None:
        fields["rope_scaling"] = llama3_parameters(c.head_size, c.rope_theta, factors)
    return fields


def gguf_tensors(c: Config) -> dict[str, View]:
    """Where the parameters stand in a GGUF file, which interleaves the rotated pairs of q and k."""
    table = {"embed.weight": View("token_embd.weight"), "norm.weight": View("output_norm.weight")}
    layer = {
        "layers.{i}.norm.weight": View("blk.{i}.attn_norm.weight"),
        "layers.{i}.norm_2.weight": View("blk.{i}.ffn_norm.weight"),
        "layers.{i}.mlp.gate.weight": View("blk.{i}.ffn_gate.weight"),
        "layers.{i}.mlp.up.weight": View("blk.{i}.ffn_up.weight"),
        "layers.{i}.mlp.down.weight": View("blk.{i}.ffn_down.weight"),
    }
    for part, name, heads in (
        ("q", "attn_q", c.num_attention_heads),
        ("k", "attn_k", c.kv_heads),
        ("v", "attn_v", None),
        ("o", "attn_output", None),
    ):
        layer[f"layers.{{i}}.attn.{part}.weight"] = View(f"blk.{{i}}.{name}.weight", interleaved_heads=heads)
        if c.attention_bias:
            layer[f"layers.{{i}}.attn.{part}.bias"] = View(f"blk.{{i}}.{name}.bias", interleaved_heads=heads)
    if c.mlp_bias:
        for part in ("gate", "up", "down"):
            layer[f"layers.{{i}}.mlp.{part}.bias"] = View(f"blk.{{i}}.ffn_{part}.bias")
    if not c.tie_word_embeddings:
        table["head.weight"] = View("output.weight")
    return table | in_layers(c.num_hidden_layers, layer)
