"""Looking at results: tables for terminal, Markdown and CSV, and one self-contained page."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from weightcast_lab.errors import LabError
from weightcast_lab.figures import DARK, LIGHT, draw, to_image
from weightcast_lab.statistics import (
    Interval,
    mean_interval,
    median_with_unreached,
    paired_difference,
    steps_to_target,
)
from weightcast_lab.store import FORMAT, write_atomically

NOTHING = "–"
LOSS_DECIMALS = 4

Results = dict[str, Any]
Run = dict[str, Any]


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
    not compared.
    """

    key: str
    label: str
    is_reference: bool
    values: dict[str, Interval | None]
    differences: dict[str, Interval | None]
    steps_ratio: float | None
    not_reached: int
    compared: int
    elsewhere: int
    seconds: float | None
    finished: int
    diverged: dict[int, int]
    missing: int

    def problems(self) -> str:
        """Which runs are not in the numbers, and why; empty if all are."""
        runs = self.finished + len(self.diverged) + self.missing
        parts = []
        if self.diverged:
            steps = sorted(set(self.diverged.values()))
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


_KEYS = ("title", "metric", "configuration", "methods", "seeds", "environments", "runs")


def load_results(path: Path) -> list[Results]:
    """The experiments in a `results.json`: one of a comparison, many of a reproduction.

    Raises:
        LabError: it is missing, damaged, or of another version.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            newer = isinstance(content["format"], int) and content["format"] > FORMAT
            raise LabError(
                f"{path} has format {content['format']!r} and this version reads {FORMAT}: "
                + ("upgrade weightcast." if newer else "compute it again with this version.")
            )
        experiments = [
            {key: found[key] for key in _KEYS} | found | {"command": content["command"]}
            for found in content["experiments"]
        ]
        if not experiments:
            raise ValueError
        return experiments
    except FileNotFoundError:
        raise LabError(
            f"{path} does not exist: give the folder of a finished `weightcast compare`."
        ) from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise LabError(
            f"{path} is damaged: the same `weightcast compare` writes it again."
        ) from None


# --- numbers -------------------------------------------------------------------------------------


def summarize(results: Results) -> Summary:
    """Means, intervals and paired differences of every method."""
    metric = results["metric"]
    best = "highest" if metric["higher_is_better"] else "lowest"
    quantities = [
        Quantity("final loss", "final loss", LOSS_DECIMALS),
        Quantity("best loss", "lowest loss", LOSS_DECIMALS),
        Quantity(
            "final metric",
            f"final {metric['name']}",
            metric["decimals"],
            metric["higher_is_better"],
        ),
        Quantity(
            "best metric",
            f"{best} {metric['name']}",
            metric["decimals"],
            metric["higher_is_better"],
        ),
    ]
    tests = dict.fromkeys(name for run in results["runs"] for name in run["test"])
    quantities += [
        Quantity(name, name, metric["decimals"], metric["higher_is_better"]) for name in tests
    ]
    runs = {(run["method"], run["seed"]): run for run in results["runs"]}
    reference = results["methods"][0]["key"]
    rows = [_row(results, quantities, method, runs, reference) for method in results["methods"]]
    summary = Summary(results["title"], quantities, rows, len(results["seeds"]), [])
    return Summary(summary.title, quantities, rows, summary.seeds, _notes(results, summary))


def _measure(run: Run, higher_is_better: bool) -> dict[str, float]:
    losses, metrics = run["history"]["validation_loss"], run["history"]["metric"]
    return {
        "final loss": losses[-1],
        "best loss": min(losses),
        "final metric": metrics[-1],
        "best metric": (max if higher_is_better else min)(metrics),
        **run["test"],
    }


def _row(
    results: Results,
    quantities: Sequence[Quantity],
    method: dict[str, Any],
    runs: dict[tuple[str, int], Run],
    reference: str,
) -> Row:
    def finished(key: str) -> dict[int, Run]:
        mine = {seed: runs[key, seed] for seed in results["seeds"] if (key, seed) in runs}
        return {seed: run for seed, run in mine.items() if run["diverged_at"] is None}

    higher = results["metric"]["higher_is_better"]
    own, base = finished(method["key"]), finished(reference)
    # elsewhere the same seed gives other numbers
    both = [s for s in own if s in base and own[s]["environment"] == base[s]["environment"]]
    values = {seed: _measure(run, higher) for seed, run in own.items()}
    base_values = {seed: _measure(base[seed], higher) for seed in both}
    ratios = [_steps_ratio(own[seed], base[seed]) for seed in both]
    seconds = mean_interval([run["history"]["seconds"][-1] for run in own.values()])
    diverged = {
        run["seed"]: run["diverged_at"]
        for run in runs.values()
        if run["method"] == method["key"] and run["diverged_at"] is not None
    }
    is_reference = method["key"] == reference
    return Row(
        key=method["key"],
        label=method["label"],
        is_reference=is_reference,
        values={q.key: mean_interval([v[q.key] for v in values.values()]) for q in quantities},
        differences={}
        if is_reference
        else {
            q.key: paired_difference(
                [values[seed][q.key] for seed in both],
                [base_values[seed][q.key] for seed in both],
            )
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


def _steps_ratio(run: Run, reference: Run) -> float | None:
    """Steps to the reference's final loss, as a share of the reference's steps."""
    target = reference["history"]["validation_loss"][-1]
    steps = steps_to_target(run["history"]["step"], run["history"]["validation_loss"], target)
    return None if steps is None else steps / reference["history"]["step"][-1]


# --- words ---------------------------------------------------------------------------------------


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


def steps_text(row: Row) -> str:
    """`0.81`, and how many runs never got there."""
    if row.compared == 0:
        return NOTHING
    if row.steps_ratio is None:
        return f"not reached ({row.not_reached} of {row.compared})"
    some = f" ({row.not_reached} of {row.compared} never)" if row.not_reached else ""
    return number(row.steps_ratio, 2) + some


def verdict(row: Row, quantity: Quantity, reference: Row) -> str:
    """What the paired difference says, claiming nothing while its interval contains zero."""
    difference = row.differences[quantity.key]
    if difference is None:
        return f"no pair of finished runs to compare with {reference.label}"
    if difference.half_width is None:
        return f"one seed shows no difference to {reference.label}, whatever the numbers"
    if not difference.excludes_zero:
        return f"no difference to {reference.label} shown"
    better = (difference.mean > 0) == quantity.higher_is_better
    return f"{'better' if better else 'worse'} than {reference.label}"


def _notes(results: Results, summary: Summary) -> list[str]:
    """What a reader must know to judge the numbers."""
    configuration, reference = results["configuration"], summary.reference.label
    n = summary.seeds
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
    notes = [
        scatter,
        rate,
        f"Steps to {reference}'s loss: the first step at which the lowest validation loss so far "
        f"comes down to {reference}'s final one of the same seed (linear between evaluations), "
        f"as a share of {reference}'s steps. The median over seeds, in which a run that never gets "
        "there counts as later than all others.",
        f"Hardware: {_hardware(results)}. Seconds are of runs that shared the machine with each "
        "other.",
    ]
    for row in summary.rows:
        if row.elsewhere:
            notes.append(
                f"{row.label}: {row.elsewhere} of {n} seeds ran in another environment than "
                f"{reference}'s and are left out of the comparison."
            )
        if problems := row.problems():
            notes.append(f"{row.label}: {problems}; its numbers are of the finished runs only.")
    return notes


def _hardware(results: Results) -> str:
    return "; ".join(
        f"{e['hardware']}, Python {e['python']}, torch {e['torch']}, weightcast {e['weightcast']}"
        for e in results["environments"]
    )


# --- tables --------------------------------------------------------------------------------------


def table_cells(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the main table, as text."""
    reference = summary.reference.label
    header = [
        "Method",
        *(quantity.name[0].upper() + quantity.name[1:] for quantity in summary.quantities),
        f"Final loss, paired difference to {reference}",
        f"Steps to {reference}'s final loss",
        "Seconds per run",
    ]
    loss = summary.quantities[0]
    rows = []
    for row in summary.rows:
        problems = row.problems()
        difference = interval_text(row.differences.get(loss.key), loss.decimals, sign=True)
        rows.append(
            [
                row.label + (f" ({problems})" if problems else ""),
                *(interval_text(row.values[q.key], q.decimals) for q in summary.quantities),
                difference,
                steps_text(row),
                NOTHING if row.seconds is None else number(row.seconds, 1),
            ]
        )
    return header, rows


