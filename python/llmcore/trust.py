"""Strings that remember which of their characters can be trusted.

In the prompt of a chat the template's own text may hold control tokens (`<|im_start|>`); the text that a
user put into a message may not. So the rendering of a template keeps track of where characters come from:
its literals are :class:`Tracked`, everything else is a plain `str`, which has no trust.

Joining, slicing and trimming carry the trust of single characters along; any other operation of `str` gives
a plain `str`. Trust can thus be lost, which costs a control token at worst, but never gained: a trusted
character is one that was copied from a :func:`trusted` string.

In the same way a string remembers which of its characters are *marked*: those that a template wrote between
`{% generation %}` and `{% endgeneration %}`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex, TypeAlias

__all__ = ["Tracked", "concat", "marked", "marks", "spans", "trusted"]

Ranges: TypeAlias = "tuple[tuple[int, int], ...]"
"""Pairs (start, stop), ascending, neither empty nor touching."""


class Tracked(str):
    """A string in which the characters of some `ranges` are trusted, and those of others `marked`.

    Both are empty by default: whoever makes a `Tracked` out of a `str` gives it no trust.
    """

    _ranges: Ranges
    _marked: Ranges

    def __new__(cls, text: str = "", ranges: Ranges = (), marked: Ranges = ()) -> Tracked:  # noqa: D102
        self = super().__new__(cls, text)
        self._ranges = ranges
        self._marked = marked
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> Tracked:
        return concat((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Tracked:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = super().__getitem__(key)
        if not isinstance(key, slice):
            return text
        start, _, step = key.indices(len(self))
        return self._part(start, text) if step == 1 else text

    def strip(self, chars: str | None = None, /) -> Tracked:
        """`str.strip`, keeping trust."""
        return self.rstrip(chars).lstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Tracked:
        """`str.lstrip`, keeping trust."""
        text = super().lstrip(chars)
        return self._part(len(self) - len(text), text)

    def rstrip(self, chars: str | None = None, /) -> Tracked:
        """`str.rstrip`, keeping trust."""
        return self._part(0, super().rstrip(chars))

    def upper(self) -> str:
        """`str.upper`, trusted if all of this string is."""
        return self._changed(super().upper())

    def lower(self) -> str:
        """`str.lower`, trusted if all of this string is."""
        return self._changed(super().lower())

    def capitalize(self) -> str:
        """`str.capitalize`, trusted if all of this string is."""
        return self._changed(super().capitalize())

    def _part(self, start: int, text: str) -> Tracked:
        """`text`, which is what this string holds from `start` on, with its trust and its marks."""
        stop = start + len(text)
        return Tracked(text, _clipped(self._ranges, start, stop), _clipped(self._marked, start, stop))

    def _changed(self, text: str) -> str:
        """`text`, made of this string alone: trusted if all of this string is."""
        return trusted(text) if self._ranges == ((0, len(self)),) else text


def trusted(text: str) -> Tracked:
    """`text`, trusted from end to end."""
    return Tracked(text, ((0, len(text)),) if text else ())


def marked(text: str) -> Tracked:
    """`text`, marked from end to end, its trust kept."""
    ranges = text._ranges if isinstance(text, Tracked) else ()
    return Tracked(text, ranges, ((0, len(text)),) if text else ())


def marks(text: str) -> Ranges:
    """Which ranges of characters of `text` are marked. What is marked in pieces that touch is one range."""
    return text._marked if isinstance(text, Tracked) else ()


def spans(text: str) -> list[tuple[str, bool]]:
    """`text` cut into pieces (text, trusted); neighbours differ in trust, and none is empty."""
    plain = str.__str__(text)
    pieces, at = [], 0
    for start, stop in text._ranges if isinstance(text, Tracked) else ():
        pieces += [(plain[at:start], False), (plain[start:stop], True)]
        at = stop
    pieces.append((plain[at:], False))
    return [piece for piece in pieces if piece[0]]


def concat(pieces: Iterable[str]) -> Tracked:
    """The pieces joined, each with its trust and its marks."""
    texts: list[str] = []
    ranges: list[tuple[int, int]] = []
    marked: list[tuple[int, int]] = []
    length = 0
    for piece in pieces:
        if isinstance(piece, Tracked):
            _extend(ranges, piece._ranges, length)
            _extend(marked, piece._marked, length)
        texts.append(piece)
        length += len(piece)
    return Tracked("".join(texts), tuple(ranges), tuple(marked))


def _extend(ranges: list[tuple[int, int]], more: Ranges, by: int) -> None:
    """Appends ranges, moved up; the first may touch the last that is there."""
    for start, stop in more:
        if ranges and ranges[-1][1] == by + start:
            ranges[-1] = (ranges[-1][0], by + stop)
        else:
            ranges.append((by + start, by + stop))


def _clipped(ranges: Ranges, start: int, stop: int) -> Ranges:
    """What of the ranges lies between `start` and `stop`, counted from `start`."""
    clipped = ((max(a, start), min(b, stop)) for a, b in ranges)
    return tuple((a - start, b - start) for a, b in clipped if a < b)
