"""Frequencies of rotary positions, and the ways to stretch them over a longer context.

The plain frequencies are `theta ** (-2i / dim)` (Su et al. 2021). A `rope_parameters` (or older,
`rope_scaling`) entry of config.json names a stretched form: `linear` (Chen et al. 2023), `llama3` (the
Llama 3.1 model card), `yarn` (Peng et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.blocks import Rope

__all__ = ["llama3_factors", "llama3_parameters", "rope"]

Frequencies = npt.NDArray[np.float64]


def rope(
    dim: int,
    theta: float,
    scaling: Mapping[str, Any] | None,
    max_positions: int,
    factors: Sequence[float] | None = None,
) -> Rope:
    """Rotary positions over the first `dim` entries of a head.

    Args:
        dim: How many entries of each head turn; even.
        theta: The base of the frequencies.
        scaling: The `rope_parameters` of config.json: `rope_type` and what that type needs.
        max_positions: `max_position_embeddings`, which YaRN takes for the original context if that is absent.
        factors: What each plain frequency is divided by (GGUF's `rope_freqs`), if anything.

    Raises:
        ValueError: an unknown `rope_type`, or a parameter that is absent or out of range.
    """
    if dim <= 0 or dim % 2:
        raise ValueError(f"rope: the rotated part of a head has {dim} entries, expected an even number > 0")
    parameters = dict(scaling or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if (
        isinstance(theta, bool)
        or not isinstance(theta, (int, float))
        or not math.isfinite(theta)
        or theta <= 1
    ):
        raise ValueError(f"rope_theta: found {theta!r}, expected a number > 1")
    plain = np.float64(theta) ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if factors is not None:
        if len(factors) != dim // 2 or not all(math.isfinite(f) and f > 0 for f in factors):
            raise ValueError(f"rope_freqs: found {len(factors)} factors, expected {dim // 2} numbers > 0")
        plain = plain / np.asarray(factors, np.float64)
    scale = 1.0
    if kind == "default":
        frequencies = plain
    elif kind == "linear":
        frequencies = plain / _number(parameters, "factor")
    elif kind == "llama3":
        frequencies = _llama3(plain, parameters)
    elif kind == "yarn":
        frequencies, scale = _yarn(plain, dim, theta, parameters, max_positions)
    else:
        raise ValueError(f"rope_type: found {kind!r}, expected 'default', 'linear', 'llama3' or 'yarn'")
    return Rope(tuple(float(f) for f in frequencies.astype(np.float32)), scale)


def _number(parameters: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = parameters.get(key)
    value = default if value is None else value
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not math.isfinite(value)
        or value <= 0
    ):
        raise ValueError(f"rope_parameters.{key}: found {value!r}, expected a number > 0")
    return float(value)


def _llama3(plain: Frequencies, parameters: Mapping[str, Any]) -> Frequencies:
    """Long wavelengths are stretched by `factor`, short ones stay, and those between are interpolated."""
    factor = _number(parameters, "factor")
    low = _number(parameters, "low_freq_factor")
    high = _number(parameters, "high_freq_factor")
    context = _number(parameters, "original_max_position_embeddings")
    if high <= low:
        raise ValueError(
            f"rope_parameters.high_freq_factor: found {high}, expected more than low_freq_factor {low}"
        )
    turns = context * plain / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - kept) * plain / factor + kept * plain


def llama3_factors(dim: int, theta: float, parameters: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """What the plain frequencies are divided by to be Llama 3's, `[dim / 2]`: all that a GGUF file keeps.

    Raises:
        ValueError: a parameter that is absent or out of range.
    """
    plain = np.float64(theta) ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    return (plain / _llama3(plain, parameters)).astype(np.float32)


def llama3_parameters(dim: int, theta: float, factors: Sequence[float]) -> dict[str, Any]:
    """The `rope_scaling` of config.json that has these `llama3_factors`.

    Every Llama 3 has a `low_freq_factor` of 1, a `high_freq_factor` of 4, and a power of two for the context
    that it was trained for.

    Raises:
        ValueError: no such parameters give these factors (float32).
    """
    contexts = [1 << i for i in range(4, 21)] if len(factors) == dim // 2 else []
    for context in contexts:
        parameters = {
            "rope_type": "llama3",
            "factor": float(max(factors)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": context,
        }
        if np.allclose(llama3_factors(dim, theta, parameters), np.asarray(factors), rtol=1e-6, atol=0):
            return parameters
    raise ValueError("rope_freqs: found other factors, expected Llama 3's: config.json has no field for any")


def _yarn(
    plain: Frequencies, dim: int, theta: float, parameters: Mapping[str, Any], max_positions: int
) -> tuple[Frequencies, float]:
    """Dimensions that turn often over the original context stay, those that turn seldom are stretched.

    Between `beta_fast` and `beta_slow` turns a linear ramp blends the two; queries and keys are scaled by
    the attention factor, `0.1 · mscale · ln(factor) + 1` unless given.
    """
    factor = _number(parameters, "factor")
    context = _number(parameters, "original_max_position_embeddings", max_positions)
    beta_fast = _number(parameters, "beta_fast", 32.0)
    beta_slow = _number(parameters, "beta_slow", 1.0)

    def dimension(turns: float) -> float:
        return dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    stretched = np.clip((np.arange(dim // 2) - low) / (high - low), 0.0, 1.0)
    frequencies = plain / factor * stretched + plain * (1 - stretched)

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if parameters.get("attention_factor") is not None:
        return frequencies, _number(parameters, "attention_factor")
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        ratio = temperature(_number(parameters, "mscale")) / temperature(
            _number(parameters, "mscale_all_dim")
        )
        return frequencies, ratio
    return frequencies, temperature(1.0)
