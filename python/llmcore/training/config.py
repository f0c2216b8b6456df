"""What a training is to do: one frozen set of options, the same from a file and from flags."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from llmcore.files import written_whole
from llmcore.training.extras import extra
from llmcore.training.optimizer import NO_DECAY
from llmcore.training.schedules import SCHEDULES

__all__ = ["OPTIMIZERS", "PRECISIONS", "TrainingConfig", "option", "read_options"]

OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("float32", "bfloat16")

C = TypeVar("C", bound="TrainingConfig")


def option(default: Any, help: str) -> Any:
    """A field with the line of help that `llmcore train` shows for its flag."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a training is to do. `Trainer` takes one; `llmcore train` has a flag for each field, and reads
    them from a YAML, TOML or JSON file with the same names.

    Exactly one of `steps` and `epochs` is given. An interval of None means: only after the last step.

    Raises:
        ValueError: a value out of range, or options that contradict each other.
        TypeError: a value of another type.
    """

    steps: int | None = option(None, "Optimiser's steps of the whole training; or give epochs.")
    epochs: int | None = option(None, "Passes over the data; or give steps.")
    batch_size: int = option(8, "Sequences of a batch.")
    max_tokens: int | None = option(None, "Instead of batch_size: tokens of a batch at most.")
    gradient_accumulation_steps: int = option(1, "Batches of a step, whose gradients are added.")
    seed: int = option(0, "Decides the order of the data, dropout, and samples.")

    optimizer: str = option("adamw", f"{' or '.join(OPTIMIZERS)}.")
    learning_rate: float = option(3e-4, "The rate after the warm-up.")
    schedule: str = option("cosine", f"{', '.join(SCHEDULES)}.")
    warmup_steps: int = option(0, "Steps in which the rate rises to its full value.")
    decay_steps: int | None = option(None, "Steps of the decay of wsd. [default: a tenth]")
    final_lr: float = option(0.1, "What part of the rate the schedule falls to.")
    beta1: float = option(0.9, "How much the first moment of adamw keeps in a step.")
    beta2: float = option(0.95, "How much the second moment of adamw keeps in a step.")
    eps: float = option(1e-8, "What adamw adds to its divisor.")
    momentum: float = option(0.9, "The momentum of sgd.")
    nesterov: bool = option(False, "sgd looks one step of its momentum ahead.")
    weight_decay: float = option(0.1, "Decay of the weights.")
    no_decay: tuple[str, ...] = option(NO_DECAY, "Names that contain one of these are not decayed.")
    max_grad_norm: float = option(1.0, "The gradients are clipped to this norm; 0: they are not.")
    ema_decay: float | None = option(None, "Also keep a moving average of the weights, as 0.999.")

    precision: str = option("float32", f"Of matrix products: {' or '.join(PRECISIONS)}.")
    activation_checkpointing: bool = option(False, "Compute activations again to need less memory.")
    dropout: float = option(0.0, "The share of activations that is dropped.")
    label_smoothing: float = option(0.0, "The share of each label that is spread over all tokens.")

    eval_interval: int | None = option(None, "Steps from one validation to the next.")
    eval_batches: int | None = option(None, "Batches of a validation at most. [default: all]")
    early_stopping_patience: int | None = option(
        None, "Stop after so many validations without a better loss."
    )
    max_loss_spike: float = option(3.0, "Stop when the loss is so many nats above its recent mean; 0: never.")
    sample_prompts: tuple[str, ...] = option((), "Texts to continue every eval_interval.")
    sample_tokens: int = option(48, "Tokens of a sample.")
    sample_temperature: float = option(0.8, "The temperature of samples; 0 takes the likeliest token.")
    save_interval: int | None = option(500, "Steps between checkpoints; the best validation also has one.")
    keep_last: int = option(2, "Checkpoints to keep beside the best.")
    tensorboard: bool = option(False, "Also write TensorBoard's events (pip install tensorboardX).")

    def __post_init__(self) -> None:
        check_types(self)
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"steps, epochs: found {self.steps} and {self.epochs}, expected exactly one of the two"
            )
        for expected, (names, within) in _RANGES.items():
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not within(value):
                    raise ValueError(f"{name}: found {value!r}, expected {expected}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                found, known = getattr(self, name), ", ".join(choices)
                raise ValueError(f"{name}: found {found!r}, expected one of {known}")
        if self.early_stopping_patience is not None and self.eval_interval is None:
            raise ValueError(
                "early_stopping_patience: found it without eval_interval, expected both or neither"
            )

    @classmethod
    def from_options(cls: type[C], options: Mapping[str, Any], where: str = "options") -> C:
        """A config of options by name, as a file or flags have them: lists become tuples, and whole numbers
        stand for floats.

        Raises:
            ValueError: unknown names, each with the name that was perhaps meant; see also the class.
        """
        options = cls.check_names(options, where)
        return cls(**{name: _plain(cls, name, value) for name, value in options.items()})

    @classmethod
    def check_names(cls, options: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The options, if all are fields.

        Raises:
            ValueError: unknown names, each with the name that was perhaps meant.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := [name for name in options if name not in known]:
            names = ", ".join(sorted(known))
            raise ValueError(f"{where}: found {_meant(unknown, known)}, expected names among {names}")
        return dict(options)

    @classmethod
    def from_file(cls: type[C], path: str | Path) -> C:
        """The config of a `.yaml`, `.toml` or `.json` file.

        Raises:
            ValueError, TypeError, ImportError, OSError: see `read_options` and the class.
        """
        return cls.from_options(read_options(path), str(path))

    def save(self, path: str | Path) -> None:
        """Writes the config as JSON, which `from_file` reads as an equal one."""
        with written_whole(Path(path)) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False).encode() + b"\n")


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "a whole number > 0": (
        "steps epochs batch_size max_tokens gradient_accumulation_steps eval_interval eval_batches "
        "early_stopping_patience sample_tokens save_interval keep_last",
        lambda x: x > 0,
    ),
    "a whole number ≥ 0": ("warmup_steps decay_steps", lambda x: x >= 0),
    "0 to 2⁶³ − 1": ("seed", lambda x: 0 <= x < 2**63),
    "a number > 0": ("eps", lambda x: 0 < x < math.inf),
    "a number ≥ 0": (
        "learning_rate weight_decay max_grad_norm max_loss_spike sample_temperature",
        lambda x: 0 <= x < math.inf,
    ),
    "0 to 1": ("final_lr", lambda x: 0 <= x <= 1),
    "a number in [0, 1)": (
        "beta1 beta2 momentum dropout label_smoothing ema_decay",
        lambda x: 0 <= x < 1,
    ),
}
"""What is expected: of which fields, and whether a value is so."""

_CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}


def _names(hint: Any) -> str:
    """A type as people call it."""
    if hint == tuple[str, ...]:
        return "a list of strings"
    return " or ".join("none" if part is type(None) else part.__name__ for part in _parts(hint))


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) or (hint,)


def check_types(config: Any) -> None:
    """Raises `TypeError` for a field of a config dataclass whose value is not of its type."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hint == tuple[str, ...]:
            right = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        else:
            right = type(value) in _parts(hint)
        if not right:
            raise TypeError(f"{name}: found {value!r}, expected {_names(hint)}")


