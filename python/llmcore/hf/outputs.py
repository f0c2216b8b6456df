"""What models return: objects with named fields that can also be read as mappings and as tuples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

__all__ = ["CausalLMOutput", "GenerateOutput", "ModelOutput"]


class ModelOutput(Mapping[str, Any]):
    """Named results. A field that was not asked for is None, and no part of the mapping or tuple.

    `output.logits`, `output["logits"]` and `output[0]` are the same.
    """

    def _given(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._given()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given())

    def __len__(self) -> int:
        return len(self._given())

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are given, in the order of the fields."""
        return tuple(self._given().values())


@dataclass(eq=False)
class CausalLMOutput(ModelOutput):
    """What a model computes from a batch of token ids; float32. Positions under a mask of 0 hold zeros.

    Attributes:
        logits: `[batch, time, vocab_size]`.
        hidden_states: The embeddings, the output of each layer but the last, and the last layer's after the
            final norm: each `[batch, time, width]`.
        attentions: Of each layer the probabilities, `[batch, heads, time, time]`.
    """

    logits: Any
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`.

    `rows` are the sequences of the first prompt, then those of the second, and so on.

    Attributes:
        sequences: `[rows, length]`, int64: each prompt as it was given, then its continuation, then padding.
        sequences_scores: `[rows]`, float32: the scores of a beam search; None without beams.
        scores: With `output_scores=True`, what tokens were chosen by at each step, float32: the processed
            log-probabilities of the running beams, `[batch * num_beams, vocab_size]`, or without beams
            processed logits, `[rows, vocab_size]`. Rows of what had ended before hold zeros.
        beam_indices: With `output_scores=True` in a beam search, the row of `scores` that each token was
            chosen from, `[rows, new tokens]`, int32; -1 for padding.
    """

    sequences: Any
    sequences_scores: Any = None
    scores: tuple[Any, ...] | None = None
    beam_indices: Any = None
