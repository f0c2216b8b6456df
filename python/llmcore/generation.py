"""Continuing prompts: the options, their precedence, and what comes out.

Options have Transformers' names and meanings. What the call says wins over what the checkpoint's
generation_config says, and that over the defaults of `Options`.
"""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.ids import Ids, token_ids

if TYPE_CHECKING:
    from llmcore.checkpoint import Checkpoint
    from llmcore.tokenizer import Tokenizer

__all__ = [
    "Completion",
    "Options",
    "Piece",
    "TokenLogprob",
    "complete",
    "generate",
    "stream",
    "tokenizer_for",
]

Prompt = str | Ids
FinishReason = Literal["stop", "length"]

LogitsProcessor = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], npt.ArrayLike]
StoppingCriterion = Callable[[npt.NDArray[np.int64]], bool]

DEFAULT_MAX_NEW_TOKENS = 256
"""How many tokens are generated at most where nothing says how many."""

_SAMPLING = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "seed"})
_BEAMS = frozenset({"num_beams", "num_beam_groups", "diversity_penalty", "early_stopping", "length_penalty"})


@dataclass
class Options:
    """The options of `generate` and `stream`.

    Length:
        max_new_tokens: Tokens to generate at most; wins over `max_length`. 256 if neither is set.
        max_length: Tokens of prompt and continuation together, at most.
        min_new_tokens: No end token before so many generated tokens.
        min_length: No end token before so many tokens in all.
        eos_token_id: The token, or tokens, that end a sequence.
        stop_strings: The text, or texts, that end a sequence. They are not part of `Completion.text`.
        stopping_criteria: A callable, or a list of them: `criterion(ids) -> bool` ends a sequence where it is
            true; `ids` is the prompt and what has been generated, int64.

    Search:
        num_return_sequences: Sequences for each prompt. Without sampling they are the best of as many beams.
        num_beams: Beams of a beam search; 1 is greedy search or sampling.
        early_stopping: When a beam search ends before all beams do: True, once `num_beams` sequences have
            finished; False, once the best running beam cannot beat the worst of them at its present length;
            "never", once it could not even at the best length.
        length_penalty: A sequence's score is the sum of its log-probabilities over its generated length to
            this power.
        num_beam_groups: Splits the beams into groups that search one after the other in each step.
        diversity_penalty: What a token loses for every time that an earlier group has chosen it in this step.

    Sampling:
        do_sample: Whether tokens are drawn. A call that names a sampling option implies it, one that names
            an option of beam search (and none of sampling but `seed`) rules it out, unless it says.
        temperature: Divides the logits; above 0.
        top_k: Keeps the k likeliest tokens, and ties; 0 keeps all.
        top_p: Keeps the likeliest tokens that together have this probability.
        min_p: Keeps the tokens at least this fraction as likely as the likeliest.
        typical_p: Keeps the tokens whose surprise is nearest the expected one, up to this probability.
        seed: The same seed gives the same text, whatever the batch and the number of threads; fresh if unset.

    Scores, before a token is chosen, in this order:
        logit_bias: Adds to the logits of tokens, by id.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that have occurred.
        presence_penalty: What a token loses once it has been generated.
        frequency_penalty: What a token loses for every time that it has been generated.
        no_repeat_ngram_size: No n-gram of this size occurs twice; 0 allows all.
        bad_words_ids: Lists of tokens that do not occur.
        forced_bos_token_id: The token after a prompt of one token.
        forced_eos_token_id: The token, or tokens, at the greatest length.
        suppress_tokens: Tokens that do not occur.
        logits_processor: A callable, or a list of them: `processor(ids, logits) -> logits` returns changed
            logits, float32 `[vocab_size]` (log-probabilities in a beam search); `ids` as above.

    Output:
        logprobs: Reports each token's log-probability under the model, and so many alternatives.
        pad_token_id: What arrays of several sequences are filled with; completions are not padded.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    eos_token_id: int | Sequence[int] | None = None
    stop_strings: str | Sequence[str] | None = None
    stopping_criteria: StoppingCriterion | Sequence[StoppingCriterion] | None = None

    num_return_sequences: int = 1
    num_beams: int = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    seed: int | None = None

    logit_bias: Mapping[int, float] | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: Sequence[Sequence[int]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | Sequence[int] | None = None
    suppress_tokens: Sequence[int] | None = None
    logits_processor: LogitsProcessor | Sequence[LogitsProcessor] | None = None

    logprobs: int | None = None
    pad_token_id: int | None = None

    @classmethod
    def resolve(cls, call: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Options:
        """What a call asks for: its own options, then the checkpoint's, then the defaults.

        An option that is None counts as not given. What the checkpoint says of other things is left
        aside, and what it says of sampling where nothing is sampled.

        Raises:
            ValueError: an option that does not exist.
        """
        known = {option.name for option in fields(cls)}
        for name in call:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{name}: found an unknown option, expected a field of Options{hint}")
        given = {name: value for name, value in call.items() if value is not None}
        base = {name: value for name, value in checkpoint.items() if name in known and value is not None}
        if given.keys() & {"max_new_tokens", "max_length"}:
            base.pop("max_new_tokens", None)
            base.pop("max_length", None)
        beams = given.keys() & _BEAMS
        # A seed may always be given: it chooses no search where beams are named.
        if given.keys() & (_SAMPLING - {"seed"} if beams else _SAMPLING):
            base["do_sample"] = True
        elif beams:
            base["do_sample"] = False
        if not {**base, **given}.get("do_sample"):
            base = {name: value for name, value in base.items() if name not in _SAMPLING}
        config = cls(**{**base, **given})
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        if "num_beams" not in given and config.num_beams == 1 and not config.do_sample:
            config.num_beams = config.num_return_sequences
        return config

    def _for_core(self) -> dict[str, Any]:
        """The options as `_core.Generation` takes them: without what is unset, and lists where one may do."""
        options = {option.name: getattr(self, option.name) for option in fields(self)}
        del options["pad_token_id"]
        for name in (
            "eos_token_id",
            "forced_eos_token_id",
            "stop_strings",
            "stopping_criteria",
            "logits_processor",
        ):
            value = options[name]
            if isinstance(value, str | int | np.integer) or callable(value):
                options[name] = [value]
        if self.seed is None:
            options["seed"] = secrets.randbits(64)
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class TokenLogprob:
    """A generated token's log-probability under the model, before any option changed the logits.

    Attributes:
        id: The token.
        logprob: Its log-probability, in nats.
        top: The likeliest tokens of its position and their log-probabilities, the likeliest first.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Completion:
    """A finished continuation of a prompt.

    Attributes:
        text: Its text, without an end token or stop string; None for a model without a tokenizer.
        ids: The generated tokens, an end token included.
        score: The score of a beam search (see `Options.length_penalty`); None without beams.
        logprobs: One entry a token, if `logprobs` was asked for.
        finish_reason: "stop" for an end token, a stop string or a stopping criterion; "length" for the
            greatest length or the end of the context.
    """

    text: str | None
    ids: list[int]
    score: float | None
    logprobs: list[TokenLogprob] | None
    finish_reason: FinishReason

    def __str__(self) -> str:
        return self.text or ""