def markdown_table(summary: Summary) -> str:
    """The main table in Markdown; differences whose interval excludes zero are bold."""
    header, rows = table_cells(summary)
    at = 1 + len(summary.quantities)
    for row, cells in zip(summary.rows, rows, strict=True):
        difference = row.differences.get(summary.quantities[0].key)
        if difference is not None and difference.excludes_zero:
            cells[at] = f"**{cells[at]}**"
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def insert_table(document: Path, name: str, summary: Summary) -> None:
    """Replace what stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        LabError: the document cannot be read or written, or lacks the two lines.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    try:
        text = document.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{document} cannot be read: {error}.") from None
    before, opened, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise LabError(f"{document} lacks the lines {begin.strip()!r} and {end!r} to fill.")
    notes = "".join(f"- {note}\n" for note in summary.notes)
    filling = f"{markdown_table(summary)}\n{notes}"
    write_atomically(document, (before + begin + filling + end + after).encode())


def csv_table(summary: Summary) -> str:
    """One line per method, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    parts = ("mean", "half width")

    def numbers(interval: Interval | None) -> list[float | None]:
        return [None, None] if interval is None else [interval.mean, interval.half_width]

    keys = [q.name for q in summary.quantities]
    writer.writerow(
        [
            *("method", "finished", "diverged", "missing"),
            *(f"{key} {part}" for key in keys for part in parts),
            *(f"{key} difference {part}" for key in keys for part in parts),
            *("steps ratio", "target not reached", "seconds"),
        ]
    )
    for row in summary.rows:
        measured: list[float | None] = []
        for source in (row.values, row.differences):
            for quantity in summary.quantities:
                measured += numbers(source.get(quantity.key))
        writer.writerow(
            [
                *(row.label, row.finished, len(row.diverged), row.missing),
                *(*measured, row.steps_ratio, row.not_reached, row.seconds),
            ]
        )
    return buffer.getvalue()


