"""Data for training: from text, prompts and chats to batches.

A *source* (`sources.py`) is tokenised once into a `Corpus` of documents (`corpus.py`), mapped from files that
are found again by the hash of all that they were made of (`identity.py`): by `tokenize_text` (`text.py`),
`tokenize_completions` and `tokenize_chats` (`examples.py`, `chat.py`). `PackedWindows` and `Documents`
(`datasets.py`) make numbered examples of it, and `Batches` (`batches.py`) takes them, shuffled
(`shuffle.py`), for one step of training after the other.

>>> corpus = tokenize_text("shakespeare.txt", tokenizer)
>>> train, held_out = corpus.split(0.05)
>>> for step in Batches(PackedWindows(train, 256), batch_size=16, epochs=3):
...     labels = sum(map(count_labels, step))
...     for batch in step:
...         loss = model.loss_and_grad(**batch, denominator=labels)
"""

from __future__ import annotations

from llmcore.training.data.batches import Batches
from llmcore.training.data.corpus import Corpus
from llmcore.training.data.datasets import Dataset, Documents, PackedWindows
from llmcore.training.data.examples import tokenize_chats, tokenize_completions
from llmcore.training.data.text import tokenize_text

__all__ = [
    "Batches",
    "Corpus",
    "Dataset",
    "Documents",
    "PackedWindows",
    "tokenize_chats",
    "tokenize_completions",
    "tokenize_text",
]
