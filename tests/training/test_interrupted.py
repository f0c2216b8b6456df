"""What is left of a model's gradients when a batch comes to no end."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import llmcore
from llmcore.training import AdamW, new_model

TINY = Path(__file__).parents[1] / "data" / "tiny"


def gradients(model: llmcore.training.TrainableModel) -> np.ndarray:
    with model.arena("grad") as flat:
        return flat.copy()


def test_ctrl_c_ends_a_batch_at_once_and_the_next_begins_anew(tmp_path) -> None:
    # About a second's work for one core, of products that take it a hundredth of one.
    config = {"model_type": "gpt2", "n_embd": 384, "n_layer": 8, "n_head": 6, "vocab_size": 2000}
    model = llmcore.load(new_model(config, tmp_path / "model"), trainable=True, threads=1)
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 2000, (count, 512)) for count in (1, 6))
    start = time.perf_counter()
    model.loss_and_grad(input_ids=large)
    whole = time.perf_counter() - start
    AdamW(model, lr=1e-3).step()
    loss, expected = model.loss_and_grad(input_ids=small), gradients(model)

    # The sum that the batch was to be added to is lost with it.
    for delay in (0.02, 0.3):
        ended = False
        with pytest.raises(KeyboardInterrupt):
            timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
            timer.start()
            start = time.perf_counter()
            model.loss_and_grad(input_ids=large)
            ended = True
            timer.join()
        late = time.perf_counter() - start - delay
        assert not ended
        assert late < max(0.3, 0.2 * whole)
        with pytest.raises(ValueError, match="gradients: found none"):
            AdamW(model, lr=1e-3).step()
        assert model.loss_and_grad(input_ids=small) == loss
        np.testing.assert_array_equal(gradients(model), expected)


def test_a_batch_that_is_refused_changes_nothing() -> None:
    model = llmcore.load(TINY / "gpt2", trainable=True)
    first, second = {"input_ids": [[1, 2, 3]]}, {"input_ids": [[4, 5], [6]]}
    losses = [model.loss_and_grad(**batch, denominator=3) for batch in (first, second)]
    expected = gradients(model)
    model = llmcore.load(TINY / "gpt2", trainable=True)
    assert model.loss_and_grad(**first, denominator=3) == losses[0]
    for wrong in (
        {"input_ids": [[1, 9999]]},
        {"input_ids": [[1, 2]], "labels": [[1, 9999]]},
        {"input_ids": [[1] * 1000]},
        {"input_ids": [[]]},
        {"input_ids": [[1, 2]], "label_smoothing": 2.0},
    ):
        with pytest.raises(ValueError, match="found"):
            model.loss_and_grad(**{"denominator": 3, **wrong})
    assert model.loss_and_grad(**second, denominator=3) == losses[1]
    np.testing.assert_array_equal(gradients(model), expected)