def terminal_report(summary: Summary) -> RenderableType:
    """The main table with its notes."""
    header, rows = table_cells(summary)
    table = Table(title=summary.title, title_style="bold", header_style="bold")
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left", vertical="middle")
    at = 1 + len(summary.quantities)
    for row, cells in zip(summary.rows, rows, strict=True):
        styled = [Text(cell) for cell in cells]
        tone = _tone(row, summary.quantities[0])
        styled[at].stylize({"better": "bold green", "worse": "bold red"}.get(tone, ""))
        table.add_row(*styled)
    notes = [Padding(Text(f"• {note}", style="dim"), (0, 0, 0, 1)) for note in summary.notes]
    return Group(table, *notes)


def _tone(row: Row, quantity: Quantity) -> str:
    """`better` or `worse` if the paired interval excludes zero, else empty."""
    difference = row.differences.get(quantity.key)
    if difference is None or not difference.excludes_zero:
        return ""
    return "better" if (difference.mean > 0) == quantity.higher_is_better else "worse"


# --- files ---------------------------------------------------------------------------------------


def write_report(results: Results, folder: Path) -> list[Path]:
    """Draw `curves.png`, `report.html`, `table.md` and `table.csv` into the folder.

    Raises:
        LabError: they cannot be written.
    """
    summary = summarize(results)
    contents = {
        "report.html": html_page(results, summary).encode(),
        "curves.png": to_image(draw(results, summary.rows, LIGHT, columns=2), "png"),
        "table.md": markdown_table(summary).encode(),
        "table.csv": csv_table(summary).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def html_page(results: Results, summary: Summary) -> str:
    """One page that needs nothing else: pictures inside, no scripts, light and dark."""
    configuration = results["configuration"]
    loss = summary.quantities[0]
    facts = [
        f"{summary.seeds} seed{'s' if summary.seeds > 1 else ''}",
        f"{configuration['epochs']} epoch{'s' if configuration['epochs'] > 1 else ''}",
        f"batch size {configuration['batch size']}",
        f"learning rate {configuration['learning rate']:g}",
        f"{configuration['parameters']:,} weights",
        *dict.fromkeys(environment["hardware"] for environment in results["environments"]),
    ]
    header, rows = table_cells(summary)
    tones = [_tone(row, loss) for row in summary.rows]
    return Template(files(__package__).joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(summary.title),
        facts=" · ".join(map(html.escape, facts)),
        cards="".join(_card(row, loss, summary.reference) for row in summary.rows[1:]),
        figures=_figures(results, summary),
        table=_html_table(header, rows, tones, column=1 + len(summary.quantities)),
        differences=_difference_table(summary),
        reference=html.escape(summary.reference.label),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in summary.notes),
        command=html.escape(results.get("command", "")),
        configuration="".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in configuration.items()
        ),
    )


