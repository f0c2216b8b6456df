"""A new model: a checkpoint of a configuration, its weights drawn at random.

What a tensor is drawn from is the architecture's to say (`initial` in `llmcore.models`), as Transformers
does. A tensor's numbers depend on the seed and its name alone, and are the same bits on every machine: the
random integers are Philox's (Salmon et al. 2011; NumPy promises the stream of a bit generator), and what
makes normal numbers of them uses only operations that IEEE 754 rounds exactly, no function of a library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore._core import parameters_of
from llmcore.arrays import LazyArray
from llmcore.blocks import describe
from llmcore.checkpoint import read_json
from llmcore.files import replaced_folder
from llmcore.models import architecture
from llmcore.models.base import errors_name, read_config
from llmcore.models.initial import Constant, Normal
from llmcore.models.views import parts_of, tensor_shape
from llmcore.safetensors_file import write_sharded
from llmcore.saving import FILES, copy_tokenizer, with_dtype, write_json
from llmcore.tokenizer import Tokenizer

__all__ = ["new_model", "normal"]

Doubles = npt.NDArray[np.float64]

_LOG_2 = 0.6931471805599453

_PIECE = 1 << 20
"""Numbers that are drawn together."""


def new_model(
    config: Mapping[str, Any] | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    seed: int = 0,
    tokenizer: Tokenizer | str | os.PathLike[str] | None = None,
) -> Path:
    """Writes a checkpoint whose weights are random, to be trained: `llmcore.load(folder, trainable=True)`.

    Args:
        config: A config.json, or what one says: `model_type`, and whatever differs from the architecture's
            defaults in Transformers. `initializer_range` is the standard deviation of weights, 0.02 unless
            given. `vocab_size` is the tokenizer's unless given. `eos_token_id` is the token that ends texts:
            of a tokenizer that was trained, one of its special tokens, the first of which is 0.
        folder: Where to, in the Hugging Face layout; a checkpoint that is there is replaced.
        seed: The same seed gives the same bits.
        tokenizer: To store with it: one that was trained, or what holds one: a tokenizer.json, a folder or a
            `.gguf` file.

    Returns:
        The folder.

    Raises:
        ValueError: an architecture that is not supported, a field that is wrong, or a tokenizer that has more
            tokens than `vocab_size`; names the field.
        FileNotFoundError: no such config.json or tokenizer.
        FileExistsError: there is a folder that holds anything but a checkpoint.
        OSError: the folder cannot be written.
    """
    where = "config" if isinstance(config, Mapping) else os.fspath(config)
    fields = dict(config) if isinstance(config, Mapping) else read_json(Path(config))
    known = _opened(tokenizer)
    if known is not None:
        size = fields.setdefault("vocab_size", known.vocab_size)
        if isinstance(size, int) and size < known.vocab_size:
            expected = f"at least {known.vocab_size}, the size of the tokenizer"
            raise ValueError(f"{where}: vocab_size: found {size}, expected {expected}")
    module = architecture(fields.get("model_type"), where)
    tensors = _tensors(module, fields, where, seed)
    fields.setdefault("architectures", [module.ARCHITECTURE])
    with replaced_folder(folder, FILES) as unfinished:
        write_json(unfinished / "config.json", with_dtype(fields, "float32"))
        _store(tokenizer, unfinished)
        write_sharded(unfinished, tensors)
    return Path(folder)


def _tensors(module: ModuleType, fields: Mapping[str, Any], where: str, seed: int) -> dict[str, LazyArray]:
    """The tensors of a new model, drawn when they are written."""
    config = read_config(module.Config, fields, where)
    std = fields.get("initializer_range", 0.02)
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 < std < math.inf:
        raise ValueError(f"{where}: initializer_range: found {std!r}, expected a number > 0")
    views, rules = module.tensors(config), module.initial(config, std, _padding(fields, where))
    with errors_name(where):
        parameters = parameters_of(json.dumps(describe(module.build(config))))
    shapes = {path: tuple(shape) for path, shape in parameters}

    def tensor(name: str, paths: list[str]) -> LazyArray:
        shape = tensor_shape(paths, views, shapes)
        rule = next(rule for pattern, rule in rules.items() if fnmatchcase(paths[0], pattern))
        return LazyArray("F32", shape, lambda: _drawn(rule, seed, name, shape))

    return {name: tensor(name, paths) for name, paths in parts_of(views).items()}


def _padding(fields: Mapping[str, Any], where: str) -> int | None:
    """The token that pads, if it is one of the vocabulary."""
    pad = fields.get("pad_token_id")
    if not isinstance(pad, int | None):
        raise ValueError(f"{where}: pad_token_id: found {pad!r}, expected an id")
    return pad


def _drawn(rule: Constant | Normal, seed: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if isinstance(rule, Constant):
        return np.full(shape, rule.value, np.float32)
    values = normal(seed, name, math.prod(shape), rule.std).reshape(shape)
    if rule.zero_row is not None and 0 <= rule.zero_row < len(values):
        values[rule.zero_row] = 0
    return values


def _opened(tokenizer: Tokenizer | str | os.PathLike[str] | None) -> Tokenizer | None:
    if tokenizer is None or isinstance(tokenizer, Tokenizer):
        return tokenizer
    path = Path(tokenizer)
    if path.is_dir():
        return Tokenizer.from_folder(path)
    if path.name != "vocab.json" and path.suffix in (".json", ".gguf"):
        return Tokenizer.from_file(path)
    raise ValueError(f"tokenizer: found {str(path)!r}, expected a tokenizer.json, a folder or a .gguf file")


def _store(tokenizer: Tokenizer | str | os.PathLike[str] | None, folder: Path) -> None:
    """The tokenizer's files into a folder."""
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(folder / "tokenizer.json")
    elif tokenizer is not None and (path := Path(tokenizer)).suffix == ".json":
        shutil.copyfile(path, folder / "tokenizer.json")
    elif tokenizer is not None:
        copy_tokenizer(Path(tokenizer), folder)


