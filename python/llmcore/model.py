"""A model that is loaded: logits, scores, generation, and a look inside."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from llmcore import _core, generation
from llmcore.blocks import describe
from llmcore.checkpoint import Checkpoint, as_table
from llmcore.ids import Ids, token_ids
from llmcore.models.base import errors_name

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

__all__ = ["Model", "Score"]

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """How likely a text is under a model, token by token.

    Attributes:
        ids: The tokens.
        logprobs: `[len(ids) - 1]`, float32: `log P(ids[t] | ids[:t])` for t = 1, 2, …
    """

    ids: list[int]
    logprobs: Rows

    @property
    def logprob(self) -> float:
        """The log-likelihood: the sum of `logprobs`."""
        return float(self.logprobs.sum(dtype=np.float64))

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of a token, in nats; NaN if fewer than two tokens."""
        return float(-self.logprobs.mean(dtype=np.float64)) if len(self.logprobs) else math.nan

    @property
    def perplexity(self) -> float:
        """`exp(nll)`; infinite where no number is large enough."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


class Model:
    """A language model, ready to compute. `llmcore.load` makes one.

    Attributes:
        checkpoint: What it was loaded from.
        dtype: How matrices are kept, one of `llmcore.loading.DTYPES`.
        kv_cache_dtype: How keys and values are kept, "auto", "float32", "bfloat16" or "int8".
        core: The compiled model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        threads: int | None = None,
        dtype: str = "auto",
        kv_cache_dtype: str = "auto",
    ) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads: found {threads!r}, expected a whole number > 0")
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.kv_cache_dtype = kv_cache_dtype
        with errors_name(checkpoint.config_file, within=checkpoint.path):
            self.core = self._compile(threads)

        if unread := checkpoint.unread():
            count = f"{len(unread)} tensor{'s' if len(unread) > 1 else ''}"
            first = ", ".join(unread[:3]) + (", …" if len(unread) > 3 else "")
            warnings.warn(
                f"{checkpoint.weights_file}: found {count} that nothing reads: {first}", stacklevel=3
            )

    def _compile(self, threads: int | None, trainable: Mapping[str, Any] | None = None) -> _core.Model:
        checkpoint = self.checkpoint
        return _core.Model(
            json.dumps(describe(checkpoint.module.build(checkpoint.config))),
            checkpoint.source,
            json.dumps(as_table(checkpoint.views)),
            checkpoint.module.max_positions(checkpoint.config),
            threads,
            self.dtype,
            self.kv_cache_dtype,
            None if trainable is None else json.dumps(trainable),
        )

    def __repr__(self) -> str:
        parameters = sum(math.prod(shape) for _, shape in self.core.parameters())
        path = str(self.checkpoint.path)
        return f"<llmcore.Model: {self.checkpoint.model_type}, {parameters:,} parameters, from {path!r}>"

    @property
    def config(self) -> Any:
        """The architecture's configuration, with the field names of config.json."""
        return self.checkpoint.config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            FileNotFoundError: the checkpoint has none.
        """
        from llmcore.tokenizer import Tokenizer

        path, source = self.checkpoint.path, self.checkpoint.source
        if not isinstance(source, _core.Gguf):
            return Tokenizer.from_folder(path)
        kind = source.get("tokenizer.ggml.model")
        if kind in (None, "none", "no_vocab"):
            raise FileNotFoundError(f"{path}: tokenizer.ggml.model: found {kind!r}, expected a tokenizer")
        return Tokenizer.from_file(path)

    @property
    def max_positions(self) -> int:
        """How many tokens a sequence may hold."""
        return self.core.max_positions

    @property
    def sites(self) -> list[str]:
        """The places in a pass that `forward` can capture, in the order of execution."""
        return self.core.sites()

    def logits(self, ids: Ids | Sequence[Ids]) -> Rows | list[Rows]:
        """The logits after each token, `[len(ids), vocab_size]`, float32; for several sequences a list.

        Raises:
            ValueError: an id outside of the vocabulary, or more tokens than `max_positions`.
            TypeError: an iterator, or another thing that cannot be indexed.
        """
        if np.iterable(ids) and not (isinstance(ids, Sequence) or hasattr(ids, "__array__")):
            raise TypeError(f"ids: found {type(ids).__name__}, expected token ids, or a list of such")
        if not np.iterable(ids) or not len(ids) or np.isscalar(ids[0]):
            return self.core.forward([token_ids(cast(Ids, ids), "ids")])[0][0]
        return self.core.forward([token_ids(row, "ids") for row in cast(Sequence[Ids], ids)])[0]

    def forward(
        self, ids: Ids, capture: str | Sequence[str] = ()
    ) -> tuple[Rows, dict[str, npt.NDArray[np.float32]]]:
        """The logits `[len(ids), vocab_size]`, and what passes through the sites named in `capture`.

        Args:
            ids: The tokens of one sequence.
            capture: A path of sites, or several; `*` stands for any one part, as in `"layers.*.attn.probs"`.

        Returns:
            The logits, and by path, float32: `[len(ids), width]`; for attention's scores and probabilities
            `[heads, len(ids), len(ids)]`. Capturing changes no bits.

        Raises:
            ValueError: as `logits`; a pattern that names no site.
        """
        patterns = [capture] if isinstance(capture, str) else list(capture)
        logits, captured = self.core.forward([token_ids(ids, "ids")], patterns)
        return logits[0], {path: arrays[0] for path, arrays in captured.items()}

    def score(self, text: str | Ids) -> Score:
        """How likely a text (or a sequence of ids) is, token by token.

        A text longer than the context is cut into windows, each of which begins with the last token of the
        one before.

        Raises:
            ValueError: an id outside of the vocabulary.
            FileNotFoundError: a text, where the checkpoint has no tokenizer.
        """
        if isinstance(text, str):
            text = generation.tokenizer_for(self, "a text").encode(text)
        ids = token_ids(text, "text")
        return Score(ids.tolist(), self.core.token_logprobs(ids))

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Continues a prompt; see `llmcore.generation` for the options.

        Args:
            prompt: A text, a list of ids, or a list of either.
            **options: Any field of `llmcore.generation.Options`.

        Returns:
            For one prompt a `Completion`, or a list of `num_return_sequences` if that is more than one; for a
            list of prompts a list of those.

        Raises:
            ValueError: an unknown option, one out of range, an empty prompt, or one longer than the context.
        """
        return generation.generate(self, prompt, **options)

    def stream(self, prompt: str | Ids, **options: Any) -> Generator[generation.Piece]:
        """Continues one prompt and yields each piece as it comes; see `llmcore.generation.stream`."""
        return generation.stream(self, prompt, **options)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> generation.Completion:
        """The next message of a conversation.

        Args:
            messages: Dicts with `role` and `content`, as the checkpoint's chat template takes them.
            **options: As for `generate`.

        Raises:
            ValueError: the checkpoint has no chat template; also as `generate`.
            FileNotFoundError: the checkpoint has no tokenizer.
        """
        ids = generation.tokenizer_for(self, "chat").apply_chat_template(messages, add_generation_prompt=True)
        completion: generation.Completion = self.generate(ids, **options)
        return completion

    def info(self) -> dict[str, Any]:
        """Architecture and sizes: counts, and bytes in memory."""
        config = self.config
        heads = _first(config, "num_attention_heads", "n_head")
        return {
            "model_type": self.checkpoint.model_type,
            "path": str(self.checkpoint.path),
            "layers": _first(config, "num_hidden_layers", "n_layer"),
            "heads": heads,
            "kv_heads": _first(config, "num_key_value_heads") or heads,
            "hidden_size": _first(config, "hidden_size", "n_embd"),
            "parameters": sum(math.prod(shape) for _, shape in self.core.parameters()),
            "weight_bytes": self.core.weight_bytes(),
            "kv_bytes_per_position": self.core.kv_bytes_per_position(),
            "max_positions": self.max_positions,
            "vocab_size": self.core.vocab_size,
        }


def _first(config: Any, *names: str) -> Any:
    """The first of these fields that the configuration has: architectures name one thing in several ways."""
    return next((getattr(config, name) for name in names if hasattr(config, name)), None)
