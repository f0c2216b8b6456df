"""Text to a corpus: the documents of any source, tokenised once, and again when anything changes."""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore import tokenizer_files
from llmcore.tokenizer import Tokenizer
from llmcore.training import Corpus, tokenize_text
from llmcore.training.data import identity, text

END = 0
"""<|end|>, the first token of a tokenizer that is trained with it."""

PROSE = "A document is a text that ends. It has words, as “naïve” or “12345”,\nand lines.\n\n  Spaces, too."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([PROSE], 300, special_tokens=["<|end|>"], progress=False)


def documents(corpus: Corpus) -> list[list[int]]:
    return [corpus.ids[a:b].tolist() for a, b in pairwise(corpus.starts.tolist())]


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [[*tokenizer.encode(text, allowed_special="none"), END] for text in texts]


def caches(cache: Path) -> list[str]:
    """The corpora of a cache."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


@pytest.fixture
def count_encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every file or batch of texts that is tokenised for a corpus."""
    encodings: list[str] = []
    file, texts = text._encoded_files, text._encoded_rows
    monkeypatch.setattr(text, "_encoded_files", lambda *args: encodings.append("files") or file(*args))
    monkeypatch.setattr(text, "_encoded_rows", lambda *args: encodings.append("rows") or texts(*args))
    return encodings


# ---------------------------------------------------------------------------------------------------
# Sources


def test_one_file_is_one_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(PROSE)
    for source in (path, str(path), [path]):
        corpus = tokenize_text(source, tokenizer, separator=END, cache=tmp_path / "cache")
        assert documents(corpus) == expected(tokenizer, [PROSE])
        assert corpus.ids.dtype == np.uint16 and isinstance(corpus.ids, np.memmap)
        assert not corpus.ids.flags.writeable
        assert corpus.counted is None
    assert len(caches(tmp_path / "cache")) == 1
    assert documents(tokenize_text(str(path), tokenizer, separator=END)) == expected(tokenizer, [PROSE])
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "a.txt.tokens", "cache"]


def test_lines_are_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\r\nthree")
    corpus = tokenize_text(path, tokenizer, separator=END, documents="lines")
    assert documents(corpus) == expected(tokenizer, ["one", "two", "three"])
    with pytest.raises(ValueError, match="documents: found 'pages'"):
        tokenize_text(path, tokenizer, separator=END, documents="pages")


def test_a_folder_is_its_files_in_the_order_of_names(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "b" / ".hidden").mkdir(parents=True)
    files = {"b/2.txt": "third", "a.md": "first", "c.JSONL": '{"text": "fourth"}\n\n{"text": "fifth"}\n'}
    files |= {"b/1.txt": "second", "b/.hidden/3.txt": "no", ".4.txt": "no", "5.py": "no"}
    for name, content in files.items():
        (folder / name).write_text(content)
    corpus = tokenize_text(folder, tokenizer, separator=END)
    assert documents(corpus) == expected(tokenizer, ["first", "second", "third", "fourth", "fifth"])
    assert sorted(os.listdir(tmp_path)) == ["data", "data.tokens"]
    several = [folder / "c.JSONL", folder / "5.py", folder / "b"]
    corpus = tokenize_text(several, tokenizer, separator=END, cache=tmp_path / "cache")
    assert documents(corpus) == expected(tokenizer, ["fourth", "fifth", "no", "second", "third"])


class Dataset:
    """A split of a dataset of the package `datasets`, as far as this matters."""

    def __init__(self, rows: list, fingerprint: str | None = None) -> None:
        self.rows = rows
        self.read = 0
        if fingerprint is not None:
            self._fingerprint = fingerprint

    def __iter__(self):
        self.read += 1
        return iter(self.rows)


@settings(max_examples=30)
@given(texts=st.lists(st.text(max_size=20), min_size=1, max_size=6))
def test_rows_are_documents(tokenizer: Tokenizer, tmp_path_factory, texts: list[str]) -> None:
    cache = tmp_path_factory.mktemp("cache")
    rows = [{"id": 1, "body": text} if i % 2 else text for i, text in enumerate(texts)]
    path = cache / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    for source in (rows, Dataset(rows), Dataset(rows, "abc"), path):
        corpus = tokenize_text(source, tokenizer, separator=END, field="body", cache=cache)
        assert documents(corpus) == expected(tokenizer, texts)
    assert len(caches(cache)) == 3


def test_a_dataset_that_knows_itself_is_not_read_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    dataset = Dataset(["text"], "abc")
    tokenize_text(dataset, tokenizer, separator=END, cache=tmp_path)
    dataset.read = 0
    tokenize_text(dataset, tokenizer, separator=END, cache=tmp_path)
    assert dataset.read == 2  # iter() alone, and its first row


