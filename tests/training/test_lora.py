"""Low-rank adapters: the numbers and the files of PEFT (0.21.2, which made `tests/data/lora`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llmcore
from llmcore.training import AdamW, Dropout, LoRA
from llmcore.training.loop import State, add_gradients

DATA = Path(__file__).parents[1] / "data"
NAMES = ["gpt2", "llama"]


def adapted(name: str, adapter=None, **options):
    return llmcore.load(
        DATA / "tiny" / name, trainable=True, adapter=adapter or DATA / "lora" / name, **options
    )


def train_batch(name: str) -> dict[str, list[np.ndarray]]:
    tensors = load_file(DATA / "tiny" / name / "expected.safetensors")
    return {key: list(tensors[f"train.{key}"]) for key in ("input_ids", "labels")}


@pytest.mark.parametrize("name", NAMES)
def test_logits_losses_and_gradients_are_those_of_peft(name: str) -> None:
    expected = load_file(DATA / "lora" / name / "expected.safetensors")
    model, batch = adapted(name), train_batch(name)
    np.testing.assert_allclose(model.logits(batch["input_ids"][0]), expected["logits"], rtol=0, atol=1e-4)
    assert model.loss_and_grad(**batch) == pytest.approx(expected["loss"][0], abs=1e-4)
    trained = {tensor.name for tensor in model.parameters() if tensor.trained}
    assert {f"grad.{key}" for key in trained} == {key for key in expected if key.startswith("grad.")}
    for key in trained:
        reference = expected[f"grad.{key}"]
        most = 1e-4 * np.abs(reference).max() + 1e-7
        np.testing.assert_allclose(model.grad(key), reference, rtol=0, atol=most, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_files_come_back_and_merge(name: str, tmp_path: Path) -> None:
    model = adapted(name)
    model.save(tmp_path / "adapter")
    before = load_file(DATA / "lora" / name / "adapter_model.safetensors")
    after = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    stored = json.loads((DATA / "lora" / name / "adapter_config.json").read_text())
    known = {key: stored[key] for key in found} | {"base_model_name_or_path": str(DATA / "tiny" / name)}
    assert found | {"target_modules": 0} == known | {"target_modules": 0}
    assert set(found["target_modules"]) == set(stored["target_modules"])
    model.save_merged(tmp_path / "merged")
    ids = train_batch(name)["input_ids"][0]
    merged = llmcore.load(tmp_path / "merged")
    np.testing.assert_allclose(merged.logits(ids), model.logits(ids), rtol=0, atol=1e-5)
    assert not np.allclose(merged.logits(ids), llmcore.load(DATA / "tiny" / name).logits(ids), atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_adapter_changes_nothing_until_it_trains(name: str) -> None:
    ids = train_batch(name)["input_ids"][0]
    model = adapted(name, LoRA(r=4, lora_dropout=0.2, target_modules="all-linear", seed=3))
    plain = llmcore.load(DATA / "tiny" / name)
    np.testing.assert_array_equal(model.logits(ids), plain.logits(ids))
    optimizer = AdamW(model, lr=1e-2)
    first = model.loss_and_grad(**train_batch(name), dropout=Dropout(0.0, seed=1, step=0))
    for step in range(1, 10):
        optimizer.step()
        last = model.loss_and_grad(**train_batch(name), dropout=Dropout(0.0, seed=1, step=step))
    assert last < first - 0.1
    stored = load_file(DATA / "tiny" / name / "model.safetensors")
    for tensor in model.parameters():
        if not tensor.trained:
            np.testing.assert_array_equal(model.param(tensor.name), stored[tensor.name])
    first_a = next(tensor for tensor in model.parameters() if tensor.name.endswith("lora_A.weight"))
    assert len(np.unique(model.param(first_a.name))) > 4 * 8


def test_its_dropout_is_drawn_again_for_the_gradient() -> None:
    """A finite difference along the gradient of one draw of dropout."""
    model = adapted("llama", LoRA(r=4, lora_dropout=0.5, target_modules=["q_proj", "down_proj"]))
    drop = Dropout(0.0, seed=1, step=2)
    with model.arena("param") as flat:
        flat[:] = np.random.default_rng(0).normal(0, 0.3, flat.shape)
    batch = train_batch("llama")
    model.loss_and_grad(**batch, dropout=drop)
    with model.arena("grad") as flat:
        gradient = flat.astype(np.float64)
    losses = []
    for sign in (1, -1):
        step = 1e-2 * gradient / np.linalg.norm(gradient)
        with model.arena("param") as flat:
            flat += (sign * step).astype(np.float32)
        losses.append(model.loss_and_grad(**batch, dropout=drop))
        with model.arena("param") as flat:
            flat -= (sign * step).astype(np.float32)
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(np.linalg.norm(gradient), rel=2e-2)
    assert losses[0] != pytest.approx(model.loss_and_grad(**batch), rel=1e-4)


def test_the_loop_drops_the_inputs_of_adapters() -> None:
    losses = []
    for rate in (0.0, 0.5):
        model = adapted("llama", LoRA(r=4, lora_dropout=rate, target_modules=["q_proj", "down_proj"]))
        with model.arena("param") as flat:
            flat[:] = np.random.default_rng(0).normal(0, 0.3, flat.shape)
        state = State(model, AdamW(model), None, steps=1, batches=[train_batch("llama")])
        add_gradients(state, dropout=0.0, label_smoothing=0.0, seed=0)
        losses.append(state.loss)
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_quantised_base_stays_so_and_trains_as_its_numbers_do(smollm2_path, tmp_path) -> None:
    """The same bits as over the same weights in float32, in the memory of the file."""
    ids = [504, 3575, 282, 4649, 314, 7042, 30]
    config = LoRA(r=4, target_modules=["q_proj", "v_proj", "down_proj"])
    model = llmcore.load(smollm2_path, trainable=True, adapter=config)
    assert model.info()["weight_bytes"] < 1.1 * smollm2_path.stat().st_size
    expanded = llmcore.load(smollm2_path, trainable=True, adapter=config, dtype="float32")
    assert expanded.info()["weight_bytes"] > 5 * smollm2_path.stat().st_size
    np.testing.assert_array_equal(model.logits(ids), expanded.logits(ids))
    expanded = llmcore.load(smollm2_path, trainable=True)
    np.testing.assert_array_equal(model.logits(ids), expanded.logits(ids))
    weight = "model.layers.3.self_attn.q_proj.weight"
    np.testing.assert_array_equal(model.param(weight), expanded.param(weight))
    expanded.save(tmp_path / "float32")
    del expanded
    floats = llmcore.load(tmp_path / "float32", trainable=True, adapter=config)
    noise = np.random.default_rng(0)
    with model.arena("param") as left, floats.arena("param") as right:
        left[:] = right[:] = noise.normal(0, 0.02, left.shape)
    assert model.loss_and_grad(input_ids=[ids]) == floats.loss_and_grad(input_ids=[ids])
    with model.arena("grad") as left, floats.arena("grad") as right:
        np.testing.assert_array_equal(left, right)
        assert np.abs(left).max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora: found True"),
        ({"bias": "all"}, "bias: found 'all'"),
        ({"r": 0}, "r: found 0"),
        ({"target_modules": ["nothing"]}, "target_modules: found .'nothing'"),
        ({"r": 5}, r"lora_A.weight: found shape \[3,"),
        ({"target_modules": ["q_proj"]}, "found tensor"),
    ],
)
def test_a_wrong_adapter_is_an_error_that_speaks(change: dict, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(DATA / "lora" / "llama", folder)
    config = json.loads((folder / "adapter_config.json").read_text()) | change
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        adapted("llama", folder)


def test_a_tensor_too_few_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(DATA / "lora" / "llama", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"found no tensor '{gone}'"):
        adapted("llama", folder)


def test_wrong_options_speak() -> None:
    for options, message in (
        ({"r": 0}, "r: found 0"),
        ({"lora_dropout": 1.0}, "lora_dropout: found 1"),
        ({"lora_alpha": float("nan")}, "lora_alpha: found nan"),
    ):
        with pytest.raises(ValueError, match=message):
            LoRA(**options)
    with pytest.raises(ValueError, match="trainable: found False"):
        llmcore.load(DATA / "tiny" / "llama", adapter=LoRA())
    with pytest.raises(ValueError, match="found a model without adapters"):
        llmcore.load(DATA / "tiny" / "llama", trainable=True).save_merged("unused")
