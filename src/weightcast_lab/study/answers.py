"""What a study's results come to: answers to its questions.

The primary quantity is the logarithm of the final validation loss, paired by seed. The p values of
a question, or of several whose rows share a table, are one family, corrected by Holm; better or
worse is what survives that at 5%.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightcast_lab.results.loading import Results
from weightcast_lab.results.statistics import Interval, holm, mean_interval, p_value, stratified
from weightcast_lab.study.pairs import (
    REFERENCE,
    at_adamws_rate,
    changes_of,
    problems_of,
    series_of,
    with_undelayed,
)
from weightcast_lab.study.questions import (
    DELAY_QUESTIONS,
    METHODS,
    QUESTIONS,
    UNTUNED,
    VARIANTS,
    Question,
)

LEVEL = 0.05


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
    """A method on every workload, its mean over them, and the mean without each of them in turn."""

    name: str
    label: str
    effects: tuple[Effect, ...]
    overall: Effect
    without: tuple[Effect, ...]

    @property
    def is_begun(self) -> bool:
        """Whether there is anything to show: runs compared or diverged, on any workload."""
        return any(e.change is not None or "diverged" in e.problem for e in self.effects)


@dataclass(frozen=True)
class Answer:
    """A question, what was measured, and what follows.

    `tasks` are the workloads by the names that they have whatever their delay, and `corrected` how
    many single comparisons were corrected together, those of other questions among them.
    """

    question: Question
    reference: str
    workloads: tuple[str, ...]
    tasks: tuple[str, ...]
    corrected: int
    rows: tuple[AnswerRow, ...]

    @property
    def begun(self) -> list[AnswerRow]:
        """The rows that have something to show."""
        return [row for row in self.rows if row.is_begun]

    @property
    def verdict(self) -> str:
        """What holds on average over the workloads."""
        return self._judged([row.overall for row in self.rows])

    def verdict_without(self, task: str) -> str:
        """What holds on average over the others."""
        place = self.tasks.index(task)
        return self._judged([row.without[place] for row in self.rows])

    def _judged(self, effects: Sequence[Effect]) -> str:
        """What the rows' effects come to."""
        if all(effect.p is None for effect in effects):
            return "not tested here"
        parts = []
        for verdict in ("better", "worse"):
            both = zip(self.rows, effects, strict=True)
            if labels := [row.label for row, effect in both if effect.verdict == verdict]:
                all_are = len(labels) == len(self.rows)
                parts.append(verdict if all_are else f"{verdict}: {', '.join(labels)}")
        return "; ".join(parts) or "on average no difference shown"

    @property
    def reason(self) -> str:
        """The counts that stand behind the verdict."""
        tested = [e for row in self.rows for e in row.effects if e.p is not None]
        better = sum(e.verdict == "better" for e in tested)
        worse = sum(e.verdict == "worse" for e in tested)
        family = f" (a family of {self.corrected})" if self.corrected > len(tested) else ""
        return (
            f"On single tasks, after correction, better in {better} and worse in {worse} of "
            f"{len(tested)} comparisons with {self.reference}{family}."
        )


def answers(experiments: Sequence[Results]) -> list[Answer]:
    """The answers to the study's questions, as far as there are runs."""
    main = [e for e in experiments if not (e["variant_of"] or series_of(e))]
    late = [with_undelayed(e, experiments) for e in experiments if series_of(e)]
    bases = {e["variant_of"] for e in experiments if e["variant_of"]}
    related = [e for e in experiments if e["variant_of"] or e["key"] in bases]
    measured = [
        *(_measured(question, main) for question in QUESTIONS),
        _measured(UNTUNED, [at_its_rate for e in main for at_its_rate in at_adamws_rate(e)]),
        *(_measured(q, [e for e in late if e["delay"] == q.delay]) for q in DELAY_QUESTIONS),
        _measured(VARIANTS, related if bases else []),
    ]
    families: dict[str, list[_Measured]] = {}
    for one in measured:
        if one is not None:
            families.setdefault(one.question.family or one.question.key, []).append(one)
    found = [answer for family in families.values() for answer in _answered(family)]
    order = [one.question for one in measured if one is not None]
    return sorted(found, key=lambda answer: order.index(answer.question))


def asked(found: Iterable[Answer], *keys: str) -> list[Answer]:
    """The answers to the questions of these keys, as far as there are any."""
    return [answer for answer in found if answer.question.key in keys]


def begun(found: Iterable[Answer]) -> list[Answer]:
    """The answers that have anything to show."""
    return [answer for answer in found if answer.begun]


