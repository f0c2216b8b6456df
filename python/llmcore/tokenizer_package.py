"""WordPiece, Unigram and WordLevel, which the package `tokenizers` encodes, behind the face of
:class:`llmcore.Tokenizer`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from llmcore import _core
from llmcore.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

__all__ = ["PackageTokenizer", "read"]

_MODELS = ("WordPiece", "Unigram", "WordLevel")

_Allowed = str | Iterable[str] | None
_Ids = int | Sequence[int] | NDArray[np.integer[Any]]


def read(path: str | PathLike[str]) -> dict[str, Any] | None:
    """The tokenizer.json at `path`, if its model is one of this file's."""
    if not str(path).endswith(".json"):
        return None
    try:
        file: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return file if file["model"]["type"] in _MODELS else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


class PackageTokenizer(Tokenizer):
    """A tokenizer that the package `tokenizers` encodes and decodes with.

    What it derives from holds the vocabulary, the added tokens, and which token has which role. Texts are
    encoded whole: `truncate` reads all of a text, and `encode_file` holds a document in memory. `bytes`
    that are not UTF-8 become U+FFFD, and what a normaliser changed or the vocabulary lacks does not come
    back from `decode_bytes`. `stream_decoder` raises ValueError for WordPiece, where a token may change the
    spaces before it.
    """

    _file: dict[str, Any]
    _allowing: dict[frozenset[str] | None, tokenizers.Tokenizer]
    """By the added tokens that a text may hold; None stands for all."""

    def __new__(cls, path: str | PathLike[str], file: dict[str, Any], **settings: Any) -> PackageTokenizer:
        """`file`: the tokenizer.json; `settings`: those of :class:`llmcore._core.Tokenizer`."""
        if settings.get("add_bos") or settings.get("add_eos"):
            raise ValueError(
                f"{path}: found add_bos_token or add_eos_token, expected a post_processor instead"
            )
        added = list(file.get("added_tokens") or ())
        theirs = _load(path, file)
        self = super().__new__(cls, path, json=json.dumps(_vocabulary(theirs, file)), **settings)
        # Tokens that the settings made special.
        listed = {token["content"] for token in added}
        for id in self.special_ids:
            content = self.id_to_token(id)
            if content not in listed:
                flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
                added.append({"id": id, "content": content, "special": True} | flags)
        self._file = file | {"added_tokens": added}
        self._allowing = {None: _load(path, self._file)}
        for token in added:
            id, found = token["id"], self._allowing[None].token_to_id(token["content"])
            if id != found:
                raise ValueError(f"{path}: {token['content']!r}: found the id {id}, expected {found}")
        return self

    def _tokenizer(self, allowed: _Allowed) -> tokenizers.Tokenizer:
        """What finds the allowed added tokens, and those of white space only."""
        if allowed is None or allowed == "all":
            return self._allowing[None]
        if isinstance(allowed, str) and allowed != "none":
            expected = '"all", "none", or a list of tokens'
            raise ValueError(f"allowed_special: found {allowed!r}, expected {expected}")
        names = frozenset() if isinstance(allowed, str) else frozenset(allowed)
        if names not in self._allowing:
            self._allowing[names] = _load("tokenizer.json", _hiding(self._file, names))
        return self._allowing[names]

    @overload
    def encode(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: _Allowed = None,
        with_offsets: Literal[False] = False,
    ) -> list[int]: ...
    @overload
    def encode(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: _Allowed = None,
        with_offsets: Literal[True],
    ) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode(
        self,
        text: str | bytes,
        *,
        add_special_tokens: bool = True,
        allowed_special: _Allowed = None,
        with_offsets: bool = False,
    ) -> list[int] | tuple[list[int], list[tuple[int, int]]]:
        """As :meth:`llmcore.Tokenizer.encode`."""
        encoding = self._tokenizer(allowed_special).encode(_text(text), add_special_tokens=add_special_tokens)
        return (encoding.ids, encoding.offsets) if with_offsets else encoding.ids

    def encode_array(
        self, text: str | bytes, *, add_special_tokens: bool = True, allowed_special: _Allowed = None
    ) -> NDArray[np.uint32]:
        """As :meth:`llmcore.Tokenizer.encode_array`."""
        ids = self.encode(text, add_special_tokens=add_special_tokens, allowed_special=allowed_special)
        return np.array(ids, np.uint32)

    def count(
        self, text: str | bytes, *, add_special_tokens: bool = True, allowed_special: _Allowed = None
    ) -> int:
        """As :meth:`llmcore.Tokenizer.count`."""
        return len(self.encode(text, add_special_tokens=add_special_tokens, allowed_special=allowed_special))

    def truncate(
        self, text: str, n: int, *, add_special_tokens: bool = True, allowed_special: _Allowed = None
    ) -> str:
        """As :meth:`llmcore.Tokenizer.truncate`."""
        around = len(self.prefix_ids) + len(self.suffix_ids) if add_special_tokens else 0
        if n < around:
            raise ValueError(
                f"n: found {n}, expected at least {around}, as many ids as are put around a text"
            )
        text = _text(text)
        tokenizer = self._tokenizer(allowed_special)
        while len(offsets := tokenizer.encode(text, add_special_tokens=False).offsets) > n - around:
            text = text[: min(offsets[n - around][0], len(text) - 1)]
        return text

    @overload
    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        *,
        add_special_tokens: bool = True,
        allowed_special: _Allowed = None,
        flat: Literal[False] = False,
    ) -> list[NDArray[np.uint32]]: ...
    @overload
    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        *,
        add_special_tokens: bool = True,
        allowed_special: _Allowed = None,
        flat: Literal[True],
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...
    def encode_batch(
        self,
        texts: Sequence[str | bytes],
        *,
        add_special_tokens: bool = True,
        allowed_special: _Allowed = None,
        flat: bool = False,
    ) -> list[NDArray[np.uint32]] | tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """As :meth:`llmcore.Tokenizer.encode_batch`."""
        if isinstance(texts, str | bytes):
            raise TypeError(f"texts: found {type(texts).__name__}, expected a list of str or bytes")
        tokenizer = self._tokenizer(allowed_special)
        encodings = tokenizer.encode_batch_fast(
            [_text(text) for text in texts], add_special_tokens=add_special_tokens
        )
        rows = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        if not flat:
            return rows
        starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.uint32), *rows]), starts

    @overload
    def encode_spans(
        self,
        spans: Sequence[tuple[str, bool]],
        *,
        add_special_tokens: bool = False,
        with_offsets: Literal[False] = False,
    ) -> list[int]: ...
    @overload
    def encode_spans(
        self,
        spans: Sequence[tuple[str, bool]],
        *,
        add_special_tokens: bool = False,
        with_offsets: Literal[True],
    ) -> tuple[list[int], list[tuple[int, int]]]: ...
    def encode_spans(
        self,
        spans: Sequence[tuple[str, bool]],
        *,
        add_special_tokens: bool = False,
        with_offsets: bool = False,
    ) -> list[int] | tuple[list[int], list[tuple[int, int]]]:
        """As :meth:`llmcore.Tokenizer.encode_spans`; but where a text that is not trusted spells an added
        token, each text is encoded alone."""
        spelled = [token["content"] for token in self._file["added_tokens"]]
        if not any(token in text for text, trusted in spans if not trusted for token in spelled):
            spans = [("".join(text for text, _ in spans), True)]
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        start = 0
        for text, trusted in spans:
            allowed = "all" if trusted else "none"
            encoding = self._tokenizer(allowed).encode(_text(text), add_special_tokens=False)
            ids += encoding.ids
            offsets += [(start + first, start + end) for first, end in encoding.offsets]
            start += len(text)
        if add_special_tokens:
            prefix, suffix = self._around()
            ids = [*prefix, *ids, *suffix]
            offsets = [(0, 0)] * len(prefix) + offsets + [(0, 0)] * len(suffix)
        return (ids, offsets) if with_offsets else ids

    def last_seam(self, text: bytes) -> None:
        """None: only the package knows where a text may be cut."""

    def decode(self, ids: _Ids, skip_special_tokens: bool = False) -> str:
        """As :meth:`llmcore.Tokenizer.decode`."""
        row = np.atleast_1d(np.asarray(ids)).tolist()
        for id in row:
            if not (isinstance(id, int) and 0 <= id < 1 << 32):
                raise ValueError(f"ids: found {id}, expected ids from 0 to 2³² − 1")
        return self._allowing[None].decode(row, skip_special_tokens=skip_special_tokens)

    def decode_bytes(self, ids: _Ids, skip_special_tokens: bool = False) -> bytes:
        """`decode`, as UTF-8."""
        return self.decode(ids, skip_special_tokens).encode()

    def stream_decoder(
        self, *, skip_special_tokens: bool = False, continuing: bool = False
    ) -> _core.StreamDecoder:
        """As :meth:`llmcore.Tokenizer.stream_decoder`. Raises ValueError for WordPiece."""
        if self._file["model"]["type"] != "Unigram":
            kind = self._file["model"]["type"]
            raise ValueError(f"model.type: found {kind!r}, expected a model whose texts are decoded in parts")
        return super().stream_decoder(skip_special_tokens=skip_special_tokens, continuing=continuing)

    @property
    def prefix_ids(self) -> list[int]:
        """The ids that `encode` puts before every text."""
        return self._around()[0]

    @property
    def suffix_ids(self) -> list[int]:
        """The ids that `encode` puts after every text."""
        return self._around()[1]

    def _around(self) -> tuple[list[int], list[int]]:
        # Of any text; this has a token in every vocabulary, if only the one of what has no other.
        encoding = self._allowing[None].encode("a")
        text = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]

    @property
    def json(self) -> None:
        """None: it is not trained here."""


