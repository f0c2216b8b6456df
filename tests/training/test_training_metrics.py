"""What is written down of a training, and drawn of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from tiny_run import CONFIG, TINY, trainer

import llmcore
from llmcore.training import State, plot_run
from llmcore.training.bar import ProgressBar
from llmcore.training.metrics import MetricsFile, flops_per_token, machine_peak, read_metrics
from llmcore.training.plot import curve, smoothed


def state(**metrics):
    return State(None, None, None, steps=9, step=metrics["step"], metrics=metrics)


def test_metrics_are_lines_that_are_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for first, kept in ((0, 0), (3, 3), (2, 2)):
        file = MetricsFile(path, first)
        assert [record["step"] for record in read_metrics(path)] == list(range(1, kept + 1))
        for step in range(first + 1, 6):
            file.after_step(state(step=step, loss=float("nan"), text="ü"))
        file.close()
    assert read_metrics(path)[4] == {"step": 5, "loss": None, "text": "ü"}
    assert "NaN" not in path.read_text()


def test_wrong_lines_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text in ('{"step": 1}\n{"loss": 2}\n', '{"step": 1}\nnonsense\n', '{"step": 1}\n[]\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"metrics.jsonl: line 2: found"):
            read_metrics(path)
    path.write_text('{"step": 1}\n{"st')
    assert read_metrics(path) == [{"step": 1}]


def test_flops_are_six_for_each_weight():
    def size(model, *names):
        return sum(t.size for t in model.parameters() if any(name in t.name for name in names))

    gpt2 = llmcore.load(TINY, trainable=True)
    weights = [t for t in gpt2.parameters() if len(t.shape) == 2 and "wpe" not in t.name]
    assert flops_per_token(gpt2) == 6 * sum(t.size for t in weights)  # the table of tokens is the head
    frozen = llmcore.load(TINY, trainable=True, frozen="*mlp.c_fc.weight")
    assert flops_per_token(frozen) == flops_per_token(gpt2) - 2 * size(gpt2, "mlp.c_fc.weight")
    llama = llmcore.load(TINY.parent / "llama", trainable=True)
    assert flops_per_token(llama) == 6 * size(llama, "proj.weight", "lm_head.weight")


def test_the_peak_is_a_machines():
    assert 1e9 < machine_peak(0.01) < 1e14


def test_tensorboard_events_hold_the_numbers(tmp_path):
    trainer(tmp_path / "run", dataclasses.replace(CONFIG, steps=5, tensorboard=True)).run()
    (file,) = (tmp_path / "run" / "tensorboard").iterdir()
    events = file.read_bytes()
    assert all(name in events for name in (b"validation_loss", b"grad_norm", b"tokens_per_second"))


@pytest.mark.parametrize("package", ["tensorboardX", "matplotlib"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    config = dataclasses.replace(CONFIG, steps=2, tensorboard=package == "tensorboardX")
    with pytest.raises(ModuleNotFoundError, match=f"needs the package {package}: pip install {package}"):
        trainer(tmp_path / "run", config)
        plot_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_curves_are_drawn(tmp_path):
    trainer(tmp_path / "run", dataclasses.replace(CONFIG, steps=5)).run()
    out = plot_run(tmp_path / "run")
    assert out == tmp_path / "run" / "curves.png"
    assert out.read_bytes().startswith(b"\x89PNG")
    assert plot_run(tmp_path / "run", tmp_path / "other.png").stat().st_size > 10_000
    with pytest.raises(FileNotFoundError):
        plot_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="found no steps"):
        plot_run(tmp_path)


def test_what_is_smoothed_follows_a_fast_fall_and_calms_what_jumps():
    fall = [8 * 0.9**step for step in range(40)]
    averages = smoothed(fall)
    assert averages[0] == fall[0]
    assert all(value <= average < 2 * value for value, average in zip(fall, averages, strict=True))
    assert smoothed([1.0, 3.0] * 500)[500:] == pytest.approx([2.0] * 500, abs=0.06)


def test_a_curve_has_the_steps_that_have_its_number():
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0, "more": 5}]
    assert curve(records, "loss") == ([1, 3], [2.0, 1.0])
    assert curve(records, "more") == ([3], [5])


def test_the_bar_speaks_where_there_is_no_terminal(capsys):
    with ProgressBar(steps=9) as bar:
        for step in range(1, 10):
            now = state(step=step, loss=2.0, tokens_per_second=1234.0, peak_share=0.5)
            if step == 3:
                now.metrics |= {"validation_loss": 1.5, "validation_perplexity": 4.48169}
                now.metrics["samples"] = [{"prompt": "[bold]a", "text": " b\nc"}]
            bar.after_step(now)
    lines = capsys.readouterr().err
    assert "step 1/9: loss 2.000, 1,234 tokens/s, 50% of peak" in lines
    assert "step 3: validation loss 1.5000, perplexity 4.48" in lines
    assert "[bold]a▸ b\nc" in lines
    assert "step 9/9" in lines and "step 2/9" not in lines


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = "{'rich', 'matplotlib', 'yaml', 'tensorboardX'}"
    code = f"import sys, llmcore.training.trainer; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
