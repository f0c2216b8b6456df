"""How many labels of a batch count."""

from __future__ import annotations

import numpy as np

from llmcore import training


def test_a_first_label_never_counts() -> None:
    ids = [np.array([5, 6, 7]), np.array([8]), np.array([9, 1])]
    assert training.count_labels({"input_ids": ids}) == 2 + 0 + 1
    labels = [np.array([5, -100, 7]), np.array([8]), np.array([9, -100])]
    assert training.count_labels({"input_ids": ids, "labels": labels}) == 1


def test_rectangular_batches() -> None:
    ids = np.arange(12).reshape(3, 4)
    assert training.count_labels({"input_ids": ids}) == 9
    assert training.count_labels({"input_ids": ids, "labels": np.where(ids % 2, ids, -100)}) == 6
