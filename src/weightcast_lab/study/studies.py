"""The study as data: workloads x methods x learning rates x seeds, and the questions it answers.

`page()` writes it down as docs/study.md, so that protocol and code cannot differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import torch

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.methods.optimizers import OPTIMIZERS, Hyperparameters, Method


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
        delay: How many steps late every gradient is applied.
        series: The name that workloads have in common which differ in their delay alone; they are
            asked questions of their own.
        cosine, warmup, averages: As in `train.Settings`.
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
    delay: int = 0
    series: str = ""
    cosine: bool = False
    warmup: float = 0.0
    averages: tuple[float, ...] = ()

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of every method."""
        return Hyperparameters(self.betas)

    def takes(self, method: Method) -> bool:
        """Whether the method says anything here: steps in delays need a delay."""
        return self.delay > 0 or not method.in_delays


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

DELAYS = (0, 1, 2, 4, 8, 16)


def _late(key: str, workload: Workload) -> dict[str, Workload]:
    return {
        f"{key}-d{delay}": replace(
            workload, label=f"{workload.label}, D = {delay}", series=workload.label, delay=delay
        )
        for delay in DELAYS
    }


def _shorter(key: str, batch_size: int, epochs: int, **part: int) -> Workload:
    """On a smaller part of the data."""
    whole = WORKLOADS[key]
    return replace(whole, options={**whole.options, **part}, batch_size=batch_size, epochs=epochs)


LATE = {
    **_late("digits", WORKLOADS["digits"]),
    **_late("text-lstm", _shorter("text-lstm", 16, 5, training_tokens=80_000)),
    **_late("text-transformer", _shorter("text-transformer", 16, 4, training_tokens=80_000)),
    **_late(
        "cifar10",
        _shorter("cifar10-bn", 32, 8, training_images=1_200, validation_images=500),
    ),
}
"""Four tasks at every delay, shorter still than the others."""

