"""How the runs are getting on: live bars in a terminal, at most nine lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.jobs import Job


def print_warning(console: Console, message: str) -> None:
    """One line that stands out."""
    console.print(f"[yellow]Warning:[/] {escape(message)}", soft_wrap=True)


def print_missing(console: Console, jobs: Sequence[Job], runs: int) -> None:
    """What is left to compute, and how far it is."""
    if not jobs:
        console.print(f"All {runs} runs are finished.")
        return
    table = Table("missing", "epochs done")
    for job in jobs:
        table.add_row(escape(job.label), f"{job.files.epochs_done()} of {job.recipe.epochs}")
    console.print(table)
    console.print(f"{len(jobs)} of {runs} runs are missing.")


def print_phases(console: Console, counts: Sequence[tuple[str, int, int]]) -> None:
    """How many runs of each phase of a study are finished, and how many are left."""
    table = Table("phase", "finished", "runs")
    for label, finished, runs in counts:
        table.add_row(label, f"{finished}", f"{runs}")
    console.print(table)
    left = sum(runs - finished for _, finished, runs in counts)
    console.print(f"{left} runs are missing." if left else "All runs are finished.")


LINES = 10
"""Without bars there is a line whenever one more of so many parts of the work is done."""

SECONDS_TO_JUDGE_BY = 600.0
"""The time that is left is told from the speed of so many last seconds."""


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """A `workers.Watcher` that shows on the console how it goes, and collects the results.

    In a terminal: bars. In a pipe or a log: a line at each tenth of the work. Everywhere: a line
    for each divergence, failure, pause and warning.
    """

    def __init__(self, console: Console, runs: int, *, live: bool) -> None:
        """`runs` is how many will be run; bars only if `live`."""
        self.results: dict[Job, RunRecord] = {}
        self._console, self._runs, self._live, self._ended = console, runs, live, 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not live,
            transient=True,
            speed_estimate_period=SECONDS_TO_JUDGE_BY,
        )
        self._bars: dict[Job, TaskID] = {}
        self._shares: dict[Job, float] = {}  # of each run, done: the overall bar moves with them
        self._overall = self._progress.add_task("[bold]all runs", total=runs, note="runs")
        self._told: int | None = None  # how many parts of the work were done at the last line

    def __enter__(self) -> Self:
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bars away."""
        self._progress.stop()

    def on_start(self, job: Job) -> None:
        """A new bar."""
        self._bars[job] = self._progress.add_task(escape(job.label), total=None, note="")

    def on_progress(self, job: Job, step: int, steps: int, loss: float) -> None:
        """Move the run's bar and the overall one."""
        bar = self._bars[job]
        self._progress.update(bar, completed=step, total=steps, note=f"loss {loss:.4f}")
        self._advance(job, step / steps)

    def on_finish(self, job: Job, record: RunRecord) -> None:
        """Keep the result; say so if it diverged."""
        self.results[job] = record
        at = record.diverged_at
        self._end(job, "" if at is None else f"[yellow]diverged at step {at}[/]")

    def on_pause(self, job: Job) -> None:
        """Say where it stopped."""
        self._end(
            job, "time is up; it will resume from its last checkpoint", self._shares.get(job, 0)
        )

    def on_failure(self, job: Job, reason: str) -> None:
        """Say which run failed and why."""
        self._end(job, f"[red]failed:[/] {escape(reason)}")

    def on_warning(self, message: str) -> None:
        """Print it above the bars."""
        print_warning(self._console, message)

    def _end(self, job: Job, what: str, share: float = 1.0) -> None:
        self._progress.remove_task(self._bars.pop(job))
        self._ended += 1
        if what:
            count = escape(f"[{self._ended}/{self._runs}]")
            self._console.print(f"{count} {escape(job.label)}: {what}", soft_wrap=True)
        self._advance(job, share)

    def _advance(self, job: Job, share: float) -> None:
        self._shares[job] = share
        done = round(sum(self._shares.values()), 2)
        self._progress.update(self._overall, completed=done)
        parts = int(done * LINES / self._runs)
        if self._told is None:  # what was done before, according to checkpoints, is no news
            self._told = parts
        if not self._live and self._told < parts < LINES:
            self._told = parts
            left = self._progress.tasks[self._overall].time_remaining
            wait = "" if left is None else f", {duration(left)} left"
            self._console.print(
                f"{parts * 100 // LINES}%: {len(self.results)} of {self._runs} runs finished{wait}",
                soft_wrap=True,
                highlight=False,
            )


def duration(seconds: float) -> str:
    """A rough time for people: `some seconds`, `about 5 minutes`, `about 3.5 hours`."""
    if seconds < 45:
        return "some seconds"
    if (minutes := round(seconds / 60)) < 90:
        return f"about {minutes} minute{'' if minutes == 1 else 's'}"
    return f"about {seconds / 3600:.1f} hours"
