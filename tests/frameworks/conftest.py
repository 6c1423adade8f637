"""Collects what the tests show into a matrix: framework x feature.

`pytest tests/frameworks --matrix results/compatibility.json` writes it, and
`python -m tests.frameworks.matrix` draws the page of the docs from it.
"""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

PACKAGES = ["torch", "lightning", "transformers", "accelerate", "timm", "pytorch_optimizer",
            "schedulefree", "safetensors", "bitsandbytes"]  # fmt: skip


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
