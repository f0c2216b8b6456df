"""Every Python example of the README runs as it is printed, one after the other, like a reader's session."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def write_random_gpt2(folder: Path) -> None:
    """A GPT-2 of one layer and the true number of tokens."""
    width, vocab, positions = 16, 50257, 64
    shapes = {
        "wte.weight": (vocab, width),
        "wpe.weight": (positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for name, (inputs, outputs) in {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }.items():
        shapes |= {f"h.0.{name}.weight": (inputs, outputs), f"h.0.{name}.bias": (outputs,)}
    for name in ("ln_1", "ln_2"):
        shapes |= {f"h.0.{name}.weight": (width,), f"h.0.{name}.bias": (width,)}
    draw = np.random.default_rng(0).standard_normal
    save_file({name: draw(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    config = {
        "model_type": "gpt2",
        "vocab_size": vocab,
        "n_embd": width,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": positions,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_examples(
    smollm2_path: Path,
    gpt2_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(gpt2_folder, tmp_path / "gpt2")
    write_random_gpt2(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in EXAMPLES:
        exec(compile(example, str(README), "exec"), names)
    printed = capsys.readouterr().out
    assert ", but I'm not sure I'm ready to start a new one. I'm 25" in printed
    assert " Paris.\n" in printed and "1. Bananas\n2. Oranges\n3. Grapes" in printed
    assert "(9, 7, 7)\n(7, 576)" in printed
    assert "Hello, world!\n" in printed and "Many words are\nuint16 8\n" in printed
    assert printed.count("I love programming") == 5


def test_the_name_on_pypi_is_never_ours() -> None:
    documents = [
        path for glob in ("*.md", "docs/*.md", "benches/**/*.md") for path in README.parent.glob(glob)
    ]
    assert README in documents
    for document in documents:
        assert not re.search(r"pip install ['\"]?llmcore\b(?!-cpu)", document.read_text(encoding="utf-8"))
