"""The search of Transformers, with which torch and optimum-intel generate."""

from __future__ import annotations

from typing import Any

import torch

from engine_workers import Step


class Steps:
    """A streamer, told of the prompt and then of each token."""

    def __init__(self, step: Step) -> None:
        self.step, self.begun = step, False

    def put(self, _: Any) -> None:
        if self.begun:
            self.step()
        self.begun = True

    def end(self) -> None: ...


def generate(
    model: Any, prompts: list[list[int]], new_tokens: int, beams: int, step: Step | None
) -> list[list[int]]:
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            streamer=Steps(step) if step else None,
        )
    return output[:, ids.shape[1] :].tolist()
