"""onnxruntime-genai."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime_genai

from engine_workers import Engine, Step


def load(file: str, precision: str, threads: int) -> Engine:
    config = onnxruntime_genai.Config(file)
    sessions = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": sessions}}}))
    model = onnxruntime_genai.Model(config)

    def generate(prompts: list[list[int]], new_tokens: int, beams: int, step: Step | None) -> list[list[int]]:
        length = len(prompts[0]) + new_tokens
        options = onnxruntime_genai.GeneratorParams(model)
        options.set_search_options(
            do_sample=False,
            num_beams=beams,
            batch_size=len(prompts),
            max_length=length,
            min_length=length,
            past_present_share_buffer=beams == 1,
        )
        generator = onnxruntime_genai.Generator(model, options)
        generator.append_tokens(np.array(prompts, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            if step:
                step()
        rows = (generator.get_sequence(i * beams) for i in range(len(prompts)))
        return [row[len(prompts[0]) :].tolist() for row in rows]

    products = "float32" if precision == "float32" else "of bytes (accuracy level 4)"
    return Engine(f"onnxruntime-genai {onnxruntime_genai.__version__}, products {products}", generate)
