"""The studies as data: workloads x methods x learning rates x seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.methods.method import Method, methods_named
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.study.workloads import LATE, SIX, WORKLOADS

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

    def rates(self, workload: Recipe, method: Method) -> tuple[float, ...]:
        """The learning rates of the grid: the same for a method plain and predicted."""
        return self._rates(workload, method, self.multiples)

    def further_rates(self, workload: Recipe, method: Method) -> tuple[float, ...]:
        """The learning rates beyond the grid."""
        return self._rates(workload, method, self.further)

    def _rates(
        self, workload: Recipe, method: Method, multiples: tuple[float, ...]
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
        """How many runs choose the learning rate of a method on a workload within the grid."""
        return len(self.multiples) * len(self.search_seeds)

    @property
    def runs(self) -> int:
        """How many runs a method has on a workload whose best rate is at no edge of the grid."""
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
        """The methods of all rounds."""
        return tuple(method for one in self.rounds for method in one)

    @property
    def runs(self) -> int:
        """How many runs all methods have on all workloads."""
        cells = sum(WORKLOADS[key].takes(m) for key in self.workloads for m in self.methods)
        return cells * self.design.runs


@dataclass(frozen=True)
class Round:
    """Methods that are searched and measured together, and on what."""

    label: str
    workloads: tuple[str, ...]
    methods: tuple[Method, ...]


HEAVY = 0.99
"""The momentum of Ajanthan et al. (ICML 2025) for late gradients; else it is 0.9."""


def _rounds(*names: str) -> tuple[tuple[Method, ...], ...]:
    return tuple(map(methods_named, names))


STUDIES = {
    "core": Study(
        "AdamW predicted so many steps ahead, its controls, and NAdamW",
        SIX,
        _rounds(
            "adamw adamw-s1 adamw-s3 nadamw",
            "adamw-s0.5 adamw-s2 adamw-s5 adamw-s8",
            "adamw-s3-decaying adamw-sinf-decaying adamw-s-1 nadamw-s1",
        ),
    ),
    "optimizers": Study(
        "other optimizers: plain, predicted, and in their own Nesterov form where there is one",
        SIX,
        _rounds(
            "adamw nadamw sgd sgd-s1 sgd-s3 nesterov",
            "rmsprop rmsprop-s1 rmsprop-s3 radam radam-s1 radam-s3",
            "schedule_free lookahead muon muon-s1 muon-s3 muon_nesterov",
            "lion lion-s1 lion-s3 adagrad adagrad-s1 adagrad-s3",
        ),
    ),
    "betas": Study(
        "one task with another β₁, another β₂ and another batch size",
        ("text-lstm", "text-lstm-beta1", "text-lstm-beta2", "text-lstm-batch"),
        _rounds("adamw adamw-s3 nadamw", "adamw-s1 adamw-s8"),
    ),
    "delay": Study(
        "gradients that are applied D steps late: what it costs, and what a forecast restores",
        tuple(LATE),
        _rounds(
            "adamw adamw-b0.99 nadamw nadamw-b0.99 adamw-s1D adamw-b0.99-s1D",
            "sgd sgd-b0.99 sgd-s1D sgd-b0.99-s1D nadamw-s1D nadamw-b0.99-s1D",
            "adamw-s0.5D adamw-b0.99-s0.5D nadamw-s0.5D nadamw-b0.99-s0.5D "
            "adamw-s1D-decaying adamw-b0.99-s1D-decaying "
            "nadamw-s1D-decaying nadamw-b0.99-s1D-decaying",
            "sgd-s0.5D sgd-b0.99-s0.5D sgd-s1D-decaying sgd-b0.99-s1D-decaying "
            "adamw-s2D adamw-b0.99-s2D nadamw-s2D nadamw-b0.99-s2D sgd-s2D sgd-b0.99-s2D",
        ),
        Design((0.03, 0.1, 0.3, 1.0), (0.01, 0.003, 3.0, 10.0), search_seeds=(100,)),
    ),
    "smoke": Study(
        "seconds, to see that it all runs; no evidence",
        ("smoke-digits", "smoke-batch"),
        _rounds("adamw adamw-s1", "adamw-s-1 nadamw"),
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
