"""Whole trainings of the tiny gpt2: the loop, its hooks, and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_run import CONFIG, floats, trainer, windows

import llmcore
from llmcore.training import (
    SGD,
    Batches,
    Dropout,
    Hook,
    State,
    Trainer,
    TrainingConfig,
    TrainingError,
    make_schedule,
    train,
)

TINY = Path(__file__).parents[1] / "data" / "tiny" / "gpt2"


def changed(**options) -> TrainingConfig:
    return dataclasses.replace(CONFIG, **options)


def test_a_run_learns_and_leaves_what_it_says(tmp_path):
    run = trainer(tmp_path / "run")
    result = run.run()
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in metrics] == list(range(1, 31))
    assert result.step == 30 and result.stopped is None
    assert metrics[-1]["loss"] == result.loss < metrics[0]["loss"] - 0.3
    validated = {r["step"]: r["validation_loss"] for r in metrics if "validation_loss" in r}
    assert list(validated) == [4, 8, 12, 16, 20, 24, 28, 30]
    assert result.best_loss == min(validated.values()) == validated[result.best_step]
    assert metrics[3]["validation_perplexity"] == pytest.approx(math.exp(validated[4]))
    assert all(0 < record["peak_share"] < 1 for record in metrics)
    assert result.best_model == tmp_path / "run" / "checkpoints" / f"step-{result.best_step}"
    # The model that is left has the averages, which were validated last.
    left = llmcore.load(result.model, trainable=True)
    total, count = 0.0, 0
    for (batch,) in Batches(windows(100, seed=1), batch_size=3, shuffle=False, epochs=1):
        losses, labels = left.evaluate(**batch)
        total, count = total + losses, count + labels
    assert total / count == validated[30]
    assert not np.array_equal(floats(left), floats(run.model))
    assert TrainingConfig.from_file(tmp_path / "run" / "training.json") == CONFIG


def test_threads_change_no_bits():
    ends = []
    for threads in (1, 2, None):
        model = llmcore.load(TINY, trainable=True, threads=threads)
        result = Trainer(model, windows(), CONFIG, validation=windows(100), progress=False).run()
        ends.append((result.loss, result.best_loss, floats(model).tobytes()))
    assert ends[0] == ends[1] == ends[2]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = trainer(None, changed(steps=3)).run()
    assert result.model is result.best_model is None
    assert result.step == 3 and result.best_step == 3
    assert not list(tmp_path.iterdir())


def test_accumulation_is_over_the_labels_of_the_step():
    """Two unequal halves of a batch are one step of the whole."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 90, n) for n in (3, 16, 5, 9)]
    labels = [np.where(rng.random(len(row)) < 0.5, row, -100) for row in ids]
    weights = []
    for cut in ([0, 4], [0, 1, 4], [0, 1, 2, 3, 4]):
        model = llmcore.load(TINY, trainable=True)
        state = State(model, SGD(model), None, steps=1)
        parts = [{"input_ids": ids[a:b], "labels": labels[a:b]} for a, b in pairwise(cut)]
        train(state, [parts], learning_rate=0.1, schedule=make_schedule("constant", steps=1))
        weights.append((state.loss, state.norm, floats(model)))
    for loss, norm, flat in weights[1:]:
        assert loss == pytest.approx(weights[0][0], rel=1e-6)
        assert norm == pytest.approx(weights[0][1], rel=1e-5)
        np.testing.assert_allclose(flat, weights[0][2], atol=1e-5)


def test_the_rate_follows_the_schedule(tmp_path):
    seen = []

    class Rates(Hook):
        def after_step(self, state):
            seen.append(state.optimizer.lr)
            state.metrics["mine"] = state.step * 2

    trainer(tmp_path / "run", changed(steps=10), hooks=[Rates()]).run()
    schedule = make_schedule("cosine", steps=10, warmup=5, final=0.1)
    assert seen == [3e-3 * schedule(step) for step in range(10)]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["mine"] for line in lines] == list(range(2, 21, 2))


def test_dropout_is_keyed_by_seed_step_and_sequence(monkeypatch):
    run = trainer(None, changed(steps=2, seed=7, batch_size=3))
    seen, compute = [], run.model.loss_and_grad

    def record(**arguments):
        seen.append(arguments["dropout"])
        return compute(**arguments)

    monkeypatch.setattr(run.model, "loss_and_grad", record)
    run.run()
    assert seen == [Dropout(0.1, 7, step, sequence) for step in (0, 1) for sequence in (0, 3)]
    run = trainer(None, changed(steps=1, dropout=0.0))
    seen, compute = [], run.model.loss_and_grad
    monkeypatch.setattr(run.model, "loss_and_grad", record)
    run.run()
    assert [drop.rate for drop in seen] == [0.0, 0.0]


