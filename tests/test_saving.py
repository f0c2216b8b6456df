"""Saving in the Hugging Face layout: what was loaded comes back, bit for bit, and with it its tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import llmcore
from llmcore._core import SafeTensors
from llmcore.checkpoint import open_checkpoint
from llmcore.saving import save_folder

TINY = Path(__file__).parent / "data" / "tiny"
IDS = [5, 9, 100, 3, 7, 150, 22, 8] * 4


def weights(checkpoint):
    """All parameters' tensors of a checkpoint in the Hugging Face layout."""
    return {view.tensor: checkpoint.source.read(view.tensor) for view in checkpoint.views.values()}


@pytest.fixture(params=["gpt2", "llama"])
def source(request, tmp_path, gpt2_folder):
    """A tiny checkpoint with all the files that one may have."""
    folder = tmp_path / "source"
    shutil.copytree(TINY / request.param, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(gpt2_folder / name, folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3], "temperature": 0.5}')
    (folder / "expected.json").unlink()
    (folder / "expected.safetensors").unlink()
    return folder


def test_a_folder_comes_back(source, tmp_path):
    checkpoint = open_checkpoint(source)
    save_folder(tmp_path / "above" / "saved", checkpoint, weights(checkpoint))
    saved = tmp_path / "above" / "saved"
    assert sorted(file.name for file in saved.iterdir()) == sorted(file.name for file in source.iterdir())
    for file in saved.iterdir():
        if file.suffix == ".json" and "config" in file.name:
            assert json.loads(file.read_text()) == json.loads((source / file.name).read_text())
        elif file.suffix != ".safetensors":
            assert file.read_bytes() == (source / file.name).read_bytes()
    before, after = load_file(source / "model.safetensors"), load_file(saved / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert SafeTensors(saved).metadata() == {"format": "pt"}
    assert np.array_equal(llmcore.load(saved).logits(IDS), llmcore.load(source).logits(IDS))
    assert llmcore.load(saved).checkpoint.generation == checkpoint.generation


def test_it_may_be_saved_where_it_came_from(source):
    checkpoint = open_checkpoint(source)
    expected = llmcore.load(source).logits(IDS)
    tensors = weights(checkpoint)
    save_folder(source, checkpoint, tensors | {"more": np.zeros(1, np.float32)})
    with pytest.warns(UserWarning, match="more"):
        model = llmcore.load(source)
    assert np.array_equal(model.logits(IDS), expected) and len(model.tokenizer) == 50257


def test_what_config_json_says_of_types(source, tmp_path):
    config = json.loads((source / "config.json").read_text())
    del config["dtype"], config["architectures"]
    path = source / "config.json"
    for key in ("dtype", "torch_dtype"):
        path.write_text(json.dumps(config | {key: "bfloat16", "mine": [None]}))
        checkpoint = open_checkpoint(source)
        save_folder(tmp_path / "saved", checkpoint, weights(checkpoint))
        saved = json.loads((tmp_path / "saved" / "config.json").read_text())
        architecture = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[config["model_type"]]
        assert saved == config | {key: "float32", "mine": [None], "architectures": [architecture]}


def test_shards(source, tmp_path):
    checkpoint = open_checkpoint(source)
    save_folder(tmp_path / "saved", checkpoint, weights(checkpoint), max_shard_size=50_000)
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 1
    assert np.array_equal(llmcore.load(tmp_path / "saved").logits(IDS), llmcore.load(source).logits(IDS))
    # A model that fits one file leaves no shard behind.
    save_folder(tmp_path / "saved", checkpoint, weights(checkpoint))
    assert [file.name for file in (tmp_path / "saved").glob("model*")] == ["model.safetensors"]


def test_a_folder_with_other_things_is_refused(source, tmp_path):
    checkpoint = open_checkpoint(source)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("all of it")
    with pytest.raises(FileExistsError, match=r"home: found 'thesis\.tex', expected a new folder"):
        save_folder(tmp_path / "home", checkpoint, weights(checkpoint))
    assert (tmp_path / "home" / "thesis.tex").read_text() == "all of it"
