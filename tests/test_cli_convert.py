"""`llmcore convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmcore import cli
from llmcore._core import Gguf, SafeTensors

TINY = Path(__file__).parent / "data" / "tiny"


def run(*arguments):
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])


def test_there_and_back(tmp_path):
    there = run(TINY / "llama", tmp_path / "x.gguf", "--dtype", "bfloat16")
    assert there.exit_code == 0, there.output
    size = (tmp_path / "x.gguf").stat().st_size
    assert there.stdout == f"{size:,} bytes in {tmp_path / 'x.gguf'}\n"
    assert Gguf(tmp_path / "x.gguf").info("blk.0.attn_q.weight")[1] == "BF16"
    for options in ((), ("--to", "hf")):
        back = run(tmp_path / "x.gguf", tmp_path / "back", "--json", *options)
        assert back.exit_code == 0, back.output
        size = sum(file.stat().st_size for file in (tmp_path / "back").iterdir())
        assert json.loads(back.stdout) == {"bytes": size, "path": str(tmp_path / "back")}
        assert SafeTensors(tmp_path / "back").info("lm_head.weight")[1] == "BF16"


@pytest.mark.parametrize(
    ("out", "to", "message"),
    [
        ("model", "gguf", "expected a name that ends in .gguf"),
        ("x.gguf", "hf", "expected the name of a folder"),
    ],
)
def test_a_name_of_the_other_format_is_wrong_usage(tmp_path, out, to, message):
    result = run(TINY / "llama", tmp_path / out, "--to", to)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_error_is_one_line(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    result = run(TINY / "llama", tmp_path / "thesis")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith(
        f"llmcore: {tmp_path / 'thesis'}: found 'chapter.tex', expected a new folder"
    )


def test_quantize(tmp_path):
    out = tmp_path / "x.gguf"
    result = CliRunner().invoke(
        cli.app, ["quantize", str(TINY / "llama"), str(out), "--type", "q8_0", "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"bytes": out.stat().st_size, "path": str(out)}
    assert Gguf(out).info("blk.0.attn_q.weight")[1] == "Q8_0"
    result = CliRunner().invoke(cli.app, ["quantize", str(TINY / "llama"), str(tmp_path / "x")])
    assert result.exit_code == 2 and "expected a name that" in result.stderr
