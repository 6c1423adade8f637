"""The command `weightcast`."""

from __future__ import annotations

import errno
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from weightcast_lab.errors import LabError

# torch takes seconds to import: the commands import what needs it, so that --help is instant
if TYPE_CHECKING:
    from weightcast_lab.records import FinishedRuns, RunRecord
    from weightcast_lab.train import Job

PIPE_WIDTH = 160
SEEDS = 10_000
"""No more than anybody needs."""

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Measure what forecasting the weights does for an optimizer.",
    epilog="Exit codes: 0, done, or stopped in time by --minutes; 1, some runs failed, or doctor "
    "found something; 2, a mistake in the command, its data or its folder; 130, interrupted. "
    "Results go to stdout, all else to stderr; NO_COLOR=1 takes the colors away.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"weightcast {version('weightcast')}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say which it is."),
    ] = False,
) -> None:
    """Measure what forecasting the weights does for an optimizer."""


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
        help="Stop in time, each run at a checkpoint: the same command goes on from there.",
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
        help="Say what runs are left; compute them only if --minutes says for how long.",
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


def _out(default: str) -> Any:
    """The option `--out` of a command that computes."""
    return typer.Option(
        help="Folder for the results. Finished runs in it are not repeated, interrupted ones go "
        "on, also on another machine.",
        show_default=default,
    )


