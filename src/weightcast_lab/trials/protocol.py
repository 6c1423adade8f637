"""The second study as data: tasks, candidates, rounds. `page.page()` writes it down for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from weightcast_lab.optimizers import Method
from weightcast_lab.study import SCALES, SGD, Workload

AVERAGES = (0.01, 0.03, 0.1)
"""Shares of a run over which weights are averaged: τ of AdamW's EMA, in run lengths."""

WARMUP = 0.05
"""The share of a run in which a cosine's rate rises."""

LENGTHS = (0.9, 0.8, 0.7)
"""Of the full length: shorter runs, each with a cosine of its own, that measure steps saved."""

SEARCH_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)

LONGER_SEEDS = SEEDS[:3]
"""Of the runs of 28,000 steps."""

COARSE = (-2, 0, 2)
"""Rates that are always tried: √3 to the power of these, times the usual one."""

FARTHEST = 6
"""How far beyond the search goes: a factor of 27 from the usual rate."""

NEAR = 0.02
"""The second search seed is spent on rates whose first ends within 2 % of the best."""


@dataclass(frozen=True)
class Candidate:
    """A method, or AdamW read at an average of its weights, and the momenta that are searched.

    Attributes:
        method: At the optimizer's own momentum, unless it says another.
        momenta: Others: β₁, or the momentum of Muon's matrices.
        averaged: Read at the best of the averages, not at θ.
    """

    method: Method
    momenta: tuple[float, ...] = ()
    averaged: bool = False

    @property
    def name(self) -> str:
        """`adamw-s3`, `adamw-b0.8-s3`, `adamw-average`."""
        return self.method.name + ("-average" if self.averaged else "")

    @property
    def label(self) -> str:
        """A name for people."""
        return self.method.label + (" averaged" if self.averaged else "")

    def at(self, momentum: float | None) -> Candidate:
        """With this momentum; None is the optimizer's own."""
        return replace(self, method=replace(self.method, beta1=momentum), momenta=())

    def rate(self, workload: Workload, power: int) -> float:
        """The usual rate times √3 to that power."""
        optimizer = self.method.optimizer
        if optimizer in SGD:
            usual = workload.sgd_rate
        else:
            usual = SCALES.get(optimizer, 1.0) * workload.learning_rate
        return float(f"{usual * 3 ** (power / 2):.3g}")


class Stage(Enum):
    """What a round does with its candidates."""

    DEFAULTS = "at the usual momentum"
    MOMENTA = "at the best momentum"
    LENGTHS = "at shorter lengths"
    LONGER = "four times as long"


@dataclass(frozen=True)
class Round:
    """Candidates that are searched and measured together."""

    label: str
    workloads: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    stage: Stage = Stage.DEFAULTS


# --- tasks ---------------------------------------------------------------------------------------


def _characters(label: str, batch_size: int = 16, **options: Any) -> Workload:
    label = f"Penn Treebank by character, transformer, {label}"
    return Workload(label, "ptb_characters", options, 3e-3, 0.3, batch_size, 10, clip_norm=1.0)


def _images(label: str, network: str) -> Workload:
    options = {
        "network": network,
        "width": 0.125,
        "training_images": 2_000,
        "validation_images": 2_000,
        "test_images": 2_000,
    }
    return Workload(label, "cifar10", options, 3e-3, 0.1, 32, 10)


