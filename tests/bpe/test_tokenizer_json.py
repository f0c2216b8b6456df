"""tokenizer.json: ids, offsets and text equal those of the `tokenizers` package, component by component."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from texts import SNIPPETS, batches
from tokenizers import models, pre_tokenizers, trainers

from llmcore.tokenizer import Tokenizer
from vocabularies import LLAMA3, O200K, QWEN2

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

CORPUS = [*SNIPPETS, Path(json.__file__).read_text(encoding="utf-8"), "the cat's hat, don't they?  " * 50]


@cache
def byte_level_model() -> dict[str, Any]:
    """A small byte-level model."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    return json.loads(trained.to_str())["model"]


@cache
def character_model() -> dict[str, Any]:
    """A small model over characters, with an unknown token and the tokens of bytes."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = [text for text in CORPUS if text.isascii()]
    trained.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    return json.loads(trained.to_str())["model"]


def byte_level(**options: Any) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | options


def sequence(kind: str, *items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", kind: list(items)}


def split(pattern: dict[str, str], behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def regex_then_bytes(*patterns: str) -> dict[str, Any]:
    splits = [split({"Regex": pattern}) for pattern in patterns]
    return sequence("pretokenizers", *splits, byte_level(use_regex=False))


def replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def template(before: list[str], after: list[str], ids: dict[str, int]) -> dict[str, Any]:
    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*map(special, before), text, *map(special, after)]
    used = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in {*before, *after}}
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": used}


def added(content: str, id: int, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": id, "content": content} | plain | flags


def metaspace(scheme: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def files() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and members of tokenizer.json, the model's among them."""
    byte_model, char_model = byte_level_model(), character_model()
    top = len(byte_model["vocab"])
    bytes_ = {"model": byte_model, "decoder": byte_level()}
    end = [added("<|endoftext|>", top, special=True)]
    yield "gpt2", bytes_ | {"pre_tokenizer": byte_level(), "post_processor": byte_level(trim_offsets=False)}
    yield "trimmed", bytes_ | {"pre_tokenizer": byte_level(), "post_processor": byte_level()}
    yield (
        "prefix_space",
        bytes_
        | {
            "pre_tokenizer": byte_level(add_prefix_space=True),
            "post_processor": byte_level(add_prefix_space=True),
            "added_tokens": end,
        },
    )
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", top + 1], "cls": ["<s>", top]}
    yield (
        "roberta",
        bytes_
        | {
            "pre_tokenizer": byte_level(add_prefix_space=True),
            "post_processor": roberta | {"trim_offsets": True, "add_prefix_space": True},
            "added_tokens": [added("<s>", top, special=True), added("</s>", top + 1, lstrip=True)],
        },
    )
    for name, pattern in {"cl100k": CL100K, "llama3": LLAMA3, "qwen2": QWEN2, "o200k": O200K}.items():
        yield name, bytes_ | {"pre_tokenizer": regex_then_bytes(pattern)}
    yield (
        "llama3_whole",
        bytes_
        | {
            "model": byte_model | {"ignore_merges": True},
            "pre_tokenizer": regex_then_bytes(LLAMA3),
            "added_tokens": end,
            "post_processor": sequence(
                "processors", byte_level(), template(["<|endoftext|>"], [], {"<|endoftext|>": top})
            ),
        },
    )
    yield (
        "qwen2_nfc",
        bytes_
        | {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": regex_then_bytes(QWEN2),
            "post_processor": byte_level(trim_offsets=False),
            "added_tokens": [*end, added("é漢", top + 1, normalized=True)],
        },
    )
    digits = {"type": "Digits", "individual_digits": True}
    yield "smollm", bytes_ | {"pre_tokenizer": sequence("pretokenizers", digits, byte_level())}
    groups = {"type": "Digits", "individual_digits": False}
    yield "digits", bytes_ | {"pre_tokenizer": sequence("pretokenizers", groups, byte_level())}
    deepseek = [r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|\s+(?!\S)|\s+"]
    yield "several_patterns", bytes_ | {"pre_tokenizer": regex_then_bytes(*deepseek)}
    yield "lines", bytes_ | {"pre_tokenizer": regex_then_bytes(r"\s+$", r"^.", r"\d(?=\D)")}
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            one = split({"Regex": r"\s|['a-f]"}, behavior, invert)
            steps = sequence("pretokenizers", one, byte_level(use_regex=False))
            yield f"{behavior}_{invert}", bytes_ | {"pre_tokenizer": steps}
    flags = [
        added("<|im_start|>", top, special=True, rstrip=True),
        added("<|im_end|>", top + 1, special=True, lstrip=True),
        added("love", top + 2, single_word=True),
        added("x", byte_model["vocab"]["x"], normalized=True),
        added("  ", top + 3),
        added("</s>", top + 4, lstrip=True, rstrip=True, normalized=True),
        added(" don't", top + 5, normalized=True),
    ]
    yield "flags", bytes_ | {"pre_tokenizer": byte_level(), "added_tokens": flags}
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        steps = sequence(
            "normalizers",
            {"type": form},
            {"type": "Lowercase"},
            {"type": "Strip", "strip_left": True, "strip_right": True},
            replace("a", "bcd"),
            {"type": "Replace", "pattern": {"Regex": r"\s{2,}"}, "content": "~"},
        )
        yield form, bytes_ | {"normalizer": steps, "pre_tokenizer": byte_level(), "added_tokens": flags}

    specials = [added(token, id, special=True) for id, token in enumerate(["<unk>", "<s>", "</s>"])]
    back = sequence(
        "decoders",
        replace("▁", " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    )
    llama = char_model | {"byte_fallback": True, "fuse_unk": True}
    prepend = {"type": "Prepend", "prepend": "▁"}
    yield (
        "llama2",
        {
            "model": llama,
            "normalizer": sequence("normalizers", prepend, replace(" ", "▁")),
            "decoder": back,
            "added_tokens": specials,
            "post_processor": template(["<s>"], ["</s>"], {"<s>": 1, "</s>": 2}),
        },
    )
    yield (
        "gemma",
        {
            "model": llama,
            "normalizer": replace(" ", "▁"),
            "pre_tokenizer": split({"String": " "}, "MergedWithPrevious"),
            "decoder": sequence("decoders", replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}),
            "added_tokens": specials,
        },
    )
    for scheme in ("always", "first", "never"):
        for whole in (True, False):
            yield (
                f"metaspace_{scheme}_{whole}",
                {
                    "model": char_model,
                    "pre_tokenizer": metaspace(scheme, whole),
                    "decoder": metaspace(scheme, whole),
                    "added_tokens": specials,
                },
            )
    yield "unknown_fused", {"model": char_model | {"fuse_unk": True}, "added_tokens": specials}
    yield "unknown", {"model": char_model | {"unk_token": None}, "added_tokens": specials}
    few_bytes = {token: id for token, id in char_model["vocab"].items() if token != "<0xE6>"}
    yield "some_bytes", {"model": llama | {"vocab": few_bytes}, "decoder": back}


def write(folder: Path, members: dict[str, Any]) -> Path:
    missing = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0", "added_tokens": []} | missing | members))
    return path


FILES = dict(files())


@pytest.fixture(scope="module", params=FILES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    path = write(tmp_path_factory.mktemp(request.param), FILES[request.param])
    return Tokenizer.from_file(path), tokenizers.Tokenizer.from_file(str(path))


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(batch=batches)
def test_equals_tokenizers(pair: tuple[Tokenizer, tokenizers.Tokenizer], batch: list[str]) -> None:
    ours, theirs = pair
    for text in batch:
        for special in (True, False):
            expected = theirs.encode(text, add_special_tokens=special)
            ids, offsets = ours.encode(text, add_special_tokens=special, with_offsets=True)
            assert ids == expected.ids, text
            assert offsets == expected.offsets, text
            assert ours.encode(text, add_special_tokens=special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
