"""Language models on a CPU: tokenise, load, generate, look inside.

>>> import llmcore
>>> model = llmcore.load("smollm2-135m-instruct")
>>> model.generate("The capital of France is", max_new_tokens=1).text
' Paris'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcore import gradients, ops
    from llmcore._core import __version__
    from llmcore.hf import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        GPT2LMHeadModel,
        GPT2Tokenizer,
        LlamaForCausalLM,
    )
    from llmcore.loading import load
    from llmcore.model import Model, Score
    from llmcore.tokenizer import Tokenizer

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "GPT2LMHeadModel",
    "GPT2Tokenizer",
    "GenerationConfig",
    "LlamaForCausalLM",
    "Model",
    "Score",
    "Tokenizer",
    "__version__",
    "gradients",
    "load",
    "ops",
]

# Public names by the module that has them (or is them), imported when they are first asked for.
_HOMES = {
    "AutoModelForCausalLM": "hf",
    "AutoTokenizer": "hf",
    "GPT2LMHeadModel": "hf",
    "GPT2Tokenizer": "hf",
    "GenerationConfig": "hf",
    "LlamaForCausalLM": "hf",
    "Model": "model",
    "Score": "model",
    "Tokenizer": "tokenizer",
    "__version__": "_core",
    "gradients": "gradients",
    "load": "loading",
    "ops": "ops",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmcore' has no attribute {name!r}")
    module = importlib.import_module(f"llmcore.{_HOMES[name]}")
    value = module if _HOMES[name] == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
