"""OpenVINO GenAI, whose loops are in C++."""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai

from engine_workers import Engine, Step
from engine_workers.openvino_options import options, said


class Steps(openvino_genai.StreamerBase):
    """Told of each token."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def write(self, _: object) -> openvino_genai.StreamingStatus:
        self.step()
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None: ...


def load(file: str, precision: str, threads: int) -> Engine:
    chosen = options(precision, threads)
    scheduler = openvino_genai.SchedulerConfig()
    # Or the second run would find what the first one computed of the prompt.
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.LLMPipeline(file, "CPU", scheduler_config=scheduler, **chosen)

    def generate(prompts: list[list[int]], new_tokens: int, beams: int, step: Step | None) -> list[list[int]]:
        ids = np.array(prompts, np.int64)
        length = openvino_genai.GenerationConfig(
            max_new_tokens=new_tokens, ignore_eos=True, num_beams=beams, do_sample=False
        )
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        found = pipeline.generate(inputs, length, *([Steps(step)] if step else []))
        return [list(tokens) for tokens in found.tokens]

    return Engine(f"OpenVINO GenAI {openvino_genai.get_version().split('-')[0]}; {said(chosen)}", generate)
