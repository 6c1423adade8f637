"""Which figures a study has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from weightcast_lab.report.blocks import Figure
from weightcast_lab.report.drawing import draw_panels
from weightcast_lab.results.loading import Results
from weightcast_lab.study.answers import Answer, asked, begun, heaviest, versus_plain
from weightcast_lab.study.brief import IN_BRIEF
from weightcast_lab.study.drawing import draw_ahead, draw_delays, draw_forest, draw_rates
from weightcast_lab.study.pairs import final_losses, series_of
from weightcast_lab.study.questions import AGAINST_DELAY, METHODS

IN_CURVES = ("adamw", "adamw-s1", "adamw-s3", "adamw-s8", "nadamw")


def study_figures(experiments: Sequence[Results], every: Sequence[Answer]) -> list[Figure]:
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
        figures.append(Figure("curves", title, draw_curves))
        title = "Final loss against the learning rate, in the search"
        figures.append(Figure("rates", title, partial(draw_rates, with_curves)))
    for key, whose, names in AGAINST_DELAY:
        late = [e for e in experiments if series_of(e)]
        ahead = [name for name in names if METHODS[name].in_delays]
        if any(final_losses(e, name) for e in late for name in ahead):
            title = f"Final loss against the delay of the gradients: {whose}"
            figures.append(Figure(key, title, partial(draw_delays, late, names)))
    found = begun(every)
    left_out = heaviest(found)
    if any(answer.question.key == "adamw" for answer in found):
        title = "Final loss against the steps predicted ahead"
        figures.append(Figure("ahead", title, partial(draw_ahead, found)))
    for key, title, against, chosen in (
        ("forest-adamw", "AdamW predicted, and NAdamW", "AdamW", asked(found, *IN_BRIEF)),
        ("forest-nadamw", "AdamW predicted, beside NAdamW", "NAdamW", asked(found, "nadamw")),
        ("forest-plain", "Other optimizers predicted", "the plain form", versus_plain(found)),
        ("forest-others", "Other optimizers, plain", "AdamW", asked(found, "others")),
        ("forest-variants", "Other β₁, β₂ and batch size", "AdamW", asked(found, "variants")),
    ):
        if chosen:
            rest = left_out.get(chosen[0].tasks)
            figures.append(Figure(key, title, partial(draw_forest, chosen, against, rest)))
    for answer in found:
        if answer.question.key.startswith("delay-nadamw-"):
            title, against = f"D = {answer.question.delay}: AdamW predicted", answer.reference
            draw_one = partial(draw_forest, [answer], against, left_out.get(answer.tasks))
            figures.append(Figure(f"forest-{answer.question.key}", title, draw_one))
    return figures