# ---------------------------------------------------------------------------------------------------
# Normal numbers


def normal(seed: int, name: str, count: int, std: float) -> npt.NDArray[np.float32]:
    """`count` draws from a normal distribution of mean 0, float32, that depend on `seed` and `name` alone.

    The middles of 2⁵² equal parts of (0, 1), in Philox's order under a key that is a hash of both, go through
    the inverse of the distribution function.
    """
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16]
    philox = np.random.Philox(key=int.from_bytes(key, "little"))
    values = np.empty(count, np.float32)
    for start in range(0, count, _PIECE):
        piece = values[start : start + _PIECE]
        uniform = ((philox.random_raw(len(piece)) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        piece[:] = std * _quantile(uniform)
    return values


def _quantile(p: Doubles) -> Doubles:
    """The inverse of the normal distribution function, with a relative error below 1e-6 (Wichura 1988,
    algorithm AS 241, PPND7)."""
    q = p - 0.5
    r = 0.180625 - q * q
    central = q * _ratio(
        r,
        (3.3871327179, 50.434271938, 159.29113202, 59.109374720),
        (1.0, 17.895169469, 78.757757664, 67.187563600),
    )
    tail = np.abs(q) > 0.425
    s = np.sqrt(-_log(np.minimum(p[tail], 1 - p[tail])))
    near = _ratio(
        s - 1.6,
        (1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103),
        (1.0, 0.73700164250, 0.12021132975),
    )
    far = _ratio(
        s - 5.0,
        (6.6579051150, 3.0812263860, 0.42868294337, 0.017337203997),
        (1.0, 0.24197894225, 0.012258202635),
    )
    central[tail] = np.copysign(np.where(s <= 5.0, near, far), q[tail])
    return central


def _ratio(x: Doubles, above: tuple[float, ...], below: tuple[float, ...]) -> Doubles:
    """A polynomial over another, each given by its coefficients from the constant on."""
    return _polynomial(x, above) / _polynomial(x, below)


def _polynomial(x: Doubles, coefficients: tuple[float, ...]) -> Doubles:
    result = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


def _log(x: Doubles) -> Doubles:
    """The natural logarithm of numbers > 0, to 1e-12; of the mantissa `2 artanh((m - 1) / (m + 1))`."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    z = (mantissa - 1) / (mantissa + 1)
    series = tuple(2 / (2 * i + 1) for i in range(8))
    log: Doubles = exponent * _LOG_2 + z * _polynomial(z * z, series)
    return log
