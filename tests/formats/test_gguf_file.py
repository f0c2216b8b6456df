"""Writing GGUF: the `gguf` package reads back the same values and bits, and so do we."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llmcore._core import Gguf
from llmcore.arrays import LazyArray
from llmcore.gguf_file import write_gguf

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
KINDS = "u1 i1 u2 i2 u4 i4 u8 i8 f4 f8 ?".split()  # noqa: SIM905
NUMBERS = st.sampled_from(KINDS).flatmap(lambda kind: hnp.arrays(kind, st.integers(0, 5)))
VALUES = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(width=32, allow_nan=False), TEXTS,
    st.lists(TEXTS, max_size=4), NUMBERS, NUMBERS.filter(len).map(lambda array: array[0]),
)  # fmt: skip
DTYPES = ["f4", "f2", "f8", "i1", "i2", "i4", "i8", ">f4"]
TENSORS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
)
# Keys that mean something to readers.
RESERVED = {"general.alignment", "split.count"}


def same(a, b):
    if isinstance(a, str | list):
        return a == b
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


@given(
    metadata=st.dictionaries(NAMES.filter(lambda name: name not in RESERVED), VALUES, max_size=6),
    tensors=st.dictionaries(NAMES, TENSORS, max_size=4),
)
def test_both_readers_find_what_was_written(tmp_path_factory, metadata, tensors):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    write_gguf(path, metadata, tensors)
    ours = Gguf(path)
    assert set(ours.keys()) == set(metadata) and ours.names() == list(tensors)
    for key, value in metadata.items():
        found = ours.get(key)
        assert same(value, found), key
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype or not isinstance(found, np.ndarray)
    for name, array in tensors.items():
        assert ours.info(name)[0] == array.shape
        if array.dtype.kind == "f" and array.dtype.itemsize < 8:
            assert np.array_equal(ours.read(name), array.astype(np.float32), equal_nan=True)
    theirs = gguf.GGUFReader(path)
    for key, value in metadata.items():
        if not isinstance(value, list | np.ndarray) or len(value):  # of an empty array theirs has no type
            assert same(value, theirs.fields[key].contents()), key
    assert [tensor.name for tensor in theirs.tensors] == list(tensors)
    for tensor in theirs.tensors:
        assert tensor.data_offset % 32 == 0
        assert tensor.data.tobytes() == tensors[tensor.name].astype(tensor.data.dtype).tobytes()


def test_types(tmp_path):
    write_gguf(
        tmp_path / "x.gguf",
        {"a": 1, "b": 1 << 32, "c": -1, "d": 0.1, "e": True, "f": np.float64(0.1), "g": np.uint8(1)},
        {"bf16": LazyArray("BF16", (2, 3), lambda: np.full((2, 3), 1.001, np.float32))},
    )
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    found = {key: fields[key].types[0].name for key in "abcdefg"}
    expected = ["UINT32", "INT64", "INT64", "FLOAT32", "BOOL", "FLOAT64", "UINT8"]
    assert list(found.values()) == expected
    ours = Gguf(tmp_path / "x.gguf")
    assert ours.info("bf16") == ((2, 3), "BF16") and np.all(ours.read("bf16") == 1)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"k": None}, {}, r"k: found None, expected a string, a number"),
        ({"k": [1, 2]}, {}, r"k: found \[1, 2\], expected"),
        ({"k": np.eye(1)}, {}, r"k: found array.*, expected"),
        ({"k": np.zeros(2, np.float16)}, {}, r"k: found array.*, expected"),
        ({}, {"w": np.zeros(2, bool)}, r"w: found type BOOL, expected one of F32, F16"),
        ({}, {"w": np.zeros((1, 1, 1, 1, 1))}, r"w: found 5 dimensions, expected at most 4"),
        (
            {},
            {"w": LazyArray("F16", (2,), lambda: np.array([1, -1e6], np.float32))},
            r"w: found -1e\+06, expected at most 65504, the largest of float16",
        ),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, metadata, tensors, message):
    with pytest.raises(ValueError, match=message):
        write_gguf(tmp_path / "x.gguf", metadata, tensors)
    assert not list(tmp_path.iterdir())


def test_infinity_stays_infinite(tmp_path):
    values = np.array([np.inf, -np.inf, np.nan, 65504], np.float32)
    write_gguf(tmp_path / "x.gguf", {}, {"w": LazyArray("F16", (4,), lambda: values)})
    assert np.array_equal(Gguf(tmp_path / "x.gguf").read("w"), values, equal_nan=True)
