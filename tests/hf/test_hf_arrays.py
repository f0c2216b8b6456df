"""Lists, arrays and tensors at the border: what comes in, and what goes out."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from fake_torch import Tensor, fake_torch

from llmcore import AutoModelForCausalLM
from llmcore.hf.arrays import to_numpy, wrap_as, wrap_like

TINY = Path(__file__).parents[1] / "data" / "tiny"


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", fake_torch())


@pytest.fixture
def no_torch(monkeypatch):
    # None makes an import fail, whether torch is installed or not.
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.fixture(scope="module")
def gpt2():
    return AutoModelForCausalLM.from_pretrained(TINY / "gpt2")


def test_without_torch_pt_gives_arrays(no_torch):
    array = np.arange(3)
    assert wrap_as("pt")(array) is array
    assert wrap_as("np")(array) is array
    assert wrap_like([1], array)(array) is array


def test_with_torch_pt_gives_tensors(torch):
    array = np.arange(3)
    tensor = wrap_as("pt")(array)
    assert isinstance(tensor, Tensor) and tensor.array is array
    assert wrap_as("np")(array) is array
    assert isinstance(wrap_like(None, tensor)(array), Tensor)
    assert to_numpy(Tensor(array, graph=True)) is array


def test_other_names_are_errors():
    with pytest.raises(ValueError, match="return_tensors: found 'tf'"):
        wrap_as("tf")


def test_torch_is_not_imported_for_its_own_sake(gpt2, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gpt2([[1, 2]])
    gpt2.generate(np.array([[1, 2]]))
    assert "torch" not in sys.modules


def test_tensors_in_give_tensors_out(gpt2, torch):
    ids = np.array([[5, 6, 7], [6, 7, 0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    arrays = gpt2(ids, mask, output_hidden_states=True, output_attentions=True)
    tensors = gpt2(Tensor(ids), Tensor(mask), output_hidden_states=True, output_attentions=True)
    assert isinstance(arrays.logits, np.ndarray)
    np.testing.assert_array_equal(tensors.logits.array, arrays.logits)
    for name in ("hidden_states", "attentions"):
        for tensor, array in zip(tensors[name], arrays[name], strict=True):
            np.testing.assert_array_equal(tensor.array, array)

    np.testing.assert_array_equal(gpt2.generate(Tensor(ids)).array, gpt2.generate(ids))
    options = {"num_beams": 2, "max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True}
    arrays, tensors = gpt2.generate(ids, **options), gpt2.generate(Tensor(ids), **options)
    for name in ("sequences", "sequences_scores", "beam_indices"):
        np.testing.assert_array_equal(tensors[name].array, arrays[name])
    for tensor, array in zip(tensors.scores, arrays.scores, strict=True):
        np.testing.assert_array_equal(tensor.array, array)


def test_callables_see_what_the_caller_uses(gpt2, torch):
    def processor(ids, scores):
        assert isinstance(ids, Tensor) and isinstance(scores, Tensor)
        scores.array[0, 9] = 1000
        return scores

    def criterion(ids, scores):
        return Tensor(ids.array[:, -2:].sum(-1) == 18)

    output = gpt2.generate(Tensor(np.array([[5]])), None, [processor], [criterion])
    assert output.array.tolist() == [[5, 9, 9]]
