"""A reproduction beside the paper: its tables and figures with our numbers, and what differed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightcast_lab.paper.protocol import (
    BASELINE,
    BETA1,
    BETA2,
    EPS,
    METHODS,
    RECIPES,
    TABLES,
    WEIGHT_DECAY,
    PrintedTable,
)
from weightcast_lab.report.tables import shown
from weightcast_lab.results.loading import Results, StoredRun
from weightcast_lab.results.measures import finished, measure, pairs
from weightcast_lab.results.statistics import Interval, mean_interval

COLUMNS = (*METHODS, BASELINE)
REFERENCE = METHODS[0].key

# what a task trains on unless told otherwise: by name in the results' configuration
_WHOLE: dict[str, dict[str, object]] = {
    "cifar10": {"width": 1.0, "training images": 50_000, "validation images": 10_000},
    "ptb": {"units": 650, "training tokens": 929_589, "validation tokens": 73_760},
}


@dataclass(frozen=True)
class Entry:
    """A cell of a table: ours over the seeds, the paper's, and the paired difference to AdamW."""

    ours: Interval | None
    printed: float | None
    difference: Interval | None
    is_best: bool
    problem: str


@dataclass(frozen=True)
class Comparison:
    """One of the paper's tables: for each network the entries of `COLUMNS`."""

    key: str
    title: str
    caption: str
    decimals: int
    higher_is_better: bool
    rows: dict[str, list[Entry]]


def beta2_of(experiment: Results) -> float:
    """β₂ of an experiment's methods."""
    return float(experiment["configuration"]["betas"][1])


def _by_beta2(experiments: Sequence[Results]) -> list[tuple[str, str, list[Results]]]:
    """The experiments of each β₂; if there are several, with what tells it in keys and titles."""
    beta2s = sorted(set(map(beta2_of, experiments)))
    several = len(beta2s) > 1
    return [
        (
            f"-beta2-{beta2:g}" if several else "",
            f" (β₂ = {beta2:g})" if several else "",
            [e for e in experiments if beta2_of(e) == beta2],
        )
        for beta2 in beta2s
    ]


def comparisons(experiments: Sequence[Results]) -> list[Comparison]:
    """Every table of the paper of which something was to be run, once for each β₂."""
    found = []
    for mark, said, alike in _by_beta2(experiments):
        chosen = {e["network"]: e for e in alike}
        for key, table in TABLES.items():
            here = {n: e for n, e in chosen.items() if _fits(n, table)}
            if not here:
                continue
            found.append(
                Comparison(
                    key=key + mark,
                    title=table.title + said,
                    caption=_caption(here),
                    decimals=table.decimals,
                    higher_is_better=table.higher_is_better,
                    rows={
                        network: _entries(chosen.get(network), table, network)
                        for network in dict.fromkeys((*table.rows, *here))
                    },
                )
            )
    return found


def _fits(network: str, table: PrintedTable) -> bool:
    """Whether a network, the paper's or not, belongs to the task of a table."""
    return RECIPES[network].task == RECIPES[next(iter(table.rows))].task


def _entries(experiment: Results | None, table: PrintedTable, network: str) -> list[Entry]:
    printed = dict(zip((m.key for m in METHODS), table.rows.get(network, ()), strict=False))
    if experiment is None:
        return [Entry(None, printed.get(m.key), None, False, "missing") for m in COLUMNS]

    def value(run: StoredRun) -> float:
        return measure(run, table.higher_is_better)[table.quantity]

    ours = {
        m.key: mean_interval([value(run) for run in finished(experiment, m.key).values()])
        for m in COLUMNS
    }
    means = [interval.mean for interval in ours.values() if interval]
    best = (max if table.higher_is_better else min)(means) if means else None
    return [
        Entry(
            ours=(mine := ours[m.key]),
            printed=printed.get(m.key),
            difference=None if m.key == REFERENCE else difference(experiment, m.key, value),
            is_best=mine is not None and mine.mean == best,
            problem=problem_of(experiment, m.key),
        )
        for m in COLUMNS
    ]


