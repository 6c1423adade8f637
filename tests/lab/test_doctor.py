"""`weightcast doctor` says what is here, and what is wrong in one sentence each."""

import importlib.metadata
import json

import pytest
import torch

from weightcast_lab import doctor
from weightcast_lab.doctor import Finding, examine


def found(**options) -> dict[str, Finding]:
    return {finding.topic: finding for finding in examine(**options)}


def test_it_names_versions_devices_and_data() -> None:
    findings = found()
    assert findings["torch"].text == str(torch.__version__)
    assert findings["weightcast"].text.startswith(importlib.metadata.version("weightcast"))
    assert findings["Data of the task ptb"].is_good is None
    assert findings["GPU"].is_good is (True if torch.cuda.is_available() else None)
    for package in doctor.OPTIONAL:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            assert findings[package].is_good is None
            assert "install" in findings[package].text
        else:
            assert findings[package] == Finding(package, True, version)


def test_without_kernels_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ImportError("no C compiler was found")

    monkeypatch.setattr(doctor.importlib, "import_module", fails)
    finding = found()["Step and forecast on the CPU"]
    assert finding.is_good is False
    assert finding.text == "in plain PyTorch, which is slower: no C compiler was found"


def test_missing_data_are_one_sentence_and_code_1(weightcast, tmp_path) -> None:
    outcome = weightcast("doctor", "--data", tmp_path)
    assert outcome.code == 1
    assert "✗ Data of the task ptb: ptb.train.txt is missing" in outcome.out
    assert f"✗ Data of the task cifar10: There is no CIFAR-10 in {tmp_path}" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_machines_get_the_same_as_people(weightcast) -> None:
    outcome = weightcast("doctor", "--json")
    findings = [Finding(**finding) for finding in json.loads(outcome.out)]
    assert findings == list(examine())
    shown = weightcast("doctor").out
    assert all(finding.text in shown for finding in findings)


def test_the_version_is_that_of_the_package(weightcast) -> None:
    outcome = weightcast("--version")
    assert (outcome.code, outcome.out) == (
        0,
        f"weightcast {importlib.metadata.version('weightcast')}\n",
    )
