"""One engine in a process of its own: `python benches/worker.py llmcore|transformers MODEL THREADS`.

Says what it is in a first line of JSON, then answers each line `[ids, new_tokens, beams]` with
`[seconds, ids of the continuation]`. Both engines search greedily, or with so many beams, in float32, and
ignore end tokens, so that every run has the same length.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable

Search = Callable[[list[int], int, int], list[int]]


def llmcore_engine(path: str, threads: int) -> tuple[str, Search]:
    import llmcore

    model = llmcore.load(path, dtype="float32", threads=threads)

    def search(ids: list[int], new_tokens: int, beams: int) -> list[int]:
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        return list(model.generate(ids, num_beams=beams, do_sample=False, **length).ids)

    return f"llmcore {llmcore.__version__} ({llmcore._core.isa()})", search


def transformers_engine(path: str, threads: int) -> tuple[str, Search]:
    import torch
    import transformers

    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def search(ids: list[int], new_tokens: int, beams: int) -> list[int]:
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
            )
        return output[0, len(ids) :].tolist()

    attention = model.config._attn_implementation
    return f"Transformers {transformers.__version__}, torch {torch.__version__} ({attention})", search


ENGINES = {"llmcore": llmcore_engine, "transformers": transformers_engine}


def main() -> None:
    engine, path, threads = sys.argv[1:]
    name, search = ENGINES[engine](path, int(threads))
    print(json.dumps(f"{name}, Python {platform.python_version()}, {threads} threads"), flush=True)
    for line in sys.stdin:
        ids, new_tokens, beams = json.loads(line)
        start = time.perf_counter()
        continuation = search(ids, new_tokens, beams)
        print(json.dumps([time.perf_counter() - start, continuation]), flush=True)


if __name__ == "__main__":
    main()
