"""llmcore."""

from __future__ import annotations

import llmcore
from engine_workers import Engine, Step


def load(file: str, precision: str, threads: int) -> Engine:
    model = llmcore.load(file, dtype="auto" if precision == "gguf" else precision, threads=threads)

    def generate(prompts: list[list[int]], new_tokens: int, beams: int, step: Step | None) -> list[list[int]]:
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        if step:
            pieces = model.stream(prompts[0], do_sample=False, **length)
            return [[id for piece in pieces for id in (step(), piece.ids)[1]]]
        return [found.ids for found in model.generate(prompts, num_beams=beams, do_sample=False, **length)]

    return Engine(f"llmcore {llmcore.__version__} ({llmcore._core.isa()}), weights {model.dtype}", generate)
