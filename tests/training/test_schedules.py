"""Schedules by what defines them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.training import make_schedule
from llmcore.training.schedules import SCHEDULES


@given(st.sampled_from(SCHEDULES), st.integers(1, 300), st.data())
def test_every_schedule_rises_once_and_never_rises_again(name, steps, data):
    warmup = data.draw(st.integers(0, steps))
    decay = data.draw(st.integers(0, steps))
    final = data.draw(st.floats(0, 1))
    schedule = make_schedule(name, steps=steps, warmup=warmup, decay=decay, final=final)
    factors = [schedule(step) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    # No step is in vain but where the schedule is asked to fall to nothing.
    assert final == 0 or min(factors) > 0
    rise = factors[: min(warmup, steps - decay) if name == "wsd" else warmup]
    assert rise == [(step + 1) / warmup for step in range(len(rise))]
    assert factors[len(rise) :] == sorted(factors[len(rise) :], reverse=True) or warmup > steps - decay
    assert schedule(steps) == pytest.approx(1 if name == "constant" else final, abs=1e-9)


def test_known_points():
    linear = make_schedule("linear", steps=110, warmup=10, final=0.2)
    assert [linear(step) for step in (0, 4, 9, 10, 60)] == pytest.approx([0.1, 0.5, 1, 1, 0.6])
    cosine = make_schedule("cosine", steps=110, warmup=10)
    assert [cosine(step) for step in (10, 35, 60, 85)] == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    wsd = make_schedule("wsd", steps=200, warmup=10, decay=100)
    assert [wsd(step) for step in (10, 100, 125, 181)] == pytest.approx([1, 1, 0.5, 0.1])
    assert make_schedule("constant", steps=5)(4) == 1


def test_wsd_decays_over_the_last_tenth_unless_told():
    wsd = make_schedule("wsd", steps=100)
    assert [step for step in range(100) if wsd(step) < 1] == list(range(91, 100))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "exponential", "steps": 5}, "expected one of constant, linear, cosine, wsd"),
        ({"name": "cosine", "steps": 5, "warmup": 6}, "warmup: found 6, expected 0 to 5"),
        ({"name": "wsd", "steps": 5, "decay": -1}, "decay"),
        ({"name": "linear", "steps": 5, "final": 1.5}, "final"),
    ],
)
def test_wrong_schedules_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(**options)
