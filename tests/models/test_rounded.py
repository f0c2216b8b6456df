"""dtype="int8" and "int4": a checkpoint in floats whose matrices are rounded to blocks as they are loaded."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from safetensors.numpy import load_file, save_file
from test_layouts import IDS

import llmcore
from llmcore import _core
from llmcore.checkpoint import open_checkpoint
from llmcore.convert import quantize, to_gguf
from llmcore.training import AdamW, LoRA, new_model

TYPES = {"int8": "Q8_0", "int4": "Q4_1"}

CONFIGS = {
    "gpt2": {"model_type": "gpt2", "vocab_size": 160, "n_embd": 64, "n_layer": 2, "n_head": 2,
             "n_positions": 128},
    "llama": {"model_type": "llama", "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "max_position_embeddings": 128, "tie_word_embeddings": False},
}  # fmt: skip


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
    """A new model whose widths are multiples of 32."""
    return new_model(CONFIGS[request.param], tmp_path / request.param, seed=3)


def there_and_back(matrix: np.ndarray, kind: str) -> np.ndarray:
    """What the blocks of a matrix `[outputs, inputs]` stand for."""
    blocks = _core.quantize(np.ascontiguousarray(matrix), kind)
    return quants.dequantize(blocks, GGMLQuantizationType[kind])


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_are_those_of_the_blocks(folder, tmp_path, dtype):
    """In float32, weights that were rounded before say nearly the same: only rows are rounded besides."""
    tensors = load_file(folder / "model.safetensors")
    for name, values in tensors.items():
        if values.ndim == 2 and "wpe" not in name:
            transposed = folder.name == "gpt2" and "wte" not in name
            values = there_and_back(values.T if transposed else values, TYPES[dtype])
            tensors[name] = np.ascontiguousarray(values.T if transposed else values)
    rounded = shutil.copytree(folder, tmp_path / "rounded")
    save_file(tensors, rounded / "model.safetensors")
    expected = llmcore.load(rounded).logits(IDS)
    model = llmcore.load(folder, dtype=dtype)
    found = model.logits(IDS)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    stored = dict(model.core.matrix_bytes())
    shapes = dict(model.core.parameters())
    down = "layers.0.mlp.down.weight"
    assert 1 <= stored[down] / np.prod(shapes[down]) * 32 / {"int8": 34, "int4": 20}[dtype] < 1.05


@pytest.mark.parametrize("dtype", TYPES)
def test_gguf_in_floats_is_rounded_alike(folder, tmp_path, dtype):
    to_gguf(open_checkpoint(folder), tmp_path / "x.gguf")
    expected = llmcore.load(folder, dtype=dtype).logits(IDS)
    np.testing.assert_array_equal(llmcore.load(tmp_path / "x.gguf", dtype=dtype).logits(IDS), expected)


def test_rows_that_are_no_multiple_of_a_block_stay_float32(tmp_path):
    config = CONFIGS["llama"] | {"intermediate_size": 80}
    model = llmcore.load(new_model(config, tmp_path / "x", seed=1), dtype="int4")
    stored = dict(model.core.matrix_bytes())
    assert stored["layers.1.mlp.down.weight"] == 64 * 80 * 4
    assert stored["layers.1.mlp.gate.weight"] == 2 * 80 * 64 * 20 / 32


def test_what_is_quantised_already(smollm2_path):
    with pytest.raises(ValueError, match=r"found Q4_1, which is quantised already, expected floats, or Q8_0"):
        llmcore.load(smollm2_path, dtype="int8")


def test_numbers_without_a_scale(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, values in tensors.items() if values.ndim == 2 and "mlp" in name)
    tensors[name][3, 33] = 1e9
    save_file(tensors, folder / "model.safetensors")
    llmcore.load(folder)
    with pytest.raises(ValueError, match=rf"tensor \"{name}\": found -?inf .*Q8_0 at row .*, block"):
        llmcore.load(folder, dtype="int8")


@pytest.mark.parametrize("dtype", TYPES)
def test_adapters_train_on_a_rounded_base(folder, dtype):
    model = llmcore.load(folder, trainable=True, dtype=dtype, adapter=LoRA(r=2))
    assert model.info()["weight_bytes"] < llmcore.load(folder).info()["weight_bytes"] / 2
    optimizer = AdamW(model, lr=1e-2)
    losses = []
    for _ in range(5):
        losses.append(model.loss_and_grad(input_ids=[IDS], labels=[IDS]))
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_another_dtype(folder):
    with pytest.raises(ValueError, match=r"dtype: found 'int3', expected one of 'auto', 'float32'"):
        llmcore.load(folder, dtype="int3")


@pytest.mark.parametrize("kind", TYPES.values())
@pytest.mark.parametrize("from_gguf", [False, True])
def test_a_file_of_blocks_says_the_same(folder, tmp_path, kind, from_gguf):
    """`quantize` writes what `dtype=` makes in memory: the logits are the same bits."""
    dtype = next(dtype for dtype, known in TYPES.items() if known == kind)
    source = folder
    if from_gguf:
        to_gguf(open_checkpoint(folder), source := tmp_path / "floats.gguf", "bfloat16")
    quantize(open_checkpoint(source), tmp_path / "x.gguf", kind.lower())
    expected = llmcore.load(source, dtype=dtype).logits(IDS)
    np.testing.assert_array_equal(llmcore.load(tmp_path / "x.gguf").logits(IDS), expected)
    np.testing.assert_array_equal(llmcore.load(tmp_path / "x.gguf", dtype=dtype).logits(IDS), expected)


def test_a_file_of_blocks_as_the_package_gguf_reads_it(folder, tmp_path):
    to_gguf(open_checkpoint(folder), tmp_path / "floats.gguf")
    floats = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "floats.gguf").tensors}
    for kind, file_type in (("Q8_0", 7), ("Q4_1", 3), ("Q4_0", 2)):
        quantize(open_checkpoint(folder), tmp_path / "x.gguf", kind.lower())
        reader = GGUFReader(tmp_path / "x.gguf")
        assert reader.fields["general.file_type"].contents() == file_type
        assert {tensor.name for tensor in reader.tensors} == set(floats)
        for tensor in reader.tensors:
            values = floats[tensor.name].data
            rounded = tensor.name.endswith("weight") and values.ndim == 2 and "position" not in tensor.name
            assert tensor.tensor_type.name == (kind if rounded else "F32")
            found = quants.dequantize(tensor.data, tensor.tensor_type) if rounded else tensor.data
            assert np.abs(found - values).max() <= (np.abs(values).max() / 6 if rounded else 0)


def test_what_is_no_source_of_blocks(folder, tmp_path, smollm2_path):
    with pytest.raises(ValueError, match=r"found Q8_0, expected floats \(F32, F16, BF16\)"):
        quantize(open_checkpoint(smollm2_path), tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="type: found 'q4_k', expected one of 'q8_0'"):
        quantize(open_checkpoint(folder), tmp_path / "x.gguf", "q4_k")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name, values in tensors.items() if values.ndim == 2 and "mlp" in name)
    tensors[name][3, 33] = 1e9
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"blk\.0\.ffn_.*\.weight, from row 0 on: .* expected finite numbers"
    ):
        quantize(open_checkpoint(folder), tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
