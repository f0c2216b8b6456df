"""`generate` of the Transformers-compatible models: from padded arrays to completions, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.generation import Completion, Options, complete
from llmcore.hf.arrays import real_rows
from llmcore.hf.options import DEFAULT_NEW_TOKENS
from llmcore.hf.outputs import GenerateOutput
from llmcore.hf.trace import Trace, beam_indices, beam_scores, sample_scores
from llmcore.model import Model
from llmcore.tokenizer import Tokenizer

__all__ = ["infer_mask", "search"]

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Row = npt.NDArray[np.float32]

# What `Options` does not know: used up on the way to it, or about the output.
_OURS = frozenset(
    {"max_length", "min_length", "pad_token_id", "bos_token_id", "use_cache"}
    | {"output_scores", "return_dict_in_generate"}
)


def infer_mask(ids: Ids, settings: Mapping[str, Any]) -> Mask:
    """The mask of a batch that came without one.

    As in Transformers, what looks like padding is padding if a padding token is set that ends no sequence.
    """
    pad = settings.get("pad_token_id")
    if pad is None or pad in _ends(settings):
        return np.ones(ids.shape, bool)
    mask: Mask = ids != pad
    return mask


def search(
    model: Model,
    ids: Ids,
    mask: Mask,
    settings: Mapping[str, Any],
    processors: Sequence[Callable[[Ids, Row], Row]],
    criteria: Sequence[Callable[[Ids], bool]],
    tokenizer: Tokenizer | None,
) -> GenerateOutput:
    """Continues `ids [batch, time]`, each row as if it were alone and without what `mask` hides.

    Args:
        model: The model.
        ids: Prompts.
        mask: Which of their tokens are real.
        settings: Options by name, as `merge` gives them.
        processors: Changes to scores, after those that the options ask for.
        criteria: What ends sequences beside the options.
        tokenizer: Makes the text that stop strings are looked for in; the checkpoint's unless given.

    Returns:
        Arrays; see `GenerateOutput`.

    Raises:
        ValueError: an option out of range, a prompt without a real token, or an id outside of the vocabulary.
    """
    prompts = real_rows(ids, mask)
    options = Options(
        **_options(settings, ids.shape[1]),
        logits_processor=list(processors),
        stopping_criteria=list(criteria),
    )
    if not options.stop_strings:
        tokenizer = None
    elif tokenizer is None:
        tokenizer = model.tokenizer
    traces = []
    if settings.get("output_scores") and settings.get("return_dict_in_generate"):
        traces = [Trace(prompt) for prompt in prompts]
        # Each search has its own trace. What a prompt gets depends on no other, so they may run one by one.
        groups = [
            complete(model, [trace.prompt], trace.follow(options, processors), tokenizer)[0]
            for trace in traces
        ]
    else:
        groups = complete(model, prompts, options, tokenizer)
    output = _gather(ids, groups, _fill(settings, options))
    if traces and options.num_beams > 1:
        output.scores = beam_scores(traces, options.num_beams)
        output.beam_indices = beam_indices(traces, groups, options.num_beams)
    elif traces:
        output.scores = sample_scores(traces, groups, options)
    return output


def _options(settings: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The fields of `Options` for prompts of `width` tokens, padding included."""
    given = {name: value for name, value in settings.items() if name not in _OURS}
    given["eos_token_id"] = _ends(settings)
    given["max_new_tokens"] = _new_tokens(settings, width)
    if "min_new_tokens" not in given:
        given["min_new_tokens"] = max(0, _count("min_length", settings.get("min_length", 0)) - width)
    if given.get("num_beams", 1) == 1 and not given.get("do_sample"):
        given["num_beams"] = given.get("num_return_sequences", 1)
    return given


def _new_tokens(settings: Mapping[str, Any], width: int) -> Any:
    if "max_new_tokens" in settings:
        return settings["max_new_tokens"]
    if "max_length" not in settings:
        return DEFAULT_NEW_TOKENS
    length = _count("max_length", settings["max_length"])
    if length <= width:
        raise ValueError(f"max_length: found {length}, expected more than the {width} tokens of input_ids")
    return length - width


def _count(name: str, value: object) -> int:
    if not isinstance(value, int | np.integer):
        raise ValueError(f"{name}: found {value!r}, expected a whole number")
    return int(value)


def _ends(settings: Mapping[str, Any]) -> list[int]:
    ends = settings.get("eos_token_id")
    return [] if ends is None else list(np.atleast_1d(ends).tolist())


def _fill(settings: Mapping[str, Any], options: Options) -> int | None:
    """What follows the end of a sequence that is shorter than others, if anything is said of it."""
    ends = _ends(settings)
    pad = settings.get("pad_token_id")
    # Transformers' beam search takes a padding token 0 for none.
    unset = not pad if options.num_beams > 1 else pad is None
    return ends[0] if ends and unset else pad


def _gather(ids: Ids, groups: Sequence[Sequence[Completion]], fill: int | None) -> GenerateOutput:
    """The prompts as they were given, each with its continuations, filled up to one length."""
    rows = [(index, completion) for index, group in enumerate(groups) for completion in group]
    lengths = {len(completion.ids) for _, completion in rows}
    if fill is None and len(lengths) > 1:
        raise ValueError(
            "pad_token_id: found none, expected a token to fill up sequences of unequal lengths with"
        )
    width = ids.shape[1]
    sequences = np.full((len(rows), width + max(lengths, default=0)), fill or 0, np.int64)
    for row, (index, completion) in zip(sequences, rows, strict=True):
        row[:width] = ids[index]
        row[width : width + len(completion.ids)] = completion.ids
    scores = [completion.score for _, completion in rows]
    return GenerateOutput(sequences, None if None in scores else np.array(scores, np.float32))
