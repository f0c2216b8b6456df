"""From the files of a tokenizer of Hugging Face to the metadata of a GGUF file.

`llmcore.gguf_to_tokenizer` goes the other way, and says what kinds of tokenizers there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llmcore._core import gguf_pre_name
from llmcore.checkpoint import read_json
from llmcore.gguf_to_tokenizer import DIGIT, GPT2, MARK, Json, TokenType
from llmcore.tokenizer import Tokenizer

__all__ = ["tokenizer_metadata"]

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_metadata(folder: Path, size: int, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The keys `tokenizer.…` for the tokenizer of a folder; without one, what says that there is none.

    Ids are those of the tokenizer, but for two things: of added tokens GGUF does not know that they take the
    spaces beside them or stand for whole words only; and SentencePiece has scores where a tokenizer.json has
    merges: earlier ones become higher scores, and where several make one token, the first counts.

    Args:
        folder: A checkpoint in the Hugging Face layout.
        size: Rows of the token embeddings: an id without a token gets one that no text has.
        generation: What the checkpoint says of generation: its `eos_token_id` may list more tokens than the
            tokenizer has; GGUF has keys for three.

    Raises:
        ValueError: a tokenizer that GGUF cannot describe, or that has more tokens than `size`; names file and
            field.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if (folder / "vocab.json").exists():
            raise ValueError(f"{folder}: found vocab.json, expected tokenizer.json, which says all of it")
        return {"tokenizer.ggml.model": "none"}
    tokenizer = Tokenizer.from_folder(folder)  # and so the file is what it should be
    file = read_json(path)
    if (found := file["model"].get("type", "BPE")) != "BPE":
        raise ValueError(f"{path}: model.type: found {found!r}, expected 'BPE'")
    steps = _steps(file.get("pre_tokenizer"), "pretokenizers")
    kind = "gpt2" if any(step["type"] == "ByteLevel" for step in steps) else "llama"
    tokens, types = _tokens(file, path, kind, tokenizer, size)
    metadata = {
        "model": kind,
        **(_byte_level(file, path, steps) if kind == "gpt2" else _sentencepiece(file, path, steps, tokens)),
        "tokens": tokens,
        "token_type": np.array(types, np.int32),
        **_roles(tokenizer, path, generation),
    }
    keys = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    return keys


def _tokens(
    file: Json, path: Path, kind: str, tokenizer: Tokenizer, size: int
) -> tuple[list[str], list[TokenType]]:
    """Every id's token and type."""
    tokens = {id: token for token, id in file["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    for added in file.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.USER_DEFINED
    for id in tokenizer.special_ids:  # of some only tokenizer_config.json knows
        tokens.setdefault(id, tokenizer.id_to_token(id) or "")
        types[id] = TokenType.CONTROL
    if kind == "llama":
        unknown, has_bytes = file["model"].get("unk_token"), file["model"].get("byte_fallback")
        for id, token in tokens.items():
            if token == unknown:
                types[id] = TokenType.UNKNOWN
            elif has_bytes and _BYTE_TOKEN.fullmatch(token):
                types[id] = TokenType.BYTE
    if (most := max(tokens, default=-1)) >= size:
        raise ValueError(f"{path}: found a token of id {most}, expected ids below {size}, the embeddings")
    ids = range(size)
    return [tokens.get(id, f"[PAD{id}]") for id in ids], [types.get(id, TokenType.UNUSED) for id in ids]


def _steps(component: Json | None, member: str) -> list[Json]:
    """The steps of a component, which may be a sequence of such."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for item in component[member] for step in _steps(item, member)]


def _byte_level(file: Json, path: Path, steps: list[Json]) -> Json:
    patterns = [_pattern(step) for step in steps]
    normalizers = [step["type"] for step in _steps(file.get("normalizer"), "normalizers")]
    name = None
    if None not in patterns and normalizers in ([], ["NFC"]):
        splitting = [pattern for pattern in patterns if pattern]
        name = gguf_pre_name(splitting, bool(normalizers), bool(file["model"].get("ignore_merges")))
    if name is None:
        found = str([*normalizers, *(step.get("pattern", step["type"]) for step in steps)])
        expected = "one that GGUF has a name for"
        raise ValueError(f"{path}: pre_tokenizer: found {found:.300}, expected {expected}")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in file["model"]["merges"]]
    spaced = any(step["type"] == "ByteLevel" and step.get("add_prefix_space", True) for step in steps)
    return {"pre": name, "merges": merges, "add_space_prefix": spaced}


def _pattern(step: Json) -> str | None:
    """What a step splits by: an empty string if by nothing, None if by what is no pattern."""
    match step:
        case {"type": "ByteLevel", "use_regex": False}:
            return ""
        case {"type": "ByteLevel"}:
            return GPT2
        case {"type": "Digits", "individual_digits": True}:
            return DIGIT
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": how, **rest}:
            inverted = rest.get("invert", False)
            return regex if (how, inverted) in (("Isolated", False), ("Removed", True)) else None
    return None


def _sentencepiece(file: Json, path: Path, steps: list[Json], tokens: list[str]) -> Json:
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in file["model"]["merges"]]
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(rank))
    # What no merge makes is a character, whose score nothing asks for.
    given = [scores.get(token, -float(len(merges))) for token in tokens]
    return {
        "pre": "default",
        "scores": np.array(given, np.float32),
        "add_space_prefix": _puts_space_before(file, path, steps),
    }


def _puts_space_before(file: Json, path: Path, steps: list[Json]) -> bool:
    """Whether a space is put before a text, if nothing else is done to it but to mark its spaces."""
    marks = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
    match [*_steps(file.get("normalizer"), "normalizers"), *steps]:
        case [only] if only == marks:
            return False
        case [{"type": "Prepend", "prepend": prefix}, second] if prefix == MARK and second == marks:
            return True
        case [{"type": "Metaspace", "replacement": mark, "split": False, **rest}] if mark == MARK:
            # "always" and "first" differ only after special tokens.
            return bool(rest.get("prepend_scheme", "always") != "never")
        case found:
            kinds = [step["type"] for step in found]
            expected = "what SentencePiece does with spaces"
            raise ValueError(f"{path}: normalizer, pre_tokenizer: found {kinds}, expected {expected}")


def _roles(tokenizer: Tokenizer, path: Path, generation: Mapping[str, Any]) -> Json:
    """The tokens with a role, and which of them stand around a text."""
    ends = generation.get("eos_token_id")
    ends = [*tokenizer.eos_token_ids, *(ends if isinstance(ends, list) else [] if ends is None else [ends])]
    roles: dict[str, int | None] = {
        "bos_token_id": tokenizer.bos_token_id,
        "unknown_token_id": tokenizer.unk_token_id,
        "padding_token_id": tokenizer.pad_token_id,
        **dict(zip(_END_KEYS, dict.fromkeys(ends), strict=False)),
    }
    around = {}
    for role, ids in (("bos", tokenizer.prefix_ids), ("eos", tokenizer.suffix_ids)):
        if ids not in ([], [roles.get(f"{role}_token_id")]):
            raise ValueError(f"{path}: post_processor: found ids {ids}, expected none, or the {role} token's")
        around[f"add_{role}_token"] = bool(ids)
    return {role: id for role, id in roles.items() if id is not None} | around
