"""Runs on the machines of a Ray cluster: same jobs, watcher and events as `workers.run_jobs`.

The data and the folder of the results must have the same path on all machines, and each needs
weightcast. A run whose machine is lost resumes elsewhere from its last checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from weightcast_lab.errors import LabError
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.workers import (
    Failures,
    TaskLoader,
    Watcher,
    compute,
    prepare_process,
    tell,
)

RETRIES = 2
"""How often a run is taken up again whose process was lost."""
SECONDS_BETWEEN_LOOKS = 0.2


def check_address(address: str) -> None:
    """Refuse what is no address of a cluster.

    Raises:
        LabError: it is neither `ray` nor `ray://HOST:PORT`, or Ray is not installed.
    """
    if address != "ray" and not address.startswith("ray://"):
        raise LabError(
            f"--on {address} is no cluster: give ray (the one that runs here, or a new one "
            "of this machine) or ray://HOST:PORT."
        )
    _ray()


def run_on_ray(
    address: str,
    jobs: Sequence[Job],
    workers: int | None,
    watcher: Watcher,
    until: float = math.inf,
) -> Failures:
    """Compute the runs on a Ray cluster, each on one CPU or GPU, and begin none after `until`.

    Args:
        address: `ray` or `ray://HOST:PORT`.
        jobs: The runs.
        workers: How many at a time; None for as many as the cluster has CPUs or GPUs.
        watcher: Is told how they get on.
        until: Of `time.time()`; every run stops at its last checkpoint before.

    Returns:
        The runs that crashed, with the reason.

    Raises:
        LabError: the cluster cannot be reached or has no such device, or nothing more can be done.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        is_gpu = jobs[0].recipe.device == "cuda"
        slots = int(ray.cluster_resources().get("GPU" if is_gpu else "CPU", 0))
        if not slots:
            raise LabError(
                f"The Ray cluster has no {'GPU: use --device cpu' if is_gpu else 'CPU'}."
            )
        return _run(ray, jobs, min(workers or slots, slots), watcher, until, is_gpu)
    finally:
        ray.shutdown()


def _run(
    ray: Any, jobs: Sequence[Job], slots: int, watcher: Watcher, until: float, is_gpu: bool
) -> Failures:
    queue = importlib.import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0})
    remote = ray.remote(num_cpus=1, num_gpus=int(is_gpu), max_retries=RETRIES)(_work)
    waiting, failed = deque(enumerate(jobs)), Failures()
    running: dict[Any, int] = {}  # by Ray's reference to it, a job's place among the jobs

    def relay() -> None:
        for number, event, *content in queue.get_nowait_batch(queue.qsize()):
            if event == "on_warning":
                watcher.on_warning(*content)
            elif number in running.values():
                getattr(watcher, event)(jobs[number], *content)

    try:
        while (is_more := bool(waiting) and time.time() < until) or running:
            while is_more and waiting and len(running) < slots:
                number, job = waiting.popleft()
                # its folder must mean the same in another process's working directory
                absolute = replace(job, files=replace(job.files, folder=job.files.folder.resolve()))
                task = remote.options(name=job.label)
                running[task.remote(absolute, number, queue, until)] = number
                watcher.on_start(job)
            done, _ = ray.wait(list(running), timeout=SECONDS_BETWEEN_LOOKS)
            relay()
            for reference in done:
                job = jobs[running.pop(reference)]
                try:
                    event, *content = ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().partition("\n")[0]
                    event, content = "on_failure", [f"{type(error).__name__}: {reason}"]
                tell(watcher, failed, job, event, *content)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
    return failed


def _work(job: Job, number: int, queue: Any, until: float) -> tuple[Any, ...]:
    """Compute one run, on the cluster."""
    prepare_process()
    return compute(job, _loader(), lambda *event: queue.put((number, *event)), until)


@cache
def _loader() -> TaskLoader:
    """This process's: Ray gives it one run after the other."""
    return TaskLoader()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise LabError(
            "--on ray needs Ray, which is not installed: pip install 'weightcast[lab,ray]'."
        ) from None


def _connect(ray: Any, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(
            None if address == "ray" else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:  # Ray's own, gRPC's, and those of both their versions
        reason = str(error).strip().partition("\n")[0]
        raise LabError(f"The Ray cluster {address} cannot be reached: {reason}") from None
