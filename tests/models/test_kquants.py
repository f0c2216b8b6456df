"""Every quantised type of GGUF in a model 768 wide, three blocks of 256 (SmolLM2 has 576)."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

import llmcore
from llmcore.checkpoint import open_checkpoint
from llmcore.convert import to_gguf
from llmcore.training import new_model

CONFIG = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 768, "intermediate_size": 512,
    "num_hidden_layers": 1, "num_attention_heads": 12, "num_key_value_heads": 4,
    "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
TYPES = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS",
]  # fmt: skip
IDS = [5, 9, 90, 3, 7, 50, 22, 8, 41, 60, 2]


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    to_gguf(open_checkpoint(new_model(CONFIG, folder / "x", seed=2)), folder / "x.gguf")
    return gguf.GGUFReader(folder / "x.gguf")


def random_blocks(rng: np.random.Generator, kind: gguf.GGMLQuantizationType, shape) -> np.ndarray:
    """Blocks of any bytes that stand for numbers of about 0.02."""
    size, count = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // size, count), np.uint8)
    numbers = gguf.quants.dequantize(one_scale(blocks.copy(), kind, 1.0), kind)
    return one_scale(blocks, kind, 0.02 / numbers.std()).reshape(shape[0], -1)


def one_scale(blocks: np.ndarray, kind: gguf.GGMLQuantizationType, scale: float) -> np.ndarray:
    """The blocks with this scale, and where they have a minimum, −8 times that for it."""
    minimum = {"Q4_1": -7.5, "Q5_1": -15.5, "Q2_K": 0.5, "Q4_K": 7.5, "Q5_K": 15.5}
    at = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}.get(kind.name, 0)
    halves = [scale] if kind.name not in minimum else [scale, scale * minimum[kind.name]]
    blocks[:, at : at + 2 * len(halves)] = np.array(halves, np.float16).view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_768_wide(floats, tmp_path, kind):
    """Only rows are rounded: logits are near those of the weights in float32, the same bits in any steps."""
    kind = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(kind.value)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, field in floats.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            value = field.contents()
            writer.add_key_value(name, value, field.types[0], field.types[1] if field.types[1:] else None)
    for tensor in floats.tensors:
        if tensor.data.ndim == 2:
            writer.add_tensor(tensor.name, random_blocks(rng, kind, tensor.data.shape), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    model = llmcore.load(tmp_path / "x.gguf")
    exact = llmcore.load(tmp_path / "x.gguf", dtype="float32")
    bits = {"Q4_0": 4.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q6_K": 6.5625}.get(kind.name)
    if bits:
        weights = sum(np.prod(shape) for _, shape in model.core.parameters())
        assert model.core.weight_bytes() < 1.05 * bits / 8 * weights + 20_000
    expected, found = exact.logits(IDS), model.logits(IDS)
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    for chunk in (1, 8):
        steps = model.core.forward([np.array(IDS, np.uint32)], [], chunk)[0][0]
        np.testing.assert_array_equal(steps, found)
