"""Families of strings for hypothesis: a few parts an example, and the hundreds of texts that they make."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st
from texts import any_text, ascii_text, snippets

import vocabularies

SPACES = [*"  \t\n\r\v\f\x1c\x1f\x85\xa0", "\u1680", *map(chr, range(0x2000, 0x200B)), "\u2028", "\u2029",
          "\u202f", "\u205f", "\u3000", "\r\n", "\n\n", " \n", "\u180e", "\u200b", "\ufeff"]  # fmt: skip
"""What `\\s` matches, on all sides, and some that look like it but are none."""
CONTRACTIONS = ["s", "S", "ſ", "t", "T", "re", "rE", "RE", "ve", "Ve", "m", "M", "ll", "lL", "LL", "d", "D",
                "r", "l", "v", "lſ", "e", "", "s's", "ss", "\u017fſ"]  # fmt: skip
EMOJI = ["🙂", "👩", "\u200d", "\ufe0f", "🏽", "🇩", "🇪", "❤", "👩\u200d👩\u200d👧", "1\ufe0f\u20e3", "©",
         "🏴\U000e0067\U000e007f"]  # fmt: skip
CASED = "aZéÉßẞſıİǅǆǄʰªºאاक漢\u0301\u0903\u20dd'sST"
SCRIPTS = [(0x4E00, 0x9FFF), (0x3041, 0x30FF), (0xAC00, 0xD7A3), (0x0E00, 0x0E5B), (0x05D0, 0x05EA),
           (0x0600, 0x06FF), (0x0900, 0x097F), (0x0400, 0x04FF), (0x0370, 0x03FF), (0x20000, 0x2A6DF),
           (0x1F300, 0x1FAFF), (0x1D400, 0x1D7FF), (0x2500, 0x27BF)]  # fmt: skip
RUN_BYTES = [1, 2, 3, 7, 8, 14, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 127, 128, 129, 191, 193]
"""About the borders of a remembered piece (15 bytes), of vectors, and of blocks of 64 bytes."""
FILLERS = ["a", " ", "1", "!", "\n", "A", "é", "漢", "'s", " a", "ab ", "🙂", "\0", "\u0301"]


def run(unit: str, size: int) -> str:
    """`unit` again and again, in about so many bytes."""
    return unit * max(1, size // len(unit.encode()))


@cache
def english() -> list[str]:
    """The tokens of GPT-2 that are text."""
    return [token.decode() for token in vocabularies.ranks("gpt2") if token.isascii()]


def script(borders: tuple[int, int]) -> st.SearchStrategy[str]:
    first, last = borders
    return st.text(st.characters(min_codepoint=first, max_codepoint=last), min_size=1, max_size=12)


def some(*choices: str, most: int = 6) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(choices), min_size=1, max_size=most).map("".join)


letters = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ", min_size=1, max_size=20)
apostrophes = st.builds(
    lambda before, sign, rest, after: before + sign + rest + after,
    st.sampled_from(["", "a", "A", " ", "1", "漢", "!", "\n"]),
    st.sampled_from("''''’"),
    st.sampled_from(CONTRACTIONS),
    st.sampled_from(["", "a", " ", "s", "'", "1"]),
)
units = st.one_of(
    st.sampled_from(["a", "A", " ", "\n", "0", "!", "-", "'", "é", "漢", "🙂", "\u0301", "aA", "ab", " a",
                     "1a", "\r\n", " \n", "\t ", "/", "_", "'s", "\0", "\u3000", "٣", "Éé"]),
    st.text(min_size=1, max_size=3),
)  # fmt: skip
part = st.one_of(
    letters,
    st.lists(st.integers(0, 40_000).map(lambda i: english()[i]), min_size=1, max_size=6).map("".join),
    apostrophes,
    st.text(st.characters(categories=["Nd", "Nl", "No"]), min_size=1, max_size=9),
    st.text("0123456789", min_size=1, max_size=9),
    some(*SPACES),
    st.text("""!"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~""", min_size=1, max_size=9),
    st.text(st.one_of(st.sampled_from("aAe 1!漢"), st.characters(categories=["M"])), min_size=1, max_size=9),
    st.sampled_from(SCRIPTS).flatmap(script),
    some(*EMOJI),
    some(*CASED, most=9),
    st.text(st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo"]), min_size=1, max_size=9),
    st.text(st.characters(categories=["Cc", "Cf", "Co", "Zs", "Zl", "Zp"]), min_size=1, max_size=5),
    st.builds(run, units, st.sampled_from(RUN_BYTES)),
    snippets,
    ascii_text,
    any_text,
)

PARTS = 14


@st.composite
def families(draw: st.DrawFn) -> list[str]:
    """Every part, any two of them side by side, and those again behind up to 65 bytes that move them over
    the border of a block: a few hundred texts."""
    parts = draw(st.lists(part, min_size=PARTS, max_size=PARTS, unique=True))
    filler, shift = draw(st.sampled_from(FILLERS)), draw(st.integers(0, 65))
    pairs = [left + right for left in parts for right in parts]
    moved = [run(filler, 1 + (shift + i) % 65) + text for i, text in enumerate(pairs)]
    return [*parts, *pairs, *moved]