def _load(path: str | PathLike[str], file: dict[str, Any]) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        needed = "the package tokenizers (pip install 'llmcore-cpu[tokenizers]')"
        raise ModuleNotFoundError(f"{path}: {file['model']['type']} needs {needed}") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
    except Exception as error:  # the package raises nothing narrower
        raise ValueError(f"{path}: found {error}, expected a tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _vocabulary(theirs: tokenizers.Tokenizer, file: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json of the same vocabulary and added tokens, that merges nothing."""
    model, decoder = file["model"], file.get("decoder")
    if model["type"] == "WordPiece":
        prefix = {"String": model.get("continuing_subword_prefix", "##")}
        replace = {"type": "Replace", "pattern": prefix, "content": ""}
        decoder = {"type": "Sequence", "decoders": [replace, {"type": "Fuse"}]}
    return {
        "version": "1.0",
        "added_tokens": file.get("added_tokens") or [],
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "vocab": theirs.get_vocab(with_added_tokens=False),
            "merges": [],
            "byte_fallback": bool(model.get("byte_fallback")),
        },
    }


def _hiding(file: dict[str, Any], allowed: frozenset[str]) -> dict[str, Any]:
    """A tokenizer.json that finds only the allowed of the added tokens, and those of white space only.

    No text becomes another special token, even where the model has it for a word: it is called by a name that
    nobody can guess.
    """
    secret = secrets.token_hex(8)
    model = file["model"]
    vocab = model["vocab"]
    words = set(vocab) if isinstance(vocab, dict) else {word for word, _ in vocab}
    hidden, added = {}, []
    for token in file["added_tokens"]:
        content = token["content"]
        layout = not token["special"] and not content.strip()
        if not layout and content not in allowed:
            if not token["special"] and content in words:
                continue  # a word like others
            hidden[content] = f"\U0010ffff{secret}{token['id']}"
        added.append(token | {"content": hidden.get(content, content)})
    if isinstance(vocab, dict):
        vocab = {hidden.get(word, word): id for word, id in vocab.items()}
    else:
        vocab = [[hidden.get(word, word), score] for word, score in vocab]
    model = model | {"vocab": vocab}
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    return file | {"added_tokens": added, "model": model}


def _text(text: str | bytes) -> str:
    """A text that the package reads as the class says; see `encode` for surrogates."""
    if isinstance(text, bytes):
        return text.decode(errors="replace")
    if not isinstance(text, str):
        raise TypeError(f"text: found {type(text).__name__}, expected str or bytes")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