def difference(
    experiment: Results, key: str, value: Callable[[StoredRun], float], reference: str = REFERENCE
) -> Interval | None:
    """The paired difference of two methods in something measured in a run."""
    both = pairs(experiment, key, reference)
    return mean_interval([value(run) - value(other) for run, other in both])


def problem_of(experiment: Results, key: str) -> str:
    """Which runs are not in the number, and why."""
    diverged = [
        run["diverged_at"]
        for run in experiment["runs"]
        if run["method"] == key and run["diverged_at"] is not None
    ]
    failed = [f for f in experiment["failures"] if f["method"] == key]
    rest = len(experiment["seeds"]) - len(finished(experiment, key)) - len(diverged) - len(failed)
    parts = [f"diverged at step {step}" for step in diverged]
    parts += [f"failed: {failure['reason']}" for failure in failed]
    if rest:
        all_of_them = rest == len(experiment["seeds"])
        parts.append("missing" if all_of_them else f"{rest} seed{'s' * (rest > 1)} missing")
    return "; ".join(parts)


@dataclass(frozen=True)
class PaperFigure:
    """One of the paper's figures: a column of the histories, one panel a network."""

    key: str
    title: str
    column: str
    experiments: list[Results]

    @property
    def labelled(self) -> list[tuple[str, Results]]:
        """Its experiments, each with the name of its network."""
        return [(RECIPES[e["network"]].label, e) for e in self.experiments]


def figures(experiments: Sequence[Results]) -> list[PaperFigure]:
    """Figures 1 to 4, as far as there are runs, once for each β₂."""
    found = []
    for mark, said, alike in _by_beta2(experiments):
        for n, (task, column, what) in enumerate(_FIGURES, 1):
            if chosen := [e for e in alike if e["configuration"]["task"] == task and e["runs"]]:
                title = f"Figure {n}. {what}{said}"
                found.append(PaperFigure(f"figure{n}{mark}", title, column, chosen))
    return found


_FIGURES = (
    ("cifar10", "metric", "Validation accuracy against epochs, CIFAR-10"),
    ("cifar10", "validation_loss", "Validation loss against epochs, CIFAR-10"),
    ("ptb", "validation_loss", "Validation loss against epochs, Penn Treebank"),
    ("ptb", "metric", "Validation perplexity against epochs, Penn Treebank"),
)


def deviations(experiment: Results) -> list[str]:
    """What the paper did otherwise."""
    network = experiment["network"]
    recipe, ours = RECIPES[network], experiment["configuration"]
    said = [] if network in _PRINTED else ["the paper has no such network"]
    theirs: dict[str, object] = {
        "epochs": recipe.epochs,
        "batch size": recipe.batch_size,
        "learning rate": recipe.learning_rate,
        "milestones": list(recipe.milestones),
        "betas": [BETA1, BETA2],
        "eps": EPS,
        "weight decay": WEIGHT_DECAY,
        "gradient clipping": None,
        "precision": "fp32",
        **_WHOLE[recipe.task],
    }
    if "lossy" in str(ours["data"]):
        said.append("images that went through JPEG, which costs accuracy")
    said += [
        f"{name} {shown(ours[name])} instead of {shown(value)}"
        for name, value in theirs.items()
        if ours[name] != value
    ]
    return said


_PRINTED = {network for table in TABLES.values() for network in table.rows}


def _caption(experiments: dict[str, Results]) -> str:
    """What differed from the paper: said once where it holds for all networks."""
    said = {RECIPES[n].label: deviations(e) for n, e in experiments.items()}
    common = [d for d in next(iter(said.values())) if all(d in others for others in said.values())]
    parts = [f"Unlike the paper: {', '.join(common)}."] if common else []
    for label, own in said.items():
        if rest := [d for d in own if d not in common]:
            parts.append(f"{label}: {', '.join(rest)}.")
    return " ".join(parts) or "As the paper says."
