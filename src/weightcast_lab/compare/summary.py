"""A comparison in numbers: means, intervals and paired differences of every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import (
    LOSS_DECIMALS,
    finished,
    machines,
    measure,
    pairs,
    steps_ratio,
)
from weightcast_lab.results.statistics import Interval, mean_interval, median_with_unreached


@dataclass(frozen=True)
class Quantity:
    """Something measured in every run."""

    key: str
    name: str
    decimals: int
    higher_is_better: bool = False


@dataclass(frozen=True)
class Row:
    """A method's results over the seeds, by key of quantity where there are several.

    `differences` are paired with the reference and empty for the reference itself. `steps_ratio`
    is the median over the seeds; `not_reached` of `compared` never came down to the reference's
    final loss; `elsewhere` seeds were computed in another environment than the reference's and are
    not compared. `diverged` are the steps at which runs did.
    """

    key: str
    label: str
    values: dict[str, Interval | None]
    differences: dict[str, Interval | None]
    steps_ratio: float | None
    not_reached: int
    compared: int
    elsewhere: int
    seconds: float | None
    finished: int
    diverged: list[int]
    missing: int

    def problems(self) -> str:
        """Which runs are not in the numbers, and why; empty if all are."""
        runs = self.finished + len(self.diverged) + self.missing
        parts = []
        if self.diverged:
            steps = sorted(set(self.diverged))
            at = f"step {steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "")
            parts.append(f"diverged at {at} ({len(self.diverged)} of {runs})")
        if self.missing:
            parts.append(f"missing ({self.missing} of {runs})")
        return ", ".join(parts)


@dataclass(frozen=True)
class Summary:
    """Everything that the tables show."""

    title: str
    quantities: list[Quantity]
    rows: list[Row]
    seeds: int
    notes: list[str]

    @property
    def reference(self) -> Row:
        """The method that the others are compared with."""
        return self.rows[0]


def summarize(results: Results) -> Summary:
    """Means, intervals and paired differences of every method."""
    metric = results["metric"]
    best = "highest" if metric["higher_is_better"] else "lowest"
    names = {"final metric": f"final {metric['name']}", "best metric": f"{best} {metric['name']}"}
    names |= {name: name for run in results["runs"] for name in run["test"]}
    quantities = [
        Quantity("final loss", "final loss", LOSS_DECIMALS),
        Quantity("best loss", "lowest loss", LOSS_DECIMALS),
        *(
            Quantity(key, name, metric["decimals"], metric["higher_is_better"])
            for key, name in names.items()
        ),
    ]
    rows = [_row(results, quantities, method) for method in results["methods"]]
    seeds = len(results["seeds"])
    return Summary(results["title"], quantities, rows, seeds, _notes(results, rows))


def _row(results: Results, quantities: Sequence[Quantity], method: dict[str, Any]) -> Row:
    higher = results["metric"]["higher_is_better"]
    key, reference = method["key"], results["methods"][0]["key"]
    own, base = finished(results, key), finished(results, reference)
    both = pairs(results, key, reference)
    values = [measure(run, higher) for run in own.values()]
    measured = [(measure(run, higher), measure(other, higher)) for run, other in both]
    ratios = [steps_ratio(run, other) for run, other in both]
    seconds = mean_interval([run["history"]["seconds"][-1] for run in own.values()])
    ends = [run["diverged_at"] for run in results["runs"] if run["method"] == key]
    diverged = [step for step in ends if step is not None]
    return Row(
        key=key,
        label=method["label"],
        values={q.key: mean_interval([v[q.key] for v in values]) for q in quantities},
        differences={}
        if key == reference
        else {
            q.key: mean_interval([mine[q.key] - theirs[q.key] for mine, theirs in measured])
            for q in quantities
        },
        steps_ratio=median_with_unreached(ratios),
        not_reached=ratios.count(None),
        compared=len(both),
        elsewhere=sum(seed in base for seed in own) - len(both),
        seconds=None if seconds is None else seconds.mean,
        finished=len(own),
        diverged=diverged,
        missing=len(results["seeds"]) - len(own) - len(diverged),
    )


def _notes(results: Results, rows: Sequence[Row]) -> list[str]:
    """What a reader must know to judge the numbers."""
    configuration, reference = results["configuration"], rows[0].label
    n = len(results["seeds"])
    own = any(m["learning rate"] != configuration["learning rate"] for m in results["methods"])
    whose = "every method that names none of its own" if own else "every method"
    rate = f"The learning rate is {configuration['learning rate']:g} for {whose}" + (
        ", chosen for plain AdamW; the others might do better with one of their own."
        if results["learning_rate_is_preset"]
        else ", as given; none was tuned."
    )
    scatter = (
        "One seed: there are no intervals, and no difference can be told from chance."
        if n == 1
        else f"{n} seeds. ± is half the 95% t interval of the mean over seeds. Differences are "
        f"paired: each seed's own difference to {reference}, same initial weights, same batches. "
        "A method counts as better or worse only if this interval excludes zero; the intervals "
        "are not corrected for comparing several methods."
    )
    delay = configuration.get("delay", 0)
    late = f"Every gradient is applied {delay} step{'s' if delay > 1 else ''} after it was computed"
    notes = [
        scatter,
        rate,
        *([f"{late}; the last {delay} of a run never are."] if delay else []),
        f"Steps to {reference}'s loss: the first step at which the lowest validation loss so far "
        f"comes down to {reference}'s final one of the same seed (linear between evaluations), "
        f"as a share of {reference}'s steps. The median over seeds, in which a run that never gets "
        "there counts as later than all others.",
        f"Hardware: {'; '.join(machines(results))}. Seconds are of runs that shared the machine "
        "with each other.",
    ]
    for row in rows:
        if row.elsewhere:
            notes.append(
                f"{row.label}: {row.elsewhere} of {n} seeds ran in another environment than "
                f"{reference}'s and are left out of the comparison."
            )
        if problems := row.problems():
            notes.append(f"{row.label}: {problems}; its numbers are of the finished runs only.")
    return notes
