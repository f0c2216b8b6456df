"""Losses and gradients of whole models: those of torch, the same bits however they are computed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore
from llmcore.training.model import Dropout

TINY = Path(__file__).parents[1] / "data" / "tiny"
NAMES = ["gpt2", "llama"]


def train_batch(name: str) -> dict[str, list[np.ndarray]]:
    tensors = load_file(TINY / name / "expected.safetensors")
    return {key: list(tensors[f"train.{key}"]) for key in ("input_ids", "labels")}


def gradients(model, **batch) -> tuple[float, dict[str, np.ndarray]]:
    loss = model.loss_and_grad(**batch)
    return loss, {tensor.name: model.grad(tensor.name) for tensor in model.parameters() if tensor.trained}


def restarted(name: str, **options):
    return llmcore.load(TINY / name, trainable=True, **options)


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_torch(name: str) -> None:
    expected = load_file(TINY / name / "expected.safetensors")
    train = json.loads((TINY / name / "expected.json").read_text())["train"]
    loss, grads = gradients(restarted(name), **train_batch(name))
    assert abs(loss - train["losses"][0]) < 1e-4
    assert {f"grad.{key}" for key in grads} == {key for key in expected if key.startswith("grad.")}
    for key, gradient in grads.items():
        reference = expected[f"grad.{key}"]
        most = 1e-4 * np.abs(reference).max() + 1e-7
        np.testing.assert_allclose(gradient, reference, rtol=0, atol=most, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_logits(name: str) -> None:
    model, batch = restarted(name), train_batch(name)
    total = 0.0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        for logits, label in zip(llmcore.load(TINY / name).logits(ids), labels[1:], strict=False):
            if label != -100:
                wide = logits.astype(np.float64)
                total += np.log(np.exp(wide - wide.max()).sum()) + wide.max() - wide[label]
    found, count = model.evaluate(**batch)
    assert count == sum(int((labels[1:] != -100).sum()) for labels in batch["labels"])
    assert abs(found - total) < 1e-4 * total
    assert found == pytest.approx(model.loss_and_grad(**batch) * count, abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bits_depend_on_neither_threads_nor_checkpointing(name: str) -> None:
    drop = Dropout(0.3, seed=1, step=2)
    for precision in ("float32", "bfloat16"):
        model = restarted(name, precision=precision, threads=1)
        loss, expected = gradients(model, **train_batch(name), dropout=drop, label_smoothing=0.1)
        again = restarted(name, precision=precision)
        again.checkpointing = True
        found, grads = gradients(again, **train_batch(name), dropout=drop, label_smoothing=0.1)
        assert found == loss
        assert same(grads, expected)


@pytest.mark.parametrize("name", NAMES)
def test_it_computes_what_the_model_computes_that_infers(name: str) -> None:
    ids = train_batch(name)["input_ids"][0]
    plain, model = llmcore.load(TINY / name), restarted(name)
    np.testing.assert_array_equal(model.logits(ids), plain.logits(ids))
    prompt = ids[:5].tolist()
    assert model.generate(prompt, max_new_tokens=8).ids == plain.generate(prompt, max_new_tokens=8).ids


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_a_step_add_up(name: str) -> None:
    batch = train_batch(name)
    whole, expected = gradients(restarted(name), **batch)
    count = sum(int((labels[1:] != -100).sum()) for labels in batch["labels"])
    model = restarted(name)
    losses = 0.0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        loss, found = gradients(model, input_ids=[ids], labels=[labels], denominator=count)
        losses += loss
    assert losses == pytest.approx(whole, rel=1e-6)
    for key, gradient in found.items():
        most = 1e-5 * np.abs(expected[key]).max() + 1e-8
        np.testing.assert_allclose(gradient, expected[key], rtol=0, atol=most, err_msg=key)


def test_padding_is_left_out() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 90, length) for length in (7, 3, 5)]
    loss, expected = gradients(restarted("llama"), input_ids=rows)
    padded, mask = np.zeros((3, 7), np.int64), np.zeros((3, 7), np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)], mask[i, : len(row)] = row, 1
    found, grads = gradients(restarted("llama"), input_ids=padded, attention_mask=mask)
    assert (found, same(grads, expected)) == (loss, True)


def test_what_is_frozen_has_no_gradient_and_changes_no_other() -> None:
    _, expected = gradients(restarted("gpt2"), **train_batch("gpt2"))
    model = restarted("gpt2", frozen=["*.mlp.*", "*ln_f.bias", "*wpe*"])
    _, grads = gradients(model, **train_batch("gpt2"))
    frozen = [tensor for tensor in model.parameters() if not tensor.trained]
    assert len(frozen) == sum(".mlp." in name or "ln_f.bias" in name or "wpe" in name for name in expected)
    assert same(grads, {name: expected[name] for name in grads})
    assert len(grads) + len(frozen) == len(expected)
    with model.arena("grad") as flat:
        assert len(flat) == sum(gradient.size for gradient in grads.values())
    stored = load_file(TINY / "gpt2" / "model.safetensors")
    for tensor in frozen:
        np.testing.assert_array_equal(model.param(tensor.name), stored[tensor.name])
        with pytest.raises(ValueError, match=r"found .*, expected the name of a tensor that trains"):
            model.grad(tensor.name)


def test_the_arena_holds_the_tensors_and_can_be_written() -> None:
    model = restarted("gpt2")
    stored = load_file(TINY / "gpt2" / "model.safetensors")
    assert {tensor.name for tensor in model.parameters()} == set(stored)
    ids = train_batch("gpt2")["input_ids"][0]
    before = model.logits(ids)
    with model.arena("param") as flat:
        for tensor in model.parameters():
            np.testing.assert_array_equal(
                flat[tensor.start : tensor.stop].reshape(tensor.shape), stored[tensor.name]
            )
        with pytest.raises(RuntimeError, match="lent"):
            model.logits(ids)
        flat *= 0.5
    assert not flat.flags.writeable
    assert not np.array_equal(model.logits(ids), before)
    np.testing.assert_array_equal(
        model.param("transformer.ln_f.weight"), stored["transformer.ln_f.weight"] / 2
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    model, ids = restarted(name), train_batch(name)["input_ids"][0]
    with model.arena("param") as flat:
        flat += np.random.default_rng(0).normal(0, 0.05, flat.shape).astype(np.float32)
    model.save(tmp_path / "saved")
    np.testing.assert_array_equal(llmcore.load(tmp_path / "saved").logits(ids), model.logits(ids))
    prompt = ids[:5].tolist()
    saved = llmcore.load(tmp_path / "saved").generate(prompt, max_new_tokens=8)
    assert model.generate(prompt, max_new_tokens=8).ids == saved.ids


def test_dropout_is_keyed_by_the_sequence() -> None:
    batch = train_batch("gpt2")
    drop = Dropout(0.5, seed=3, step=1)
    whole, _ = gradients(restarted("gpt2"), **batch, dropout=drop)
    count = sum(int((labels[1:] != -100).sum()) for labels in batch["labels"])
    model = restarted("gpt2")
    parts = [
        model.loss_and_grad(
            input_ids=[ids], labels=[labels], denominator=count, dropout=Dropout(0.5, 3, 1, sequence=i)
        )
        for i, (ids, labels) in enumerate(zip(batch["input_ids"], batch["labels"], strict=True))
    ]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)
    assert whole != pytest.approx(gradients(model, **batch)[0], rel=1e-3)
    assert whole != gradients(model, **batch, dropout=Dropout(0.5, seed=3, step=2))[0]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({}, "found no input_ids"),
        ({"input_ids": [[1, 2], []]}, r"input_ids\[1\]: found no tokens"),
        ({"input_ids": [[1, 9999]]}, "token ids: found 9999"),
        ({"input_ids": [[1, 2]], "labels": [[1, 9999]]}, "labels: found 9999"),
        ({"input_ids": [[1, 2]], "labels": [[1, -5]]}, "labels: found -5"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, r"labels: found rows of \[1\]"),
        ({"input_ids": [[1, 2]], "labels": [[1, -100]]}, "labels: found none that counts"),
        ({"input_ids": [[1] * 1000]}, "a sequence of 1000 tokens"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 1]]}, r"attention_mask\[0\]"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 1]]}, "'token_type_ids'"),
        ({"input_ids": [[1, 2]], "denominator": 0.0}, "denominator: found 0"),
        ({"input_ids": [[1, 2]], "label_smoothing": 2.0}, "label_smoothing: found 2"),
        ({"input_ids": [[1, 2]], "dropout": Dropout(1.0)}, "dropout: found 1"),
    ],
)
def test_a_wrong_batch_is_an_error_that_speaks(batch: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restarted("gpt2").loss_and_grad(**batch)


def test_wrong_options_are_errors_that_speak() -> None:
    with pytest.raises(TypeError, match=r"dropout: found 0\.1, expected Dropout"):
        restarted("gpt2").loss_and_grad(input_ids=[[1, 2]], dropout=0.1)
    for options, message in (
        ({"precision": "float16"}, "precision: found 'float16'"),
        ({"frozen": "nothing.*"}, "frozen: found 'nothing"),
        ({"frozen": "*"}, "frozen: found all tensors"),
        ({"frozen": "model.layers.0.self_attn.q_proj.weight"}, r"layers\.0\.attn\.[kq]\.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            restarted("llama", **options)
    with pytest.raises(ValueError, match="arena: found 'moments'"), restarted("gpt2").arena("moments"):
        pass
    with pytest.raises(ValueError, match="model: found one loaded to infer"):
        llmcore.load(TINY / "gpt2").core.tensors()