def _card(row: Row, loss: Quantity, reference: Row) -> str:
    difference = interval_text(row.differences[loss.key], loss.decimals, sign=True)
    return (
        f'<div class="card {_tone(row, loss)}"><h3>{html.escape(row.label)}</h3>'
        f'<p class="big">{difference}</p>'
        f"<p>final validation loss: {html.escape(verdict(row, loss, reference))}</p>"
        f"<p>steps to {html.escape(reference.label)}'s final loss: {steps_text(row)} "
        f"({html.escape(reference.label)} itself {steps_text(reference)})</p></div>"
    )


def _figures(results: Results, summary: Summary) -> str:
    """The picture for wide and narrow windows, light and dark; the browser takes one."""

    def address(theme: Any, columns: int) -> str:
        image = to_image(draw(results, summary.rows, theme, columns=columns), "svg")
        return "data:image/svg+xml;base64," + base64.b64encode(image).decode()

    narrow, dark = "(max-width: 700px)", "(prefers-color-scheme: dark)"
    return (
        f'<picture><source media="{narrow} and {dark}" srcset="{address(DARK, 1)}">'
        f'<source media="{narrow}" srcset="{address(LIGHT, 1)}">'
        f'<source media="{dark}" srcset="{address(DARK, 2)}">'
        f'<img alt="Learning curves and paired differences" src="{address(LIGHT, 2)}"></picture>'
    )


def _difference_table(summary: Summary) -> str:
    """Every quantity's paired difference."""
    header = ["Method", *(q.name[0].upper() + q.name[1:] for q in summary.quantities)]
    body = []
    for row in summary.rows[1:]:
        cells = [f"<th>{html.escape(row.label)}</th>"]
        for quantity in summary.quantities:
            text = interval_text(row.differences[quantity.key], quantity.decimals, sign=True)
            cells.append(_html_cell(text, _tone(row, quantity)))
        body.append(f"<tr>{''.join(cells)}</tr>")
    return _html_frame(header, body)


def _html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], tones: Sequence[str], column: int
) -> str:
    body = []
    for cells, tone in zip(rows, tones, strict=True):
        tags = [f"<th>{html.escape(cells[0])}</th>"]
        for position, cell in enumerate(cells[1:], start=1):
            shade = tone if position == column else ""
            tags.append(_html_cell(cell, shade))
        body.append(f"<tr>{''.join(tags)}</tr>")
    return _html_frame(header, body)


def _html_cell(text: str, tone: str) -> str:
    return f'<td class="{tone}">{html.escape(text).replace(" ±", "&nbsp;±")}</td>'


def _html_frame(header: Iterable[str], body: Iterable[str]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
