"""cli/: what is printed where, and the exit codes. Most with a model that says what the test wants."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import llmcore
from llmcore import cli, hub
from llmcore.cli.generation import CHAT_TOKENS
from llmcore.generation import Completion, Options, Piece

PACKAGE = Path(hub.__file__).parents[1]


class FakeTokenizer:
    def __init__(self, conversations):
        self.conversations = conversations

    def apply_chat_template(self, messages, add_generation_prompt=False):
        if add_generation_prompt:
            self.conversations.append([dict(message) for message in messages])
        return [1, 2, 3]


class FakeModel:
    """Streams `answers`, one a call; an exception among the pieces is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = []
        self.conversations = []
        self.tokenizer = FakeTokenizer(self.conversations)

    def stream(self, prompt, **options):
        self.calls.append((prompt, options))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return self.pieces(answer)

    @staticmethod
    def pieces(answer):
        for index, text in enumerate(answer):
            if isinstance(text, BaseException):
                raise text
            last = index == len(answer) - 1
            yield Piece(text, [index], finish_reason="stop" if last else None)

    def generate(self, prompt, **options):
        self.calls.append((prompt, options))
        completions = [Completion(text, [7], -0.5, None, "length") for text in self.answers]
        return completions if len(completions) > 1 else completions[0]


@pytest.fixture
def run(monkeypatch):
    """Runs the command line in this process; `run.model` is what it loads."""

    def call(*arguments, input=None):
        return CliRunner().invoke(cli.app, list(arguments), input=input, prog_name="llmcore")

    def load(source, **options):
        call.loaded = (source, options)
        return call.model

    monkeypatch.setattr(llmcore, "load", load)
    call.model = FakeModel()
    call.loaded = None
    return call


