"""The true vocabularies of OpenAI's tokenizers, and tokenizers made of them by their own libraries.

GPT-2's ranks come from the source archive of openai-whisper (`gpt2_files`), those of cl100k and o200k from
the package bpe-openai, which is installed but never imported.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
from functools import cache
from pathlib import Path

import tiktoken
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import gpt2_files
from gpt2_files import spell
from llmcore import _core

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LEAD, CONTRACTION = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    f"{LEAD}{UPPER}*{LOWER}+{CONTRACTION}|{LEAD}{UPPER}+{LOWER}*{CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": O200K,
    "llama3": LLAMA3,
    "qwen2": QWEN2,
}
"""As tiktoken_ext/openai_public.py and the models' tokenizer.json have them."""

RANKS = {"gpt2": "gpt2", "cl100k": "cl100k", "o200k": "o200k", "llama3": "cl100k", "qwen2": "cl100k"}
"""The ranks that a pattern is tried with."""


@cache
def ranks(name: str) -> dict[bytes, int]:
    """The tokens and ranks of `gpt2`, `cl100k` or `o200k`."""
    if name == "gpt2":
        return gpt2_files.gpt2_ranks()
    package = importlib.util.find_spec("bpe_openai")
    if package is None or package.origin is None:
        raise OSError("bpe-openai is not installed: pip install '.[test]'")
    packed = Path(package.origin).parent / "data" / f"{name}_base.tiktoken.gz"
    lines = gzip.decompress(packed.read_bytes()).splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def write_tiktoken(path: Path, name: str) -> None:
    """Writes the `.tiktoken` of ranks."""
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), r) for t, r in ranks(name).items()))


def of_tiktoken(pattern: str) -> tiktoken.Encoding:
    """A pattern of `PATTERNS` with its ranks, by tiktoken."""
    return tiktoken.Encoding(
        pattern, pat_str=PATTERNS[pattern], mergeable_ranks=ranks(RANKS[pattern]), special_tokens={}
    )


def of_tokenizers(pattern: str) -> tokenizers.Tokenizer:
    """A pattern of `PATTERNS` with its ranks, by tokenizers."""
    tokens = ranks(RANKS[pattern])
    vocab = {spell(token): rank for token, rank in tokens.items()}
    merges = gpt2_files.gpt2_merges() if pattern == "gpt2" else all_merges(RANKS[pattern])
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pattern != "gpt2"))
    made.pre_tokenizer = pre_tokenizer(pattern)
    made.decoder = decoders.ByteLevel()
    return made


def of_gguf(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer of SmolLM2's GGUF file, by tokenizers."""
    metadata = _core.Gguf(path)
    tokens = metadata.get("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges")]
    made = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(tokens[:17])
    return made


def pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    if pattern == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    # In Oniguruma `$` holds at every end of a line, and `+` after `{1,3}` repeats.
    written = (
        LLAMA3.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+") if pattern == "cl100k" else PATTERNS[pattern]
    )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(written), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@cache
def all_merges(name: str) -> list[tuple[str, str]]:
    """Every way to cut each token into two tokens, as the files that are converted from ranks list them."""
    tokens = ranks(name)
    spelled = {token: spell(token) for token in tokens}
    return [
        (spelled[token[:cut]], spelled[token[cut:]])
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in tokens and token[cut:] in tokens
    ]
