"""`docs/study.md`: the protocol for people, written from the data that the runs are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from textwrap import wrap

import torch

from weightcast_lab.methods.optimizers import OPTIMIZERS
from weightcast_lab.study.questions import (
    AGAINST_ADAMW,
    AT_EVERY_DELAY,
    METHODS,
    QUESTIONS,
    UNTUNED,
    VARIANTS,
    Question,
)
from weightcast_lab.study.studies import HEAVY, SCALES, STUDIES, Design
from weightcast_lab.study.workloads import DELAYS, LATE, SIX, WORKLOADS, Workload

WIDTH = 100


def page() -> str:
    """`docs/study.md`."""
    design = Design()
    grid = ", ".join(f"{multiple:g}" for multiple in design.multiples)
    last = f"{min(design.further):g} or {max(design.further):g}"
    lines = [
        "# The study: its protocol",
        "",
        "Where does forecasting the weights help, by how much, and what should a user set? This",
        "page was written before the runs, from the same data that the runs are made from:",
        "`python -c 'from weightcast_lab.study import protocol as p; print(p.page(), end=\"\")' >",
        "docs/study.md` writes it, and a test holds both together. What is younger than the runs",
        "stands under [amendments](#amendments).",
        "",
        "```sh",
        "pip install 'weightcast[lab,study]'",
        "weightcast study core optimizers betas --data FOLDER --out results/study",
        "```",
        "",
        "`FOLDER` holds CIFAR-10 and Penn Treebank. The command may be stopped at any time and",
        "goes on where it was; `--minutes` ends it in time, `--missing` says what is left. At the",
        "end it prints tables and draws figures; `weightcast report results/study` does so again.",
        "",
        "## Workloads",
        "",
        "Small, at most thirty-five seconds a run on one CPU core, so that there can be many runs;",
        "what holds here need not hold at scale.",
        "",
        *_WORKLOAD_HEADER,
    ]
    shown = [w for name in ("core", "betas") for w in STUDIES[name].workloads]
    lines += [_workload_row(WORKLOADS[key]) for key in dict.fromkeys(shown)]
    lines += [
        "",
        "Parts of a data set are the same for every method and seed. Everything else is the task's",
        "and the optimizer's default: β₁ = 0.9 and β₂ = 0.999 where nothing else is said, weight",
        "decay 0.01 (decoupled) for AdamW, NAdamW, Lion, Muon, schedule-free and Lookahead, else",
        "none; momentum 0.9 for SGD and 0.95 for Muon. Schedule-free keeps its learning rate where",
        "the others divide theirs, and its BatchNorm statistics are not gathered anew. Muon is for",
        "all matrices but the first and the last; AdamW with the same learning rate, to whose size",
        "Muon's steps are scaled, does the rest. Lookahead (k = 5, α = 0.5, around AdamW) is",
        "evaluated at its fast weights.",
        "",
        "## Methods",
        "",
        "| Study | What it is | Methods, in the order of their rounds | Workloads | Runs |",
        "|---|---|---|---:|---:|",
    ]
    for name, study in STUDIES.items():
        methods = "; ".join(", ".join(m.label for m in one) for one in study.rounds)
        lines.append(
            f"| `{name}` | {study.about} | {methods} | {len(study.workloads)} | {study.runs:,} |"
        )
    lines += [
        "",
        "Studies that are named together share the runs of the methods that they have in common.",
        "",
        "## Learning rates and seeds",
        "",
        *wrap(
            f"Every method, plain or predicted, gets the same budget: {len(design.multiples)} "
            f"learning rates ({grid} times the usual one of its optimizer) with seeds "
            f"{listed(design.search_seeds)}. The rate with the lowest mean final validation loss "
            "is chosen; a rate at which a run diverges loses to any at which fewer do. Where the "
            "lowest or highest rate is the best, the next one beyond it (about a factor of 3 away) "
            "is tried with the same seeds, until the best lies between two others, or with "
            f"{last} times the usual rate: then it is marked in the tables as an edge. (This rule "
            "alone is younger than the first results: on one task the highest rate of the grid "
            "was AdamW's best, and that of most of its forecasts.) Then the chosen rate runs with "
            f"the fresh seeds {listed(design.seeds)}; only these are evidence, but for one "
            "question [added later](#amendments) (`--seeds` adds "
            "more, and results name how many there are). The same validation data serve to choose "
            "and to judge, for every method alike. A predicted method searches the grid of its "
            "plain form. Usual rates of AdamW and of SGD (with Nesterov or without) are in the "
            "table of workloads; those of the others, in multiples of AdamW's:",
            WIDTH,
        ),
        "",
        "| " + " | ".join(OPTIMIZERS[name][0] for name in SCALES) + " |",
        "|" + "---:|" * len(SCALES),
        "| " + " | ".join(f"{scale:g}" for scale in SCALES.values()) + " |",
        "",
        "A seed fixes initial weights, batches, crops and dropout, the same for every method. Runs",
        "are compared seed by seed, and only if they were computed in the same environment",
        "(hardware, Python, torch, weightcast). No run is dropped: a diverged one is reported,",
        "and its method is then called neither better nor worse.",
        "",
        "Within a round all workloads take turns, seed by seed, so that a stop at any time leaves",
        "evidence on all of them; a round is searched and measured before the next one begins.",
        "",
        "## What is compared",
        "",
        "The primary quantity is the validation loss at the end. Differences are of its",
        "logarithm, paired by seed, shown in per cent, with the 95% t interval over the seeds.",
        "Beside a method's workloads stands the mean of their means, with its t interval",
        "(Satterthwaite's degrees of freedom); it speaks of these workloads, not of all. Variants",
        "of a workload (another β or batch size) have a table of their own.",
        "",
        "Each question below is one family of comparisons, and those that share a table are one",
        "together ([amended](#amendments)). Its p values (paired t tests on the logarithms) are",
        "corrected by Holm over all its methods and workloads, those of the means over all its",
        "methods. **Better** or **worse** is said only where the corrected p is below 0.05.",
        "",
        "| Question | Compared with | Methods |",
        "|---|---|---|",
    ]
    lines += [_question_row(question) for question in (*QUESTIONS, VARIANTS)]
    lines += [
        "",
        "Beside these stand, for every method and workload:",
        "",
        "- final and best validation loss and metric, with their 95% t intervals;",
        "- steps to AdamW's final loss of the same seed, as a share of AdamW's steps: the median",
        "  over the seeds, in which a run that never gets there counts as later than all others,",
        "  and between which order statistics it lies with 95% confidence or, with too few seeds",
        "  for that, the whole range and its confidence;",
        "- the same per hour: that share times the ratio of the CPU seconds of a whole step,",
        "  evaluations included;",
        "- what it keeps beside the weights (optimizer state, and a forecast's saved copy), in",
        "  multiples of their bytes, without gradients and temporary tensors.",
        "",
        "What this cannot tell: large models, long training, tasks of other kinds, learning rates",
        "between the grid's (a factor of 3 apart), schedules other than these.",
        "",
        *_amendments(),
        "",
        *_about_delay(),
    ]
    return "\n".join(lines) + "\n"


def _amendments() -> list[str]:
    together = [q for q in QUESTIONS if q.family == AGAINST_ADAMW]
    sizes = [len(question.methods) * len(SIX) for question in together]
    last, torchs = 980, torch.optim.NAdam([torch.zeros(1)]).defaults["momentum_decay"]
    first_mu, last_mu = (0.9 * (1 - 0.5 * 0.96 ** (step * torchs)) for step in (1, last))
    said = {
        "One bar a column": (
            "Rows that stand in one table are corrected together. "
            f"{listed([f'“{q.text}”' for q in together])} were three families, of "
            f"{listed(sizes)} comparisons, whose rows stood in one column of one table; now they "
            f"are one of {sum(sizes)}. It is the stricter of the two ways to do it: the other, "
            "one family a method, would call more forecasts better."
        ),
        "Means without one task": (
            "Beside every mean over tasks stands the mean without the task that moves the means "
            "of these tasks most, whichever that is, and the lowest and highest of the means "
            "without any one. It came out that digits decide the means over six. Verdicts are "
            "those of the mean over all, as before."
        ),
        "Nothing retuned": (
            f"“{UNTUNED.text}” is a question to the search's runs: every method at the learning "
            "rate that was chosen for AdamW, paired by seed, a family of its own. Its methods: "
            f"{', '.join(METHODS[name].label for name in UNTUNED.methods)}."
        ),
        "Test data": (
            "Penn Treebank's test perplexity, which every run measures at its end, is shown "
            "beside validation. Nothing is chosen by it."
        ),
        "What NAdamW is": (
            "`torch.optim.NAdam(…, decoupled_weight_decay=True)`, with its own `momentum_decay` of "
            f"{torchs:g}. This starts the look-ahead's momentum at half of β₁ and lets it grow "
            f"slowly: in these runs μₜ is {first_mu:.2f} in the first step and at most "
            f"{last_mu:.2f} in the last, where the NAdamW of the literature (AlgoPerf's, for one) "
            "has μ = β₁ = 0.9 throughout. In short runs the two are different optimizers; the "
            "other one was not run."
        ),
        "What a seed is": (
            "On the documentation tasks the text is read in its own order and nothing is dropped: "
            "there a seed is an initialisation alone; on Penn Treebank it draws the dropout too. "
            "Intervals of these tasks speak of other initial weights, not of other data."
        ),
        "Where Lookahead is read": (
            "At its fast weights, which are the slow ones after every fifth step. Of the six tasks "
            "that is where training ends on the documentation transformer alone; on the other "
            "five it is read one to three steps past its average."
        ),
    }
    lines = ["## Amendments", "", "Younger than the runs, and made with the results in view:", ""]
    for what, text in said.items():
        lines += wrap(f"- **{what}.** {text}", WIDTH, subsequent_indent="  ")
    return lines


def _about_delay() -> list[str]:
    design = STUDIES["delay"].design
    grid = ", ".join(f"{multiple:g}" for multiple in design.multiples)
    late = {w.series: w for w in LATE.values()}  # the last delay of each
    return [
        "## Delayed gradients",
        "",
        *wrap(
            "In a pipeline without bubbles, or where gradients come from far away, the gradient "
            "that a step applies was computed D steps before. The study `delay` does so in one "
            "process, and has a folder of its own:",
            WIDTH,
        ),
        "",
        "```sh",
        "weightcast study delay --data FOLDER --out results/delay",
        "```",
        "",
        *wrap(
            f"Its workloads run at D = {listed(DELAYS)}. With a delay, step t computes the "
            "gradient of batch t at the weights of step t, predicted or not, and applies that of "
            "batch t − D; in the first D steps none has arrived and the weights stay, and those "
            "of the last D batches are never applied. Clipping is of the gradient that is "
            "applied.",
            WIDTH,
        ),
        "",
        *_WORKLOAD_HEADER,
        *(_workload_row(replace(w, label=series)) for series, w in late.items()),
        "",
        *wrap(
            "Methods predict so many delays ahead: D/2, D, 2D, or D decaying, which walks Σ β₁ᵏ "
            "(k = 1..D); without delay they are their plain forms and are not run. β₁ of SGD is "
            f"its momentum. β₁ = {HEAVY} is that of Ajanthan et al. (ICML 2025), whose NAdamW is "
            "the strongest published method, so that it is what forecasts of AdamW are compared "
            f"with. The usual rate of SGD with β₁ = {HEAVY} is a tenth of that in the table. Late "
            f"gradients want lower rates: {grid} times the usual ones are searched, with seed "
            f"{design.search_seeds[0]}, and beyond an edge up to {min(design.further):g} and "
            f"{max(design.further):g} times them (a rule younger than the first round, in which "
            "half of the choices were edges, most of them upper ones), then the chosen one runs "
            f"with seeds {listed(design.seeds)}. The rounds are so ordered that a stop after any "
            "of them leaves evidence at every delay.",
            WIDTH,
        ),
        "",
        *wrap(
            "Each question is asked once for every delay but 0, and is then a family of its own "
            "for Holm's correction; the mean is over the four tasks at that delay. What delay "
            "costs is measured against plain AdamW on the same task and seed at D = 0.",
            WIDTH,
        ),
        "",
        "| Question | Compared with | Methods |",
        "|---|---|---|",
        *map(_question_row, AT_EVERY_DELAY),
    ]


_WORKLOAD_HEADER = (
    "| Workload | Task and options | Batch | Epochs | ÷10 after | Clipping | Usual rate: AdamW "
    "| SGD |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
)


def _workload_row(w: Workload) -> str:
    options = ", ".join(f"{name} {_number(value)}" for name, value in w.options.items())
    cells = [
        *(w.label, f"`{w.task}`" + (f": {options}" if options else "")),
        *(f"{w.batch_size}", f"{w.epochs}", ", ".join(map(str, w.milestones)) or "–"),
        "–" if w.clip_norm is None else f"{w.clip_norm:g}",
        *(f"{w.learning_rate:g}", f"{w.sgd_rate:g}"),
    ]
    return f"| {' | '.join(cells)} |"


def _question_row(question: Question) -> str:
    methods = ", ".join(METHODS[name].label for name in question.methods)
    return f"| {question.text} | {question.reference_label} | {methods} |"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def listed(things: Sequence[object]) -> str:
    """`a, b and c`."""
    return f"{', '.join(map(str, things[:-1]))} and {things[-1]}"
