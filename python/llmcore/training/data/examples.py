"""Rows to a corpus of examples, of which the loss counts what the model is to say: answers to prompts, and
the turns of the assistant in a chat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmcore.progress import bars
from llmcore.tokenizer import Tokenizer
from llmcore.tokenizer_files import smallest_dtype
from llmcore.training.data.chat import ChatEncoder
from llmcore.training.data.corpus import Corpus, CorpusWriter, cached
from llmcore.training.data.cuts import encode_cut
from llmcore.training.data.identity import source_identity
from llmcore.training.data.sources import Row, Source, cache_of, open_source
from llmcore.training.data.text import end_of_text
from llmcore.trust import concat, trusted

__all__ = ["tokenize_chats", "tokenize_completions"]

_Example: TypeAlias = "tuple[list[int], NDArray[np.bool_]]"
"""The ids of an example, and which of them count."""


def tokenize_completions(
    source: Source,
    tokenizer: Tokenizer,
    *,
    cache: str | PathLike[str] | None = None,
    prompt: str = "prompt",
    completion: str = "completion",
    separator: int | None = None,
    allowed_special: Literal["none", "all"] = "none",
    progress: bool = True,
) -> Corpus:
    """Prompts and what is to follow them, as ids, of which only the completions count, and the end-of-text
    token after them.

    Args:
        source: `.jsonl` files, a folder of them, or rows: dicts with two texts.
        tokenizer: Encodes prompt and completion as one text, but that no token reaches from one into the
            other, and puts before it what it puts before every text.
        cache: See `tokenize_text`.
        prompt: The key of the prompt in a row. It may be empty.
        completion: The key of the completion.
        separator: The end-of-text token, which follows each completion. By default the tokenizer's end token.
        allowed_special: Whether the texts may spell special tokens.
        progress: A bar on standard error, if that is a terminal.

    Raises:
        ValueError: a row is not what it should be (file, line and field are named); there is no row, no end
            token, or no `cache`.
        OSError: a file cannot be read, or the cache not written.
    """
    if allowed_special not in ("none", "all"):
        raise ValueError(f'allowed_special: found {allowed_special!r}, expected "none" or "all"')
    separator, add_separator = end_of_text(tokenizer, separator, True)
    prefix = tokenizer.prefix_ids
    suffix = tokenizer.suffix_ids + [separator] * add_separator
    expected = f'an object with the strings "{prompt}" and "{completion}"'

    def select(row: Row) -> list[Any]:
        texts = [row.value.get(key) for key in (prompt, completion)] if isinstance(row.value, Mapping) else []
        if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{row.where}: found {row.value!r:.80}, expected {expected}")
        return texts

    def encode(row: Row) -> _Example:
        asked, answer = (trusted(text) if allowed_special == "all" else text for text in row.value)
        ids, ends = encode_cut(tokenizer, concat([asked, answer]), [len(asked)])
        counted = [False] * len(prefix) + (ends > len(asked)).tolist() + [True] * len(suffix)
        return [*prefix, *ids, *suffix], np.array(counted)

    options = {"kind": "completions", "separator": separator, "allowed_special": allowed_special}
    options |= {"prompt": prompt, "completion": completion}
    return _tokenize_rows(source, tokenizer, cache, options, expected, select, encode, progress)


def tokenize_chats(
    source: Source,
    tokenizer: Tokenizer,
    *,
    cache: str | PathLike[str] | None = None,
    chat_template: str | None = None,
    progress: bool = True,
    **variables: object,
) -> Corpus:
    """Conversations as ids, of which only the turns of the assistant count, end-of-turn tokens included. What
    exactly counts is said in `llmcore.training.data.chat`.

    Args:
        source: `.jsonl` files, a folder of them, or rows: dicts with `messages`, and perhaps `tools`.
        tokenizer: The checkpoint's, whose chat template renders the conversations.
        cache: See `tokenize_text`. What a template prints of the day is that of the first call.
        chat_template: Jinja source that replaces the checkpoint's.
        progress: A bar on standard error, if that is a terminal.
        variables: Go to the template (`enable_thinking`, …).

    Raises:
        ValueError: a row is not what it should be, or the template refuses it or does not show what the
            assistant says in it (file, line and message are named); there is no template, no row or no
            `cache`.
        OSError: a file cannot be read, or the cache not written.
    """
    encoder = ChatEncoder(tokenizer, chat_template)
    expected = 'an object with a list "messages", and perhaps a list "tools"'

    def select(row: Row) -> list[Any]:
        value = row.value if isinstance(row.value, Mapping) else {}
        messages, tools = value.get("messages"), value.get("tools")
        if not isinstance(messages, list) or not isinstance(tools, list | None):
            raise ValueError(f"{row.where}: found {row.value!r:.80}, expected {expected}")
        return [[_filled(message) for message in messages], tools]

    def encode(row: Row) -> _Example:
        messages, tools = row.value
        try:
            return encoder.encode(messages, tools=tools, **variables)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{row.where}: {error}") from error

    options = {"kind": "chats", "template": encoder.chat_template, "variables": variables}
    return _tokenize_rows(source, tokenizer, cache, options, expected, select, encode, progress)


def _filled(message: Any) -> Any:
    """A message without the keys that it lacks: for a column that other rows have, `datasets` writes None."""
    if not isinstance(message, Mapping):
        return message
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def _tokenize_rows(
    source: Source,
    tokenizer: Tokenizer,
    cache: str | PathLike[str] | None,
    options: dict[str, Any],
    expected: str,
    select: Callable[[Row], list[Any]],
    encode: Callable[[Row], _Example],
    progress: bool,
) -> Corpus:
    """A corpus of an example a row. `select`: what of a row is used."""
    folder = cache_of(source, cache)
    opened = open_source(source)

    def rows() -> Iterator[Row]:
        return (Row(row.where, select(row)) for row in opened.rows(expected))

    def write(corpus: CorpusWriter) -> None:
        with bars(progress) as bar:
            report = bar("Encoding examples", None)
            for done, row in enumerate(rows(), 1):
                ids, counted = encode(row)
                if not counted[1:].any():
                    raise ValueError(
                        f"{row.where}: found nothing that counts, expected what the model is to say"
                    )
                corpus.write(np.array(ids), np.array([len(ids)]), counted)
                if report is not None and done % 100 == 0:
                    report(done)

    return cached(
        folder,
        lambda: source_identity(opened, folder, rows()),
        options | {"tokenizer": tokenizer.fingerprint},
        smallest_dtype(tokenizer.vocab_size),
        write,
        counts_all=False,
    )
