"""`llmcore train` and `llmcore plot`: from a text to a model, and the same from flags and files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import llmcore
from llmcore import cli
from llmcore.training import Trainer, TrainingError

TEXT = "".join(f"{a} and {b} make {a + b}.\n" for a in range(40) for b in range(40))
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "eos_token_id": 0}
FLAGS = {
    "steps": 6,
    "batch_size": 2,
    "seq_len": 16,
    "learning_rate": 0.01,
    "eval_interval": 3,
    "eval_batches": 2,
}


def llmcore_(*arguments) -> str:
    """Standard output of a command that succeeds."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code in (1, 2)
    return " ".join(result.output.replace("│", "").split())


def as_flags(options) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A text, a tokenizer, and the config of a small GPT."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "text.txt").write_text(TEXT)
    special = ("--special-token", "<|endoftext|>")
    llmcore_("train-tokenizer", folder / "text.txt", "-n", 300, "-o", folder / "tokenizer.json", *special)
    (folder / "gpt2.json").write_text(json.dumps(GPT2))
    return folder


def started(files: Path, **options) -> list[str]:
    """Flags of a training of a new model."""
    start = {"new": files / "gpt2.json", "tokenizer": files / "tokenizer.json", "data": files / "text.txt"}
    return as_flags({**start, **FLAGS, **options})


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_a_text_becomes_a_model_by_flags_and_by_files(files, tmp_path):
    flags = started(files, warmup_steps=2)
    out = llmcore_("train", *flags, "--out", tmp_path / "flags", "--sample-prompts", "1 and", "--tensorboard")
    assert out == f"{tmp_path / 'flags' / 'model'}\n"
    options = {
        "new": str(files / "gpt2.json"),
        "tokenizer": str(files / "tokenizer.json"),
        "data": [str(files / "text.txt")],
        "sample_prompts": ["1 and"],
        "tensorboard": True,
        **FLAGS,
        "warmup_steps": 5,
    }
    (tmp_path / "run.json").write_text(json.dumps(options))
    toml = (tmp_path / "run.json", "--warmup-steps", 2)  # a flag wins over the file
    llmcore_("train", "--config", *toml, "--out", tmp_path / "file")
    saved = [(tmp_path / name / "training.json").read_text() for name in ("flags", "file")]
    assert saved[0] == saved[1] and json.loads(saved[0])["warmup_steps"] == 2
    assert weights(tmp_path / "flags") == weights(tmp_path / "file")
    completion = llmcore.load(tmp_path / "flags" / "model").generate("1 and", max_new_tokens=3)
    assert len(completion.ids) == 3
    lines = (tmp_path / "flags" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_with_its_own_options_from_anywhere(files, tmp_path, monkeypatch):
    long, short = tmp_path / "long", tmp_path / "short"
    llmcore_("train", *started(files, schedule="constant"), "--out", long)
    monkeypatch.chdir(files)
    relative = started(Path(), schedule="constant", steps=3)
    llmcore_("train", *relative, "--out", short)
    monkeypatch.chdir(tmp_path)
    result = json.loads(llmcore_("train", "--resume", short, "--steps", 6, "--json"))
    assert (result["step"], result["stopped"]) == (6, None)
    assert weights(long) == weights(short)


def test_chats_and_adapters(smollm2_path, tmp_path):
    chats = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy, matey!"}]
    chats.write_text((json.dumps({"messages": messages}) + "\n") * 8)
    flags = {
        "model": smollm2_path, "data": chats, "kind": "chat", "lora_rank": 2, "steps": 2, "batch_size": 1,
        "validation_share": 0.3, "eval_batches": 1, "learning_rate": 0.01,
    }  # fmt: skip
    llmcore_("train", *as_flags(flags), "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model" / "adapter_config.json").exists()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert second["loss"] < first["loss"] and second["validation_loss"] < first["loss"]


def test_curves(files, tmp_path):
    llmcore_("train", *started(files), "--out", tmp_path / "run")
    assert llmcore_("plot", tmp_path / "run") == f"{tmp_path / 'run' / 'curves.png'}\n"
    assert "metrics.jsonl" in fails("plot", files)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; llmcore train --resume {run} goes on"),
        (TrainingError("step 3: found a loss of nan"), 1, "llmcore: step 3: found a loss of nan\n"),
        (OSError(28, "step 3: no space"), 1, "llmcore: [Errno 28] step 3: no space\n"),
    ],
)
def test_what_ends_a_training_is_said(files, tmp_path, monkeypatch, error, code, said):
    def run(*_, **__):
        warnings.warn("the run goes on", stacklevel=1)
        raise error

    monkeypatch.setattr(Trainer, "run", run)
    arguments = ["train", *started(files), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("llmcore: the run goes on\n")
    assert said.format(run=tmp_path / "run") in result.stderr


def test_wrong_use_is_said(files, tmp_path):
    assert "--out" in fails("train", *started(files))
    assert "--resume" in fails("train", *started(files), "--out", tmp_path, "--resume", tmp_path)
    assert "No such file" in fails("train", "--resume", tmp_path / "nowhere")
    assert "seq_len: found 64, expected at most 32" in fails(
        "train", *started(files, seq_len=64), "--out", tmp_path / "a"
    )
    assert "model, new: found None and None" in fails("train", "--steps", 1, "--data", "x", "--out", tmp_path)
    (tmp_path / "bad.toml").write_text("stepz = 1")
    bad = fails("train", "--config", tmp_path / "bad.toml", "--out", tmp_path / "b")
    assert f"{tmp_path / 'bad.toml'}: found 'stepz'" in bad
    llmcore_("train", *started(files), "--out", tmp_path / "run")
    assert "found a run in" in fails("train", *started(files), "--out", tmp_path / "run")
