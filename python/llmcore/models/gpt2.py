"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each block, GELU, a tied head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore._core import Gguf
from llmcore.blocks import Attention, Decoder, Embed, LayerNorm, Linear, Mlp, Repeat, Residual, Serial, Tied
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

# What may stand before every name in a safetensors file, depending on the class that saved it.
PREFIX = "transformer."

# The class of Transformers that reads a checkpoint.
ARCHITECTURE = "GPT2LMHeadModel"


@dataclass(frozen=True)
class Config:
    """The fields of config.json that say what is computed, with the defaults of Transformers."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        check_sizes(
            layers="n_layer",
            vocab_size=self.vocab_size,
            n_positions=self.n_positions,
            n_embd=self.n_embd,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_inner=self.n_inner,
        )
        check_epsilon("layer_norm_epsilon", self.layer_norm_epsilon)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head: found {self.n_head}, expected a divisor of n_embd = {self.n_embd}")
        if not self.scale_attn_weights:
            raise unsupported("scale_attn_weights", False, "true")
        if self.scale_attn_by_inverse_layer_idx:
            raise unsupported("scale_attn_by_inverse_layer_idx", True, "false")
        if self.add_cross_attention:
            raise unsupported("add_cross_attention", True, "false")


def max_positions(c: Config) -> int:
    """How long a sequence may be."""
    return c.n_positions


def build(c: Config) -> Decoder:
    """The model as a composition of blocks."""
    eps = c.layer_norm_epsilon
    layer = Serial(
        Residual(LayerNorm(eps), Attention(heads=c.n_head, bias=True)),
        Residual(LayerNorm(eps), Mlp(c.n_inner or 4 * c.n_embd, act=c.activation_function)),
    )
    return Decoder(
        Embed(c.vocab_size, c.n_embd, positions=c.n_positions),
        Repeat(layer, c.n_layer),
        LayerNorm(eps),
        head=Tied() if c.tie_word_embeddings else Linear(c.vocab_size),
    )


def tensors(c: Config) -> dict[str, View]:
    """Where the parameters stand in Transformers' checkpoints; `Conv1D` is stored `[inputs, outputs]`."""
    table = {
        "embed.weight": View("transformer.wte.weight"),
        "embed.positions": View("transformer.wpe.weight"),
        "norm.weight": View("transformer.ln_f.weight"),
        "norm.bias": View("transformer.ln_f.bias"),
    }
    layer = {}
    for norm, name in (("norm", "ln_1"), ("norm_2", "ln_2")):
        layer[f"layers.{{i}}.{norm}.weight"] = View(f"transformer.h.{{i}}.{name}.weight")
        layer[f"layers.{{i}}.{norm}.bias"] = View(f"transformer.h.{{i}}.{name}.bias")
    for part, first in (("q", 0), ("k", c.n_embd), ("v", 2 * c.n_embd)):
        attn = "transformer.h.{i}.attn.c_attn"
        layer[f"layers.{{i}}.attn.{part}.weight"] = View(f"{attn}.weight", transpose=True, first=first)
        layer[f"layers.{{i}}.attn.{part}.bias"] = View(f"{attn}.bias", first=first)
    for path, name in (("attn.o", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
        layer[f"layers.{{i}}.{path}.weight"] = View(f"transformer.h.{{i}}.{name}.weight", transpose=True)
        layer[f"layers.{{i}}.{path}.bias"] = View(f"transformer.h.{{i}}.{name}.bias")
    if not c.tie_word_embeddings:
        table["head.weight"] = View("lm_head.weight")
    return table | in_layers(c.n_layer, layer)


def initial(c: Config, std: float, pad: int | None) -> Initial:
    """How a new model begins: what adds to the residual stream is the smaller, the more layers there are, so
    that the stream is not (Radford et al. 2019, section 2.3). The embedding of padding is like any other."""
    residual = Normal(std / math.sqrt(2 * c.n_layer))
    return {
        "*norm*.weight": Constant(1.0),
        "*.bias": Constant(0.0),
        "layers.*.attn.o.weight": residual,
        "layers.*.mlp.down.weight": residual,
        "*": Normal(std),
    }


def gguf_config(gguf: Gguf) -> dict[str, object]:
    """The fields of [`Config`] from a GGUF file's metadata."""
    return {
        "vocab_size": gguf.info("token_embd.weight")[0][0],
        "n_positions": required(gguf, "gpt2.context_length"),
        "n_embd": required(gguf, "gpt2.embedding_length"),
        "n_layer": required(gguf, "gpt2.block_count"),
        "n_head": required(gguf, "gpt2.attention.head_count"),
        "n_inner": required(gguf, "gpt2.feed_forward_length"),
        "layer_norm_epsilon": required(gguf, "gpt2.attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in gguf.names(),
    }


def gguf_metadata(c: Config) -> dict[str, object]:
    """The metadata that `gguf_config` reads.

    Raises:
        ValueError: a field for which GGUF has no key.
    """
    if c.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
        raise unsupported("activation_function", c.activation_function, "'gelu_new'")
    return {
        "gpt2.context_length": c.n_positions,
        "gpt2.embedding_length": c.n_embd,
        "gpt2.feed_forward_length": c.n_inner or 4 * c.n_embd,
        "gpt2.block_count": c.n_layer,
        "gpt2.vocab_size": c.vocab_size,
        "gpt2.attention.head_count": c.n_head,
        "gpt2.attention.layer_norm_epsilon": c.layer_norm_epsilon,
    }


def gguf_tables(c: Config) -> dict[str, npt.NDArray[np.float32]]:
    """Tensors of a GGUF file that are no parameters."""
    return {}


def config_json(c: Config) -> dict[str, Any]:
    """The fields of a config.json that says the same as a [`Config`] read from GGUF."""
    return fields_of(c)


def gguf_tensors(c: Config) -> dict[str, View]:
    """Where the parameters stand in a GGUF file, which stores every matrix `[outputs, inputs]`."""
    table = {
        "embed.weight": View("token_embd.weight"),
        "embed.positions": View("position_embd.weight"),
        "norm.weight": View("output_norm.weight"),
        "norm.bias": View("output_norm.bias"),
    }
    layer = {}
    for kind in ("weight", "bias"):
        for path, name in (
            ("norm", "attn_norm"),
            ("norm_2", "ffn_norm"),
            ("attn.o", "attn_output"),
            ("mlp.up", "ffn_up"),
            ("mlp.down", "ffn_down"),
        ):
            layer[f"layers.{{i}}.{path}.{kind}"] = View(f"blk.{{i}}.{name}.{kind}")
        for part, first in (("q", 0), ("k", c.n_embd), ("v", 2 * c.n_embd)):
            layer[f"layers.{{i}}.attn.{part}.{kind}"] = View(f"blk.{{i}}.attn_qkv.{kind}", first=first)
    if not c.tie_word_embeddings:
        table["head.weight"] = View("output.weight")
    return table | in_layers(c.n_layer, layer)