WORKLOADS |= LATE

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
        further: Multiples beyond it, outwards, tried where the best so far is next to them.
        search_seeds: On which it is searched; besides, they answer `UNTUNED`.
        seeds: At the learning rate that was chosen.
    """

    multiples: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    further: tuple[float, ...] = (0.03, 0.01, 10.0, 30.0)
    search_seeds: tuple[int, ...] = (100, 101)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)

    def rates(self, workload: Workload, method: Method) -> tuple[float, ...]:
        """The learning rates of the grid: the same for a method plain and predicted."""
        return self._rates(workload, method, self.multiples)

    def further_rates(self, workload: Workload, method: Method) -> tuple[float, ...]:
        """Those beyond it."""
        return self._rates(workload, method, self.further)

    def _rates(
        self, workload: Workload, method: Method, multiples: tuple[float, ...]
    ) -> tuple[float, ...]:
        if method.optimizer in SGD:
            # its step is that of its momentum: 1 / (1 - μ) gradients
            momentum = 0.9 if method.beta1 is None else method.beta1
            usual = workload.sgd_rate * (1 - momentum) / (1 - 0.9)
        else:
            usual = SCALES[method.optimizer] * workload.learning_rate
        return tuple(float(f"{usual * multiple:.3g}") for multiple in multiples)

    @property
    def search_runs(self) -> int:
        """Of every method on every workload, to choose its learning rate within the grid."""
        return len(self.multiples) * len(self.search_seeds)

    @property
    def runs(self) -> int:
        """Of every method on every workload, if its best rate is not at an edge of the grid."""
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

    @property
    def runs(self) -> int:
        """Of all methods on all workloads."""
        cells = sum(WORKLOADS[key].takes(m) for key in self.workloads for m in self.methods)
        return cells * self.design.runs


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


def _plain_and_heavy(*optimizers: str) -> tuple[Method, ...]:
    return tuple(Method(name, beta1=beta1) for name in optimizers for beta1 in (None, HEAVY))


def _ahead(*optimizers: str, delays: float = 1.0, decaying: bool = False) -> tuple[Method, ...]:
    """Predicted so many delays ahead, with either momentum."""
    return tuple(
        replace(method, steps=delays, decaying=decaying, in_delays=True)
        for method in _plain_and_heavy(*optimizers)
    )


HEAVY = 0.99
"""The momentum of Ajanthan et al. (ICML 2025) for late gradients; else it is 0.9."""

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
    "delay": Study(
        "gradients that are applied D steps late: what it costs, and what a forecast restores",
        tuple(LATE),
        (
            (*_plain_and_heavy("adamw", "nadamw"), *_ahead("adamw")),
            (*_plain_and_heavy("sgd"), *_ahead("sgd", "nadamw")),
            (
                *_ahead("adamw", "nadamw", delays=0.5),
                *_ahead("adamw", "nadamw", decaying=True),
            ),
            (
                *_ahead("sgd", delays=0.5),
                *_ahead("sgd", decaying=True),
                *_ahead("adamw", "nadamw", "sgd", delays=2.0),
            ),
        ),
        Design((0.03, 0.1, 0.3, 1.0), (0.01, 0.003, 3.0, 10.0), search_seeds=(100,)),
    ),
    "smoke": Study(
        "seconds, to see that it all runs; no evidence",
        ("smoke-digits", "smoke-batch"),
        ((ADAMW, *_adamw(1.0)), (*_adamw(-1.0), NADAMW)),
        Design((0.3, 1.0), (), search_seeds=(100,), seeds=(0, 1, 2)),
    ),
}


@dataclass(frozen=True)
class Question:
    """Methods against one that they are compared with, by name.

    A question is one family of comparisons: Holm's correction is over all its methods and
    workloads. Questions whose rows stand in one table name one `family`, and are corrected
    together, so that all rows of a column face the same bar. One with a delay is asked of the
    workloads of all series that have this delay.
    """

    key: str
    text: str
    reference: str
    methods: tuple[str, ...]
    delay: int | None = None
    family: str = ""

    @property
    def reference_label(self) -> str:
        """Of what is compared with."""
        return UNDELAYED_LABEL if self.reference == UNDELAYED else METHODS[self.reference].label

    def at(self, delay: int) -> Question:
        """The question, asked of the workloads with this delay."""
        text = self.text.replace("D steps", f"{delay} step{'s' if delay > 1 else ''}")
        return replace(self, key=f"{self.key}-{delay}", text=text, delay=delay)


UNDELAYED, UNDELAYED_LABEL = "undelayed", "AdamW without delay"
"""Plain AdamW on the workload of the same series whose delay is 0."""

METHODS = {m.name: m for study in STUDIES.values() for m in study.methods}
"""All methods of all studies, by name."""

FORWARD = tuple(
    m.name
    for m in sorted(STUDIES["core"].methods, key=lambda m: (m.decaying, m.steps or 0.0))
    if m.optimizer == "adamw" and (m.steps or 0.0) > 0
)
"""AdamW predicted so many steps ahead."""

AGAINST_ADAMW = "against AdamW"
"""The family of the one table that says most: AdamW's forecasts, the control, and NAdamW."""