def _plain(cls: type, name: str, value: Any) -> Any:
    """A value of a file as the field has it."""
    hint = get_type_hints(cls)[name]
    if hint == tuple[str, ...] and isinstance(value, list):
        return tuple(value)
    if float in _parts(hint) and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            return float(value)  # YAML 1.1 takes 3e-4, without a point, for a string
    return value


def _meant(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Unknown names, each with a known one that is like it."""
    import difflib

    texts = []
    for name in unknown:
        like = difflib.get_close_matches(str(name), sorted(known), n=1)
        texts.append(f"{name!r} (is {like[0]!r} meant?)" if like else repr(name))
    return ", ".join(texts)


def read_options(path: str | Path) -> dict[str, Any]:
    """The options in a `.yaml`, `.yml`, `.toml` or `.json` file, by name.

    Raises:
        ValueError: another suffix, or a file that is not what its suffix says; names the file.
        ImportError: the package that reads such files is missing; says what to install.
        OSError: the file cannot be read.
    """
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {
        ".yaml": _yaml,
        ".yml": _yaml,
        ".toml": _toml,
        ".json": json.loads,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: found the suffix {path.suffix!r}, expected .yaml, .toml or .json")
    text = path.read_bytes()
    try:
        options = readers[path.suffix](text.decode())
    except ValueError as error:  # every parser's errors are this, or are made so
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"{path}: found {type(options).__name__}, expected options by name")
    return options


def _yaml(text: str) -> Any:
    yaml = extra("yaml", "pyyaml", "reading .yaml")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _toml(text: str) -> Any:
    if sys.version_info < (3, 11):
        return extra("tomli", "tomli", "reading .toml").loads(text)
    import tomllib

    return tomllib.loads(text)