def test_texts_in_batches(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_CHARACTERS", 10)
    monkeypatch.setattr(tokenizer_files, "_PART", 7)
    texts = [PROSE[i : i + 7] for i in range(40)]
    corpus = tokenize_text(texts, tokenizer, separator=END, cache=tmp_path / "cache")
    assert documents(corpus) == expected(tokenizer, texts)
    path = tmp_path / "a.txt"
    path.write_text(PROSE)
    assert documents(tokenize_text(path, tokenizer, separator=END)) == expected(tokenizer, [PROSE])


def test_special_tokens_of_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = ["one<|end|>two"]
    plain = tokenize_text(texts, tokenizer, separator=END, cache=tmp_path)
    assert documents(plain) == expected(tokenizer, texts)
    cut = tokenize_text(texts, tokenizer, separator=END, cache=tmp_path, allowed_special=["<|end|>"])
    assert documents(cut) == expected(tokenizer, ["one", "two"])


def test_what_the_tokenizer_puts_around_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    roles = {"bos_token": "A", "eos_token": "<|end|>", "add_bos_token": True}
    for add_eos in (False, True):
        (folder / "tokenizer_config.json").write_text(json.dumps(roles | {"add_eos_token": add_eos}))
        around = Tokenizer.from_folder(folder)
        bos, body = around.token_to_id("A"), tokenizer.encode("text")
        corpus = tokenize_text(["text", ""], around, cache=tmp_path / "cache")
        assert documents(corpus) == [[bos, *body, END], [bos, END]]
        corpus = tokenize_text(["text"], around, cache=tmp_path / "cache", add_special_tokens=False)
        assert documents(corpus) == [[*body, END]]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere.txt", FileNotFoundError, "nowhere.txt: found nothing"),
        (".", FileNotFoundError, r"found no such files, expected files that end in .txt, .md, .jsonl"),
        ([Path("a.bin"), "b.txt"], TypeError, r"source\[1\]: found str, expected a Path"),
        (["a.bin"], TypeError, "found 'a.bin', the name of a file, as a text"),
        ({"train": [], "test": []}, TypeError, "a mapping with the keys 'train', 'test'"),
        (iter(["a"]), TypeError, "an iterator, expected something that can be read twice"),
        (b"text", TypeError, "source: found bytes"),
        (5, TypeError, "source: found int"),
        ([], ValueError, "found no rows"),
        (["a", 5], ValueError, 'row 1: found 5, expected a text, or an object with a string "text"'),
        ([{"body": "a"}], ValueError, "row 0: found {'body': 'a'}"),
        (Path("a.bin"), ValueError, "a.bin: found a NUL byte, expected text"),
    ],
)
def test_what_is_no_source(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source, error, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.bin").write_bytes(b"PK\0\1")
    with pytest.raises(error, match=message):
        tokenize_text(source, tokenizer, separator=END, cache="cache")
    assert not Path("cache").exists() or caches(Path("cache")) == []


def test_a_wrong_line_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "fine"}\n\n{"text": "no"}\n')
    with pytest.raises(ValueError, match=r'a.jsonl: line 3: found .*expected an object with a string "body"'):
        tokenize_text(path, tokenizer, separator=END, field="body")


def test_what_is_missing_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="separator: found None, expected an id from 0 to"):
        tokenize_text(["a"], tokenizer, cache=tmp_path)
    with pytest.raises(ValueError, match="separator: found 300"):
        tokenize_text(["a"], tokenizer, cache=tmp_path, separator=300)
    with pytest.raises(ValueError, match="cache: found None, expected a folder"):
        tokenize_text(["a"], tokenizer, separator=END)


# ---------------------------------------------------------------------------------------------------
# The cache


