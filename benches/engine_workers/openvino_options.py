"""How OpenVINO is told what to compute in."""

from __future__ import annotations

from typing import Any


def options(precision: str, threads: int) -> dict[str, Any]:
    """Left alone, OpenVINO computes in bfloat16 where there are instructions for it, whatever weights are.

    Those of 8 and 4 bits keep that, which is faster; their products are of bytes, in groups of 32.
    """
    return {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "float32" else "bf16",
        "KV_CACHE_PRECISION": "f16" if precision == "float32" else "u8",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }


def said(found: dict[str, Any]) -> str:
    """What the options say of precision."""
    products = f"dynamic quantisation in groups of {found['DYNAMIC_QUANTIZATION_GROUP_SIZE']}"
    return f"inference {found['INFERENCE_PRECISION_HINT']}, KV {found['KV_CACHE_PRECISION']}, {products}"
