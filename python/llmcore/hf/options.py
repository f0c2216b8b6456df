"""`GenerationConfig`: which options of `generate` were set, where, and which setting wins."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from llmcore import hub
from llmcore.checkpoint import open_checkpoint
from llmcore.generation import Options

__all__ = ["GenerationConfig", "merge"]

# Options of the search, less those whose results have no place in what Transformers returns and those
# that are arguments of their own; then what Transformers has beside them.
_NAMES = frozenset(option.name for option in fields(Options))
_NAMES -= {"logprobs", "logits_processor", "stopping_criteria"}
_NAMES |= {"bos_token_id", "output_scores", "return_dict_in_generate", "use_cache"}

# Where Transformers' defaults are not ours. Without any length, 20 tokens are generated.
_DEFAULTS: Mapping[str, Any] = {"top_k": 50}
DEFAULT_NEW_TOKENS = 20

_LENGTHS = ("max_length", "max_new_tokens")


class GenerationConfig:
    """Options of `generate` that were set; one that was not reads as None.

    An option comes from the call if it says it, then from the config given to the call, then from the
    model's own `generation_config`, then from Transformers' defaults. A None in the call switches an option
    off, whatever the configs say. A level that sets `max_length` or `max_new_tokens` hides both of the
    levels below it.

    Options, with Transformers' meanings (those not named here as in `llmcore.generation.Options`):
        max_new_tokens, max_length: Tokens to generate, or to have in all (padding of the prompt counts), at
            most; the first wins. 20 new tokens where nothing says how many.
        min_new_tokens, min_length: As many at least; the first wins.
        do_sample: False, greedy search or beams, unless set; naming a sampling option does not imply it.
        temperature, top_k, top_p, min_p, typical_p, seed: For sampling; `top_k` is 50 unless set.
        num_beams, num_beam_groups, diversity_penalty, early_stopping, length_penalty: For beams. Beams are
            not sampled.
        num_return_sequences: Sequences a prompt. Asked for with neither sampling nor beams, they are the best
            of as many beams, where Transformers refuses.
        eos_token_id: The end token, or a list of them.
        pad_token_id: What follows the end of a shorter sequence; the first end token unless set. (A beam
            search fills with the first end token also if this is 0, as in Transformers.)
        bos_token_id: The prompt, where none is given.
        return_dict_in_generate, output_scores: What is returned; see `GenerateOutput`.
        use_cache: Either value: the results are the same, and keys and values are always kept.
    """

    def __init__(self, **options: Any) -> None:
        check(options)
        for name, value in options.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> GenerationConfig:
        """What a checkpoint says of generation, in generation_config.json, else config.json, or in GGUF.

        Raises:
            FileNotFoundError, ValueError: as `llmcore.load`.
        """
        return cls.of_checkpoint(open_checkpoint(hub.resolve(source)).generation)

    @classmethod
    def of_checkpoint(cls, said: Mapping[str, Any]) -> GenerationConfig:
        """The options among what a file says; files say more than there are options for."""
        return cls(**{name: value for name, value in said.items() if name in _NAMES})

    def to_dict(self) -> dict[str, Any]:
        """The options that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __getattr__(self, name: str) -> Any:
        if name in _NAMES:
            return None
        raise AttributeError(f"GenerationConfig has no option {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _NAMES:
            raise AttributeError(f"GenerationConfig has no option {name!r}{_hint(name)}")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"


def check(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is no option."""
    for name in names:
        if name not in _NAMES:
            raise ValueError(
                f"{name}: found an unknown option, expected one of GenerationConfig{_hint(name)}"
            )


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, _NAMES, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def merge(configs: Iterable[GenerationConfig | None], call: Mapping[str, Any]) -> dict[str, Any]:
    """The options in force: those of the call over those of `configs`, of which later ones win.

    Raises:
        ValueError: the call names an option that does not exist.
    """
    check(call)
    merged = dict(_DEFAULTS)
    for level in (*(config.to_dict() for config in configs if config is not None), call):
        if any(level.get(name) is not None for name in _LENGTHS):
            for name in _LENGTHS:
                merged.pop(name, None)
        merged.update(level)
    return {name: value for name, value in merged.items() if value is not None}
