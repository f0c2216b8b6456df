"""Arrays that Rust lends to NumPy."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import llmcore
from llmcore import _core

TINY = Path(__file__).parents[1] / "data" / "tiny" / "gpt2"


def flat_of(values) -> _core.Flat:
    values = np.asarray(values, np.float32)
    flat = _core.Flat(len(values))
    flat.lend()[:] = values
    flat.give_back()
    return flat


def floats(flat: _core.Flat) -> np.ndarray:
    """A copy of what a flat array holds."""
    try:
        return flat.lend().copy()
    finally:
        flat.give_back()


def test_what_is_written_while_lent_stays():
    flat = _core.Flat(5)
    assert len(flat) == 5
    array = flat.lend()
    assert (array.dtype, array.shape) == (np.float32, (5,)) and array.flags.c_contiguous
    assert not array.any()
    array[:] = range(5)
    flat.give_back()
    flat.give_back()
    assert floats(flat).tolist() == [0, 1, 2, 3, 4]


def test_while_lent_every_other_use_raises():
    model = llmcore.load(TINY, trainable=True)
    with model.arena("param") as params:
        flat = _core.Flat(len(params))
    flat.lend()
    for use in (
        flat.lend,
        lambda: _core.ema_swap(model.core, flat),
        lambda: _core.ema_update(model.core, flat, [], 0.5),
    ):
        with pytest.raises(RuntimeError, match="lent"):
            use()
    flat.give_back()
    _core.ema_swap(model.core, flat)


def test_what_was_given_back_is_read_only():
    flat = _core.Flat(3)
    array = flat.lend()
    flat.give_back()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_an_array_keeps_the_memory():
    flat = flat_of(np.arange(1000))
    array = flat.lend()
    del flat
    gc.collect()
    others = [flat_of(np.full(1000, 7.0)) for _ in range(4)]
    assert array.tolist() == list(range(1000))
    assert len(others) == 4


def test_nothing_is_an_array_too():
    flat = _core.Flat(0)
    assert floats(flat).tolist() == []


def test_more_than_there_is_raises():
    with pytest.raises(MemoryError):
        _core.Flat(2**62)
