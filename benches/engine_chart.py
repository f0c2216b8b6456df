"""A chart of what `benches/engines.py` found: a row of panels a model, a panel a case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_models import MODELS
from engine_report import NAMES, speeds

COLOURS = {
    "float32": "#1f6fb4", "bfloat16": "#2a9d8f", "int8": "#e9a23b", "int4": "#d1495b", "gguf": "#7b5ea7",
}  # fmt: skip
THEIRS = 0.35
"""How opaque the bars of peers are."""


def draw(path: Path, results: dict[str, Any]) -> None:
    """Writes a PNG: the engines of each case, the fastest first, coloured by precision."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    models = results["models"]
    figure, axes = plt.subplots(len(models), len(NAMES), figsize=(17, 5.2 * len(models)), squeeze=False)
    for line, (model, found) in zip(axes, models.items(), strict=True):
        for axis, (key, title) in zip(line, NAMES.items(), strict=True):
            case = found["cases"].get(key)
            rates = sorted(speeds(case).items(), key=lambda rate: rate[1]) if case else []
            if not case or not rates:
                axis.set_axis_off()
                continue
            bars = axis.barh([name for name, _ in rates], [rate for _, rate in rates])
            for bar, (name, _) in zip(bars, rates, strict=True):
                bar.set_color(COLOURS[name.split()[-1]])
                bar.set_alpha(1 if name.startswith("llmcore ") else THEIRS)
            axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=7)
            for label, (name, _) in zip(axis.get_yticklabels(), rates, strict=True):
                label.set_fontweight("bold" if name.startswith("llmcore ") else "normal")
            axis.set_title(f"{MODELS[model]}: {title.format(**case)}", fontsize=9, loc="left")
            axis.tick_params(labelsize=7)
            axis.set_xticks([])
            axis.margins(x=0.15)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
    figure.suptitle(f"Tokens a second, {results['threads']} threads (more is better)", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
