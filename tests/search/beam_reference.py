"""NumPy oracle of beam search: one prompt, arrays of fixed width, the steps of `_beam_search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

EXCLUDED = np.float32(-1e9)


@dataclass
class Beams:
    """The state of one group: `ids` are the generated tokens."""

    ids: list[list[int]]
    scores: np.ndarray


@dataclass
class Finished:
    ids: list[list[int]]
    scores: np.ndarray
    taken: np.ndarray


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return (shifted - np.log(np.exp(shifted).sum())).astype(np.float32)


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices of the highest scores, the lowest index first among equals."""
    return np.argsort(-scores, kind="stable")[:count]


def beam_search(
    logits_after: Callable[[list[int]], np.ndarray],
    prompt: list[int],
    *,
    num_beams: int,
    max_new_tokens: int,
    num_return_sequences: int = 1,
    eos_token_id: Sequence[int] = (),
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
    process: Callable[[list[int], np.ndarray], np.ndarray] = lambda ids, scores: scores,
) -> list[tuple[list[int], float]]:
    """The best sequences (generated tokens only) and their scores."""
    width = num_beams // num_beam_groups
    keep = max(2, 1 + len(eos_token_id)) * width
    groups = []
    for _ in range(num_beam_groups):
        start = np.full(width, EXCLUDED)
        start[0] = 0
        running = Beams([[] for _ in range(width)], start)
        finished = Finished([[] for _ in range(width)], np.full(width, EXCLUDED), np.zeros(width, bool))
        groups.append((running, finished))
    open_groups = set(range(num_beam_groups))

    for step in range(max_new_tokens):
        length = step + 1
        uses: dict[int, int] = {}
        for g in sorted(open_groups):
            running, finished = groups[g]
            rows = []
            for ids in running.ids:
                row = process(prompt + ids, log_softmax(logits_after(prompt + ids)))
                for token, count in uses.items():
                    row[token] -= np.float32(diversity_penalty) * np.float32(count)
                rows.append(row)
            total = np.stack(rows) + running.scores[:, None]
            vocab = total.shape[1]
            flat = total.reshape(-1)
            best = highest(flat, keep)
            candidates = [[*running.ids[i // vocab], int(i % vocab)] for i in best]
            scores = flat[best]
            ended = np.array([ids[-1] in eos_token_id or length == max_new_tokens for ids in candidates])

            # What has just ended must not go on.
            shifted = scores + ended.astype(np.float32) * EXCLUDED
            onward = highest(shifted, width)
            running.ids, running.scores = [candidates[i] for i in onward], shifted[onward]

            # Only the first `width` candidates may enter the finished sequences.
            enters = ended & (np.arange(len(best)) < width)
            normed = (
                scores / np.float32(float(length) ** length_penalty) + (~enters).astype(np.float32) * EXCLUDED
            )
            merged = np.concatenate([finished.scores, normed])
            order = highest(merged, width)
            pool, taken = finished.ids + candidates, np.concatenate([finished.taken, enters])
            finished.ids, finished.scores, finished.taken = (
                [pool[i] for i in order],
                merged[order],
                taken[order],
            )

            hopeful = length
            if early_stopping == "never" and length_penalty > 0:
                hopeful = max_new_tokens
            possible = running.scores[0] / np.float32(float(hopeful) ** length_penalty)
            worst = np.where(finished.taken, finished.scores.min(), EXCLUDED)
            full = finished.taken.all() and early_stopping is True
            if ended.all() or full or not (possible > worst).any():
                open_groups.discard(g)
            for ids in running.ids:
                uses[ids[-1]] = uses.get(ids[-1], 0) + 1

    results = [
        (ids, float(score))
        for _, finished in groups
        for ids, score, taken in zip(finished.ids, finished.scores, finished.taken, strict=True)
        if taken
    ]
    results.sort(key=lambda pair: -pair[1])
    return results[:num_return_sequences]