def spawn(*arguments, **options):
    """The command line in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)} | options.pop("env", {})
    return subprocess.Popen(
        [sys.executable, "-m", "llmcore", *arguments],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        **options,
    )


# ---------------------------------------------------------------------------------------------------
# generate


def test_generate_prints_the_continuation_and_nothing_else(run):
    run.model = FakeModel([" and", " cats", "."])
    result = run("generate", "I love dogs")
    assert (result.exit_code, result.stdout, result.stderr) == (0, " and cats.\n", "")
    assert run.model.calls == [("I love dogs", {})]
    assert run.loaded == (
        "smollm2-135m-instruct",
        {"dtype": "auto", "kv_cache_dtype": "auto", "threads": None},
    )


@pytest.mark.parametrize("arguments", [["-"], []])
def test_generate_reads_standard_input(run, arguments):
    run.model = FakeModel(["!"])
    assert run("generate", *arguments, input="two\nlines\n\n").exit_code == 0
    assert run.model.calls[0][0] == "two\nlines\n"


def test_options_of_generation_pass_through_by_their_names(run):
    run.model = FakeModel(["x"])
    options = {
        "max_new_tokens": 5, "min_new_tokens": 2, "num_beams": 4, "num_beam_groups": 2,
        "diversity_penalty": 0.5, "length_penalty": 2.0, "early_stopping": "never", "temperature": 0.7,
        "top_k": 3, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.8, "seed": 11, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": 0.3, "no_repeat_ngram_size": 2,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    others = [
        "--stop", "a", "--stop", "b", "--model", "m", "--threads", "3", "--dtype", "float32",
        "--kv-cache-dtype", "int8",
    ]  # fmt: skip
    assert run("generate", "p", *flags, *others).exit_code == 0
    assert run.model.calls[0][1] == options | {"stop_strings": ["a", "b"]}
    assert run.loaded == ("m", {"dtype": "float32", "kv_cache_dtype": "int8", "threads": 3})
    Options.resolve(run.model.calls[0][1], {})  # they are names of ours


def test_temperature_0_is_greedy(run):
    run.model = FakeModel(["x"])
    run("generate", "p", "--temperature", "0")
    assert run.model.calls[0][1] == {"do_sample": False}


def test_several_continuations_are_set_apart(run):
    run.model = FakeModel("a\nb", "c")
    result = run("generate", "p", "--num-return-sequences", "2", "--num-beams", "2")
    assert result.stdout == "a\nb\n---\nc\n"


def test_generate_as_json(run):
    run.model = FakeModel("ünï")
    result = run("generate", "p", "--json", "--logprobs", "3")
    completion = {"text": "ünï", "ids": [7], "score": -0.5, "logprobs": None, "finish_reason": "length"}
    assert json.loads(result.stdout) == {"prompt": "p", "completions": [completion]}
    assert result.stdout.count("\n") == 1 and "ünï" in result.stdout
    assert run.model.calls == [("p", {"logprobs": 3})]


def test_stats_are_on_standard_error(run):
    run.model = FakeModel(["a", "b"])
    result = run("generate", "p", "--stats")
    assert result.stdout == "ab\n"
    assert result.stderr.startswith("2 tokens, the first after 0.0")


# ---------------------------------------------------------------------------------------------------
# Exit codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "p", "--no-such-option"], "No such option"),
        (["nonsense"], "No such command"),
        (["generate", "p", "--top-k", "many"], "--top-k"),
        (["generate", "p", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "p", "--early-stopping", "maybe"], "expected true, false or never"),
        (["pull"], "give a name"),
    ],
)
def test_wrong_usage_is_2(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == "" and run.model.calls == []


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("top_k: found -1,\nexpected more"), "llmcore: top_k: found -1, expected more\n"),
        (FileNotFoundError("x: no such model"), "llmcore: x: no such model\n"),
        (KeyError("k"), "llmcore: KeyError: 'k' (LLMCORE_DEBUG=1 shows where)\n"),
        (MemoryError(), "llmcore: MemoryError:  (LLMCORE_DEBUG=1 shows where)\n"),
    ],
)
def test_a_failure_is_1_with_one_line(run, monkeypatch, error, line):
    monkeypatch.delenv("LLMCORE_DEBUG", raising=False)
    run.model = FakeModel(error)
    result = run("generate", "p")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", line)
    monkeypatch.setenv("LLMCORE_DEBUG", "1")
    run.model = FakeModel(error)
    assert run("generate", "p").exception is error


@pytest.mark.parametrize("arguments", [("info",), ("--version",)])
def test_a_failing_import_is_1_with_one_line(arguments):
    process = spawn(*arguments, env={"LLMCORE_ISA": "nonsense"})
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert errors.startswith(b'llmcore: LLMCORE_ISA: found "nonsense", expected') and errors.count(b"\n") == 1


def test_ctrl_c_is_130(run):
    run.model = FakeModel(["a", KeyboardInterrupt()])
    result = run("generate", "p")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "a\n", "")


def test_a_reader_that_leaves_is_no_error(smollm2_path, tmp_path):
    text = tmp_path / "text"
    text.write_text("word " * 400_000)
    with open(text) as stdin:
        # Unbuffered, Python takes a write that was cut short for a whole one.
        process = spawn("tokenize", "-m", str(smollm2_path), stdin=stdin, env={"PYTHONUNBUFFERED": ""})
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


# ---------------------------------------------------------------------------------------------------
# chat


def test_chat_keeps_the_conversation(run):
    run.model = FakeModel(["Hel", "lo."], ["Bye."], ["Again."])
    result = run("chat", "--system", "Be brief.", input="hi\n\nand?\n/clear\nnew\n/exit\nlost\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello.\nBye.\nAgain.\n", "")
    system, hi, hello = (
        {"role": role, "content": content}
        for role, content in (("system", "Be brief."), ("user", "hi"), ("assistant", "Hello."))
    )
    assert run.model.conversations == [
        [system, hi],
        [system, hi, hello, {"role": "user", "content": "and?"}],
        [system, {"role": "user", "content": "new"}],
    ]
    assert [prompt for prompt, _ in run.model.calls] == [[1, 2, 3]] * 3
    assert run.model.calls[0][1] == {"max_new_tokens": CHAT_TOKENS}


def test_ctrl_c_stops_the_answer_and_not_the_chat(run):
    run.model = FakeModel(["I will", KeyboardInterrupt()], ["Yes."])
    result = run("chat", input="talk\nthere?\n")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "I will\nYes.\n", "(stopped)\n")
    assert run.model.conversations[1][1] == {"role": "assistant", "content": "I will"}


def test_a_message_that_does_not_fit_is_taken_back(run):
    run.model = FakeModel(ValueError("prompt: found 9999 tokens"), ["Yes."])
    result = run("chat", input="long\nshort\n")
    assert result.exit_code == 0
    assert result.stderr == "llmcore: prompt: found 9999 tokens (/clear starts anew)\n"
    assert run.model.conversations[1] == [{"role": "user", "content": "short"}]


def test_chat_without_a_template_fails_at_once(run):
    run.model.tokenizer.apply_chat_template = lambda messages: (_ for _ in ()).throw(
        ValueError("no chat template")
    )
    result = run("chat", input="hi\n")
    assert (result.exit_code, result.stderr) == (1, "llmcore: no chat template\n")


# ---------------------------------------------------------------------------------------------------
# tokenize, pull, info, --version


def test_tokenize(run, smollm2_path):
    model = ["--model", str(smollm2_path)]
    lines = run("tokenize", "I love 🦀", *model).stdout.splitlines()
    assert lines[:2] == ['57\t"I"', '2606\t" love"'] and lines[2].endswith(r"b' \xf0\x9f'")
    ids = [int(line.split("\t")[0]) for line in lines]
    assert run("tokenize", "I love 🦀", "--count", *model).stdout == f"{len(ids)}\n"
    answer = json.loads(run("tokenize", "-", "--json", *model, input="I love 🦀").stdout)
    assert answer["ids"] == ids and answer["pieces"][:2] == ["I", " love"]
    assert json.loads(run("tokenize", "--json", "--count", *model, input="").stdout) == {"count": 0}


def test_tokenize_shows_colours_on_a_terminal(smollm2_path):
    ours, theirs = os.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "llmcore", "tokenize", "I love\n🦀\x1b[2J", "-m", str(smollm2_path)],
        stdout=theirs,
        env=os.environ | {"PYTHONPATH": str(PACKAGE), "TERM": "xterm", "NO_COLOR": ""},
        check=True,
    )
    os.close(theirs)
    printed = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert process.returncode == 0
    text, rest = printed.split("\r\n", 1)
    assert text == "\x1b[30;46mI\x1b[0m\x1b[30;43m love\x1b[0m\x1b[30;42m↵\x1b[0m"
    assert r"\xf0\x9f" in rest and r"\x1b" in rest and "\x1b[2J" not in rest
    assert "\x1b[30;43m 2606 \x1b[0m" in rest
    assert "tokens, 15 bytes" in rest


def test_tokenize_a_file(run, smollm2_path, tmp_path):
    model, path = ["--model", str(smollm2_path)], tmp_path / "a.txt"
    path.write_text("I love\nprogramming\n")
    result = run("tokenize", "--file", str(path), *model)
    assert result.stdout == f"6 ids (uint16) in {path}.npy\n"
    out = tmp_path / "b.npy"
    options = ["--documents", "lines", "--separator", "<|im_end|>", "--out", str(out), "--json"]
    answer = json.loads(run("tokenize", "--file", str(path), *options, *model).stdout)
    assert answer == {"count": 6, "dtype": "uint16", "path": str(out)}
    assert np.load(out).tolist() == [57, 2606, 2, 18041, 2803, 2]
    for wrong in (["text"], ["--count"], ["--separator", "<|nothing|>"]):
        assert run("tokenize", "--file", str(path), *wrong, *model).exit_code == 2
    wrong = run("tokenize", "--file", str(path), "--documents", "pages", *model)
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr == 'llmcore: documents: found \'pages\', expected "file", "lines" or "jsonl"\n'


def test_train_tokenizer(run, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "new.json"
    text.write_text("the cat sat on the mat\n" * 9 + "a dog\n")
    train = ["train-tokenizer", str(text), str(text), "--out", str(out), "--vocab-size"]
    result = run(*train, "262", "--special-token", "<|end|>", "--special-token", "<|pad|>")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"262 tokens in {out}\n", "")
    expected = llmcore.Tokenizer.train([text, text], 262, special_tokens=["<|end|>", "<|pad|>"])
    assert out.read_text() == expected.json
    options = [
        "--pattern",
        "cl100k",
        "--min-frequency",
        "18",
        "--min-piece-count",
        "3",
        "--max-memory",
        "0.5GB",
    ]
    result = run(*train, "300", *options, "--json")
    answer = json.loads(result.stdout)
    assert answer["path"] == str(out) and 256 < answer["vocab_size"] < 300
    assert "min_piece_count=3 left out 2 of 9 different pieces" in result.stderr
    assert json.loads(out.read_text())["model"]["merges"][0] == ["a", "t"]


def test_train_tokenizer_refuses(run, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"text \xff")
    train = ["train-tokenizer", str(text), "--vocab-size", "300", "--out"]
    for out in (tmp_path / "new.bin", tmp_path / "none" / "new.json"):
        result = run(*train, str(out))
        assert result.exit_code == 2 and "expected" in result.stderr
    assert run(*train, str(tmp_path / "new.json"), "--max-memory", "much").exit_code == 2
    result = run(*train, str(tmp_path / "new.json"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"llmcore: {text}: byte 5: found bytes that are not UTF-8, expected UTF-8\n"
    assert not (tmp_path / "new.json").exists()


def test_train_tokenizer_shows_bars_on_a_terminal(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 1000)
    ours, theirs = os.openpty()
    subprocess.run(
        [sys.executable, "-m", "llmcore", "train-tokenizer", "text.txt", "--vocab-size", "270"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        env=os.environ | {"PYTHONPATH": str(PACKAGE), "TERM": "xterm", "COLUMNS": "80"},
        check=True,
    )
    os.close(theirs)
    printed = os.read(ours, 1 << 16).decode()
    os.close(ours)
    counting, merging = [line for line in printed.splitlines() if "100%" in line][-2:]
    assert "Counting pieces" in counting and "Merging pairs" in merging
    assert (tmp_path / "tokenizer.json").exists()


def test_pull(run, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMCORE_CACHE", str(tmp_path))
    monkeypatch.setenv("LLMCORE_OFFLINE", "1")
    listing = run("pull", "--list").stdout
    assert [line.split()[0] for line in listing.splitlines()] == list(hub.SHORT_NAMES)
    assert "93 MB to fetch" in listing
    result = run("pull", "smollm2-135m-instruct")
    assert result.exit_code == 1 and "not tried, LLMCORE_OFFLINE=1" in result.stderr
    monkeypatch.setattr(hub, "pull", lambda name: tmp_path / name)
    assert run("pull", "x").stdout == f"{tmp_path / 'x'}\n"


def test_info_of_the_machine(run):
    facts = json.loads(run("info", "--json").stdout)
    assert facts["isa"] in facts["available_isas"] and facts["threads"] >= 1
    lines = run("info").stdout.splitlines()
    assert lines[0].split() == ["version", llmcore.__version__]


def test_info_of_a_model(smollm2_path):
    out, err = spawn("info", str(smollm2_path), "--json").communicate(timeout=120)
    facts = json.loads(out)
    assert err == b""
    names = ["model_type", "layers", "heads", "kv_heads", "hidden_size", "max_positions", "vocab_size"]
    assert [facts[name] for name in names] == ["llama", 30, 9, 3, 576, 8192, 49152]
    assert facts["parameters"] == 134_515_008
    assert facts["kv_bytes_per_position"] == 2 * 30 * 3 * 64 * 2
    out, _ = spawn("info", str(smollm2_path)).communicate(timeout=120)
    assert b"parameters                   134,515,008\n" in out


def test_version_and_help(run):
    assert run("--version").stdout == f"llmcore {llmcore.__version__}\n"
    result = run("-h")
    assert result.exit_code == 0
    assert all(
        name in result.stdout for name in ("generate", "chat", "tokenize", "train-tokenizer", "pull", "info")
    )
    program = (
        "import sys; sys.argv = ['llmcore', '--version']\n"
        "from llmcore.__main__ import main; main(); print(list(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    assert out.startswith(f"llmcore {llmcore.__version__}\n")
    assert not any(name in out for name in ("'typer'", "'rich'", "'numpy'"))


# ---------------------------------------------------------------------------------------------------
# With a real model


def test_generate_with_smollm2(smollm2_path):
    arguments = ["I love programming", "-m", str(smollm2_path), "--max-new-tokens", "8"]
    out, err = spawn("generate", *arguments).communicate(timeout=120)
    assert err == b"" and out.endswith(b"\n") and len(out.split()) > 4
    text = json.loads(spawn("generate", *arguments, "--json").communicate(timeout=120)[0])
    assert text["completions"][0]["text"] + "\n" == out.decode()


def test_ctrl_c_while_it_generates(smollm2_path):
    process = spawn(
        "generate", "Once", "-m", str(smollm2_path), "--min-new-tokens", "4000", "--max-new-tokens", "4000"
    )
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.read() == b""


def test_chat_with_smollm2(smollm2_path):
    process = spawn("chat", "-m", str(smollm2_path), "--max-new-tokens", "4", stdin=subprocess.PIPE)
    out, err = process.communicate(b"Hi!\nWho are you?\n", timeout=120)
    assert process.returncode == 0
    assert err == b"(cut at the greatest length)\n" * 2
    assert out.count(b"\n") >= 2
