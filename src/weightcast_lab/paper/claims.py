"""The paper's claims, each with the verdict that follows from our intervals.

A claim is judged by paired differences to plain AdamW alone, and only where their 95% interval
excludes zero. The intervals are not corrected for comparing several methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightcast_lab.paper.comparison import difference
from weightcast_lab.paper.protocol import BASELINE, METHODS, TABLES
from weightcast_lab.report.tables import number, tone
from weightcast_lab.results.loading import Results, StoredRun
from weightcast_lab.results.measures import measure
from weightcast_lab.results.statistics import Interval

FORECASTS = tuple(method.key for method in METHODS[1:])


@dataclass(frozen=True)
class Claim:
    """What the paper says, what follows from our intervals, and why."""

    claim: str
    verdict: str
    reason: str


def claims(experiments: Sequence[Results]) -> list[Claim]:
    """The paper's claims (a) to (d), and NAdamW's place, each with what our intervals say."""
    early = [(difference(e, key, _early_loss), False) for e in experiments for key in FORECASTS]
    final = [
        (difference(e, key, _best_metric(e)), e["metric"]["higher_is_better"])
        for e in experiments
        for key in FORECASTS
    ]
    spread = [
        difference(e, key, _best_loss, FORECASTS[0]) for e in experiments for key in FORECASTS[1:]
    ]
    itself = [
        (difference(e, BASELINE.key, _best_metric(e)), e["metric"]["higher_is_better"])
        for e in experiments
    ]
    nadamw = [
        (difference(e, key, _best_loss, BASELINE.key), False)
        for e in experiments
        for key in FORECASTS
    ]
    return [
        Claim(
            "(a) Weight prediction converges faster, most visibly in the first epochs.",
            *_judged(early, "The validation loss after the first quarter of the epochs"),
        ),
        Claim(
            "(b) It ends better on every model.",
            *_judged(final, "The best metric", _gains(experiments)),
        ),
        Claim("(c) The result depends little on s.", *_judged_alike(spread)),
        Claim(
            "(d) It carries over to RMSprop, AdaGrad and Adam.",
            "not tested in these runs",
            "The paper announces it and prints no numbers. The study on six small tasks "
            "(docs/results.md) has RMSprop and Adagrad, which have no momentum: both are worse "
            "with a forecast, on average and with every number of steps. Adam is in neither.",
        ),
        Claim(
            "Is it more than NAdamW, which looks ahead at no cost? (not in the paper)",
            *_judged(nadamw, "The lowest validation loss", against="NAdamW"),
        ),
        Claim(
            "Does NAdamW itself end better than AdamW? (not in the paper)",
            *_judged(itself, "NAdamW's best metric"),
        ),
    ]


def _early_loss(run: StoredRun) -> float:
    losses = run["history"]["validation_loss"]
    return float(losses[math.ceil((len(losses) - 1) / 4)])


def _best_loss(run: StoredRun) -> float:
    return float(min(run["history"]["validation_loss"]))


def _best_metric(experiment: Results) -> Callable[[StoredRun], float]:
    higher = experiment["metric"]["higher_is_better"]
    return lambda run: measure(run, higher)["best metric"]


def _judged(
    differences: Sequence[tuple[Interval | None, bool]],
    what: str,
    more: str = "",
    against: str = "AdamW",
) -> tuple[str, str]:
    """The verdict on "better than AdamW", and the count that it follows from.

    With each difference comes whether higher is better.
    """
    known = [(d, higher) for d, higher in differences if d is not None]
    better = sum((d.mean > 0) == higher and d.mean != 0 for d, higher in known)
    if not known:
        return "not tested here", "There is no pair of finished runs."
    lead = f"{what} is better than {against}'s in {better} of {len(known)} cells"
    if all(d.half_width is None for d, _ in known):
        return (
            "not shown: one seed",
            f"{lead}; one seed cannot tell a difference from chance.{more}",
        )
    tones = [tone(d, higher) for d, higher in known]
    good, bad = tones.count("better"), tones.count("worse")
    sure = good + bad
    reason = f"{lead}; the 95% interval excludes zero in {sure}: {good} better, {bad} worse.{more}"
    if good and bad:
        return "mixed", reason
    if not sure:
        return "not shown", reason
    judged = "supported" if good else "contradicted"
    return (judged if sure == len(known) else f"{judged} in part"), reason


def _judged_alike(differences: Sequence[Interval | None]) -> tuple[str, str]:
    known = [d for d in differences if d is not None]
    if not known:
        return "not tested here", "There is no pair of finished runs."
    largest = max(abs(d.mean) for d in known)
    lead = f"The lowest validation losses with s = 2 and 3 are within {largest:.3f} of s = 1's"
    if all(d.half_width is None for d in known):
        return "not shown: one seed", f"{lead}; one seed cannot tell a difference from chance."
    sure = sum(d.excludes_zero for d in known)
    verdict = "contradicted in part" if sure else "not contradicted"
    return verdict, f"{lead}; the 95% interval excludes zero in {sure} of {len(known)} cells."


def _gains(experiments: Sequence[Results]) -> str:
    """The paper's own summary, the best of the three s, which flatters: over the networks."""
    parts = []
    for key, unit in (("table1", "% accuracy"), ("table3", "perplexity")):
        table = TABLES[key]
        best = max if table.higher_is_better else min
        gains, printed = [], []
        for experiment in experiments:
            if experiment["network"] in table.rows:
                value = _best_metric(experiment)
                found = [difference(experiment, k, value) for k in FORECASTS]
                if means := [d.mean for d in found if d]:
                    gains.append(best(means))
                    row = table.rows[experiment["network"]]
                    printed.append(best(row[1:]) - row[0])
        if gains:
            ours = sum(gains) / len(gains)
            theirs = sum(printed) / len(printed)
            parts.append(
                f"{number(ours, 2, sign=True)} {unit} "
                f"(the paper's table: {number(theirs, 2, sign=True)})"
            )
    if not parts:
        return ""
    return (
        f" The best of the three s, mean over networks: {', '.join(parts)}; "
        "picking the best of three flatters."
    )
