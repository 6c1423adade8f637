"""`weightcast doctor` says what is here, and what is wrong in one sentence each."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import weightcast
from weightcast_lab import doctor
from weightcast_lab.__main__ import LAB
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


def bare(*words: str) -> subprocess.CompletedProcess[str]:
    """The command where nothing is installed but torch and what it needs itself."""
    code = (
        "import sys\nfrom weightcast_lab.__main__ import LAB, main\n"
        "sys.modules.update(dict.fromkeys(set(LAB) - {'filelock', 'numpy'}))\nmain()"
    )
    command = [sys.executable, "-W", "error", "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_torch_alone_is_enough_to_ask_for_the_version_and_what_is_here(tmp_path) -> None:
    done = bare("--version")
    assert (done.returncode, done.stdout) == (0, f"weightcast {weightcast.__version__}\n")
    done = bare("doctor")
    assert f"✓ torch: {torch.__version__}" in done.stdout
    assert done.returncode in (0, 1), done.stderr
    findings = {one["topic"]: one for one in json.loads(bare("doctor", "--json").stdout)}
    assert findings.keys() == found().keys()
    done = bare("doctor", "--data", str(tmp_path))
    assert "✗ Data of the task ptb: ptb.train.txt is missing" in done.stdout
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("words", [(), ("--help",), ("compare", "--steps", "1"), ("study",)])
def test_all_else_says_what_to_install(words) -> None:
    done = bare(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'weightcast[lab]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_extra_lab_is_what_the_command_looks_for() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["weightcast"] == "weightcast_lab.__main__:main"
    names = {"pillow": "PIL", "scikit-learn": "sklearn"}
    wanted = [re.split("[<>=]", word)[0] for word in project["optional-dependencies"]["lab"]]
    assert sorted(names.get(name, name) for name in wanted) == sorted(LAB)


def test_the_version_is_that_of_the_package(weightcast) -> None:
    outcome = weightcast("--version")
    assert (outcome.code, outcome.out) == (
        0,
        f"weightcast {importlib.metadata.version('weightcast')}\n",
    )
