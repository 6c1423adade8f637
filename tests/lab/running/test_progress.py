"""A person sees bars; a pipe or a log a handful of lines, and whatever went wrong."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from weightcast_lab.methods.method import Method
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.jobs import Job, Run
from weightcast_lab.running.progress import ProgressDisplay, duration
from weightcast_lab.running.recipe import Recipe

DONE = RunRecord("configuration", "adamw", 0, {"step": [0]})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def jobs(count: int) -> list[Job]:
    recipe = Recipe("digits", 0.01, 4, 3)
    cells = [Run(Method("adamw"), seed) for seed in range(count)]
    return [Job(cell, recipe, cell.files(Path("nowhere"), "configuration")) for cell in cells]


def shown(runs: list[Job], play: Any, *, live: bool = False) -> list[str]:
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=live, color_system=None, width=100, get_time=clock)
    with ProgressDisplay(console, len(runs), live=live) as display:
        play(display, clock)
    return file.getvalue().splitlines()


def one_by_one(runs: list[Job]) -> Any:
    """Each run takes a minute and reports ten times."""

    def play(display: ProgressDisplay, clock: Clock) -> None:
        for job in runs:
            display.on_start(job)
            for step in range(11):
                clock.now += 6 * (step > 0)
                display.on_progress(job, step, 10, 1.0)
            display.on_finish(job, DONE)

    return play


def test_fifty_runs_are_nine_lines_with_the_time_left():
    runs = jobs(50)
    lines = shown(runs, one_by_one(runs))
    assert lines[0] == "10%: 4 of 50 runs finished, about 45 minutes left"
    assert lines[5] == "60%: 29 of 50 runs finished, about 20 minutes left"
    assert len(lines) == 9


def test_one_long_run_is_as_talkative():
    runs = jobs(1)
    lines = shown(runs, one_by_one(runs))
    assert lines[1] == "20%: 0 of 1 runs finished, about 1 minute left"
    assert [line.split(":")[0] for line in lines] == [f"{n}0%" for n in range(1, 10)]


def test_what_checkpoints_had_is_no_news():
    (job,) = runs = jobs(1)

    def play(display: ProgressDisplay, clock: Clock) -> None:
        display.on_start(job)
        display.on_progress(job, 55, 100, 1.0)
        clock.now += 60
        display.on_progress(job, 62, 100, 1.0)
        display.on_finish(job, DONE)

    assert shown(runs, play) == ["60%: 0 of 1 runs finished, about 5 minutes left"]


def test_a_run_that_stops_in_time_is_not_called_finished():
    runs = jobs(4)

    def play(display: ProgressDisplay, clock: Clock) -> None:
        for job in runs:
            display.on_start(job)
        display.on_progress(runs[0], 1, 10, 1.0)
        display.on_progress(runs[1], 2, 10, 1.0)
        display.on_pause(runs[0])
        display.on_pause(runs[1])
        display.on_failure(runs[2], "its process ended with code 3")
        display.on_finish(runs[3], DONE)

    told = [line for line in shown(runs, play) if "runs finished" in line]
    assert [line.partition(" runs")[0] for line in told] == ["30%: 0 of 4", "50%: 1 of 4"]


@pytest.mark.parametrize("live", [False, True])
def test_what_goes_wrong_has_its_line(live):
    runs = jobs(4)

    def play(display: ProgressDisplay, clock: Clock) -> None:
        for job in runs:
            display.on_start(job)
        display.on_finish(runs[0], replace(DONE, diverged_at=7))
        display.on_failure(runs[1], "its process ended with code 3")
        display.on_pause(runs[2])
        display.on_warning("this file is damaged")

    text = "\n".join(shown(runs, play, live=live))
    for said in (
        *("AdamW, seed 0: ", "diverged at step 7", "AdamW, seed 1: ", "code 3"),
        *("AdamW, seed 2: time is up", "this file is damaged"),
    ):
        assert said in text
    assert "AdamW, seed 3:" not in text


def test_a_terminal_has_bars_and_no_lines():
    runs = jobs(10)
    text = "\n".join(shown(runs, one_by_one(runs), live=True))
    assert "all runs" in text
    assert "runs finished" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3, "some seconds"),
        (50, "about 1 minute"),
        (300, "about 5 minutes"),
        (9_000, "about 2.5 hours"),
    ],
)
def test_times_are_rough(seconds, text):
    assert duration(seconds) == text
