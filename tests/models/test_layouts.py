"""One model gives one result from every layout of files that it may be stored in."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import llmcore
from llmcore.rope import rope

TINY = Path(__file__).parents[1] / "data" / "tiny"
IDS = [5, 9, 100, 3, 7, 150, 22, 8] * 4

GGUF_NAMES = {
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    "llama": {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
}


def copy(name, folder, tensors, **changes):
    """The checkpoint with other tensors, or another config."""
    folder.mkdir(exist_ok=True)
    config = json.loads((TINY / name / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def with_biases(tensors):
    """Llama's tensors and biases for all of its matrices, but the head."""
    random = np.random.default_rng(0)
    matrices = [name for name in tensors if name.endswith("_proj.weight")]
    return tensors | {
        name.replace("weight", "bias"): random.standard_normal(len(tensors[name]), np.float32)
        for name in matrices
    }


def gguf_name(name, architecture):
    stem, kind = name.rsplit(".", 1)
    parts = stem.split(".")
    names = GGUF_NAMES[architecture]
    if stem in names:
        return f"{names[stem]}.{kind}"
    return f"blk.{parts[2]}.{names['.'.join(parts[3:])]}.{kind}"


def interleaved(rows, heads):
    """The rows of each head as llama.cpp's converter puts them: the halves of a pair side by side."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(path, folder, *, without=(), more=None):
    """What the converter of llama.cpp writes of a checkpoint, in float32, without a tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    name = config["model_type"]
    heads = config.get("n_head") or config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, name)
    counts = {
        "context_length": config.get("n_positions") or config["max_position_embeddings"],
        "embedding_length": config.get("n_embd") or config["hidden_size"],
        "feed_forward_length": config.get("intermediate_size") or 4 * config["n_embd"],
        "block_count": config.get("n_layer") or config["num_hidden_layers"],
        "attention.head_count": heads,
    }
    if name == "llama":
        counts["attention.head_count_kv"] = config["num_key_value_heads"]
        counts["rope.dimension_count"] = config["head_dim"]
        plain = rope(config["head_dim"], 10000.0, None, 256).frequencies
        scaled = rope(config["head_dim"], 10000.0, config["rope_parameters"], 256).frequencies
        writer.add_tensor("rope_freqs.weight", np.divide(plain, scaled).astype(np.float32))
        epsilon = ("attention.layer_norm_rms_epsilon", config["rms_norm_eps"])
    else:
        epsilon = ("attention.layer_norm_epsilon", config["layer_norm_epsilon"])
    for key, value in counts.items():
        if key not in without:
            writer.add_uint32(f"{name}.{key}", value)
    if "epsilon" not in without:
        writer.add_float32(f"{name}.{epsilon[0]}", epsilon[1])
    for key, value in (more or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for tensor, rows in load_file(folder / "model.safetensors").items():
        if ".c_" in tensor and rows.ndim == 2:
            rows = rows.T
        if "q_proj" in tensor:
            rows = interleaved(rows, heads)
        if "k_proj" in tensor:
            rows = interleaved(rows, config["num_key_value_heads"])
        writer.add_tensor(gguf_name(tensor, name), np.ascontiguousarray(rows))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("suffix", ["gguf", "GGUF"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gguf(name, suffix, tmp_path):
    path = write_gguf(tmp_path / f"x.{suffix}", TINY / name)
    expected = llmcore.load(TINY / name).logits(IDS)
    # The factors of rope_freqs are rounded to float32; all else are the same numbers.
    tolerance = 1e-5 if name == "llama" else 0
    np.testing.assert_allclose(llmcore.load(path).logits(IDS), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("key", ["eos_token_id", "eot_token_id", "eom_token_id"])
def test_end_tokens_of_gguf(key, tmp_path):
    model = llmcore.load(write_gguf(tmp_path / "x.gguf", TINY / "gpt2"))
    ids = model.generate([1, 2, 3], max_new_tokens=8).ids
    assert len(ids) == 8
    more = {"tokenizer.ggml.eos_token_id": 0, f"tokenizer.ggml.{key}": ids[2]}
    model = llmcore.load(write_gguf(tmp_path / "y.gguf", TINY / "gpt2", more=more))
    ended = model.generate([1, 2, 3], max_new_tokens=8)
    assert (ended.ids, ended.finish_reason) == (ids[: ids.index(ids[2]) + 1], "stop")


YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 64,
}


def test_yarn_of_gguf(tmp_path):
    more = YARN | {"llama.rope.scaling.yarn_beta_fast": 16.0, "llama.rope.scaling.yarn_beta_slow": 2.0}
    found = llmcore.load(write_gguf(tmp_path / "x.gguf", TINY / "llama", more=more)).config.rope_scaling
    assert found == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokenizer.ggml.eos_token_id": [1]}, r"tokenizer\.ggml\.eos_token_id: found array\(\[1\]"),
        (
            {"tokenizer.ggml.bos_token_id": "x"},
            r"tokenizer\.ggml\.bos_token_id: found 'x', expected a token id",
        ),
        ({"llama.expert_count": 8}, r"llama\.expert_count: found 8, expected 0"),
        ({"llama.rope.scaling.type": "longrope"}, r"rope_type: found 'longrope'"),
        ({"llama.rope.scaling.type": "linear"}, r"rope_parameters\.factor: found None"),
        (YARN | {"llama.rope.scaling.yarn_ext_factor": 0.5}, r"yarn_ext_factor: found 0\.5, expected 1"),
    ],
)
def test_metadata_that_is_wrong(more, message, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", TINY / "llama", more=more)
    with pytest.raises(ValueError, match=rf"x\.gguf: .*{message}"):
        llmcore.load(path)


def test_gguf_without_a_tokenizer(tmp_path):
    model = llmcore.load(write_gguf(tmp_path / "x.gguf", TINY / "gpt2"))
    completion = model.generate([1, 2, 3], max_new_tokens=2)
    assert (len(completion.ids), completion.text) == (2, None)
    with pytest.raises(FileNotFoundError, match=r"x\.gguf: tokenizer\.ggml\.model: found None"):
        model.generate("text")


def test_biases_of_llama(tmp_path):
    tensors = load_file(TINY / "llama" / "model.safetensors")
    folder = copy("llama", tmp_path / "x", with_biases(tensors), attention_bias=True, mlp_bias=True)
    logits = llmcore.load(folder).logits(IDS)
    assert np.abs(logits - llmcore.load(TINY / "llama").logits(IDS)).max() > 0.1
    path = write_gguf(tmp_path / "x.gguf", folder)
    np.testing.assert_allclose(llmcore.load(path).logits(IDS), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "context_length"),
        ("llama", "attention.head_count"),
        ("llama", "epsilon"),
        ("gpt2", "context_length"),
        ("gpt2", "epsilon"),
    ],
)
def test_gguf_that_leaves_out_what_is_computed(name, key, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", TINY / name, without=[key])
    with pytest.raises(ValueError, match=rf"x\.gguf: {name}\..*{key.split('.')[-1]}: found no such key"):
        llmcore.load(path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_shards(name, tmp_path):
    tensors = load_file(TINY / name / "model.safetensors")
    folder = copy(name, tmp_path / "x", tensors)
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    places = {tensor: files[i % 3] for i, tensor in enumerate(tensors)}
    for file in files:
        save_file({t: tensors[t] for t, place in places.items() if place == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    np.testing.assert_array_equal(llmcore.load(folder).logits(IDS), llmcore.load(TINY / name).logits(IDS))


def save_bf16(tensors, path):
    """A safetensors file of the upper halves of float32."""
    header, data = {}, b""
    for name, values in tensors.items():
        half = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": values.shape,
            "data_offsets": [len(data), len(data) + len(half)],
        }
        data += half
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_half_precision(name, tmp_path):
    """A file in half precision gives what float32 gives of the rounded numbers."""
    tensors = {t: np.ascontiguousarray(v) for t, v in load_file(TINY / name / "model.safetensors").items()}
    halves = {t: v.astype(np.float16) for t, v in tensors.items()}
    folder = copy(name, tmp_path / "f16", halves)
    rounded = copy(name, tmp_path / "f32", {t: v.astype(np.float32) for t, v in halves.items()})
    kept = llmcore.load(folder, kv_cache_dtype="float32")
    np.testing.assert_array_equal(kept.logits(IDS), llmcore.load(rounded).logits(IDS))

    cut = {t: (v.view(np.uint32) & 0xFFFF0000).view(np.float32) for t, v in tensors.items()}
    save_bf16(tensors, folder / "model.safetensors")
    copy(name, rounded, cut)
    for dtype in ("float32", "bfloat16"):
        found, expected = (llmcore.load(path, dtype=dtype).logits(IDS) for path in (folder, rounded))
        np.testing.assert_array_equal(found, expected)
