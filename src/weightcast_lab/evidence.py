"""What a study's results come to: answers to its questions, and a table of every workload.

The primary quantity is the logarithm of the final validation loss, paired by seed. A question's p
values are one family, corrected by Holm; better or worse is what survives that at 5%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightcast_lab.comparison import distinct
from weightcast_lab.results import Results, Run, finished, measure, pairs, steps_ratio
from weightcast_lab.statistics import (
    Interval,
    MedianInterval,
    holm,
    mean_interval,
    median_interval,
    p_value,
    stratified,
)
from weightcast_lab.study import (
    DELAY_QUESTIONS,
    METHODS,
    QUESTIONS,
    UNDELAYED,
    UNDELAYED_LABEL,
    VARIANTS,
    Question,
)

REFERENCE = "adamw"
LEVEL = 0.05

MISSING = "missing"
"""The problem of a method that has no runs."""


@dataclass(frozen=True)
class Effect:
    """A method against another: the change of the logarithm of the final loss.

    `p` is corrected for the question's family. With a `problem` (diverged or missing runs) there
    may be a change, of the pairs that there are.
    """

    change: Interval | None
    p: float | None
    problem: str = ""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or empty: not shown, or not to be said of runs that diverged."""
        if self.change is None or self.p is None or self.p >= LEVEL or "diverged" in self.problem:
            return ""
        return "better" if self.change.mean < 0 else "worse"


@dataclass(frozen=True)
class AnswerRow:
    """A method on every workload, and its mean over them."""

    name: str
    label: str
    effects: tuple[Effect, ...]
    overall: Effect

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to show: runs compared or diverged, on any workload."""
        return any(e.change is not None or "diverged" in e.problem for e in self.effects)


@dataclass(frozen=True)
class Answer:
    """A question, what was measured, and what follows."""

    question: Question
    reference: str
    workloads: tuple[str, ...]
    rows: tuple[AnswerRow, ...]

    @property
    def begun(self) -> list[AnswerRow]:
        """The rows that have something to show."""
        return [row for row in self.rows if row.is_begun]

    @property
    def verdict(self) -> str:
        """What holds on average over the workloads."""
        if all(row.overall.p is None for row in self.rows):
            return "not tested here"
        parts = []
        for verdict in ("better", "worse"):
            if labels := [row.label for row in self.rows if row.overall.verdict == verdict]:
                all_are = len(labels) == len(self.rows)
                parts.append(verdict if all_are else f"{verdict}: {', '.join(labels)}")
        return "; ".join(parts) or "no difference shown"

    @property
    def reason(self) -> str:
        """The counts that stand behind the verdict."""
        tested = [e for row in self.rows for e in row.effects if e.p is not None]
        better = sum(e.verdict == "better" for e in tested)
        worse = sum(e.verdict == "worse" for e in tested)
        return (
            f"Single comparisons with {self.reference}: {len(tested)}; after correction better: "
            f"{better}, worse: {worse}."
        )


def answers(experiments: Sequence[Results]) -> list[Answer]:
    """The answers to the study's questions, as far as there are runs."""
    main = [e for e in experiments if not (e["variant_of"] or series_of(e))]
    found = [_answer(question, main) for question in QUESTIONS]
    late = [_with_undelayed(e, experiments) for e in experiments if series_of(e)]
    for question in DELAY_QUESTIONS:
        found.append(_answer(question, [e for e in late if e["delay"] == question.delay]))
    bases = {e["variant_of"] for e in experiments if e["variant_of"]}
    if bases:
        related = [e for e in experiments if e["variant_of"] or e["key"] in bases]
        found.append(_answer(VARIANTS, related))
    return [answer for answer in found if answer is not None]


def series_of(experiment: Results) -> str:
    """The name that experiments have in common which differ in their delay alone; or empty."""
    return str(experiment.get("series", ""))  # results from before there were delays have none


def _with_undelayed(experiment: Results, others: Iterable[Results]) -> Results:
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


def asked(found: Iterable[Answer], *keys: str) -> list[Answer]:
    """The answers to the questions of these keys, as far as there are any."""
    return [answer for answer in found if answer.question.key in keys]


def begun(found: Iterable[Answer]) -> list[Answer]:
    """Those that have anything to show."""
    return [answer for answer in found if answer.begun]


