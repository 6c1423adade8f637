"""What the second study shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from weightcast_lab.report.blocks import Cell, Figure, Report, Table
from weightcast_lab.report.tables import (
    NOTHING,
    configurations_of,
    facts_of,
    interval_text,
    number,
)
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import LOSS_DECIMALS, computed_on
from weightcast_lab.running.readings import PREDICTED, TRUE
from weightcast_lab.study.answers import Answer as Forest
from weightcast_lab.study.drawing import draw_forest
from weightcast_lab.study.questions import Question as Asked
from weightcast_lab.study.text import change_text, effect_text, in_percent, overall_text
from weightcast_lab.trials.answers import Answer, Row, answers, is_full_length
from weightcast_lab.trials.protocol import CANDIDATES
from weightcast_lab.trials.savings import Saving, savings
from weightcast_lab.trials.tolerances import readings_of, tolerances

AT = {"usual": "at the usual momentum", "best": "each at its best momentum"}


def _question(answer: Answer) -> Table:
    several = len(answer.workloads) > 1
    schedule = f", {answer.question.schedule}"
    header = ["Method", *(["β"] if answer.at == "best" else [])]
    if several:
        header += ["Mean", "Mean without the task that moves it most"]
    header += ["Smallest visible", *(task.removesuffix(schedule) for task in answer.workloads)]
    rows = [_row(one, several) for one in answer.rows]
    what = f"Change of the test loss in %, compared with {answer.reference}, {AT[answer.at]}"
    return Table(f"{answer.question.text} {what}", header, rows)


def _row(one: Row, several: bool) -> list[Cell]:
    row = one.row
    cells: list[Cell] = [(row.label + (" (primary)" if one.is_primary else ""), "")]
    cells += [(one.momenta, "")] if one.momenta else []
    if several:
        name, rest = one.without or ("", None)
        text = NOTHING if rest is None else f"{change_text(rest)} (without {name})"
        cells += [(overall_text(row), row.overall.verdict), (text, "")]
    visible = NOTHING if one.visible is None else f"±{number(in_percent(one.visible), 1)}"
    cells.append((visible, ""))
    return [*cells, *((effect_text(effect), effect.verdict) for effect in row.effects)]


def _savings(found: Sequence[Saving]) -> Table:
    rows: list[list[Cell]] = []
    for one in found:
        names = [CANDIDATES[name].label for name in (one.candidate, one.rival)]
        if one.share is not None:
            share = change_in_steps(one)
        else:
            share = "more than 30 %" if one.is_more else "none"
        rows.append(
            [*((name, "") for name in names), (one.workload, ""), (AT[one.at], ""), (share, "")]
        )
    header = ["Method", "Rival", "Task", "Momentum", "Steps saved"]
    return Table("Steps saved on the way to the rival's final test loss", header, rows)


def change_in_steps(saving: Saving) -> str:
    """`9 % [5, 13]`."""
    assert saving.share is not None
    mean, width = 100 * saving.share.mean, saving.share.half_width
    if width is None:
        return f"{number(mean, 0)} %"
    low, high = (number(mean + sign * 100 * width, 0) for sign in (-1, 1))
    return f"{number(mean, 0)} % [{low}, {high}]"


def _tolerances(experiments: Sequence[Results]) -> Table:
    rows: list[list[Cell]] = [
        [
            (CANDIDATES[one.candidate].label, ""),
            (one.workload, ""),
            (f"{one.best_rate:g}", ""),
            ((">" if one.is_open else "") + f"{number(one.factor, 1)}", ""),
        ]
        for one in tolerances(experiments)
    ]
    title = "What a method forgives: over what factor of rates it stays within 2 % of its best"
    return Table(title, ["Method", "Task", "Best rate", "Factor"], rows)


def _readings(experiments: Sequence[Results]) -> Table:
    rows: list[list[Cell]] = []
    places = [TRUE, PREDICTED, "average-0.01", "average-0.03", "average-0.1"]
    for experiment in filter(lambda e: is_full_length(e["key"]), experiments):
        for candidate in dict.fromkeys(c["candidate"] for c in experiment["choices"]):
            found = readings_of(experiment, candidate)
            if found.get(TRUE) is None or CANDIDATES[candidate].averaged:
                continue
            cells = [(interval_text(found.get(place), LOSS_DECIMALS), "") for place in places]
            rows.append([(CANDIDATES[candidate].label, ""), (experiment["workload"], ""), *cells])
    header = ["Method", "Task", "θ", "θ̂", "average over 1 %", "3 %", "10 %"]
    return Table("Test loss by where it is read, at the usual momentum", header, rows)


def notes_of(experiments: Sequence[Results]) -> list[str]:
    """What a reader must know to judge the numbers."""
    notes = [
        "Changes are of the final test loss in per cent, paired by seed (same initial weights, "
        "same batches), with 95% t intervals. Bold is better or worse at 5%: a primary comparison "
        "by its own p value, all others after Holm's correction over all of their table. "
        "*Smallest visible* is the change that such a study shows four times out of five.",
    ]
    runs, searched = (sum(len(e[part]) for e in experiments) for part in ("runs", "search"))
    notes.append(f"{runs:,} final runs and {searched:,} of the searches are finished.")
    edges = sum(c["is_edge"] for e in experiments for c in e["choices"])
    if edges:
        notes.append(f"{edges} chosen rates are the lowest or highest that was tried.")
    if any(e["environments"] for e in experiments):
        notes.append(computed_on(experiments))
    return notes


def report(experiments: Sequence[Results]) -> Report:
    """All that there is to show of the second study."""
    found = answers(experiments)
    tables = [
        *map(_question, found),
        _savings(list(savings(experiments))),
        _tolerances(experiments),
        _readings(experiments),
    ]
    return Report(
        command="study trials",
        title="The second study",
        facts=facts_of(experiments, "final runs"),
        blocks=[*(table for table in tables if table.rows), *map(_forest, found)],
        notes=notes_of(experiments),
        repeat=experiments[0]["command"],
        configuration=configurations_of(experiments, "workload"),
    )


def _forest(answer: Answer) -> Figure:
    """Every method's change with its interval."""
    asked = Asked(answer.question.key, "", answer.question.reference, ())
    rows, tasks = tuple(one.row for one in answer.rows), answer.workloads
    forest = Forest(asked, answer.reference, tasks, tasks, 0, rows)
    against = f"{answer.reference}, {AT[answer.at]}"
    drawn = partial(draw_forest, [forest], against, None)
    return Figure(f"{answer.question.key}-{answer.at}", answer.question.text, drawn)