def test_averages_are_updated_after_each_step():
    run = trainer(None, changed(steps=3))
    expected = floats(run.model).astype(np.float64)

    class Average(Hook):
        def after_step(self, state):
            expected[:] = 0.9 * expected + 0.1 * floats(state.model)

    run.hooks = [Average()]
    run.run()
    with run.ema.arena() as flat:
        np.testing.assert_allclose(flat, expected, rtol=1e-6, atol=1e-7)


def test_epochs_are_steps_and_the_data_ends():
    data = windows()
    run = trainer(None, changed(steps=None, epochs=2))
    assert run.run().step == math.ceil(2 * len(data) / 6)


def test_a_hook_can_stop(tmp_path):
    class Stop(Hook):
        def after_step(self, state):
            if state.step == 5:
                state.stop = "enough"

    result = trainer(tmp_path / "run", hooks=[Stop()]).run()
    assert (result.step, result.stopped) == (5, "enough")
    assert (tmp_path / "run" / "checkpoints" / "step-5").is_dir()


def test_early_stopping_names_the_best(tmp_path):
    config = changed(
        steps=300, learning_rate=0.05, eval_interval=2, early_stopping_patience=3, ema_decay=None
    )
    result = trainer(tmp_path / "run", config).run()
    assert result.step == result.best_step + 6 < 300
    assert result.stopped.startswith("early stopping: 3 validations")
    assert result.best_model.is_dir()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_names(tmp_path, value):
    run = trainer(tmp_path / "run")
    before = []

    class Break(Hook):
        def after_step(self, state):
            if state.step == 7:
                with state.model.arena("param") as flat:
                    flat[:] = value
                before.append(state)

    run.hooks = [Break()]
    message = r"step 8, batch 1 of 2: found a loss of nan.*examples are 42 to 47.*step-6"
    with pytest.raises(TrainingError, match=message):
        run.run()
    assert run.optimizer.step_count == 7


def test_a_gradient_that_is_not_finite_stops_with_names(tmp_path):
    class Break(Hook):
        def before_update(self, state):
            if state.step == 1:
                with state.model.arena("grad") as flat:
                    flat[3] = math.inf

    with pytest.raises(TrainingError, match=r"step 2, all 2 batches: .*inf.*there is no checkpoint"):
        trainer(tmp_path / "run", hooks=[Break()]).run()


def test_a_spike_of_the_loss_stops_before_it_is_learnt(tmp_path):
    class Spoil(Hook):
        def after_step(self, state):
            if state.step == 15:
                with state.model.arena("param") as flat:
                    flat *= 30
                    self.flat = flat.copy()

    spoil = Spoil()
    run = trainer(tmp_path / "run", changed(max_loss_spike=2.0), hooks=[spoil])
    with pytest.raises(TrainingError, match=r"step 16, .*after a mean of.*\(max_loss_spike\).*step-15"):
        run.run()
    assert np.array_equal(floats(run.model), spoil.flat)
    trainer(None, changed(max_loss_spike=0.0), hooks=[Spoil()]).run()


def test_samples_come_from_the_averages(tmp_path, gpt2_folder):
    from llmcore.training import new_model

    tiny = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    folder = new_model(tiny, tmp_path / "new", tokenizer=gpt2_folder)
    model = llmcore.load(folder, trainable=True)
    config = changed(steps=4, eval_interval=2, sample_prompts=("Hello", "A b"), sample_tokens=5)
    Trainer(model, windows(), config, validation=windows(100), folder=tmp_path / "run", progress=False).run()
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    samples = [record["samples"] for record in records if "samples" in record]
    assert [[sample["prompt"] for sample in each] for each in samples] == [["Hello", "A b"]] * 2
    left = llmcore.load(tmp_path / "run" / "model")
    again = left.generate("Hello", max_new_tokens=5, do_sample=True, temperature=0.8, seed=0).text
    assert samples[-1][0]["text"] == again


def test_what_does_not_fit_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="validation: found none"):
        trainer(None, changed(early_stopping_patience=1), validation=None)
    with pytest.raises(FileNotFoundError, match="sample_prompts needs a tokenizer"):
        trainer(None, changed(sample_prompts=("a",)))
    with pytest.raises(ValueError, match="precision: found a model of float32, expected bfloat16"):
        trainer(None, changed(precision="bfloat16"))
    with pytest.raises(ValueError, match="decay: found 31, expected 0 to 30"):
        trainer(tmp_path / "run", changed(schedule="wsd", decay_steps=31))
    trainer(tmp_path / "run", changed(steps=1)).run()
    with pytest.raises(FileExistsError, match="found a run"):
        trainer(tmp_path / "run").run()
