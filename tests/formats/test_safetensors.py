"""Safetensors files and shards: what is written is read, and a file that lies is refused by name."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore._core import SafeTensors

HUGE = 2**60


def build(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file byte by byte, so that each field can lie. The header is JSON text, or becomes it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def open_bytes(folder: Path, content: bytes) -> SafeTensors:
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return SafeTensors(path)


def refuses(path: Path, pattern: str) -> None:
    with pytest.raises(ValueError) as caught:
        SafeTensors(path)
    message = str(caught.value)
    assert re.search(pattern, message, re.S), message
    assert len(message) < 600


# --- what is written is read ------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=4),
    dtype=st.sampled_from([np.float32, np.float16]),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_tensors(tmp_path_factory, shapes, dtype, metadata):
    path = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    arrays = {f"é{i}": np.random.default_rng(i).normal(size=s).astype(dtype) for i, s in enumerate(shapes)}
    safetensors.numpy.save_file(arrays, path, metadata or None)
    file = SafeTensors(path)
    assert file.metadata() == metadata
    assert sorted(file.names()) == sorted(arrays)
    for name, values in arrays.items():
        assert file.info(name) == (values.shape, "F32" if dtype == np.float32 else "F16")
        np.testing.assert_array_equal(file.read(name), values.astype(np.float32), strict=True)


def test_bfloat16_at_an_odd_address(tmp_path):
    values = np.array([[1.0, -2.5, 3.0e38]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    for spaces in range(1, 5):
        header = json.dumps({"x": entry([1, 3], 0, 6, "BF16")}).encode() + b" " * spaces
        file = open_bytes(tmp_path, build(header, bits))
        found = file.read("x")
        np.testing.assert_array_equal(found, (values.view(np.uint32) & 0xFFFF0000).view(np.float32))


def test_integers_are_listed_but_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    for dtype in "bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f8":
        safetensors.numpy.save_file({"x": np.ones(3, dtype), "w": np.ones(1, np.float32)}, path)
        file = SafeTensors(path)
        assert file.read("w") == 1
        with pytest.raises(
            ValueError, match=rf'{re.escape(str(path))}: tensor "x": found \w+, expected one of F32'
        ):
            file.read("x")


def write_shards(folder: Path) -> dict[str, np.ndarray]:
    arrays = {
        name: np.random.default_rng(i).normal(size=(2, 3)).astype(np.float32) for i, name in enumerate("abc")
    }
    safetensors.numpy.save_file({"a": arrays["a"], "c": arrays["c"]}, folder / "model-1.safetensors")
    safetensors.numpy.save_file({"b": arrays["b"]}, folder / "model-2.safetensors")
    write_index(folder, {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"})
    return arrays


def write_index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {"total_size": 72}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def test_shards(tmp_path):
    arrays = write_shards(tmp_path)
    for path in tmp_path, tmp_path / "model.safetensors.index.json":
        file = SafeTensors(path)
        assert sorted(file.names()) == ["a", "b", "c"]
        for name, values in arrays.items():
            np.testing.assert_array_equal(file.read(name), values, strict=True)


def test_a_folder_with_one_file(tmp_path):
    safetensors.numpy.save_file({"x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert SafeTensors(str(tmp_path)).read("x").tolist() == [1, 1]


def test_minilm(minilm_path):
    path = next(minilm_path.rglob("model.safetensors"))
    expected = safetensors.numpy.load_file(path)
    file = SafeTensors(path.parent)
    assert sorted(file.names()) == sorted(expected)
    for name, values in expected.items():
        if values.dtype == np.float32:
            np.testing.assert_array_equal(file.read(name), values, strict=True)


# --- a file that lies is refused --------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.safetensors"))):
        SafeTensors(tmp_path / "none.safetensors")
    refuses(tmp_path, r"weights: found none, expected model\.safetensors or model\.safetensors\.index\.json")


X = entry([2], 0, 8)
LIES = {
    "empty": (b"", "size: found an empty file, expected a header"),
    "seven bytes": (bytes(7), "header length: found 8 bytes from offset 0, expected no more than the 7"),
    "header length": (
        build({}, length=100),
        "header: found 100 bytes from offset 8, expected no more than the 2",
    ),
    "header of 2^60": (build({}, length=HUGE), f"header length: found {HUGE}, expected at most 100000000"),
    "header of 2^64 - 1": (
        build({}, length=2**64 - 1),
        f"header length: found {2**64 - 1}, expected at most",
    ),
    "not JSON": (build(b"{]"), "header: found .* line 1 column 2, expected a JSON object"),
    "not UTF-8": (build(b'{"\xff": 1}'), "header: found .*, expected a JSON object"),
    "a list": (build([1]), "header: found invalid type.*, expected a JSON object"),
    "nesting": (
        build(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        'tensor "x": found .*, expected an object of dtype',
    ),
    "name twice": (
        build(b'{"x": 1, "x": 2}'),
        'header: found the key "x" a second time.*, expected a JSON object',
    ),
    "metadata": (
        build({"__metadata__": {"a": 1}}),
        "__metadata__: found .*integer.*, expected an object of str",
    ),
    "metadata twice": (
        build(b'{"__metadata__": {"a": "", "a": ""}}'),
        "__metadata__: found the key .a. a second",
    ),
    "not an object": (build({"x": 1}), 'tensor "x": found .*, expected an object of dtype'),
    "missing field": (
        build({"x": {"dtype": "F32", "shape": []}}),
        'tensor "x": found missing field `data_offsets`',
    ),
    "unknown field": (build({"x": {**X, "y": 1}}, bytes(8)), 'tensor "x": found unknown field `y`'),
    "field twice": (
        build(b'{"x": {"dtype": "F32", "dtype": "F16", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
        'tensor "x": found duplicate field `dtype`',
    ),
    "dtype": (
        build({"x": entry([2], 0, 2, "F8_E4M3")}, bytes(2)),
        r'tensor "x"\.dtype: found "F8_E4M3", expected one',
    ),
    "dtype of ggml": (
        build({"x": entry([32], 0, 18, "Q4_0")}, bytes(18)),
        r'tensor "x"\.dtype: found "Q4_0"',
    ),
    "negative dim": (
        build({"x": entry([-1], 0, 8)}, bytes(8)),
        'tensor "x": found invalid value: integer `-1`',
    ),
    "dim of 2^64": (build({"x": entry([2**64], 0, 8)}, bytes(8)), 'tensor "x": found invalid type'),
    "fraction": (build({"x": entry([0.5], 0, 8)}, bytes(8)), 'tensor "x": found invalid type'),
    "size overflows": (
        build({"x": entry([HUGE, 4], 0, 8)}, bytes(8)),
        rf'tensor "x"\.shape: found \[{HUGE}, 4\], expected .* fits the address space',
    ),
    "size overflows to 0": (
        build({"x": entry([2**32, 2**32], 0, 0)}),
        rf'tensor "x"\.shape: found \[{2**32}, {2**32}\], expected .* fits the address space',
    ),
    "size hidden by a 0": (
        build({"x": entry([2**40, 2**40, 0], 0, 0)}),
        r'tensor "x"\.shape: found .*, expected .* fits the address space',
    ),
    "shape and bytes": (
        build({"x": entry([3], 0, 8)}, bytes(8)),
        r'tensor "x"\.data_offsets: found 8 bytes, expected 12, the size of \[3\] in F32',
    ),
    "offsets outside": (
        build({"x": entry([2], 4, 12)}, bytes(8)),
        r'tensor "x"\.data_offsets: found \[4, 12\], expected a range within the 8 bytes',
    ),
    "offsets of 2^60": (
        build({"x": entry([2], HUGE, HUGE + 8)}, bytes(8)),
        rf'tensor "x"\.data_offsets: found \[{HUGE}, {HUGE + 8}\], expected a range within the 8 bytes',
    ),
    "offsets reversed": (
        build({"x": entry([2], 8, 0)}, bytes(8)),
        r'tensor "x"\.data_offsets: found \[8, 0\], expected a range',
    ),
    "overlap": (
        build({"x": X, "y": entry([2], 4, 12)}, bytes(12)),
        r'tensor "y": found bytes \d+\.\.\d+, expected bytes that do not overlap .* of "x"',
    ),
    "gap": (
        build({"x": X, "y": entry([1], 12, 16)}, bytes(16)),
        "data_offsets: found 12 bytes in all, expected the 16 bytes of data covered without gaps",
    ),
    "trailing bytes": (build({"x": X}, bytes(9)), "data_offsets: found 8 bytes in all, expected the 9 bytes"),
    "long value": (build({"x": "v" * 100_000}), 'tensor "x": found .*v…, expected an object of dtype'),
    "long shape": (
        build({"x": entry([HUGE] * 10_000, 0, 0)}),
        r'tensor "x"\.shape: found .*…, expected a shape whose size',
    ),
    "long name": (build({"n" * 100_000: 1}), 'tensor "n+"…: found'),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    content, pattern = LIES[lie]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    refuses(path, f"^{re.escape(str(path))}: {pattern}")


def test_lies_of_an_index(tmp_path):
    write_shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    for weight_map, pattern in [
        ([1], r"index: found invalid type: sequence.*, expected an object with a weight_map"),
        ({"a": 1}, r"index: found invalid type: integer.*, expected an object with a weight_map"),
        (
            {"a": "../model-1.safetensors"},
            r'weight_map\["a"\]: found "\.\./model-1\.safetensors", expected the name',
        ),
        (
            {"a": "/etc/passwd"},
            r'weight_map\["a"\]: found "/etc/passwd", expected the name of a file in the same',
        ),
        ({"a": ".."}, r'weight_map\["a"\]: found "\.\.", expected the name of a file in the same'),
        (
            {"a": "model-1.safetensors/"},
            r'weight_map\["a"\]: found "model-1\.safetensors/", expected the name of',
        ),
        ({"a": ""}, r'weight_map\["a"\]: found "", expected the name of a file in the same'),
        (
            {"b": "model-1.safetensors"},
            r'model-1\.safetensors: tensor "b": found none of this name, expected the tensor that .* places',
        ),
    ]:
        write_index(tmp_path, weight_map)
        refuses(path, pattern)
    path.write_text('{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}')
    refuses(path, r'index: found the key "a" a second time')
    path.write_text('{"metadata": {}}')
    refuses(path, "index: found missing field `weight_map`")
    write_index(tmp_path, {"a": "model-3.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"model-3\.safetensors"):
        SafeTensors(path)


def test_an_index_may_leave_tensors_out_but_no_shard_has_the_name_twice(tmp_path):
    write_shards(tmp_path)
    write_index(tmp_path, {"a": "model-1.safetensors"})
    assert SafeTensors(tmp_path).names() == ["a"]


SOUND = build({"x": entry([2, 2], 0, 16), "y": entry([2], 16, 20, "F16")}, bytes(20))


def test_every_truncation_is_refused(tmp_path):
    open_bytes(tmp_path, SOUND)
    for end in range(len(SOUND)):
        with pytest.raises(ValueError, match=r"found .*, expected"):
            open_bytes(tmp_path, SOUND[:end])


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=3))
def test_any_byte_may_lie(tmp_path_factory, changes):
    """Whatever a file says, it is read or refused."""
    content = bytearray(SOUND)
    for at, value in changes:
        content[at] = value
    try:
        file = open_bytes(tmp_path_factory.mktemp("lies"), bytes(content))
    except ValueError as error:
        assert "expected" in str(error)
        return
    for name in file.names():
        if file.info(name)[1].startswith(("F32", "F16", "BF16")):
            file.read(name)
