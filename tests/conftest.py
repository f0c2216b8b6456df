"""Fixtures that every test may use, and the rule that CI skips nothing."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

import gpt2_files
import vocabularies
from llmcore import hub

CI = os.environ.get("CI", "").lower() == "true"

# A slow moment of a shared machine is no failure. CI draws the same examples every time, so that it goes red
# for a change and not by luck; everybody else looks further.
hypothesis.settings.register_profile(
    "llmcore", deadline=None, derandomize=CI, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("llmcore")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Under CI=true a skipped test is a failed one: what CI does not run, nobody runs."""
    return unskipped((yield), item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """So is a file of tests that skips itself."""
    return unskipped((yield), collector.nodeid)


def unskipped(report: pytest.TestReport | pytest.CollectReport, name: str):
    if CI and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{name} was skipped, which CI=true does not allow: {report.longrepr}"
    return report


def pulled(name: str) -> Path:
    """The local path of a short name; where it cannot be had, CI fails and a laptop skips."""
    try:
        return hub.pull(name, progress=False)
    except (OSError, ImportError) as error:
        if CI:
            raise
        pytest.skip(f"{name} cannot be pulled: {error}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct.Q4_1.gguf."""
    return pulled("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2."""
    return pulled("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with GPT-2's true tokenizer files."""
    folder = tmp_path_factory.mktemp("tokenizer") / "gpt2"
    try:
        gpt2_files.write_gpt2_tokenizer(folder)
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    except OSError as error:
        if CI:
            raise
        pytest.skip(f"GPT-2's vocabulary cannot be had: {error}")
    return folder


@pytest.fixture(scope="session")
def true_ranks() -> None:
    """What tests need that read `vocabularies.ranks`."""
    try:
        for name in ("gpt2", "cl100k", "o200k"):
            vocabularies.ranks(name)
    except OSError as error:
        if CI:
            raise
        pytest.skip(f"the vocabularies cannot be had: {error}")