TASKS = {
    "long": _characters("7,000 steps"),
    "text-lstm": Workload(
        "Documentation, LSTM",
        "text",
        {"training_tokens": 160_000, "drawn": True},
        5e-3,
        1.0,
        32,
        10,
        clip_norm=1.0,
    ),
    "text-transformer": Workload(
        "Documentation, transformer",
        "text",
        {
            "network": "transformer",
            "training_tokens": 200_000,
            "drawn": True,
            "epoch_steps": 100,
        },
        3e-3,
        0.3,
        16,
        10,
        clip_norm=1.0,
    ),
    "ptb-lstm": Workload(
        "Penn Treebank by word, LSTM",
        "ptb",
        {
            "units": 128,
            "dropout": 0.2,
            "vocabulary": 2_000,
            "training_tokens": 42_000,
            "validation_tokens": 30_000,
            "test_tokens": 40_000,
            "drawn": True,
        },
        1e-2,
        2.0,
        20,
        10,
        clip_norm=0.25,
    ),
    "cifar10-bn": _images("CIFAR-10, ResNet-10 with BatchNorm", "resnet10"),
    "cifar10-plain": _images("CIFAR-10, ResNet-10 without BatchNorm", "resnet10_plain"),
}

LONGER = {
    "longer-passes": _characters("28,000 steps of the same text", epoch_steps=2_800),
    "longer-text": _characters(
        "28,000 steps of more text", epoch_steps=2_800, training_tokens=5_000_000
    ),
    "longer-wide": _characters("28,000 steps, twice as wide", epoch_steps=2_800, width=128),
}
"""Four times as long: more passes, more text, or a network that can hold more."""


def _under(task: str, workload: Workload, schedule: str) -> tuple[str, Workload]:
    is_cosine = schedule == "cosine"
    return f"{task}-{schedule}", replace(
        workload,
        label=f"{workload.label}, {schedule}",
        cosine=is_cosine,
        warmup=WARMUP if is_cosine else 0.0,
        averages=AVERAGES,
    )


def shorter(key: str, length: float) -> str:
    """The key of a workload's shorter form."""
    return f"{key}-x{length:g}"


WORKLOADS: dict[str, Workload] = dict(
    _under(task, workload, schedule)
    for task, workload in (TASKS | LONGER).items()
    for schedule in ("cosine", "constant")
    if schedule == "cosine" or task in TASKS
)
WORKLOADS |= {
    shorter(key, length): replace(
        WORKLOADS[key],
        label=f"{WORKLOADS[key].label}, {length:g} of the length",
        epochs=round(length * WORKLOADS[key].epochs),
    )
    for key in ("long-cosine", "text-lstm-cosine", "text-transformer-cosine")
    for length in LENGTHS
}
"""Every task under every schedule, by key."""

SHORT = tuple(task for task in TASKS if task != "long")

# --- candidates ----------------------------------------------------------------------------------

_BETAS, _MUON = (0.5, 0.8, 0.95), (0.9, 0.98)


def _adam(optimizer: str, *steps: float | None) -> tuple[Candidate, ...]:
    return tuple(Candidate(Method(optimizer, s), _BETAS) for s in steps)


def _muon(optimizer: str, *steps: float | None, part: str = "") -> tuple[Candidate, ...]:
    return tuple(Candidate(Method(optimizer, s, part=part), _MUON) for s in steps)


def _plain(optimizer: str, *steps: float | None) -> tuple[Candidate, ...]:
    return tuple(Candidate(Method(optimizer, s)) for s in steps)


ADAMW = (
    *_adam("adamw", None, 3.0),
    *_adam("nadamw_mu", None),
    Candidate(Method("adamw"), _BETAS, averaged=True),
)
ADAMW_TOO = (*_adam("adamw", 1.0), *_adam("nadamw", None))
MUON = (
    *_muon("muon_nesterov", None),
    *_muon("muon_nesterov", 3.0, part="rest"),
    *_muon("muon", 3.0),
)
MUON_TOO = (
    *_muon("muon_nadamw", None),
    *_muon("muon", None, 1.0),
    *_muon("muon", 3.0, part="matrices"),
    *_muon("muon", 3.0, part="rest"),
    *(one for ahead in (1, 3, 8) for one in _muon(f"muon_inside{ahead}", None)),
)
OTHERS = (
    *_plain("adam", None, 1.0, 3.0),
    *_plain("adabelief", None, 1.0, 3.0),
    *_plain("radam", None, 3.0),
    *_plain("soap", None, 3.0),
    *_plain("sgd", None, 1.0),
    *_plain("nesterov", None),
    *_plain("schedule_free", None),
    *_plain("lookahead", None),
)
CANDIDATES = {c.name: c for c in (*ADAMW, *ADAMW_TOO, *MUON, *MUON_TOO, *OTHERS)}


