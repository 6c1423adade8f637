"""How the runs are getting on: live bars in a terminal, one line per run elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

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

from weightcast_lab.train import Cell


def print_warning(console: Console, message: str) -> None:
    """One line that stands out."""
    console.print(f"[yellow]Warning:[/] {escape(message)}", soft_wrap=True)


class ProgressDisplay(AbstractContextManager["ProgressDisplay"]):
    """A `runner.Watcher` that draws on the console and collects the results."""

    def __init__(self, console: Console, runs: int, *, live: bool) -> None:
        """`runs` is how many will be run; bars only if `live`."""
        self.results: dict[Cell, dict[str, Any]] = {}
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
        )
        self._bars: dict[Cell, TaskID] = {}
        self._taken: dict[Cell, int] = {}  # steps, of all runs: the overall bar moves with them
        self._overall = self._progress.add_task("[bold]all runs", total=None, note="")

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

    def on_start(self, cell: Cell) -> None:
        """A new bar."""
        self._bars[cell] = self._progress.add_task(cell.label, total=None, note="")

    def on_progress(self, cell: Cell, step: int, steps: int, loss: float) -> None:
        """Move the run's bar and the overall one."""
        self._taken[cell] = step
        bar = self._bars[cell]
        self._progress.update(bar, completed=step, total=steps, note=f"loss {loss:.4f}")
        self._progress.update(
            self._overall,
            completed=sum(self._taken.values()),
            total=steps * self._runs,
            note=f"{self._ended} of {self._runs} runs",
        )

    def on_finish(self, cell: Cell, result: dict[str, Any]) -> None:
        """Keep the result; without bars, say so."""
        self.results[cell] = result
        history, diverged_at = result["history"], result["diverged_at"]
        if diverged_at is not None:
            self._end(cell, f"[yellow]diverged at step {diverged_at}[/]", tell=True)
        else:
            loss, seconds = history["validation_loss"][-1], history["seconds"][-1]
            self._end(cell, f"validation loss {loss:.4f}, {seconds:.1f} s", tell=not self._live)

    def on_failure(self, cell: Cell, reason: str) -> None:
        """Say which run failed and why."""
        self._end(cell, f"[red]failed:[/] {escape(reason)}", tell=True)

    def on_warning(self, message: str) -> None:
        """Print it above the bars."""
        print_warning(self._console, message)

    def _end(self, cell: Cell, what: str, *, tell: bool) -> None:
        self._progress.remove_task(self._bars.pop(cell))
        self._ended += 1
        if tell:
            count = escape(f"[{self._ended}/{self._runs}]")
            self._console.print(f"{count} {escape(cell.label)}: {what}", soft_wrap=True)
