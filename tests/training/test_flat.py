"""Arrays that Rust lends to NumPy."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from llmcore import _core


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
    flat, other, third = _core.Flat(3), _core.Flat(3), _core.Flat(3)
    flat.lend()
    for use in (
        flat.lend,
        lambda: _core.ema_swap((other, third), flat),
        lambda: _core.ema_swap((flat, third), other),
        lambda: _core.ema_update((other, flat), third, [(0, 3, 0.0)], 0.5),
    ):
        with pytest.raises(RuntimeError, match="lent"):
            use()
    flat.give_back()
    _core.ema_swap((other, third), flat)


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
    _core.ema_swap((_core.Flat(0), _core.Flat(0)), flat)


def test_more_than_there_is_raises():
    with pytest.raises(MemoryError):
        _core.Flat(2**62)


def test_the_same_array_twice_is_an_error_and_no_deadlock():
    flat, other = _core.Flat(3), _core.Flat(3)
    with pytest.raises(ValueError, match="twice"):
        _core.ema_swap((flat, flat), other)
    with pytest.raises(ValueError, match="twice"):
        _core.adamw_step((flat, other), *[_core.Flat(3)] * 2, [], 0.1, (0.9, 0.9), 1e-8, 1, None)


def test_calls_that_name_arrays_in_any_order_do_not_wait_for_each_other():
    a, b, average = _core.Flat(1000), _core.Flat(1000), _core.Flat(1000)

    def swap(pair):
        for _ in range(300):
            _core.ema_swap(pair, average)

    threads = [threading.Thread(target=swap, args=(pair,), daemon=True) for pair in ((a, b), (b, a))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
