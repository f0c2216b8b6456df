"""Options of a training: the same from files and flags, and errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.training import TrainingConfig
from llmcore.training.config import read_options
from llmcore.training.recipe import Recipe

OPTIONS = {
    "steps": 100,
    "learning_rate": 3e-4,
    "warmup_steps": 10,
    "weight_decay": 0,
    "sample_prompts": ["One day,", 'a "quoted"\tü'],
    "no_decay": [],
    "nesterov": True,
    "eval_interval": 20,
}
TOML = """
steps = 100
learning_rate = 3e-4
warmup_steps = 10
weight_decay = 0
sample_prompts = ["One day,", 'a "quoted"\tü']
no_decay = []
nesterov = true
eval_interval = 20
"""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_all_ways_give_equal_configs(tmp_path):
    expected = TrainingConfig(
        steps=100,
        learning_rate=3e-4,
        warmup_steps=10,
        weight_decay=0.0,
        sample_prompts=("One day,", 'a "quoted"\tü'),
        no_decay=(),
        nesterov=True,
        eval_interval=20,
    )
    files = [
        write(tmp_path / "a.json", json.dumps(OPTIONS)),
        write(tmp_path / "a.toml", TOML),
        write(tmp_path / "a.yaml", yaml.safe_dump(OPTIONS, allow_unicode=True).replace("0.0003", "3e-4")),
    ]
    assert "3e-4" in files[2].read_text()  # which YAML 1.1 has for a string
    for file in files:
        assert TrainingConfig.from_file(file) == expected
    assert TrainingConfig.from_options(OPTIONS) == expected
    expected.save(tmp_path / "saved.json")
    assert TrainingConfig.from_file(tmp_path / "saved.json") == expected


@settings(max_examples=25)
@given(
    st.builds(
        TrainingConfig,
        steps=st.integers(1, 10**9),
        learning_rate=st.floats(0, 10),
        sample_prompts=st.lists(st.text(st.characters(exclude_categories=["Cs"]))).map(tuple),
        ema_decay=st.none() | st.floats(0, 0.999),
        eval_interval=st.integers(1, 99),
        tensorboard=st.booleans(),
    )
)
def test_what_is_saved_is_read_as_equal(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "training.json"
    config.save(path)
    assert TrainingConfig.from_file(path) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepz": 1}, r"found 'stepz' \(is 'steps' meant\?\), expected names among"),
        ({"qqqqqq": 1, "learning-rate": 1}, "'qqqqqq', 'learning-rate' \\(is 'learning_rate' meant"),
        ({}, "steps, epochs: found None and None"),
        ({"steps": 1, "epochs": 1}, "exactly one"),
        ({"steps": 0}, "steps: found 0, expected a whole number > 0"),
        ({"steps": 1, "dropout": 1}, "dropout: found 1.0"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate: found nan"),
        ({"steps": 1, "schedule": "sine"}, "schedule: found 'sine', expected one of constant"),
        ({"steps": 1, "precision": "float16"}, "precision: found 'float16'"),
        ({"steps": 1, "early_stopping_patience": 2}, "without eval_interval"),
        ({"steps": 1, "seed": -1}, "seed: found -1"),
    ],
)
def test_wrong_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_options(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "3"}, "steps: found '3', expected int or none"),
        ({"steps": True}, "steps: found True"),
        ({"steps": 1, "nesterov": 1}, "nesterov: found 1, expected bool"),
        ({"steps": 1, "learning_rate": "fast"}, "learning_rate: found 'fast', expected float"),
        ({"steps": 1, "sample_prompts": "abc"}, "sample_prompts: found 'abc', expected a list of strings"),
        ({"steps": 1, "no_decay": [3]}, "no_decay"),
    ],
)
def test_wrong_types_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        TrainingConfig.from_options(options)


def test_wrong_files_are_named(tmp_path):
    for name, text, message in (
        ("a.ini", "", "found the suffix '.ini'"),
        ("a.json", "{", "a.json: Expecting"),
        ("a.yaml", "a: [", "a.yaml: while parsing"),
        ("a.toml", "a = ", "a.toml: Invalid"),
        ("b.yaml", "- 1", "found list, expected options by name"),
        ("b.json", '{"stepz": 1}', r"b.json: found 'stepz'"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainingConfig.from_file(write(tmp_path / name, text))
    (tmp_path / "c.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"c.json: .*utf-8"):
        read_options(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError):
        read_options(tmp_path / "nowhere.toml")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"reading .yaml needs the package pyyaml: pip install"):
        read_options(write(tmp_path / "a.yaml", "steps: 1"))


def test_every_option_has_its_help():
    for field in dataclasses.fields(Recipe):
        assert field.metadata["help"].endswith((".", "]", ")")), field.name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": ["a"]}, "model, new: found None and None"),
        ({"data": ["a"], "model": "m", "new": "c.json"}, "exactly one"),
        ({"data": ["a"], "new": "c.json"}, "tokenizer: found none"),
        ({"model": "m"}, "data: found none"),
        ({"model": "m", "data": ["a"], "kind": "poem"}, "kind: found 'poem'"),
        ({"model": "m", "data": ["a"], "seq_len": 1}, "seq_len"),
        ({"model": "m", "data": ["a"], "validation_share": 1.0}, "validation_share"),
    ],
)
def test_wrong_recipes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_options({"steps": 1, **options})