QUESTIONS = (
    Question("adamw", "Does a forecast improve AdamW?", "adamw", FORWARD, family=AGAINST_ADAMW),
    Question(
        "control",
        "Does a step backwards (s = −1) do the same, as a control?",
        "adamw",
        ("adamw-s-1",),
        family=AGAINST_ADAMW,
    ),
    Question(
        "nadamw",
        "Is a forecast of AdamW more than NAdamW, which looks ahead at no cost?",
        "nadamw",
        FORWARD,
    ),
    Question(
        "look-ahead", "Does NAdamW improve AdamW?", "adamw", ("nadamw",), family=AGAINST_ADAMW
    ),
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

UNTUNED = Question(
    "untuned",
    "I add one line and retune nothing: what does it change at AdamW's own learning rate?",
    "adamw",
    (*FORWARD, "nadamw"),
)
"""Asked of the search's runs at the rate that was chosen for AdamW."""


def _names(methods: Iterable[Method]) -> tuple[str, ...]:
    return tuple(method.name for method in methods)


def _all_ahead(optimizer: str) -> tuple[str, ...]:
    """An optimizer's forecasts under delay, however far."""
    return _names(m for m in STUDIES["delay"].methods if m.optimizer == optimizer and m.in_delays)


AT_EVERY_DELAY = (
    Question(
        "delay-restored",
        "D steps late: what does it cost, and what restores it?",
        UNDELAYED,
        _names((*_plain_and_heavy("adamw", "nadamw"), *_ahead("adamw", "nadamw"))),
    ),
    Question(
        "delay-adamw",
        "D steps late: does a forecast improve AdamW?",
        "adamw",
        _all_ahead("adamw"),
    ),
    Question(
        "delay-nadamw",
        "D steps late: is a forecast of AdamW more than NAdamW with heavy momentum?",
        f"nadamw-b{HEAVY}",
        _all_ahead("adamw"),
    ),
    Question(
        "delay-on-nadamw",
        "D steps late: does a forecast improve NAdamW with heavy momentum?",
        f"nadamw-b{HEAVY}",
        _all_ahead("nadamw"),
    ),
    Question(
        "delay-plain",
        "D steps late: does heavy momentum or NAdamW, plain, improve AdamW?",
        "adamw",
        (f"adamw-b{HEAVY}", "nadamw", f"nadamw-b{HEAVY}"),
    ),
    Question(
        "delay-sgd",
        "D steps late: does a forecast or heavy momentum improve SGD?",
        "sgd",
        (f"sgd-b{HEAVY}", *_all_ahead("sgd")),
    ),
)
"""Asked once for every delay, each time a family of its own."""

DELAY_QUESTIONS = tuple(q.at(delay) for delay in DELAYS if delay for q in AT_EVERY_DELAY)


AGAINST_DELAY = tuple(
    (key, whose, _names((*_plain_and_heavy(*plain), *forecasts)))
    for key, whose, plain, forecasts in (
        (
            *("delay", "AdamW and NAdamW", ("adamw", "nadamw")),
            (*_ahead("adamw", delays=0.5), *_ahead("adamw")),
        ),
        *(
            (
                *(f"delay-{name}", f"{OPTIMIZERS[name][0]} and its forecasts", (name,)),
                (*_ahead(name, delays=0.5), *_ahead(name), *_ahead(name, decaying=True)),
            )
            for name in ("nadamw", "sgd")
        ),
    )
)
"""Figures of the final loss against the delay: file, whose, and the methods that are its lines."""


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
    last = f"{min(design.further):g} or {max(design.further):g}"
    lines = [
        "# The study: its protocol",
        "",
        "Where does forecasting the weights help, by how much, and what should a user set? This",
        "page was written before the runs, from the same data that the runs are made from:",
        "`python -c 'from weightcast_lab import study; print(study.page(), end=\"\")' >",
        "docs/study.md` writes it, and a test holds both together. What is younger than the runs",
        "stands under [amendments](#amendments).",
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
        "Small, at most thirty-five seconds a run on one CPU core, so that there can be many runs;",
        "what holds here need not hold at scale.",
        "",
        *_WORKLOAD_HEADER,
    ]
    shown = [w for name in ("core", "betas") for w in STUDIES[name].workloads]
    lines += [_workload_row(WORKLOADS[key]) for key in dict.fromkeys(shown)]
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
        lines.append(
            f"| `{name}` | {study.about} | {methods} | {len(study.workloads)} | {study.runs:,} |"
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
            "is chosen; a rate at which a run diverges loses to any at which fewer do. Where the "
            "lowest or highest rate is the best, the next one beyond it (about a factor of 3 away) "
            "is tried with the same seeds, until the best lies between two others, or with "
            f"{last} times the usual rate: then it is marked in the tables as an edge. (This rule "
            "alone is younger than the first results: on one task the highest rate of the grid "
            "was AdamW's best, and that of most of its forecasts.) Then the chosen rate runs with "
            f"the fresh seeds {_listed(design.seeds)}; only these are evidence, but for one "
            "question [added later](#amendments) (`--seeds` adds "
            "more, and results name how many there are). The same validation data serve to choose "
            "and to judge, for every method alike. A predicted method searches the grid of its "
            "plain form. Usual rates of AdamW and of SGD (with Nesterov or without) are in the "
            "table of workloads; those of the others, in multiples of AdamW's:",
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
        "Each question below is one family of comparisons, and those that share a table are one",
        "together ([amended](#amendments)). Its p values (paired t tests on the logarithms) are",
        "corrected by Holm over all its methods and workloads, those of the means over all its",
        "methods. **Better** or **worse** is said only where the corrected p is below 0.05.",
        "",
        "| Question | Compared with | Methods |",
        "|---|---|---|",
    ]
    lines += [_question_row(question) for question in (*QUESTIONS, VARIANTS)]
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
        "",
        *_amendments(),
        "",
        *_about_delay(),
    ]
    return "\n".join(lines) + "\n"