@app.command(
    epilog="Example: `weightcast compare --task text --optimizer adam --baseline adamw "
    "--steps 1,3 --seeds 5` compares Adam, Adam predicted 1 and 3 steps ahead, and AdamW."
)
def compare(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Option(
            help="What to train: digits (images, a small CNN), text (Python's documentation, "
            "character by character, an LSTM), ptb (Penn Treebank, word by word, an LSTM; "
            "needs --data), ptb_characters (the same text by character, a transformer; needs "
            "--data), cifar10 (images, a ResNet-34 unless --set network=...; needs --data "
            "or --download); or one of your own, path/to/file.py:name."
        ),
    ] = "digits",
    optimizer: Annotated[
        list[str],
        typer.Option(
            help="Run plain and with each of --steps; may be repeated. The first, plain, is what "
            "all others are compared with. One of adamw, nadamw (as torch makes it), nadamw_mu "
            "(NAdamW with a constant μ), adam, radam, sgd, nesterov, rmsprop, adagrad; with "
            "weightcast[study] also lion, adabelief, soap, muon, muon_nesterov, muon_nadamw, "
            "muon_inside1, muon_inside3, muon_inside8, and schedule_free and lookahead, which are "
            "baselines only. Or one of your own, "
            "path/to/file.py:name, made as name(parameters, lr=...)."
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
        list[str],
        typer.Option(
            help="Learning rate of every method, like 0.005; or of one, like adamw-s3=0.002; may "
            "be repeated.",
            show_default="the task's, which suits plain AdamW",
        ),
    ] = [],  # noqa: B006
    milestones: Annotated[
        str, typer.Option(help="Divide learning rates by 10 after these epochs, like 8,10.")
    ] = "",
    betas: Annotated[
        str | None,
        typer.Option(
            help="β₁,β₂ of every optimizer that has them, like 0.9,0.999.",
            show_default="each optimizer's own",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            help="λ of every optimizer that has one.", show_default="each optimizer's own"
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SEEDS,
            help="Seeds 0 to N-1 for every method; a seed fixes initial weights and batches.",
            show_default="10 for digits, else 3",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Passes over the data.",
            show_default="digits 12, text 8, ptb 6, cifar10 10",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples, or streams of text, per step.",
            show_default="digits 32, text 32, ptb 20, cifar10 128",
        ),
    ] = None,
    delay: Annotated[
        int,
        typer.Option(
            help="Steps between the computation of a gradient and its use, as in a pipeline "
            "without bubbles."
        ),
    ] = 0,
    precision: Precision = "fp32",
    compiled: Compile = False,
    device: Device = "auto",
    data: Data = None,
    download: Download = False,
    any_text: Annotated[
        bool,
        typer.Option(
            "--any-text",
            help="With --task ptb: accept other texts in that format; results say so.",
        ),
    ] = False,
    option: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="An option of the task; may be repeated. text: network (lstm, transformer), "
            "training_tokens; ptb: units, layers, dropout, window, vocabulary, training_tokens, "
            "validation_tokens; cifar10: network (vgg11, vgg11_bn, resnet34, densenet121, "
            "inception_v3, resnet10, resnet10_plain), width, training_images, validation_images.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    out: Annotated[Path | None, _out("weightcast-runs/TASK")] = None,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Train the same model with an optimizer, plain and predicted, over several seeds.

    All methods start from the same weights and see the same batches, with the same learning rate
    unless told otherwise. At the end: a table with 95% intervals, learning curves, and a page to
    show around.

    Stop it whenever you like: the same command goes on where it was.
    """
    from weightcast_lab.comparison import (
        content_of,
        methods_to_compare,
        open_experiment,
        parse_betas,
        parse_milestones,
        parse_numbers,
        with_learning_rates,
    )
    from weightcast_lab.environment import check_precision
    from weightcast_lab.optimizers import Hyperparameters, check_installed, check_learning_rate
    from weightcast_lab.plugins import name_in, resolved
    from weightcast_lab.tasks import DataSource, make_task, parse_options
    from weightcast_lab.train import Settings

    task = resolved(task)
    methods = methods_to_compare(
        list(map(resolved, optimizer)),
        list(map(resolved, baseline)),
        parse_numbers(steps, "--steps"),
    )
    check_installed(methods)
    rate, methods = with_learning_rates(methods, lr)
    if rate is not None:
        check_learning_rate(rate)
    chosen_device = _device(device, on)
    check_precision(precision, chosen_device)
    source = DataSource(data, any_text, download)
    options = parse_options(task, option)
    the_task = make_task(task, source, **options)
    preset = the_task.preset
    epochs = epochs or preset.epochs
    settings = Settings(
        task=task,
        source=source,
        learning_rate=preset.learning_rate if rate is None else rate,
        batch_size=batch_size or preset.batch_size,
        epochs=epochs,
        device=chosen_device,
        options=tuple(sorted(options.items())),
        hyperparameters=Hyperparameters(parse_betas(betas), weight_decay=weight_decay),
        milestones=parse_milestones(milestones, epochs),
        clip_norm=preset.clip_norm,
        precision=precision,
        compiled=compiled,
        delay=delay,
    )
    folder = out or Path("weightcast-runs") / name_in(task)
    experiment = open_experiment(
        name_in(task), settings, methods, range(seeds or preset.seeds), folder, the_task
    )
    how = (
        f"of {_plural(settings.epochs, 'epoch')}, learning rate {settings.learning_rate:g}, "
        f"on {chosen_device}"
    )
    _keep_others_out(context, folder)
    order, plan = experiment.jobs(), (the_task.title, how)
    done = _compute(order, plan, _finished(), chosen_device, jobs, _end(minutes), on)

    def contents(*found: Any) -> list[dict[str, Any]]:
        return [content_of(experiment, *found)]

    done.report(context, folder, "comparison", contents, as_json, title=the_task.title)


@app.command(
    epilog="Example: `weightcast reproduce table3 --preset desk --data FOLDER --seeds 3` runs both "
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
    out: Annotated[Path | None, _out("weightcast-runs/reproduction-PRESET")] = None,
    missing: Missing = False,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Reproduce the paper: six networks, AdamW and its forecasts, and NAdamW beside them.

    At the end: its Tables 1 to 4 with our numbers beside the printed ones, its Figures 1 to 4, its
    claims with a verdict each, and a page to show around.

    Stop it whenever you like: the same command goes on where it was.
    """
    from weightcast_lab.comparison import in_order
    from weightcast_lab.environment import check_precision
    from weightcast_lab.reproduction import Wanted, contents_of, open_reproduction
    from weightcast_lab.tasks import DataSource

    chosen_device = _device(device, on)
    check_precision(precision, chosen_device)
    wanted = Wanted(
        names=tuple(names or ["all"]),
        preset=preset,
        seeds=seeds,
        beta2s=tuple(beta2),
        source=DataSource(data, download=download),
        device=chosen_device,
        precision=precision,
        compiled=compiled,
        clip_norm=clip,
    )
    folder = out or Path("weightcast-runs") / f"reproduction-{preset}"
    experiments = open_reproduction(wanted, folder)
    order = in_order(experiments)
    if missing:
        _say_missing(order)
        if minutes is None:
            return
    plan = f"The paper at preset {preset!r}", f"on {chosen_device}"
    _keep_others_out(context, folder)
    done = _compute(order, plan, _finished(), chosen_device, jobs, _end(minutes), on)
    title = f"Weight Prediction Boosts the Convergence of AdamW, at preset {preset!r}"
    contents = partial(contents_of, experiments)
    done.report(context, folder, "reproduction", contents, as_json, title=title, preset=preset)


@app.command(
    epilog="Example: `weightcast study core --data FOLDER --minutes 180` computes for three hours; "
    "the same command goes on from there."
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
    out: Annotated[Path | None, _out("weightcast-runs/study, or study-delay, study-smoke")] = None,
    missing: Missing = False,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Measure where forecasting helps: each method at its own best learning rate, on fresh seeds.

    The protocol is written down in docs/study.md. At the end: the paired differences that answer
    its questions, corrected for their number, tables of every task, and figures.

    Stop it whenever you like: the same command goes on where it was.
    """
    from weightcast_lab.progress import print_phases
    from weightcast_lab.tasks import DataSource
    from weightcast_lab.trials.contents import contents_of as trial_contents
    from weightcast_lab.trials.search import OpenTrials, open_trials
    from weightcast_lab.tuning import OpenStudy, contents_of, open_study

    chosen = list(dict.fromkeys(names or ["core"]))
    chosen_device = _device(device, on)
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
        finished, counts = _finished(), []
        for phase in opened.phases(results):
            found = finished.of(phase.jobs)
            results |= found
            counts.append((phase.label, len(found), phase.size))
        print_phases(Console(), counts)
        if minutes is None:
            return
        results.clear()
    _keep_others_out(context, folder)
    finished = _finished()
    until = _end(minutes)
    runs = 0
    for phase in opened.phases(results):
        order = phase.jobs
        runs += phase.size
        if order and time.time() < until:
            plan = phase.label, f"on {chosen_device}"
            done = _compute(order, plan, finished, chosen_device, jobs, until, on)
            results |= done.results
            failures |= done.failures
        else:
            results |= finished.of(order)
    title = "Where forecasting the weights helps"
    done = _Done(results, failures, runs)
    done.report(context, folder, "study", contents, as_json, title=title, names=chosen)


@app.command(
    epilog="Example: `weightcast foresight --data FOLDER --out results/foresight` takes about half "
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
    out: Annotated[Path | None, _out("weightcast-runs/foresight")] = None,
    missing: Missing = False,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Compare the optimizer's last step with what its next steps really do, on the study's tasks.

    At the end: the direction, the best length and the error of a forecast by how far it looks
    ahead, and how they change with β₁, learning rate and batch size, in tables and a figure.

    Stop it whenever you like: the same command goes on where it was.
    """
    from weightcast_lab.comparison import in_order
    from weightcast_lab.foresight_study import contents_of, open_foresight
    from weightcast_lab.tasks import DataSource

    chosen_device = _device(device, on)
    source = DataSource(data, download=download)
    folder = out or Path("weightcast-runs") / "foresight"
    opened = open_foresight(source, chosen_device, folder, seeds)
    order = in_order([experiment for _, experiment in opened])
    if missing:
        _say_missing(order)
        if minutes is None:
            return
    plan = "Forecasts beside what came", f"on {chosen_device}"
    _keep_others_out(context, folder)
    done = _compute(order, plan, _finished(), chosen_device, jobs, _end(minutes), on)
    title, contents = "How far the last step sees", partial(contents_of, opened)
    done.report(context, folder, "foresight", contents, as_json, title=title)


@app.command(
    epilog="Example: `weightcast doctor --data FOLDER` says whether the step is compiled, what a "
    "GPU would use, and whether the data are whole."
)
def doctor(
    data: Data = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say what is installed here, what would be used, and why.

    Ends with code 1 if something is slower or less than it could be.
    """
    from weightcast_lab.doctor import MARKS, examine

    findings = []
    for finding in examine(data):
        findings.append(finding)
        if not as_json:
            color = {True: "green", False: "red", None: "default"}[finding.is_good]
            mark = f"[{color}]{MARKS[finding.is_good]}[/]"
            text = f"{mark} [bold]{finding.topic}[/]: {escape(finding.text)}"
            Console().print(text, soft_wrap=True, highlight=False)
    if as_json:
        print(json.dumps([vars(finding) for finding in findings], indent=1, ensure_ascii=False))
    if any(finding.is_good is False for finding in findings):
        raise typer.Exit(1)


@dataclass
class _Done:
    """What has come of the runs so far."""

    results: dict[Job, RunRecord]
    failures: dict[Job, str]
    runs: int

    def report(
        self,
        context: typer.Context,
        folder: Path,
        kind: str,
        contents: Callable[..., list[dict[str, Any]]],
        as_json: bool,
        **about: Any,
    ) -> None:
        """Save and show what there is, say what is left, and end with code 1 if runs failed."""
        from weightcast_lab.comparison import save_results

        if self.results:
            found = contents(self.results, self.failures)
            path = save_results(folder, kind, found, **about, command=_command(context))
            _show(path, folder, as_json)
        console = Console(stderr=True)
        if self.failures:
            console.print(
                f"[red]{len(self.failures)} of {self.runs} runs failed[/] and are missing in the "
                "report: the same command tries them again."
            )
            raise typer.Exit(1)
        if len(self.results) < self.runs:
            console.print(_GO_ON.format("Time is up", len(self.results), self.runs))


_GO_ON = "{}: {} of {} runs are finished; the same command goes on from there."


def _device(name: str, on: str | None) -> str:
    """The device to compute on, here or on the cluster."""
    from weightcast_lab.cluster import check_address
    from weightcast_lab.environment import device_named

    if on is not None:
        check_address(on)
    return device_named(name, is_here=on is None)


def _end(minutes: float | None) -> float:
    """When to stop, as `time.time()` tells it."""
    return math.inf if minutes is None else time.time() + 60 * minutes


def _keep_others_out(context: typer.Context, folder: Path) -> None:
    """Until this command ends no other computes in the folder."""
    from weightcast_lab.store import computing_in

    context.with_resource(computing_in(folder))


def _finished() -> FinishedRuns:
    """What is there already; damaged files are warned of on stderr."""
    from weightcast_lab.progress import print_warning
    from weightcast_lab.records import FinishedRuns

    return FinishedRuns(partial(print_warning, Console(stderr=True)))


def _compute(
    order: list[Job],
    plan: tuple[str, str],
    finished: FinishedRuns,
    device: str,
    jobs: int | None,
    until: float,
    on: str | None,
) -> _Done:
    """Compute what is not finished yet, showing how it gets on; Ctrl-C ends the command.

    `plan` says what the runs are, and how they are computed.
    """
    from weightcast_lab.cluster import run_on_ray
    from weightcast_lab.progress import ProgressDisplay
    from weightcast_lab.runner import run_jobs
    from weightcast_lab.store import remove_empty_folders

    console = Console(stderr=True)
    live = sys.stdout.isatty() and sys.stderr.isatty()
    results = finished.of(order)
    left = [job for job in order if job not in results]
    already = f", {len(results)} finished already" if results else ""
    what, how = plan
    line = f"{what}: {_plural(len(order), 'run')} {how}{already}."
    console.print(line, soft_wrap=True, markup=False, emoji=False)
    failures: dict[Job, str] = {}
    if left:
        try:
            with ProgressDisplay(console, len(left), live=live) as display:
                if on is None:
                    workers = min(jobs or _default_jobs(device), len(left))
                    failures = run_jobs(left, workers, display, until)
                else:
                    failures = run_on_ray(on, left, jobs, display, until)
        except KeyboardInterrupt:
            done = len(results) + len(display.results)
            console.print(_GO_ON.format("Interrupted", done, len(order)))
            raise typer.Exit(130) from None
        finally:
            remove_empty_folders({job.files.folder for job in left})
        finished.add(display.results)
        results |= display.results
    return _Done(results, failures, len(order))


def _say_missing(order: list[Job]) -> None:
    """Which of the runs are not finished, and how far they are."""
    from weightcast_lab.progress import print_missing

    finished = _finished().of(order)
    print_missing(Console(), [job for job in order if job not in finished], len(order))


_PATHS_AND_SPEED = ("data", "out", "jobs", "minutes", "missing", "on", "as_json")


def _command(context: typer.Context) -> str:
    """The command that gives these results elsewhere: what was said, but for paths and speed."""
    words = ["weightcast", str(context.command.name)]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        is_said = value is not False and value not in (None, [], (), parameter.default)
        if parameter.name in _PATHS_AND_SPEED or not is_said:
            continue
        flag = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        if value is True:
            words += flag
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [*flag, str(one)]
    return shlex.join(words)


@app.command(epilog="Example: `weightcast report weightcast-runs/digits --markdown > table.md`")
def report(
    results: Annotated[
        Path,
        typer.Argument(help="A folder of results, or its results.json.", show_default=False),
    ],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the Markdown table and nothing else.")
    ] = False,
    latex: Annotated[
        bool, typer.Option("--latex", help="Print a reproduction's tables in LaTeX, nothing else.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json and nothing else.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Put the Markdown table and its notes into this document, between the lines "
            "`<!-- begin RESULTS -->` and `<!-- end RESULTS -->`, and do nothing else.",
            show_default=False,
        ),
    ] = None,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="Of a study: one small table, for --markdown or --into."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files.", show_default="beside the results"),
    ] = None,
) -> None:
    """Draw tables, pictures and page again from stored results."""
    from weightcast_lab.kinds import in_latex, in_markdown, insert
    from weightcast_lab.results import load_results

    if sum((markdown, latex, as_json, into is not None)) > 1:
        raise LabError("--markdown, --latex, --json and --into exclude one another: give one.")
    path = results / "results.json" if results.is_dir() else results
    experiments = load_results(path)
    if brief and not (markdown or into):
        raise LabError("--brief shapes --markdown and --into: give one of them as well.")
    if markdown:
        typer.echo(in_markdown(experiments, notes=False, brief=brief), nl=False)
    elif latex:
        typer.echo(in_latex(experiments), nl=False)
    elif as_json:
        typer.echo(path.read_text("utf-8"), nl=False)
    elif into:
        insert(into, results.as_posix(), experiments, brief=brief)
    else:
        _show(path, out or path.parent)


def _show(path: Path, folder: Path, as_json: bool = False) -> None:
    """Draw everything into the folder, and print the tables of a results file, or the file."""
    from weightcast_lab.kinds import terminal_report, write_report
    from weightcast_lab.results import load_results

    experiments = load_results(path)
    files = write_report(experiments, folder)
    if as_json:
        typer.echo(path.read_text("utf-8"), nl=False)
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    console.print(terminal_report(experiments))
    for file in files:
        console.print(escape(str(file)), style="dim", soft_wrap=True)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _default_jobs(device: str) -> int:
    if device != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a mistake of the user's is one sentence on stderr and exit code 2."""
    try:
        app(arguments)
    except LabError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ENOSPC):
            raise
        where = str(error.filename or "The output")
        _refuse(f"{where[:60]}{'…' * (len(where) > 60)}: {error.strerror}.")


def _refuse(sentence: str) -> NoReturn:
    Console(stderr=True).print(f"[red]Error:[/] {escape(sentence)}", soft_wrap=True)
    sys.exit(2)
