"""Optimisers against the oracle's, tensor by tensor."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import llmcore
import reference_grad
from llmcore import _core
from llmcore.training import EMA, SGD, AdamW

TINY = Path(__file__).parents[1] / "data" / "tiny"
IDS = [[1, 2, 3, 4]]


def load(architecture="gpt2", **options):
    return llmcore.load(TINY / architecture, trainable=True, **options)


def read(model, which="param"):
    """The tensors that train, or their gradients, in float64."""
    with model.arena(which) as flat:
        tensors = [tensor for tensor in model.parameters() if tensor.trained]
        return {tensor.name: flat[tensor.start : tensor.stop].astype(np.float64) for tensor in tensors}


def draw_gradients(model, rng):
    """Gradients of any size in place of those of a loss."""
    model.loss_and_grad(input_ids=IDS)
    with model.arena("grad") as flat:
        flat[:] = rng.normal(size=len(flat))


def close(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-6, err_msg=name)


@settings(max_examples=12)
@given(
    st.sampled_from(["gpt2", "llama"]),
    st.sampled_from([None, 0.5, 1e6]),
    st.sampled_from([("bias", "norm", "ln_"), (), ("0.",)]),
    st.integers(0, 9),
)
def test_adamw_is_the_oracles(architecture, most, no_decay, seed):
    rng = np.random.default_rng(seed)
    model = load(architecture)
    optimizer = AdamW(
        model, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3, no_decay=no_decay, max_grad_norm=most
    )
    oracle = reference_grad.AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    expected = read(model)
    still = [name for name in expected if any(part in name.lower() for part in no_decay)]
    for step in range(3):
        draw_gradients(model, rng)
        grads = read(model, "grad")
        norm = reference_grad.clip(grads, math.inf if most is None else most)
        optimizer.lr = oracle.lr = 0.01 / (step + 1)
        oracle.step(expected, grads, still)
        assert optimizer.step() == pytest.approx(norm, rel=1e-6)
    assert optimizer.step_count == 3
    close(read(model), expected)
    for name, state in (("exp_avg", oracle.first), ("exp_avg_sq", oracle.second)):
        with optimizer.arena(name) as flat:
            close({t.name: flat[t.start : t.stop] for t in model.parameters()}, state)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_ten_steps_are_those_of_torch(architecture):
    tensors = load_file(TINY / architecture / "expected.safetensors")
    train = json.loads((TINY / architecture / "expected.json").read_text())["train"]
    model = load(architecture)
    optimizer = AdamW(
        model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, no_decay=(), max_grad_norm=1.0
    )
    key_biases = [t.name for t in model.parameters() if t.name.endswith("attn.c_attn.bias")]
    for loss, norm in zip(train["losses"], train["grad_norms"], strict=True):
        found = model.loss_and_grad(input_ids=tensors["train.input_ids"], labels=tensors["train.labels"])
        assert found == pytest.approx(loss, abs=1e-4)
        # A bias of all keys changes no attention: its gradient is rounding, which AdamW makes steps of.
        for name in key_biases:
            assert np.abs(model.grad(name).reshape(3, -1)[1]).max() <= 1e-7
        assert optimizer.step() == pytest.approx(norm, abs=1e-4)
    for tensor in model.parameters():
        after, expected = model.param(tensor.name), tensors[f"after10.{tensor.name}"]
        if tensor.name in key_biases:
            after, expected = (np.delete(x.reshape(3, -1), 1, axis=0) for x in (after, expected))
        np.testing.assert_allclose(after, expected, rtol=0, atol=1e-4, err_msg=tensor.name)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_the_oracles(nesterov):
    rng = np.random.default_rng(0)
    model = load()
    optimizer = SGD(model, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.02, no_decay=())
    expected = read(model)
    velocity = {name: 0.0 for name in expected}
    for _ in range(3):
        draw_gradients(model, rng)
        grads = read(model, "grad")
        optimizer.step()
        for name, g in grads.items():
            g = g + 0.02 * expected[name]
            velocity[name] = 0.9 * velocity[name] + g
            expected[name] = expected[name] - 0.1 * (g + 0.9 * velocity[name] if nesterov else velocity[name])
    close(read(model), expected)


def test_a_frozen_tensor_stays_and_does_not_count():
    model = load(frozen="*mlp*")
    before = {tensor.name: model.param(tensor.name) for tensor in model.parameters()}
    ema, optimizer = EMA(model, decay=0.5), AdamW(model, lr=0.1, max_grad_norm=1.0)
    draw_gradients(model, np.random.default_rng(0))
    grads = read(model, "grad")
    assert optimizer.step() == pytest.approx(math.sqrt(sum((g**2).sum() for g in grads.values())))
    ema.update()
    with ema.swapped():
        for name, value in before.items():
            assert (model.param(name) == value).all() == ("mlp" in name)


def test_what_is_not_decayed_by_default():
    for architecture, still in (("gpt2", ("ln_", "bias")), ("llama", ("norm",))):
        model = load(architecture)
        before = read(model)
        draw_gradients(model, np.random.default_rng(0))
        with model.arena("grad") as flat:
            flat[:] = 0
        AdamW(model, lr=0.1, weight_decay=0.5).step()
        after = read(model)
        for name, value in before.items():
            factor = 1 if any(part in name for part in still) else 0.95
            np.testing.assert_allclose(after[name], factor * value, rtol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_gradients_without_a_finite_norm_change_nothing(bad):
    """Squares of float32 may overflow where the numbers do not."""
    model = load()
    optimizer = AdamW(model, lr=0.1, max_grad_norm=1.0)
    draw_gradients(model, np.random.default_rng(0))
    with model.arena("grad") as flat:
        flat[6] = bad
    before = read(model)
    with pytest.raises(FloatingPointError, match="no parameter was changed"):
        optimizer.step()
    assert optimizer.step_count == 0
    close(read(model), before)
    with optimizer.arena("exp_avg") as flat:
        assert not flat.any()


def test_a_step_without_gradients_is_an_error():
    model = load()
    optimizer = AdamW(model)
    for _ in range(2):
        with pytest.raises(ValueError, match="loss_and_grad since the last step"):
            optimizer.step()
        model.loss_and_grad(input_ids=IDS)
        optimizer.step()


def test_ema_is_its_formula_and_changes_places():
    rng = np.random.default_rng(0)
    model = load()
    ema = EMA(model, decay=0.9)
    expected = read(model)
    for _ in range(3):
        with model.arena("param") as flat:
            flat += rng.normal(size=len(flat)).astype(np.float32)
        ema.update()
        now = read(model)
        expected = {name: 0.9 * expected[name] + 0.1 * now[name] for name in expected}
    with ema.swapped():
        close(read(model), expected)
    for name, value in read(model).items():
        assert (value == now[name]).all()


def test_ema_gives_the_parameters_back_after_an_error():
    model = load()
    ema = EMA(model, decay=0.5)
    with model.arena("param") as flat:
        flat[:] = 7
    with pytest.raises(KeyError), ema.swapped():
        raise KeyError
    with model.arena("param") as flat:
        assert (flat == 7).all()


def test_averaging_keeps_gradients():
    """Validation between two batches of a step is odd, but no reason to lose the first."""
    model = load()
    ema = EMA(model)
    model.loss_and_grad(input_ids=IDS)
    once = read(model, "grad")
    with ema.swapped():
        pass
    model.loss_and_grad(input_ids=IDS)
    for name, grad in read(model, "grad").items():
        np.testing.assert_allclose(grad, 2 * once[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: AdamW(m, lr=-1), "lr: found -1"),
        (lambda m: AdamW(m, lr=math.nan), "lr"),
        (lambda m: AdamW(m, betas=(0.9, 1.0)), "betas"),
        (lambda m: AdamW(m, eps=0), "eps"),
        (lambda m: AdamW(m, weight_decay=-0.1), "weight_decay"),
        (lambda m: AdamW(m, max_grad_norm=0), "max_grad_norm"),
        (lambda m: SGD(m, momentum=1), "momentum"),
        (lambda m: EMA(m, decay=1), "decay"),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(load())


def test_what_is_lent_cannot_be_stepped():
    model = load()
    optimizer = AdamW(model)
    model.loss_and_grad(input_ids=IDS)
    with optimizer.arena("exp_avg") as flat, pytest.raises(RuntimeError, match="lent"):
        optimizer.step()
    with pytest.raises(ValueError, match="read-only"):
        flat[0] = 1
    with pytest.raises(KeyError, match="exp_avg, exp_avg_sq"), optimizer.arena("momentum"):
        pass
    with pytest.raises(TypeError, match="sequence"):
        AdamW(model, no_decay="bias")


def test_groups_and_state_that_do_not_fit_are_an_error():
    model = load()
    end = sum(tensor.size for tensor in model.parameters())
    average = _core.Flat(end)
    for groups in (
        [(0, 3, 0.0), (2, 4, 0.0)],
        [(3, 2, 0.0)],
        [(0, end + 1, 0.0)],
        [(2, 3, 0.0), (0, 1, 0.0)],
    ):
        with pytest.raises(ValueError, match="groups"):
            _core.ema_update(model.core, average, groups, 0.5)
    with pytest.raises(ValueError, match=f"found 4 floats, expected {end}"):
        _core.ema_update(model.core, _core.Flat(4), [], 0.5)
    model.loss_and_grad(input_ids=IDS)
    with pytest.raises(ValueError, match="twice"):
        _core.adamw_step(model.core, average, average, [], 0.1, (0.9, 0.9), 1e-8, 1, None)


def test_an_optimiser_of_a_model_that_does_not_train():
    with pytest.raises(AttributeError):
        AdamW(llmcore.load(TINY / "gpt2"))