def _amendments() -> list[str]:
    together = [q for q in QUESTIONS if q.family == AGAINST_ADAMW]
    sizes = [len(question.methods) * len(SIX) for question in together]
    last, torchs = 980, torch.optim.NAdam([torch.zeros(1)]).defaults["momentum_decay"]
    first_mu, last_mu = (0.9 * (1 - 0.5 * 0.96 ** (step * torchs)) for step in (1, last))
    said = {
        "One bar a column": (
            "Rows that stand in one table are corrected together. "
            f"{_listed([f'“{q.text}”' for q in together])} were three families, of "
            f"{_listed(sizes)} comparisons, whose rows stood in one column of one table; now they "
            f"are one of {sum(sizes)}. It is the stricter of the two ways to do it: the other, "
            "one family a method, would call more forecasts better."
        ),
        "Means without one task": (
            "Beside every mean over tasks stands the mean without the task that moves the means "
            "of these tasks most, whichever that is, and the lowest and highest of the means "
            "without any one. It came out that digits decide the means over six. Verdicts are "
            "those of the mean over all, as before."
        ),
        "Nothing retuned": (
            f"“{UNTUNED.text}” is a question to the search's runs: every method at the learning "
            "rate that was chosen for AdamW, paired by seed, a family of its own. Its methods: "
            f"{', '.join(METHODS[name].label for name in UNTUNED.methods)}."
        ),
        "Test data": (
            "Penn Treebank's test perplexity, which every run measures at its end, is shown "
            "beside validation. Nothing is chosen by it."
        ),
        "What NAdamW is": (
            "`torch.optim.NAdam(…, decoupled_weight_decay=True)`, with its own `momentum_decay` of "
            f"{torchs:g}. This starts the look-ahead's momentum at half of β₁ and lets it grow "
            f"slowly: in these runs μₜ is {first_mu:.2f} in the first step and at most "
            f"{last_mu:.2f} in the last, where the NAdamW of the literature (AlgoPerf's, for one) "
            "has μ = β₁ = 0.9 throughout. In short runs the two are different optimizers; the "
            "other one was not run."
        ),
        "What a seed is": (
            "On the documentation tasks the text is read in its own order and nothing is dropped: "
            "there a seed is an initialisation alone; on Penn Treebank it draws the dropout too. "
            "Intervals of these tasks speak of other initial weights, not of other data."
        ),
        "Where Lookahead is read": (
            "At its fast weights, which are the slow ones after every fifth step. Of the six tasks "
            "that is where training ends on the documentation transformer alone; on the other "
            "five it is read one to three steps past its average."
        ),
    }
    lines = ["## Amendments", "", "Younger than the runs, and made with the results in view:", ""]
    for what, text in said.items():
        lines += wrap(f"- **{what}.** {text}", WIDTH, subsequent_indent="  ")
    return lines


