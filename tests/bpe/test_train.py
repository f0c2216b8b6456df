"""Training: vocabulary and merges equal those of the `tokenizers` package."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texts import snippets
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmcore import _core
from llmcore.tokenizer import Tokenizer

WHOLE = r"[\s\S]+"
"""A text is one piece."""

# As Oniguruma, the engine of `tokenizers`, reads them.
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\p{L}+|\s|[^\p{L}\s]+(?=.)|.": r"\p{L}+|\s|[^\p{L}\s]+(?=.)|.",
    WHOLE: WHOLE,
}

TIKTOKEN_CL100K = PATTERNS["cl100k"].replace(r"\z", "$")
"""As Rust's regular expressions write it."""

MANY = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def trained_by_tokenizers(
    source: list[str] | list[Path], vocab_size: int, pattern: str, **options: Any
) -> dict[str, Any]:
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        **options,
    )
    if source and isinstance(source[0], Path):
        theirs.train([str(path) for path in source], trainer)
    else:
        theirs.train_from_iterator(source, trainer)
    return json.loads(theirs.to_str())


def trained(source: list[str] | list[Path], vocab_size: int, pattern: str, **options: Any) -> dict[str, Any]:
    return json.loads(Tokenizer.train(source, vocab_size, pattern=pattern, **options).json or "")


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours["model"]["merges"] == theirs["model"]["merges"]
    assert ours["model"]["vocab"] == theirs["model"]["vocab"]
    assert ours["added_tokens"] == theirs["added_tokens"]


few_letters = st.text("ab", max_size=40)
letters = st.text("abc ", max_size=60)
special_tokens = st.lists(st.sampled_from(["<|end|>", "a", "ab", "Ġa", "é", "x y"]), max_size=4)


@MANY
@given(
    texts=st.lists(st.one_of(few_letters, letters, snippets), max_size=12),
    more=st.integers(0, 60),
    pattern=st.sampled_from(sorted(PATTERNS)),
    min_frequency=st.integers(0, 4),
    special=special_tokens,
)
def test_equals_tokenizers(
    texts: list[str], more: int, pattern: str, min_frequency: int, special: list[str]
) -> None:
    vocab_size = 256 + len(special) + more
    options = {"min_frequency": min_frequency, "special_tokens": special}
    assert_equal(
        trained(texts, vocab_size, pattern, **options),
        trained_by_tokenizers(texts, vocab_size, pattern, **options),
    )


@MANY
@given(text=st.text("ab", min_size=20, max_size=200), more=st.integers(10, 200))
def test_one_long_piece(text: str, more: int) -> None:
    """Overlaps and ties abound."""
    assert_equal(trained([text], 256 + more, WHOLE), trained_by_tokenizers([text], 256 + more, WHOLE))


@pytest.fixture(scope="module")
def sources() -> list[Path]:
    """Python's own library, 2 MB of it."""
    size, paths = 0, []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        size += path.stat().st_size
        paths.append(path)
        if size > 2e6:
            break
    return paths


@pytest.mark.parametrize(
    ("pattern", "vocab_size"), [("gpt2", 4000), ("cl100k", 1000), ("llama3", 2000), ("qwen2", 1500)]
)
def test_real_texts(sources: list[Path], pattern: str, vocab_size: int) -> None:
    texts = [path.read_bytes().decode() for path in sources]
    assert_equal(trained(texts, vocab_size, pattern), trained_by_tokenizers(texts, vocab_size, pattern))
    one = ["".join(texts)]
    assert_equal(trained(one, vocab_size, pattern), trained_by_tokenizers(one, vocab_size, pattern))


@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
def test_files_are_cut_by_line(sources: list[Path], pattern: str) -> None:
    theirs = trained_by_tokenizers(sources, 1500, pattern)
    assert_equal(trained(sources, 1500, pattern), theirs)
    lines = [line for path in sources for line in path.read_bytes().decode().splitlines(keepends=True)]
    assert_equal(trained(lines, 1500, pattern), theirs)


