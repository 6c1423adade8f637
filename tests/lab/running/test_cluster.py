import math
import os
import signal
import time
from pathlib import Path

import pytest

from tests.lab.helpers import finished_in, runs_in, without_seconds
from tests.lab.running.test_workers import CELLS, RECIPE, Recorder, jobs
from weightcast_lab.errors import LabError
from weightcast_lab.running.cluster import check_address, run_on_ray
from weightcast_lab.running.workers import run_jobs

# Ray's own warnings are none of ours
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def two_workers(monkeypatch):
    """A cluster of this machine with two CPUs, stopped by `run_on_ray` itself."""
    ray = pytest.importorskip("ray")
    init = ray.init
    monkeypatch.setattr(
        ray, "init", lambda _, **more: init("local", num_cpus=2, include_dashboard=False, **more)
    )
    return ray


def processes_of(label):
    """Those that compute a run: Ray calls them by its name."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if command.startswith(f"ray::{label}"):
                yield int(entry.name)


class Killer(Recorder):
    """Kills the process of `victim` with SIGKILL at its first sign of life."""

    killed = ()

    def on_progress(self, job, step, steps, loss):
        self.events[job.run].append((step, steps))
        if job.run == self.victim and not self.killed:
            self.killed = tuple(processes_of(job.label))
            for process in self.killed:
                os.kill(process, signal.SIGKILL)


def test_two_workers_one_of_them_killed(two_workers, tmp_path):
    """Every number is that of this machine's own workers, also of the run that was taken up again.

    The folder is given as it would be on the command line: relative.
    """
    here = Recorder()
    run_jobs(jobs(tmp_path / "here"), 2, here)
    killer = Killer(victim=CELLS[1])
    there = Path(os.path.relpath(tmp_path / "there"))
    assert run_on_ray("ray", jobs(there), None, killer) == {}
    assert killer.killed
    for cell in CELLS:
        assert without_seconds(killer.results[cell]) == without_seconds(here.results[cell])
    assert sorted(finished_in(there)) == sorted(finished_in(tmp_path / "here"))
    assert len(runs_in(there)) == len(CELLS)
    assert not two_workers.is_initialized()


def test_time_is_up(two_workers, tmp_path):
    recorder = Recorder()
    assert run_on_ray("ray", jobs(tmp_path, CELLS[:1]), 1, recorder, until=time.time() - 1) == {}
    assert recorder.events == {}


def test_what_concerns_all_runs_ends_them_all(two_workers, tmp_path):
    (tmp_path / "runs").write_text("a file in place of the folder")
    with pytest.raises(LabError, match="cannot be written"):
        run_on_ray("ray", jobs(tmp_path), None, Recorder(), math.inf)
    assert not two_workers.is_initialized()


def test_a_cluster_without_a_gpu(two_workers, tmp_path):
    from dataclasses import replace

    there = jobs(tmp_path, recipe=replace(RECIPE, device="cuda"))
    with pytest.raises(LabError, match="no GPU: use --device cpu"):
        run_on_ray("ray", there, None, Recorder())


def test_an_address_that_is_none(monkeypatch, tmp_path):
    with pytest.raises(LabError, match="ray://HOST:PORT"):
        check_address("spark")
    ray = pytest.importorskip("ray")

    def refuse(*_, **__):
        raise ConnectionError("ray client connection timeout\nand more")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(LabError, match="ray://nobody:1 cannot be reached: ray client connection"):
        run_on_ray("ray://nobody:1", jobs(tmp_path), None, Recorder())


def test_without_ray(monkeypatch, weightcast, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    done = weightcast("compare", "--on", "ray", "--out", tmp_path / "out")
    assert done.code == 2
    assert "pip install 'weightcast[lab,ray]'" in " ".join(done.err.split())
