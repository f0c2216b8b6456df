"""Transformers with torch."""

from __future__ import annotations

from functools import partial

import torch
import transformers

from engine_workers import Engine
from engine_workers.transformers_search import generate

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def load(file: str, precision: str, threads: int) -> Engine:
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    model = transformers.AutoModelForCausalLM.from_pretrained(file, dtype=getattr(torch, precision)).eval()
    weights, attention = next(model.parameters()).dtype, model.config._attn_implementation
    versions = f"Transformers {transformers.__version__}, torch {torch.__version__}"
    capability = torch.backends.cpu.get_cpu_capability()
    return Engine(
        f"{versions} ({attention}, {capability}), weights and products {weights}", partial(generate, model)
    )
