"""A whole training: the loop, and all that watches over it.

    trainer = Trainer(model, PackedWindows(corpus, 256), TrainingConfig(steps=1000), folder="run")
    result = trainer.run()

A run's folder holds `training.json` (the config), `metrics.jsonl`, `checkpoints/step-N/`, and at the end
`model/`, with the averages of the parameters where they are kept.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmcore.files import locked_folder
from llmcore.generation import tokenizer_for
from llmcore.training.checkpoints import Checkpoints
from llmcore.training.config import TrainingConfig, read_options
from llmcore.training.data.batches import Batches
from llmcore.training.data.datasets import Dataset
from llmcore.training.divergence import Divergence
from llmcore.training.loop import Hook, State, TrainingError, train
from llmcore.training.metrics import MetricsFile, PeakShare, TensorBoard, tensorboard
from llmcore.training.model import TrainableModel
from llmcore.training.optimizer import EMA, SGD, AdamW, Optimizer
from llmcore.training.schedules import make_schedule
from llmcore.training.validation import Samples, Validation, averages, due

__all__ = ["Result", "Trainer"]


@dataclass(frozen=True)
class Result:
    """What came of a training.

    Attributes:
        step: Steps made.
        loss: The loss of the last, in nats.
        best_loss: The best validation loss, in nats; None without validation.
        best_step: The step that had it.
        stopped: Why it ended before all steps were made; None if it did not.
        model: The folder with the model; None if nothing was saved.
        best_model: The checkpoint of the best validation (of averages, where they are kept: those in its
            `ema.safetensors`); None if nothing was saved or validated.
    """

    step: int
    loss: float
    best_loss: float | None
    best_step: int | None
    stopped: str | None
    model: Path | None
    best_model: Path | None


class Trainer:
    """Trains a model as a config says.

    Args:
        model: What is trained, in place.
        data: The examples that it is trained on: `PackedWindows`, `Documents`, or what is like them.
        config: How.
        validation: Held-out examples.
        folder: Where the run is kept; None keeps nothing on disk.
        hooks: What else is done in each step, before it is written down.
        progress: Whether to show the progress on standard error.

    Raises:
        ValueError: options that contradict each other, the model or the data.
        ModuleNotFoundError: a package that the config asks for is missing; says what to install.
    """

    def __init__(
        self,
        model: TrainableModel,
        data: Dataset,
        config: TrainingConfig,
        *,
        validation: Dataset | None = None,
        folder: str | Path | None = None,
        hooks: Sequence[Hook] = (),
        progress: bool = True,
    ) -> None:
        if config.early_stopping_patience is not None and validation is None:
            raise ValueError("validation: found none, expected examples for early stopping")
        if config.sample_prompts:
            tokenizer_for(model, "sample_prompts")  # fails before, not after
        if config.tensorboard:
            tensorboard()
        if config.precision != model.precision:
            raise ValueError(f"precision: found a model of {model.precision}, expected {config.precision}")
        self.model, self.config = model, config
        model.checkpointing |= config.activation_checkpointing
        self.data = Batches(
            data,
            **_size(config),
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            seed=config.seed,
            epochs=config.epochs,
        )
        self._first = 0
        self.steps = len(self.data) if config.steps is None else config.steps
        self.schedule = make_schedule(
            config.schedule,
            steps=self.steps,
            warmup=min(config.warmup_steps, self.steps),
            decay=config.decay_steps,
            final=config.final_lr,
        )
        self.folder = None if folder is None else Path(folder)
        self.hooks, self.progress = hooks, progress
        self.optimizer = make_optimizer(model, config)
        self.ema = None if config.ema_decay is None else EMA(model, config.ema_decay)
        self.divergence = Divergence(config.max_loss_spike)
        self.validation = None
        if validation is not None:
            self.validation = Validation(
                lambda: Batches(validation, **_size(config), shuffle=False, epochs=1),
                config.eval_interval,
                patience=config.early_stopping_patience,
                most=config.eval_batches,
            )
        self.checkpoints = None
        if self.folder is not None:
            self.checkpoints = Checkpoints(self.folder / "checkpoints", config.keep_last)

    def run(self, *, resume: bool = False, force: bool = False) -> Result:
        """Trains to the end.

        Args:
            resume: Go on from the folder's last checkpoint, to the same bits as if nothing had happened;
                without a checkpoint, from the beginning.
            force: Resume although this machine has another instruction set and bfloat16 is used: the bits
                will be others.

        Raises:
            TrainingError: a loss or gradient that is not finite, or a spike of the loss; names the step, the
                batch and the last good checkpoint. The parameters are those before the step.
            FileExistsError: the folder holds a run, and `resume` was not asked for.
            BlockingIOError: another process trains in the folder.
            ValueError: a checkpoint that does not fit.
            OSError: a checkpoint, the metrics or the model could not be written; names the file and the last
                good checkpoint.
        """
        config = self.config
        state = State(self.model, self.optimizer, self.ema, self.steps)
        with ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(locked_folder(self.folder))
                self._open_run(self.folder, state, resume, force)
            try:
                train(
                    state,
                    self._steps(),
                    learning_rate=config.learning_rate,
                    schedule=self.schedule,
                    dropout=config.dropout,
                    label_smoothing=config.label_smoothing,
                    seed=config.seed,
                    hooks=self._hooks(state, stack),
                )
                return self._finish(state)
            except TrainingError as error:
                raise TrainingError(f"{error}; {self._examples()}; {self._last_good()}") from error
            except OSError as error:
                found = str(error) if error.errno is None else f"{error.strerror}: {error.filename}"
                message = f"step {state.step}: {found}; {self._last_good()}"
                raise OSError(*filter(None, (error.errno, message))) from error

    def _open_run(self, folder: Path, state: State, resume: bool, force: bool) -> None:
        """Makes the folder of a new run, or goes on with the one that is there."""
        assert self.checkpoints is not None
        last, config_file = self.checkpoints.last(), folder / "training.json"
        if (config_file.exists() or last is not None) and not resume:
            raise FileExistsError(f"{folder}: found a run, expected a new folder, or resume=True")
        self.checkpoints.clean()
        if config_file.exists():
            _tell_changes(config_file, self.config)
        if last is not None:
            self._load(last, state, force)
        self.config.save(config_file)

    def _load(self, checkpoint: Path, state: State, force: bool) -> None:
        """Takes everything up where it was after the checkpoint's step."""
        assert self.checkpoints is not None
        saved = self.checkpoints.load(checkpoint, self.model, self.optimizer, self.ema, force=force)
        state.step, state.loss = saved["step"], saved["loss"]
        self.data.load_state_dict(saved["data"])
        self.divergence.load_state_dict(saved["divergence"])
        if self.validation is not None and saved["validation"] is not None:
            self.validation.load_state_dict(saved["validation"])
            state.stop = self.validation.verdict()
        self._prune()

    def _hooks(self, state: State, stack: ExitStack) -> list[Hook]:
        """What is done in each step, in order: look, write down, show, save."""
        config = self.config
        hooks: list[Hook] = [self.divergence, PeakShare(self.model)]
        if self.validation is not None:
            hooks.append(self.validation)
        if config.sample_prompts:
            hooks.append(
                Samples(
                    config.sample_prompts,
                    config.eval_interval,
                    tokens=config.sample_tokens,
                    temperature=config.sample_temperature,
                    seed=config.seed,
                )
            )
        hooks += self.hooks
        records: list[MetricsFile | TensorBoard] = []
        if self.folder is not None:
            records.append(MetricsFile(self.folder / "metrics.jsonl", state.step))
            if config.tensorboard:
                records.append(TensorBoard(self.folder / "tensorboard", state.step))
        hooks += [stack.enter_context(closing(record)) for record in records]
        if self.progress:
            from llmcore.training.bar import ProgressBar

            hooks.append(stack.enter_context(ProgressBar(state.steps, state.step)))
        if self.folder is not None:
            hooks.append(_Saver(self, records))
        return hooks

    def save(self, state: State) -> None:
        """Saves a checkpoint of where the training is, and deletes those that are not kept."""
        assert self.checkpoints is not None
        validation = self.validation
        facts = {
            "loss": state.loss,
            "seed": self.config.seed,
            "data": self.data.state_dict(),
            "validation": None if validation is None else validation.state_dict(),
            "divergence": self.divergence.state_dict(),
        }
        self.checkpoints.save(state.step, self.model, self.optimizer, self.ema, facts)
        self._prune()

    def _prune(self) -> None:
        """Deletes the checkpoints that are not kept."""
        if self.checkpoints is not None:
            self.checkpoints.prune(None if self.validation is None else self.validation.best_step)

    def _finish(self, state: State) -> Result:
        """Saves what is to be used, and says what came of it."""
        best = None if self.validation is None else self.validation.best_step
        model = best_model = None
        if self.folder is not None and self.checkpoints is not None:
            model = self.folder / "model"
            with averages(state):
                self.model.save(model)
            best_model = None if best is None else self.checkpoints.path(best)
        return Result(
            step=state.step,
            loss=state.loss,
            best_loss=None if best is None or self.validation is None else self.validation.best,
            best_step=best,
            stopped=state.stop,
            model=model,
            best_model=best_model,
        )

    def _steps(self) -> Iterator[list[dict[str, Any]]]:
        """The batches of each step."""
        self._first = self.data.position
        for step in self.data:
            yield step
            self._first = self.data.position

    def _examples(self) -> str:
        """For a message: the examples of the step."""
        numbers = f"{self._first} to {self.data.position - 1}"
        return f"its examples are {numbers} in the order of training (`Batches.position` goes there)"

    def _last_good(self) -> str:
        """For a message: what can be gone back to."""
        last = None if self.checkpoints is None else self.checkpoints.last()
        return "there is no checkpoint" if last is None else f"the last good checkpoint is {last}"


