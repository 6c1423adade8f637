"""What is compared with what: a study's runs of two methods, seed by seed, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from weightcast_lab.results.loading import Results, StoredRun
from weightcast_lab.results.measures import distinct, finished, pairs
from weightcast_lab.study.questions import UNDELAYED, UNDELAYED_LABEL

REFERENCE = "adamw"

MISSING = "missing"
"""The problem of a method that has no runs."""


def series_of(experiment: Results) -> str:
    """The name that experiments have in common which differ in their delay alone; or empty."""
    return str(experiment.get("series", ""))  # results from before there were delays have none


def with_undelayed(experiment: Results, others: Iterable[Results]) -> Results:
    """The experiment, and with it the runs of AdamW without delay as a method of its own."""
    same = (e for e in others if series_of(e) == series_of(experiment) and e["delay"] == 0)
    base = next(same, None)
    key = None if base is None else key_of(base, REFERENCE)
    if base is None or key is None:
        return experiment
    environments = distinct([*experiment["environments"], *base["environments"]])
    places = [environments.index(environment) for environment in base["environments"]]
    runs = [
        run | {"method": UNDELAYED, "environment": [places[n] for n in run["environment"]]}
        for run in base["runs"]
        if run["method"] == key
    ]
    name = {"name": UNDELAYED, "label": UNDELAYED_LABEL}
    return experiment | {
        "methods": [*experiment["methods"], {"key": UNDELAYED, **name}],
        "wanted": [*experiment["wanted"], name],
        "environments": environments,
        "runs": [*experiment["runs"], *runs],
    }


def at_adamws_rate(experiment: Results) -> list[Results]:
    """The search's runs at the rate that was chosen for AdamW, as an experiment of their own.

    None if they came from several environments: the search does not say which from which.
    """
    search = experiment["search"]
    rates = {m["name"]: m["learning rate"] for m in experiment["methods"]}
    tried = {
        entry["name"]: entry["final loss"]
        for entry in search["tried"]
        if entry["learning rate"] == rates.get(REFERENCE)
    }
    if REFERENCE not in tried or len(search["environments"]) != 1:
        return []
    runs = [
        {
            "method": name,
            "seed": seed,
            "environment": [0],
            "diverged_at": None if loss is not None else 0,
            "history": {"validation_loss": [loss]},
        }
        for name, losses in tried.items()
        for seed, loss in zip(search["seeds"], losses, strict=True)
    ]
    methods = [{"key": name, "name": name} for name in tried]
    return [
        experiment
        | {
            "methods": methods,
            "seeds": search["seeds"],
            "environments": search["environments"],
            "runs": runs,
        }
    ]


def key_of(experiment: Results, name: str) -> str | None:
    """The method's key at its chosen learning rate, if that is chosen."""
    return next((m["key"] for m in experiment["methods"] if m["name"] == name), None)


def paired(experiment: Results, name: str, reference: str) -> list[tuple[StoredRun, StoredRun]]:
    """The finished runs of two methods, each at its chosen rate, seed by seed."""
    own, base = key_of(experiment, name), key_of(experiment, reference)
    return [] if own is None or base is None else pairs(experiment, own, base)


def changes_of(experiment: Results, name: str, reference: str) -> list[float]:
    """Changes of the logarithm of the final loss, seed by seed."""
    return [
        math.log(_final_loss(run) / _final_loss(other))
        for run, other in paired(experiment, name, reference)
    ]


def _final_loss(run: StoredRun) -> float:
    return float(run["history"]["validation_loss"][-1])


def final_losses(experiment: Results, name: str) -> list[float]:
    """Losses of a method's finished runs; none if any run diverged, since the rest would flatter.

    Seeds in order.
    """
    key = key_of(experiment, name)
    if key is None or "diverged" in problem_of(experiment, name):
        return []
    return [_final_loss(run) for run in finished(experiment, key).values()]


def problems_of(experiment: Results, names: Iterable[str]) -> list[str]:
    """Each once."""
    return [p for p in dict.fromkeys(problem_of(experiment, name) for name in names) if p]


def problem_of(experiment: Results, name: str) -> str:
    """Which of a method's final runs are not in its numbers, and why; empty if all are."""
    if all(wanted["name"] != name for wanted in experiment["wanted"]):
        return ""
    key, seeds = key_of(experiment, name), len(experiment["seeds"])
    own = [run for run in experiment["runs"] if run["method"] == key]
    diverged = [run for run in own if run["diverged_at"] is not None]
    parts = []
    if diverged:
        parts.append(f"{len(diverged)} of {seeds} diverged")
    if len(own) < seeds:
        parts.append(MISSING if not own else f"{seeds - len(own)} of {seeds} missing")
    return ", ".join(parts)