def _about_delay() -> list[str]:
    design = STUDIES["delay"].design
    grid = ", ".join(f"{multiple:g}" for multiple in design.multiples)
    late = {w.series: w for w in LATE.values()}  # the last delay of each
    return [
        "## Delayed gradients",
        "",
        *wrap(
            "In a pipeline without bubbles, or where gradients come from far away, the gradient "
            "that a step applies was computed D steps before. The study `delay` does so in one "
            "process, and has a folder of its own:",
            WIDTH,
        ),
        "",
        "```sh",
        "weightcast study delay --data FOLDER --out results/delay",
        "```",
        "",
        *wrap(
            f"Its workloads run at D = {_listed(DELAYS)}. With a delay, step t computes the "
            "gradient of batch t at the weights of step t, predicted or not, and applies that of "
            "batch t − D; in the first D steps none has arrived and the weights stay, and those "
            "of the last D batches are never applied. Clipping is of the gradient that is "
            "applied.",
            WIDTH,
        ),
        "",
        *_WORKLOAD_HEADER,
        *(_workload_row(replace(w, label=series)) for series, w in late.items()),
        "",
        *wrap(
            "Methods predict so many delays ahead: D/2, D, 2D, or D decaying, which walks Σ β₁ᵏ "
            "(k = 1..D); without delay they are their plain forms and are not run. β₁ of SGD is "
            f"its momentum. β₁ = {HEAVY} is that of Ajanthan et al. (ICML 2025), whose NAdamW is "
            "the strongest published method, so that it is what forecasts of AdamW are compared "
            f"with. The usual rate of SGD with β₁ = {HEAVY} is a tenth of that in the table. Late "
            f"gradients want lower rates: {grid} times the usual ones are searched, with seed "
            f"{design.search_seeds[0]}, and beyond an edge up to {min(design.further):g} and "
            f"{max(design.further):g} times them (a rule younger than the first round, in which "
            "half of the choices were edges, most of them upper ones), then the chosen one runs "
            f"with seeds {_listed(design.seeds)}. The rounds are so ordered that a stop after any "
            "of them leaves evidence at every delay.",
            WIDTH,
        ),
        "",
        *wrap(
            "Each question is asked once for every delay but 0, and is then a family of its own "
            "for Holm's correction; the mean is over the four tasks at that delay. What delay "
            "costs is measured against plain AdamW on the same task and seed at D = 0.",
            WIDTH,
        ),
        "",
        "| Question | Compared with | Methods |",
        "|---|---|---|",
        *map(_question_row, AT_EVERY_DELAY),
    ]


_WORKLOAD_HEADER = (
    "| Workload | Task and options | Batch | Epochs | ÷10 after | Clipping | Usual rate: AdamW "
    "| SGD |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
)


def _workload_row(w: Workload) -> str:
    options = ", ".join(f"{name} {_number(value)}" for name, value in w.options.items())
    cells = [
        *(w.label, f"`{w.task}`" + (f": {options}" if options else "")),
        *(f"{w.batch_size}", f"{w.epochs}", ", ".join(map(str, w.milestones)) or "–"),
        "–" if w.clip_norm is None else f"{w.clip_norm:g}",
        *(f"{w.learning_rate:g}", f"{w.sgd_rate:g}"),
    ]
    return f"| {' | '.join(cells)} |"


def _question_row(question: Question) -> str:
    methods = ", ".join(METHODS[name].label for name in question.methods)
    return f"| {question.text} | {question.reference_label} | {methods} |"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _listed(things: Sequence[object]) -> str:
    return f"{', '.join(map(str, things[:-1]))} and {things[-1]}"
