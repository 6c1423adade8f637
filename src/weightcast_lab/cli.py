"""The command `weightcast`."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from weightcast_lab.errors import LabError

# torch takes seconds to import: the commands import what needs it, so that --help is instant
if TYPE_CHECKING:
    from weightcast_lab.tasks import Task
    from weightcast_lab.train import Settings

PIPE_WIDTH = 160

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Measure what forecasting the weights does for an optimizer.",
)


@app.callback()
def _about() -> None:
    """Measure what forecasting the weights does for an optimizer."""


@app.command(
    epilog="Example: `weightcast compare --task text --optimizer adam --baseline adamw "
    "--steps 1,3 --seeds 5` compares Adam, Adam predicted 1 and 3 steps ahead, and AdamW."
)
def compare(
    task: Annotated[
        str,
        typer.Option(
            help="What to train: digits (images, a small CNN), text (Python's documentation, "
            "character by character, an LSTM), ptb (Penn Treebank, word by word, an LSTM; "
            "needs --data)."
        ),
    ] = "digits",
    optimizer: Annotated[
        list[str],
        typer.Option(
            help="Run plain and with each of --steps; may be repeated. The first, plain, is what "
            "all others are compared with. One of adamw, nadamw, adam, radam, sgd, nesterov, "
            "rmsprop, adagrad."
        ),
    ] = ["adamw"],  # noqa: B006 - typer reads the default
    baseline: Annotated[
        list[str],
        typer.Option(help="Run plain only; may be repeated; none for no baseline."),
    ] = ["nadamw"],  # noqa: B006
    steps: Annotated[
        str, typer.Option(help="How many optimizer steps to predict ahead, one run for each.")
    ] = "1,2,3",
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of every method.",
            show_default="the task's, which suits plain AdamW",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Seeds 0 to N-1 for every method; a seed fixes initial weights and batches.",
            show_default="10 for digits, else 3",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the data.", show_default="digits 12, text 8, ptb 6"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples, or streams of text, per step.",
            show_default="digits 32, text 32, ptb 20",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one.")] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt.", show_default=False
        ),
    ] = None,
    any_text: Annotated[
        bool,
        typer.Option(
            "--any-text",
            help="With --task ptb: accept other texts in that format; results say so.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Finished runs in it are not repeated, interrupted ones "
            "go on.",
            show_default="weightcast-runs/TASK",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time, each with one CPU thread; numbers do not depend on it.",
            show_default="one per CPU core; one on a GPU",
        ),
    ] = None,
) -> None:
    """Train the same model with an optimizer, plain and predicted, over several seeds.

    All methods start from the same weights and see the same batches, with the same learning rate.
    At the end: a table with 95% intervals, learning curves, and a page to show around.

    Stop it whenever you like: the same command goes on where it was.
    """
    from weightcast_lab.comparison import (
        device_named,
        finished_results,
        methods_to_compare,
        open_comparison,
        parse_steps,
        save_results,
    )
    from weightcast_lab.progress import ProgressDisplay, print_warning
    from weightcast_lab.runner import run_cells
    from weightcast_lab.tasks import DataSource, make_task
    from weightcast_lab.train import Cell, Settings

    if lr is not None and not 0 < lr < float("inf"):
        raise LabError(f"--lr {lr:g} is not possible: it must be positive and finite.")
    methods = methods_to_compare(optimizer, baseline, parse_steps(steps))
    chosen_device = device_named(device)
    source = DataSource(data.resolve() if data else None, any_text)
    the_task = make_task(task, source)
    preset = the_task.preset
    settings = Settings(
        task=task,
        source=source,
        learning_rate=preset.learning_rate if lr is None else lr,
        batch_size=batch_size or preset.batch_size,
        epochs=epochs or preset.epochs,
        device=chosen_device,
    )
    comparison = open_comparison(settings, the_task, out or Path("weightcast-runs") / task)

    live = sys.stdout.isatty() and sys.stderr.isatty()
    console = Console(stderr=True)
    cells = [Cell(method, seed) for seed in range(seeds or preset.seeds) for method in methods]
    results = finished_results(comparison, cells, partial(print_warning, console))
    missing = [cell for cell in cells if cell not in results]
    console.print(_plan(the_task, settings, len(cells), len(results)), soft_wrap=True)
    jobs = min(jobs or _default_jobs(chosen_device), max(len(missing), 1))
    failed: list[Cell] = []
    if missing:
        try:
            with ProgressDisplay(console, len(missing), live=live) as display:
                failed = run_cells(comparison, missing, jobs, display)
        except KeyboardInterrupt:
            done = len(results) + len(display.results)
            console.print(
                f"Interrupted: {done} of {len(cells)} runs are finished; the same command goes on "
                "from there."
            )
            raise typer.Exit(130) from None
        results |= display.results
    if not results:
        raise typer.Exit(1)
    names = [*(f"--optimizer {o}" for o in optimizer), *(f"--baseline {b}" for b in baseline)]
    command = (
        f"weightcast compare --task {task} {' '.join(names)} --steps {shlex.quote(steps)} "
        f"--lr {settings.learning_rate:g} --seeds {seeds or preset.seeds} "
        f"--epochs {settings.epochs} --batch-size {settings.batch_size} --device {chosen_device}"
    )
    _show(save_results(comparison, the_task, cells, results, command), comparison.folder)
    if failed:
        console.print(
            f"[red]{len(failed)} of {len(cells)} runs failed[/] and are missing in the report: the "
            "same command tries them again."
        )
        raise typer.Exit(1)


@app.command(epilog="Example: `weightcast report weightcast-runs/digits --markdown > table.md`")
def report(
    results: Annotated[
        Path,
        typer.Argument(help="The folder of a comparison, or its results.json.", show_default=False),
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the Markdown table and nothing else.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Put the Markdown table and its notes into this document, between the lines "
            "`<!-- begin RESULTS -->` and `<!-- end RESULTS -->`, and do nothing else.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files.", show_default="beside the results"),
    ] = None,
) -> None:
    """Redraw table, learning curves and page from stored results."""
    from weightcast_lab.report import insert_table, load_results, markdown_table, summarize

    path = results / "results.json" if results.is_dir() else results
    if markdown:
        typer.echo(markdown_table(summarize(load_results(path))), nl=False)
    elif into:
        insert_table(into, results.as_posix(), summarize(load_results(path)))
    else:
        _show(path, out or path.parent)


def _show(path: Path, folder: Path) -> None:
    """Print the table of a results file; draw everything else into the folder."""
    from weightcast_lab.report import load_results, summarize, terminal_report, write_report

    results = load_results(path)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(terminal_report(summarize(results)))
    for file in write_report(results, folder):
        console.print(escape(str(file)), style="dim", soft_wrap=True)


def _plan(task: Task, settings: Settings, runs: int, finished: int) -> str:
    done = f", {finished} finished already" if finished else ""
    epochs = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    return (
        f"{task.title}: {runs} runs of {epochs}, learning rate "
        f"{settings.learning_rate:g}, on {settings.device}{done}."
    )


def _default_jobs(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a mistake of the user's is one sentence on stderr and exit code 2."""
    try:
        app(arguments)
    except LabError as error:
        Console(stderr=True).print(f"[red]Error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
