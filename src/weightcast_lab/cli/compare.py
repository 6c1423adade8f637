"""`weightcast compare`."""

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
    plural,
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
    On,
    Precision,
    out_option,
)

EPILOG = (
    "Example: `weightcast compare --task text --optimizer adam --baseline adamw "
    "--steps 1,3 --seeds 5` compares Adam, Adam predicted 1 and 3 steps ahead, and AdamW."
)


def compare(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Option(
            help="What to train: small_text (Python's documentation, character by character, a "
            "small transformer: two minutes on two cores), text (the same, an LSTM), digits "
            "(images, a small CNN), ptb (Penn Treebank, word by word, an LSTM; "
            "needs --data), ptb_characters (the same text by character, a transformer; needs "
            "--data), cifar10 (images, a ResNet-34 unless --set network=...; needs --data "
            "or --download); or one of your own, path/to/file.py:name."
        ),
    ] = "small_text",
    optimizer: Annotated[
        list[str],
        typer.Option(
            help="Run plain and with each of --steps; may be repeated. The first, plain, is what "
            "all others are compared with. One of adamw, nadamw (as torch makes it), nadamw_mu "
            "(NAdamW with a constant μ), adam, radam, sgd, nesterov, rmsprop, adagrad, "
            "smooth_adamw, smooth_adamw8, smooth_nadamw_mu (which walk a slow average of their "
            "steps); with weightcast[study] also lion, adabelief, soap, muon, muon_nesterov, "
            "muon_nadamw, muon_inside1, muon_inside3, muon_inside8, smooth_muon_nesterov, and "
            "schedule_free and lookahead, which are baselines only. Or one of your own, "
            "path/to/file.py:name, made as name(parameters, lr=...)."
        ),
    ] = ["adamw"],  # noqa: B006 - typer reads the default
    baseline: Annotated[
        list[str],
        typer.Option(help="Run plain only; may be repeated; none for no baseline."),
    ] = ["nadamw_mu"],  # noqa: B006
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
            show_default="small_text 8, text 8, digits 12, ptb 6, cifar10 10",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Examples, or streams of text, per step.",
            show_default="small_text 16, text 32, digits 32, ptb 20, cifar10 128",
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
    out: Annotated[Path | None, out_option("weightcast-runs/TASK")] = None,
    minutes: Minutes = None,
    jobs: Jobs = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Train the same model with an optimizer, plain and predicted, over several seeds.

    All methods start from the same weights and see the same batches, with the same learning rate
    unless told otherwise. At the end: a table with 95% intervals, learning curves, and an HTML
    report you can share.

    Stop it whenever you like, and run the same command again to resume.
    """
    from weightcast_lab.cli.parsing import (
        methods_to_compare,
        parse_betas,
        parse_milestones,
        parse_numbers,
        with_learning_rates,
    )
    from weightcast_lab.environment import check_precision
    from weightcast_lab.methods.method import Hyperparameters, check_installed, check_learning_rate
    from weightcast_lab.plugins import name_in, resolved
    from weightcast_lab.running.contents import contents_of
    from weightcast_lab.running.experiment import open_experiment
    from weightcast_lab.running.recipe import Recipe
    from weightcast_lab.tasks import DataSource, make_task, parse_options

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
    chosen_device = chosen_device_of(device, on)
    check_precision(precision, chosen_device)
    source = DataSource(data, any_text, download)
    options = parse_options(task, option)
    the_task = make_task(task, source, **options)
    preset = the_task.preset
    epochs = epochs or preset.epochs
    recipe = Recipe(
        task,
        learning_rate=preset.learning_rate if rate is None else rate,
        batch_size=batch_size or preset.batch_size,
        epochs=epochs,
        options=tuple(sorted(options.items())),
        hyperparameters=Hyperparameters(parse_betas(betas), weight_decay=weight_decay),
        milestones=parse_milestones(milestones, epochs),
        clip_norm=preset.clip_norm,
        precision=precision,
        compiled=compiled,
        delay=delay,
        source=source,
        device=chosen_device,
    )
    folder = out or Path("weightcast-runs") / name_in(task)
    experiment = open_experiment(
        name_in(task), recipe, methods, range(seeds or preset.seeds), folder, the_task
    )
    how = (
        f"of {plural(recipe.epochs, 'epoch')}, learning rate {recipe.learning_rate:g}, "
        f"on {chosen_device}"
    )
    keep_others_out(context, folder)
    order, plan = experiment.jobs(), (the_task.title, how)
    done = compute_all(order, plan, finished_runs(), chosen_device, jobs, end_of(minutes), on)
    contents = partial(contents_of, [experiment])
    done.report(context, folder, "comparison", contents, as_json, title=the_task.title)
