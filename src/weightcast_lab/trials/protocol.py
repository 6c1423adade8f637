"""The second study as data: candidates and rounds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from weightcast_lab.methods.method import Method, methods_named
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.study.studies import SCALES, SGD
from weightcast_lab.trials.workloads import (
    DELAYS,
    LATE_TASKS,
    LONGER,
    SHORT,
    TASKS,
    late,
)

SEARCH_SEEDS, SEEDS = (100, 101), (0, 1, 2, 3, 4)

FEWER_SEEDS = SEEDS[:3]
"""The seeds of runs of 28,000 steps, and of the planes of momentum and steps."""

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
        method: At its usual momentum: the optimizer's own, unless it says another.
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

    @property
    def usual(self) -> Candidate:
        """The candidate at its usual momentum alone."""
        return replace(self, momenta=())

    @property
    def each(self) -> tuple[Candidate, ...]:
        """The candidate at each of its momenta, the usual one first."""
        methods = (replace(self.method, beta1=momentum) for momentum in self.momenta)
        return (self.usual, *(replace(self, method=m, momenta=()) for m in methods))

    def rate(self, workload: Recipe, power: int) -> float:
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
    PLANE = "at the usual rate"


@dataclass(frozen=True)
class Round:
    """Candidates that are searched and measured together."""

    label: str
    workloads: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    stage: Stage = Stage.DEFAULTS


# --- candidates ----------------------------------------------------------------------------------

_BETAS, _MUON = (0.5, 0.8, 0.95), (0.9, 0.98)


def _candidates(names: str, momenta: tuple[float, ...] = ()) -> tuple[Candidate, ...]:
    return tuple(Candidate(method, momenta) for method in methods_named(names))


ADAMW = (
    *_candidates("adamw adamw-s3 nadamw_mu", _BETAS),
    Candidate(Method("adamw"), _BETAS, averaged=True),
)
ADAMW_TOO = _candidates("adamw-s1 nadamw", _BETAS)
MUON = _candidates("muon_nesterov muon_nesterov-s3-rest muon-s3", _MUON)
MUON_TOO = _candidates(
    "muon_nadamw muon muon-s1 muon-s3-matrices muon-s3-rest muon_inside1 muon_inside3 muon_inside8",
    _MUON,
)
OTHERS = _candidates(
    "adam adam-s1 adam-s3 adabelief adabelief-s1 adabelief-s3 radam radam-s3 soap soap-s3 "
    "sgd sgd-s1 nesterov schedule_free lookahead"
)
LATE = _candidates(
    "adamw adamw-s0.5D adamw-s1D adamw-s2D "
    "nadamw_mu nadamw_mu-b0.99 nadamw_mu-b0.99-s0.5D nadamw_mu-b0.99-s1D "
    "muon muon-s0.5D muon-s1D muon-s2D muon_nesterov "
    "sgd sgd-s0.5D sgd-s1D sgd-s2D nesterov"
)
"""Under delay: forecasts reach as many delays ahead as they say."""


def _smooth(steps: int, *inner: str) -> tuple[Candidate, ...]:
    """The long form in runs of so many steps: τ a 20th or a 50th of them, s = c·τ."""
    found = []
    for optimizer in inner:
        for tau in (steps // 50, steps // 20):
            for c in (0.1, 0.25):
                method = Method(f"smooth_{optimizer}", c * tau, beta1=round(1 - 1 / tau, 6))
                found.append(Candidate(method))
    return tuple(found)


_INNER = ("adamw", "adamw8", "nadamw_mu", "muon_nesterov")
SMOOTH = {steps: _smooth(steps, *_INNER) for steps in (1_000, 7_000)}
"""Walk and look ahead along a slow average of another optimizer's displacements."""

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
"""c: how far to look ahead, in lengths of the optimizer's memory: s = c / (1 - β)."""


def _plane(optimizer: str, nesterov: str, momenta: tuple[float, ...]) -> tuple[Candidate, ...]:
    steps = [(m, round(c / (1 - m), 6) or None) for m in momenta for c in SHARES]
    forms = [Candidate(Method(nesterov, beta1=m)) for m in momenta]
    return (*(Candidate(Method(optimizer, s, beta1=m)) for m, s in steps), *forms)


PLANES = {
    "AdamW": _plane("adamw", "nadamw_mu", (0.8, 0.9, 0.95, 0.98)),
    "Muon": _plane("muon", "muon_nesterov", (0.9, 0.95, 0.98)),
}
"""Momentum by steps, and Nesterov's form at each momentum."""

_ALL = (*ADAMW, *ADAMW_TOO, *MUON, *MUON_TOO, *OTHERS, *LATE)
_ALL += tuple(one for some in (SMOOTH | PLANES).values() for one in some)
CANDIDATES = {name: next(c for c in _ALL if c.name == name) for name in (c.name for c in _ALL)}
"""All candidates by name; of two that differ in their momenta, the one that searches."""


def _on(tasks: tuple[str, ...], schedule: str) -> tuple[str, ...]:
    return tuple(f"{task}-{schedule}" for task in tasks)


def _rounds() -> Iterator[Round]:
    """All rounds, in such an order that a stop at any time leaves most."""
    long, short, text = ("long-cosine",), _on(SHORT, "cosine"), ("text-lstm", "text-transformer")
    adamw, muon = (*ADAMW, *ADAMW_TOO), (*MUON, MUON_TOO[0])
    yield Round("the long task, AdamW and Muon", long, (*ADAMW, *MUON))
    yield Round("short tasks, AdamW", short, adamw)
    yield Round("the long task, momenta", long, (*ADAMW, *MUON), Stage.MOMENTA)
    yield Round("AdamW, β₁ by steps", long, PLANES["AdamW"], Stage.PLANE)
    yield Round("the long task, lengths", long, (*ADAMW, *MUON), Stage.LENGTHS)
    yield Round("the long task, their other forms", long, (*ADAMW_TOO, *MUON_TOO))
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
    yield Round("Muon, momentum by steps", long, PLANES["Muon"], Stage.PLANE)
    others = ("long-cosine-x0.7", "large-batch-cosine", "longer-passes-cosine")
    yield Round("β₁ by steps: shorter, larger, longer", others, PLANES["AdamW"], Stage.PLANE)
    yield Round("the long form, 7,000 steps", long, SMOOTH[7_000])
    yield Round("the long form, 1,000 steps", _on(("text-transformer",), "cosine"), SMOOTH[1_000])
    for delay in DELAYS:
        yield Round(f"late gradients, D = {delay}", tuple(late(t, delay) for t in LATE_TASKS), LATE)


ROUNDS = tuple(_rounds())
