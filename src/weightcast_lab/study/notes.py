"""What a reader of a study must know to judge its numbers."""

from __future__ import annotations

from collections.abc import Sequence

from weightcast_lab.report.tables import problem_notes
from weightcast_lab.results.loading import Results
from weightcast_lab.results.measures import computed_on
from weightcast_lab.study.answers import Answer, asked
from weightcast_lab.study.pairs import problem_of
from weightcast_lab.study.questions import UNTUNED
from weightcast_lab.study.workload_rows import workload_rows


def notes_of(experiments: Sequence[Results], found: Sequence[Answer]) -> list[str]:
    """What a reader must know to judge the numbers."""
    seeds = sorted({len(e["seeds"]) for e in experiments})
    search = " and ".join(map(str, sorted({n for e in experiments for n in e["search"]["seeds"]})))
    n = " to ".join(f"{count}" for count in dict.fromkeys((seeds[0], seeds[-1])))
    notes = [
        "Changes are of the final validation loss in per cent, paired by seed (same initial "
        f"weights, same batches), with 95% t intervals; {n} seeds. Bold is better or worse at 5% "
        "after Holm's correction over the whole table (the means: over its methods); AdamW's "
        "forecasts, the control and NAdamW against AdamW count as one table. The mean is over "
        "these workloads and speaks of no others; what to set names the lowest of several means, "
        "and picking the lowest flatters.",
        "Means without one task show what a mean rests on. They were added when the results were "
        "known, and are corrected over the table's methods like the mean itself.",
        "Every method has a learning rate of its own, the best of those tried in runs of their own "
        f"(seeds: {search}); ↓ and ↑ mark the lowest and highest that was tried, beyond which it "
        "might do better.",
        "Steps to AdamW's final loss, as shares of AdamW's steps, and hours to it: medians over "
        "the seeds with the order statistics around them "
        f"({_confidence(experiments)}). The cost of a step is of the process's CPU seconds, in "
        "AdamW's on the same processor (– where AdamW ran on another); memory is what a method "
        "keeps beside the weights, in their bytes.",
    ]
    if any(e["environments"] for e in experiments):
        notes.append(computed_on(experiments))
    if asked(found, UNTUNED.key):
        notes.append(
            "With nothing retuned: every method at the learning rate that was chosen for AdamW, in "
            f"the search's own runs (seeds: {search}), paired by seed. They chose that rate, and "
            "so flatter AdamW if any; what they cannot do with so few seeds is tell small changes "
            "of one task from chance."
        )
    packages = {run["package"] for e in experiments for run in e["runs"] if "package" in run}
    if packages:
        notes.append(f"Optimizers that torch lacks come from {', '.join(sorted(packages))}.")
    notes += [*about_nadamw(experiments), *about_edges(experiments)]
    for experiment in experiments:
        problems = {w["label"]: problem_of(experiment, w["name"]) for w in experiment["wanted"]}
        notes += problem_notes(experiment["workload"], problems)
    return notes


def about_nadamw(experiments: Sequence[Results]) -> list[str]:
    """What is called so, if it ran."""
    if all(m["optimizer"] != "nadamw" for e in experiments for m in e["methods"]):
        return []
    return [
        "NAdamW is torch.optim.NAdam as torch makes it, with decoupled weight decay. Its "
        "momentum_decay of 0.004 keeps the look-ahead's μ near half of β₁ in runs as short as "
        "these; the NAdamW of the literature, AlgoPerf's for one, with μ = β₁, is not among them."
    ]


def about_edges(experiments: Sequence[Results]) -> list[str]:
    """How many of the learning rates that ran are the lowest or highest that was tried."""
    ran = [
        m
        for e in experiments
        for m in e["methods"]
        if any(r["method"] == m["key"] for r in e["runs"])
    ]
    edges, chosen = sum(bool(m["edge"]) for m in ran), len(ran)
    what = "are the lowest or highest that was tried"
    return [f"{edges} of the {chosen} learning rates {what}."] if edges else []


def _confidence(experiments: Sequence[Results]) -> str:
    found = {
        f"{100 * row.steps.confidence:.0f}% confidence"
        for e in experiments
        for row in workload_rows(e)
        if row.steps is not None and len(e["seeds"]) > 1
    }
    return " to ".join(sorted(found)) or "one seed has none"
