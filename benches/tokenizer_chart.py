"""A chart of what `benches/tokenizer.py` measured: a panel a row of its table."""

from __future__ import annotations

from pathlib import Path

Medians = dict[str, dict[str, float]]
"""Row, engine, figure."""

COLUMNS = 3
OURS, THEIRS = "#1f6fb4", "#b9c2cc"


def draw(path: Path, title: str, medians: Medians, units: dict[str, str]) -> None:
    """Writes a PNG: the engines of each row, the fastest first."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines = -(-len(medians) // COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(13, 2.1 * lines + 0.6), squeeze=False)
    for axis in axes.flat[len(medians) :]:
        axis.set_axis_off()
    for axis, (row, engines) in zip(axes.flat, medians.items(), strict=False):
        rate = units[row] == "MB/s"
        order = sorted(engines, key=engines.__getitem__, reverse=not rate)
        colours = [OURS if engine == "llmcore" else THEIRS for engine in order]
        bars = axis.barh(order, [engines[engine] for engine in order], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
        axis.set_title(
            f"{row}, {units[row]} ({'more' if rate else 'less'} is better)", fontsize=9, loc="left"
        )
        axis.tick_params(labelsize=8)
        axis.set_xticks([])
        axis.margins(x=0.15)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(title, fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
