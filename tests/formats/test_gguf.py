"""GGUF files: what is written is read, and a file that lies is refused by name."""

import os
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmcore._core import Gguf

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def pair(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(name: str | bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    dims_ = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + dims_ + struct.pack("<IQ", kind, offset)


def build(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file byte by byte, so that each field can lie."""
    count = len(tensors) if tensor_count is None else tensor_count
    pairs_ = len(pairs) if pair_count is None else pair_count
    head = magic + struct.pack("<IQQ", version, count, pairs_) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def open_bytes(folder: Path, content: bytes) -> Gguf:
    path = folder / "x.gguf"
    path.write_bytes(content)
    return Gguf(path)


def refuses(folder: Path, content: bytes, field: str, found: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_bytes(folder, content)
    message = str(caught.value)
    pattern = f"{re.escape(str(folder / 'x.gguf'))}: {field}: found .*{found}.*, expected .*{expected}"
    assert re.match(pattern, message, re.S), message
    assert len(message) < 600


# --- what is written is read ------------------------------------------------------------------------


def test_metadata_of_every_type(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "test")
    scalars = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 0.5,
        "float64": 0.1,
        "bool": True,
        "string": "Straße\0🦀",
    }
    for name, value in scalars.items():
        getattr(writer, f"add_{name}")(f"x.{name}", value)
    lists = {"ints": [1, -2, 3], "floats": [0.5, -1.5], "bools": [True, False], "strings": ["", "ab", "Ġé"]}
    for name, values in lists.items():
        writer.add_array(f"x.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = Gguf(path)
    assert file.names() == []
    metadata = file.metadata()
    assert metadata.pop("general.architecture") == "test"
    assert file.keys() == sorted(["general.architecture", *metadata])
    for name, value in scalars.items():
        found = metadata.pop(f"x.{name}")
        assert found == value
        assert type(found) is type(value)
    dtypes = {"ints": np.int32, "floats": np.float32, "bools": np.bool_}
    for name, values in lists.items():
        found = metadata.pop(f"x.{name}")
        if name == "strings":
            assert found == values
        else:
            assert found.dtype == dtypes[name]
            assert found.tolist() == values
    assert metadata == {}
    assert file.get("x.nothing") is None
    assert file.get("x.nothing", 7) == 7


@pytest.mark.parametrize(
    ("kind", "code", "dtype"),
    [
        *[(U8, "B", np.uint8), (I8, "b", np.int8), (U16, "H", np.uint16), (I16, "h", np.int16)],
        *[(U32, "I", np.uint32), (I32, "i", np.int32), (U64, "Q", np.uint64), (I64, "q", np.int64)],
        *[(F32, "f", np.float32), (F64, "d", np.float64)],
    ],
)
def test_arrays_keep_their_type(tmp_path, kind, code, dtype):
    values = [0, 1, 77]
    file = open_bytes(tmp_path, build((pair("a", ARRAY, array(kind, 3, struct.pack(f"<3{code}", *values))),)))
    assert file.get("a").dtype == dtype
    assert file.get("a").tolist() == values


def test_arrays_of_arrays(tmp_path):
    inner = array(STRING, 2, text("a") + text("b")) + array(U8, 3, b"\1\2\3") + array(ARRAY, 0, b"")
    file = open_bytes(tmp_path, build((pair("a", ARRAY, array(ARRAY, 3, inner)), pair("b", U8, b"\7"))))
    strings, numbers, empty = file.get("a")
    assert (strings, numbers.tolist(), empty, file.get("b")) == (["a", "b"], [1, 2, 3], [], 7)


def test_a_string_that_is_not_utf8_is_bytes(tmp_path):
    tokens = array(STRING, 2, text(b"\xff\xfe") + text("é"))
    file = open_bytes(tmp_path, build((pair("a", STRING, text(b"\xc3")), pair("b", ARRAY, tokens))))
    assert file.metadata() == {"a": b"\xc3", "b": [b"\xff\xfe", "é"]}


@settings(max_examples=50)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=4),
    alignment=st.sampled_from([None, 8, 64, 4096]),
    version=st.sampled_from([2, 3]),
)
def test_tensors(tmp_path_factory, shapes, alignment, version):
    path = tmp_path_factory.mktemp("tensors") / "x.gguf"
    arrays = {
        f"t{i}": np.random.default_rng(i).normal(size=s).astype(np.float32) for i, s in enumerate(shapes)
    }
    writer = gguf.GGUFWriter(path, "test")
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = bytearray(path.read_bytes())
    content[4] = version
    path.write_bytes(content)
    file = Gguf(path)
    assert file.names() == list(arrays)
    for name, values in arrays.items():
        assert file.info(name) == (values.shape, "F32")
        np.testing.assert_array_equal(file.read(name), values, strict=True)


def test_a_scalar_tensor(tmp_path):
    file = open_bytes(tmp_path, build((), (tensor("x", []),), struct.pack("<f", 2.5)))
    assert file.info("x") == ((), "F32")
    assert file.read("x").shape == ()
    assert file.read("x") == 2.5


def test_integers_are_listed_but_not_read(tmp_path):
    file = open_bytes(tmp_path, build((), (tensor("x", [2], 26),), bytes(8)))
    assert file.info("x") == ((2,), "I32")
    with pytest.raises(
        ValueError, match=r'x\.gguf: tensor "x": found I32, expected one of F32, F16, BF16, Q4_0'
    ):
        file.read("x")


def test_an_unknown_tensor_is_named(tmp_path):
    file = open_bytes(tmp_path, build())
    for call in file.read, file.info:
        with pytest.raises(ValueError, match=r'x\.gguf: tensor "lm_head\.weight": found none of this name'):
            call("lm_head.weight")


def test_a_large_vocabulary(tmp_path):
    tokens = b"".join(text(f"token {i}") for i in range(250_000))
    content = build((pair("tokens", ARRAY, array(STRING, 250_000, tokens)),))
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    found = Gguf(path).get("tokens")
    assert len(found) == 250_000
    assert found[::99_999] == ["token 0", "token 99999", "token 199998"]


def test_smollm2(smollm2_path):
    """Every value of the file is the one that the `gguf` package finds."""
    reader = gguf.GGUFReader(smollm2_path)
    file = Gguf(smollm2_path)
    assert file.names() == [tensor.name for tensor in reader.tensors]
    for key, value in file.metadata().items():
        expected = reader.fields[key].contents()
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == expected
    for tensor_ in [*reader.tensors[:8], reader.tensors[-1]]:
        expected = gguf.quants.dequantize(tensor_.data, tensor_.tensor_type)
        np.testing.assert_array_equal(file.read(tensor_.name), expected, strict=True)


# --- a file that lies is refused --------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.gguf"))):
        Gguf(tmp_path / "none.gguf")


def test_not_a_file(tmp_path):
    with pytest.raises(ValueError, match="path: found a directory, expected a file"):
        Gguf(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ValueError, match="found something that is not a regular file, expected a file"):
        Gguf(tmp_path / "pipe.gguf")


def test_empty(tmp_path):
    refuses(tmp_path, b"", "size", "an empty file", "a header")


HEAD = struct.pack("<I", 3)
HUGE = 2**60
LIES = {
    "magic": (build(magic=b"GGML"), "magic", "GGML", "GGUF"),
    "version": (build(version=1), "version", "1", "2 or 3"),
    "big endian": (build(version=3 << 24), "version", "a big-endian file", "little-endian"),
    "tensor count": (build(tensor_count=HUGE), "tensor_count", f"{HUGE}", "fit in the rest of the file"),
    "pair count": (build(pair_count=HUGE), "metadata_kv_count", f"{HUGE}", "fit in the rest of the file"),
    "key length": (
        build((struct.pack("<Q", HUGE) + bytes(32),)),
        "key of metadata pair 0",
        f"{HUGE} bytes from offset 32",
        "no more than the .* bytes left",
    ),
    "key not UTF-8": (
        build((pair(b"a\xff", U8, b"\1"),)),
        "key of metadata pair 0",
        "invalid utf-8",
        "UTF-8",
    ),
    "key twice": (build((pair("a", U8, b"\1"),) * 2), '"a"', "a second value", "each key once"),
    "value type": (build((pair("a", 13, bytes(8)),)), '"a"', "type 13", "0 to 12"),
    "bool": (build((pair("a", BOOL, b"\2"),)), '"a"', "a bool of 2", "0 or 1"),
    "bool in array": (build((pair("a", ARRAY, array(BOOL, 2, b"\1\3")),)), '"a"', "a bool of 3", "0 or 1"),
    "string length": (
        build((pair("a", STRING, struct.pack("<Q", 2**64 - 1)),)),
        '"a"',
        f"{2**64 - 1} bytes",
        "bytes left in the file",
    ),
    "array count": (
        build((pair("a", ARRAY, array(STRING, HUGE, b"")),)),
        '"a"',
        f"a count of {HUGE}",
        "fit in the rest of the file",
    ),
    "array of numbers": (
        build((pair("a", ARRAY, array(F64, 2**61, b"")),)),
        '"a"',
        f"a count of {2**61}",
        "fit in the rest of the file",
    ),
    "array item type": (build((pair("a", ARRAY, array(99, 1, bytes(8))),)), '"a"', "type 99", "0 to 12"),
    "nesting": (
        build((pair("a", ARRAY, array(ARRAY, 1, b"") * 100_000 + bytes(64)),)),
        '"a"',
        "arrays within arrays",
        "no more than 4 levels",
    ),
    "alignment 0": (
        build((pair("general.alignment", U32, bytes(4)),)),
        "general.alignment",
        "U32.0",
        "a power of two",
    ),
    "alignment 48": (
        build((pair("general.alignment", U32, struct.pack("<I", 48)),)),
        "general.alignment",
        "U32.48",
        "a power of two",
    ),
    "alignment as text": (
        build((pair("general.alignment", STRING, text("32")),)),
        "general.alignment",
        "a string",
        "a power of two",
    ),
    "one part of several": (
        build((pair("split.count", U16, b"\3\0"),)),
        "split.count",
        "one of 3 parts",
        "a whole file",
    ),
    "tensor name not UTF-8": (
        build((), (tensor(b"\x80", [1]),)),
        "name of tensor 0",
        "invalid utf-8",
        "UTF-8",
    ),
    "tensor twice": (
        build((), (tensor("x", [1]), tensor("x", [1], 0, 32)), bytes(64)),
        'tensor "x"',
        "a second tensor",
        "each name once",
    ),
    "dims": (build((), (tensor("x", [1] * 5),), bytes(4)), 'tensor "x".n_dims', "5", "at most 4"),
    "dims of 2^32 - 1": (
        build((), (text("x") + struct.pack("<I", 2**32 - 1) + bytes(64),)),
        'tensor "x".n_dims',
        f"{2**32 - 1}",
        "at most 4",
    ),
    "ggml type": (build((), (tensor("x", [256], 16),), bytes(66)), 'tensor "x".type', "16", "F32"),
    "ggml type unknown": (build((), (tensor("x", [256], 2**31),)), 'tensor "x".type', f"{2**31}", "F32"),
    "block": (
        build((), (tensor("x", [33], 2),), bytes(36)),
        'tensor "x".dims',
        r"\[33\]",
        "a multiple of 32, the block of Q4_0",
    ),
    "size overflows": (
        build((), (tensor("x", [HUGE, 2]),), bytes(64)),
        'tensor "x".dims',
        f"{HUGE}",
        "fits the address space",
    ),
    "size overflows to 0": (
        build((), (tensor("x", [2**32, 2**32]),), bytes(64)),
        'tensor "x".dims',
        f"{2**32}",
        "fits the address space",
    ),
    "size hidden by a 0": (
        build((), (tensor("x", [0, 2**40, 2**40]),), bytes(64)),
        'tensor "x".dims',
        f"{2**40}",
        "fits the address space",
    ),
    "offset outside": (
        build((), (tensor("x", [4], 0, 64),), bytes(64)),
        'tensor "x".offset',
        "16 bytes at offset 64",
        "within the 64 bytes of data",
    ),
    "offset overflows": (
        build((), (tensor("x", [4], 0, 2**64 - 32),), bytes(64)),
        'tensor "x".offset',
        "16 bytes at offset",
        "within the 64 bytes of data",
    ),
    "offset not aligned": (
        build((), (tensor("x", [4], 0, 4),), bytes(64)),
        'tensor "x".offset',
        "4",
        "a multiple of 32",
    ),
    "too large": (
        build((), (tensor("x", [17]),), bytes(64)),
        'tensor "x".offset',
        "68 bytes at offset 0",
        "within the 64 bytes of data",
    ),
    "overlap": (
        build((), (tensor("x", [9]), tensor("y", [4], 0, 32)), bytes(64)),
        'tensor "y"',
        r"bytes \d+..\d+",
        r"do not overlap \d+..\d+ of \"x\"",
    ),
    "long name": (
        build((), (tensor("n" * 100_000, [HUGE, 2]),)),
        'tensor "n+"….dims',
        f"{HUGE}",
        "fits the address space",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path, lie):
    refuses(tmp_path, *LIES[lie])


SOUND = build(
    (
        pair("general.architecture", STRING, text("llama")),
        pair("tokens", ARRAY, array(STRING, 2, text("a") + text("b"))),
        pair("nested", ARRAY, array(ARRAY, 1, array(BOOL, 1, b"\1"))),
        pair("general.alignment", U32, struct.pack("<I", 32)),
    ),
    (tensor("x", [4, 2]), tensor("y", [32], 2, 32), tensor("z", [2], 26, 64)),
    bytes(72),
)


def test_every_truncation_is_refused(tmp_path):
    open_bytes(tmp_path, SOUND)
    for end in range(len(SOUND)):
        with pytest.raises(ValueError, match=r"found .*, expected"):
            open_bytes(tmp_path, SOUND[:end])


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SOUND) - 8), st.sampled_from([0, 1, 2**7, 2**31, 2**60, 2**63, 2**64 - 1])
        ),
        max_size=3,
    )
)
@example([(8, 2**60)])
def test_any_field_may_lie(tmp_path_factory, changes):
    """Whatever a file says, it is read or refused."""
    content = bytearray(SOUND)
    for at, value in changes:
        content[at : at + 8] = struct.pack("<Q", value)
    try:
        file = open_bytes(tmp_path_factory.mktemp("lies"), bytes(content))
    except ValueError as error:
        assert "expected" in str(error)
        return
    file.metadata()
    for name in file.names():
        if file.info(name)[1] not in ("I8", "I16", "I32", "I64", "F64"):
            file.read(name)
