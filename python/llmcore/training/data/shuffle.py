"""A shuffle that is not stored: the place of any element is computed from a key.

A Feistel network maps the numbers of 2b bits one to one, whatever its round function is: each round exchanges
the halves and adds to one a function of the other. Numbers that fall outside of `length` are mapped again
until they do not ("cycle walking"), which keeps the map one to one on those below `length`.
(Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002.)

All is arithmetic on integers of 64 bits, so the order is the same on every machine.
"""

from __future__ import annotations

__all__ = ["shuffled"]

_ROUNDS = 6

_LEAST_HALF = 3
"""Bits of a half. With fewer, some orders of few elements are likelier than others, whatever the rounds."""

_MASK = (1 << 64) - 1


def shuffled(index: int, length: int, seed: int, epoch: int) -> int:
    """Which of `length` elements stands at place `index` of the shuffle of an epoch; a permutation of
    0 … length − 1 for each seed and epoch."""
    key = _mixed(_mixed(seed & _MASK) + epoch)
    half = max(((length - 1).bit_length() + 1) // 2, _LEAST_HALF)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + (round << half) + right) & mask)
        index = left << half | right
        if index < length:
            return index


def _mixed(value: int) -> int:
    """A well-mixed number of 64 bits (the finaliser of SplitMix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31
