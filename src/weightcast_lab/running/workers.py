"""Runs side by side, each in a worker process of its own.

Every worker computes with one thread, so that numbers do not depend on how many work. A worker that
crashes or is killed costs its own run only.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import torch

from weightcast_lab.errors import LabError
from weightcast_lab.files import write_atomically
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.train import train
from weightcast_lab.tasks import Task

SECONDS_BETWEEN_REPORTS = 0.1
SECONDS_OF_SILENCE = 120.0
"""After the time is up: a worker that says nothing for so long is stopped, for it may hang."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

Failures = dict[Job, str]


class Watcher(Protocol):
    """Whoever wants to know how the runs are getting on."""

    def on_start(self, job: Job) -> None:
        """A run begins, or resumes from a checkpoint."""

    def on_progress(self, job: Job, step: int, steps: int, loss: float) -> None:
        """A run has taken `step` of `steps` steps; `loss` is that of its last batch."""

    def on_finish(self, job: Job, record: RunRecord) -> None:
        """A run has ended, perhaps diverged."""

    def on_pause(self, job: Job) -> None:
        """A run has stopped at a checkpoint, since the time is up."""

    def on_failure(self, job: Job, reason: str) -> None:
        """A run has crashed."""

    def on_warning(self, message: str) -> None:
        """Something worth knowing."""


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    job: Job | None = None
    heard: float = field(default_factory=time.time)

    def end(self, until: float) -> float:
        """When it is stopped, unless it says something before."""
        return max(self.heard, until) + SECONDS_OF_SILENCE


def run_jobs(
    jobs: Sequence[Job], workers: int, watcher: Watcher, until: float = math.inf
) -> Failures:
    """Compute the runs, at most `workers` at a time, and begin none after `until`.

    Returns:
        The runs that crashed, with the reason.

    Raises:
        LabError: nothing more can be done, for example because the disk is full.
    """
    waiting, failed = deque(jobs), Failures()
    running: list[_Worker] = []

    def is_more() -> bool:
        return bool(waiting) and time.time() < until

    try:
        while is_more() or running:
            while is_more() and len(running) < workers:
                running.append(_start_worker(until))
                _give(running[-1], waiting, watcher)
            patience = min(worker.end(until) for worker in running) - time.time()
            ready = wait(
                [worker.pipe for worker in running],
                None if math.isinf(patience) else max(0.0, patience),
            )
            for worker in list(running):
                job = worker.job
                assert job is not None  # a worker without a job has left the list
                if worker.pipe not in ready:
                    if worker.end(until) <= time.time():
                        running.remove(worker)
                        worker.process.kill()
                        worker.process.join()
                        tell(watcher, failed, job, "on_pause")
                    continue
                worker.heard = time.time()
                try:
                    event, *content = worker.pipe.recv()
                except (EOFError, OSError):
                    running.remove(worker)
                    worker.process.join()
                    event, content = "on_failure", [_cause_of_death(worker.process.exitcode)]
                if event == "on_warning":
                    watcher.on_warning(*content)
                    continue
                tell(watcher, failed, job, event, *content)
                if event == "on_progress" or worker not in running:
                    continue
                if is_more():
                    _give(worker, waiting, watcher)
                else:
                    running.remove(worker)
                    worker.pipe.close()
                    worker.process.join()
    finally:
        for worker in running:
            worker.process.terminate()
            worker.process.join()
    return failed


def tell(watcher: Watcher, failed: Failures, job: Job, event: str, *content: Any) -> None:
    """Hand on what has become of a run, which is saved first if it is finished.

    Raises:
        LabError: nothing more can be done, or the run cannot be saved.
    """
    if event == "fatal":
        raise LabError(*content)
    if event == "on_failure":
        failed[job] = content[0]
    if event == "on_finish":
        job.files.save_result(*content)
    getattr(watcher, event)(job, *content)


def _start_worker(until: float) -> _Worker:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, until), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, pipe)


def _give(worker: _Worker, waiting: deque[Job], watcher: Watcher) -> None:
    worker.job = waiting.popleft()
    watcher.on_start(worker.job)
    with suppress(OSError):  # a worker that is dead already is found by the next recv
        worker.pipe.send(worker.job)


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with code {exitcode}"


def _work(pipe: Connection, until: float) -> None:
    """A worker: receives jobs until the pipe is closed, sends what becomes of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.stdout = sys.stderr  # what a task of the user's own prints is no result
    prepare_process()
    loader = TaskLoader()
    with suppress(EOFError, BrokenPipeError):  # the parent is gone: so are we
        while True:
            job: Job = pipe.recv()
            pipe.send(compute(job, loader, lambda *event: pipe.send(event), until))


def prepare_process() -> None:
    """Make the numbers of this process reproducible, and let it keep the memory it has."""
    torch.set_num_threads(1)
    _keep_freed_memory()
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of large tensors.

    By default it returns it to the system, and every step asks for it again, page by page: 150,000
    to 340,000 page faults, instead of 70,000, in 100 steps of an LSTM whose logits take 28 MB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


class TaskLoader:
    """The task of the last job: its data are loaded once for all runs that share it."""

    def __init__(self) -> None:
        """Nothing is loaded yet."""
        self._key: Any = None
        self._task: Task | None = None

    def task_of(self, job: Job) -> Task:
        """The job's task, with its data on the device."""
        recipe = job.recipe
        key = (*recipe.trained, recipe.device)
        if self._task is None or key != self._key:
            self._task = None
            self._task = recipe.make_task()
            self._task.to(torch.device(recipe.device))
            self._key = key
        return self._task


def compute(
    job: Job, loader: TaskLoader, send: Callable[..., None], until: float = math.inf
) -> tuple[Any, ...]:
    """Compute a run in this process, sending its progress.

    Returns:
        The event that ends it: the name of a `Watcher`'s method and its arguments after the job,
        or "fatal" and a sentence.
    """
    try:
        record = train(
            job.run,
            loader.task_of(job),
            job.recipe,
            job.files,
            on_step=_Throttled(send),
            warn=lambda message: send("on_warning", message),
            until=until,
        )
        return ("on_pause",) if record is None else ("on_finish", record)
    except BrokenPipeError:
        raise
    except LabError as error:
        return "fatal", str(error)
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        log = job.files.working_folder / "error.txt"
        with suppress(LabError):  # the disk may be full: the cause is said all the same
            write_atomically(log, traceback.format_exc().encode())
            reason += f" (see {log})"
        return "on_failure", reason
    finally:
        gc.collect()  # the next run needs the memory, perhaps after this one had too little
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Throttled:
    """Reports steps, but not every one."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._next = 0.0

    def __call__(self, step: int, steps: int, loss: float) -> None:
        now = time.monotonic()
        if now >= self._next or step == steps:
            self._next = now + SECONDS_BETWEEN_REPORTS
            self._send("on_progress", step, steps, loss)
