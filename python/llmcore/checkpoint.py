"""A checkpoint on disk: what it says of its architecture, and where its parameters stand.

Two layouts are read: a folder as Transformers saves it (config.json, safetensors, and the files of the
tokenizer), and a GGUF file, which holds everything in one.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from llmcore._core import Gguf, SafeTensors
from llmcore.models import architecture
from llmcore.models.base import View, errors_name, read_config

__all__ = ["Checkpoint", "as_table", "open_checkpoint", "read_json"]


# What older files keep besides parameters: GPT-2's causal masks, and rotary frequencies.
_BUFFER = re.compile(r"\.attn\.(masked_)?bias$|\brotary_emb\.inv_freq$|^rope_freqs\.weight$")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: The folder or file.
        source: Its tensors.
        module: The architecture, a module of `llmcore.models`.
        config: That module's `Config`.
        views: Where each parameter stands, by its path.
        config_json: All of config.json; of a GGUF file, the fields of `config`.
        generation: What the checkpoint says of generation: generation_config.json, or GGUF's end tokens.
    """

    path: Path
    source: SafeTensors | Gguf
    module: ModuleType
    config: Any
    views: Mapping[str, View]
    config_json: Mapping[str, Any]
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        """The architecture's name."""
        return self.module.__name__.rpartition(".")[2]

    @property
    def config_file(self) -> Path:
        """The file that `config` is from."""
        return self.path if self.path.is_file() else self.path / "config.json"

    @property
    def generation_file(self) -> Path:
        """The file that `generation` is from."""
        named = self.path / "generation_config.json"
        return named if named.exists() else self.config_file

    @property
    def weights_file(self) -> Path:
        """The file that the tensors are from, or that lists where they are."""
        names = ("model.safetensors", "model.safetensors.index.json")
        files = [self.path / name for name in names if self.path.is_dir()]
        return next((file for file in files if file.exists()), self.path)

    def unread(self) -> list[str]:
        """The tensors that are no parameter of the model, known buffers left aside."""
        # A head beside tied embeddings is the same matrix again.
        known = {view.tensor for view in self.views.values()} | {"lm_head.weight"}
        return [name for name in self.source.names() if name not in known and not _BUFFER.search(name)]


def as_table(views: Mapping[str, View]) -> dict[str, dict[str, Any]]:
    """Views as `_core` takes them, in JSON."""
    return {path: dataclasses.asdict(view) for path, view in views.items()}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a folder in the Hugging Face layout, or a `.gguf` file.

    Raises:
        FileNotFoundError: nothing is there, or the folder lacks a file that it needs.
        ValueError: a file that is not what it claims to be, or an architecture that is not supported;
            names the file, the field, what was found and what was expected.
    """
    path = Path(path)
    return _open_gguf(path) if path.suffix.lower() == ".gguf" else _open_folder(path)


def _open_folder(path: Path) -> Checkpoint:
    config_path = path / "config.json"
    config_json = read_json(config_path)
    module = architecture(config_json.get("model_type"), str(config_path))
    config = read_config(module.Config, config_json, str(config_path))
    source = SafeTensors(path)
    generation_path = path / "generation_config.json"
    generation = read_json(generation_path) if generation_path.exists() else dict(config_json)
    views = _with_prefix(module.tensors(config), module.PREFIX, source.names())
    return Checkpoint(path, source, module, config, views, config_json, _generation(generation))


def _open_gguf(path: Path) -> Checkpoint:
    source = Gguf(path)
    module = architecture(source.get("general.architecture"), str(path))
    with errors_name(path):
        fields = {name: value for name, value in module.gguf_config(source).items() if value is not None}
    config = read_config(module.Config, fields, str(path))
    roles = ("bos", "eos", "eot", "eom", "padding")
    ids = {role: _gguf_token(source, f"tokenizer.ggml.{role}_token_id", path) for role in roles}
    ends = [ids[role] for role in ("eos", "eot", "eom") if ids[role] is not None]
    generation = {
        "bos_token_id": ids["bos"],
        "eos_token_id": list(dict.fromkeys(ends)),
        "pad_token_id": ids["padding"],
    }
    generation = {key: value for key, value in generation.items() if value not in (None, [])}
    return Checkpoint(path, source, module, config, module.gguf_tensors(config), fields, generation)


def _gguf_token(source: Gguf, key: str, path: Path) -> int | None:
    """The id under a key of the metadata, if there is one."""
    value = source.get(key)
    if not isinstance(value, int | None):
        raise ValueError(f"{path}: {key}: found {value!r}, expected a token id")
    return value


def _with_prefix(views: Mapping[str, View], prefix: str, names: list[str]) -> Mapping[str, View]:
    """The views without their prefix if the file names its tensors so, as bare base models do."""
    if any(name.startswith(prefix) for name in names):
        return views
    return {
        path: dataclasses.replace(view, tensor=view.tensor.removeprefix(prefix))
        for path, view in views.items()
    }


def _generation(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What generation_config.json, or an older config.json, says of generation: all but what is null."""
    return {key: value for key, value in fields.items() if value is not None}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object; names the file, and the line if it is no JSON.
    """
    try:
        data = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: found {error}, expected JSON") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: found {type(data).__name__}, expected a JSON object")
    return data
