"""The curves of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcore.files import written_whole
from llmcore.training.extras import extra
from llmcore.training.metrics import read_metrics

__all__ = ["plot_run"]


def plot_run(run: str | Path, out: str | Path | None = None) -> Path:
    """Draws the loss, the validation loss, the learning rate and the norm of the gradients of a run.

    Args:
        run: The folder of the run.
        out: The PNG; `RUN/curves.png` unless given.

    Returns:
        The PNG.

    Raises:
        ModuleNotFoundError: matplotlib is missing; says what to install.
        OSError: the folder has no `metrics.jsonl`, or the picture cannot be written.
        ValueError: the file says nothing of any step.
    """
    figure_module = extra("matplotlib.figure", "matplotlib", "plotting")
    path = Path(run) / "metrics.jsonl"
    records = read_metrics(path)
    if not records:
        raise ValueError(f"{path}: found no steps, expected at least one")
    out = Path(run) / "curves.png" if out is None else Path(out)

    figure = figure_module.Figure(figsize=(8, 6), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps, losses = curve(records, "loss")
    loss.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    loss.plot(steps, smoothed(losses), color="tab:blue", label="training")
    if any("validation_loss" in record for record in records):
        loss.plot(*curve(records, "validation_loss"), color="tab:orange", marker=".", label="validation")
    loss.set_ylabel("loss, nats a token")
    if max(losses) > 20 * min(losses) > 0:
        loss.set_yscale("log")
    loss.legend()
    loss.grid(alpha=0.3)
    rate.plot(*curve(records, "learning_rate"), color="tab:green")
    rate.set_ylabel("learning rate", color="tab:green")
    rate.set_xlabel("step")
    norm = rate.twinx()
    norm.plot(*curve(records, "grad_norm"), color="tab:gray", alpha=0.5, linewidth=0.8)
    norm.set_ylabel("norm of the gradients", color="tab:gray")
    with written_whole(out) as file:
        figure.savefig(file, format="png", dpi=120)
    return out


def curve(records: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps that have a number of this name, and the numbers."""
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def smoothed(values: list[float]) -> list[float]:
    """A moving average whose memory is a tenth of what lies behind it, twenty values at most: a loss falls
    fast at first and slowly later."""
    averages, average = [], 0.0
    for i, value in enumerate(values):
        keep = min(0.95, i / (i + 10))
        average = keep * average + (1 - keep) * value
        averages.append(average)
    return averages
