"""A tokenizer from GGUF to tokenizer.json and back: the same ids, here and in `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gguf_pre import CONTROL, KNOWN, OTHERS, TOKENS, write_file
from test_sentencepiece import MARKUP, MODELS, train, write_gguf
from texts import texts

from llmcore._core import Gguf
from llmcore.gguf_file import write_gguf as write_gguf_file
from llmcore.gguf_from_tokenizer import tokenizer_metadata
from llmcore.gguf_to_tokenizer import tokenizer_files
from llmcore.tokenizer import Tokenizer


def as_folder(file: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer_files(Gguf(file), file).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def check_same(file: Path, folder: Path, examples: int) -> None:
    """The file, the folder made of it, and the file made of that have the same ids and roles."""
    before, after = Tokenizer.from_file(file), Tokenizer.from_folder(as_folder(file, folder))
    write_gguf_file(folder / "model.gguf", tokenizer_metadata(folder, before.vocab_size, {}), {})
    again = Tokenizer.from_file(folder / "model.gguf")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for role in ("bos_token_id", "eos_token_ids", "unk_token_id", "pad_token_id", "prefix_ids"):
        assert getattr(after, role) == getattr(again, role) == getattr(before, role), role
    # In a folder all tokens with a role are special.
    unknown = set() if before.unk_token_id is None else {before.unk_token_id}
    assert set(after.special_ids) == {*before.special_ids, *unknown}

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.too_slow])
    @given(batch=st.lists(texts, min_size=50, max_size=50))
    def check(batch: list[str]) -> None:
        for text in [*batch, *CONTROL]:
            # A NUL and markup are where SentencePiece and its conversion differ.
            text = text.replace("\0", "").replace(MARKUP, "")
            ids = before.encode(text)
            assert after.encode(text) == ids, text
            assert theirs.encode(text).ids == ids, text
            assert again.encode(text) == ids, text
            assert after.decode(ids) == before.decode(ids)

    check()


@pytest.mark.parametrize("pre", [*KNOWN, *OTHERS])
def test_byte_level(pre: str, tmp_path: Path) -> None:
    file = write_file(tmp_path / "model.gguf", pre, add_bos_token=True, padding_token_id=len(TOKENS))
    check_same(file, tmp_path / "folder", examples=3)


def test_a_space_before_the_text(tmp_path: Path) -> None:
    file = write_file(tmp_path / "model.gguf", "gpt-2", add_space_prefix=True)
    before, after = Tokenizer.from_file(file), Tokenizer.from_folder(as_folder(file, tmp_path / "folder"))
    for text in ("a", " a", "", "a <s>a"):
        assert after.encode(text) == before.encode(text)
    file = write_file(tmp_path / "model.gguf", "smollm", add_space_prefix=True)
    with pytest.raises(ValueError, match=r"model\.gguf: tokenizer\.ggml\.add_space_prefix: found true"):
        as_folder(file, tmp_path / "folder")


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece(name: str, tmp_path: Path) -> None:
    options: dict[str, object] = dict(MODELS[name])
    if name == "user_defined":  # after each of them tokenizers puts a space, if before a text
        options["add_dummy_prefix"] = False
    prefix = bool(options.get("add_dummy_prefix", True))
    check_same(write_gguf(tmp_path / "model.gguf", train(**options), prefix), tmp_path / "folder", 10)


def test_no_tokenizer(tmp_path: Path) -> None:
    file = write_file(tmp_path / "model.gguf", "gpt-2", model="none")
    assert tokenizer_files(Gguf(file), file) == {}


def test_smollm2(smollm2_path: Path, tmp_path: Path) -> None:
    before, after = (
        Tokenizer.from_file(smollm2_path),
        Tokenizer.from_folder(as_folder(smollm2_path, tmp_path)),
    )
    text = Path(json.__file__).read_text(encoding="utf-8") + "<|im_start|>user 12345 漢字 é<|im_end|>"
    assert after.encode(text) == before.encode(text)
    assert after.chat_template == before.chat_template


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "o200k", "cl100k", "qwen2"])
def test_a_tokenizer_that_was_trained_here(pattern: str, tmp_path: Path) -> None:
    text = Path(json.__file__)
    trained = Tokenizer.train(text, 400, pattern=pattern, special_tokens=["<|end|>"], progress=False)
    trained.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    if pattern in ("cl100k", "qwen2"):  # the name qwen2 stands for NFC too
        with pytest.raises(
            ValueError, match=r"pre_tokenizer: found .*, expected one that GGUF has a name for"
        ):
            tokenizer_metadata(tmp_path, 500, {})
        return
    metadata = tokenizer_metadata(tmp_path, 500, {"eos_token_id": [0, 7]})
    write_gguf_file(tmp_path / "model.gguf", metadata, {})
    back = Tokenizer.from_file(tmp_path / "model.gguf")
    assert back.encode(text.read_text() + "<|end|>") == trained.encode(text.read_text() + "<|end|>")
    assert (back.eos_token_ids, back.vocab_size) == ([0, 7], 500)


def lowercase(file: dict[str, Any]) -> None:
    file["normalizer"] = {"type": "Lowercase"}


def cut_at_commas(file: dict[str, Any]) -> None:
    pattern = {"pattern": {"String": ","}, "behavior": "Removed", "invert": False}
    steps = [{"type": "Split", **pattern}, file["pre_tokenizer"]]
    file["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


def ending_twice(file: dict[str, Any]) -> None:
    file["post_processor"]["single"].append({"SpecialToken": {"id": "</s>", "type_id": 0}})


def without_bytes(file: dict[str, Any]) -> None:
    file["pre_tokenizer"] = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lowercase, r"pre_tokenizer: found \['Lowercase', 'ByteLevel'\], expected one that GGUF has a name"),
        (cut_at_commas, r"pre_tokenizer: found \[\{'String': ','\}, 'ByteLevel'\], expected one"),
        (ending_twice, r"post_processor: found ids \[\d+, \d+\], expected none, or the eos token's"),
        (without_bytes, r"pre_tokenizer: found \['Digits'\], expected what SentencePiece does with spaces"),
    ],
)
def test_what_gguf_cannot_describe(
    spoil: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder = as_folder(write_file(tmp_path / "model.gguf", "gpt-2", add_eos_token=True), tmp_path)
    path = folder / "tokenizer.json"
    file = json.loads(path.read_text())
    spoil(file)
    path.write_text(json.dumps(file))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{message}"):
        tokenizer_metadata(folder, 10_000, {})


def test_what_gguf_has_no_tokenizer_for(tmp_path: Path) -> None:
    assert tokenizer_metadata(tmp_path, 9, {}) == {"tokenizer.ggml.model": "none"}
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"found vocab\.json, expected tokenizer\.json"):
        tokenizer_metadata(tmp_path, 9, {})