def versus_plain(found: Iterable[Answer]) -> list[Answer]:
    """Those that compare forecasts of other optimizers with the plain one."""
    return [
        answer
        for answer in found
        if answer.question.delay is None
        and answer.question.reference != REFERENCE
        and all(METHODS[row.name].optimizer == answer.question.reference for row in answer.rows)
    ]


def _answer(question: Question, experiments: Sequence[Results]) -> Answer | None:
    """None if nothing of it was to be run."""
    labels = {w["name"]: w["label"] for e in experiments for w in e["wanted"]}
    names = [name for name in question.methods if name in labels]
    here = [
        e
        for e in experiments
        if {question.reference, *names} & {w["name"] for w in e["wanted"]} > {question.reference}
    ]
    if not here:
        return None
    changes = {name: [_changes(e, name, question.reference) for e in here] for name in names}
    problems = {name: [_problems(e, (name, question.reference)) for e in here] for name in names}
    single = iter(_corrected(p_value(c) if len(c) > 1 else None for n in names for c in changes[n]))
    means = {name: stratified(changes[name]) for name in names}
    overall = iter(_corrected(None if mean is None else mean[1] for mean in means.values()))
    rows = []
    for name in names:
        effects = tuple(
            Effect(mean_interval(change), next(single), "; ".join(found))
            for change, found in zip(changes[name], problems[name], strict=True)
        )
        mean = means[name]
        several = "; ".join(dict.fromkeys(p for found in problems[name] for p in found))
        rows.append(
            AnswerRow(
                name,
                labels[name],
                effects,
                Effect(None if mean is None else mean[0], next(overall), several),
            )
        )
    return Answer(
        question, labels[question.reference], tuple(e["workload"] for e in here), tuple(rows)
    )


def _corrected(p_values: Iterable[float | None]) -> list[float | None]:
    """Corrected by Holm; None is no test and does not count."""
    values = list(p_values)
    known = iter(holm([p for p in values if p is not None]))
    return [None if p is None else next(known) for p in values]


def key_of(experiment: Results, name: str) -> str | None:
    """The method's key at its chosen learning rate, if that is chosen."""
    return next((m["key"] for m in experiment["methods"] if m["name"] == name), None)


def _pairs(experiment: Results, name: str, reference: str) -> list[tuple[Run, Run]]:
    own, base = key_of(experiment, name), key_of(experiment, reference)
    return [] if own is None or base is None else pairs(experiment, own, base)


def _changes(experiment: Results, name: str, reference: str) -> list[float]:
    return [
        math.log(_final_loss(run) / _final_loss(other))
        for run, other in _pairs(experiment, name, reference)
    ]


def _final_loss(run: Run) -> float:
    return float(run["history"]["validation_loss"][-1])


def final_losses(experiment: Results, name: str) -> list[float]:
    """Of a method's finished runs; none if any of its runs diverged, since the rest would flatter.

    Seeds in order.
    """
    key = key_of(experiment, name)
    if key is None or "diverged" in problem_of(experiment, name):
        return []
    return [_final_loss(run) for run in finished(experiment, key).values()]


def _problems(experiment: Results, names: Iterable[str]) -> list[str]:
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


# --- every workload ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkloadRow:
    """A method's numbers on a workload.

    `steps` and `hours` are to AdamW's final loss, as shares of AdamW's; `cost` is of a step, in
    AdamW's; `memory` is beside the weights, in their bytes.
    """

    label: str
    learning_rate: float | None
    edge: str
    values: dict[str, Interval | None]
    steps: MedianInterval | None
    hours: MedianInterval | None
    cost: float | None
    memory: float | None
    problem: str


def workload_rows(experiment: Results) -> list[WorkloadRow]:
    """All methods that were to be run on a workload."""
    return [_workload_row(experiment, w["name"], w["label"]) for w in experiment["wanted"]]


QUANTITIES = ("final loss", "best loss", "final metric", "best metric")


