"""llama.cpp, by the functions of C that llama-cpp-python offers."""

from __future__ import annotations

import ctypes
from itertools import chain

import llama_cpp
import numpy as np

from engine_workers import Engine, Step

POSITIONS, SEQUENCES, CHUNK = 1024, 8, 512


@llama_cpp.llama_log_callback
def silent(*_: object) -> None: ...


def load(file: str, precision: str, threads: int) -> Engine:
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise ValueError(f"{file}: llama.cpp does not load it")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_seq_max = POSITIONS, SEQUENCES
    options.n_batch = options.n_ubatch = CHUNK
    options.n_threads = options.n_threads_batch = threads
    options.kv_unified = True
    context = llama_cpp.llama_init_from_model(model, options)
    if not context:
        raise ValueError(f"{file}: llama.cpp makes no context of {POSITIONS} positions")
    vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Rows are token, position, sequence, and whether what is likeliest to follow is wanted."""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama_decode: found {code}, expected 0")
        logits = (llama_cpp.llama_get_logits_ith(context, i) for i, row in enumerate(rows) if row[3])
        return [int(np.ctypeslib.as_array(found, (vocab_size,)).argmax()) for found in logits]

    def generate(prompts: list[list[int]], new_tokens: int, beams: int, step: Step | None) -> list[list[int]]:
        if beams > 1:
            raise NotImplementedError("llama.cpp has no beam search")
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        rows = [
            (token, position, sequence, position + 1 == len(prompt))
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        found: list[list[int]] = [[] for _ in prompts]
        while True:
            chunks = [decode(rows[i : i + CHUNK]) for i in range(0, len(rows), CHUNK)]
            for ids, token in zip(found, chain.from_iterable(chunks), strict=True):
                ids.append(token)
            if step:
                step()
            if len(found[0]) == new_tokens:
                return found
            position = len(prompts[0]) + len(found[0]) - 1
            rows = [(ids[-1], position, sequence, True) for sequence, ids in enumerate(found)]

    system = llama_cpp.llama_print_system_info().decode()
    uses = ", ".join(part.split("=")[0].strip() for part in system.split("|") if part.strip().endswith("= 1"))
    return Engine(f"llama.cpp by llama-cpp-python {llama_cpp.__version__} ({uses})", generate)
