"""Runs side by side, each in a worker process of its own.

Every worker computes with one thread, so that numbers do not depend on how many work. A worker that
crashes or is killed costs its own run only.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from weightcast_lab.errors import LabError
from weightcast_lab.store import write_atomically
from weightcast_lab.tasks import make_task
from weightcast_lab.train import Cell, Settings, train

SECONDS_BETWEEN_REPORTS = 0.1


class Watcher(Protocol):
    """Whoever wants to know how the runs are getting on."""

    def on_start(self, cell: Cell) -> None:
        """A run begins, or goes on from a checkpoint."""

    def on_progress(self, cell: Cell, step: int, steps: int, loss: float) -> None:
        """A run has taken `step` of `steps` steps; `loss` is that of its last batch."""

    def on_finish(self, cell: Cell, result: dict[str, Any]) -> None:
        """A run has ended, perhaps diverged."""

    def on_failure(self, cell: Cell, reason: str) -> None:
        """A run has crashed."""

    def on_warning(self, message: str) -> None:
        """Something worth knowing."""


@dataclass(frozen=True)
class Comparison:
    """What the workers need to know: common settings, the results folder, its configuration."""

    settings: Settings
    folder: Path
    configuration: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None


def run_cells(
    comparison: Comparison, cells: Sequence[Cell], jobs: int, watcher: Watcher
) -> list[Cell]:
    """Run the cells, at most `jobs` at a time.

    Returns:
        The cells that crashed.

    Raises:
        LabError: nothing more can be done, for example because the disk is full.
    """
    waiting, failed = deque(cells), []
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(_start_worker(comparison))
                _give(workers[-1], waiting, watcher)
            ready = wait([worker.pipe for worker in workers])
            for worker in [worker for worker in workers if worker.pipe in ready]:
                cell = worker.cell
                assert cell is not None  # a worker without a cell has left the list
                try:
                    kind, *content = worker.pipe.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    worker.process.join()
                    failed.append(cell)
                    watcher.on_failure(cell, _cause_of_death(worker.process.exitcode))
                    continue
                if kind == "progress":
                    watcher.on_progress(cell, *content)
                    continue
                if kind == "warning":
                    watcher.on_warning(*content)
                    continue
                if kind == "fatal":
                    raise LabError(*content)
                if kind == "finished":
                    watcher.on_finish(cell, *content)
                else:
                    failed.append(cell)
                    watcher.on_failure(cell, *content)
                if waiting:
                    _give(worker, waiting, watcher)
                else:
                    workers.remove(worker)
                    worker.pipe.close()
                    worker.process.join()
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()
    return failed


def _start_worker(comparison: Comparison) -> _Worker:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_work, args=(comparison, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, pipe)


def _give(worker: _Worker, waiting: deque[Cell], watcher: Watcher) -> None:
    worker.cell = waiting.popleft()
    watcher.on_start(worker.cell)
    with suppress(OSError):  # a worker that is dead already is found by the next recv
        worker.pipe.send(worker.cell)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {exitcode}"


def _work(comparison: Comparison, pipe: Connection) -> None:
    """A worker: receives cells until the pipe is closed, sends what becomes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    if comparison.settings.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    task = None
    with suppress(EOFError, BrokenPipeError):  # the parent is gone: so are we
        while True:
            cell: Cell = pipe.recv()
            files = cell.files(comparison.folder, comparison.configuration)
            try:
                if task is None:
                    task = make_task(comparison.settings.task, comparison.settings.source)
                    task.to(torch.device(comparison.settings.device))
                result = train(
                    cell,
                    task,
                    comparison.settings,
                    files,
                    on_step=_Throttled(pipe),
                    warn=lambda message: pipe.send(("warning", message)),
                )
                pipe.send(("finished", result))
            except BrokenPipeError:
                raise
            except LabError as error:
                pipe.send(("fatal", str(error)))
            except Exception as error:
                log = files.folder / "error.txt"
                write_atomically(log, traceback.format_exc().encode())
                pipe.send(("failed", f"{type(error).__name__}: {error} (see {log})"))


class _Throttled:
    """Reports steps through the pipe, but not every one."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._next = 0.0

    def __call__(self, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if now >= self._next or step == steps:
            self._next = now + SECONDS_BETWEEN_REPORTS
            self._pipe.send(("progress", step, steps, loss))