def _workload_row(experiment: Results, name: str, label: str) -> WorkloadRow:
    key = key_of(experiment, name)
    method: dict[str, Any] = next((m for m in experiment["methods"] if m["key"] == key), {})
    runs = list(finished(experiment, key).values()) if key else []
    higher = experiment["metric"]["higher_is_better"]
    measured = [measure(run, higher) for run in runs]
    both = _pairs(experiment, name, REFERENCE)
    steps = [steps_ratio(run, other) for run, other in both]
    cost = _median(
        _seconds(experiment, run) / _seconds(experiment, other)
        for run, other in both
        if run.get("processor") == other.get("processor")  # seeds may be compared, speeds not
    )
    memories = [run["memory"] for run in runs if "memory" in run]
    return WorkloadRow(
        label=label,
        learning_rate=method.get("learning rate"),
        edge=method.get("edge", ""),
        values={q: mean_interval([m[q] for m in measured]) for q in QUANTITIES},
        steps=median_interval(steps),
        hours=None
        if cost is None
        else median_interval([None if share is None else share * cost for share in steps]),
        cost=cost,
        memory=_median(memories),
        problem=problem_of(experiment, name),
    )


def _seconds(experiment: Results, run: Run) -> float:
    """Of one step, evaluations included: of the process on a CPU, else on the clock."""
    devices = {experiment["environments"][n]["device"] for n in run["environment"]}
    seconds = run["cpu_seconds"] if devices == {"cpu"} else run["history"]["seconds"][-1]
    return float(seconds) / float(run["history"]["step"][-1])


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.median(found)) if found else None


# --- what to set ---------------------------------------------------------------------------------


def recommendations(found: Sequence[Answer], percent: Callable[[Interval], str]) -> list[str]:
    """What follows for a user, from the corrected means over the workloads alone."""
    by_key = {answer.question.key: answer for answer in found}
    said = []
    if (adamw := by_key.get("adamw")) is not None:
        said.append(_recommended(adamw, percent))
    if (look := by_key.get("look-ahead")) is not None:
        row, beyond = look.rows[0], by_key.get("nadamw")
        change = "" if row.overall.change is None else f" ({percent(row.overall.change)})"
        text = f"NAdamW instead of AdamW: {look.verdict}{change}."
        if beyond is not None:
            text += f" Forecasts of AdamW against it: {beyond.verdict}."
        said.append(text)
    for key in ("on-nadamw", "sgd", "rmsprop", "radam", "muon", "lion", "adagrad"):
        if key in by_key:
            said.append(_recommended(by_key[key], percent))
    for answer in found:
        delay = answer.question.delay
        if answer.question.key == f"delay-nadamw-{delay}":
            text = f"D = {delay}. Forecasts of AdamW against {answer.reference}: {answer.verdict}."
            if (own := by_key.get(f"delay-on-nadamw-{delay}")) is not None:
                text += f" {_recommended(own, percent)}"
            said.append(text)
    return said


def _places(answer: Answer, row: AnswerRow, verdict: str) -> list[str]:
    """The workloads on which a row is better, or worse."""
    both = zip(answer.workloads, row.effects, strict=True)
    return [workload for workload, effect in both if effect.verdict == verdict]


def _best_in_places(answer: Answer) -> str:
    """The row that is better on most workloads, where none is on average."""

    def lead(row: AnswerRow) -> int:
        return len(_places(answer, row, "better")) - len(_places(answer, row, "worse"))

    best = max(answer.rows, key=lead)
    if not (better := _places(answer, best, "better")):
        return "there is nothing to set."
    worse = _places(answer, best, "worse")
    where = f"worse on {'; '.join(worse)}" if worse else "shown to be worse on none"
    advice = "worth a comparison on your own" if lead(best) > 0 else "not to be recommended"
    return (
        f"{best.label} is better on {len(better)} of {len(best.effects)} tasks "
        f"({'; '.join(better)}) and {where}: {advice}."
    )


def _recommended(answer: Answer, percent: Callable[[Interval], str]) -> str:
    if answer.verdict == "not tested here":
        return f"{answer.reference}: not tested here."
    good = [
        (row.overall.change, row)
        for row in answer.rows
        if row.overall.verdict == "better" and row.overall.change is not None
    ]
    if not good:
        return (
            f"{answer.reference}: no forecast is shown to improve it on average; "
            + _best_in_places(answer)
        )
    change, best = min(good, key=lambda pair: pair[0].mean)
    worse = _places(answer, best, "worse")
    where = f"; but worse on {'; '.join(worse)}" if worse else "; shown to be worse on none"
    return (
        f"{answer.reference}: {best.label} has the lowest mean of those that are better "
        f"({percent(change)}){where}."
    )