def test_nothing_is_tokenised_twice(
    tokenizer: Tokenizer, tmp_path: Path, count_encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("one")
    os.utime(path, ns=(0, 10**9))

    def corpus(**options) -> Corpus:
        return tokenize_text(path, tokenizer, **{"separator": END, "cache": cache} | options)

    first = corpus()
    again = corpus()
    assert (count_encodings, first.fingerprint) == (["files"], again.fingerprint)
    assert Corpus(np.array(first.ids), first.starts).fingerprint == first.fingerprint
    # The same content under another time, or name, is the same.
    os.utime(path, ns=(0, 2 * 10**9))
    path.rename(tmp_path / "b.txt")
    assert tokenize_text(tmp_path / "b.txt", tokenizer, separator=END, cache=cache).ids.tolist() == (
        first.ids.tolist()
    )
    assert count_encodings == ["files"]
    # Another content of the same size is another.
    path.write_text("two")
    assert documents(corpus()) == expected(tokenizer, ["two"])
    assert len(count_encodings) == 2
    # So is what other options or another tokenizer give.
    corpus(documents="lines"), corpus(add_special_tokens=False), corpus(separator=1)
    assert len(count_encodings) == 5
    other = Tokenizer.train([PROSE], 299, special_tokens=["<|end|>"], progress=False)
    tokenize_text(path, other, separator=END, cache=cache)
    assert len(count_encodings) == 6
    # A file whose size and time are known is not read again.
    os.utime(path, ns=(0, 3 * 10**9))
    corpus()
    monkeypatch.setattr(identity, "_hash", None)
    assert documents(corpus()) == expected(tokenizer, ["two"])


def test_a_file_of_this_moment_is_not_taken_for_another(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Two contents of one size may leave the same time."""
    path = tmp_path / "a.txt"
    path.write_text("one")
    now = path.stat().st_mtime_ns
    assert documents(tokenize_text(path, tokenizer, separator=END)) == expected(tokenizer, ["one"])
    path.write_text("two")
    os.utime(path, ns=(now, now))
    assert documents(tokenize_text(path, tokenizer, separator=END)) == expected(tokenizer, ["two"])


def test_a_memory_of_hashes_that_is_broken_is_forgotten(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    os.utime(path, ns=(0, 10**9))
    for broken in ("", "[1]", "{", '{"x": 1}'):
        cache = tmp_path / "a.txt.tokens"
        cache.mkdir(exist_ok=True)
        (cache / "files.json").write_text(broken)
        assert documents(tokenize_text(path, tokenizer, separator=END)) == expected(tokenizer, ["one"])


def test_data_that_changes_while_it_is_read_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Unsteady(Dataset):
        def __iter__(self):
            self.read += 1
            return iter([f"text {self.read}"])

    with pytest.raises(ValueError, match="found data that changed while it was read"):
        tokenize_text(Unsteady([]), tokenizer, separator=END, cache=tmp_path)
    assert caches(tmp_path) == []


def test_what_fails_leaves_no_corpus(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")

    def interrupted(*_):
        yield np.array([1, END], np.uint32)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(text, "_encoded_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tokenize_text(path, tokenizer, separator=END)
    assert caches(tmp_path / "a.txt.tokens") == []
    assert documents(tokenize_text(path, tokenizer, separator=END)) == expected(tokenizer, ["one"])


# ---------------------------------------------------------------------------------------------------
# Splits


@given(lengths=st.lists(st.integers(1, 9), max_size=9), tail=st.floats(0.01, 0.99))
def test_what_is_held_out(lengths: list[int], tail: float) -> None:
    tokens = sum(lengths)
    corpus = Corpus(np.arange(tokens), np.cumsum([0, *lengths]))
    try:
        train, held_out = corpus.split(tail)
    except ValueError as error:
        assert "expected two parts" in str(error)
        cut = tokens - int(tokens * tail)
        assert tokens * tail < 1 or not any(0 < start < tokens for start in corpus.starts if start >= cut)
        return
    assert [*train.ids, *held_out.ids] == list(range(tokens))
    assert 0 < len(held_out.ids) <= tokens * tail
    cut = len(train.ids)
    assert train.starts.tolist() == sorted({0, cut, *(s for s in corpus.starts.tolist() if s < cut)})
    inner = {s - cut for s in corpus.starts.tolist() if s > cut}
    assert held_out.starts.tolist() == sorted({0, tokens - cut, *inner})
    if cut not in corpus.starts:  # within the last document
        assert len(held_out) == 1 and len(held_out.ids) == int(tokens * tail)
    assert len({corpus.fingerprint, train.fingerprint, held_out.fingerprint}) == 3


def test_examples_are_held_out_whole() -> None:
    corpus = Corpus(np.arange(10), np.array([0, 4, 10]), np.ones(10, bool))
    assert [len(part.ids) for part in corpus.split(0.6)] == [4, 6]
    with pytest.raises(ValueError, match=r"tail: found 0\.5, less than the last of 2 examples"):
        corpus.split(0.5)
    with pytest.raises(ValueError, match="tail: found 1, expected a share between"):
        corpus.split(1)


@pytest.mark.parametrize(
    ("starts", "counted", "message"),
    [
        ([0, 2], None, "starts: found .* expected places from 0 to 3"),
        ([0, 0, 3], None, "starts: found a document without tokens"),
        ([0, 4, 3], None, "starts: found a document without tokens"),
        ([], None, "starts: found"),
        ([0, 3], [True], r"counted: found the shape \(1,\), expected \(3,\)"),
    ],
)
def test_arrays_that_do_not_fit(starts: list[int], counted: list[bool] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Corpus(np.arange(3), np.array(starts), None if counted is None else np.array(counted))
