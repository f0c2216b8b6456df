"""The tokenizers of Transformers' names: texts to padded batches of ids, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmcore import hub
from llmcore.checkpoint import read_json
from llmcore.hf.arrays import to_numpy, wrap_as
from llmcore.tokenizer import Tokenizer

__all__ = ["AutoTokenizer", "BatchEncoding", "GPT2Tokenizer", "PreTrainedTokenizer"]

_ROLES = ("bos", "eos", "unk", "pad")

# Transformers' names for what may be asked for, and whether (or how far) it is done.
_SIDES = {"left": "left", "right": "right"}
_PADDING = {
    None: None,
    False: None,
    "do_not_pad": None,
    True: "longest",
    "longest": "longest",
    "max_length": "max",
}
_TRUNCATION = {None: False, False: False, "do_not_truncate": False, True: True, "longest_first": True}

_UNLIMITED = int(1e30)
"""The `model_max_length` of a tokenizer that has none, which is Transformers' number for it."""


def _choose(name: str, value: object, choices: Mapping[Any, Any]) -> Any:
    if value not in choices:
        raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(map(repr, choices))}")
    return choices[value]


class BatchEncoding(dict[str, Any]):
    """Encoded texts: `input_ids` and `attention_mask`, as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"BatchEncoding has no {name!r}") from None

    def to(self, device: Any) -> BatchEncoding:
        """The encoding itself, which stays where it is.

        Raises:
            ValueError: another device than "cpu".
        """
        if str(device) != "cpu":
            raise ValueError(f"device: found {str(device)!r}, expected 'cpu'")
        return self


def _token(role: str) -> property:
    """The token of a role, or None; takes any token of the vocabulary."""

    def get(self: PreTrainedTokenizer) -> str | None:
        id = self._special[role]
        return None if id is None else self.core.id_to_token(id)

    def set(self: PreTrainedTokenizer, token: str | None) -> None:
        id = None if token is None else self.core.token_to_id(token)
        if token is not None and id is None:
            raise ValueError(f"{role}_token: found {token!r}, expected a token of the vocabulary")
        self._special[role] = id

    return property(
        get, set, doc=f"The {role} token; None if there is none. May be set to any of the vocabulary."
    )


def _token_id(role: str) -> property:
    """The id of a role, or None; takes any id of the vocabulary."""

    def get(self: PreTrainedTokenizer) -> int | None:
        return self._special[role]

    def set(self: PreTrainedTokenizer, id: int | None) -> None:
        if id is not None and not 0 <= id < len(self.core):
            raise ValueError(f"{role}_token_id: found {id}, expected an id below {len(self.core)}")
        self._special[role] = id

    return property(get, set, doc=f"The id of the {role} token; None if there is none. May be set.")


class PreTrainedTokenizer:
    """A tokenizer under its name in Transformers. `from_pretrained` makes one.

    Attributes:
        core: The tokenizer that does the work, a `llmcore.Tokenizer`.
        padding_side: Where padding goes, "right" or "left"; may be changed.
        model_max_length: What a truncated text is cut to unless a call says; may be changed.
    """

    bos_token, bos_token_id = _token("bos"), _token_id("bos")
    eos_token, eos_token_id = _token("eos"), _token_id("eos")
    unk_token, unk_token_id = _token("unk"), _token_id("unk")
    pad_token, pad_token_id = _token("pad"), _token_id("pad")

    def __init__(
        self, core: Tokenizer, *, padding_side: str = "right", model_max_length: int = _UNLIMITED
    ) -> None:
        self.core = core
        self.padding_side = padding_side
        self.model_max_length = model_max_length
        self._special: dict[str, int | None] = {role: getattr(core, f"{role}_token_id") for role in _ROLES}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        padding_side: str | None = None,
        model_max_length: int | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        local_files_only: bool = False,
        use_fast: bool | None = None,
        trust_remote_code: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> PreTrainedTokenizer:
        """Loads the tokenizer of a checkpoint.

        Args:
            source: As for `llmcore.load`: a folder, a `.gguf` file, a hub id, or a short name.
            padding_side: Replaces the checkpoint's.
            model_max_length: Replaces the checkpoint's.
            bos_token: Replaces the checkpoint's, by any token of the vocabulary.
            eos_token: Likewise.
            unk_token: Likewise.
            pad_token: Likewise.
            local_files_only: Whether the network is left alone.
            use_fast: Either value: there is one implementation.
            trust_remote_code: Either value: code of a checkpoint is never run.
            clean_up_tokenization_spaces: Either value: `decode` never changes a text.

        Raises:
            FileNotFoundError: nothing is found under the name, or it has no tokenizer.
            ValueError: a file that is not what it claims to be, or an argument out of range.
            TypeError: an unknown argument.
        """
        path = hub.resolve(source, download=not local_files_only)
        settings = path / "tokenizer_config.json"
        said = read_json(settings) if path.is_dir() and settings.exists() else {}
        tokenizer = cls(
            Tokenizer.from_folder(path) if path.is_dir() else Tokenizer.from_file(path),
            padding_side=_choose("padding_side", padding_side or said.get("padding_side", "right"), _SIDES),
            model_max_length=int(model_max_length or said.get("model_max_length") or _UNLIMITED),
        )
        for role, token in zip(_ROLES, (bos_token, eos_token, unk_token, pad_token), strict=True):
            if token is not None:
                setattr(tokenizer, f"{role}_token", token)
        return tokenizer

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
    ) -> BatchEncoding:
        """Encodes a text, or a batch of texts.

        Args:
            text: One text or several.
            add_special_tokens: Whether what the tokenizer puts around a text is added.
            padding: True or "longest" fills up to the longest text, "max_length" up to `max_length`.
            truncation: True or "longest_first" cuts texts to `max_length`; what is put around them stays.
            max_length: In tokens; `model_max_length` unless given.
            padding_side: Replaces the tokenizer's own.
            return_tensors: "np" for arrays, "pt" for torch tensors (arrays where torch is not installed);
                lists unless given.
            return_attention_mask: Whether the mask is returned.

        Returns:
            `input_ids` and `attention_mask` (1 for each real token, 0 for padding): of one text lists of
            numbers, of several lists of these; with `return_tensors` int64, `[batch, time]`, where one text
            is a batch of one.

        Raises:
            ValueError: padding without a `pad_token`, texts of unequal lengths that are to be one array, or
                an argument out of range.
            TypeError: something else than texts, or an unknown argument.
        """
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        rows = [ids.tolist() for ids in self.core.encode_batch(texts, add_special_tokens=add_special_tokens)]
        if truncation is None:
            truncation = max_length is not None and padding is False
        if _choose("truncation", truncation, _TRUNCATION):
            limit = self.model_max_length if max_length is None else max_length
            rows = [self._truncate(text, ids, limit) for text, ids in zip(texts, rows, strict=True)]
        return self._batch(
            rows, single, padding, max_length, padding_side, return_tensors, return_attention_mask
        )

    def _truncate(self, text: str, ids: list[int], limit: int) -> list[int]:
        """`ids`, which `text` was encoded to, cut to `limit`; what was put around the text stays."""
        if len(ids) <= limit:
            return ids
        content = self.core.encode(text, add_special_tokens=False)
        around = len(ids) - len(content)
        if around > limit:
            raise ValueError(
                f"max_length: found {limit}, expected at least the {around} tokens put around a text"
            )
        before = next(first for first in range(around + 1) if ids[first : first + len(content)] == content)
        return ids[:before] + content[: limit - around] + ids[before + len(content) :]

    def _batch(
        self,
        rows: list[list[int]],
        single: bool,
        padding: bool | str,
        max_length: int | None,
        padding_side: str | None,
        return_tensors: str | None,
        return_attention_mask: bool,
    ) -> BatchEncoding:
        """Rows of ids as `__call__` returns them."""
        side = _choose("padding_side", padding_side or self.padding_side, _SIDES)
        kind = _choose("padding", padding, _PADDING)
        masks = [[1] * len(ids) for ids in rows]
        if kind is not None:
            length = max(map(len, rows), default=0)
            if kind == "max":
                limit = self.model_max_length if max_length is None else max_length
                length = max(length, limit) if limit < _UNLIMITED else 0
            rows = [self._pad(ids, self._padding_id(), length, side) for ids in rows]
            masks = [self._pad(mask, 0, length, side) for mask in masks]
        encoding = {"input_ids": rows, "attention_mask": masks}
        if not return_attention_mask:
            del encoding["attention_mask"]
        if return_tensors is None:
            return BatchEncoding({name: value[0] if single else value for name, value in encoding.items()})
        wrap = wrap_as(return_tensors)
        if len({len(ids) for ids in rows}) > 1:
            raise ValueError(
                "padding: found texts of unequal lengths, expected padding=True for them to be one array"
            )
        return BatchEncoding({name: wrap(np.array(value, np.int64)) for name, value in encoding.items()})

    def _padding_id(self) -> int:
        id = self._special["pad"]
        if id is None:
            raise ValueError(
                "pad_token: found none, expected one to pad with (tokenizer.pad_token = tokenizer.eos_token)"
            )
        return id

    @staticmethod
    def _pad(row: list[int], value: int, length: int, side: str) -> list[int]:
        filling = [value] * (length - len(row))
        return row + filling if side == "right" else filling + row

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> Any:
        """The `input_ids` of calling the tokenizer: a list, or `[1, time]` with `return_tensors`."""
        if not isinstance(text, str):
            raise TypeError(
                f"text: found {type(text).__name__}, expected one text (call the tokenizer for several)"
            )
        return self(
            text,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            padding_side=padding_side,
            return_tensors=return_tensors,
        )["input_ids"]

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of token ids: of one id, of a sequence, or of each row of a batch, then as a list.

        Args:
            token_ids: Numbers, NumPy arrays or torch tensors.
            skip_special_tokens: Whether special tokens, padding among them, are left out.
            clean_up_tokenization_spaces: Either value: texts of BPE are never changed, as in Transformers 5.

        Raises:
            ValueError: something else than token ids.
        """
        if isinstance(token_ids, Sequence) and len(token_ids) and np.ndim(token_ids[0]):
            return self.batch_decode(token_ids, skip_special_tokens)
        ids = to_numpy(token_ids)
        if ids.ndim == 2:
            return self.batch_decode(ids, skip_special_tokens)
        if ids.ndim > 2 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(f"token_ids: found {ids.dtype} of shape {list(ids.shape)}, expected token ids")
        ids = np.atleast_1d(ids).astype(np.int64)
        if skip_special_tokens:
            ids = ids[~np.isin(ids, self.all_special_ids)]
        return self.core.decode(ids)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each sequence of token ids; see `decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def tokenize(self, text: str, *, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as the vocabulary spells them."""
        tokens: list[str] = self.convert_ids_to_tokens(
            self.encode(text, add_special_tokens=add_special_tokens)
        )
        return tokens

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token, or a list for several; `unk_token_id` for what the vocabulary lacks."""
        if isinstance(tokens, str):
            id = self.core.token_to_id(tokens)
            return self._special["unk"] if id is None else id
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, as the vocabulary spells it (None for none), or a list for several."""
        ids = to_numpy(ids)
        if not ids.ndim:
            return self.core.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.core.id_to_token(id) for id in ids.tolist() if id not in skipped]

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        **variables: object,
    ) -> Any:
        """The prompt of a conversation, or of each of several.

        A message's content never becomes a control token.

        Args:
            conversation: Dicts with `role` and `content`, or a list of such conversations.
            tools: For templates that take tools: their JSON Schemas.
            documents: For templates that take documents.
            chat_template: Replaces the checkpoint's.
            add_generation_prompt: Whether the opening of the assistant's answer follows.
            tokenize: False gives text.
            padding: As in a call of the tokenizer; so are `padding_side` and `return_tensors`.
            padding_side: See `padding`.
            return_tensors: See `padding`.
            return_dict: Whether a `BatchEncoding` is returned (as in Transformers 5), or `input_ids` alone.
            **variables: For the template.

        Raises:
            ValueError: there is no template, it does not run, or it refuses the conversation.
        """
        single = not conversation or isinstance(conversation[0], Mapping)
        conversations = [conversation] if single else conversation
        if tools is not None:
            variables["tools"] = tools
        if documents is not None:
            variables["documents"] = documents
        prompts: list[Any] = [
            self.core.apply_chat_template(
                messages,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,  # type: ignore[call-overload]
                chat_template=chat_template,
                **variables,
            )
            for messages in conversations
        ]
        if not tokenize:
            return prompts[0] if single else prompts
        encoding = self._batch(prompts, single, padding, None, padding_side, return_tensors, True)
        return encoding if return_dict else encoding["input_ids"]

    @property
    def chat_template(self) -> str | None:
        """The Jinja template of `apply_chat_template`; may be set."""
        return self.core.chat_template

    @chat_template.setter
    def chat_template(self, template: str | None) -> None:
        self.core.chat_template = template

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens that have a role, by `bos_token`, `eos_token`, `unk_token` and `pad_token`."""
        names = [f"{role}_token" for role in _ROLES if self._special[role] is not None]
        return {name: getattr(self, name) for name in names}

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` leaves out: those with a role, and those marked as special."""
        roles = [id for id in self._special.values() if id is not None]
        return list(dict.fromkeys([*roles, *self.core.special_ids]))

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens of `all_special_ids`."""
        tokens: list[str] = self.convert_ids_to_tokens(self.all_special_ids)
        return tokens

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included."""
        return self.core.vocab_size

    def __len__(self) -> int:
        return len(self.core)

    def get_vocab(self) -> dict[str, int]:
        """The id of each token."""
        tokens = ((self.core.id_to_token(id), id) for id in range(len(self.core)))
        return {token: id for token, id in tokens if token is not None}


class GPT2Tokenizer(PreTrainedTokenizer):
    """GPT-2's tokenizer (Radford et al. 2019).

    `<|endoftext|>` begins and ends texts, and is what is unknown, unless the checkpoint says otherwise.
    """

    def __init__(self, core: Tokenizer, **settings: Any) -> None:
        super().__init__(core, **settings)
        for role in ("bos", "eos", "unk"):
            if self._special[role] is None:
                self._special[role] = core.token_to_id("<|endoftext|>")


class AutoTokenizer(PreTrainedTokenizer):
    """The tokenizer of any checkpoint."""
