"""A training of the tiny gpt2 that takes a fraction of a second, and can be run as a program that is killed:

python tests/training/tiny_run.py FOLDER [--resume]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import llmcore
from llmcore.training import Corpus, PackedWindows, TrainableModel, Trainer, TrainingConfig

TINY = Path(__file__).parents[1] / "data" / "tiny" / "gpt2"

CONFIG = TrainingConfig(
    steps=30,
    batch_size=3,
    gradient_accumulation_steps=2,
    learning_rate=3e-3,
    warmup_steps=5,
    dropout=0.1,
    ema_decay=0.9,
    eval_interval=4,
    save_interval=3,
)


def windows(tokens: int = 1200, seed: int = 0) -> PackedWindows:
    """Walks over the vocabulary, where each token mostly is the one before and 3."""
    rng = np.random.default_rng(seed)
    vocab = llmcore.load(TINY).config.vocab_size
    moves = np.where(rng.random(tokens) < 0.9, 3, rng.integers(0, vocab, tokens))
    return PackedWindows(Corpus(np.cumsum(moves) % vocab, np.array([0, tokens])), 16)


def trainer(folder: Path | None, config: TrainingConfig = CONFIG, **options: Any) -> Trainer:
    """One whose model, data and validation are always the same."""
    model = llmcore.load(TINY, trainable=True)
    options = {"validation": windows(100, seed=1), "progress": False, **options}
    return Trainer(model, windows(), config, folder=folder, **options)


def floats(model: TrainableModel) -> np.ndarray:
    """A copy of all parameters."""
    with model.arena("param") as flat:
        return flat.copy()


if __name__ == "__main__":
    trainer(Path(sys.argv[1])).run(resume="--resume" in sys.argv)
