"""Text to token ids and back.

:class:`Tokenizer` reads `tokenizer.json`, `vocab.json` with `merges.txt`, `.tiktoken`, and the metadata
of `.gguf`. Rust does the work (`rust/bpe/`); here are the files around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

from llmcore import _core

__all__ = ["Tokenizer"]

# What Transformers' classes assume where a folder without tokenizer.json does not say: the
# pre-tokenisation, whether text is normalised to NFC, and the tokens for beginning, end and unknown.
_GPT2 = ("gpt2", False, "<|endoftext|>", "<|endoftext|>", "<|endoftext|>")
_QWEN2 = ("qwen2", True, None, "<|endoftext|>", None)
_CLASSES = {"GPT2": _GPT2, "Qwen2": _QWEN2}

# Class names by config.json's model_type, for folders that do not name the class.
_MODEL_TYPES = {"gpt2": "GPT2", "qwen2": "Qwen2"}

NewToken = tuple[str, int | None, bool, bool, bool, bool, bool]


class Tokenizer(_core.Tokenizer):
    """A tokenizer. Immutable but for :attr:`chat_template`; threads may share it.

    Made by :meth:`from_file` or :meth:`from_folder`.
    """

    chat_template: str | None
    """The Jinja template that turns messages into a prompt, if the files hold one."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.chat_template = self.embedded_chat_template

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        pattern: str | None = None,
        special_tokens: Mapping[str, int] | Iterable[str] | None = None,
    ) -> Tokenizer:
        """The tokenizer of a `tokenizer.json`, a `vocab.json` (`merges.txt` beside it), a `.tiktoken` or a
        `.gguf`.

        `pattern` is the pre-tokenisation of a `.tiktoken` or a `vocab.json`: `"gpt2"` (the default of
        the latter), `"cl100k"`, `"o200k"`, `"llama3"`, `"qwen2"`, or a regular expression.
        `special_tokens` are added to those of the file, with ids or with those of the vocabulary (or
        the next free ones).

        Raises `FileNotFoundError` if there is no such file, and `ValueError`, which names file, field,
        what was found and what was expected, if it is not what it claims to be.
        """
        named = dict(special_tokens) if isinstance(special_tokens, Mapping) else special_tokens or ()
        ids = named if isinstance(named, dict) else dict.fromkeys(named)
        added = [_special(token, id) for token, id in ids.items()]
        return cls(path, pattern=pattern, added_tokens=added)

    @classmethod
    def from_folder(cls, folder: str | PathLike[str]) -> Tokenizer:
        """The tokenizer of a folder in the Hugging Face layout.

        `tokenizer.json`, or else `vocab.json` and `merges.txt`; `tokenizer_config.json`,
        `special_tokens_map.json`, `added_tokens.json`, `config.json` and `chat_template.jinja` are
        honoured. Raises as :meth:`from_file` does.
        """
        folder = Path(folder)
        config = _read_json(folder / "tokenizer_config.json")
        settings: dict[str, Any] = {}
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            value = config.get(role) or _read_json(folder / "special_tokens_map.json").get(role)
            if value is not None:
                settings[role] = _content(folder, role, value)
        for flag in ("add_bos", "add_eos"):
            value = config.get(f"{flag}_token")
            if value is not None:
                settings[flag] = bool(value)
        path = folder / "tokenizer.json"
        if not path.exists():
            path = folder / "vocab.json"
            if not path.exists():
                raise FileNotFoundError(f"{folder}: found neither tokenizer.json nor vocab.json")
            _add_class(folder, config, settings)
        tokenizer = cls(path, **settings)
        tokenizer.chat_template = _chat_template(folder, config)
        return tokenizer

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[True] = True,
        chat_template: str | None = None,
        **variables: object,
    ) -> list[int]: ...
    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: Literal[False],
        chat_template: str | None = None,
        **variables: object,
    ) -> str: ...
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        chat_template: str | None = None,
        **variables: object,
    ) -> list[int] | str:
        """The prompt of a conversation, as ids or as text; see :func:`llmcore.chat.apply_chat_template`."""
        from llmcore.chat import apply_chat_template

        return apply_chat_template(
            self,
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=tokenize,
            chat_template=chat_template,
            **variables,
        )


def _special(token: str, id: int | None) -> NewToken:
    return (token, id, True, False, False, False, False)


def _add_class(folder: Path, config: dict[str, Any], settings: dict[str, Any]) -> None:
    """Adds what a tokenizer.json would have said, from the class that the folder names."""
    model_type = _read_json(folder / "config.json").get("model_type", "gpt2")
    named = config.get("tokenizer_class") or _MODEL_TYPES.get(model_type, model_type)
    name = str(named).removesuffix("Fast").removesuffix("Tokenizer")
    if name not in _CLASSES:
        known = ", ".join(f"{name}Tokenizer" for name in _CLASSES)
        raise ValueError(
            f"{folder}: tokenizer_class: found {named!r} and no tokenizer.json, expected one of {known}"
        )
    pattern, nfc, bos, eos, unk = _CLASSES[name]
    settings["pattern"], settings["nfc"] = pattern, nfc
    settings.setdefault("bos_token", bos)
    settings.setdefault("eos_token", eos)
    settings.setdefault("unk_token", unk)
    added: dict[str, NewToken] = {}
    for token, id in _read_json(folder / "added_tokens.json").items():
        added[token] = _special(token, id)
    for id, token in config.get("added_tokens_decoder", {}).items():
        content = _content(folder, f"added_tokens_decoder[{id!r}]", token)
        special, normalized = bool(token.get("special")), bool(token.get("normalized"))
        lstrip, rstrip = bool(token.get("lstrip")), bool(token.get("rstrip"))
        single_word = bool(token.get("single_word"))
        added[content] = (content, int(id), special, normalized, lstrip, rstrip, single_word)
    for token in (settings.get(role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")):
        if isinstance(token, str):
            added.setdefault(token, _special(token, None))
    settings["added_tokens"] = list(added.values())


def _content(folder: Path, field: str, value: Any) -> str:
    """A token, which the files write as a string or as an object with its flags."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise ValueError(f"{folder}: {field}: found {value!r}, expected a token")
    return content


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        # Several templates, each with a name.
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: chat_template: found {type(template).__name__}, "
            "expected a string or a list of named templates"
        )
    return template


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found {error}, expected JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: found {type(value).__name__}, expected an object")
    return value
