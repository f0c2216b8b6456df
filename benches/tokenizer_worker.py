"""One tokenizer in a process of its own: `python benches/tokenizer_worker.py ENGINE JOB VOCABULARY FILE`.

Prints a line of JSON: for each measurement its seconds, or a row of them, and the SHA-256 of the ids. Time
is that of the processor, over all threads of the process, so that other work on the machine disturbs it
less and no engine gains by taking a second processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

for variable in ("LLMCORE_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np  # noqa: E402  (after the number of threads is set)

Array = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass
class Engine:
    """How an engine does each thing in the fastest way that it offers."""

    texts: Callable[[list[str]], Array]
    """The ids of texts, one after the other."""
    array: Callable[[str], object]
    """The ids of one text in whatever form the engine likes best."""
    listed: Callable[[str], list[int]]
    decode: Callable[[Array, list[int]], bytes] | None = None
    """From ids, given both as an array and as a list."""


def llmcore_engine(path: Path, _: str) -> Engine:
    import llmcore

    tokenizer = llmcore.Tokenizer.from_file(path, pattern=path.stem)
    return Engine(
        lambda texts: tokenizer.encode_batch(texts, flat=True)[0],
        tokenizer.encode_array,
        tokenizer.encode,
        lambda ids, _: tokenizer.decode_bytes(ids),
    )


def gigatoken_engine(path: Path, _: str) -> Engine:
    import awkward
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_tiktoken(path, path.stem, {})
    return Engine(
        lambda texts: np.asarray(awkward.flatten(tokenizer.encode_batch(texts, parallel=False))),
        tokenizer.encode,
        lambda text: tokenizer.encode_batch_list([text], parallel=False)[0],
        lambda ids, _: tokenizer.decode(ids),
    )


def fastokens_engine(path: Path, _: str) -> Engine:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_file(str(path.with_suffix(".json")))
    return Engine(
        lambda texts: np.frombuffer(tokenizer.encode_batch_flat(texts)[0], np.uint32),
        tokenizer.encode_ordinary,
        lambda text: tokenizer.encode_ordinary(text).ids,
        lambda _, ids: tokenizer.decode(ids).encode(),
    )


def snaptokens_engine(path: Path, _: str) -> Engine:
    import snaptokens

    tokenizer = snaptokens.Tokenizer.from_file(str(path.with_suffix(".json")))
    return Engine(
        lambda texts: np.frombuffer(tokenizer.encode_batch_flat(texts)[0], np.uint32),
        tokenizer.encode,
        lambda text: tokenizer.encode(text).ids,
        lambda _, ids: tokenizer.decode(ids).encode(),
    )


def tokie_engine(path: Path, _: str) -> Engine:
    import tokie

    tokenizer = tokie.Tokenizer.from_json(str(path.with_suffix(".json")))

    def listed(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    return Engine(
        lambda texts: np.array([id for text in texts for id in listed(text)], np.uint32),
        lambda text: tokenizer.encode(text, add_special_tokens=False),
        listed,
        lambda _, ids: tokenizer.decode_bytes(ids),
    )


def quicktok_engine(path: Path, _: str) -> Engine:
    import quicktok

    # It has no vocabulary of GPT-2; the error leaves it out.
    tokenizer = quicktok.get_encoding(f"{path.stem}_base")
    return Engine(
        lambda texts: tokenizer.encode_batch(texts, 1, False)[0],
        lambda text: tokenizer.encode_batch([text], 1, False)[0],
        tokenizer.encode_ordinary,
        lambda _, ids: tokenizer.decode_bytes(ids),
    )


def tiktoken_engine(path: Path, pattern: str) -> Engine:
    import tiktoken
    import tiktoken.load

    ranks = tiktoken.load.load_tiktoken_bpe(str(path))
    encoding = tiktoken.Encoding(path.stem, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return Engine(
        lambda texts: np.concatenate([np.array(encoding.encode_ordinary(text), np.uint32) for text in texts]),
        encoding.encode_ordinary,
        encoding.encode_ordinary,
        lambda _, ids: encoding.decode_bytes(ids),
    )


def tokenizers_engine(path: Path, _: str) -> Engine:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path.with_suffix(".json")))

    def listed(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    return Engine(
        lambda texts: np.array([id for text in texts for id in listed(text)], np.uint32),
        listed,
        listed,
        lambda _, ids: tokenizer.decode(ids, skip_special_tokens=False).encode(),
    )


ENGINES = {
    "llmcore": llmcore_engine,
    "gigatoken": gigatoken_engine,
    "fastokens": fastokens_engine,
    "snaptokens": snaptokens_engine,
    "quicktok": quicktok_engine,
    "tokie": tokie_engine,
    "tiktoken": tiktoken_engine,
    "tokenizers": tokenizers_engine,
}

Answer = dict[str, tuple[float, str]]


def timed(work: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """Seconds of the fastest of some runs, and the result. A run is milliseconds or longer."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def digest(ids: object) -> str:
    return hashlib.sha256(np.asarray(ids, np.uint32).tobytes()).hexdigest()[:16]


def read(engine: Engine, texts: list[str]) -> Answer:
    """The first pass over documents, later ones, and those to lists."""
    cold, ids = timed(lambda: engine.texts(texts))
    warm, _ = timed(lambda: engine.texts(texts), 3)
    listed, rows = timed(lambda: [engine.listed(text) for text in texts], 2)
    answer = {
        "first pass": (cold, digest(ids)),
        "later passes": (warm, digest(ids)),
        "to lists": (listed, digest(np.concatenate([np.array(row, np.uint32) for row in rows]))),
    }
    if engine.decode:
        decode, as_list = engine.decode, ids.tolist()
        seconds, text = timed(lambda: decode(ids, as_list), 3)
        answer["decode"] = (seconds / max(len(text), 1), hashlib.sha256(text).hexdigest()[:16])
    return answer


def special(engine: Engine, texts: list[str]) -> Answer:
    """A short string, again and again, and each of the other texts once."""
    short, *others = texts
    engine.array(short)
    calls = 20_000
    seconds, _ = timed(lambda: [engine.array(short) for _ in range(calls)], 3)
    answer = {"0": (seconds / calls, digest(engine.listed(short)))}
    for i, text in enumerate(others, 1):
        seconds, ids = timed(lambda text=text: engine.texts([text]))
        answer[str(i)] = (seconds, digest(ids))
        print(json.dumps(answer), flush=True)
    return answer


def main() -> None:
    engine, job, path, pattern, file = sys.argv[1:]
    texts = json.loads(Path(file).read_text())
    made = ENGINES[engine](Path(path), pattern)
    print(json.dumps({"read": read, "special": special}[job](made, texts)), flush=True)


if __name__ == "__main__":
    main()
