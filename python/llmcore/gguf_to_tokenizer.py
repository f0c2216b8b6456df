"""From a tokenizer in the metadata of a GGUF file to the files of Hugging Face.

GGUF has two kinds of BPE: `gpt2`, over bytes in GPT-2's alphabet, whose pre-tokenisation has a name
(`tokenizer.ggml.pre`), and `llama`, SentencePiece's, which has scores in place of merges. A tokenizer.json
spells out the patterns and merges of both. `llmcore.gguf_from_tokenizer` goes the other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

from llmcore._core import Gguf, gguf_pre
from llmcore.tokenizer import Tokenizer

__all__ = ["DIGIT", "GPT2", "MARK", "Json", "TokenType", "tokenizer_files"]

Json = dict[str, Any]


class TokenType(IntEnum):
    """What `tokenizer.ggml.token_type` says of a token."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


DIGIT = r"\p{N}"
"""The pattern of the step `Digits`."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern that the step `ByteLevel` has built in."""
MARK = "▁"
"""What stands for a space in the tokens of SentencePiece."""

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def tokenizer_files(gguf: Gguf, path: Path) -> dict[str, Json]:
    """What `tokenizer.json` and `tokenizer_config.json` are to hold, by their names; nothing if the file has
    no tokenizer.

    Ids equal those of the file, but for three things of SentencePiece that a tokenizer.json has no words for:
    tokens marked unused; user-defined ones where a space is put before a text (here also after such a token);
    which of two ways to make a token comes first (here that of the longer first part).

    Raises:
        ValueError: metadata that is not what it should be; names the file (`path`) and the key.
    """
    kind = gguf.get("tokenizer.ggml.model")
    if kind in (None, "none", "no_vocab"):
        return {}
    tokenizer = Tokenizer.from_file(path)  # and so all keys are what they should be
    tokens: list[str] = gguf.get("tokenizer.ggml.tokens")
    given = gguf.get("tokenizer.ggml.token_type")
    types: list[int] = [TokenType.NORMAL] * len(tokens) if given is None else given.tolist()
    parts = _byte_level(gguf, path, tokens, types) if kind == "gpt2" else _sentencepiece(gguf, tokens, types)
    file = {"version": "1.0", "truncation": None, "padding": None, **parts}
    file["post_processor"] = _template(tokenizer, tokens)
    return {"tokenizer.json": file, "tokenizer_config.json": _tokenizer_config(tokenizer)}


def _byte_level(gguf: Gguf, path: Path, tokens: list[str], types: list[int]) -> Json:
    patterns, nfc, ignore_merges = gguf_pre(path, gguf.get("tokenizer.ggml.pre"))
    spaced = bool(gguf.get("tokenizer.ggml.add_space_prefix", False))
    if patterns == [GPT2]:
        pre: Json = _BYTE_LEVEL | {"use_regex": True, "add_prefix_space": spaced}
    elif not spaced:
        pre = {"type": "Sequence", "pretokenizers": [*map(_split, patterns), _BYTE_LEVEL]}
    else:
        raise ValueError(
            f"{path}: tokenizer.ggml.add_space_prefix: found true, expected false: "
            "tokenizer.json has no step that puts a space before a text and then splits it by such patterns"
        )
    found = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
    added = [(id, kind) for id, kind in enumerate(types) if kind in found]
    return {
        "added_tokens": [_added(id, tokens[id], kind != TokenType.USER_DEFINED) for id, kind in added],
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": pre,
        "decoder": _BYTE_LEVEL,
        "model": _model(
            tokens,
            [merge.split(" ") for merge in gguf.get("tokenizer.ggml.merges", [])],
            ignore_merges=ignore_merges,
        ),
    }


def _split(pattern: str) -> Json:
    if pattern == DIGIT:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _sentencepiece(gguf: Gguf, tokens: list[str], types: list[int]) -> Json:
    prefixed = gguf.get("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
    spaces = {"type": "Replace", "pattern": {"String": MARK}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefixed else [])]
    prepend = {"type": "Prepend", "prepend": MARK}
    unknown = gguf.get("tokenizer.ggml.unknown_token_id")
    scores = gguf.get("tokenizer.ggml.scores").tolist()
    return {
        "added_tokens": [
            _added(id, tokens[id].replace(MARK, " "), kind == TokenType.CONTROL)
            for id, kind in enumerate(types)
            # The model sees no space, so that a token with one is never found.
            if kind == TokenType.CONTROL or (kind == TokenType.USER_DEFINED and " " not in tokens[id])
        ],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace] if prefixed else [replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(
            tokens,
            _merges([(tokens[id], scores[id]) for id, kind in enumerate(types) if kind == TokenType.NORMAL]),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=TokenType.BYTE in types,
        ),
    }


def _merges(tokens: Sequence[tuple[str, float]]) -> list[list[str]]:
    """Every way to make a token of two others, the token of the highest score first."""
    known = {token for token, _ in tokens}
    ways = [
        (-score, -i, token)
        for token, score in tokens
        for i in range(1, len(token))
        if token[:i] in known and token[i:] in known
    ]
    return [[token[:-i], token[-i:]] for _, i, token in sorted(ways)]


def _model(tokens: list[str], merges: list[list[str]], **options: Any) -> Json:
    common = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    none = {"continuing_subword_prefix": None, "end_of_word_suffix": None, "ignore_merges": False}
    vocab = {token: id for id, token in enumerate(tokens)}
    return common | none | options | {"vocab": vocab, "merges": merges}


def _added(id: int, content: str, special: bool) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": special}


def _template(tokenizer: Tokenizer, tokens: list[str]) -> Json | None:
    """What puts ids around a text, if anything does."""
    if not (tokenizer.prefix_ids or tokenizer.suffix_ids):
        return None

    def special(ids: list[int], type_id: int) -> list[Json]:
        return [{"SpecialToken": {"id": tokens[id], "type_id": type_id}} for id in ids]

    def text(name: str, type_id: int) -> list[Json]:
        inner = {"Sequence": {"id": name, "type_id": type_id}}
        return [*special(tokenizer.prefix_ids, type_id), inner, *special(tokenizer.suffix_ids, type_id)]

    around = {*tokenizer.prefix_ids, *tokenizer.suffix_ids}
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {
            tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in around
        },
    }


def _tokenizer_config(tokenizer: Tokenizer) -> Json:
    """The tokens with a role, and the chat template."""
    roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "unk", "pad")}
    config: Json = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{role}_token": tokenizer.id_to_token(id) for role, id in roles.items() if id is not None}
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return config