def test_what_is_saved_has_equal_ids_everywhere(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Tokenizer.train(sources[:20], 1200, pattern="cl100k", special_tokens=["<|end|>", "<|pad|>"])
    ours.save(tmp_path / "tokenizer.json")
    again = Tokenizer.from_file(tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert (ours.vocab_size, ours.special_ids) == (1200, [0, 1])
    for text in [
        "<|end|>a\n\n b  \n",
        "  ",
        "don't 12345 漢字\r\n\r\nx  y\n ",
        sources[30].read_text("utf-8"),
    ]:
        ids = ours.encode(text)
        assert ids == again.encode(text) == theirs.encode(text).ids, text
        assert ours.decode(ids) == text == theirs.decode(ids, skip_special_tokens=False)
    ours.save(tmp_path / "ranks.tiktoken")
    ranks = Tokenizer.from_file(
        tmp_path / "ranks.tiktoken", pattern="cl100k", special_tokens={"<|end|>": 0, "<|pad|>": 1}
    )
    text = "<|end|>" + sources[31].read_text("utf-8")
    assert ranks.encode(text) == ours.encode(text)
    # It would read a file of this name that it has kept from another day.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    theirs = tiktoken.Encoding(
        "ours",
        pat_str=TIKTOKEN_CL100K,
        mergeable_ranks=tiktoken.load.load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken")),
        special_tokens={"<|end|>": 0, "<|pad|>": 1},
    )
    for path in sources[20:30]:
        text = path.read_text("utf-8") + "<|end|>漢字 é🙂\r\n  x"
        assert theirs.encode(text, allowed_special="all") == ours.encode(text)
    with pytest.raises(ValueError, match="trained"):
        again.save(tmp_path / "copy.json")
    with pytest.raises(ValueError, match=r"\.tiktoken"):
        ours.save(tmp_path / "tokenizer.bin")


def test_errors_say_what_was_expected(sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Path"):
        Tokenizer.train("a text", 300)
    for wrong in (["a text", 3], [3]):
        with pytest.raises(TypeError, match="source: found an item of type int"):
            Tokenizer.train(wrong, 300)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="vocab_size: found 256, expected at least 257"):
        # At once: no text is counted before.
        Tokenizer.train([tmp_path / "none.txt"], 256, special_tokens=["<|end|>"])
    with pytest.raises(TypeError, match="special_tokens: found str"):
        Tokenizer.train(["a text"], 300, special_tokens="<|end|>")
    with pytest.raises(ValueError, match="special_tokens"):
        Tokenizer.train(["a text"], 300, special_tokens=[""])
    with pytest.raises(ValueError, match="pattern"):
        Tokenizer.train(["a text"], 300, pattern="gpt5")
    with pytest.raises(FileNotFoundError):
        Tokenizer.train(tmp_path / "none.txt", 300)
    (tmp_path / "bytes.txt").write_bytes(b"abc\n\xff")
    with pytest.raises(ValueError, match="byte 4"):
        Tokenizer.train(tmp_path / "bytes.txt", 300)
    trainer = _core.BpeTrainer(256, "gpt2")
    trainer.finish()
    with pytest.raises(ValueError, match="BpeTrainer"):
        trainer.add_texts(["a"])


def test_threads_do_not_show(sources: list[Path]) -> None:
    program = (
        "import sys, hashlib; from pathlib import Path; from llmcore.tokenizer import Tokenizer;"
        "tokenizer = Tokenizer.train(map(Path, sys.argv[1:]), 1500, pattern='o200k');"
        "print(hashlib.sha256(tokenizer.json.encode()).hexdigest())"
    )
    digests = set()
    for threads in ("1", "2", "5"):
        environment = os.environ | {"LLMCORE_THREADS": threads}
        command = [sys.executable, "-c", program, *map(str, sources)]
        digests.add(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    assert len(digests) == 1


def test_an_iterator_that_fails_is_heard() -> None:
    def texts():  # type: ignore[no-untyped-def]
        yield "a"
        raise OSError("the disk is on fire")

    with pytest.raises(OSError, match="on fire"):
        Tokenizer.train(texts(), 300)


def test_progress_is_told_and_may_stop() -> None:
    trainer = _core.BpeTrainer(100_000, WHOLE)
    trainer.add_texts(["".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000))])

    def stop(tokens: int) -> None:
        assert tokens > 256
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.finish(stop)
