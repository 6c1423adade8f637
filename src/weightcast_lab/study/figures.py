"""Which figures a study has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from weightcast_lab.report.drawing import Theme, draw_panels
from weightcast_lab.results.loading import Results
from weightcast_lab.study.answers import answers, asked, begun, heaviest, versus_plain
from weightcast_lab.study.brief import IN_BRIEF
from weightcast_lab.study.drawing import draw_ahead, draw_delays, draw_forest, draw_rates
from weightcast_lab.study.pairs import final_losses, series_of
from weightcast_lab.study.questions import AGAINST_DELAY, METHODS


@dataclass(frozen=True)
class StudyFigure:
    """A figure of a study: `draw(theme, columns)` makes it."""

    key: str
    title: str
    draw: Callable[[Theme, int], Figure]


IN_CURVES = ("adamw", "adamw-s1", "adamw-s3", "adamw-s8", "nadamw")


def study_figures(experiments: Sequence[Results]) -> list[StudyFigure]:
    """Learning curves, learning rates, delays, what s does, and the intervals of questions."""
    figures = []
    with_curves = [
        e | {"methods": [m for name in IN_CURVES for m in e["methods"] if m["name"] == name]}
        for e in experiments
        if not (e["variant_of"] or series_of(e))
    ]
    if with_curves := [e for e in with_curves if e["methods"]]:
        labelled = [(e["workload"], e) for e in with_curves]
        draw_curves = partial(draw_panels, labelled, "validation_loss", by_epoch=False)
        title = "Validation loss against steps, each method at its own learning rate"
        figures.append(StudyFigure("curves", title, draw_curves))
        title = "Final loss against the learning rate, in the search"
        figures.append(StudyFigure("rates", title, partial(draw_rates, with_curves)))
    for key, whose, names in AGAINST_DELAY:
        late = [e for e in experiments if series_of(e)]
        ahead = [name for name in names if METHODS[name].in_delays]
        if any(final_losses(e, name) for e in late for name in ahead):
            title = f"Final loss against the delay of the gradients: {whose}"
            figures.append(StudyFigure(key, title, partial(draw_delays, late, names)))
    found = begun(answers(experiments))
    left_out = heaviest(found)
    if any(answer.question.key == "adamw" for answer in found):
        title = "Final loss against the steps predicted ahead"
        figures.append(StudyFigure("ahead", title, partial(draw_ahead, found)))
    for key, title, against, chosen in (
        ("forest-adamw", "AdamW predicted, and NAdamW", "AdamW", asked(found, *IN_BRIEF)),
        ("forest-nadamw", "AdamW predicted, beside NAdamW", "NAdamW", asked(found, "nadamw")),
        ("forest-plain", "Other optimizers predicted", "the plain form", versus_plain(found)),
        ("forest-others", "Other optimizers, plain", "AdamW", asked(found, "others")),
        ("forest-variants", "Other β₁, β₂ and batch size", "AdamW", asked(found, "variants")),
    ):
        if chosen:
            rest = left_out.get(chosen[0].tasks)
            figures.append(StudyFigure(key, title, partial(draw_forest, chosen, against, rest)))
    for answer in found:
        if answer.question.key.startswith("delay-nadamw-"):
            title, against = f"D = {answer.question.delay}: AdamW predicted", answer.reference
            draw_one = partial(draw_forest, [answer], against, left_out.get(answer.tasks))
            figures.append(StudyFigure(f"forest-{answer.question.key}", title, draw_one))
    return figures
