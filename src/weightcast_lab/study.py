"""The study as data: workloads x methods x learning rates x seeds, and the questions it answers.

`page()` writes it down as docs/study.md, so that protocol and code cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.optimizers import OPTIMIZERS, Hyperparameters, Method


@dataclass(frozen=True)
class Workload:
    """Something to train.

    Attributes:
        label: Its name in tables.
        task: One of `weightcast_lab.tasks.TASKS`.
        options: What the task's function takes besides the data.
        learning_rate: Usual for AdamW here: the methods' grids lie around it.
        sgd_rate: Usual for SGD with momentum, whose scale is another on every workload.
        batch_size: Examples, or streams of text.
        epochs: Passes over the training data.
        milestones: The learning rate is divided by 10 after so many epochs.
        clip_norm: Gradients are scaled down to this norm, if there is one.
        betas: Of every method that has them; None for each optimizer's own.
        variant_of: The workload with other settings that it is, if it is one: questions are not
            asked of variants, which have a table of their own.
    """

    label: str
    task: str
    options: Mapping[str, Any]
    learning_rate: float
    sgd_rate: float
    batch_size: int
    epochs: int
    milestones: tuple[int, ...] = ()
    clip_norm: float | None = None
    betas: tuple[float, float] | None = None
    variant_of: str = ""

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of every method."""
        return Hyperparameters(self.betas)


def _text(setting: str = "", batch_size: int = 32, **more: Any) -> Workload:
    label = "Documentation, LSTM" + (f", {setting}" if setting else "")
    variant_of = "text-lstm" if setting else ""
    part = {"training_tokens": 250_000}
    return Workload(
        label, "text", part, 5e-3, 1.0, batch_size, 6, clip_norm=1.0, variant_of=variant_of, **more
    )


def _resnet(label: str, network: str) -> Workload:
    part = {
        "network": network,
        "width": 0.125,
        "training_images": 2_500,
        "validation_images": 1_000,
    }
    return Workload(label, "cifar10", part, 3e-3, 0.1, 32, 8, milestones=(6,))


WORKLOADS = {
    "digits": Workload("Digits, CNN", "digits", {}, 5e-3, 0.05, 32, 12),
    "text-lstm": _text(),
    "text-transformer": Workload(
        "Documentation, transformer",
        "text",
        {"network": "transformer", "training_tokens": 200_000},
        3e-3,
        0.3,
        16,
        5,
        clip_norm=1.0,
    ),
    "ptb-lstm": Workload(
        "Penn Treebank, LSTM",
        "ptb",
        {
            "units": 128,
            "dropout": 0.2,
            "vocabulary": 2_000,
            "training_tokens": 60_000,
            "validation_tokens": 15_000,
        },
        1e-2,
        2.0,
        20,
        6,
        milestones=(4,),
        clip_norm=0.25,
    ),
    "cifar10-bn": _resnet("CIFAR-10, ResNet-10 with BatchNorm", "resnet10"),
    "cifar10-plain": _resnet("CIFAR-10, ResNet-10 without BatchNorm", "resnet10_plain"),
    "text-lstm-beta1": _text("β₁ = 0.95", betas=(0.95, 0.999)),
    "text-lstm-beta2": _text("β₂ = 0.95", betas=(0.9, 0.95)),
    "text-lstm-batch": _text("batch 128", batch_size=128),
    "smoke-digits": Workload("Digits, CNN, 2 epochs", "digits", {}, 5e-3, 0.05, 64, 2),
    "smoke-batch": Workload("Digits, CNN, 2 epochs, batch 128", "digits", {}, 5e-3, 0.05, 128, 2),
}

SIX = ("digits", "text-lstm", "text-transformer", "ptb-lstm", "cifar10-bn", "cifar10-plain")

SCALES = {
    "adamw": 1.0,
    "nadamw": 1.0,
    "radam": 1.0,
    "muon": 1.0,
    "muon_nesterov": 1.0,
    "lookahead": 1.0,
    "schedule_free": 3.0,
    "rmsprop": 1.0,
    "lion": 0.2,
    "adagrad": 10.0,
}
"""Usual learning rates of each optimizer but SGD, in multiples of AdamW's."""

SGD = ("sgd", "nesterov")


