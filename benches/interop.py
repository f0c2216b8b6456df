"""Whether Transformers and llama.cpp find in the files that llmcore writes the model that llmcore has.

    PYTHONPATH=python PEER/bin/python benches/interop.py [--model smollm2-135m-instruct]

`PEER` has torch and transformers, or llama-cpp-python; what is not installed is left out. A model is
written as a folder and as a GGUF file in float32, loaded, and compared: the ids of a text, the logits after
each token of a prompt, and a greedy continuation of `--tokens` tokens. The same for two new models of random
weights, a GPT-2 and a Llama with the stretched positions of Llama 3, which share the tokenizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import llmcore
from llmcore import hub
from llmcore.checkpoint import open_checkpoint
from llmcore.convert import to_folder, to_gguf
from llmcore.training import new_model

TEXT = "The licence says: you may copy 12345 verbatim copies, or don't.\n\nÜber naïve cafés 漢字 🙂"
PROMPT = "The history of the printing press begins with"

NEW = {
    "new gpt2": {
        "model_type": "gpt2", "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256,
        "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
    },
    "new llama": {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48, "max_position_embeddings": 1024,
        "rope_theta": 10000.0, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a short name, a folder or a .gguf")
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    peers = {"transformers": check_transformers, "llama_cpp": check_llama_cpp}
    found = {name: check for name, check in peers.items() if importlib.util.find_spec(name)}
    if not found:
        parser.error("neither transformers nor llama_cpp is installed")
    with tempfile.TemporaryDirectory() as folder:
        for name, path in written(args.model, Path(folder)).items():
            to_gguf(open_checkpoint(path), path.with_suffix(".gguf"))
            model = llmcore.load(path)
            for peer, check in found.items():
                print(f"{name} in {peer}: {check(model, path, args.tokens)}", flush=True)


def written(source: str, folder: Path) -> dict[str, Path]:
    """The folders of the models that are compared, by what they are called."""
    to_folder(open_checkpoint(hub.resolve(source)), folder / "model")
    folders = {source: folder / "model"}
    vocab_size = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    for name, config in NEW.items():
        config = config | {"vocab_size": vocab_size}
        folders[name] = new_model(config, folder / name.replace(" ", "_"), tokenizer=folder / "model")
    return folders


def check_transformers(model: llmcore.Model, folder: Path, tokens: int) -> str:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    peer = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = model.tokenizer.encode(PROMPT)
    with torch.no_grad():
        logits = peer(torch.tensor([ids])).logits[0].numpy()
        output = peer.generate(torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
    continued = output[0, len(ids) :].tolist()
    return report(model, tokenizer.encode(TEXT), ids, logits, continued, tokens)


def check_llama_cpp(model: llmcore.Model, folder: Path, tokens: int) -> str:
    from llama_cpp import Llama

    floats = {"type_k": 0, "type_v": 0, "flash_attn": False}  # ggml's number of float32
    file = str(folder.with_suffix(".gguf"))
    peer = Llama(file, n_ctx=256, logits_all=True, verbose=False, n_threads=2, **floats)
    ids = model.tokenizer.encode(PROMPT)
    peer.eval(ids)
    logits = np.array(peer.scores[: len(ids)])
    continued: list[int] = []
    while len(continued) < tokens:
        continued.append(int(np.argmax(peer.scores[peer.n_tokens - 1])))
        if continued[-1] in model.tokenizer.eos_token_ids:
            break
        peer.eval(continued[-1:])
    return report(model, peer.tokenize(TEXT.encode(), special=True), ids, logits, continued, tokens)


def report(model: llmcore.Model, text_ids: Any, ids: Any, logits: Any, continued: Any, tokens: int) -> str:
    """What agrees and what does not; the largest difference of a logit beside the largest logit."""
    ours = model.logits(ids)
    expected = model.generate(ids, max_new_tokens=tokens).ids
    same = next(
        (i for i, (a, b) in enumerate(zip(continued, expected, strict=False)) if a != b), len(expected)
    )
    difference = float(np.abs(ours - logits).max())
    return (
        f"ids of a text {'equal' if text_ids == model.tokenizer.encode(TEXT) else 'DIFFERENT'}, "
        f"logits within {difference:.1e} of {np.abs(ours).max():.1f}, "
        f"greedy continuation equal for {same} of {len(expected)} tokens"
    )


if __name__ == "__main__":
    main()
