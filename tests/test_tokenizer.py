"""The face of the tokenizer: files, folders, trust, batches, long texts, errors."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2_files
import llmcore
from llmcore.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(gpt2_folder)


def test_every_format_gives_the_same_ids(gpt2: Tokenizer, gpt2_folder: Path, tmp_path: Path) -> None:
    text = "I love programming, don't you?  <|endoftext|>\n\n 1234 é漢🙂"
    tiktoken = tmp_path / "gpt2.tiktoken"
    ranks = gpt2_files.gpt2_ranks()
    tiktoken.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), ranks[token]) for token in ranks))
    gpt2_files.write_gpt2_tokenizer(tmp_path / "old", tokenizer_json=False)
    old = Tokenizer.from_folder(tmp_path / "old")
    ids = gpt2.encode(text)
    end = {"<|endoftext|>": 50256}
    assert old.encode(text) == ids
    assert (old.eos_token_id, old.bos_token_id, old.special_ids) == (50256, 50256, [50256])
    assert Tokenizer.from_file(tiktoken, pattern="gpt2", special_tokens=end).encode(text) == ids
    assert Tokenizer.from_file(gpt2_folder / "vocab.json", special_tokens=end).encode(text) == ids
    assert Tokenizer.from_file(gpt2_folder / "tokenizer.json").encode(text) == ids
    assert llmcore.Tokenizer is Tokenizer


def test_a_folder_names_roles_and_template(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    gpt2_files.write_gpt2_tokenizer(folder)
    config = {
        "bos_token": {"content": "<|endoftext|>"},
        "eos_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": True,
        "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 3, "unk_token_id": 4}))
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.pad_token_id) == (50256, [50256], 3)
    assert tokenizer.unk_token_id is None
    assert tokenizer.encode("I<|endoftext|>") == [50256, 40, 50256]
    assert tokenizer.encode("I", add_special_tokens=False) == [40]
    assert tokenizer.chat_template == "d"
    (folder / "chat_template.jinja").write_text("j")
    assert Tokenizer.from_folder(folder).chat_template == "j"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.from_folder(tmp_path / "nowhere")


spans = st.lists(
    st.tuples(
        st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "a b", " ", "é", "|>", "<|endoftext|><"]),
        st.booleans(),
    ),
    max_size=8,
)


@settings(max_examples=300, deadline=None)
@given(spans=spans)
def test_only_trusted_spans_hold_special_tokens(gpt2: Tokenizer, spans: list[tuple[str, bool]]) -> None:
    ids = gpt2.encode_spans(spans)
    assert gpt2.decode(ids) == "".join(text for text, _ in spans)
    # Adjacent trusted spans are one; what is not trusted breaks them apart.
    trusted = "".join(text if trust else "\0" for text, trust in spans)
    assert ids.count(50256) == trusted.count("<|endoftext|>")
    # Every character belongs to a token, white space too; the tokens of one character share it.
    again, offsets = gpt2.encode_spans(spans, with_offsets=True)
    assert again == ids
    ends = [0]
    for start, end in offsets:
        assert start <= ends[-1] < end or (start, end) == (end - 1, ends[-1])
        ends.append(end)
    assert ends[-1] == sum(len(text) for text, _ in spans)
    if all(trust for _, trust in spans):
        assert ids == gpt2.encode(trusted)
    if not any(trust for _, trust in spans):
        assert ids == gpt2.encode("".join(text for text, _ in spans), allowed_special="none")


def test_a_batch_equals_its_texts_from_many_threads(gpt2: Tokenizer) -> None:
    texts = [f"{'word ' * (i % 50)}{i} <|endoftext|> é" for i in range(500)] + ["", "x" * 200_000]
    expected = [gpt2.encode(text) for text in texts]
    wrong: list[int] = []

    def work(i: int) -> None:
        rows = gpt2.encode_batch(texts)
        if [row.tolist() for row in rows] != expected or rows[0].dtype != np.uint32:
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert gpt2.encode_batch([]) == []


@pytest.mark.parametrize("unit", ["a", " ", "\n", "ab ", "漢", "🙂", "'"])
def test_a_million_of_one_thing(gpt2: Tokenizer, unit: str) -> None:
    """A way that is quadratic in the length of a piece would not come back from here."""
    text = unit * ((1 << 20) // len(unit))
    assert gpt2.decode(gpt2.encode(text)) == text


@pytest.mark.parametrize("unit", ["I love programming. ", "a"])
def test_ctrl_c_stops_a_long_text(gpt2: Tokenizer, unit: str) -> None:
    text = unit * (20_000_000 // len(unit))
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            gpt2.count(text)
    assert gpt2.encode("I love programming") == [40, 1842, 8300]


def test_wrong_arguments_are_named(gpt2: Tokenizer, tmp_path: Path) -> None:
    for wrong in (1, None, ["a"]):
        with pytest.raises(TypeError, match="text"):
            gpt2.encode(wrong)  # type: ignore[call-overload]
    for texts in ("abc", b"abc", 3):
        with pytest.raises(TypeError, match=r"texts: found (str|bytes|int), expected a list"):
            gpt2.encode_batch(texts)  # type: ignore[arg-type]
    for id in (-1, 1 << 70):
        with pytest.raises(ValueError, match=f"id: found {id}, expected an id from 0"):
            gpt2.id_to_token(id)
        with pytest.raises(ValueError, match=f"id: found {id}, expected an id from 0"):
            gpt2.token_bytes(id)
    with pytest.raises(ValueError, match="allowed_special"):
        gpt2.encode("a", allowed_special="some")
    with pytest.raises(ValueError, match="with_offsets"):
        gpt2.encode(b"\xff", with_offsets=True)
    with pytest.raises(FileNotFoundError):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    (tmp_path / "x.tiktoken").write_bytes(b"IQ== 0")
    with pytest.raises(ValueError, match=r"x\.tiktoken: pattern: found none given, expected one of gpt2"):
        Tokenizer.from_file(tmp_path / "x.tiktoken")
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"tokenizer.model"):
        Tokenizer.from_file(tmp_path / "tokenizer.model")


PLAIN: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
}


def added(**changes: Any) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": 3, "content": "<s>"} | flags | changes]


def model(**changes: Any) -> dict[str, Any]:
    return {"model": PLAIN["model"] | changes}


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": "2.0"}, "version"),
    "huge id": (model(vocab={"a": 2**60, "b": 1, "ab": 2}), "model.vocab"),
    "negative id": (model(vocab={"a": -1, "b": 1, "ab": 2}), "model.vocab"),
    "far id": (model(vocab={"a": 2**31, "b": 1, "ab": 2}), "model.vocab"),
    "same id": (model(vocab={"a": 1, "b": 1, "ab": 2}), "model.vocab"),
    "list vocab": (model(vocab=[["a", 0]]), "model.vocab"),
    "unknown merge": (model(merges=[["a", "c"]]), r"model.merges\[0\].*\"c\""),
    "merge into nothing": (model(merges=[["b", "a"]]), r"model.merges\[0\].*\"ba\""),
    "merge of three": (model(merges=["a b c"]), r"model.merges\[0\]"),
    "merge of one": (model(merges=["ab"]), r"model.merges\[0\]"),
    "merges missing": (model(merges=None), "model.merges"),
    "other model": ({"model": {"type": "Magic", "vocab": [["a", 0.0]]}}, "model.type.*Magic"),
    "dropout": (model(dropout=0.1), "model.dropout"),
    "suffix": (model(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "unknown option": (model(magic=True), "magic"),
    "unknown token": (model(unk_token="<unk>"), "model.unk_token"),
    "unknown normalizer": ({"normalizer": {"type": "Magic"}}, r"normalizer.type.*Magic"),
    "unknown member": ({"normalizer": {"type": "NFC", "form": 1}}, "normalizer.*form"),
    "nested": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "X"}]}},
        r"normalizers\[0\].type",
    ),
    "unknown step": ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "pre_tokenizer.type.*BertPreTokenizer"),
    "bad regex": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
        "pre_tokenizer.pattern.Regex",
    ),
    "unknown decoder": ({"decoder": {"type": "WordPiece"}}, "decoder.type.*WordPiece"),
    "unknown processor": ({"post_processor": {"type": "X"}}, "post_processor.type"),
    "template of nothing": (
        {"post_processor": {"type": "TemplateProcessing", "single": [], "special_tokens": {}}},
        "post_processor",
    ),
    "empty token": ({"added_tokens": added(content="")}, "added_tokens"),
    "added id": ({"added_tokens": added(id=2**60)}, "added_tokens"),
    "added clash": ({"added_tokens": added(id=1)}, "added_tokens"),
    "added moved": ({"added_tokens": added(content="a")}, "added_tokens.*3.*0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_wrong_tokenizer_json_names_file_and_field(name: str, tmp_path: Path) -> None:
    changes, match = HOSTILE[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(PLAIN | changes))
    with pytest.raises(ValueError, match=match) as caught:
        Tokenizer.from_file(path)
    assert "tokenizer.json: " in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"model": {"vocab": {"a": 0, "a": 1}, "merges": []}}',
    ],
)
def test_a_file_that_is_not_its_format(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: "):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    "content",
    [b"YQ==", b"YQ== x", b"YQ== -1", b"YQ== 1152921504606846976", b"??? 0", b"\xff 0", b"YQ== 0\nYQ== 1"],
)
def test_a_wrong_tiktoken_names_file_and_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.tiktoken: (line \d|ranks)"):
        Tokenizer.from_file(path, pattern="gpt2")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_an_error_and_nothing_worse(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    good = bytearray(json.dumps(PLAIN | {"added_tokens": added()}).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(good) - 1))
        good[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.json"
    path.write_bytes(good)
    try:
        tokenizer = Tokenizer.from_file(path)
    except ValueError:
        return
    assert isinstance(tokenizer.decode(tokenizer.encode("ab <s> é")), str)


@pytest.mark.parametrize("lines", ["a b c", "a", "a x", "x a"])
def test_wrong_merges_name_their_line(lines: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2}))
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\na b\n{lines}\n")
    with pytest.raises(ValueError, match=r"merges\.txt: merges\.txt\[1\]"):
        Tokenizer.from_file(tmp_path / "vocab.json")


@pytest.mark.parametrize("role", ["bos", "eos", "unk"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_role_of_no_token_is_an_error(file: str, role: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    (tmp_path / file).write_text(json.dumps({f"{role}_token": "<nope>", "pad_token": "<nope>"}))
    message = rf'{file}: {role}_token: found "<nope>", expected a token of the vocabulary of tokenizer\.json'
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_folder(tmp_path)


def test_padding_may_be_new_and_what_a_class_assumes_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    size = Tokenizer.from_folder(tmp_path).vocab_size
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "pad_token": "[PAD]"})
    )
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.pad_token_id, tokenizer.vocab_size) == (size, size + 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.unk_token_id) == (None, [], None)


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token"),
        ("tokenizer_config.json", {"add_bos_token": "yes"}, "add_bos_token"),
        ("tokenizer_config.json", {"add_bos_token": True}, r"tokenizer_config\.json: add_bos_token"),
        ("tokenizer_config.json", {"chat_template": 3}, "chat_template"),
        ("tokenizer_config.json", [], "object"),
        ("config.json", {"eos_token_id": "x"}, "eos_token_id"),
    ],
)
def test_wrong_files_beside_it_are_named(file: str, content: Any, field: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(PLAIN))
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=field):
        Tokenizer.from_folder(tmp_path)


def test_a_fingerprint_tells_tokenizers_apart(gpt2_folder: Path, smollm2_path: Path, tmp_path: Path) -> None:
    def trained(vocab_size: int = 300, **options: str) -> Tokenizer:
        return Tokenizer.train(["a text of words"], vocab_size, progress=False, **options)

    path = tmp_path / "a.tiktoken"
    trained().save(path)
    folder = tmp_path / "folder"
    shutil.copytree(gpt2_folder, folder)
    (folder / "tokenizer.json").unlink()
    others = [
        trained(), trained(260), trained(pattern="o200k"), Tokenizer.from_file(smollm2_path),
        Tokenizer.from_file(path, pattern="gpt2"), Tokenizer.from_file(path, pattern="o200k"),
        Tokenizer.from_file(path, pattern="gpt2", special_tokens=["<end>"]),
        Tokenizer.from_folder(gpt2_folder), Tokenizer.from_folder(folder),
    ]  # fmt: skip
    assert len({tokenizer.fingerprint for tokenizer in others}) == len(others)
    assert trained().fingerprint == trained().fingerprint
    before = Tokenizer.from_folder(folder)
    first = before.fingerprint
    assert Tokenizer.from_folder(folder).fingerprint == first
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    assert Tokenizer.from_folder(folder).fingerprint != first
    with pytest.raises(ValueError, match=r"merges.txt: found a file that has changed since"):
        _ = before.fingerprint