@dataclass(frozen=True)
class Piece:
    """What one step of the model added to a sequence; its `str` is its text.

    Attributes:
        text: The text that became certain, often empty: half a character waits, and what may become a stop
            string.
        ids: The tokens: one, or in a beam search all of them, which come at the end.
        logprobs: One entry a token, if `logprobs` was asked for.
        finish_reason: As in `Completion`, on the last piece of a sequence; None before.
        index: Which of the `num_return_sequences` sequences of its prompt.
        prompt_index: Which of the prompts.
    """

    text: str
    ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    index: int = 0
    prompt_index: int = 0

    def __str__(self) -> str:
        return self.text


class Generates(Protocol):
    """What generation needs of a model: `llmcore.Model` has it."""

    @property
    def core(self) -> _core.Model:
        """The compiled model."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What it was loaded from."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; raises FileNotFoundError if it has none."""


class _Job:
    """Prompts on their way to completions."""

    def __init__(
        self, model: Generates, prompts: Sequence[Prompt], options: Options, tokenizer: Tokenizer | None
    ) -> None:
        self.options = options
        requests = [(_encode(prompt, tokenizer), options._for_core()) for prompt in prompts]
        self.core = _core.Generation(model.core, requests, tokenizer)

    @classmethod
    def of_call(cls, model: Generates, prompts: Sequence[Prompt], call: Mapping[str, Any]) -> _Job:
        checkpoint = model.checkpoint
        options = Options.resolve(call, checkpoint.generation)
        tokenizer = _tokenizer(model, required=any(isinstance(p, str) for p in prompts))
        try:
            return cls(model, prompts, options, tokenizer)
        except ValueError as error:
            name = str(error).partition(":")[0]
            if name in checkpoint.generation and call.get(name) is None:
                raise ValueError(f"{checkpoint.generation_file}: {error}") from None
            raise

    def pieces(self) -> Generator[Piece]:
        try:
            for step in self.core:
                for prompt_index, index, ids, text, logprobs, finish_reason in step:
                    yield Piece(text, ids, self.logprobs(logprobs), finish_reason, index, prompt_index)
        finally:
            self.core.close()

    def completions(self) -> list[list[Completion]]:
        return [
            [
                Completion(text, ids, score, self.logprobs(logprobs), finish_reason)
                for ids, text, score, logprobs, finish_reason in outputs
            ]
            for outputs in self.core.results()
        ]

    def logprobs(
        self, entries: list[tuple[int, float, list[tuple[int, float]]]]
    ) -> list[TokenLogprob] | None:
        return None if self.options.logprobs is None else [TokenLogprob(*entry) for entry in entries]


