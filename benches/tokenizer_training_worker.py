"""One training run of one engine: `tokenizer_training_worker.py ENGINE MODE VOCAB_SIZE FILE`.

Prints a line of JSON: seconds, seconds of processor time, the peak memory in MB, and a hash of the merges.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

Merges = list[tuple[str, str]]
"""Pairs of tokens in the byte alphabet of GPT-2."""
Training = Callable[[], object]

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DOCUMENT_LINES = 100
THREADS = 2


def documents(path: Path) -> list[str]:
    """The file, in documents of some lines."""
    lines = path.read_bytes().decode().splitlines(keepends=True)
    return ["".join(lines[i : i + DOCUMENT_LINES]) for i in range(0, len(lines), DOCUMENT_LINES)]


def of_json(text: str) -> Merges:
    return [(left, right) for left, right in json.loads(text)["model"]["merges"]]


def llmcore_engine(mode: str, vocab_size: int, path: Path) -> tuple[Training, Callable[[], Merges]]:
    from llmcore import Tokenizer

    source = path if mode == "file" else documents(path)
    made = []

    def train() -> None:
        made.append(Tokenizer.train(source, vocab_size, pattern="gpt2", progress=False))

    return train, lambda: of_json(made[0].json or "")


def tokenizers_engine(mode: str, vocab_size: int, path: Path) -> tuple[Training, Callable[[], Merges]]:
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    if mode == "file":
        return lambda: tokenizer.train([str(path)], trainer), lambda: of_json(tokenizer.to_str())
    texts = documents(path)
    return lambda: tokenizer.train_from_iterator(texts, trainer), lambda: of_json(tokenizer.to_str())


def gigabpe_engine(mode: str, vocab_size: int, path: Path) -> tuple[Training, Callable[[], Merges]]:
    import gigabpe

    if mode != "file":
        raise ValueError("gigabpe reads files")
    # Bytes that do not occur are no tokens of its vocabularies: so there will be as many merges.
    vocab_size += len(set(path.read_bytes())) - 256
    made = []

    def train() -> None:
        options = {"special_tokens": [], "threads": THREADS, "pretokenizer": "bytelevel"}
        made.append(gigabpe.train_bpe([str(path)], vocab_size, **options))

    return train, lambda: [(left, right) for left, right in made[0][1]]


def rustbpe_engine(mode: str, vocab_size: int, path: Path) -> tuple[Training, Callable[[], Merges]]:
    import rustbpe

    if mode == "file":
        raise ValueError("rustbpe reads an iterator")
    texts = documents(path)
    tokenizer = rustbpe.Tokenizer()

    def merges() -> Merges:
        # It tells tokens, not merges, and claims no order of pairs that are equally frequent.
        return [(repr(token), "") for token, _ in tokenizer.get_mergeable_ranks()[256:]]

    return lambda: tokenizer.train_from_iterator(texts, vocab_size, pattern=PATTERN), merges


ENGINES = {
    "llmcore": llmcore_engine,
    "gigabpe": gigabpe_engine,
    "rustbpe": rustbpe_engine,
    "tokenizers": tokenizers_engine,
}


def processor_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def main() -> None:
    engine, mode, vocab_size, file = sys.argv[1:]
    train, merges = ENGINES[engine](mode, int(vocab_size), Path(file))
    start, processor = time.perf_counter(), processor_seconds()
    train()
    seconds, processor = time.perf_counter() - start, processor_seconds() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    digest = hashlib.sha256(json.dumps(merges()).encode()).hexdigest()[:16]
    print(json.dumps({"seconds": seconds, "processor": processor, "peak": peak, "merges": digest}))


if __name__ == "__main__":
    main()
