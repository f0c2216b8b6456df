"""The examples run, a few steps of each, and leave what they say that they leave."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore
from llmcore.training.metrics import read_metrics

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> ModuleType:
    """The module of an example; scripts are in no package."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(run / "metrics.jsonl")]


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
    assert all(len(path.read_text().splitlines()) <= 150 for path in EXAMPLES.glob("*.py"))


def test_small_gpt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("small_gpt")
    arguments = ["--out", str(tmp_path), "--steps", "3", "--modules", "21"]
    module.main(arguments)
    printed = capsys.readouterr().out

    first, second, third = losses(tmp_path / "run")
    assert abs(first - math.log(4096)) < 0.1  # it begins by knowing nothing
    assert first > second > third
    model = llmcore.load(tmp_path / "run" / "model")
    prompt = module.PROMPTS[0]
    written = model.generate(module.PROMPTS, max_new_tokens=100, temperature=0.7, seed=0)[0].text
    assert f"――― after: ―――\n{prompt}{written}\n" in printed

    module.main(arguments)  # a run that is done is not done again, and says the same
    assert capsys.readouterr().out == printed


def test_small_gpt_reads_the_standard_library() -> None:
    modules = example("small_gpt").modules()
    assert Path(json.__file__) in modules and len(modules) > 300
    assert Path(np.__file__) not in modules


@pytest.mark.parametrize(
    ("day", "way", "written"),
    [
        (date(2021, 3, 3), 0, "March 3, 2021 → "),
        (date(1999, 12, 21), 1, "21 Dec 1999 → "),
        (date(2000, 5, 13), 2, "the 13th of May 2000 → "),
        (date(2024, 2, 22), 3, "Thursday, February 22nd, 2024 → "),
        (date(1904, 10, 5), 4, "5.10.1904 → "),
        (date(2026, 9, 1), 5, "1 IX 2026 → "),
    ],
)
def test_date_formats_ways(day: date, way: int, written: str) -> None:
    assert example("date_formats").question(day, way) == written


def test_date_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = example("date_formats")
    asked = module.pairs(21_000)
    assert len({pair["completion"] for pair in asked}) == len(asked)  # so those held out are unseen
    module.main(["--out", str(tmp_path), "--steps", "4"])

    before, *_, after = losses(tmp_path / "run")
    assert abs(before - math.log(257)) < 0.2 and after < before - 1
    assert "of 1000 unseen dates" in capsys.readouterr().out

    model = llmcore.load(tmp_path / "run" / "model")
    corpus = llmcore.training.tokenize_completions(asked[:9], model.tokenizer, cache=tmp_path / "few")
    counted = corpus.ids[np.asarray(corpus.counted)].tolist()
    assert model.tokenizer.decode(counted) == "".join(p["completion"] + module.END for p in asked[:9])

    class Right:
        def generate(self, prompts: list[str], **_: object) -> list[object]:
            answers = {pair["prompt"]: pair["completion"] for pair in asked}
            texts = [answers[prompt] for prompt in prompts[:-1]] + ["2021-03-0"]
            return [type("Completion", (), {"text": text}) for text in texts]

    assert module.accuracy(Right(), asked[:4]) == 0.75


def test_persona_conversations(smollm2_path: Path, tmp_path: Path) -> None:
    lines = (EXAMPLES / "persona.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    assert len(chats) == 72
    for chat in chats:
        assert [message["role"] for message in chat] == ["user", "assistant"] * (len(chat) // 2)
    asked = {message["content"] for chat in chats for message in chat if message["role"] == "user"}
    assert asked.isdisjoint(example("persona").QUESTIONS)

    tokenizer = llmcore.Tokenizer.from_file(smollm2_path)
    corpus = llmcore.training.tokenize_chats(EXAMPLES / "persona.jsonl", tokenizer, cache=tmp_path)
    said = [message["content"] for chat in chats for message in chat if message["role"] == "assistant"]
    counted = tokenizer.decode(corpus.ids[np.asarray(corpus.counted)].tolist())
    assert counted == "".join(text + "<|im_end|>" for text in said)


def test_persona(
    smollm2_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = example("persona")
    monkeypatch.setattr(module, "QUESTIONS", ["What is the capital of France?"])
    module.main(["--out", str(tmp_path), "--steps", "2", "--model", str(smollm2_path)])
    printed = capsys.readouterr().out
    assert "――― before ―――\n> What is the capital of France?\nThe capital of France is Paris.\n" in printed

    adapter = tmp_path / "run" / "model"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["base_model_name_or_path"] == str(tmp_path / "base")
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 2 * 7 * 30  # A and B of seven weights in thirty layers
    assert all(np.any(values) for values in tensors.values())  # B has left zero
    merged = llmcore.load(tmp_path / "merged")
    adapted = llmcore.load(tmp_path / "base", trainable=True, adapter=adapter)
    ids = merged.tokenizer.encode("Arr, matey!")
    np.testing.assert_allclose(merged.logits(ids), adapted.logits(ids), atol=1e-3)
    answer = merged.chat([{"role": "user", "content": module.QUESTIONS[0]}], max_new_tokens=60)
    assert f"――― after ―――\n> What is the capital of France?\n{answer.text}\n" in printed

    command = printed.splitlines()[-1].removeprefix("to chat with the captain: llmcore ")
    subprocess.run([sys.executable, "-m", "llmcore", *shlex.split(command)], input=b"", check=True)
