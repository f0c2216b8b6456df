"""Forks, threads, Ctrl-C, very long texts and bytes that are no text: right ids afterwards, and no hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import vocabularies
from llmcore.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("true_ranks")

MEGABYTES = 50


@pytest.fixture(scope="module", params=vocabularies.PATTERNS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tiktoken.Encoding]:
    path = tmp_path_factory.mktemp("strain") / "ranks.tiktoken"
    vocabularies.write_tiktoken(path, vocabularies.RANKS[request.param])
    return Tokenizer.from_file(path, pattern=request.param), vocabularies.of_tiktoken(request.param)


def chunks(data: bytes) -> list[str | bytes]:
    """Text, and the invalid sequences between it, as Unicode cuts them (3.9, U+FFFD substitution of maximal
    subparts)."""
    try:
        return [data.decode()]
    except UnicodeDecodeError as error:
        before, bad = data[: error.start].decode(), data[error.start : error.end]
        return [before, bad, *chunks(data[error.end :])]


broken = st.lists(
    st.one_of(st.binary(max_size=6), st.text(max_size=6).map(str.encode), st.sampled_from(
        [b"\xff", b"\xc3", b"\xe6\xbc", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80",
         b"a" * 63, b"\x80" * 17, b" ", b"  ", b"\n", b"'s", b"12", "漢字".encode()]
    )),
    max_size=12,
).map(b"".join)  # fmt: skip


@settings(max_examples=400)
@given(data=broken)
def test_bytes_that_are_no_text_are_pieces_of_their_own(
    pair: tuple[Tokenizer, tiktoken.Encoding], data: bytes
) -> None:
    ours, theirs = pair
    expected: list[int] = []
    for chunk in chunks(data):
        if isinstance(chunk, bytes):
            expected += theirs._encode_single_piece(chunk)
        else:
            expected += theirs.encode_ordinary(chunk)
    ids = ours.encode(data)
    assert ids == expected == ours.encode_batch([data])[0].tolist()
    assert ours.count(data) == len(ids)
    assert ours.decode_bytes(ids) == data


@pytest.mark.parametrize("unit", ["\0", "a\0", "\0\0 \0\n", "don't \0 stop\n"])
def test_nul_is_a_character(pair: tuple[Tokenizer, tiktoken.Encoding], unit: str) -> None:
    ours, theirs = pair
    for times in (1, 2, 15, 16, 17, 63, 64, 65, 1000):
        text = unit * times
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("name", ["gpt2", "o200k"])
def test_fifty_megabytes(name: str, tmp_path: Path) -> None:
    """The ids of a long text of many scripts are those of its lines, which tiktoken knows."""
    vocabularies.write_tiktoken(tmp_path / "ranks.tiktoken", name)
    ours = Tokenizer.from_file(tmp_path / "ranks.tiktoken", pattern=name)
    theirs = vocabularies.of_tiktoken(name)
    lines = ["I'd say \0 it's 12345 times “naïve”.\n", "漢字かな混じり文、\n", "Привет, мир!\n",
             "🙂👩\u200d👩 ok\n", "x" * 999 + "\n"]  # fmt: skip
    part = "".join(lines * 40)
    times = MEGABYTES * 1_000_000 // len(part.encode())
    # No piece reaches over the end of a line that a letter or a sign follows.
    expected = np.array([id for line in lines for id in theirs.encode_ordinary(line)] * 40, np.uint32)
    assert theirs.encode_ordinary(part) == expected.tolist()
    ids = ours.encode_array(part * times)
    assert np.array_equal(ids.reshape(times, -1), np.broadcast_to(expected, (times, len(expected))))
    assert ours.count(part * times) == ids.size
    assert ours.decode_bytes(ids) == (part * times).encode()


@pytest.mark.parametrize("unit", [" ", "\0"])
def test_fifty_megabytes_of_one_piece(unit: str, tmp_path: Path) -> None:
    """A run of one character becomes its longest token again and again, and then what is left."""
    vocabularies.write_tiktoken(tmp_path / "ranks.tiktoken", "cl100k")
    ours = Tokenizer.from_file(tmp_path / "ranks.tiktoken", pattern="cl100k")
    theirs = vocabularies.of_tiktoken("cl100k")
    first = theirs.encode_ordinary(unit * 10_000)[0]
    period = len(theirs.decode_single_token_bytes(first))

    def expected(length: int) -> NDArray[np.uint32]:
        few = theirs.encode_ordinary(unit * (length % period + 4 * period))
        return np.array([first] * (length // period - 4) + few, np.uint32)

    for length in range(10 * period, 12 * period):
        assert theirs.encode_ordinary(unit * length) == expected(length).tolist()
    length = MEGABYTES * 1_000_000
    ids = ours.encode_array(unit * length)
    assert np.array_equal(ids, expected(length))
    assert ours.decode_bytes(ids) == unit.encode() * length


PROGRAM = """
import os, random, signal, sys, threading, time, warnings
import numpy as np
from llmcore import Tokenizer