@dataclass(frozen=True)
class Design:
    """How much is spent on every method, the same for all.

    Attributes:
        multiples: Of the usual learning rate: the grid that is searched.
        search_seeds: On which it is searched; they serve for nothing else.
        seeds: At the learning rate that was chosen.
    """

    multiples: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    search_seeds: tuple[int, ...] = (100, 101)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def rates(self, workload: Workload, method: Method) -> tuple[float, ...]:
        """The learning rates that are tried: the same for a method plain and predicted."""
        if method.optimizer in SGD:
            usual = workload.sgd_rate
        else:
            usual = SCALES[method.optimizer] * workload.learning_rate
        return tuple(float(f"{usual * multiple:.3g}") for multiple in self.multiples)

    @property
    def search_runs(self) -> int:
        """Of every method on every workload, to choose its learning rate."""
        return len(self.multiples) * len(self.search_seeds)

    @property
    def runs(self) -> int:
        """Of every method on every workload."""
        return self.search_runs + len(self.seeds)


@dataclass(frozen=True)
class Study:
    """Methods on workloads, in rounds: a round is searched and measured before the next begins."""

    about: str
    workloads: tuple[str, ...]
    rounds: tuple[tuple[Method, ...], ...]
    design: Design = Design()

    @property
    def methods(self) -> tuple[Method, ...]:
        """Of all rounds."""
        return tuple(method for one in self.rounds for method in one)


@dataclass(frozen=True)
class Round:
    """Methods that are searched and measured together, and on what."""

    label: str
    workloads: tuple[str, ...]
    methods: tuple[Method, ...]


def _adamw(*steps: float) -> tuple[Method, ...]:
    return tuple(Method("adamw", s) for s in steps)


def _family(name: str) -> tuple[Method, ...]:
    return (Method(name), Method(name, 1.0), Method(name, 3.0))


def _predicted(name: str) -> tuple[str, ...]:
    return tuple(method.name for method in _family(name)[1:])


ADAMW, NADAMW = Method("adamw"), Method("nadamw")

STUDIES = {
    "core": Study(
        "AdamW predicted so many steps ahead, its controls, and NAdamW",
        SIX,
        (
            (ADAMW, *_adamw(1.0, 3.0), NADAMW),
            _adamw(0.5, 2.0, 5.0, 8.0),
            (
                Method("adamw", 3.0, decaying=True),
                Method("adamw", math.inf, decaying=True),
                Method("adamw", -1.0),
                Method("nadamw", 1.0),
            ),
        ),
    ),
    "optimizers": Study(
        "other optimizers: plain, predicted, and in their own Nesterov form where there is one",
        SIX,
        (
            (ADAMW, NADAMW, *_family("sgd"), Method("nesterov")),
            (*_family("rmsprop"), *_family("radam")),
            (
                *(Method("schedule_free"), Method("lookahead")),
                *(*_family("muon"), Method("muon_nesterov")),
            ),
            (*_family("lion"), *_family("adagrad")),
        ),
    ),
    "betas": Study(
        "one task with another β₁, another β₂ and another batch size",
        ("text-lstm", "text-lstm-beta1", "text-lstm-beta2", "text-lstm-batch"),
        ((ADAMW, *_adamw(3.0), NADAMW), _adamw(1.0, 8.0)),
    ),
    "smoke": Study(
        "seconds, to see that it all runs; no evidence",
        ("smoke-digits", "smoke-batch"),
        ((ADAMW, *_adamw(1.0)), (*_adamw(-1.0), NADAMW)),
        Design(multiples=(0.3, 1.0), search_seeds=(100,), seeds=(0, 1, 2)),
    ),
}


@dataclass(frozen=True)
class Question:
    """Methods against one that they are compared with, by name.

    A question is one family of comparisons: Holm's correction is over all its methods and
    workloads.
    """

    key: str
    text: str
    reference: str
    methods: tuple[str, ...]


METHODS = {m.name: m for study in STUDIES.values() for m in study.methods}
"""All methods of all studies, by name."""

FORWARD = tuple(
    m.name
    for m in sorted(STUDIES["core"].methods, key=lambda m: (m.decaying, m.steps or 0.0))
    if m.optimizer == "adamw" and (m.steps or 0.0) > 0
)
"""AdamW predicted so many steps ahead."""

