"""Files of ids: whole, equal to what `encode` gives, and there entirely or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import texts

import gpt2_files
from llmcore import tokenizer_files
from llmcore.tokenizer import Tokenizer

END = 50256


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(gpt2_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encode_file")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_files, "_PART", 5)


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=150)
@given(parts=st.lists(texts.map(str.encode) | st.binary(max_size=5), max_size=6))
def test_a_document_has_the_ids_of_encode(gpt2: Tokenizer, folder: Path, parts: list[bytes]) -> None:
    path = folder / "a.txt"
    path.write_bytes(b"".join(parts))
    ids = gpt2.encode_file(path, progress=False)
    assert ids.dtype == np.uint16
    assert ids.tolist() == gpt2.encode(path.read_bytes())
    assert np.array_equal(np.load(folder / "a.txt.npy"), ids)
    assert isinstance(ids, np.memmap) and not ids.flags.writeable


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=100)
@given(documents=st.lists(texts.map(lambda text: text.replace("\n", " ").rstrip("\r")), max_size=6))
def test_lines_are_documents(gpt2: Tokenizer, folder: Path, documents: list[str]) -> None:
    lines = folder / "lines.txt"
    lines.write_bytes("\r\n".join([*documents, ""]).encode())
    ids = gpt2.encode_file(lines, documents="lines", separator=END, progress=False)
    assert ids.tolist() == [id for text in documents if text for id in [*gpt2.encode(text), END]]


@pytest.mark.usefixtures("small_parts")
@settings(max_examples=100)
@given(documents=st.lists(texts | st.just("\ud83d!"), max_size=6))
def test_texts_of_json_are_documents(gpt2: Tokenizer, folder: Path, documents: list[str]) -> None:
    lines = folder / "lines.jsonl"
    lines.write_text("\n\n".join(json.dumps({"id": 1, "text": text}) for text in documents))
    ids = gpt2.encode_file(lines, documents="jsonl", separator=END, progress=False)
    assert ids.tolist() == [id for text in documents for id in [*gpt2.encode(text), END]]


def test_what_is_put_around_a_document(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "around"
    gpt2_files.write_gpt2_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"bos_token": "<|endoftext|>", "add_bos_token": true, "eos_token": "!", "add_eos_token": true}'
    )
    tokenizer, path = Tokenizer.from_folder(folder), tmp_path / "a.txt"
    path.write_text("I love\nprogramming")
    out = tmp_path / "b.npy"
    assert tokenizer.encode_file(path, out).tolist() == tokenizer.encode(path.read_text())
    assert tokenizer.encode_file(path, out, documents="lines", separator=5).tolist() == [
        *tokenizer.encode("I love"), 5, *tokenizer.encode("programming"), 5,
    ]  # fmt: skip
    ids = tokenizer.encode_file(path, out, documents="lines", add_special_tokens=False, dtype=np.uint32)
    assert (ids.tolist(), ids.dtype) == ([40, 1842, 23065, 2229], np.uint32)
    path.write_text("<|endoftext|>")
    assert tokenizer.encode_file(path, out, allowed_special="none", add_special_tokens=False).size > 1
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "around", "b.npy"]


@pytest.mark.parametrize(
    ("line", "found"),
    [("{", "Expecting"), ("[1]", r"\[1\]"), ('{"text": 1}', "{'text': 1}"), ("\\xff", "Expecting")],
)
def test_a_line_that_is_no_document_is_named(gpt2: Tokenizer, tmp_path: Path, line: str, found: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line)
    with pytest.raises(ValueError, match=f'line 3: found {found}.*expected an object with a string "text"'):
        gpt2.encode_file(path, documents="jsonl")
    assert os.listdir(tmp_path) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"documents": "pages"}, "documents: found 'pages'"),
        ({"separator": 50257}, "separator: found 50257, expected an id from 0 to 50256"),
        ({"dtype": np.int16}, "dtype: found int16, expected uint16 or uint32"),
        ({"out": "a.txt"}, "out: found a.txt, the file to encode"),
    ],
)
def test_arguments_are_checked(
    gpt2: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(ValueError, match=message):
        gpt2.encode_file(path, **arguments)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_many_ids_need_wide_ones(gpt2_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    wide = Tokenizer.from_file(gpt2_folder / "tokenizer.json", special_tokens={"<wide>": 1 << 16})
    assert wide.encode_file(path).dtype == np.uint32
    with pytest.raises(ValueError, match="dtype: found uint16, expected uint32, for 65537 ids"):
        wide.encode_file(path, dtype=np.uint16)


SCRIPT = """
import re, resource, signal, sys
from pathlib import Path
from llmcore.tokenizer import Tokenizer

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

tokenizer = Tokenizer.from_folder(sys.argv[1])
before = peak()
{body}
"""


def process(body: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT.format(body=body), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 MB of lines."""
    path = tmp_path_factory.mktemp("large") / "large.txt"
    path.write_text("I love programming, and the 1st of May.\n" * 1_500_000)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("documents", ["file", "lines"])
def test_memory_does_not_grow_with_the_file(gpt2_folder: Path, large: Path, documents: str) -> None:
    body = "ids = tokenizer.encode_file(sys.argv[2], documents=sys.argv[3]); print(len(ids), peak() - before)"
    out, errors = process(body, gpt2_folder, large, documents).communicate()
    assert not errors
    count, peak = map(int, out.split())
    assert count > 15_000_000
    assert peak < 100e6


FULL = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tokenizer.encode_file(sys.argv[2], sys.argv[3])
"""


def test_a_full_disk_leaves_what_was_there(gpt2_folder: Path, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "ids.npy"
    out.write_bytes(b"before")
    _, errors = process(FULL, gpt2_folder, large, out).communicate()
    assert "OSError" in errors
    assert (os.listdir(tmp_path), out.read_bytes()) == (["ids.npy"], b"before")


def test_an_interrupt_leaves_nothing(gpt2_folder: Path, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "ids.npy"
    body = "print(1, flush=True)\nwhile True: tokenizer.encode_file(sys.argv[2], sys.argv[3])"
    running = process(body, gpt2_folder, large, out)
    assert running.stdout is not None
    running.stdout.readline()
    while not os.listdir(tmp_path):
        pass
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert set(os.listdir(tmp_path)) <= {"ids.npy"}
