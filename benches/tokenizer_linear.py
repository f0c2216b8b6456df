"""Time for texts that are hard on a tokenizer, at 1, 4 and 16 million characters: does it grow as they do?

    python benches/tokenizer_linear.py

Most of the texts are one piece to a pattern, or few, so that nothing but the merging of a long piece is
measured. The slowest come first; a time that grows by more than its text is one to look into. One thread,
seconds of processor time; vocabularies from the packages of the extra `test`.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ["LLMCORE_THREADS"] = "1"

import machine

import llmcore

sys.path.insert(0, str(machine.ROOT / "tests"))
import vocabularies

Make = Callable[[int], str]
"""A text of so many characters."""


def again(unit: str) -> Make:
    return lambda count: (unit * (count // len(unit) + 1))[:count]


def drawn(alphabet: str) -> Make:
    return lambda count: "".join(random.Random(count).choices(alphabet, k=count))


def span(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


TEXTS: dict[str, Make] = {
    "one letter": again("a"),
    "spaces": again(" "),
    "newlines": again("\n"),
    "line ends": again("\r\n"),
    "mixed white space": drawn(" \t\n\r\u00a0\u2003\u3000"),
    "one digit": again("0"),
    "digits": drawn("0123456789"),
    "random letters": drawn(span(0x61, 0x7A)),
    "random letters of two": drawn("ab"),
    "random capitals and small letters": drawn(span(0x41, 0x5A) + span(0x61, 0x7A)),
    "random ASCII": drawn(span(0x20, 0x7E)),
    "random signs": drawn('!"#$%&()*+,-./:;<=>?@[]^_`{|}~'),
    "one sign": again("-"),
    "apostrophes": again("'"),
    "random CJK": drawn(span(0x4E00, 0x9FFF)),
    "random kana": drawn(span(0x3041, 0x30FE)),
    "random Hangul": drawn(span(0xAC00, 0xD7A3)),
    "random Cyrillic": drawn(span(0x0410, 0x044F)),
    "one CJK": again("漢"),
    "one emoji": again("🙂"),
    "random emoji": drawn(span(0x1F600, 0x1F64F)),
    "emoji that are joined": again("👩\u200d👩\u200d👧"),
    "combining marks": drawn(span(0x0300, 0x036F)),
    "letter and mark": again("e\u0301"),
    "aA": again("aA"),
    "ab": again("ab"),
    "letter and space": again("a "),
    "space and newline": again(" \n"),
    "space and sign": again(" !"),
    "letter and digit": again("a1"),
    "contractions": again("'s"),
    "NUL": again("\0"),
    "any characters": drawn(span(0, 0xD7FF) + span(0xE000, 0x10FFFF)),
}


def of_vocabulary(name: str) -> dict[str, Make]:
    """Texts without white space of the words of a vocabulary, and of words that are not quite in it."""
    words = [token.decode() for token in vocabularies.ranks(name) if token.isalpha() and token.isascii()]
    longest = max(words, key=len)
    capitals = [word for word in words if word.isupper()]

    def joined(choices: list[str]) -> Make:
        return lambda count: again("".join(random.Random(count).choices(choices, k=count // 2)))(count)

    return {
        "words without spaces": joined([word for word in words if word.islower()]),
        "long words without spaces": joined(sorted(words, key=len)[-1000:]),
        "capitals without spaces": joined(capitals),
        "the longest word": again(longest),
        "the longest word but its end": again(longest[:-1]),
        "the longest word but its beginning": again(longest[1:]),
    }


def seconds(tokenizer: llmcore.Tokenizer, text: str) -> float:
    start = time.process_time()
    tokenizer.encode_array(text)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabularies", nargs="+", default=["gpt2", "cl100k", "o200k"])
    parser.add_argument("--millions", nargs="+", type=float, default=[1, 4, 16])
    parser.add_argument("--texts", default="", help="only those whose name holds this")
    args = parser.parse_args()
    print(f"{machine.describe()}; one thread, milliseconds of processor time\n")
    sizes = [int(millions * 1e6) for millions in args.millions]
    for name in args.vocabularies:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ranks.tiktoken"
            vocabularies.write_tiktoken(path, vocabularies.RANKS[name])
            tokenizer = llmcore.Tokenizer.from_file(path, pattern=name)
        texts = TEXTS | of_vocabulary(vocabularies.RANKS[name])
        rows = {
            text: [seconds(tokenizer, make(size)) for size in sizes]
            for text, make in texts.items()
            if args.texts in text
        }
        print(f"## {name}\n")
        millions = [f"{size / 1e6:g} M" for size in sizes]
        grown = [f"{more} to {less}, a character" for less, more in pairwise(millions)]
        print("| | " + " | ".join([*millions, *grown]) + " |")
        print("|---" * (1 + len(millions) + len(grown)) + "|")
        for text, times in sorted(rows.items(), key=lambda row: -row[1][-1]):
            cells = [f"{1e3 * value:.3g}" for value in times]
            cells += [
                f"{(b / sizes[i + 1]) / (a / sizes[i]):.2f}" for i, (a, b) in enumerate(pairwise(times))
            ]
            print(f"| {text} | " + " | ".join(cells) + " |")
        print(flush=True)


if __name__ == "__main__":
    main()
