"""Training in little memory: counts that are written to disk, and rare pieces that are left out."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcore import tokenizer_training
from llmcore.tokenizer import Tokenizer

LITTLE = 8_000_000
"""Bytes: the counts of `texts` do not fit, merging them does, since most of their pieces are short."""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Many different words, code, and long pieces."""
    choose = random.Random(1)
    words = {"".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=4)) for _ in range(98_000)}
    code = [path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]]
    long = [letter * length for letter in "_-Жк" for length in range(1, 300, 3)]
    return [" ".join(sorted(words)), *(text.decode() for text in code if text.isascii()), *long]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go. Texts are counted one at a time."""
    monkeypatch.setattr(tokenizer_training, "_BATCH_CHARACTERS", 1)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def temporary_files(folder: Path) -> list[str]:
    """The files of the folder that this process has open, among them those without a name."""
    links = [os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.islink(link.path)]
    return [link for link in links if link.startswith(str(folder))]


@linux
def test_what_is_spilled_changes_nothing_and_leaves_nothing(texts: list[str], folder: Path) -> None:
    spilled = []

    def source() -> Iterator[str]:
        for _ in range(4):
            yield "\n".join(texts)
            spilled.extend(temporary_files(folder))

    with_little = Tokenizer.train(source(), 1000, max_memory=LITTLE)
    assert spilled
    assert temporary_files(folder) == list(folder.iterdir()) == []
    assert with_little.json == Tokenizer.train(source(), 1000).json


@linux
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_nothing_is_left_after_an_error(texts: list[str], folder: Path, error: type[BaseException]) -> None:
    def source() -> Iterator[str]:
        yield "\n".join(texts) * 4
        yield ""
        assert temporary_files(folder)
        raise error

    with pytest.raises(error):
        Tokenizer.train(source(), 1000, max_memory=LITTLE)
    assert temporary_files(folder) == list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(
    texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none"))):
        Tokenizer.train(["\n".join(texts) * 4], 1000, max_memory=LITTLE)


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    program = (
        "import resource, random; from llmcore.tokenizer import Tokenizer\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "text = ' '.join(hex(i) for i in range(500_000))\n"
        "try: Tokenizer.train([text], 300, max_memory=1_000_000)\n"
        "except OSError as error: print(error)"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(f"{tmp_path}: "), done
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_says_what_would_do(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="expected at least the") as refused:
        Tokenizer.train(texts, 1000, max_memory=1_000_000)
    least = re.search(r"at least the (\d+)", str(refused.value))
    assert least
    # What is known of pairs comes on top.
    assert Tokenizer.train(texts, 1000, max_memory=int(least[1]) + 2_000_000).vocab_size == 1000


def test_rare_pieces_are_left_out_and_counted() -> None:
    choose = random.Random(1)
    words = [" " + "".join(choose.choices("abcde", k=choose.randint(1, 6))) for _ in range(3000)]
    counts = Counter(words)
    frequent = [word for word in words if counts[word] >= 3]
    rare = [word for word in counts if counts[word] < 3]
    with pytest.warns(UserWarning, match="min_piece_count=3") as told:
        pruned = Tokenizer.train(["".join(words)], 1000, min_piece_count=3)
    assert (
        f"{len(rare):,} of {len(counts):,} different pieces, which are "
        f"{sum(counts[word] for word in rare):,} of {len(words):,} pieces of the source"
    ) in str(told[0].message)
    assert pruned.json == Tokenizer.train(["".join(frequent)], 1000).json
    assert json.loads(pruned.json or "")["model"]["merges"]
