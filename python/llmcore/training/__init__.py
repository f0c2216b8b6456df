"""Training: from raw text to a checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcore.training.batch import count_labels
    from llmcore.training.initialise import new_model
    from llmcore.training.model import Dropout, Tensor, TrainableModel

__all__ = ["Dropout", "Tensor", "TrainableModel", "count_labels", "new_model"]

# Public names by the module of this package that has them, imported when they are first asked for.
_HOMES = {
    "Dropout": "model",
    "Tensor": "model",
    "TrainableModel": "model",
    "count_labels": "batch",
    "new_model": "initialise",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmcore.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llmcore.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
