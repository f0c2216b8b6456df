"""Writing safetensors: the `safetensors` package reads back the bits, and so do we."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file

from llmcore._core import SafeTensors
from llmcore.arrays import LazyArray, bfloat16_bits
from llmcore.safetensors_file import write_safetensors, write_sharded

DTYPES = ["?", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", ">f4", ">i8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)
NAMES = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.astype(a.dtype.newbyteorder("<")).tobytes() == b.tobytes()


@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=5), metadata=st.dictionaries(NAMES, NAMES, max_size=2))
def test_the_package_reads_the_same_bits(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    write_safetensors(path, tensors, metadata)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(same_bits(tensors[name], read[name]) for name in tensors)
    with safetensors.safe_open(path, "numpy") as file:
        assert (file.metadata() or {}) == metadata
    ours = SafeTensors(path)
    assert sorted(ours.names()) == sorted(tensors) and ours.metadata() == metadata


@given(tensors=st.dictionaries(NAMES, ARRAYS, max_size=5))
def test_every_tensor_stands_at_a_multiple_of_its_size(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("st") / "x.safetensors"
    write_safetensors(path, tensors)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    for name, entry in header.items():
        assert entry["data_offsets"][0] % max(tensors[name].itemsize, 1) == 0


def test_what_is_not_contiguous(tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {
        "transposed": grid.T,
        "every other": grid[::2, ::-1],
        "broadcast": np.broadcast_to(grid[0], (3, 6)),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)


@given(
    high=hnp.arrays(np.uint32, 64, elements=st.integers(0, 0xFFFF)),
    low=hnp.arrays(np.uint32, 64, elements=st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])),
)
def test_bfloat16_is_rounded_to_nearest_even(high, low):
    bits = (high << 16) | low
    values = bits.view(np.float32)
    rounded = bfloat16_bits(values)
    back = (rounded.astype(np.uint32) << 16).view(np.float32)
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(back), nan)
    # The two neighbours of a value in bfloat16; beyond the largest the next place is infinity's.
    below = bits & 0xFFFF0000
    distance = (bits - below).astype(np.int64)
    up = (distance > 0x8000) | ((distance == 0x8000) & ((bits >> 16) % 2 == 1))
    expected = ((below >> 16) + up).astype(np.uint16)
    assert np.array_equal(rounded[~nan], expected[~nan])


def test_numbers_are_read_when_it_is_their_turn(tmp_path):
    read = []

    def tensor(name, dtype):
        def numbers():
            read.append(name)
            return np.full((2, 3), 1 + 2**-9, np.float32)

        return LazyArray(dtype, (2, 3), numbers)

    write_safetensors(tmp_path / "x.safetensors", {"a": tensor("a", "BF16"), "b": tensor("b", "F32")})
    assert read == ["b", "a"]  # wider types first
    ours = SafeTensors(tmp_path / "x.safetensors")
    assert ours.info("a") == ((2, 3), "BF16") and ours.info("b") == ((2, 3), "F32")
    assert np.all(ours.read("a") == 1) and np.all(ours.read("b") == 1 + 2**-9)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(2, np.complex64), r"w: found type complex64, expected one of BOOL, U8"),
        (LazyArray("F8", (2,), lambda: np.zeros(2)), r"w: found type F8"),
        (LazyArray("F32", (2,), lambda: np.zeros(3, np.float32)), r"w: found shape \[3\], expected \[2\]"),
        (LazyArray("F32", (2,), lambda: np.zeros(2)), r"w: found float64, expected float32 for F32"),
        (LazyArray("I64", (2,), lambda: np.zeros(2, np.float32)), r"w: found float32, expected int64"),
    ],
)
def test_what_cannot_be_written_leaves_what_was_there(tmp_path, array, message):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"old": np.ones(1, np.float32)})
    with pytest.raises(ValueError, match=message):
        write_safetensors(path, {"w": array})
    assert list(load_file(path)) == ["old"] and [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="found a tensor of the name '__metadata__'"):
        write_safetensors(path, {"__metadata__": array})


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_a_write_that_fails_names_the_file_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"old": np.ones(1, np.float32)})
    program = """
import resource, sys
import numpy as np
from llmcore.safetensors_file import write_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
write_safetensors(sys.argv[1], {"new": np.ones(1 << 20, np.float32)})
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().endswith(f"File too large: '{path}'"), done.stderr
    assert list(load_file(path)) == ["old"] and [entry.name for entry in tmp_path.iterdir()] == [path.name]


@given(sizes=st.lists(st.integers(0, 30), max_size=8), most=st.integers(1, 200))
def test_shards(tmp_path_factory, sizes, most):
    folder = tmp_path_factory.mktemp("st")
    tensors = {f"t{i}": np.full(size, i, np.float32) for i, size in enumerate(sizes)}
    files = write_sharded(folder, tensors, max_shard_size=most)
    assert sorted(files) == sorted(folder.iterdir())
    source = SafeTensors(folder)
    assert sorted(source.names()) == sorted(tensors)
    assert all(np.array_equal(source.read(name), tensors[name]) for name in tensors)
    if len(files) == 1:
        assert files[0].name == "model.safetensors" and 4 * sum(sizes) <= max(
            most, *(4 * size for size in sizes), 0
        )
        return
    assert 4 * sum(sizes) > most
    *shards, index = files
    listed = json.loads(index.read_text())
    assert listed["metadata"] == {"total_size": 4 * sum(sizes)}
    assert {file.name for file in shards} == set(listed["weight_map"].values())
    for i, file in enumerate(shards, 1):
        assert file.name == f"model-{i:05}-of-{len(shards):05}.safetensors"
        held = load_file(file)
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= most
