"""The models that `benches/engines.py` compares engines on, in the form that each engine reads, made once.

    python benches/engine_models.py --work DIR --peer llama.cpp=PYTHON --peer openvino=PYTHON …

A model is a GGUF file of type Q4_1, `DIR/MODEL/model.gguf`, and the float32 folder that it expands to,
`DIR/MODEL/float`; every other form is made of that folder by the engine's own converter, so that all compute
with the same numbers before they round them. SmolLM2's file is the one of `llmcore.hub`. GPT-2's weights
are random: where no hub of models can be reached there are no others, and speed does not depend on them.

What is there is kept. What cannot be made leaves `NAME.error` with the reason, which the benchmark shows;
`--again` tries those once more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import machine

from llmcore import hub
from llmcore.checkpoint import open_checkpoint
from llmcore.convert import to_folder, to_gguf
from llmcore.training import new_model

sys.path.insert(0, str(machine.ROOT / "tests"))
import gpt2_files

MODELS = {"gpt2": "GPT-2 124M", "smollm2": "SmolLM2-135M"}

GPT2 = {
    "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "vocab_size": 50257, "bos_token_id": 50256, "eos_token_id": 50256,
}  # fmt: skip
Q4_1 = 3
"""llama.cpp's number of the file type."""

QUANTIZE = """
import ctypes, sys, llama_cpp
options = llama_cpp.llama_model_quantize_default_params()
options.ftype = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(options)))
"""

Command = Callable[[Path, Path, Path], list[str | Path]]
"""From the Python of an engine, the float32 folder and the place to write to, to a command line."""


def openvino(*options: str) -> Command:
    export = ("export", "openvino", "--task", "text-generation-with-past", *options)
    return lambda python, folder, out: [python.with_name("optimum-cli"), *export, "--model", folder, out]


def onnxruntime(precision: str, *options: str) -> Command:
    def command(python: Path, folder: Path, out: Path) -> list[str | Path]:
        builder = (python, "-m", "onnxruntime_genai.models.builder", "-p", precision, "-e", "cpu")
        cache = out.with_name("cache")
        extra = ("--extra_options", *options) if options else ()
        return [*builder, "-i", folder, "-o", out, "-c", cache, *extra]

    return command


CONVERSIONS: dict[str, tuple[str, Command]] = {
    "ctranslate2": (
        "ctranslate2",
        lambda python, folder, out: [
            *(python.with_name("ct2-transformers-converter"), "--model", folder, "--output_dir", out),
        ],
    ),
    # Groups of 64 divide the widths of both models (576 and 768); 128, the default, does not.
    "openvino-float32": ("openvino", openvino("--weight-format", "fp32")),
    "openvino-int8": ("openvino", openvino("--weight-format", "int8")),
    "openvino-int4": (
        "openvino",
        openvino("--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"),
    ),
    "onnxruntime-genai-float32": ("onnxruntime-genai", onnxruntime("fp32")),
    # Accuracy level 4: activations are rounded to bytes, the fastest that there is.
    "onnxruntime-genai-int4": (
        "onnxruntime-genai",
        onnxruntime("int4", "int4_block_size=32", "int4_accuracy_level=4"),
    ),
}
"""For the name of a form: the engine whose Python makes it, and how."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="the folder of models")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--peer", action="append", default=[], metavar="ENGINE=PYTHON")
    parser.add_argument("--again", action="store_true", help="try once more what could not be made")
    args = parser.parse_args()
    pythons = {
        name: Path(python).absolute() for name, _, python in (peer.partition("=") for peer in args.peer)
    }
    for model in args.models:
        forms(model, args.work / model, pythons, args.again)


def forms(model: str, place: Path, pythons: dict[str, Path], again: bool) -> None:
    """Makes those whose engine has a Python."""
    source, folder = place / "model.gguf", place / "float"
    make(source, again, lambda out: SOURCES[model](out, pythons))
    make(folder, again, lambda out: to_folder(open_checkpoint(source), out))
    for name, (engine, command) in CONVERSIONS.items():
        if engine in pythons:
            convert = partial(command, pythons[engine], folder)
            make(place / name, again, lambda out, convert=convert: run(convert(out)))


def make(path: Path, again: bool, write: Callable[[Path], object]) -> None:
    """Writes `path` beside its place and moves it there once it is whole, or says why it cannot be."""
    error = path.with_name(f"{path.name}.error")
    if path.exists() or (error.exists() and not again):
        return
    unfinished = path.with_name(f"unfinished-{path.name}")
    remove(unfinished)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write(unfinished)
        unfinished.rename(path)
        error.unlink(missing_ok=True)
        print(f"{path}: made", flush=True)
    except Exception as reason:
        error.write_text(str(reason).replace(f"{path.parent}/", "") + "\n")
        print(f"{path}: {reason}", flush=True)
        remove(unfinished)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def run(command: list[str | Path]) -> None:
    """Raises RuntimeError with the last line that the command printed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or [f"ended with {done.returncode}"]
        raise RuntimeError(lines[-1])


def smollm2(out: Path, _: dict[str, Path]) -> None:
    out.symlink_to(hub.resolve("smollm2-135m-instruct").absolute())


def gpt2(out: Path, pythons: dict[str, Path]) -> None:
    if "llama.cpp" not in pythons:
        raise RuntimeError("found no Python with llama.cpp, which quantises it")
    folder, whole, tokenizer = (out.with_name(name) for name in ("new", "new.gguf", "tokenizer.json"))
    tokenizer.write_text(json.dumps(gpt2_files.gpt2_tokenizer_json()))
    new_model(GPT2, folder, tokenizer=tokenizer)
    to_gguf(open_checkpoint(folder), whole)
    run([pythons["llama.cpp"], "-c", QUANTIZE, whole, out, str(Q4_1)])
    for made in (folder, whole, tokenizer):
        remove(made)


SOURCES = {"gpt2": gpt2, "smollm2": smollm2}


if __name__ == "__main__":
    sys.exit(main())
