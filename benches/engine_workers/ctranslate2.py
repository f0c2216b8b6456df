"""CTranslate2."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2

from engine_workers import Engine, Step

TYPES = {"float32": "float32", "int8": "int8_float32"}


def load(file: str, precision: str, threads: int) -> Engine:
    model = ctranslate2.Generator(
        file, device="cpu", compute_type=TYPES[precision], inter_threads=1, intra_threads=threads
    )
    vocabulary = json.loads(Path(file, "vocabulary.json").read_text())

    def generate(prompts: list[list[int]], new_tokens: int, beams: int, step: Step | None) -> list[list[int]]:
        found = model.generate_batch(
            [[vocabulary[id] for id in ids] for ids in prompts],
            beam_size=beams,
            max_length=new_tokens,
            min_length=new_tokens,
            include_prompt_in_result=False,
            callback=(lambda _: bool(step() and False)) if step else None,
        )
        return [result.sequences_ids[0] for result in found]

    return Engine(f"CTranslate2 {ctranslate2.__version__}, compute type {model.compute_type}", generate)
