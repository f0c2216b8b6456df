"""`llmcore bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmcore import cli
from llmcore.cli import bench

TINY = Path(__file__).parent / "data" / "tiny"


def run(*arguments):
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bench, "NEW_TOKENS", 4)
    monkeypatch.setattr(bench, "RUNS", 1)


@pytest.mark.parametrize(("name", "tokens"), [("gpt2", 127), ("llama", 255)])
def test_json(name, tokens):
    result = run(TINY / name, "--json", "--threads", 1, "--dtype", "int8")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [f"prefill, {tokens} tokens", "greedy", "greedy, 8 sequences", "beam search, 5 beams"]
    assert [case["name"] for case in found["cases"]] == names
    # A step of a model so small is lost in the noise of a clock, so only a prefill is known to take time.
    assert found["cases"][0]["tokens_per_second"] > 0 and 0 < found["cases"][0]["share"] < 1
    assert {case["limit"] for case in found["cases"][1:]} == {"memory"}
    assert found["threads"] == 1
    assert found["first_token_seconds"] > 0 and found["weight_bytes"] > 0


def test_for_people():
    result = run(TINY / "llama", "--threads", 1)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("1 threads, ") and "operations/s in float32" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:6]] == [
        "prefill, 255 tokens",
        "greedy",
        "greedy, 8 sequences",
        "beam search, 5 beams",
        "load and first token",
    ]


def test_no_model(tmp_path):
    result = run(tmp_path / "nothing")
    assert result.exit_code == 1 and result.stderr.startswith("llmcore: ")
