"""The engines of `benches/engines.py`, a module each, behind one function: `load(file, precision, threads)`.

`file` is a form of a model that `engine_models.py` made. A module imports its library at the top: the time of
loading a model has none of that in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Step = Callable[[], object]


@dataclass(frozen=True)
class Engine:
    """A model that is loaded.

    Attributes:
        name: Versions, and what the engine says of the precision that it executes.
        generate: From prompts of one length, a number of new tokens, and a number of beams, to the ids that
            follow each prompt: greedily, or with so many beams; the end token is ignored. Calls the last
            argument, if there is one, after each token of a single prompt without beams.
    """

    name: str
    generate: Callable[[list[list[int]], int, int, Step | None], list[list[int]]]


Form = dict[str, str]
OPENVINO: Form = {
    "float32": "openvino-float32",
    "bfloat16": "openvino-float32",
    "int8": "openvino-int8",
    "int4": "openvino-int4",
}

FORMS: dict[str, Form] = {
    "llmcore": {**dict.fromkeys(("float32", "bfloat16", "int8", "int4"), "float"), "gguf": "model.gguf"},
    "torch": dict.fromkeys(("float32", "bfloat16"), "float"),
    "ctranslate2": dict.fromkeys(("float32", "int8"), "ctranslate2"),
    "llama.cpp": {"gguf": "model.gguf"},
    "openvino": OPENVINO,
    "openvino-genai": OPENVINO,
    "onnxruntime-genai": {"float32": "onnxruntime-genai-float32", "int4": "onnxruntime-genai-int4"},
}
"""For each engine and precision that it offers, the form of the model that it reads. `gguf` is Q4_1, as the
file has it."""

MODULES = {
    "llama.cpp": "llama_cpp",
    "openvino-genai": "openvino_genai",
    "onnxruntime-genai": "onnxruntime_genai",
}
"""Those that are not called as their engine."""
