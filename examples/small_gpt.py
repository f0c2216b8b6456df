"""A small GPT, from raw text to what it writes.

    python examples/small_gpt.py

The text is the Python standard library: 10 MB of code and documentation that come with every Python. A
tokenizer of 4096 tokens is trained on it, then a GPT-2 of 4.3 million parameters for 2000 steps of 2048
tokens, which takes five to ten minutes on two cores. It continues a few lines of Python, as it also tried to
before it had seen any, and its loss on modules that were held out is compared with what `xz` makes of them.
The same Python gives the same bits. If it is interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import lzma
import math
import sysconfig
from pathlib import Path

import llmcore
from llmcore.training import PackedWindows, Trainer, TrainingConfig, new_model, tokenize_text

PROMPTS = [
    "import os\nimport sys\n",
    "class Queue:\n    def __init__(self,",
    "    for line in file:\n",
    '    def is_empty(self):\n        """Return',
]

END = "<|endoftext|>"
"""Follows each module, so that the model learns where one ends."""


def modules() -> list[Path]:
    """The modules of the standard library, without its tests and its tables of character sets."""
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idle_test", "encodings"}
    return sorted(path for path in library.rglob("*.py") if left_out.isdisjoint(path.parts))


def main(arguments: list[str] | None = None) -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/small_gpt"), help="the folder of the run")
    parser.add_argument("--steps", type=int, default=2000, help="steps of 2048 tokens [default: 2000]")
    parser.add_argument("--modules", type=int, help="modules to read at most [default: all]")
    options = parser.parse_args(arguments)
    out: Path = options.out

    # Every 20th module is held out: neither the tokenizer nor the model sees it.
    files = modules()[: options.modules]
    held_out = files[::20]
    seen = [path for path in files if path not in held_out]

    tokenizer = llmcore.Tokenizer.train(seen, 4096, special_tokens=[END])
    config = {
        "model_type": "gpt2",
        "n_layer": 4,
        "n_embd": 256,
        "n_head": 4,
        "n_positions": 256,
        "eos_token_id": tokenizer.token_to_id(END),
    }
    model = llmcore.load(new_model(config, out / "new", tokenizer=tokenizer), trainable=True)
    train = tokenize_text(seen, model.tokenizer, cache=out / "tokens")
    validation = tokenize_text(held_out, model.tokenizer, cache=out / "tokens")
    print(f"{model}\nto train on: {train}\nheld out: {validation}\n")

    untrained = model.generate(PROMPTS[0], max_new_tokens=30, temperature=0.7, seed=0)
    print(f"――― before: ―――\n{PROMPTS[0]}{untrained.text}\n")

    trainer = Trainer(
        model,
        PackedWindows(train, 128),
        TrainingConfig(
            steps=options.steps,
            batch_size=16,
            learning_rate=3e-3,
            warmup_steps=100,
            eval_interval=250,
            save_interval=250,
        ),
        validation=PackedWindows(validation, 128),
        folder=out / "run",
    )
    result = trainer.run(resume=True)

    for prompt, written in zip(
        PROMPTS, model.generate(PROMPTS, max_new_tokens=100, temperature=0.7, seed=0), strict=True
    ):
        print(f"――― after: ―――\n{prompt}{written.text}\n")

    text = b"".join(path.read_bytes() for path in held_out)
    nats = result.best_loss * len(validation.ids)
    print(f"validation loss: {result.best_loss:.3f} nats a token", end=", ")
    print(f"{nats / math.log(2) / len(text):.3f} bits a byte", end="; ")
    print(f"xz needs {8 * len(lzma.compress(text, preset=9)) / len(text):.3f} bits a byte")
    print(f"model: {result.model}; its curves: llmcore plot {out / 'run'}")


if __name__ == "__main__":
    main()