warnings.simplefilter("ignore")
tokenizer = Tokenizer.from_file(sys.argv[1], pattern="cl100k")
rng = random.Random(1)
words = ["don't", " stop", "  ", "漢字かな", " 12345", "\\n\\n", "🙂", " naïve", "'LL", "Zebra", "qzxjv" * 9]

def text(count):
    return "".join(rng.choices(words, k=count))

texts = [text(count) for count in (1, 3, 30, 300, 3_000, 100_000)]
expected = [tokenizer.encode(text) for text in texts]
flat = [id for ids in expected for id in ids]

def right():
    one = [tokenizer.encode(text) for text in texts] == expected
    counted = [tokenizer.count(text) for text in texts] == [len(ids) for ids in expected]
    batch = [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    array = tokenizer.encode_array(texts[-1]).tolist() == expected[-1]
    back = [tokenizer.decode(ids) for ids in expected] == texts
    offsets = tokenizer.encode(texts[3], with_offsets=True)[0] == expected[3]
    return one and counted and batch and array and back and offsets

def in_threads(work, count):
    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    return threads

assert right()
"""

FORK = """
stop = False

def busy(i):
    while not stop:
        tokenizer.count(texts[3 + i % 2])
        tokenizer.encode_batch(texts) if i == 0 else None

threads = in_threads(busy, 4)
# Now and then a thread holds a lock at the moment of the fork, which nobody opens in the child.
for i in range(400):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if (right() if i % 40 == 0 else tokenizer.encode(texts[3]) == expected[3]) else 1)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
stop = True
for thread in threads:
    thread.join(60)
assert right()
os._exit(0)
"""

THREADS = """
wrong = []

def work(i):
    for j in range(6):
        if not right():
            wrong.append(i)

for thread in in_threads(work, 16):
    thread.join(120)
    assert not thread.is_alive()
assert not wrong and right()
"""

INTERRUPT = """
def interrupted(work, delay):
    "Seconds from the signal to the exception."
    sent = []
    def send():
        time.sleep(delay)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    thread = threading.Thread(target=send)
    try:
        thread.start()
        while True:
            work()
    except KeyboardInterrupt:
        late = time.perf_counter() - sent[0]
    thread.join()
    return late

long = texts[-1] * 20
letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8_000_000))
works = [
    lambda: tokenizer.encode_array(long),
    lambda: tokenizer.encode(long),
    lambda: tokenizer.count(letters),
    lambda: tokenizer.encode(letters[:2_000_000], with_offsets=True),
    lambda: tokenizer.encode_batch(texts * 20),
    lambda: tokenizer.encode_batch([letters, long] * 2),
    lambda: tokenizer.encode(long.encode() + b"\\xff"),
    lambda: tokenizer.decode_bytes(tokenizer.encode_array(long)),
]
for work in works:
    for delay in (0.003, 0.02, 0.1):
        late = interrupted(work, delay)
        assert late < 5, late
        assert right()
"""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(FORK, id="fork", marks=pytest.mark.xfail(not hasattr(os, "fork"), reason="no fork")),
        pytest.param(THREADS, id="16_threads"),
        pytest.param(INTERRUPT, id="interrupt"),
    ],
)
def test_right_ids_afterwards(body: str, tmp_path: Path) -> None:
    """In a process of its own, which is killed when it hangs."""
    path = tmp_path / "ranks.tiktoken"
    vocabularies.write_tiktoken(path, "cl100k")
    command = [sys.executable, "-c", PROGRAM + body, str(path)]
    done = subprocess.run(
        command, env={**os.environ, "LLMCORE_THREADS": "2"}, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
