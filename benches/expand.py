"""Writes a GGUF model as a float32 folder in the Hugging Face layout, for peers that read nothing else.

    python benches/expand.py smollm2-135m-instruct /tmp/smollm2

The names and the order of rows come from llmcore's own tables of views: a parameter stands at one place in
the GGUF file (`gguf_tensors`) and at another in a Transformers checkpoint (`tensors`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from llmcore import hub
from llmcore.checkpoint import Checkpoint, open_checkpoint
from llmcore.models.base import View

# Fields of our `Config`s that config.json spells otherwise, or not at all.
OURS = {"rope_factors"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", help="a .gguf file or a short name")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    expand(open_checkpoint(hub.resolve(args.source)), args.folder)


def expand(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in dataclasses.asdict(checkpoint.config).items() if k not in OURS}
    config |= {"model_type": checkpoint.model_type, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(dict(checkpoint.generation), indent=1))
    targets = checkpoint.module.tensors(checkpoint.config)
    save_file(
        {target.tensor: parameter(checkpoint, checkpoint.views[path]) for path, target in targets.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def parameter(checkpoint: Checkpoint, view: View) -> np.ndarray:
    """The parameter that a view of a GGUF file shows."""
    values = checkpoint.source.read(view.tensor)
    if view.interleaved_heads is not None:
        # [heads, pairs, two halves, …] to [heads, two halves, pairs, …]
        pairs = values.reshape(view.interleaved_heads, -1, 2, *values.shape[1:])
        values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
    return values


if __name__ == "__main__":
    main()
