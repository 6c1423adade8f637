"""What all tests share; and the compatibility matrix, framework x feature, of what they show.

`pytest -m cell --matrix=results/compatibility.json` writes it, and
`python -m tests.frameworks.matrix` draws the page of the docs from it.
"""

import json
import os
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
RESULTS = Path(__file__).parent.parent / "results"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PACKAGES = ["torch", "lightning", "transformers", "accelerate", "peft", "trl", "timm", "deepspeed",
            "bitsandbytes", "pytorch_optimizer", "schedulefree", "skorch",
            "safetensors", "ema-pytorch", "pytorch-ignite"]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", help="write the compatibility matrix to this JSON file")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tests run side by side, on tiny tensors


@pytest.fixture
def silent():
    """Fails if anything warns, whatever the configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- the compatibility matrix --------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not RESULTS.exists():
        skip = pytest.mark.skip(reason="needs results/, which the source archive leaves out")
        for item in items:
            if item.get_closest_marker("results"):
                item.add_marker(skip)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "results: it reads the committed results")
    config.addinivalue_line(
        "markers",
        "cell(framework, feature, support='attach'): one cell of the compatibility matrix; support "
        "says what it takes, or 'refused', whose sentence the test gives with record_property",
    )


@pytest.fixture(autouse=True)
def _record_cells(request: pytest.FixtureRequest, record_property) -> None:
    for mark in request.node.iter_markers("cell"):
        framework, feature, *support = mark.args
        record_property("cell", [framework, feature, *(support or ["attach"])])


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    cells: dict[str, dict[str, dict]] = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            properties = getattr(report, "user_properties", [])
            sentences = [value for name, value in properties if name == "sentence"]
            for name, value in properties:
                if name == "cell":
                    framework, feature, support = value
                    cell = {"support": support, "outcome": outcome}
                    if sentences:
                        cell["sentence"] = sentences[0]
                    known = cells.setdefault(framework, {}).setdefault(feature, cell)
                    if outcome == "failed":
                        known["outcome"] = outcome
    if path := config.getoption("--matrix", default=None):
        ordered = {name: dict(sorted(cells[name].items())) for name in sorted(cells)}
        content = {"versions": _versions(), "cells": ordered}
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
