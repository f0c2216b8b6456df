"""Whether a model learns in llmcore what it learns in torch: the validation losses of both, step by step.

    python benches/training_parity.py --peer-python PEER/bin/python --out benches/results/training-parity

A GPT-2 of 5M parameters reads Python: the modules of the standard library that runs this, 10 MB without
tests, in an order of their own; the last files are held out. llmcore trains a tokenizer of 4,096 tokens on
what is not held out, and draws the weights. Both engines then take the same steps in float32 from the same
weights (`training_engines.py`), each in a process of its own, on the same windows in the same order, at the
same learning rates. At the end the losses must be within 1 % of each other. OUT.json holds both curves and
what llmcore's model writes, OUT.png shows them. On two idle cores it takes llmcore four minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import machine
import numpy as np

import llmcore
from llmcore import Tokenizer
from llmcore.training import make_schedule, new_model, tokenize_text

WORKER = Path(__file__).with_name("training_parity_worker.py")
STEPS, SEQUENCES, TIME, EVERY = 1000, 16, 128, 50
LEARNING_RATE, WARMUP, FINAL = 1e-3, 60, 0.1
HELD_OUT, VALIDATION = 0.05, 128
"""The share of the text that is held out, and how many windows of that are looked at."""
END = "<|endoftext|>"
CONFIG = {
    "model_type": "gpt2", "n_layer": 5, "n_embd": 256, "n_head": 4, "n_positions": TIME,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
PROMPT = "class Stack:\n    def"

Curve = list[tuple[int, float, float | None, float]]
"""Steps made, seconds, training loss since the point before, validation loss."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="the Python that has torch and transformers")
    parser.add_argument("--threads", type=int, default=machine.threads())
    parser.add_argument("--out", type=Path, required=True, help="without a suffix")
    args = parser.parse_args()
    described = machine.describe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = prepare(folder)
        runs = {
            engine: run(python, engine, folder, args.threads)
            for engine, python in (("llmcore", sys.executable), ("torch", args.peer_python))
        }
        sample = continuation(folder / "trained-llmcore")
    ends = [curve[-1][3] for _, curve in runs.values()]
    apart = max(ends) / min(ends) - 1
    result = {
        "machine": f"{described}, {args.threads} threads",
        **about,
        "curves": "steps, seconds of training, training loss since the point before, validation loss",
        **{described: curve for described, curve in runs.values()},
        "apart at the end": apart,
        "sample": sample,
    }
    fields = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in result.items())
    args.out.with_suffix(".json").write_text("{\n" + ",\n".join(fields) + "\n}\n")
    draw(args.out.with_suffix(".png"), {name: curve for name, (_, curve) in runs.items()})
    print(f"{PROMPT}|{sample.removeprefix(PROMPT)}\n\nvalidation losses {ends}, {apart:.2%} apart")
    if apart > 0.01:
        raise AssertionError(f"found validation losses {apart:.2%} apart, expected at most 1 %")


def prepare(folder: Path) -> dict[str, object]:
    """Writes the checkpoint `new` and the arrays `data.npz`, and says what they are."""
    files = sources()
    held_out = next(i for i in range(len(files)) if size(files[i:]) <= HELD_OUT * size(files))
    seen, unseen = files[:held_out], files[held_out:]
    tokenizer = Tokenizer.train(seen, 4096, special_tokens=[END], progress=False)
    separator = tokenizer.encode(END, allowed_special="all")[0]
    corpora = [
        tokenize_text(part, tokenizer, cache=folder / "cache", separator=separator, progress=False)
        for part in (seen, unseen)
    ]
    train, validation = (windows(corpus.ids) for corpus in corpora)
    rng = np.random.default_rng(0)
    epochs = -(-STEPS * SEQUENCES // len(train))
    order = np.concatenate([rng.permutation(len(train)) for _ in range(epochs)])[: STEPS * SEQUENCES]
    schedule = make_schedule("cosine", steps=STEPS, warmup=WARMUP, final=FINAL)
    np.savez(
        folder / "data.npz",
        train=train[order].reshape(STEPS, SEQUENCES, TIME),
        lr=np.array([LEARNING_RATE * schedule(step) for step in range(STEPS)]),
        validation=validation[rng.permutation(len(validation))[:VALIDATION]],
        every=EVERY,
    )
    ends = {"bos_token_id": separator, "eos_token_id": separator}
    new_model(CONFIG | ends, folder / "new", tokenizer=tokenizer)
    return {
        "text": f"{len(files)} modules of the standard library of Python {platform.python_version()}, "
        f"{size(files) / 1e6:.2f} MB; {size(unseen) / 1e6:.2f} MB held out",
        "tokens": {"train": len(corpora[0].ids), "held out": len(corpora[1].ids)},
        "epochs": STEPS * SEQUENCES * TIME / len(corpora[0].ids),
        "model": CONFIG | {"vocab_size": tokenizer.vocab_size},
        "steps": f"{STEPS} of {SEQUENCES} × {TIME} tokens; learning rate {LEARNING_RATE}, warm-up of "
        f"{WARMUP} steps, cosine to {FINAL} of it",
    }


def sources() -> list[Path]:
    """The modules of the standard library but for tests and tables, in the order of a hash of the name."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idlelib", "encodings", "__pycache__"}
    files = [path for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts)]
    return sorted(
        filter(is_text, files),
        key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest(),
    )


def is_text(path: Path) -> bool:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return len(content) > 0 and 0 not in content


def size(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def windows(ids: np.ndarray) -> np.ndarray:
    """`[count, TIME]`, one after the other; what is left over at the end is left out."""
    return ids[: len(ids) // TIME * TIME].reshape(-1, TIME)


def run(python: str, engine: str, folder: Path, threads: int) -> tuple[str, Curve]:
    """What the engine is, and its curve."""
    command = [
        python, str(WORKER), engine, str(folder / "new"), str(folder / "data.npz"), str(threads),
        str(folder / f"trained-{engine}"),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        described = json.loads(process.stdout.readline())
        print(described)
        curve: Curve = []
        for line in process.stdout:
            curve.append(json.loads(line))
            number, seconds, _, loss = curve[-1]
            print(f"{number:5} steps, {seconds:6.0f} s, validation {loss:.4f}", flush=True)
    if process.returncode:
        raise RuntimeError(f"{command}: ended with {process.returncode}")
    return described, curve


def continuation(folder: Path) -> str:
    model = llmcore.load(folder)
    return PROMPT + model.generate(PROMPT, max_new_tokens=100, do_sample=True, temperature=0.7, seed=0).text


def draw(path: Path, curves: dict[str, Curve]) -> None:
    """Writes a PNG: validation losses, and how far torch's is from llmcore's."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (losses, differences) = plt.subplots(1, 2, figsize=(10, 3.6))
    styles = {"llmcore": {"color": "#1f6fb4", "linewidth": 3}, "torch": {"color": "black", "linestyle": ":"}}
    for name, curve in curves.items():
        losses.plot([point[0] for point in curve], [point[3] for point in curve], label=name, **styles[name])
    losses.set_title("validation loss, nats a token", fontsize=9, loc="left")
    losses.legend(frameon=False)
    ours, theirs = (np.array([point[3] for point in curve]) for curve in curves.values())
    steps = [point[0] for point in curves["llmcore"]]
    differences.plot(steps, 100 * (ours / theirs - 1), color="#1f6fb4")
    differences.axhspan(-1, 1, color="#b9c2cc", alpha=0.3)
    differences.set_title("llmcore's against torch's, %", fontsize=9, loc="left")
    for axis in (losses, differences):
        axis.set_xlabel("steps", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
