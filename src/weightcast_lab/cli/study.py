"""`weightcast study`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from weightcast_lab.cli.computing import (
    Done,
    chosen_device_of,
    compute_all,
    end_of,
    finished_runs,
    keep_others_out,
)
from weightcast_lab.cli.options import (
    SEEDS,
    Data,
    Device,
    Download,
    Jobs,
    Json,
    Minutes,
    Missing,
    On,
    out_option,
)

if TYPE_CHECKING:
    from weightcast_lab.results.records import RunRecord
    from weightcast_lab.running.jobs import Job


EPILOG = (
    "Example: `weightcast study core --data FOLDER --minutes 180` computes for three hours; "
    "run the same command again to resume."
)


def study(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[core|optimizers|betas|delay|trials|smoke]...",
            help="core: AdamW predicted by several steps, its controls, NAdamW, on six tasks; "
            "optimizers: others, plain and predicted; betas: other β and batch sizes on one task; "
            "delay: gradients that arrive 0 to 16 steps late; trials: rates and momenta searched, "
            "constant rate and cosine, steps saved; smoke: seconds, to see that it all runs.",
            show_default="core",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SEEDS,
            help="Seeds 0 to N-1 at the chosen learning rates; the search has its own.",
            show_default="as the protocol says: 5",
        ),
    ] = None,
    device: Device = "auto",
    data: Data = None,
    download: Download = False,
    out: Annotated[
        Path | None, out_option("weightcast-runs/study, or study-delay, study-smoke")
    ] = None,
    missing: Missing = False,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Measure where forecasting helps: each method at its own best learning rate, on fresh seeds.

    The protocol is written down in docs/study.md. At the end: the paired differences that answer
    its questions, corrected for their number, tables of every task, and figures.

    Stop it whenever you like, and run the same command again to resume.
    """
    from weightcast_lab.running.progress import print_phases
    from weightcast_lab.study.search import OpenStudy, contents_of, open_study
    from weightcast_lab.tasks import DataSource
    from weightcast_lab.trials.contents import contents_of as trial_contents
    from weightcast_lab.trials.search import OpenTrials, open_trials

    chosen = list(dict.fromkeys(names or ["core"]))
    chosen_device = chosen_device_of(device, on)
    source = DataSource(data, download=download)
    alone = "".join(f"-{name}" for name in chosen if name in ("delay", "trials", "smoke"))
    folder = out or Path("weightcast-runs") / f"study{alone}"
    opened: OpenStudy | OpenTrials
    contents: Callable[..., list[dict[str, Any]]]
    if chosen == ["trials"]:
        opened = open_trials(source, chosen_device, folder)
        contents = partial(trial_contents, opened)
    else:
        opened = open_study(chosen, source, chosen_device, folder, seeds)
        contents = partial(contents_of, opened)
    results: dict[Job, RunRecord] = {}
    failures: dict[Job, str] = {}
    if missing:
        finished, counts = finished_runs(), []
        for phase in opened.phases(results):
            found = finished.of(phase.jobs)
            results |= found
            counts.append((phase.label, len(found), phase.size))
        print_phases(Console(), counts)
        if minutes is None:
            return
        results.clear()
    keep_others_out(context, folder)
    finished = finished_runs()
    until = end_of(minutes)
    runs = 0
    for phase in opened.phases(results):
        order = phase.jobs
        runs += phase.size
        if order and time.time() < until:
            plan = phase.label, f"on {chosen_device}"
            done = compute_all(order, plan, finished, chosen_device, jobs, until, on)
            results |= done.results
            failures |= done.failures
        else:
            results |= finished.of(order)
    title = "Where forecasting the weights helps"
    done = Done(results, failures, runs)
    done.report(context, folder, "study", contents, as_json, title=title, names=chosen)
