"""Low-rank adapters (LoRA, Hu et al. 2021): a model stays as it is, and to the product with a weight W is
added `scale · B A x`, of which only the small A and B train. Files are in PEFT's format.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore._core import SafeTensors
from llmcore.arrays import Tensors
from llmcore.checkpoint import read_json
from llmcore.files import replaced_folder
from llmcore.models.base import View
from llmcore.models.views import parts_of
from llmcore.safetensors_file import write_safetensors

__all__ = ["ADAPTER_CONFIG", "ADAPTER_WEIGHTS", "LoRA", "Module"]

Array = npt.NDArray[np.float32]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
"""What PEFT puts before the names of a model."""

_TARGETS = {"gpt2": ("c_attn",)}
"""What PEFT adapts unless told otherwise, where that is not the queries and values of Llama."""

_UNSUPPORTED: Mapping[str, Sequence[Any]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "exclude_modules": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, []),
    "use_bdlora": (False, None),
    "use_qalora": (False, None),
}
"""Fields of adapter_config.json that ask for more than is built, and what they may be."""


@dataclass(frozen=True)
class Module:
    """A product with a weight of the checkpoint, and its adapter.

    Attributes:
        name: The tensor's name without `.weight`.
        weight: How the tensor is stored.
        paths: The outputs that share it, in their order, as paths of the tree.
        firsts: Where among the tensor's outputs each begins.
    """

    name: str
    weight: View
    paths: tuple[str, ...]
    firsts: tuple[int, ...]

    @property
    def a(self) -> str:
        """The name of A, `[rank, inputs]`, in PEFT's files."""
        return f"{_PREFIX}{self.name}.lora_A.weight"

    @property
    def b(self) -> str:
        """The name of B, `[outputs, rank]`, in PEFT's files."""
        return f"{_PREFIX}{self.name}.lora_B.weight"

    def views(self) -> dict[str, View]:
        """Where the adapter's parameters stand."""
        table = {f"{self.paths[0]}.lora_A": View(self.a)}
        for path, first in zip(self.paths, self.firsts, strict=True):
            table[f"{path}.lora_B"] = View(self.b, first=first)
        return table


