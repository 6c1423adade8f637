"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SEEDS = 10_000
"""No more than anybody needs."""


Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one.")]


Data = Annotated[
    Path | None,
    typer.Option(
        resolve_path=True,
        help="Folder with the data: ptb.train.txt, ptb.valid.txt and ptb.test.txt; "
        "cifar-10-binary.tar.gz or cifar10-jpeg.tar.xz.",
        show_default=False,
    ),
]


Download = Annotated[
    bool, typer.Option("--download", help="Fetch CIFAR-10 from its official address (170 MB).")
]


Precision = Annotated[
    str,
    typer.Option(
        help="fp32; tf32 (matrix products and convolutions on a GPU); bf16 (under autocast)."
    ),
]


Compile = Annotated[bool, typer.Option("--compile", help="Compile the model with torch.compile.")]


Minutes = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Stop after so long, each run at a checkpoint; run the same command again to resume.",
        show_default="no limit",
    ),
]


Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Runs at a time, each with one CPU thread; numbers do not depend on it.",
        show_default="one per CPU core; one on a GPU; all of a cluster",
    ),
]


Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print results.json, all numbers of all runs, instead of the tables."
    ),
]


Missing = Annotated[
    bool,
    typer.Option(
        "--missing",
        help="List unfinished runs; compute them only if --minutes says for how long.",
    ),
]


On = Annotated[
    str | None,
    typer.Option(
        help="Compute on a Ray cluster: ray (the one that runs here, or a new one of this machine) "
        "or ray://HOST:PORT. Data and results need the same path on all its machines.",
        show_default="this machine",
    ),
]


def out_option(default: str) -> Any:
    """The option `--out` of a command that computes."""
    return typer.Option(
        help="Folder for the results. Finished runs in it are not repeated, interrupted ones "
        "resume, also on another machine.",
        show_default=default,
    )
