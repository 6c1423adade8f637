"""What runs came to, method by method and seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from weightcast_lab.results.loading import Results, StoredRun
from weightcast_lab.results.statistics import steps_to_target

LOSS_DECIMALS = 4


def finished(results: Results, key: str) -> dict[int, StoredRun]:
    """The runs of a method that came to their end, by seed."""
    runs = {run["seed"]: run for run in results["runs"] if run["method"] == key}
    return {
        seed: runs[seed]
        for seed in results["seeds"]
        if seed in runs and runs[seed]["diverged_at"] is None
    }


def pairs(results: Results, key: str, reference: str) -> list[tuple[StoredRun, StoredRun]]:
    """The finished runs of two methods, seed by seed.

    The seeds share initial weights and batches, so what they have in common cancels; but only in
    one environment: elsewhere the same seed gives other numbers.
    """
    own, base = finished(results, key), finished(results, reference)
    both = [(own[seed], base[seed]) for seed in own if seed in base]
    places = list(map(place_of, results["environments"]))

    def where(run: StoredRun) -> list[dict[str, str]]:
        return [places[number] for number in run["environment"]]

    return [(run, other) for run, other in both if where(run) == where(other)]


def place_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What of an environment changes the last digits of a loss: not this project's version."""
    return {name: value for name, value in environment.items() if name != "weightcast"}


def measure(run: StoredRun, higher_is_better: bool) -> dict[str, float]:
    """What a finished run has come to, by key of quantity."""
    losses, metrics = run["history"]["validation_loss"], run["history"]["metric"]
    return {
        "final loss": losses[-1],
        "best loss": min(losses),
        "final metric": metrics[-1],
        "best metric": (max if higher_is_better else min)(metrics),
        **run["test"],
    }


def steps_ratio(run: StoredRun, reference: StoredRun) -> float | None:
    """Steps to the reference's final loss, as a share of the reference's steps."""
    target = reference["history"]["validation_loss"][-1]
    steps = steps_to_target(run["history"]["step"], run["history"]["validation_loss"], target)
    return None if steps is None else steps / reference["history"]["step"][-1]


def machines(results: Results) -> list[str]:
    """The machines and versions of an experiment."""
    return [
        f"{e['hardware']}, Python {e['python']}, torch {e['torch']}, weightcast {e['weightcast']}"
        for e in results["environments"]
    ]


def computed_on(experiments: Sequence[Results]) -> str:
    """A sentence with the machines and versions of all experiments, each once."""
    each = dict.fromkeys(machine for e in experiments for machine in machines(e))
    return f"Computed on {'; and on '.join(each)}."


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in the order of their first appearance."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
