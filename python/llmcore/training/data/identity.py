"""What data is known by: hashes of files and rows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmcore.files import written_whole
from llmcore.training.data.sources import OpenSource, Row

__all__ = ["digest", "digest_of_parts", "source_identity"]

_PART = 1 << 20

_TICK = 2_000_000_000
"""Nanoseconds within which two writes of a file may leave the same time (FAT counts two seconds)."""


def digest(value: Any) -> str:
    """The SHA-256, in hexadecimal, of what JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """The SHA-256, in hexadecimal, of parts in their order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def source_identity(source: OpenSource, cache: Path, rows: Iterable[Row]) -> Any:
    """What the data of a source is known by: the hashes of its files; what a dataset of the package
    `datasets` says itself; or the hash of `rows`, what of a source's rows is used.

    Raises `ValueError` for a row that JSON has no form for.
    """
    if source.files is not None:
        return _FileHashes(cache / "files.json").of(source.files)
    known = getattr(source.values, "_fingerprint", None)
    return known if isinstance(known, str) else digest_of_parts(map(_json, rows))


def _json(row: Row) -> bytes:
    try:
        return json.dumps(row.value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{row.where}: found {error}, expected text, numbers, lists and dicts") from None


class _FileHashes:
    """The SHA-256 of files, remembered in a file of JSON: one is read again when its size or its time of
    change is another."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[Any]] = {}
        try:
            known = json.loads(memory.read_text(encoding="utf-8"))
            self._known = {str(path): list(entry) for path, entry in known.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # a memory that is not there, or not whole, is forgotten

    def of(self, paths: Iterable[Path]) -> list[str]:
        """The hashes of files, in hexadecimal. Raises `OSError` for one that cannot be read."""
        hashes, changed = [], False
        for path in paths:
            name, state = str(path.resolve()), _state(path)
            entry = self._known.get(name)
            if entry is None or entry[:-1] != state:
                entry = [*state, _hash(path)]
                # A file of this very moment may change once more without leaving another time.
                if time.time_ns() - state[1] > _TICK:
                    self._known[name], changed = entry, True
            hashes.append(str(entry[-1]))
        if changed:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self._memory) as file:
                file.write(json.dumps(self._known, indent=1).encode())
        return hashes


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _hash(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            found.update(part)
    return found.hexdigest()
