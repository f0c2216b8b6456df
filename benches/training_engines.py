"""llmcore and torch as they train a checkpoint, behind one interface.

Both take the same steps: AdamW that decays all weights, gradients clipped to a norm of 1, nothing dropped.
`precision` is "float32" or "bfloat16", that of products; weights, gradients and the optimiser's state are
float32 in either.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BETAS, WEIGHT_DECAY, MAX_GRAD_NORM = (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True)
class Engine:
    """A model that trains. Tokens are `[sequences, time]`, int64."""

    name: str
    vocab_size: int
    step: Callable[[np.ndarray, float], float]
    """From tokens and a learning rate to the loss, once the weights have moved."""
    evaluate: Callable[[np.ndarray], float]
    """The mean loss of tokens, in nats."""
    save: Callable[[Path], object]
    """Writes the checkpoint."""


def llmcore_engine(folder: str, precision: str, threads: int) -> Engine:
    import llmcore
    from llmcore.training import AdamW

    model = llmcore.load(folder, trainable=True, precision=precision, threads=threads)
    optimizer = AdamW(model, betas=BETAS, weight_decay=WEIGHT_DECAY, no_decay=(), max_grad_norm=MAX_GRAD_NORM)

    def step(ids: np.ndarray, lr: float) -> float:
        loss = model.loss_and_grad(input_ids=ids)
        optimizer.lr = lr
        optimizer.step()
        return loss

    def evaluate(ids: np.ndarray) -> float:
        total, count = model.evaluate(input_ids=ids)
        return total / count

    name = f"llmcore {llmcore.__version__} ({llmcore._core.isa()}), products in {precision}"
    return Engine(name, model.core.vocab_size, step, evaluate, model.save)


def torch_engine(folder: str, precision: str, threads: int) -> Engine:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def loss_of(ids: np.ndarray):
        tokens = torch.from_numpy(ids)
        autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        with autocast if precision == "bfloat16" else nullcontext():
            output = model(input_ids=tokens, labels=tokens, use_cache=False)
        return output.loss, output.logits.dtype

    def step(ids: np.ndarray, lr: float) -> float:
        optimizer.zero_grad(set_to_none=True)
        loss, _ = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(ids: np.ndarray) -> float:
        return loss_of(ids)[0].item()

    with torch.no_grad():
        _, executed = loss_of(np.zeros((1, 2), np.int64))
    versions = f"torch {torch.__version__}, Transformers {transformers.__version__}"
    attention, capability = model.config._attn_implementation, torch.backends.cpu.get_cpu_capability()
    name = f"{versions} ({attention}, {capability}), logits in {executed}"
    return Engine(name, model.config.vocab_size, step, evaluate, model.save_pretrained)


ENGINES = {"llmcore": llmcore_engine, "torch": torch_engine}
