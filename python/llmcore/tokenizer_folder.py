"""What the files of a folder in the Hugging Face layout say of its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["TokenizerFolder", "special_token"]

ROLES = ("bos", "eos", "unk", "pad")


class _Class(NamedTuple):
    """What a tokenizer class of Transformers assumes where the files do not say."""

    pattern: str
    nfc: bool
    roles: dict[str, str]


_END = "<|endoftext|>"
_CLASSES = {
    "GPT2": _Class("gpt2", False, {"bos": _END, "eos": _END, "unk": _END}),
    "Qwen2": _Class("qwen2", True, {"eos": _END, "pad": _END}),
}

# Classes by config.json's model_type, for folders that do not name the class.
_MODEL_TYPES = {"gpt2": "GPT2", "qwen2": "Qwen2", "qwen3": "Qwen2"}

NewToken = tuple[str, int | None, bool, bool, bool, bool, bool]
"""Content, id, special, normalized, lstrip, rstrip, single_word."""


def special_token(content: str, id: int | None) -> NewToken:
    """A special token that is found wherever it is spelled."""
    return (content, id, True, False, False, False, False)


class TokenizerFolder:
    """The files beside, and of, the tokenizer of a folder.

    Raises `FileNotFoundError` if there is neither tokenizer.json nor vocab.json, and `ValueError`,
    which names file and field, for a file that is not what it should be.
    """

    path: Path
    """`tokenizer.json`, or else `vocab.json`."""

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "tokenizer.json"
        if not self.path.exists():
            self.path = self.folder / "vocab.json"
        if not self.path.exists():
            raise FileNotFoundError(f"{self.folder}: found neither tokenizer.json nor vocab.json")
        self.config = self._read("tokenizer_config.json")
        self.special = self._read("special_tokens_map.json")
        self.model_config = self._read("config.json")

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of :class:`llmcore._core.Tokenizer`."""
        settings = self._roles()
        for flag in ("add_bos", "add_eos"):
            value = self.config.get(f"{flag}_token")
            if not isinstance(value, bool | None):
                raise self._wrong("tokenizer_config.json", f"{flag}_token", value, "true or false")
            settings[flag] = value
        if self.path.name == "vocab.json":
            known = self._class()
            if known is None:
                named = self.config.get("tokenizer_class", self.model_config.get("model_type"))
                names = ", ".join(f"{name}Tokenizer" for name in _CLASSES)
                expected = f"tokenizer.json, or one of {names}"
                raise self._wrong("tokenizer_config.json", "tokenizer_class", named, expected)
            settings["pattern"], settings["nfc"] = known.pattern, known.nfc
            settings["added_tokens"] = self._added_tokens()
        return settings

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Lets the tokenizer's errors about its settings begin with the file that says them."""
        try:
            yield
        except ValueError as error:
            field = str(error).partition(":")[0]
            if field not in self.config and field not in self.special:
                raise
            raise ValueError(f"{self.folder / self._saying(field)}: {error}") from None

    def chat_template(self) -> str | None:
        """chat_template.jinja, or else the template in tokenizer_config.json (the one named "default", if
        there are several)."""
        path = self.folder / "chat_template.jinja"
        if path.exists():
            return path.read_text(encoding="utf-8")
        template = self.config.get("chat_template")
        if isinstance(template, list):
            named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
            template = named.get("default")
        if not isinstance(template, str | None):
            raise self._wrong("tokenizer_config.json", "chat_template", template, "a string or a list")
        return template

    def _class(self) -> _Class | None:
        """What the class of the tokenizer assumes. Files that name none are GPT-2's if they are vocab.json
        and merges.txt."""
        model_type = self.model_config.get("model_type", "gpt2" if self.path.name == "vocab.json" else "")
        named = self.config.get("tokenizer_class") or _MODEL_TYPES.get(str(model_type), "")
        return _CLASSES.get(str(named).removesuffix("Fast").removesuffix("Tokenizer"))

    def _roles(self) -> dict[str, Any]:
        """Tokens with a role, as the first of these says that names it: tokenizer_config.json,
        special_tokens_map.json, the ids in config.json, the class of the tokenizer."""
        tokens = self.special | self.config
        known = self._class()
        assumed = []
        found: dict[str, list[str | int]] = {}
        for role in ROLES:
            key = f"{role}_token"
            if key in tokens:
                token = tokens[key]
                found[role] = [] if token is None else [self._content(self._saying(key), key, token)]
            elif self.model_config.get(f"{key}_id") is not None:
                ids = self.model_config[f"{key}_id"]
                ids = ids if isinstance(ids, list) else [ids]
                if not all(isinstance(id, int) for id in ids):
                    raise self._wrong("config.json", f"{key}_id", ids, "an id or a list of ids")
                found[role] = [id for id in ids if id >= 0]
            elif known is not None and role in known.roles:
                found[role] = [known.roles[role]]
                assumed.append(known.roles[role])
        one = {f"{role}_token": named[0] for role, named in found.items() if named and role != "eos"}
        return one | {"eos_tokens": found.get("eos", []), "assumed": assumed}

    def _saying(self, field: str) -> str:
        """The file that says which token has a role."""
        return "tokenizer_config.json" if field in self.config else "special_tokens_map.json"

    def _added_tokens(self) -> list[NewToken]:
        """What tokenizer.json would list, where it is missing."""
        added: dict[str, NewToken] = {}
        for content, id in self._read("added_tokens.json").items():
            added[content] = special_token(content, self._id("added_tokens.json", content, id))
        listed = self.config.get("added_tokens_decoder", {})
        if not isinstance(listed, dict):
            raise self._wrong("tokenizer_config.json", "added_tokens_decoder", listed, "an object")
        for key, token in listed.items():
            field = f"added_tokens_decoder.{key}"
            content = self._content("tokenizer_config.json", field, token)
            id = self._id("tokenizer_config.json", field, key)
            get = token.get if isinstance(token, dict) else {}.get
            flags = ("special", "normalized", "lstrip", "rstrip", "single_word")
            special, normalized, lstrip, rstrip, single_word = (bool(get(flag)) for flag in flags)
            added[content] = (content, id, special, normalized, lstrip, rstrip, single_word)
        return list(added.values())

    def _content(self, file: str, field: str, value: Any) -> str:
        """A token, which the files write as a string or as an object with its flags."""
        content = value.get("content") if isinstance(value, dict) else value
        if not isinstance(content, str):
            raise self._wrong(file, field, value, "a token")
        return content

    def _id(self, file: str, field: str, value: Any) -> int:
        """An id, which as the key of an object is a string."""
        text = str(value)
        if not (text.isascii() and text.isdecimal() and len(text) < 12):
            raise self._wrong(file, field, value, "an id")
        return int(text)

    def _wrong(self, file: str, field: str, found: Any, expected: str) -> ValueError:
        return ValueError(f"{self.folder / file}: {field}: found {found!r:.80}, expected {expected}")

    def _read(self, file: str) -> dict[str, Any]:
        """The object in a file; empty if there is no such file."""
        path = self.folder / file
        if not path.exists():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: found {error}, expected JSON") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}: found {type(value).__name__}, expected an object")
        return value
