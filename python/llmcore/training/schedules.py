"""Learning rates over a training: each a pure function of the steps that were made.

A schedule maps the number of steps made so far, 0 to `steps` − 1, to the factor that the learning rate is
multiplied by for the next step. All begin with a linear warm-up (Goyal et al. 2017, arXiv:1706.02677): the first
step has 1 / `warmup` of the rate and step number `warmup` all of it, so no step is made in vain. After it,
with the share p = (step − warmup) / (steps − warmup) of what is left behind us:

| name     | factor                                                                                         |
|----------|------------------------------------------------------------------------------------------------|
| constant | 1                                                                                              |
| linear   | from 1 to `final` in a straight line                                                           |
| cosine   | from 1 to `final` as half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983)              |
| wsd      | 1, and over the last `decay` steps from 1 to `final` as 1 − √p of these (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395; the root: Hägele et al. 2024, arXiv:2405.18392) |
"""  # noqa: E501

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

__all__ = ["SCHEDULES", "Schedule", "constant", "cosine", "linear", "make_schedule", "wsd"]

Schedule: TypeAlias = Callable[[int], float]
"""From the number of steps made so far to the factor of the learning rate."""


def warm(step: int, warmup: int) -> float:
    """The factor of the warm-up, 1 after it."""
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def constant(step: int, *, steps: int, warmup: int = 0) -> float:
    """The full rate after the warm-up; `steps` changes nothing."""
    return warm(step, warmup)


def linear(step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """A straight line to `final` after the warm-up."""
    if step < warmup:
        return warm(step, warmup)
    return 1.0 - (1.0 - final) * _share(step, warmup, steps)


def cosine(step: int, *, steps: int, warmup: int = 0, final: float = 0.0) -> float:
    """Half a cosine to `final` after the warm-up."""
    if step < warmup:
        return warm(step, warmup)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * _share(step, warmup, steps)))


def wsd(step: int, *, steps: int, warmup: int = 0, decay: int, final: float = 0.0) -> float:
    """The full rate after the warm-up, and 1 − √p to `final` over the last `decay` steps."""
    if step < max(warmup, steps - decay):
        return warm(step, warmup)
    return 1.0 - (1.0 - final) * math.sqrt(_share(step, steps - decay, steps))


def _share(step: int, first: int, last: int) -> float:
    """How much of `first` to `last` lies behind."""
    return min(1.0, (step - first) / (last - first)) if last > first else 1.0


SCHEDULES = ("constant", "linear", "cosine", "wsd")


def make_schedule(
    name: str, *, steps: int, warmup: int = 0, decay: int | None = None, final: float = 0.0
) -> Schedule:
    """The schedule of a name.

    Args:
        name: One of `SCHEDULES`.
        steps: Steps of the whole training.
        warmup: Steps of the warm-up.
        decay: Steps of the decay of "wsd"; a tenth of all unless given.
        final: The factor that the rate falls to; not of "constant".

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    if decay is None:
        decay = steps // 10
    for what, found, most in (("warmup", warmup, steps), ("decay", decay, steps), ("final", final, 1)):
        if not 0 <= found <= most:
            raise ValueError(f"{what}: found {found!r}, expected 0 to {most}")
    if name == "constant":
        return partial(constant, steps=steps, warmup=warmup)
    if name == "linear":
        return partial(linear, steps=steps, warmup=warmup, final=final)
    if name == "cosine":
        return partial(cosine, steps=steps, warmup=warmup, final=final)
    if name == "wsd":
        return partial(wsd, steps=steps, warmup=warmup, decay=decay, final=final)
    raise ValueError(f"schedule: found {name!r}, expected one of {', '.join(SCHEDULES)}")
