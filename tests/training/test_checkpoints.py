"""A training that is killed, whose disk is full, or that goes on elsewhere."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run
from safetensors.numpy import load_file
from tiny_run import CONFIG, floats, trainer, windows

import llmcore
from llmcore import _core
from llmcore.training import Hook, LoRA, TrainingConfig, checkpoints

KILLS = int(os.environ.get("LLMCORE_KILLS", "3"))
"""Moments at which a training is killed."""


def changed(**options):
    return dataclasses.replace(CONFIG, **options)


def steps(folder: Path) -> list[int]:
    return checkpoints.Checkpoints(folder / "checkpoints", 1).steps()


class Stop(Hook):
    """Ends a training as a crash would: by an exception after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, state):
        if state.step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trainer(folder).run()
    return folder


def same_end(folder: Path, whole: Path) -> None:
    """All files of the last checkpoint and the model are the same bits, and so are the losses."""
    for name in ("checkpoints/step-30", "model"):
        for file in sorted((whole / name).iterdir()):
            assert (folder / name / file.name).read_bytes() == file.read_bytes(), f"{name}/{file.name}"
    found, expected = ((f / "metrics.jsonl").read_text().splitlines() for f in (folder, whole))
    for a, b in zip(map(json.loads, found), map(json.loads, expected), strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate", "tokens", "validation_loss"):
            assert a.get(name) == b.get(name), name


def test_checkpoints_are_kept_and_deleted(whole):
    best = json.loads((whole / "checkpoints" / "step-30" / "trainer_state.json").read_text())["validation"]
    assert steps(whole) == sorted({best["best_step"], 28, 30} | set(steps(whole)[-2:]))
    assert len(steps(whole)) <= 3
    assert not [entry.name for entry in (whole / "checkpoints").iterdir() if entry.name.startswith(".")]


def test_the_best_is_kept_beside_the_last(tmp_path):
    class Worse(Hook):
        """Makes the validations after the first worse."""

        def after_step(self, state):
            if state.step == 5:
                with state.model.arena("param") as flat:
                    flat *= 1.5

    config = changed(steps=15, ema_decay=None, learning_rate=0.0, max_loss_spike=0.0)
    result = trainer(tmp_path / "run", config, hooks=[Worse()]).run()
    assert result.best_step == 4
    assert steps(tmp_path / "run") == [4, 12, 15]


def test_a_checkpoint_is_a_model(whole):
    folder = whole / "checkpoints" / "step-30"
    model = llmcore.load(folder, trainable=True)
    weights = load_file(folder / "model.safetensors")
    moments, averages = load_file(folder / "optimizer.safetensors"), load_file(folder / "ema.safetensors")
    for tensor in model.parameters():
        assert (model.param(tensor.name) == weights[tensor.name]).all()
        for name in ("exp_avg", "exp_avg_sq"):
            assert moments[f"{name}.{tensor.name}"].shape == tensor.shape
        assert averages[tensor.name].shape == tensor.shape
    left = load_file(whole / "model" / "model.safetensors")
    assert all((left[name] == averages[name]).all() for name in left)


@pytest.mark.parametrize("step", [2, 11, 12])
def test_what_goes_on_ends_with_the_same_bits(tmp_path, whole, step):
    """Before the first checkpoint, between two, and just before one is written."""
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", hooks=[Stop(step)]).run()
    assert (steps(tmp_path / "run") or [0])[-1] < step
    trainer(tmp_path / "run").run(resume=True)
    same_end(tmp_path / "run", whole)
    # A run that has ended stays as it is.
    result = trainer(tmp_path / "run").run(resume=True)
    assert result.step == 30
    same_end(tmp_path / "run", whole)


def test_adapters_go_on_with_the_same_bits(tmp_path):
    def run(name, **options):
        model = llmcore.load(tiny_run.TINY, trainable=True, adapter=LoRA(r=2, lora_dropout=0.1))
        options |= {"validation": windows(99), "folder": tmp_path / name, "progress": False}
        return llmcore.training.Trainer(model, windows(), changed(steps=8), **options)

    run("whole").run()
    with pytest.raises(KeyboardInterrupt):
        run("run", hooks=[Stop(5)]).run()
    run("run").run(resume=True)
    for file in sorted((tmp_path / "whole" / "checkpoints" / "step-8").iterdir()):
        assert (tmp_path / "run" / "checkpoints" / "step-8" / file.name).read_bytes() == file.read_bytes()


def test_killed_at_any_moment(tmp_path, whole):
    """A process is killed some random while after it began, LLMCORE_KILLS times."""
    rng = np.random.default_rng(int(time.time()) if KILLS > 3 else 0)
    folder, killed = tmp_path / "run", 0
    command = [sys.executable, tiny_run.__file__, str(folder), "--resume"]
    while killed < KILLS:
        before = written(folder)
        process = subprocess.Popen(command)
        while process.poll() is None and written(folder) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was faster, and ended
            same_end(folder, whole)
            folder = folder.with_name(f"run-{killed}")
            command[2] = str(folder)
        killed += 1
    subprocess.run(command, check=True)
    same_end(folder, whole)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_killed_at_each_call_that_changes_files(tmp_path):
    """A process ends before its n-th such call, for every n, or with few kills for some."""
    config = changed(steps=4, save_interval=2, keep_last=1, eval_interval=None)
    trainer(tmp_path / "whole", config).run()
    calls = ended_at(tmp_path / "all", config, 10**9)
    assert calls > 60
    for n in range(1, calls, 1 if KILLS > 3 else 13):
        folder = tmp_path / f"run-{n}"
        ended_at(folder, config, n)
        trainer(folder, config).run(resume=True)
        assert [entry.name for entry in (folder / "checkpoints").iterdir()] == ["step-4"], n
        for file in sorted((tmp_path / "whole" / "checkpoints" / "step-4").iterdir()):
            assert (folder / "checkpoints" / "step-4" / file.name).read_bytes() == file.read_bytes(), n


def ended_at(folder: Path, config: TrainingConfig, n: int) -> int:
    """Trains in another process that ends, as if killed, before its n-th call that changes files; how many
    there were."""
    calls = folder.with_suffix(".calls")
    if (child := os.fork()) == 0:
        made = 0

        def counted(function):
            def call(*args, **kwargs):
                nonlocal made
                made += 1
                if made == n:
                    os._exit(9)
                return function(*args, **kwargs)

            return call

        for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            trainer(folder, config).run()
        finally:
            calls.write_text(str(made))
            os._exit(0)
    os.waitpid(child, 0)
    return int(calls.read_text()) if calls.exists() else n


def written(folder: Path) -> int:
    """The size of the metrics, -1 if there are none."""
    try:
        return (folder / "metrics.jsonl").stat().st_size
    except FileNotFoundError:
        return -1


def test_what_a_killed_run_left_is_deleted(tmp_path):
    trainer(tmp_path / "run", changed(steps=3)).run()
    left = tmp_path / "run" / "checkpoints"
    for name in (".step-4.unfinished", ".step-1.deleted", ".step-2.replaced"):
        (left / name).mkdir()
        (left / name / "model.safetensors").write_bytes(b"half")
    trainer(tmp_path / "run", changed(steps=3)).run(resume=True)
    assert [entry.name for entry in left.iterdir()] == ["step-3"]


def test_metrics_are_cut_to_the_checkpoint(tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", hooks=[Stop(8)]).run()
    path = tmp_path / "run" / "metrics.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 9, "loss": 1.0}\n{"step": 10, "lo')
    trainer(tmp_path / "run").run(resume=True)
    same_end(tmp_path / "run", whole)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("size", [0, 100_000, 200_000])
def test_a_failing_write_leaves_the_last_good_checkpoint(tmp_path, size):
    """A limit of the size of files fails as a full disk does: at the metrics, the model, the moments."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(Hook):
        def after_step(self, state):
            if state.step == 9:
                metrics = (tmp_path / "run" / "metrics.jsonl").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size or metrics, limits[1]))

    file = {0: "metrics.jsonl", 100_000: "model.safetensors", 200_000: "optimizer.safetensors"}[size]
    try:
        message = f"step 9: .*{file}.*; the last good checkpoint is .*step-8"
        with pytest.raises(OSError, match=message) as error:
            trainer(tmp_path / "run", hooks=[Fill()]).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    left = sorted(entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-6", "step-8"]
    # It goes on once there is room.
    assert trainer(tmp_path / "run").run(resume=True).step == 30


def test_a_failing_write_at_the_end_keeps_the_checkpoint(tmp_path, monkeypatch):
    run = trainer(tmp_path / "run", changed(steps=3))
    save = run.model.save

    def full(folder):
        if folder == tmp_path / "run" / "model":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        save(folder)

    monkeypatch.setattr(run.model, "save", full)
    with pytest.raises(OSError, match=r"No space left.*the last good checkpoint is .*step-3"):
        run.run()


def test_bfloat16_on_another_instruction_set_is_refused(tmp_path, monkeypatch):
    def run(**options):
        model = llmcore.load(tiny_run.TINY, trainable=True, precision="bfloat16")
        config = changed(precision="bfloat16", steps=6)
        trainer = llmcore.training.Trainer(
            model,
            windows(),
            config,
            validation=windows(99),
            folder=tmp_path / "run",
            progress=False,
            **options,
        )
        return trainer

    with pytest.raises(KeyboardInterrupt):
        run(hooks=[Stop(5)]).run()
    real = _core.isa()
    monkeypatch.setattr(checkpoints._core, "isa", lambda: "another")
    with pytest.raises(ValueError, match=f"found a training in bfloat16 on '{real}', expected 'another'"):
        run().run(resume=True)
    assert run().run(resume=True, force=True).step == 6


def test_other_data_is_refused_and_other_options_are_told(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", hooks=[Stop(5)]).run()
    options = tmp_path / "run" / "training.json"
    saved, other = options.read_text(), trainer(tmp_path / "run", changed(seed=1))
    with pytest.warns(UserWarning, match="other options: seed 0 → 1"), pytest.raises(ValueError):
        other.run(resume=True)
    assert options.read_text() == saved


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    class Again(Hook):
        def after_step(self, state):
            trainer(tmp_path / "run").run(resume=True)

    with pytest.raises(BlockingIOError, match="another process"):
        trainer(tmp_path / "run", hooks=[Again()]).run()


def test_early_stopping_goes_on_counting(tmp_path):
    config = changed(
        steps=300, learning_rate=0.05, eval_interval=2, early_stopping_patience=3, ema_decay=None
    )
    result = trainer(tmp_path / "whole", config).run()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", config, hooks=[Stop(result.step - 1)]).run()
    again = trainer(tmp_path / "run", config)
    assert dataclasses.replace(again.run(resume=True), model=None, best_model=None) == dataclasses.replace(
        result, model=None, best_model=None
    )
    # Nor does it go on when it is asked once more.
    before = floats(again.model)
    once_more = trainer(tmp_path / "run", config)
    assert once_more.run(resume=True).stopped == result.stopped
    assert np.array_equal(floats(once_more.model), before)
