"""`runs.jsonl`: a line a run, whole after whatever happens."""

import math
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.helpers import runs_in
from tests.lab.running.test_workers import CELLS, jobs
from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import Method, exact
from weightcast_lab.results import records
from weightcast_lab.results.records import RUNS, RunRecord, append_lines, read_runs
from weightcast_lab.running.finished import FinishedRuns
from weightcast_lab.running.jobs import Run

ROOT = Path(__file__).parents[3]

RUN = RunRecord(
    "configuration",
    "adamw",
    0,
    {"step": [0, 5], "train_loss": [None, 0.1 + 0.2], "validation_loss": [1e-300, 2 / 3]},
    [{"hardware": "größer als «alles»", "torch": "x\ny"}],
    test={"test loss": 1.0},
)


def run(seed, **more):
    return replace(RUN, seed=seed, **more)


def test_runs_come_back_to_the_last_bit_in_the_order_of_their_lines(tmp_path):
    for seed in (3, 1, 2):
        append_lines(tmp_path / RUNS, run(seed).to_line())
    assert runs_in(tmp_path) == [run(3), run(1), run(2)]
    assert (tmp_path / RUNS).read_bytes().count(b"\n") == 3


def test_a_run_of_an_earlier_version_has_defaults_and_one_of_a_later_what_we_know(tmp_path):
    line = b'{"configuration":"c","method":"m","seed":1,"history":{"step":[0]},"later":[1]}\n'
    append_lines(tmp_path / RUNS, line)
    assert runs_in(tmp_path) == [RunRecord("c", "m", 1, {"step": [0]})]


@pytest.mark.parametrize("cut", [1, 30, -10, -1])
def test_a_piece_of_a_line_is_warned_of_and_does_not_harm_the_next(tmp_path, cut):
    path = tmp_path / RUNS
    path.write_bytes(run(0).to_line() + run(1).to_line()[:cut])
    warnings = []
    whole = [run(0), run(1)] if cut == -1 else [run(0)]  # the line break alone is lost
    assert read_runs(path, warnings.append) == whole
    assert ["line 2" in warning for warning in warnings] == [True] * (2 - len(whole))
    append_lines(path, run(2).to_line())
    assert runs_in(tmp_path) == [*whole, run(2)]


@pytest.mark.parametrize(
    "line",
    [
        *(b"{", b"[]", b"7", b'"text"', b"\xff", b"\0\0\0", b"<<<<<<< HEAD", b"[" * 100_000),
        *(b'{"configuration": "c"}', b'{"configuration":"c","method":"m","seed":0,"history":1}'),
        b'{"configuration":"c","method":"m","seed":true,"history":{"step":[]}}',
    ],
)
def test_a_damaged_line_costs_its_own_run_only(tmp_path, line):
    path = tmp_path / RUNS
    path.write_bytes(run(0).to_line() + line + b"\n" + run(1).to_line())
    warnings = []
    assert read_runs(path, warnings.append) == [run(0), run(1)]
    assert [str(path) in warning and "line 2" in warning for warning in warnings] == [True]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    append_lines(tmp_path / RUNS, run(0).to_line())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(LabError, match=r"runs\.jsonl cannot be written \(No space left on device"):
        append_lines(tmp_path / RUNS, run(1).to_line())
    assert (tmp_path / RUNS).read_bytes() == run(0).to_line()


def test_what_cannot_be_read_is_not_computed_again(tmp_path):
    (tmp_path / RUNS).mkdir()
    with pytest.raises(LabError, match=r"runs\.jsonl cannot be read"):
        read_runs(tmp_path / RUNS, pytest.fail)


def append_for_ever(folder):
    for seed in range(10**9):
        append_lines(folder / RUNS, replace(RUN, seed=seed, weights="w" * 20_000).to_line())


def test_killed_at_any_moment_the_file_has_whole_runs_and_goes_on(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    dice, before = random.Random(3), 0
    for _ in range(8):
        victim = processes.Process(target=append_for_ever, args=(tmp_path,))
        victim.start()
        while len(read_runs(tmp_path / RUNS, lambda _: None)) < before + 2:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.01))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        warnings = []
        before = len(read_runs(tmp_path / RUNS, warnings.append))
        assert len(warnings) <= 1
        append_lines(tmp_path / RUNS, run(7).to_line())
        before += 1
        assert len(runs_in(tmp_path)) == before


def test_each_file_is_read_once_and_the_last_line_of_a_run_counts(tmp_path, monkeypatch):
    ours = jobs(tmp_path)
    for job, step in ((ours[0], 1), (ours[1], 1), (ours[0], 2)):
        record = replace(RUN, method=job.run.method.key, seed=job.run.seed, diverged_at=step)
        job.files.save_result(record)
    read, honest = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or honest(path))
    finished = FinishedRuns(pytest.fail)
    for _ in range(3):
        found = finished.of(ours)
    assert {job.run: record.diverged_at for job, record in found.items()} == {
        CELLS[0]: 2,
        CELLS[1]: 1,
    }
    assert read == [tmp_path / RUNS]
    finished.add({ours[3]: replace(RUN, method=ours[3].run.method.key, seed=ours[3].run.seed)})
    assert finished.of(ours).keys() == {ours[0], ours[1], ours[3]}


def test_a_run_of_another_configuration_counts_as_missing(tmp_path):
    (job, *_) = jobs(tmp_path)
    job.files.save_result(replace(RUN, configuration="another"))
    warnings = []
    assert FinishedRuns(warnings.append).of([job]) == {}
    assert "adamw, seed 0, has another configuration" in warnings[0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Method("adamw", learning_rate=0.00123456111), Method("adamw", None, 0.00123456444)),
        (Method("adamw", 1.0), Method("adamw", 1.0000001)),
        (Method("adamw", 3.0, beta1=0.9), Method("adamw", 3.0, beta1=0.90000001)),
    ],
)
def test_a_run_is_never_taken_for_one_with_a_number_close_by(tmp_path, one, other):
    mine, theirs = (jobs(tmp_path, [Run(method, 0)])[0] for method in (one, other))
    mine.files.save_result(replace(RUN, method=one.key))
    assert FinishedRuns(pytest.fail).of([mine, theirs]).keys() == {mine}
    assert one.label != other.label


def test_numbers_in_names_are_as_short_as_they_were():
    """The committed runs are found by them."""
    numbers = (3.0, 0.5, 0.001, 1e-5, 5.43e-4, 123456.0, math.inf, -1.0)
    assert [exact(number) for number in numbers] == [f"{number:g}" for number in numbers]
    assert float(exact(0.1 + 0.2)) == 0.1 + 0.2


@pytest.mark.results
def test_the_committed_runs_are_whole():
    """Every line is a run, no run is there twice, and the results were made from them."""
    files = sorted((ROOT / "results").rglob(RUNS))
    for path in files:
        found = read_runs(path, pytest.fail)
        assert len({(record.method, record.seed) for record in found}) == len(found) > 0
        assert (path.parent / "config.json").exists()
