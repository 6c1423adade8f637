"""`weightcast foresight`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from weightcast_lab.cli.computing import (
    chosen_device_of,
    compute_all,
    end_of,
    finished_runs,
    keep_others_out,
    say_missing,
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

EPILOG = (
    "Example: `weightcast foresight --data FOLDER --out results/foresight` takes about half "
    "an hour on two CPU cores."
)


def foresight(
    context: typer.Context,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=SEEDS, help="Seeds 0 to N-1.", show_default="2")
    ] = None,
    device: Device = "auto",
    data: Data = None,
    download: Download = False,
    out: Annotated[Path | None, out_option("weightcast-runs/foresight")] = None,
    missing: Missing = False,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Compare the optimizer's last step with what its next steps really do, on the study's tasks.

    At the end: the direction, the best length and the error of a forecast by how far it looks
    ahead, and how they change with β₁, learning rate and batch size, in tables and a figure.

    Stop it whenever you like, and run the same command again to resume.
    """
    from weightcast_lab.foresight.variations import open_foresight
    from weightcast_lab.running.contents import contents_of
    from weightcast_lab.running.experiment import resume_order
    from weightcast_lab.tasks import DataSource

    chosen_device = chosen_device_of(device, on)
    source = DataSource(data, download=download)
    folder = out or Path("weightcast-runs") / "foresight"
    opened = open_foresight(source, chosen_device, folder, seeds)
    order = resume_order(opened)
    if missing:
        say_missing(order)
        if minutes is None:
            return
    plan = "Forecasts beside what came", f"on {chosen_device}"
    keep_others_out(context, folder)
    done = compute_all(order, plan, finished_runs(), chosen_device, jobs, end_of(minutes), on)
    title, contents = "How far the last step sees", partial(contents_of, opened)
    done.report(context, folder, "foresight", contents, as_json, title=title)
