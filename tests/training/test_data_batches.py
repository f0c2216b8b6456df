"""Shuffles, windows, documents and batches: every token once an epoch, and the same from any position on."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.training import Batches, Corpus, Documents, PackedWindows, count_labels
from llmcore.training.data.shuffle import shuffled

LENGTHS = st.lists(st.integers(1, 9), max_size=12)


def corpus(lengths: list[int], counted: bool = False) -> Corpus:
    """Documents in which no token is like another; of every three, one counts."""
    ids = np.arange(sum(lengths), dtype=np.uint32)
    return Corpus(ids, np.cumsum([0, *lengths]), ids % 3 == 0 if counted else None)


def flat(batch: dict) -> list[int]:
    return [int(id) for row in batch["input_ids"] for id in row]


# ---------------------------------------------------------------------------------------------------
# The shuffle


@given(length=st.integers(1, 300), seed=st.integers(-(2**63), 2**64), epoch=st.integers(0, 2**40))
def test_a_shuffle_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    assert sorted(shuffled(i, length, seed, epoch) for i in range(length)) == list(range(length))


def test_the_order_of_a_seed_is_fixed() -> None:
    """On every machine and in every version: a training that is resumed counts on it."""
    assert [shuffled(i, 10, 0, 0) for i in range(10)] == [3, 1, 4, 0, 9, 8, 2, 6, 5, 7]
    assert shuffled(123_456_789, 10**12, 7, 3) == 40_833_671_885


@pytest.mark.parametrize("length", [2, 3, 4, 5])
def test_every_permutation_is_about_as_likely(length: int) -> None:
    draws = 200 * [0, 0, 2, 6, 24, 120][length]
    orders = Counter(tuple(shuffled(i, length, seed, 0) for i in range(length)) for seed in range(draws))
    assert len(orders) == draws // 200
    # Of 200 expected each, a fair shuffle is within five standard deviations.
    assert all(abs(count - 200) < 5 * 200**0.5 for count in orders.values())


def test_epochs_and_neighbours_are_not_alike() -> None:
    length = 1000
    first, second = ([shuffled(i, length, 1, epoch) for i in range(length)] for epoch in (0, 1))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert sum(abs(a - b) == 1 for a, b in pairwise(first)) < 15
    assert abs(np.corrcoef(np.arange(length), first)[0, 1]) < 0.1


# ---------------------------------------------------------------------------------------------------
# Windows and documents


@given(lengths=LENGTHS, seq_len=st.integers(2, 12), respect=st.booleans(), counted=st.booleans())
def test_every_token_is_in_one_window(lengths: list[int], seq_len: int, respect: bool, counted: bool) -> None:
    data = corpus(lengths, counted)
    if len(data.ids) < 2:
        with pytest.raises(ValueError, match=r"corpus: found . tokens, expected at least 2"):
            PackedWindows(data, seq_len)
        return
    windows = PackedWindows(data, seq_len, respect_documents=respect)
    examples = [windows[i] for i in range(len(windows))]
    taught = len(data.ids) - (len(data.ids) % seq_len == 1)
    assert [id for example in examples for id in flat(example)] == list(range(taught))
    assert [sum(map(len, example["input_ids"])) for example in examples] == windows.lengths.tolist()
    starts = set(data.starts.tolist())
    for example in examples:
        assert all(len(row) for row in example["input_ids"])
        assert all(row.dtype == np.int64 for row in example["input_ids"])
        if respect:
            assert not any(id in starts for row in example["input_ids"] for id in row[1:].tolist())
            assert all(row[0] in starts for row in example["input_ids"][1:])
        else:
            assert len(example["input_ids"]) == 1
        assert ("labels" in example) == counted
        for ids, labels in zip(example["input_ids"], example.get("labels", []), strict=False):
            assert labels.tolist() == [id if id % 3 == 0 else -100 for id in ids.tolist()]


@given(lengths=LENGTHS, max_length=st.none() | st.integers(1, 10), counted=st.booleans())
def test_documents_are_sequences(lengths: list[int], max_length: int | None, counted: bool) -> None:
    data = corpus(lengths, counted)
    expected = [data.ids[a:b][:max_length].tolist() for a, b in pairwise(data.starts.tolist())]
    kept = [ids for ids in expected if any(id % 3 == 0 or not counted for id in ids[1:])]
    if not kept:
        with pytest.raises(ValueError, match="of which nothing counts"):
            Documents(data, max_length)
        return
    documents = Documents(data, max_length)
    assert [flat(documents[i]) for i in range(len(documents))] == kept
    assert documents.lengths.tolist() == list(map(len, kept))
    assert documents.left_out == len(expected) - len(kept)
    assert all(count_labels(documents[i]) for i in range(len(documents)))


def test_windows_are_checked() -> None:
    with pytest.raises(ValueError, match="seq_len: found 1, expected at least 2"):
        PackedWindows(corpus([9]), 1)


# ---------------------------------------------------------------------------------------------------
# Batches


SIZES = st.fixed_dictionaries({"batch_size": st.integers(1, 5)}) | st.fixed_dictionaries(
    {"max_tokens": st.integers(4, 20)}
)
OPTIONS = st.builds(
    lambda size, rest: size | rest,
    SIZES,
    st.fixed_dictionaries(
        {
            "gradient_accumulation_steps": st.integers(1, 3),
            "seed": st.integers(0, 9),
            "shuffle": st.booleans(),
        }
    ),
)


@settings(max_examples=200)
@given(lengths=st.lists(st.integers(2, 9), min_size=1, max_size=9), options=OPTIONS, epochs=st.integers(1, 3))
def test_every_token_once_an_epoch(lengths: list[int], options: dict, epochs: int) -> None:
    data = PackedWindows(corpus(lengths), 4, respect_documents=True)
    batches = Batches(data, **options, epochs=epochs)
    assert not options["shuffle"] or len(data) < 9 or batches._index(0) != batches._index(len(data))
    steps = list(batches)
    assert len(steps) == len(batches)
    assert batches.epoch == epochs
    taught = int(data.lengths.sum())
    seen = [id for step in steps for batch in step for id in flat(batch)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * taught : (epoch + 1) * taught]) == list(range(taught))
    if not options["shuffle"]:
        assert seen == list(range(taught)) * epochs
    full = [batch for step in steps for batch in step][:-1]
    assert all(len(step) == options["gradient_accumulation_steps"] for step in steps[:-1])
    if "max_tokens" in options:
        assert all(len(flat(batch)) <= options["max_tokens"] for batch in full)
        assert all(len(flat(batch)) > options["max_tokens"] - 4 for batch in full)


@settings(max_examples=100)
@given(
    options=OPTIONS, before=st.integers(0, 30), lengths=st.lists(st.integers(2, 4), min_size=1, max_size=9)
)
def test_resuming_anywhere_goes_straight_on(options: dict, before: int, lengths: list[int]) -> None:
    data = Documents(corpus(lengths))
    straight = Batches(data, **options)
    for _ in range(before):
        next(straight)
    resumed = Batches(data, **options)
    resumed.load_state_dict(straight.state_dict())
    for expected, found in islice(zip(straight, resumed, strict=True), 10):
        assert [flat(batch) for batch in found] == [flat(batch) for batch in expected]
    assert resumed.state_dict() == straight.state_dict()


def test_a_state_of_other_data_is_refused() -> None:
    state = Batches(Documents(corpus([3, 4])), batch_size=1).state_dict()
    for other in (
        Batches(Documents(corpus([3, 5])), batch_size=1),
        Batches(Documents(corpus([3, 4])), batch_size=1, seed=1),
        Batches(Documents(corpus([3, 4])), batch_size=1, shuffle=False),
        Batches(Documents(corpus([3, 4]), 2), batch_size=1),
        Batches(PackedWindows(corpus([3, 4]), 4), batch_size=1),
    ):
        with pytest.raises(ValueError, match=r"data: found the examples .* has changed"):
            other.load_state_dict(state)
    Batches(Documents(corpus([3, 4])), batch_size=2, epochs=3).load_state_dict(state)


def test_labels_go_with_their_ids() -> None:
    [[batch]] = Batches(Documents(corpus([4, 5], counted=True)), batch_size=2, shuffle=False, epochs=1)
    assert [row.tolist() for row in batch["labels"]] == [[0, -100, -100, 3], [-100, -100, 6, -100, -100]]
    assert count_labels(batch) == 2


def test_a_step_in_which_nothing_counts_is_an_error() -> None:
    windows = PackedWindows(corpus([1, 1, 1, 1, 2, 2]), 4, respect_documents=True)
    batches = Batches(windows, batch_size=1, shuffle=False)
    with pytest.raises(ValueError, match="examples 0 to 0: found no label that counts"):
        next(batches)
    assert count_labels(next(batches)[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "batch_size, max_tokens: found None, None"),
        ({"batch_size": 1, "max_tokens": 1}, "expected one of them"),
        ({"batch_size": 0}, "batch_size: found 0"),
        ({"batch_size": 1, "gradient_accumulation_steps": 0}, "gradient_accumulation_steps: found 0"),
        ({"batch_size": 1, "epochs": 0}, "epochs: found 0"),
        ({"max_tokens": 4}, "max_tokens: found 4, expected at least 5"),
    ],
)
def test_arguments_are_checked(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(Documents(corpus([3, 5])), **arguments)


def test_without_an_end_there_is_no_length() -> None:
    with pytest.raises(TypeError, match="epochs=None"):
        len(Batches(Documents(corpus([3])), batch_size=1))