class _Saver(Hook):
    """Saves checkpoints every `save_interval` steps, after the best validation, and after the last step."""

    def __init__(self, trainer: Trainer, records: Sequence[MetricsFile | TensorBoard]) -> None:
        self.trainer = trainer
        self.records = records

    def after_step(self, state: State) -> None:
        if state.improved or due(state, self.trainer.config.save_interval):
            # What is written down of a step is there whenever the step's checkpoint is.
            for record in self.records:
                record.sync()
            self.trainer.save(state)


def _size(config: TrainingConfig) -> dict[str, Any]:
    """The size of a batch, as `Batches` takes it."""
    if config.max_tokens is not None:
        return {"max_tokens": config.max_tokens}
    return {"batch_size": config.batch_size}


def make_optimizer(model: TrainableModel, config: TrainingConfig) -> Optimizer:
    """The optimiser that a config names."""
    common: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "no_decay": config.no_decay,
        "max_grad_norm": config.max_grad_norm or None,
    }
    if config.optimizer == "sgd":
        return SGD(model, momentum=config.momentum, nesterov=config.nesterov, **common)
    return AdamW(model, betas=(config.beta1, config.beta2), eps=config.eps, **common)


def _tell_changes(file: Path, config: TrainingConfig) -> None:
    """Warns of options that are not what they were when the run began."""
    before, now = read_options(file), json.loads(json.dumps(asdict(config)))
    names = [name for name in now if before.get(name) != now[name]]
    if changed := [f"{name} {before.get(name)!r} → {now[name]!r}" for name in names]:
        warnings.warn(f"{file}: the run goes on with other options: {', '.join(changed)}", stacklevel=4)
