"""`docs/trials.md`: the protocol for people, written from the data that the runs are made from."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap

from weightcast_lab.methods.optimizers import OPTIMIZERS
from weightcast_lab.study.studies import HEAVY, SCALES
from weightcast_lab.trials.protocol import (
    CANDIDATES,
    FEWER_SEEDS,
    NEAR,
    PLANES,
    ROUNDS,
    SEARCH_SEEDS,
    SEEDS,
    SHARES,
    Round,
)
from weightcast_lab.trials.questions import QUESTIONS, Question
from weightcast_lab.trials.workloads import (
    AVERAGES,
    DELAYS,
    LARGE,
    LATE_TASKS,
    LENGTHS,
    LONGER,
    TASKS,
    WARMUP,
    WORKLOADS,
)

WIDTH = 100


def page() -> str:
    """The whole page."""
    lines = [
        "# The second study: its protocol",
        "",
        *_paragraphs(
            "Does a forecast still help when everything around it is tuned and scheduled as people "
            "do today? The [first study](study.md) left six doubts. One noisy task (digits) "
            "decided "
            "its means. Its NAdamW was torch's, whose μ starts at half of β₁. No run had warm-up "
            "and a decay to zero. AdamW's weights were not averaged, although a forecast reads a "
            "lagged average. β₁ was never tuned, although lowering it is the cheapest rival. The "
            "same validation data chose and reported.",
            "This page was written before the first run, from the same data that the runs are made "
            "from: `python -c 'from weightcast_lab.trials import page; print(page.page(), "
            'end="")\' '
            "> docs/trials.md` writes it, and a test holds both together. Whatever comes out is "
            "reported.",
        ),
        "```sh",
        "pip install 'weightcast[lab,study]'",
        "weightcast study trials --data FOLDER --out results/trials",
        "```",
        "",
        *_paragraphs(
            "`FOLDER` holds CIFAR-10 and Penn Treebank. Run the same command again to resume; "
            "`--minutes` ends it in time, `--missing` lists unfinished runs.",
        ),
        "## Tasks",
        "",
        *_paragraphs(
            "Each task runs under two schedules: a **constant** learning rate, and **cosine**: the "
            f"rate rises in the first {WARMUP:.0%} of the steps and falls to zero by half a "
            "cosine, "
            "step by step. The longer tasks run under cosine alone.",
        ),
        "| Task | Options | Batch | Epochs | Clipping | Usual rate: AdamW | SGD |",
        "|---|---|---:|---:|---:|---:|---:|",
        *_task_rows(),
        "",
        *_paragraphs(
            "A seed draws initial weights, dropout and the batches: windows of the transformers "
            "begin anywhere in the text, every epoch of the LSTMs begins at another place, images "
            "are shuffled, cropped and mirrored. Validation data choose, test data report; both "
            "are apart from what is trained on. The test text of the documentation is its last "
            "tenth, the validation text the tenth before. CIFAR-10 validates on images of its "
            "training set that are not trained on.",
            f"After the last step the loss is read at θ, at θ̂ where there is a forecast, and at "
            f"averages of θ over {_listed(f'{share:.0%}' for share in AVERAGES)} of the run "
            "(exponential, a plain mean until there are so many steps; BatchNorm's statistics are "
            "averaged alike). `adamw-average` is AdamW read at the best of them; it is trained as "
            "AdamW is. Lookahead ends on a step at which its fast and slow weights are the same.",
        ),
        "## Methods",
        "",
        *_paragraphs(
            "Weight decay is 0.01 (decoupled) for all but Adam, RAdam and SGD, which have none; "
            "β₂ and ε are each optimizer's own. **NAdamW, constant μ** is "
            "`torch.optim.NAdam(momentum_decay=inf)`: Nesterov's form of AdamW as in Dozat's paper "
            "and in AlgoPerf. NAdamW as torch makes it begins at half of that and is listed beside "
            "it. Muon takes all matrices but the first and the last, with Moonlight's scaling, so "
            "that one rate suits it and AdamW, which does the rest with β₁ = 0.9. *Muon Nesterov, "
            "NAdamW* has NAdamW with constant μ for the rest. *s = 3 for the rest* forecasts "
            "the rest alone, *for the matrices* those alone. *Muon 3 inside* orthogonalises "
            "m + 3·(m − m_before) in place of m; Nesterov's form is the same with β in place of 3.",
        ),
        "| Name | What it is | Momenta besides its own |",
        "|---|---|---|",
        *(
            f"| `{name}` | {c.label} | {', '.join(f'{m:g}' for m in c.momenta) or '–'} |"
            for name, c in CANDIDATES.items()
            if name not in {one.name for some in PLANES.values() for one in some}
        ),
        "",
        *_paragraphs(
            "A momentum is β₁, of Muon that of its matrices. AdamW's own is 0.9, Muon's and SOAP's "
            "0.95, SGD's 0.9. Usual rates are AdamW's in the table of tasks, but for SGD and: "
            + ", ".join(
                f"{OPTIMIZERS[name][0]} {scale:g} times that"
                for name, scale in SCALES.items()
                if scale != 1 and name in {c.method.optimizer for c in CANDIDATES.values()}
            )
            + ".",
        ),
        "## Late gradients",
        "",
        *_paragraphs(
            f"{_listed(TASKS[task].label for task in LATE_TASKS)} also run with gradients that are "
            f"applied {_listed(map(str, DELAYS))} steps late (as "
            "in the [first study](study.md#delayed-gradients)), under cosine. Forecasts reach D/2, "
            f"D or 2D steps ahead. β₁ = {HEAVY} is the momentum of Ajanthan et al. (ICML 2025). "
            "These rounds were added to the protocol after the first runs of round 1 had ended, "
            "and before any of their own.",
        ),
        "## The long form",
        "",
        *_paragraphs(
            "GPA (arXiv 2512.17131) and EMA-Nesterov (arXiv 2605.25395) look 20 to 300 steps ahead "
            "along a slow average M of another optimizer's displacements and walk that average. "
            "*Smooth* does so over AdamW (β₁ 0.9 and 0.8), NAdamW with constant μ and Muon "
            "Nesterov: M remembers τ = 1/(1 − β) steps, a 50th or a 20th of the run, and the "
            "forecast reaches s = c·τ along it, c = 0.1 or 0.25. Each has its own rate, and is "
            "compared with its own base. These rounds were added on 28 November 2026, before any "
            "run of their own.",
        ),
        "## Rates and momenta",
        "",
        *_paragraphs(
            "Every candidate is searched in the same way: the usual rate, a third and three times "
            "it; while the best is at an end, one rate beyond, up to a factor of 27; then √3 times "
            f"above and below the best. Search seeds are {_listed(map(str, SEARCH_SEEDS))}; the "
            f"second is spent only where the first ends within {NEAR:.0%} of the best. What counts "
            "is the final validation loss, a diverged run loses to all others. Two choices are "
            "reported: **at the usual momentum**, the setting that people keep, at its best rate; "
            "and **at the best momentum**, for which the rates (a factor of 3 apart) are searched "
            "at each momentum, on the same grid for a method and its forecast, and then refined at "
            "the best. The whole grid is reported too: how much a method forgives.",
            "How far to look: AdamW at each β₁ and Muon at each momentum of a plane, s = c/(1 − β) "
            f"with c = {_listed(f'{c:g}' for c in SHARES)}, and Nesterov's form at each, all at "
            f"the usual rate, seeds {_listed(map(str, FEWER_SEEDS))}; then AdamW's plane once "
            "more at 0.7 of the length, with batches four times as large, and at 28,000 steps. "
            "These rounds were added on 28 November 2026, before any run of their own.",
            f"At each choice run the fresh seeds {_listed(map(str, SEEDS))}; only these are "
            "evidence. The runs of 28,000 steps "
            f"({_listed(w.label.split(', ')[-1] for w in LONGER.values())}) "
            "take the rate chosen at 7,000 steps or the one √3 lower, whichever does better with "
            f"the first search seed, and have the seeds {_listed(map(str, FEWER_SEEDS))}.",
        ),
        "## What is reported",
        "",
        *_paragraphs(
            "**Steps saved** comes first. A run of fewer steps has a cosine of its own, so the "
            "main "
            f"methods also run at {_listed(f'{length:g}' for length in LENGTHS)} of the length, at "
            "the momentum and rate of the full length. For each seed the length at which a method "
            "would reach its rival's final test loss is read from a line through its losses "
            "against "
            "the logarithm of the length; mean and 95% t interval over the seeds. Where that lies "
            "outside of the measured lengths, the page says only that it does.",
            "**Final test loss**: differences of logarithms, paired by seed, in per cent, with "
            "95% t "
            "intervals. Means over tasks weigh tasks equally (Satterthwaite's degrees of freedom) "
            "and stand beside the same mean without the task that moves it most. With five seeds a "
            "single comparison shows a difference of about 1.7 standard deviations of its paired "
            "differences four times out of five; the page gives that size in per cent beside every "
            "comparison, so that *no difference* can be read.",
            "Each question has one **primary** comparison, at each candidate's best momentum, "
            "tested "
            "at 5% without correction. All others are secondary: corrected by Holm over all "
            "comparisons of their question, the same number for every row.",
        ),
        "| Question | Schedule | Compared with | Primary | Secondary |",
        "|---|---|---|---|---|",
        *map(_question_row, QUESTIONS),
        "",
        *_paragraphs(
            "No run is dropped: a candidate with diverged runs is reported with their number and "
            "called neither better nor worse. Runs are compared only if they were computed in one "
            "environment (processor, Python, torch).",
        ),
        "## Order",
        "",
        *_paragraphs(
            "A round is searched and measured before the next begins. Where time runs out, rounds "
            "at the end are missing as a whole, and the results say which; seeds are never "
            "dropped.",
        ),
        "| Round | Candidates | Workloads |",
        "|---|---|---:|",
        *(_round_row(n, one) for n, one in enumerate(ROUNDS, 1)),
    ]
    return "\n".join(lines) + "\n"


def _paragraphs(*texts: str) -> list[str]:
    return [line for text in texts for line in (*wrap(text, WIDTH, break_long_words=False), "")]


def _task_rows() -> Iterable[str]:
    for w in (TASKS | LONGER | LARGE).values():
        options = ", ".join(
            f"{k} {v:,}" if type(v) is int else f"{k} {v}" for k, v in w.options.items()
        )
        clip = "–" if w.clip_norm is None else f"{w.clip_norm:g}"
        yield (
            f"| {w.label} | `{w.task}`{': ' if options else ''}{options} | {w.batch_size} "
            f"| {w.epochs} | {clip} | {w.learning_rate:g} | {w.sgd_rate:g} |"
        )


def _question_row(question: Question) -> str:
    others = [CANDIDATES[c].label for c in question.candidates if c != question.primary]
    return (
        f"| {question.text} | {question.schedule} | {CANDIDATES[question.reference].label} "
        f"| {CANDIDATES[question.primary].label} | {', '.join(others)} |"
    )


def _round_row(number: int, one: Round) -> str:
    names = ", ".join(c.label for c in one.candidates)
    labels = [WORKLOADS[key].label for key in one.workloads]
    where = labels[0] if len(labels) == 1 else f"{len(labels)} workloads"
    return f"| {number}. {one.label}, {one.stage.value} | {names} | {where} |"


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