def _on(tasks: tuple[str, ...], schedule: str) -> tuple[str, ...]:
    return tuple(f"{task}-{schedule}" for task in tasks)


def _rounds() -> Iterator[Round]:
    """In the order in which they are computed, so that a stop at any time leaves most."""
    long, short, text = ("long-cosine",), _on(SHORT, "cosine"), ("text-lstm", "text-transformer")
    adamw, muon = (*ADAMW, *ADAMW_TOO), (*MUON, MUON_TOO[0])
    yield Round("the long task, AdamW and Muon", long, (*ADAMW, *MUON))
    yield Round("short tasks, AdamW", short, adamw)
    yield Round("the long task, their other forms", long, (*ADAMW_TOO, *MUON_TOO))
    yield Round("the long task, momenta", long, (*ADAMW, *MUON), Stage.MOMENTA)
    yield Round("the long task, lengths", long, (*ADAMW, *MUON), Stage.LENGTHS)
    yield Round("short tasks, AdamW, momenta", short, adamw, Stage.MOMENTA)
    yield Round("short tasks, AdamW, lengths", _on(text, "cosine"), ADAMW, Stage.LENGTHS)
    yield Round("constant rate, AdamW", _on(tuple(TASKS), "constant"), adamw)
    yield Round("28,000 steps", _on(tuple(LONGER), "cosine"), (*ADAMW, *MUON), Stage.LONGER)
    yield Round("short tasks, Muon", short, muon)
    yield Round(
        "constant rate, AdamW, momenta", _on(tuple(TASKS), "constant"), adamw, Stage.MOMENTA
    )
    yield Round(
        "the long task, momenta of other forms", long, (*ADAMW_TOO, *MUON_TOO), Stage.MOMENTA
    )
    yield Round("short tasks, Muon, momenta", short, muon, Stage.MOMENTA)
    yield Round("other optimizers", _on(tuple(TASKS), "cosine"), OTHERS)


ROUNDS = tuple(_rounds())

# --- questions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Candidates against a reference: one family of comparisons.

    `primary` names the one comparison that the family is about; every other is secondary.
    """

    key: str
    text: str
    schedule: str
    reference: str
    candidates: tuple[str, ...]
    primary: str


QUESTIONS = (
    Question(
        "nadamw",
        "Does a forecast of AdamW beat NAdamW with a constant μ?",
        "cosine",
        "nadamw_mu",
        ("adamw-s3", "adamw-s1", "nadamw", "adamw"),
        "adamw-s3",
    ),
    Question(
        "adamw",
        "Does a forecast of AdamW beat AdamW?",
        "cosine",
        "adamw",
        ("adamw-s3", "adamw-s1", "adamw-average"),
        "adamw-s3",
    ),
    Question(
        "muon",
        "Does a forecast of Muon beat Muon-Nesterov whose AdamW part is forecast too?",
        "cosine",
        "muon_nesterov-s3-rest",
        ("muon-s3", "muon-s1", "muon_nesterov", "muon_nadamw", "muon"),
        "muon-s3",
    ),
    Question(
        "place",
        "Muon: does the look-ahead belong inside the orthogonalisation or outside?",
        "cosine",
        "muon-s3-matrices",
        ("muon_inside3", "muon_inside1", "muon_inside8", "muon_nesterov", "muon-s3-rest"),
        "muon_inside3",
    ),
    Question(
        "average",
        "Constant rate: does a forecast of AdamW beat an average of AdamW's weights?",
        "constant",
        "adamw-average",
        ("adamw-s3", "adamw-s1", "nadamw_mu", "nadamw", "adamw"),
        "adamw-s3",
    ),
)
