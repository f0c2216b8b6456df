"""The example of Transformers' documentation runs with only its import changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import llmcore

EXAMPLE = """
from llmcore import GPT2LMHeadModel, GPT2Tokenizer
tokenizer = GPT2Tokenizer.from_pretrained('gpt2')
model = GPT2LMHeadModel.from_pretrained('gpt2')
input_ids = tokenizer.encode('I love programming', return_tensors='pt')
output = model.generate(input_ids, max_length=50, num_return_sequences=5)
for i in range(5):
    print(tokenizer.decode(output[i]))
"""


def write_random_gpt2(folder: Path, *, vocab_size=50257, width=32, layers=2, heads=2, positions=128) -> None:
    """A random model under the names of the published checkpoint, which stores attention masks, too."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(0, 0.2, shape).astype(np.float32)

    tensors = {"wte.weight": normal(vocab_size, width), "wpe.weight": normal(positions, width)}
    for norm in ["ln_f", *(f"h.{i}.{name}" for i in range(layers) for name in ("ln_1", "ln_2"))]:
        tensors |= {f"{norm}.weight": 1 + normal(width), f"{norm}.bias": normal(width)}
    for i in range(layers):
        tensors[f"h.{i}.attn.bias"] = np.tri(positions, dtype=np.float32)[None, None]
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            tensors |= {
                f"h.{i}.{name}.weight": normal(inputs, outputs),
                f"h.{i}.{name}.bias": normal(outputs),
            }
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": vocab_size,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": positions,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_the_example(tmp_path, monkeypatch, capsys, gpt2_folder):
    shutil.copytree(gpt2_folder, tmp_path / "gpt2")
    (tmp_path / "gpt2" / "tokenizer.json").unlink()
    write_random_gpt2(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(EXAMPLE, names)
    printed = capsys.readouterr().out
    assert printed.count("I love programming") >= 5
    output = np.asarray(names["output"])
    assert output.shape == (5, 50) and output.dtype == np.int64
    assert (output[:, :3] == [40, 1842, 8300]).all()
    assert len({tuple(row) for row in output.tolist()}) == 5

    tokenizer, model = names["tokenizer"], names["model"]
    tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(["I", "I love programming"], padding=True, padding_side="left", return_tensors="np")
    texts = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=3), skip_special_tokens=True)
    for text, prompt in zip(texts, ["I", "I love programming"], strict=True):
        alone = model.generate(tokenizer.encode(prompt, return_tensors="np"), max_new_tokens=3)
        assert text == tokenizer.decode(alone[0])

    ids = names["input_ids"]
    greedy = np.asarray(model.generate(ids, max_length=9))
    stop = tokenizer.decode(greedy[0, 5])
    stopped = np.asarray(model.generate(ids, max_length=9, stop_strings=[stop], tokenizer=tokenizer))
    assert stopped.shape[1] <= 6 and tokenizer.decode(stopped[0, 3:]).endswith(stop)
    np.testing.assert_array_equal(stopped, greedy[:, : stopped.shape[1]])
    np.testing.assert_array_equal(stopped, model.generate(ids, max_length=9, stop_strings=stop))

    native = llmcore.load("gpt2").generate("I love programming", max_length=50, num_return_sequences=5)
    assert [[40, 1842, 8300, *completion.ids] for completion in native] == output.tolist()
