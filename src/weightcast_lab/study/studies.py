"""The studies as data: workloads x methods x learning rates x seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.methods.method import Method
from weightcast_lab.study.workloads import LATE, SIX, WORKLOADS, Workload

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


def family(name: str) -> tuple[Method, ...]:
    """An optimizer, plain and predicted."""
    return (Method(name), Method(name, 1.0), Method(name, 3.0))


def plain_and_heavy(*optimizers: str) -> tuple[Method, ...]:
    """With the usual momentum, and with heavy momentum."""
    return tuple(Method(name, beta1=beta1) for name in optimizers for beta1 in (None, HEAVY))


def ahead_of(*optimizers: str, delays: float = 1.0, decaying: bool = False) -> tuple[Method, ...]:
    """Predicted so many delays ahead, with either momentum."""
    return tuple(
        replace(method, steps=delays, decaying=decaying, in_delays=True)
        for method in plain_and_heavy(*optimizers)
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
            (ADAMW, NADAMW, *family("sgd"), Method("nesterov")),
            (*family("rmsprop"), *family("radam")),
            (
                *(Method("schedule_free"), Method("lookahead")),
                *(*family("muon"), Method("muon_nesterov")),
            ),
            (*family("lion"), *family("adagrad")),
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
            (*plain_and_heavy("adamw", "nadamw"), *ahead_of("adamw")),
            (*plain_and_heavy("sgd"), *ahead_of("sgd", "nadamw")),
            (
                *ahead_of("adamw", "nadamw", delays=0.5),
                *ahead_of("adamw", "nadamw", decaying=True),
            ),
            (
                *ahead_of("sgd", delays=0.5),
                *ahead_of("sgd", decaying=True),
                *ahead_of("adamw", "nadamw", "sgd", delays=2.0),
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
