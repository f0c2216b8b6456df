"""A small model that learns to rewrite dates.

    python examples/date_formats.py

It is asked "the 3rd of March 2021 → " and is to answer "2021-03-03". The pairs are made here: dates written
in six ways, and the answer. Of each pair only the answer counts in the loss, and its end. After about a
minute on two cores a decoder of 0.5 million parameters, which did not know a letter before, answers more than
95 % of the dates right that it has never seen. The same command gives the same bits everywhere.

The first Transformer for such a task was an encoder with a decoder, one for each of two sequences (Vaswani et
al. 2017). The blocks of that form are not built yet, and its example comes with them; a decoder alone reads
the question as the beginning of the text that it is to continue.
"""

from __future__ import annotations

import argparse
import random
from datetime import date, timedelta
from pathlib import Path

import llmcore
from llmcore.training import Documents, Trainer, TrainingConfig, new_model, tokenize_completions

END = "<|endoftext|>"
"""Ends each answer, so that the model learns to stop."""

ROMAN = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII")


def ordinal(day: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    teens = 11 <= day <= 13
    return f"{day}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def question(day: date, way: int) -> str:
    """A date, written in one of six ways."""
    ways = (
        f"{day:%B} {day.day}, {day.year}",
        f"{day.day} {day:%b %Y}",
        f"the {ordinal(day.day)} of {day:%B %Y}",
        f"{day:%A}, {day:%B} {ordinal(day.day)}, {day.year}",
        f"{day.day}.{day.month}.{day.year}",
        f"{day.day} {ROMAN[day.month - 1]} {day.year}",
    )
    return f"{ways[way]} → "


def pairs(count: int) -> list[dict[str, str]]:
    """Questions about different days of two centuries, and their answers."""
    draw = random.Random(0)
    numbers = draw.sample(range(365 * 200), count)
    days = [date(1900, 1, 1) + timedelta(number) for number in numbers]
    return [{"prompt": question(day, draw.randrange(6)), "completion": day.isoformat()} for day in days]


def accuracy(model: llmcore.Model, asked: list[dict[str, str]], show: int = 0) -> float:
    """The share of answers that are right to the last digit; prints some."""
    answers = model.generate([pair["prompt"] for pair in asked], max_new_tokens=12)
    for pair, answer in zip(asked[:show], answers, strict=False):
        right = "right" if answer.text == pair["completion"] else f"wrong: {pair['completion']}"
        print(f"    {pair['prompt']}{answer.text}  ({right})")
    right = sum(answer.text == pair["completion"] for pair, answer in zip(asked, answers, strict=True))
    return right / len(asked)


def main(arguments: list[str] | None = None) -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/date_formats"), help="the folder of the run")
    parser.add_argument("--steps", type=int, default=1000, help="steps of 64 pairs [default: 1000]")
    options = parser.parse_args(arguments)
    out: Path = options.out

    asked = pairs(21_000)
    train, held_out = asked[:-1000], asked[-1000:]

    # No merges: 256 bytes and the end are all tokens, so that the model sees digits one by one.
    tokenizer = llmcore.Tokenizer.train([END], 257, special_tokens=[END])
    config = {
        "model_type": "llama",
        "num_hidden_layers": 3,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id(END),
    }
    model = llmcore.load(new_model(config, out / "new", tokenizer=tokenizer), trainable=True)
    print(model)

    def documents(rows: list[dict[str, str]]) -> Documents:
        return Documents(tokenize_completions(rows, model.tokenizer, cache=out / "tokens"))

    settings = TrainingConfig(
        steps=options.steps,
        batch_size=64,
        learning_rate=3e-3,
        warmup_steps=50,
        eval_interval=100,
        save_interval=None,
    )
    validation = documents(held_out)
    trainer = Trainer(model, documents(train), settings, validation=validation, folder=out / "run")
    print(f"before: {accuracy(model, held_out, show=2):.1%} of {len(held_out)} unseen dates")
    result = trainer.run(resume=True)
    print(f"after: {accuracy(model, held_out, show=8):.1%} of {len(held_out)} unseen dates")
    print(f"model: {result.model}; its curves: llmcore plot {out / 'run'}")


if __name__ == "__main__":
    main()
