"""Where data comes from: files, a folder of files, or anything that gives rows.

A source is one of

- a file, or a folder, which stands for the files below it that end in `.txt`, `.md` or `.jsonl`, in the order
  of their names, hidden ones left out. A path alone may be a `str`;
- several of them: an iterable of `Path`s;
- rows: an iterable of texts and dicts, as a list, or a split of a dataset of the package `datasets`. It is
  read more than once.

In a `.jsonl` file every line is a row, written as JSON; blank lines are none.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

__all__ = ["OpenSource", "Row", "Source", "cache_of", "is_json_lines", "open_source"]

Source: TypeAlias = "str | PathLike[str] | Iterable[PathLike[str]] | Iterable[str | Mapping[str, Any]]"

_JSON_LINES = ".jsonl"
_ENDINGS = (".txt", ".md", _JSON_LINES)


class Row(NamedTuple):
    """A row, and where it is from, as errors name it."""

    where: str
    value: Any


@dataclass(frozen=True)
class OpenSource:
    """A source that was looked at: it is its `files`, a folder's in place of it, or else its `values`."""

    files: list[Path] | None
    values: Iterable[Any] = ()

    def rows(self, expected: str) -> Iterator[Row]:
        """The lines of `.jsonl` files, or what else gives rows. `expected`: what a row should be, for the
        errors.

        Raises:
            ValueError: another file, or a line that is not JSON.
        """
        if self.files is None:
            for i, value in enumerate(self.values):
                yield Row(f"row {i}", value)
            return
        for path in self.files:
            if not is_json_lines(path):
                found = f"a name that ends in {path.suffix!r}"
                raise ValueError(f"{path}: found {found}, expected {_JSON_LINES!r}")
            with path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        where = f"{path}: line {number}"
                        yield Row(where, _parsed(line, where, expected))


def open_source(source: Source) -> OpenSource:
    """Looks at a source.

    Raises:
        FileNotFoundError: a path where nothing is, or a folder without files.
        TypeError: what is no source.
    """
    if isinstance(source, str | PathLike):
        return OpenSource(_files(Path(source)))
    if isinstance(source, Mapping):
        keys = ", ".join(map(repr, list(source)[:5]))
        raise TypeError(f"source: found a mapping with the keys {keys}, expected what one of them stands for")
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        expected = "a path, or an iterable of Paths, texts or dicts"
        raise TypeError(f"source: found {type(source).__name__}, expected {expected}")
    if iter(source) is source:
        expected = "something that can be read twice, as a list"
        raise TypeError(f"source: found {type(source).__name__}, an iterator, expected {expected}")
    first = next(iter(source), None)
    if isinstance(first, PathLike):
        return OpenSource([file for i, path in enumerate(source) for file in _files(_path(i, path))])
    if isinstance(first, str) and _names_file(first):
        raise TypeError(f"source: found {first!r}, the name of a file, as a text, expected a Path")
    return OpenSource(None, source)


def _path(i: int, value: object) -> Path:
    if not isinstance(value, PathLike):
        raise TypeError(f"source[{i}]: found {type(value).__name__}, expected a Path, as before")
    return Path(value)


def _names_file(text: str) -> bool:
    try:
        return os.path.isfile(text)
    except ValueError:  # no name holds NUL
        return False


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path}: found nothing, expected a file or a folder")
        return [path]
    files = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in names if not name.startswith("."))
        files += [Path(folder, name) for name in visible if name.lower().endswith(_ENDINGS)]
    if not files:
        expected = f"files that end in {', '.join(_ENDINGS)}"
        raise FileNotFoundError(f"{path}: found no such files, expected {expected}; name others one by one")
    return sorted(files)


def _parsed(line: bytes, where: str, expected: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: found {error}, expected {expected}") from None


def is_json_lines(path: Path) -> bool:
    """Whether the lines of a file are rows, by its name."""
    return path.suffix.lower() == _JSON_LINES


def cache_of(source: Source, cache: str | PathLike[str] | None) -> Path:
    """The folder for what is made of a source: `cache`, or else `NAME.tokens` beside the one path that the
    source is. Raises `ValueError` if it is none."""
    if cache is not None:
        return Path(cache)
    if isinstance(source, str | PathLike):
        path = Path(source).resolve()
        return path.with_name(f"{path.name}.tokens")
    raise ValueError("cache: found None, expected a folder, for a source that is not one file or folder")
