"""The tables of `docs/study.md`, from the data that the runs are made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from weightcast_lab.methods.optimizers import OPTIMIZERS
from weightcast_lab.report.markdown import markdown_rows
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.study.questions import (
    AT_EVERY_DELAY,
    METHODS,
    QUESTIONS,
    VARIANTS,
    Question,
)
from weightcast_lab.study.studies import SCALES, STUDIES
from weightcast_lab.study.workloads import LATE, WORKLOADS


def tables() -> dict[str, str]:
    """Each in Markdown, by the name of its block."""
    keys = dict.fromkeys(key for name in ("core", "betas") for key in STUDIES[name].workloads)
    late = {w.series: w for w in LATE.values()}
    return {
        "workloads": _workloads(WORKLOADS[key] for key in keys),
        "studies": _studies(),
        "scales": markdown_rows(
            [OPTIMIZERS[name][0] for name in SCALES],
            [[f"{scale:g}" for scale in SCALES.values()]],
            left=0,
        ),
        "questions": _questions((*QUESTIONS, VARIANTS)),
        "delayed workloads": _workloads(replace(w, label=series) for series, w in late.items()),
        "delayed questions": _questions(AT_EVERY_DELAY),
    }


def _workloads(workloads: Iterable[Recipe]) -> str:
    header = [
        *("Workload", "Task and options", "Batch", "Epochs", "÷10 after", "Clipping"),
        *("Usual rate: AdamW", "SGD"),
    ]
    rows = [
        [
            w.label,
            task_text(w),
            f"{w.batch_size}",
            f"{w.epochs}",
            ", ".join(map(str, w.milestones)) or "–",
            clipping_text(w),
            f"{w.learning_rate:g}",
            f"{w.sgd_rate:g}",
        ]
        for w in workloads
    ]
    return markdown_rows(header, rows, left=2)


def task_text(workload: Recipe) -> str:
    """Its task and options."""
    options = ", ".join(
        f"{name} {value:,}" if type(value) is int else f"{name} {value}"
        for name, value in workload.options
    )
    return f"`{workload.task}`" + (f": {options}" if options else "")


def clipping_text(workload: Recipe) -> str:
    """The norm to which its gradients are scaled down."""
    return "–" if workload.clip_norm is None else f"{workload.clip_norm:g}"


def _studies() -> str:
    header = ["Study", "What it is", "Methods, in the order of their rounds", "Workloads", "Runs"]
    rows = [
        [
            f"`{name}`",
            study.about,
            "; ".join(", ".join(m.label for m in one) for one in study.rounds),
            f"{len(study.workloads)}",
            f"{study.runs:,}",
        ]
        for name, study in STUDIES.items()
    ]
    return markdown_rows(header, rows, left=3)


def _questions(questions: Iterable[Question]) -> str:
    rows = [
        [q.text, q.reference_label, ", ".join(METHODS[name].label for name in q.methods)]
        for q in questions
    ]
    return markdown_rows(["Question", "Compared with", "Methods"], rows, left=3)
