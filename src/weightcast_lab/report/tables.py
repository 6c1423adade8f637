"""Numbers and facts as people read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from weightcast_lab.results.loading import Results
from weightcast_lab.results.statistics import Interval

NOTHING = "–"


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """The number with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def interval_text(interval: Interval | None, decimals: int, *, sign: bool = False) -> str:
    """`0.0321 ± 0.0051`; the sign and its number stay on one line."""
    if interval is None:
        return NOTHING
    text = number(interval.mean, decimals, sign=sign)
    if interval.half_width is None:
        return text
    return f"{text} ±\N{NO-BREAK SPACE}{number(interval.half_width, decimals)}"


def csv_rows(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in CSV; None is an empty cell."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


def mean_and_width(interval: Interval | None) -> tuple[float | None, float | None]:
    """Two cells of CSV."""
    return (None, None) if interval is None else (interval.mean, interval.half_width)


def problem_notes(where: str, problems: Mapping[str, str]) -> list[str]:
    """What is wrong with methods, by their labels: those with the same problem in one note."""
    notes = []
    for problem in filter(None, dict.fromkeys(problems.values())):
        labels = [label for label, own in problems.items() if own == problem]
        whose = "all methods" if len(labels) == len(problems) else ", ".join(labels)
        notes.append(f"{where}: {whose}: {problem}.")
    return notes


def tone(difference: Interval | None, higher_is_better: bool) -> str:
    """`better` or `worse` if the paired interval excludes zero, else empty."""
    if difference is None or not difference.excludes_zero:
        return ""
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def shown(value: object) -> str:
    """A value of a configuration, for people."""
    if isinstance(value, list | tuple):
        return " and ".join(map(shown, value)) or "none"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:g}"
    return "none" if value is None else str(value)


def facts_of(experiments: Sequence[Results], what: str) -> list[str]:
    """How many runs, on which machines."""
    hardware = dict.fromkeys(e["hardware"] for x in experiments for e in x["environments"])
    return [f"{sum(len(e['runs']) for e in experiments)} {what}", *hardware]


def configurations_of(experiments: Sequence[Results], name: str) -> dict[str, str]:
    """Each experiment's configuration in a line, by its name."""
    return {
        e[name]: ", ".join(f"{key} {shown(value)}" for key, value in e["configuration"].items())
        for e in experiments
    }
