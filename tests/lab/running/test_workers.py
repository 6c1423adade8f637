import multiprocessing
import time
from collections import defaultdict
from dataclasses import replace

import pytest

from tests.lab.helpers import runs_in, without_seconds
from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import Method
from weightcast_lab.running import workers as runner
from weightcast_lab.running.jobs import Job, Run
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.running.train import train
from weightcast_lab.running.workers import TaskLoader, compute, run_jobs
from weightcast_lab.tasks import DataSource, make_task


class Recorder:
    """A watcher that remembers, and kills the worker of `victim` once."""

    def __init__(self, victim=None):
        self.events = defaultdict(list)
        self.results = {}
        self.failures = {}
        self.victim = victim

    def on_start(self, job):
        self.events[job.run].append("start")

    def on_progress(self, job, step, steps, loss):
        self.events[job.run].append((step, steps))
        if job.run == self.victim:
            (worker,) = multiprocessing.active_children()
            worker.kill()
            worker.join()

    def on_finish(self, job, record):
        self.results[job.run] = record

    def on_failure(self, job, reason):
        self.failures[job.run] = reason

    def on_warning(self, message):
        pytest.fail(message)


CELLS = [Run(Method("adamw", s), seed) for seed in (0, 1) for s in (None, 3.0)]


RECIPE = Recipe("digits", 0.005, 32, 1)


def jobs(folder, cells=CELLS, recipe=RECIPE):
    return [Job(cell, recipe, cell.files(folder, "configuration")) for cell in cells]


def test_numbers_do_not_depend_on_who_works_and_how_many(tmp_path, one_thread):
    recorder = Recorder()
    assert run_jobs(jobs(tmp_path), 2, recorder) == {}
    task = make_task("digits", DataSource())
    for cell in CELLS:
        files = cell.files(tmp_path / "here", "configuration")
        here = train(cell, task, RECIPE, files, lambda *_: None, pytest.fail)
        assert without_seconds(recorder.results[cell]) == without_seconds(here)
        assert recorder.events[cell][0] == "start"
        assert recorder.events[cell][-1] == (38, 38)
    assert len(runs_in(tmp_path)) == len(CELLS)
    assert {(r.method, r.seed): r for r in runs_in(tmp_path)} == {
        (cell.method.key, cell.seed): recorder.results[cell] for cell in CELLS
    }


def test_a_killed_worker_costs_its_own_run_only(tmp_path):
    recorder = Recorder(victim=CELLS[1])
    failed = run_jobs(jobs(tmp_path), 1, recorder)
    assert [job.run for job in failed] == [CELLS[1]]
    assert "SIGKILL" in recorder.failures[CELLS[1]]
    assert recorder.results.keys() == {CELLS[0], CELLS[2], CELLS[3]}


def test_a_crash_is_reported_with_its_reason_and_the_others_are_tried(tmp_path):
    recorder = Recorder()
    nonsense = replace(RECIPE, device="nonsense")
    failed = run_jobs(jobs(tmp_path, CELLS[:2], nonsense), 1, recorder)
    assert [job.run for job in failed] == CELLS[:2]
    assert "nonsense" in recorder.failures[CELLS[0]]
    assert "Traceback" in (tmp_path / "runs" / "adamw" / "seed-0" / "error.txt").read_text()


def test_what_concerns_all_runs_ends_them_all(tmp_path):
    (tmp_path / "runs").write_text("a file in place of the folder")
    with pytest.raises(LabError, match="cannot be written"):
        run_jobs(jobs(tmp_path), 2, Recorder())
    assert multiprocessing.active_children() == []


def test_a_run_that_hangs_ends_when_the_time_is_up(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "import time\nfrom tests.lab.helpers import LineTask\nclass Hanging(LineTask):\n"
        "    def __init__(self, source):\n        super().__init__()\n"
        "    def loss(self, *_):\n        time.sleep(1000)\n"
    )
    monkeypatch.setattr(runner, "SECONDS_OF_SILENCE", 1.0)
    paused = []
    recorder = Recorder()
    recorder.on_pause = paused.append
    hanging = jobs(tmp_path, CELLS[:3], replace(RECIPE, task=f"{file}:Hanging"))
    assert run_jobs(hanging, 2, recorder, until=time.time() + 1) == {}
    assert [job.run for job in paused] == CELLS[:2]
    assert multiprocessing.active_children() == []


def test_a_full_disk_does_not_hide_why_a_run_failed(tmp_path, monkeypatch):
    def full(*_):
        raise LabError("No space left on device")

    monkeypatch.setattr(runner, "write_atomically", full)
    (job,) = jobs(tmp_path, CELLS[:1], replace(RECIPE, device="nonsense"))
    event, reason = compute(job, TaskLoader(), lambda *_: None)
    assert event == "on_failure"
    assert "nonsense" in reason
    assert "(see" not in reason
