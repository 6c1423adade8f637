"""What a reproduction shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from weightcast_lab.paper.claims import claims
from weightcast_lab.paper.comparison import (
    COLUMNS,
    Comparison,
    Entry,
    beta2_of,
    comparisons,
    figures,
    problem_of,
)
from weightcast_lab.paper.protocol import RECIPES
from weightcast_lab.report.blocks import WRITTEN, Block, Card, Cards, Cell, Figure, Report, Table
from weightcast_lab.report.drawing import draw_panels
from weightcast_lab.report.tables import (
    configurations_of,
    csv_rows,
    facts_of,
    interval_text,
    mean_and_width,
    number,
    problem_notes,
    tone,
)
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import computed_on


def cell_text(entry: Entry, decimals: int) -> str:
    """`88.10 ± 0.30 (87.85)`, the paper's in parentheses."""
    ours = entry.problem if entry.ours is None else interval_text(entry.ours, decimals)
    if entry.ours is not None and entry.problem:
        ours += f" [{entry.problem}]"
    return ours + ("" if entry.printed is None else f" ({number(entry.printed, decimals)})")


def header(first: str = "Network") -> list[str]:
    """The columns of the tables."""
    return [first, *(m.label for m in COLUMNS)]


def _difference_table(table: Comparison) -> Table:
    """Paired differences to AdamW, network by network."""
    rows: list[list[Cell]] = [
        [
            (RECIPES[network].label, ""),
            *(
                (
                    interval_text(e.difference, table.decimals, sign=True),
                    tone(e.difference, table.higher_is_better),
                )
                for e in entries[1:]
            ),
        ]
        for network, entries in table.rows.items()
    ]
    header = ["Network", *(m.label for m in COLUMNS[1:])]
    lead = "Paired differences to AdamW:"
    return Table("", header, rows, lead=lead, is_detail=True, places=WRITTEN)


def notes_of(experiments: Sequence[Results]) -> list[str]:
    """What a reader must know to judge the numbers."""
    seeds = sorted({len(e["seeds"]) for e in experiments})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    scatter = (
        "One seed: there are no intervals, and no difference can be told from chance."
        if seeds == [1]
        else f"{n} seeds. ± is half the 95% t interval of the mean over seeds. Differences are "
        "paired by seed, within one environment only, and not corrected for comparing several "
        "methods."
    )
    notes = [
        "Ours first, the paper's number in parentheses (one run each, it says no more); the best "
        "of ours in a row is bold. NAdamW is not in the paper.",
        scatter,
        "The learning rates are the paper's or the preset's, the same for every method; none was "
        "tuned for any.",
        computed_on(experiments),
    ]
    for experiment in experiments:
        label = f"{RECIPES[experiment['network']].label}, β₂ = {beta2_of(experiment):g}"
        problems = {method.label: problem_of(experiment, method.key) for method in COLUMNS}
        notes += problem_notes(label, problems)
    return notes


def table_rows(table: Comparison) -> list[list[Cell]]:
    """Network by network: ours and the paper's."""
    return [
        [
            (RECIPES[network].label, ""),
            *((cell_text(e, table.decimals), "best" if e.is_best else "") for e in entries),
        ]
        for network, entries in table.rows.items()
    ]


def report(experiments: Sequence[Results]) -> Report:
    """All that there is to show of a reproduction."""
    tables = comparisons(experiments)
    blocks: list[Block] = []
    for table in tables:
        rows = table_rows(table)
        blocks.append(Table(table.title, header(), rows, caption=table.caption))
        blocks.append(_difference_table(table))
    cards = [Card(c.claim, c.verdict, (c.reason,)) for c in claims(experiments)]
    blocks.append(Cards("The paper's claims", cards))
    for figure in figures(experiments):
        drawn = partial(draw_panels, figure.labelled, figure.column)
        blocks.append(Figure(figure.key, figure.title, drawn))
    texts = {f"{table.key}.tex": latex(table) for table in tables}
    return Report(
        command="reproduce",
        title="Weight Prediction Boosts the Convergence of AdamW: the paper beside our runs",
        facts=facts_of(experiments, "runs"),
        blocks=blocks,
        notes=notes_of(experiments),
        repeat=experiments[0]["command"],
        configuration=configurations_of(experiments, "title"),
        files=texts | {f"{table.key}.csv": csv_text(table) for table in tables},
        latex="\n".join(texts.values()),
    )


def latex(table: Comparison) -> str:
    """The table for a paper, with booktabs."""
    rows = [
        [rf"\textbf{{{_tex(text)}}}" if is_best else _tex(text) for text, is_best in row]
        for row in table_rows(table)
    ]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}. {_tex(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}",
            r"\toprule",
            " & ".join(map(_tex, header())) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_TEX = {
    **{character: f"\\{character}" for character in "&%#_$"},
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "β₂": r"$\beta_2$",
    "\N{NO-BREAK SPACE}": "~",
}


def _tex(text: str) -> str:
    for plain, command in _TEX.items():
        text = text.replace(plain, command)
    return text


def csv_text(table: Comparison) -> str:
    """One line a cell, numbers in full."""
    header = [
        *("network", "method", "seeds", "mean", "half width", "printed"),
        *("difference", "difference half width", "problem"),
    ]
    rows = [
        [
            *(network, method.key, e.ours.n if e.ours else 0, *mean_and_width(e.ours)),
            *(e.printed, *mean_and_width(e.difference), e.problem),
        ]
        for network, entries in table.rows.items()
        for method, e in zip(COLUMNS, entries, strict=True)
    ]
    return csv_rows(header, rows)
