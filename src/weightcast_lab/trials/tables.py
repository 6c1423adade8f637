"""The tables of `docs/trials.md`, from the data that the runs are made from."""

from __future__ import annotations

from weightcast_lab.report.markdown import markdown_rows
from weightcast_lab.study.protocol import clipping_text, task_text
from weightcast_lab.trials.protocol import CANDIDATES, PLANES, ROUNDS, Round
from weightcast_lab.trials.questions import QUESTIONS
from weightcast_lab.trials.workloads import LARGE, LONGER, TASKS, WORKLOADS


def tables() -> dict[str, str]:
    """Each in Markdown, by the name of its block."""
    return {
        "tasks": _tasks(),
        "methods": _methods(),
        "questions": _questions(),
        "rounds": _rounds(),
    }


def _tasks() -> str:
    header = ["Task", "Options", "Batch", "Epochs", "Clipping", "Usual rate: AdamW", "SGD"]
    rows = [
        [
            w.label,
            task_text(w),
            f"{w.batch_size}",
            f"{w.epochs}",
            clipping_text(w),
            f"{w.learning_rate:g}",
            f"{w.sgd_rate:g}",
        ]
        for w in (TASKS | LONGER | LARGE).values()
    ]
    return markdown_rows(header, rows, left=2)


def _methods() -> str:
    rows = [
        [f"`{name}`", c.label, ", ".join(f"{m:g}" for m in c.momenta) or "–"]
        for name, c in CANDIDATES.items()
        if all(c not in some for some in PLANES.values())
    ]
    return markdown_rows(["Name", "What it is", "Momenta besides its own"], rows, left=3)


def _questions() -> str:
    rows = [
        [
            q.text,
            q.schedule,
            CANDIDATES[q.reference].label,
            CANDIDATES[q.primary].label,
            ", ".join(CANDIDATES[c].label for c in q.candidates if c != q.primary),
        ]
        for q in QUESTIONS
    ]
    header = ["Question", "Schedule", "Compared with", "Primary", "Secondary"]
    return markdown_rows(header, rows, left=5)


def _rounds() -> str:
    rows = [
        [
            f"{number}. {one.label}, {one.stage.value}",
            ", ".join(c.label for c in one.candidates),
            _where(one),
        ]
        for number, one in enumerate(ROUNDS, 1)
    ]
    return markdown_rows(["Round", "Candidates", "Workloads"], rows, left=2)


def _where(one: Round) -> str:
    labels = [WORKLOADS[key].label for key in one.workloads]
    return labels[0] if len(labels) == 1 else f"{len(labels)} workloads"
