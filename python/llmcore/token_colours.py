"""Tokens for people: the text of each on a ground of its own colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

__all__ = ["coloured_ids", "coloured_pieces"]

_STYLES = ("black on cyan", "black on yellow", "black on green", "black on magenta", "white on blue")
"""Neighbours differ."""


def coloured_pieces(pieces: Sequence[bytes]) -> Text:
    """The text, a colour a token. What would not be seen is written out: bytes that are a part of a
    character and control characters as escapes, the end of a line as "↵" before it."""
    return _coloured([_visible(piece) for piece in pieces])


def coloured_ids(ids: Sequence[int]) -> Text:
    """The ids in the colours of their pieces."""
    return _coloured([f" {id} " for id in ids])


def _coloured(parts: Sequence[str]) -> Text:
    from rich.text import Text

    text = Text(end="")
    for i, part in enumerate(parts):
        # A ground goes no further than the text of its line.
        for line in part.splitlines(keepends=True):
            text.append(line.removesuffix("\n"), _STYLES[i % len(_STYLES)])
            text.append("\n" * line.endswith("\n"))
    return text


def _visible(piece: bytes) -> str:
    text = piece.decode(errors="backslashreplace")
    return "".join(_seen(character) for character in text)


def _seen(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
