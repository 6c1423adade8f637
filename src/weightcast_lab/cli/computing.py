"""What the commands that compute have in common."""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from weightcast_lab.cli.report import show

if TYPE_CHECKING:
    from weightcast_lab.results.records import RunRecord
    from weightcast_lab.running.finished import FinishedRuns
    from weightcast_lab.running.jobs import Job


@dataclass
class Done:
    """What has come of the runs so far."""

    results: dict[Job, RunRecord]
    failures: dict[Job, str]
    runs: int

    def report(
        self,
        context: typer.Context,
        folder: Path,
        kind: str,
        contents: Callable[..., list[dict[str, Any]]],
        as_json: bool,
        **about: Any,
    ) -> None:
        """Save and show what there is, say what is left, and end with code 1 if runs failed."""
        from weightcast_lab.results.loading import save_results

        if self.results:
            found = contents(self.results, self.failures)
            path = save_results(folder, kind, found, **about, command=_command(context))
            show(path, folder, as_json)
        console = Console(stderr=True)
        if self.failures:
            console.print(
                f"[red]{len(self.failures)} of {self.runs} runs failed[/] and are missing in the "
                "report; run the same command again to retry them."
            )
            raise typer.Exit(1)
        if len(self.results) < self.runs:
            console.print(_RESUME.format("Time is up", len(self.results), self.runs))


_RESUME = "{}: {} of {} runs are finished; run the same command again to resume."


def chosen_device_of(name: str, on: str | None) -> str:
    """The device to compute on, here or on the cluster."""
    from weightcast_lab.environment import device_named
    from weightcast_lab.running.cluster import check_address

    if on is not None:
        check_address(on)
    return device_named(name, is_here=on is None)


def end_of(minutes: float | None) -> float:
    """When to stop, as `time.time()` tells it."""
    return math.inf if minutes is None else time.time() + 60 * minutes


def keep_others_out(context: typer.Context, folder: Path) -> None:
    """Until this command ends no other computes in the folder."""
    from weightcast_lab.running.folders import computing_in

    context.with_resource(computing_in(folder))


def finished_runs() -> FinishedRuns:
    """What is there already; damaged files are warned of on stderr."""
    from weightcast_lab.running.finished import FinishedRuns
    from weightcast_lab.running.progress import print_warning

    return FinishedRuns(partial(print_warning, Console(stderr=True)))


def compute_all(
    order: list[Job],
    plan: tuple[str, str],
    finished: FinishedRuns,
    device: str,
    jobs: int | None,
    until: float,
    on: str | None,
) -> Done:
    """Compute what is not finished yet, showing how it gets on; Ctrl-C ends the command.

    `plan` says what the runs are, and how they are computed.
    """
    from weightcast_lab.running.cluster import run_on_ray
    from weightcast_lab.running.folders import remove_empty_folders
    from weightcast_lab.running.progress import ProgressDisplay
    from weightcast_lab.running.workers import run_jobs

    console = Console(stderr=True)
    live = sys.stdout.isatty() and sys.stderr.isatty()
    results = finished.of(order)
    left = [job for job in order if job not in results]
    already = f", {len(results)} finished already" if results else ""
    what, how = plan
    line = f"{what}: {plural(len(order), 'run')} {how}{already}."
    console.print(line, soft_wrap=True, markup=False, emoji=False)
    failures: dict[Job, str] = {}
    if left:
        try:
            with ProgressDisplay(console, len(left), live=live) as display:
                if on is None:
                    workers = min(jobs or _default_jobs(device), len(left))
                    failures = run_jobs(left, workers, display, until)
                else:
                    failures = run_on_ray(on, left, jobs, display, until)
        except KeyboardInterrupt:
            done = len(results) + len(display.results)
            console.print(_RESUME.format("Interrupted", done, len(order)))
            raise typer.Exit(130) from None
        finally:
            remove_empty_folders({job.files.folder for job in left})
        finished.add(display.results)
        results |= display.results
    return Done(results, failures, len(order))


def say_missing(order: list[Job]) -> None:
    """Which of the runs are not finished, and how far they are."""
    from weightcast_lab.running.progress import print_missing

    finished = finished_runs().of(order)
    print_missing(Console(), [job for job in order if job not in finished], len(order))


_PATHS_AND_SPEED = ("data", "out", "jobs", "minutes", "missing", "on", "as_json")


def _command(context: typer.Context) -> str:
    """The command that gives these results elsewhere: what was said, but for paths and speed."""
    words = ["weightcast", str(context.command.name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        is_said = value is not False and value not in (None, [], (), parameter.default)
        if parameter.name in _PATHS_AND_SPEED or not is_said:
            continue
        flag = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        if value is True:
            words += flag
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [*flag, str(one)]
    return shlex.join(words)


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _default_jobs(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
