"""Frequencies of rotary positions against those of Transformers 5.23, and parameters that are wrong."""

from __future__ import annotations

import math

import pytest

from llmcore.rope import rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# 16 entries of a head turn, the context is 512, and the base 10,000 unless named. The values are `inv_freq`
# and `attention_scaling` of a `LlamaRotaryEmbedding`.
CASES = {
    "linear": (
        {"rope_type": "linear", "factor": 4.0},
        [0.25, 0.07905694, 0.025, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
        1.0,
    ),
    "llama3": (
        LLAMA3 | {"rope_theta": 500000.0},
        [1.0, 0.07940301, 0.004700754, 0.0009115831, 0.0001767767, 3.428102e-05, 6.64787e-06, 1.289173e-06],
        1.0,
    ),
    "yarn": (
        YARN | {"original_max_position_embeddings": 128},
        [1.0, 0.2371708, 0.05, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
        1.138629436111989,
    ),
    "yarn, borders not rounded": (
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 128,
            "rope_theta": 500000.0,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        [1.0, 0.07978632, 0.004700754, 0.0009115831, 0.0001767767, 3.428102e-05, 6.64787e-06, 1.289173e-06],
        1.2079441541679836,
    ),
    "yarn with mscale": (
        YARN | {"mscale": 1.0, "mscale_all_dim": 0.8},
        [1.0, 0.2371708, 0.05, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
        1.0249579607969668,
    ),
    "yarn with its factor of attention": (
        YARN | {"attention_factor": 1.3},
        [1.0, 0.2371708, 0.05, 0.007905695, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
        1.3,
    ),
    "yarn from the whole context": (
        {"rope_type": "yarn", "factor": 4.0},
        [1.0, 0.2569351, 0.0625, 0.01383497, 0.0025, 0.0007905695, 0.00025, 7.905695e-05],
        1.138629436111989,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_frequencies(case):
    parameters, frequencies, scale = CASES[case]
    found = rope(16, parameters.get("rope_theta", 10000.0), parameters, 512)
    assert found.frequencies == pytest.approx(frequencies, rel=5e-7, abs=0)
    assert found.scale == pytest.approx(scale, rel=1e-12)


def test_factors_divide():
    """The factors that GGUF stores stand for a scaling."""
    plain, scaled = rope(16, 10000.0, None, 512), rope(16, 10000.0, LLAMA3, 512)
    factors = [a / b for a, b in zip(plain.frequencies, scaled.frequencies, strict=True)]
    found = rope(16, 10000.0, None, 512, factors)
    assert found.frequencies == pytest.approx(scaled.frequencies, rel=3e-7, abs=0)


@pytest.mark.parametrize(
    ("dim", "theta", "parameters", "factors", "message"),
    [
        (15, 10000.0, {}, None, "15 entries, expected an even number"),
        (16, 1.0, {}, None, "rope_theta: found 1.0"),
        (16, math.nan, {}, None, "rope_theta: found nan"),
        (16, "x", {}, None, "rope_theta: found 'x'"),
        (16, 10000.0, {"rope_type": "longrope"}, None, "rope_type: found 'longrope'"),
        (16, 10000.0, {"rope_type": "linear", "factor": 0.0}, None, r"rope_parameters\.factor: found 0\.0"),
        (16, 10000.0, YARN | {"beta_fast": math.inf}, None, r"rope_parameters\.beta_fast: found inf"),
        (16, 10000.0, LLAMA3 | {"high_freq_factor": 1.0}, None, r"rope_parameters\.high_freq_factor: found"),
        (16, 10000.0, {}, [1.0] * 7, "rope_freqs: found 7 factors"),
        (16, 10000.0, {}, [0.0] * 8, "rope_freqs"),
    ],
)
def test_parameters_that_are_wrong(dim, theta, parameters, factors, message):
    with pytest.raises(ValueError, match=message):
        rope(dim, theta, parameters, 512, factors)