QUESTIONS = (
    Question("adamw", "Does a forecast improve AdamW?", "adamw", FORWARD),
    Question(
        "control",
        "Does a step backwards (s = −1) do the same, as a control?",
        "adamw",
        ("adamw-s-1",),
    ),
    Question(
        "nadamw",
        "Is a forecast of AdamW more than NAdamW, which looks ahead at no cost?",
        "nadamw",
        FORWARD,
    ),
    Question("look-ahead", "Does NAdamW improve AdamW?", "adamw", ("nadamw",)),
    Question("on-nadamw", "Does a forecast improve NAdamW?", "nadamw", ("nadamw-s1",)),
    *(
        Question(
            name,
            f"Does a forecast improve {OPTIMIZERS[name][0]}?",
            name,
            (f"{name}-s1", f"{name}-s3"),
        )
        for name in ("sgd", "rmsprop", "radam", "muon", "lion", "adagrad")
    ),
    *(
        Question(
            f"{name}-nesterov",
            f"Is a forecast of {OPTIMIZERS[name][0]} more than its own Nesterov form?",
            nesterov,
            _predicted(name),
        )
        for name, nesterov in (("sgd", "nesterov"), ("muon", "muon_nesterov"))
    ),
    Question(
        "others",
        "Do other optimizers, plain, do better than AdamW?",
        "adamw",
        (
            *("schedule_free", "lookahead", "muon", "muon_nesterov", "lion", "radam"),
            *("rmsprop", "adagrad", "sgd", "nesterov"),
        ),
    ),
)


VARIANTS = Question(
    "variants",
    "Does it depend on β₁, β₂ or the batch size?",
    "adamw",
    tuple(m.name for m in STUDIES["betas"].methods if m != ADAMW),
)
"""Asked of one workload and its variants."""


