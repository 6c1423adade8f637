"""Killed in mid-run, again and again, a plain loop ends as if nothing had happened (R16)."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.killed import KINDS, run_and_kill
from tests.processes import forkserver

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all the runs have left."""
    folder = tmp_path_factory.mktemp("killed")
    process = forkserver.Process(target=run_and_kill, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_killed_ten_times_it_ends_at_the_same_bits(folder: Path, kind: str) -> None:
    found = json.loads((folder / "found.json").read_text())
    assert found[f"whole{kind}"] == [[0, 10]]
    codes, checkpoints = zip(*found[f"killed{kind}"], strict=True)
    assert codes == (*[-signal.SIGKILL] * 10, 0)
    assert checkpoints == (0, 0, 1, 1, 4, 4, 7, 7, 7, 10, 10)  # that of step 0 is none
    ends = (
        torch.load(folder / kind / way / "end.pt", weights_only=True) for way in ("whole", "killed")
    )
    for a, b in zip(*(end.values() for end in ends), strict=True):
        assert torch.equal(a, b)