@dataclass(frozen=True)
class LoRA:
    """What is adapted, and how; with the names and defaults of PEFT's `LoraConfig`.

    Attributes:
        r: The rank.
        lora_alpha: The adapter's output is multiplied by `lora_alpha / r`; by `lora_alpha / √r` with
            `use_rslora`.
        target_modules: Ends of the names of weights ("q_proj"), or a regular expression of whole names, or
            "all-linear"; PEFT's choice for the architecture unless given.
        lora_dropout: The rate at which the adapter's inputs are dropped while training.
        use_rslora: Kalajdzievski 2023.
        seed: What A is drawn from; B begins as zeros, so that at first nothing changes.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.r, int) or self.r < 1:
            raise ValueError(f"r: found {self.r!r}, expected a rank, 1 or more")
        if not math.isfinite(self.lora_alpha):
            raise ValueError(f"lora_alpha: found {self.lora_alpha!r}, expected a number")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_dropout: found {self.lora_dropout!r}, expected a rate from 0, less than 1"
            )

    @property
    def scale(self) -> float:
        """The factor of what an adapter adds."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def modules(self, views: Mapping[str, View], model_type: str) -> list[Module]:
        """The weights that are adapted.

        Args:
            views: The checkpoint's parameters.
            model_type: Its architecture.

        Raises:
            ValueError: a target that names none.
        """
        known = {module.name: module for module in _products(views)}
        targets = self.target_modules
        if targets is None:
            targets = _TARGETS.get(model_type, ("q_proj", "v_proj"))
        if targets == "all-linear":
            return list(known.values())
        if isinstance(targets, str):
            matching = {name for name in known if re.fullmatch(targets, name)}
            missing = [] if matching else [targets]
        else:
            by_target = {t: {n for n in known if n == t or n.endswith(f".{t}")} for t in targets}
            missing = [target for target, names in by_target.items() if not names]
            matching = set().union(*by_target.values())
        if missing or not matching:
            ends = sorted({name.rpartition(".")[2] for name in known})
            raise ValueError(f"target_modules: found {missing}, expected names that end in one of {ends}")
        return [module for name, module in known.items() if name in matching]

    def spec(self, modules: Sequence[Module]) -> dict[str, Any]:
        """The adapters as `_core` takes them."""
        targets = [module.paths for module in modules]
        return {"rank": self.r, "scale": self.scale, "dropout": self.lora_dropout, "targets": targets}

    def initial(self, module: Module, inputs: int) -> Array:
        """A as PEFT draws it, uniformly from ±1 / √inputs, by the seed and the module's name alone."""
        key = hashlib.sha256(f"{self.seed}/{module.a}".encode()).digest()[:16]
        draws = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(self.r * inputs)
        uniform = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return ((2 * uniform - 1) / math.sqrt(inputs)).reshape(self.r, inputs).astype(np.float32)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> tuple[LoRA, str | None]:
        """What adapter_config.json says, and of which model it is an adapter.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it asks for something that is not built; names the field.
        """
        file = Path(folder) / ADAPTER_CONFIG
        fields = read_json(file)
        for name, supported in _UNSUPPORTED.items():
            if fields.get(name, supported[0]) not in supported:
                raise ValueError(f"{file}: {name}: found {fields[name]!r}, expected {supported[0]!r}")
        names = ("r", "lora_alpha", "target_modules", "lora_dropout", "use_rslora")
        try:
            config = cls(**{name: fields[name] for name in names if name in fields})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
        return config, fields.get("base_model_name_or_path")

    def config_json(self, base: str, modules: Sequence[Module]) -> dict[str, Any]:
        """adapter_config.json of an adapter of the model that `base` names."""
        targets = self.target_modules
        if targets is None or targets == "all-linear":
            targets = sorted({module.name.rpartition(".")[2] for module in modules})
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "use_rslora": self.use_rslora,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "fan_in_fan_out": any(module.weight.transpose for module in modules),
            "bias": "none",
            "inference_mode": True,
        }


def _products(views: Mapping[str, View]) -> list[Module]:
    """The weights of a checkpoint that stand in products inside of layers."""
    modules = []
    for name, paths in parts_of(views).items():
        if not name.endswith(".weight") or not re.fullmatch(r"layers\.\d+\.(attn|mlp)\..*", paths[0]):
            continue
        first = views[paths[0]]
        modules.append(
            Module(
                name.removesuffix(".weight"),
                first,
                tuple(path.removesuffix(".weight") for path in paths),
                tuple(views[path].first for path in paths),
            )
        )
    return modules


def save_adapter(folder: str | os.PathLike[str], config: Mapping[str, Any], tensors: Tensors) -> None:
    """Saves an adapter, whole or not at all, as PEFT reads it.

    Raises:
        FileExistsError: there is a file, or a folder that holds anything but an adapter.
        OSError: a file that cannot be written.
    """
    with replaced_folder(folder, (ADAPTER_CONFIG, ADAPTER_WEIGHTS)) as unfinished:
        (unfinished / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_safetensors(unfinished / ADAPTER_WEIGHTS, tensors)


def read_adapter(folder: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The tensors of an adapter.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors of other names or shapes than `shapes` says; names file and tensor.
    """
    file = Path(folder) / ADAPTER_WEIGHTS
    source = SafeTensors(file)
    if unknown := sorted(set(source.names()) ^ set(shapes)):
        state = "found no" if unknown[0] in shapes else "found"
        raise ValueError(f"{file}: {state} tensor {unknown[0]!r}, expected those of the adapter's config")
    tensors = {name: source.read(name) for name in shapes}
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{file}: {name}: found shape {list(tensors[name].shape)}, expected {list(shape)}"
            )
    return tensors
