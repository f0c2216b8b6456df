"""The commands `train` and `plot`."""

from __future__ import annotations

import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from llmcore.cli.options import Json
from llmcore.cli.terminal import exit_codes, remark, write, write_json
from llmcore.training.config import TrainingConfig, read_options
from llmcore.training.loop import TrainingError
from llmcore.training.plot import plot_run
from llmcore.training.recipe import Recipe, prepare

__all__ = ["app"]

app = typer.Typer(rich_markup_mode="markdown")


def with_recipe_flags(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a function that takes `**flags` one for each option of a recipe, None where it is not given."""
    hints = get_type_hints(Recipe)
    how = {field.name for field in dataclasses.fields(TrainingConfig)}
    own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    for field in sorted(dataclasses.fields(Recipe), key=lambda field: field.name in how):
        hint = hints[field.name]
        kind: Any = list[str] if hint == tuple[str, ...] else next(iter(get_args(hint)), hint)
        default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
        help = field.metadata["help"]
        if default not in (None, "", False):
            help += f" [default: {default}]"
        panel = "How to train" if field.name in how else "What to train"
        option = typer.Option(help=help, show_default=False, rich_help_panel=panel)
        annotation = Annotated[kind | None, option]
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function


@app.command()
@exit_codes
@with_recipe_flags
def train(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The folder of a new run.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="The folder of a run, to go on from its last checkpoint.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A .yaml, .toml or .json of these options; flags win over it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Resume bfloat16 on another instruction set, to other bits.")
    ] = False,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Train a model on text, prompts with completions, or chats.

    The run's folder gets the options (training.json), metrics.jsonl, checkpoints/step-N, and at the end the
    model in `model`. A run that was ended by anything goes on with --resume, to the same bits.
    """
    if (out is None) == (resume is None):
        raise typer.BadParameter("give --out for a new run, or --resume to go on with one")
    folder = out if resume is None else resume
    assert folder is not None
    settings = folder / "training.json"
    if resume is None and settings.exists():
        raise typer.BadParameter(
            f"--out: found a run in {folder}, expected a new folder, or --resume {folder}"
        )
    recipe = read_recipe([settings] if resume else [], config, flags)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: remark(f"llmcore: {message}")
        try:
            trainer = prepare(recipe, folder)
            result = trainer.run(resume=resume is not None, force=force)
        except KeyboardInterrupt:
            remark(f"interrupted; llmcore train --resume {folder} goes on from the last checkpoint")
            raise
        except TrainingError as error:
            remark(f"llmcore: {error}")
            raise typer.Exit(1) from None
    if as_json:
        facts = dataclasses.asdict(result)
        return write_json({name: str(v) if isinstance(v, Path) else v for name, v in facts.items()})
    if result.best_loss is not None:
        remark(f"best validation loss {result.best_loss:.4f} at step {result.best_step}, {result.best_model}")
    write(f"{result.model}\n")
    return None


def read_recipe(before: list[Path], config: Path | None, flags: dict[str, Any]) -> Recipe:
    """The recipe of files, the later of which win over the earlier, and of flags, which win over all."""
    options: dict[str, Any] = {}
    for path in [*before, *([] if config is None else [config])]:
        # Names are checked file by file, so that the error names the file.
        options = merged(options, Recipe.check_names(read_options(path), str(path)))
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    return Recipe.from_options(absolute(merged(options, given)), "flags")


def absolute(options: dict[str, Any]) -> dict[str, Any]:
    """The options with whole paths, so that a run can be gone on with from anywhere."""
    options = dict(options)
    for name in ("data", "validation", "new", "tokenizer", "model"):
        value = options.get(name)
        if isinstance(value, list):
            options[name] = [os.path.abspath(path) if isinstance(path, str) else path for path in value]
        elif isinstance(value, str) and (name != "model" or os.path.exists(value)):
            options[name] = os.path.abspath(value)
    return options


def merged(options: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options, and others that win over them; of two that exclude each other the one that is given stays."""
    options = dict(options)
    for pair in (("steps", "epochs"), ("model", "new")):
        for name, other in (pair, pair[::-1]):
            if given.get(name) is not None and given.get(other) is None:
                options.pop(other, None)
    return options | given


@app.command()
@exit_codes
def plot(
    run: Annotated[Path, typer.Argument(help="The folder of a run.", exists=True, file_okay=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The picture. [default: RUN/curves.png]")
    ] = None,
) -> None:
    """Draw the curves of a run as a PNG."""
    write(f"{plot_run(run, out)}\n")
