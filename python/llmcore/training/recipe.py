"""A training from beginning to end, as `llmcore train` runs it: which model, on which data, how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from llmcore.loading import load
from llmcore.tokenizer import Tokenizer
from llmcore.tokenizer_files import Documents as DocumentKind
from llmcore.training.config import TrainingConfig, option
from llmcore.training.data import (
    Corpus,
    Dataset,
    Documents,
    PackedWindows,
    tokenize_chats,
    tokenize_completions,
    tokenize_text,
)
from llmcore.training.initialise import new_model
from llmcore.training.lora import LoRA
from llmcore.training.trainer import Trainer

__all__ = ["KINDS", "Recipe", "prepare"]

KINDS = ("text", "completions", "chat")


@dataclass(frozen=True, kw_only=True)
class Recipe(TrainingConfig):
    """All options of `llmcore train`: a `TrainingConfig`, and what is trained on what.

    Exactly one of `model` and `new` is given.
    """

    model: str | None = option(None, "What to start from: a folder, a .gguf file, a hub id or a short name.")
    new: str | None = option(None, "Instead of a model: a config.json, for weights drawn at random.")
    tokenizer: str | None = option(None, "With new: a tokenizer.json, or a folder that has a tokenizer.")
    frozen: tuple[str, ...] = option((), "Tensors that are not trained: names, or patterns as `*wte*`.")
    lora_rank: int | None = option(None, "Train low-rank adapters only, of this rank.")
    lora_alpha: float = option(16.0, "What adapters add is multiplied by lora_alpha / lora_rank.")
    lora_targets: tuple[str, ...] = option((), "Ends of the names of weights to adapt. [default: as PEFT]")
    lora_dropout: float = option(0.0, "The share of the adapters' inputs that is dropped.")
    threads: int | None = option(None, "Threads to use; they change no bits. [default: all]")

    data: tuple[str, ...] = option((), "Files or folders to train on; may be given several times.")
    validation: tuple[str, ...] = option((), "Held-out files or folders; may be given several times.")
    validation_share: float = option(
        0.05, "Without validation: the share at the end of the data to hold out."
    )
    kind: str = option("text", f"What the data is: {', '.join(KINDS)} (.jsonl but for text).")
    documents: str = option("file", "Of text: a document is a file, or each of its lines (file or lines).")
    field: str = option("text", "Of text in .jsonl: the name of the text in a row.")
    seq_len: int = option(256, "Tokens of a sequence at most.")
    respect_documents: bool = option(False, "Of text: no token sees another document.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.new is None):
            raise ValueError(
                f"model, new: found {self.model!r} and {self.new!r}, expected exactly one of the two"
            )
        if self.new is not None and self.tokenizer is None:
            raise ValueError("tokenizer: found none, expected one for the new model")
        if not self.data:
            raise ValueError("data: found none, expected at least one file or folder")
        for name, choices in (("kind", KINDS), ("documents", ("file", "lines"))):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}: found {value!r}, expected one of {', '.join(choices)}")
        if self.seq_len < 2:
            raise ValueError(f"seq_len: found {self.seq_len}, expected at least 2")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share: found {self.validation_share}, expected a number in [0, 1)")


def prepare(recipe: Recipe, folder: Path, *, progress: bool = True) -> Trainer:
    """A trainer with the model loaded, or made, and the data tokenised.

    Args:
        recipe: What to do.
        folder: Where the run is kept; a new model is written to `initial` in it.
        progress: Whether to show progress on standard error.

    Raises:
        ValueError, TypeError, OSError: as `llmcore.load`, `new_model`, the functions that tokenise, and
            `Trainer` have it.
    """
    model = load(
        start_of(recipe, folder),
        threads=recipe.threads,
        trainable=True,
        precision=recipe.precision,
        frozen=recipe.frozen,
        adapter=adapter_of(recipe),
    )
    if recipe.seq_len > model.max_positions:
        raise ValueError(
            f"seq_len: found {recipe.seq_len}, expected at most {model.max_positions}, the model's"
        )
    corpus = tokenized(recipe, recipe.data, model.tokenizer, folder, progress)
    held_out: Corpus | None = None
    if recipe.validation:
        held_out = tokenized(recipe, recipe.validation, model.tokenizer, folder, progress)
    elif recipe.validation_share:
        corpus, held_out = corpus.split(recipe.validation_share)
    return Trainer(
        model,
        examples(recipe, corpus),
        recipe,
        validation=None if held_out is None else examples(recipe, held_out),
        folder=folder,
        progress=progress,
    )


def adapter_of(recipe: Recipe) -> LoRA | None:
    """The adapters that are trained, if any are asked for."""
    if recipe.lora_rank is None:
        return None
    return LoRA(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        target_modules=recipe.lora_targets or None,
        lora_dropout=recipe.lora_dropout,
        seed=recipe.seed,
    )


def start_of(recipe: Recipe, folder: Path) -> str | Path:
    """What is loaded; a new model is made first, unless the run already has it."""
    if recipe.new is None:
        assert recipe.model is not None
        return recipe.model
    initial = folder / "initial"
    if (folder / "training.json").exists() and initial.exists():
        return initial
    return new_model(recipe.new, initial, seed=recipe.seed, tokenizer=recipe.tokenizer)


def tokenized(
    recipe: Recipe, paths: Sequence[str], tokenizer: Tokenizer, folder: Path, progress: bool
) -> Corpus:
    """The corpus of some files, whose arrays are beside a single one, and in the run's folder for several."""
    source: Any = Path(paths[0]) if len(paths) == 1 else [Path(path) for path in paths]
    cache = None if len(paths) == 1 else folder / "tokens"
    if recipe.kind == "chat":
        return tokenize_chats(source, tokenizer, cache=cache, progress=progress)
    if recipe.kind == "completions":
        return tokenize_completions(source, tokenizer, cache=cache, progress=progress)
    return tokenize_text(
        source,
        tokenizer,
        cache=cache,
        field=recipe.field,
        documents=cast(DocumentKind, recipe.documents),
        progress=progress,
    )


def examples(recipe: Recipe, corpus: Corpus) -> Dataset:
    """Windows of texts; chats and completions as they are."""
    if recipe.kind == "text":
        return PackedWindows(corpus, recipe.seq_len, respect_documents=recipe.respect_documents)
    return Documents(corpus, recipe.seq_len)
