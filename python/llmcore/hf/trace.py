"""What a search chose its tokens from: `output_scores`, in the arrays of Transformers.

A processor that comes last and changes nothing sees every row of scores that a search sees, and the
sequence that it follows. The arrays are put together from these rows afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore.generation import Completion, Options

__all__ = ["Trace", "beam_indices", "beam_scores", "sample_scores"]

Ids = npt.NDArray[np.int64]
Row = npt.NDArray[np.float32]
Groups = Sequence[Sequence[Completion]]


class Trace:
    """The rows of scores that the search after one prompt has seen.

    Attributes:
        prompt: The prompt.
        steps: For each step the rows of the running sequences, in their order, each under the bytes of the
            sequence's ids. Before the first token all of them are one.
    """

    def __init__(self, prompt: Ids) -> None:
        self.prompt = prompt
        self.steps: list[dict[bytes, Row]] = []

    def follow(self, options: Options, processors: Sequence[Callable[[Ids, Row], Row]]) -> Options:
        """The options of a search with these processors that leaves this trace.

        Raises:
            ValueError: several groups of beams, whose sequences may be equal.
        """
        if options.num_beam_groups > 1:
            raise ValueError(
                f"output_scores: found num_beam_groups = {options.num_beam_groups}, expected one group"
            )
        return replace(options, logits_processor=[*processors, self._record])

    def _record(self, ids: Ids, scores: Row) -> Row:
        if len(ids) - len(self.prompt) == len(self.steps):
            self.steps.append({})
        self.steps[-1][ids.tobytes()] = scores
        return scores

    def before(self, completion: Completion) -> list[bytes]:
        """For each token of a completion, the sequence that it follows, as `steps` has it."""
        ids = np.concatenate([self.prompt, np.array(completion.ids, np.int64)])
        return [ids[:end].tobytes() for end in range(len(self.prompt), len(ids))]


def beam_scores(traces: Sequence[Trace], num_beams: int) -> tuple[Row, ...]:
    """What each step chose from: the scores of the running beams, `[prompts * num_beams, vocab_size]`."""
    scores = _zeros(traces, len(traces) * num_beams)
    for first, trace in zip(range(0, len(scores[0]), num_beams), traces, strict=True):
        for step, rows in zip(scores, trace.steps, strict=False):
            seen = list(rows.values())
            # Before the first token one row stands for all beams.
            step[first : first + (num_beams if step is scores[0] else len(seen))] = seen
    return scores


def beam_indices(traces: Sequence[Trace], groups: Groups, num_beams: int) -> npt.NDArray[np.int32]:
    """The row of `beam_scores` that each token was chosen from, `[sequences, new tokens]`; -1 for none."""
    rows = [
        [
            index * num_beams + list(step).index(key)
            for step, key in zip(trace.steps, trace.before(one), strict=False)
        ]
        for index, (trace, group) in enumerate(zip(traces, groups, strict=True))
        for one in group
    ]
    indices = np.full((len(rows), max(map(len, rows), default=0)), -1, np.int32)
    for target, row in zip(indices, rows, strict=True):
        target[: len(row)] = row
    return indices


def sample_scores(traces: Sequence[Trace], groups: Groups, options: Options) -> tuple[Row, ...]:
    """What each step chose from: the scores of each sequence, `[sequences, vocab_size]`."""
    scores = _zeros(traces, sum(map(len, groups)))
    sequences = [(trace, one) for trace, group in zip(traces, groups, strict=True) for one in group]
    for index, (trace, one) in enumerate(sequences):
        for step, rows, key in zip(scores, trace.steps, trace.before(one), strict=False):
            step[index] = _drawn_by(rows[key], options) if options.do_sample else rows[key]
    return scores


def _drawn_by(row: Row, options: Options) -> Row:
    """What sampling makes of a row of processed scores."""
    return _core.warp(
        row, options.temperature, options.top_k, options.top_p, options.min_p, options.typical_p
    )


def _zeros(traces: Sequence[Trace], rows: int) -> tuple[Row, ...]:
    steps = max(len(trace.steps) for trace in traces)
    vocab_size = len(next(iter(traces[0].steps[0].values())))
    return tuple(np.zeros((rows, vocab_size), np.float32) for _ in range(steps))
