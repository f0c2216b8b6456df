"""What a tokenizer was made of, and the hash by which it is known."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llmcore import _core

__all__ = ["Origin"]


class Origin:
    """The files that a tokenizer was read from, and the settings that changed it.

    Args:
        path: The file. A `vocab.json` has its merges in another beside it.
        settings: Keyword arguments of :class:`llmcore._core.Tokenizer`; `json` stands for the file.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        path = Path(path).absolute()
        self._settings = settings
        self._files = [] if settings.get("json") is not None else [path]
        if self._files and path.name.endswith("vocab.json"):
            self._files.append(path.with_name(path.name.replace("vocab.json", "merges.txt")))
        self._states = [_state(file) for file in self._files]

    def fingerprint(self) -> str:
        """See `Tokenizer.fingerprint`."""
        import hashlib

        found = hashlib.sha256()
        for part in self._parts():
            found.update(len(part).to_bytes(8, "little"))
            found.update(part)
        return found.hexdigest()

    def _parts(self) -> Iterator[bytes]:
        yield _core.__version__.encode()
        yield repr(sorted(self._settings.items())).encode("utf-8", "surrogatepass")
        for file, state in zip(self._files, self._states, strict=True):
            if _state(file) != state:
                raise ValueError(
                    f"{file}: found a file that has changed since, expected what was read; read it again"
                )
            yield from _metadata(file) if file.suffix == ".gguf" else [file.read_bytes()]


def _metadata(file: Path) -> Iterator[bytes]:
    """What a GGUF file says of its tokenizer."""
    metadata = _core.Gguf(file).metadata()
    for key in sorted(metadata):
        if key.startswith("tokenizer."):
            value = metadata[key]  # an array, if of numbers
            yield key.encode()
            yield repr(value.tolist() if hasattr(value, "tolist") else value).encode("utf-8", "surrogatepass")


def _state(file: Path) -> tuple[int, int]:
    """What changes with a file."""
    stat = os.stat(file)
    return stat.st_size, stat.st_mtime_ns