def versus_plain(found: Iterable[Answer]) -> list[Answer]:
    """The answers that compare forecasts of other optimizers with the plain one."""
    return [
        answer
        for answer in found
        if answer.question.delay is None
        and answer.question.reference != REFERENCE
        and all(METHODS[row.name].optimizer == answer.question.reference for row in answer.rows)
    ]


@dataclass(frozen=True)
class _Measured:
    """What was measured of a question, before any correction: changes by method and workload."""

    question: Question
    reference: str
    workloads: tuple[str, ...]
    tasks: tuple[str, ...]
    labels: dict[str, str]
    changes: dict[str, list[list[float]]]
    problems: dict[str, list[list[str]]]


def _measured(question: Question, experiments: Sequence[Results]) -> _Measured | None:
    """The answer; None if nothing of it was to be run."""
    labels = {w["name"]: w["label"] for e in experiments for w in e["wanted"]}
    names = [name for name in question.methods if name in labels]
    here = [
        e
        for e in experiments
        if {question.reference, *names} & {w["name"] for w in e["wanted"]} > {question.reference}
    ]
    if not here:
        return None
    return _Measured(
        question,
        labels[question.reference],
        tuple(e["workload"] for e in here),
        tuple(series_of(e) or e["workload"] for e in here),
        {name: labels[name] for name in names},
        {name: [changes_of(e, name, question.reference) for e in here] for name in names},
        {name: [problems_of(e, (name, question.reference)) for e in here] for name in names},
    )


def _answered(family: Sequence[_Measured]) -> list[Answer]:
    """The answers to questions that are corrected together."""
    cells = [(one, name) for one in family for name in one.labels]
    corrected = _corrected(
        p_value(change) if len(change) > 1 else None
        for one, name in cells
        for change in one.changes[name]
    )
    single = iter(corrected)
    effects = {
        (one.question, name): tuple(
            Effect(mean_interval(change), next(single), "; ".join(found))
            for change, found in zip(one.changes[name], one.problems[name], strict=True)
        )
        for one, name in cells
    }
    overall = _means(cells, None)
    tasks = dict.fromkeys(task for one in family for task in one.tasks)
    without = {task: _means(cells, task) for task in tasks}
    return [
        Answer(
            one.question,
            one.reference,
            one.workloads,
            one.tasks,
            sum(p is not None for p in corrected),
            tuple(
                AnswerRow(
                    name,
                    label,
                    effects[one.question, name],
                    overall[one.question, name],
                    tuple(without[task][one.question, name] for task in one.tasks),
                )
                for name, label in one.labels.items()
            ),
        )
        for one in family
    ]


def _means(
    cells: Sequence[tuple[_Measured, str]], left_out: str | None
) -> dict[tuple[Question, str], Effect]:
    """Every method's mean over the workloads, but for one of them, corrected over the methods."""
    found, problems = [], []
    for one, name in cells:
        kept = [place for place, task in enumerate(one.tasks) if task != left_out]
        found.append(stratified([one.changes[name][place] for place in kept]))
        each = (problem for place in kept for problem in one.problems[name][place])
        problems.append("; ".join(dict.fromkeys(each)))
    corrected = _corrected(None if mean is None else mean[1] for mean in found)
    return {
        (one.question, name): Effect(None if mean is None else mean[0], p, problem)
        for (one, name), mean, p, problem in zip(cells, found, corrected, problems, strict=True)
    }


def heaviest(found: Iterable[Answer]) -> dict[tuple[str, ...], str]:
    """The task without which the means change most, by the tasks that answers have in common.

    Summed over all rows of those answers. Of fewer than three tasks none is left out.
    """
    moved: dict[tuple[str, ...], dict[str, float]] = {}
    for answer in found:
        if len(answer.tasks) < 3:
            continue
        sums = moved.setdefault(answer.tasks, dict.fromkeys(answer.tasks, 0.0))
        for row in answer.rows:
            for task, rest in zip(answer.tasks, row.without, strict=True):
                if rest.change is not None and row.overall.change is not None:
                    sums[task] += abs(rest.change.mean - row.overall.change.mean)
    return {tasks: max(sums, key=lambda task: sums[task]) for tasks, sums in moved.items()}


def _corrected(p_values: Iterable[float | None]) -> list[float | None]:
    """Corrected by Holm; None is no test and does not count."""
    values = list(p_values)
    known = iter(holm([p for p in values if p is not None]))
    return [None if p is None else next(known) for p in values]
