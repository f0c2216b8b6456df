"""Training: from raw text to a checkpoint."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmcore.training.batch import count_labels
    from llmcore.training.config import TrainingConfig
    from llmcore.training.data import (
        Batches,
        Corpus,
        Documents,
        PackedWindows,
        tokenize_chats,
        tokenize_completions,
        tokenize_text,
    )
    from llmcore.training.initialise import new_model
    from llmcore.training.loop import Hook, State, TrainingError, train
    from llmcore.training.lora import LoRA
    from llmcore.training.model import Dropout, Tensor, TrainableModel
    from llmcore.training.optimizer import EMA, SGD, AdamW
    from llmcore.training.plot import plot_run
    from llmcore.training.schedules import make_schedule
    from llmcore.training.trainer import Result, Trainer

__all__ = [
    "EMA",
    "SGD",
    "AdamW",
    "Batches",
    "Corpus",
    "Documents",
    "Dropout",
    "Hook",
    "LoRA",
    "PackedWindows",
    "Result",
    "State",
    "Tensor",
    "TrainableModel",
    "Trainer",
    "TrainingConfig",
    "TrainingError",
    "count_labels",
    "make_schedule",
    "new_model",
    "plot_run",
    "tokenize_chats",
    "tokenize_completions",
    "tokenize_text",
    "train",
]

# Public names by the module of this package that has them, imported when they are first asked for.
_HOMES = {
    "AdamW": "optimizer",
    "Batches": "data",
    "Corpus": "data",
    "Documents": "data",
    "Dropout": "model",
    "EMA": "optimizer",
    "Hook": "loop",
    "LoRA": "lora",
    "PackedWindows": "data",
    "Result": "trainer",
    "SGD": "optimizer",
    "State": "loop",
    "Tensor": "model",
    "TrainableModel": "model",
    "Trainer": "trainer",
    "TrainingConfig": "config",
    "TrainingError": "loop",
    "count_labels": "batch",
    "make_schedule": "schedules",
    "new_model": "initialise",
    "plot_run": "plot",
    "tokenize_chats": "data",
    "tokenize_completions": "data",
    "tokenize_text": "data",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llmcore.training' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"llmcore.training.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
