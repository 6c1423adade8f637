"""`weightcast reproduce`."""

from __future__ import annotations

from dataclasses import replace
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
    Compile,
    Data,
    Device,
    Download,
    Jobs,
    Json,
    Minutes,
    Missing,
    On,
    Precision,
    out_option,
)

EPILOG = (
    "Example: `weightcast reproduce table3 --preset desk --data FOLDER --seeds 3` runs both "
    "LSTMs, and prints Tables 3 and 4 with the paper's numbers beside ours."
)


def reproduce(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[all|table1..table4|NETWORK]...",
            help="all, tables of the paper, or networks: vgg11, resnet34, densenet121, "
            "inception_v3, lstm1, lstm2; and vgg11_bn, which the paper may have meant.",
            show_default="all",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="paper: the paper's own size, days on a GPU; desk: narrower networks on a part of "
            "the data, hours on two CPU cores; smoke: a few batches of everything, minutes."
        ),
    ] = "desk",
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=SEEDS, help="Seeds 0 to N-1 of every cell.", show_default="1"),
    ] = None,
    beta2: Annotated[
        list[float],
        typer.Option(help="β₂ of every method; may be repeated. The paper prints 0.9."),
    ] = [0.9],  # noqa: B006
    clip: Annotated[
        float | None,
        typer.Option(
            help="Scale the LSTMs' gradients down to this norm.",
            show_default="no clipping, as printed",
        ),
    ] = None,
    precision: Precision = "fp32",
    compiled: Compile = False,
    device: Device = "auto",
    data: Data = None,
    download: Download = False,
    out: Annotated[Path | None, out_option("weightcast-runs/reproduction-PRESET")] = None,
    missing: Missing = False,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Reproduce the paper: six networks, AdamW and its forecasts, and NAdamW beside them.

    At the end: its Tables 1 to 4 with our numbers beside the printed ones, its Figures 1 to 4, its
    claims with a verdict each, and an HTML report you can share.

    Stop it whenever you like, and run the same command again to resume.
    """
    from weightcast_lab.environment import check_precision
    from weightcast_lab.paper.reproduction import open_reproduction, recipes_of
    from weightcast_lab.running.contents import contents_of
    from weightcast_lab.running.experiment import resume_order
    from weightcast_lab.tasks import DataSource

    chosen_device = chosen_device_of(device, on)
    check_precision(precision, chosen_device)
    source = DataSource(data, download=download)
    recipes = {
        key: replace(recipe.placed(source, chosen_device), precision=precision, compiled=compiled)
        for key, recipe in recipes_of(names or ["all"], preset, beta2, clip).items()
    }
    folder = out or Path("weightcast-runs") / f"reproduction-{preset}"
    experiments = open_reproduction(recipes, preset, seeds or 1, folder)
    order = resume_order(experiments)
    if missing:
        say_missing(order)
        if minutes is None:
            return
    plan = f"The paper at preset {preset!r}", f"on {chosen_device}"
    keep_others_out(context, folder)
    done = compute_all(order, plan, finished_runs(), chosen_device, jobs, end_of(minutes), on)
    title = f"Weight Prediction Boosts the Convergence of AdamW, at preset {preset!r}"
    contents = partial(contents_of, experiments)
    done.report(context, folder, "reproduction", contents, as_json, title=title, preset=preset)