def generate(
    model: Generates,
    prompt: Prompt | Sequence[Prompt],
    *,
    callback: Callable[[Piece], object] | None = None,
    **options: Any,
) -> Completion | list[Completion] | list[list[Completion]]:
    """Continues a prompt, or several at once.

    Args:
        model: The model.
        prompt: A text, a list of token ids, or a list of either. What one gets never depends on the others.
        callback: Called with every `Piece` as it comes.
        **options: Fields of `Options`.

    Returns:
        For one prompt a `Completion`, or a list of `num_return_sequences` if that is more than one, the best
        first; for a list of prompts a list of those.

    Raises:
        ValueError: an option that does not exist or is out of range; a prompt that is empty, holds an id
            outside of the vocabulary, or leaves no room in the context. An option that the checkpoint sets is
            named with its file.
        TypeError: a prompt that is neither text nor token ids.
    """
    single = _is_single(prompt)
    job = _Job.of_call(model, [prompt] if single else prompt, options)  # type: ignore[list-item, arg-type]
    if callback is None:
        job.core.run()
    else:
        for piece in job.pieces():
            callback(piece)
    results = job.completions()
    if job.options.num_return_sequences == 1:
        completions = [outputs[0] for outputs in results]
        return completions[0] if single else completions
    return results[0] if single else results


def complete(
    model: Generates, prompts: Sequence[Ids], options: Options, tokenizer: Tokenizer | None = None
) -> list[list[Completion]]:
    """Continues prompts by options alone: what the checkpoint says of generation has no part in it.

    Args:
        model: The model.
        prompts: Sequences of token ids.
        options: The options, of which those that are not set have the defaults of `Options`.
        tokenizer: Makes the text of completions and for stop strings, of which there is none without it.

    Returns:
        For each prompt `num_return_sequences` completions, the best first.

    Raises:
        ValueError: as `generate`.
    """
    job = _Job(model, prompts, options, tokenizer)
    job.core.run()
    return job.completions()


def stream(model: Generates, prompt: Prompt, **options: Any) -> Generator[Piece]:
    """Continues a prompt and yields each `Piece` as it comes; closing the iterator ends the search.

    `for piece in stream(...): print(piece, end="")` shows the text as it grows.

    Args:
        model: The model.
        prompt: A text or a list of token ids.
        **options: Fields of `Options`.

    Raises:
        ValueError: as `generate`, before the first piece.
    """
    if not _is_single(prompt):
        raise ValueError("prompt: found several prompts, expected a text or a list of token ids")
    return _Job.of_call(model, [prompt], options).pieces()


def _is_single(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one prompt: a text, or token ids (none of them, too)."""
    if isinstance(prompt, str):
        return True
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 1
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, Sequence):
        raise TypeError(
            f"prompt: found {type(prompt).__name__}, expected a text, token ids, or a list of either"
        )
    return not len(prompt) or isinstance(prompt[0], int | np.integer)


def tokenizer_for(model: Generates, user: str) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        FileNotFoundError: it has none; says that `user` needs one.
    """
    try:
        return model.tokenizer
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {user} needs a tokenizer, token ids do not") from None


def _tokenizer(model: Generates, required: bool) -> Tokenizer | None:
    try:
        return tokenizer_for(model, "a text")
    except FileNotFoundError:
        if required:
            raise
        return None


def _encode(prompt: Prompt, tokenizer: Tokenizer | None) -> list[int]:
    if isinstance(prompt, str):
        assert tokenizer is not None
        return tokenizer.encode(prompt)
    ids: list[int] = token_ids(prompt, "prompt").tolist()
    return ids
