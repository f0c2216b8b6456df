"""One architecture a file, named by its `model_type`: `Config`, `build`, `tensors` (and their GGUF forms)."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["MODEL_TYPES", "architecture"]

MODEL_TYPES = ("gpt2", "llama")


def architecture(model_type: object, where: str) -> ModuleType:
    """The module of an architecture.

    Raises:
        ValueError: an unknown `model_type`; names the file (`where`).
    """
    if model_type not in MODEL_TYPES:
        expected = " or ".join(repr(name) for name in MODEL_TYPES)
        raise ValueError(f"{where}: model_type: found {model_type!r}, expected {expected}")
    return importlib.import_module(f"llmcore.models.{model_type}")