def rounds_of(names: Iterable[str]) -> tuple[list[Round], Design]:
    """The rounds of the studies of these names, one study after the other, and their design.

    Raises:
        LabError: there is no such study, or they do not spend the same on every method.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in STUDIES:
            raise unknown_name("study", name, STUDIES)
    studies = {name: STUDIES[name] for name in chosen}
    if len({study.design for study in studies.values()}) > 1:
        raise LabError(f"{' and '.join(chosen)} differ in seeds or learning rates: one at a time.")
    rounds = [
        Round(f"{name}, round {number} of {len(study.rounds)}", study.workloads, methods)
        for name, study in studies.items()
        for number, methods in enumerate(study.rounds, 1)
    ]
    return rounds, studies[chosen[0]].design


# --- the protocol, for people --------------------------------------------------------------------


WIDTH = 100


def page() -> str:
    """`docs/study.md`."""
    design = Design()
    grid = ", ".join(f"{multiple:g}" for multiple in design.multiples)
    lines = [
        "# The study: its protocol",
        "",
        "Where does forecasting the weights help, by how much, and what should a user set? This",
        "page was written before the runs, from the same data that the runs are made from:",
        "`python -c 'from weightcast_lab import study; print(study.page(), end=\"\")' >",
        "docs/study.md` writes it, and a test holds both together.",
        "",
        "```sh",
        "pip install 'weightcast[lab,study]'",
        "weightcast study core optimizers betas --data FOLDER --out results/study",
        "```",
        "",
        "`FOLDER` holds CIFAR-10 and Penn Treebank. The command may be stopped at any time and",
        "goes on where it was; `--minutes` ends it in time, `--missing` says what is left. At the",
        "end it prints tables and draws figures; `weightcast report results/study` does so again.",
        "",
        "## Workloads",
        "",
        "Small, some twenty seconds a run on one CPU core at most, so that there can be many runs;",
        "what holds here need not hold at scale.",
        "",
        "| Workload | Task and options | Batch | Epochs | ÷10 after | Clipping | Usual rate: AdamW "
        "| SGD |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    shown = [w for name in ("core", "betas") for w in STUDIES[name].workloads]
    for key in dict.fromkeys(shown):
        w = WORKLOADS[key]
        options = ", ".join(f"{name} {_number(value)}" for name, value in w.options.items())
        cells = [
            *(w.label, f"`{w.task}`" + (f": {options}" if options else "")),
            *(f"{w.batch_size}", f"{w.epochs}", ", ".join(map(str, w.milestones)) or "–"),
            "–" if w.clip_norm is None else f"{w.clip_norm:g}",
            *(f"{w.learning_rate:g}", f"{w.sgd_rate:g}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Parts of a data set are the same for every method and seed. Everything else is the task's",
        "and the optimizer's default: β₁ = 0.9 and β₂ = 0.999 where nothing else is said, weight",
        "decay 0.01 (decoupled) for AdamW, NAdamW, Lion, Muon, schedule-free and Lookahead, else",
        "none; momentum 0.9 for SGD and 0.95 for Muon. Schedule-free keeps its learning rate where",
        "the others divide theirs, and its BatchNorm statistics are not gathered anew. Muon is for",
        "all matrices but the first and the last; AdamW with the same learning rate, to whose size",
        "Muon's steps are scaled, does the rest. Lookahead (k = 5, α = 0.5, around AdamW) is",
        "evaluated at its fast weights.",
        "",
        "## Methods",
        "",
        "| Study | What it is | Methods, in the order of their rounds | Workloads | Runs |",
        "|---|---|---|---:|---:|",
    ]
    for name, study in STUDIES.items():
        methods = "; ".join(", ".join(m.label for m in one) for one in study.rounds)
        count = len(study.methods) * len(study.workloads) * study.design.runs
        lines.append(
            f"| `{name}` | {study.about} | {methods} | {len(study.workloads)} | {count:,} |"
        )
    lines += [
        "",
        "Studies that are named together share the runs of the methods that they have in common.",
        "",
        "## Learning rates and seeds",
        "",
        *wrap(
            f"Every method, plain or predicted, gets the same budget: {len(design.multiples)} "
            f"learning rates ({grid} times the usual one of its optimizer) with seeds "
            f"{_listed(design.search_seeds)}. The rate with the lowest mean final validation loss "
            "is chosen; a rate at which a run diverges loses to any at which fewer do. A choice at "
            "an edge of the grid is marked in the tables. Then the chosen rate runs with the fresh "
            f"seeds {_listed(design.seeds)}; only these are evidence (`--seeds` adds more, and "
            "results name how many there are). The same validation data serve to choose and to "
            "judge, for every method alike. A predicted method searches the grid of its plain "
            "form. Usual rates of AdamW and of SGD (with Nesterov or without) are in the table of "
            "workloads; those of the others, in multiples of AdamW's:",
            WIDTH,
        ),
        "",
        "| " + " | ".join(OPTIMIZERS[name][0] for name in SCALES) + " |",
        "|" + "---:|" * len(SCALES),
        "| " + " | ".join(f"{scale:g}" for scale in SCALES.values()) + " |",
        "",
        "A seed fixes initial weights, batches, crops and dropout, the same for every method. Runs",
        "are compared seed by seed, and only if they were computed in the same environment",
        "(hardware, Python, torch, weightcast). No run is dropped: a diverged one is reported,",
        "and its method is then called neither better nor worse.",
        "",
        "Within a round all workloads take turns, seed by seed, so that a stop at any time leaves",
        "evidence on all of them; a round is searched and measured before the next one begins.",
        "",
        "## What is compared",
        "",
        "The primary quantity is the validation loss at the end. Differences are of its",
        "logarithm, paired by seed, shown in per cent, with the 95% t interval over the seeds.",
        "Beside a method's workloads stands the mean of their means, with its t interval",
        "(Satterthwaite's degrees of freedom); it speaks of these workloads, not of all. Variants",
        "of a workload (another β or batch size) have a table of their own.",
        "",
        "Each question below is one family of comparisons. Its p values (paired t tests on the",
        "logarithms) are corrected by Holm over all its methods and workloads, those of the means",
        "over all its methods. **Better** or **worse** is said only where the corrected p is below",
        "0.05.",
        "",
        "| Question | Compared with | Methods |",
        "|---|---|---|",
    ]
    for question in (*QUESTIONS, VARIANTS):
        methods = ", ".join(METHODS[name].label for name in question.methods)
        lines.append(f"| {question.text} | {METHODS[question.reference].label} | {methods} |")
    lines += [
        "",
        "Beside these stand, for every method and workload:",
        "",
        "- final and best validation loss and metric, with their 95% t intervals;",
        "- steps to AdamW's final loss of the same seed, as a share of AdamW's steps: the median",
        "  over the seeds, in which a run that never gets there counts as later than all others,",
        "  and between which order statistics it lies with 95% confidence or, with too few seeds",
        "  for that, the whole range and its confidence;",
        "- the same per hour: that share times the ratio of the CPU seconds of a whole step,",
        "  evaluations included;",
        "- what it keeps beside the weights (optimizer state, and a forecast's saved copy), in",
        "  multiples of their bytes, without gradients and temporary tensors.",
        "",
        "What this cannot tell: large models, long training, tasks of other kinds, learning rates",
        "between the grid's (a factor of 3 apart), schedules other than these.",
    ]
    return "\n".join(lines) + "\n"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _listed(numbers: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
