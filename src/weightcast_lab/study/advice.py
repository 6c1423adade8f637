"""What a user should set, from the corrected means over the workloads alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightcast_lab.results.statistics import Interval
from weightcast_lab.study.answers import Answer, AnswerRow, heaviest

Percent = Callable[[Interval], str]


def recommendations(found: Sequence[Answer], percent: Percent) -> list[str]:
    """What follows for a user, from the corrected means over the workloads alone.

    Each line ends with what holds without the task that moves the means most.
    """
    by_key = {answer.question.key: answer for answer in found}
    lightened = heaviest(found)

    def with_rest(text: str, *about: Answer) -> str:
        rests = [_without(one, lightened.get(one.tasks), percent) for one in about]
        return " ".join([text, *filter(None, rests)])

    said = []
    if (adamw := by_key.get("adamw")) is not None:
        said.append(with_rest(_recommended(adamw, percent), adamw))
    if (look := by_key.get("look-ahead")) is not None:
        row, beyond = look.rows[0], by_key.get("nadamw")
        change = "" if row.overall.change is None else f" ({percent(row.overall.change)})"
        text = f"NAdamW instead of AdamW: {look.verdict}{change}."
        if beyond is not None:
            text += f" Forecasts of AdamW against it: {beyond.verdict}."
        said.append(with_rest(text, look, *([] if beyond is None else [beyond])))
    for key in ("on-nadamw", "sgd", "rmsprop", "radam", "muon", "lion", "adagrad"):
        if key in by_key:
            said.append(with_rest(_recommended(by_key[key], percent), by_key[key]))
    for answer in found:
        delay = answer.question.delay
        if answer.question.key == f"delay-nadamw-{delay}":
            text = f"D = {delay}. Forecasts of AdamW against {answer.reference}: {answer.verdict}."
            text = with_rest(text, answer)
            if (own := by_key.get(f"delay-on-nadamw-{delay}")) is not None:
                text += " " + with_rest(_recommended(own, percent), own)
            said.append(text)
    return said


def _without(answer: Answer, task: str | None, percent: Percent) -> str:
    """What holds on average over the other tasks; empty if none is left out."""
    if task is None:
        return ""
    place, verdict = answer.tasks.index(task), answer.verdict_without(task)
    good = [
        (row.without[place].change, row)
        for row in answer.rows
        if row.without[place].verdict == "better"
    ]
    lowest = min(
        ((change.mean, percent(change), row) for change, row in good if change is not None),
        key=lambda entry: entry[0],
        default=None,
    )
    text = f"Without {task}, against {answer.reference}: {verdict}"
    return text + ("." if lowest is None else f"; lowest {lowest[2].label} ({lowest[1]}).")


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


def _recommended(answer: Answer, percent: Percent) -> str:
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
