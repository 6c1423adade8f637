"""A study's runs: learning rates are searched on seeds of their own, then fresh seeds measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightcast_lab.methods.method import Method, check_installed
from weightcast_lab.results.measures import distinct
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.contents import content_of
from weightcast_lab.running.experiment import Experiment, open_experiment, resume_order
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.recipe import Recipe, tasks_of
from weightcast_lab.running.workers import Failures
from weightcast_lab.study.studies import Design, Round, rounds_of
from weightcast_lab.study.workloads import WORKLOADS
from weightcast_lab.tasks import DataSource, Task

RunResults = Mapping[Job, RunRecord]


@dataclass(frozen=True)
class Choice:
    """The learning rate that a search found, and whether it is the lowest or highest one tried."""

    learning_rate: float
    edge: str = ""

    @property
    def is_highest(self) -> bool:
        """Whether a higher one might do better."""
        return self.edge == "highest"


def choose(losses: Mapping[float, Sequence[float | None]]) -> Choice:
    """The learning rate with the lowest mean loss over the search's seeds.

    None stands for a diverged run: a rate loses to any at which fewer runs diverged.
    """

    def badness(rate: float) -> tuple[int, float, float]:
        finished = [loss for loss in losses[rate] if loss is not None]
        mean = sum(finished) / len(finished) if finished else 0.0
        return len(losses[rate]) - len(finished), mean, rate

    best = min(losses, key=badness)
    edges = {max(losses): "highest", min(losses): "lowest"}
    return Choice(best, edges.get(best, "") if len(losses) > 1 else "")


@dataclass(frozen=True)
class Arm:
    """A workload of a study with its methods: the search for learning rates, and the final runs."""

    workload: str
    methods: tuple[Method, ...]
    design: Design
    search: Experiment
    final: Experiment

    def searching(self, methods: Iterable[Method], results: RunResults) -> Experiment:
        """The search for these methods: each at all of its rates."""
        tried = [
            replace(method, learning_rate=rate)
            for method in methods
            for rate in self.rates(method, results)
        ]
        return replace(self.search, methods=tuple(tried))

    def rates(self, method: Method, results: RunResults) -> tuple[float, ...]:
        """The method's grid, and beyond it as far as its best rate is an edge."""
        tried = self.design.rates(WORKLOADS[self.workload], method)
        further = self.design.further_rates(WORKLOADS[self.workload], method)
        while (best := self._best(method, tried, results)) and best.edge:
            beyond = [r for r in further if (r > max(tried) if best.is_highest else r < min(tried))]
            if not beyond:
                break
            tried = (*tried, min(beyond, key=lambda rate: abs(rate - best.learning_rate)))
        return tuple(sorted(tried))

    def choice(self, method: Method, results: RunResults) -> Choice | None:
        """The method's learning rate, if its search has come to its end."""
        return self._best(method, self.rates(method, results), results)

    def _best(self, method: Method, rates: Iterable[float], results: RunResults) -> Choice | None:
        """The best of these rates, if all have been tried."""
        losses = {}
        for rate in rates:
            one = replace(self.search, methods=(replace(method, learning_rate=rate),))
            found = [results.get(job) for job in one.jobs()]
            losses[rate] = [_final_loss(result) for result in found if result is not None]
            if len(losses[rate]) < len(found):
                return None
        return choose(losses)

    def measuring(self, methods: Iterable[Method], results: RunResults) -> Experiment:
        """The final runs of those of the methods whose rates are chosen."""
        chosen = [(method, self.choice(method, results)) for method in methods]
        at_rates = [replace(m, learning_rate=c.learning_rate) for m, c in chosen if c is not None]
        return replace(self.final, methods=tuple(at_rates))


def _final_loss(record: RunRecord) -> float | None:
    """The last validation loss; None if the run diverged."""
    if record.diverged_at is not None:
        return None
    return float(record.history["validation_loss"][-1])


@dataclass(frozen=True)
class Phase:
    """Part of a search, or the final runs, of a round.

    Attributes:
        label: What it is.
        jobs: The runs that can be made now: seed by seed, and within a seed workload by workload.
        size: How many there are when all rates are chosen.
    """

    label: str
    jobs: list[Job]
    size: int


@dataclass(frozen=True)
class OpenStudy:
    """A study in its folder."""

    arms: tuple[Arm, ...]
    rounds: tuple[Round, ...]

    def phases(self, results: RunResults) -> Iterator[Phase]:
        """All phases in order: `results` grow from one to the next."""
        earlier: set[tuple[str, Method]] = set()
        for one in self.rounds:
            arms = [arm for arm in self.arms if arm.workload in one.workloads]
            work = [
                (
                    arm,
                    [
                        m
                        for m in one.methods
                        if m in arm.methods and (arm.workload, m) not in earlier
                    ],
                )
                for arm in arms
            ]
            earlier |= {(arm.workload, method) for arm in arms for method in one.methods}
            grid = resume_order([arm.searching(methods, {}) for arm, methods in work])
            yield Phase(f"{one.label}, search for learning rates", grid, len(grid))
            searched = set(grid)
            while beyond := [
                job
                for job in resume_order([arm.searching(methods, results) for arm, methods in work])
                if job not in searched
            ]:
                searched |= set(beyond)
                yield Phase(f"{one.label}, beyond the grid", beyond, len(beyond))
            final = resume_order([arm.measuring(methods, results) for arm, methods in work])
            size = sum(len(methods) * len(arm.design.seeds) for arm, methods in work)
            yield Phase(f"{one.label}, at the chosen rates", final, size)


def open_study(
    names: Iterable[str],
    source: DataSource,
    device: str,
    folder: Path,
    seeds: int | None = None,
) -> OpenStudy:
    """Make the folders of a study, or resume in them.

    Args:
        names: Of studies.
        source: Where the data are.
        device: To compute on.
        folder: Of the results.
        seeds: How many at the chosen rates, if not as many as the protocol says.

    Raises:
        LabError: there is no such study, its data cannot be used, a package is missing, or the
            folder holds something else.
    """
    rounds, design = rounds_of(names)
    if seeds is not None:
        design = replace(design, seeds=tuple(range(seeds)))
    check_installed(method for one in rounds for method in one.methods)
    workloads = dict.fromkeys(key for one in rounds for key in one.workloads)
    recipes = {key: WORKLOADS[key].placed(source, device) for key in workloads}
    tasks = tasks_of(recipes)
    open_folder(folder, {"kind": "study", **_searched(design)})
    arms = []
    for key in workloads:
        takes, mine = WORKLOADS[key].takes, [one for one in rounds if key in one.workloads]
        methods = [m for one in mine for m in one.methods if takes(m)]
        search, final = (
            _opened(key, recipes[key], tasks[key], folder / key / phase, chosen, phase)
            for phase, chosen in (("search", design.search_seeds), ("final", design.seeds))
        )
        arms.append(Arm(key, tuple(dict.fromkeys(methods)), design, search, final))
    return OpenStudy(tuple(arms), tuple(rounds))


def _opened(
    key: str, recipe: Recipe, task: Task, folder: Path, seeds: Iterable[int], phase: str
) -> Experiment:
    label = f"{recipe.label} ({phase})"
    return open_experiment(key, recipe, (), seeds, folder, task, label)


def _searched(design: Design) -> dict[str, Any]:
    """What the choice of learning rates depends on; more seeds at the chosen ones may follow."""
    return {
        "multiples of usual learning rates": list(design.multiples),
        "search seeds": list(design.search_seeds),
    }


def contents_of(study: OpenStudy, results: RunResults, failures: Failures) -> list[dict[str, Any]]:
    """All that a report needs to know of a study: the final runs, and what the search found."""
    contents = []
    for arm in study.arms:
        final = arm.measuring(arm.methods, results)
        content = content_of(final, results, failures)
        for run in content["runs"]:  # thousands: without what no report reads
            del run["history"]["train_loss"]
            run["history"]["seconds"] = run["history"]["seconds"][-1:]
        for entry, method in zip(content["methods"], final.methods, strict=True):
            plain = replace(method, learning_rate=None)
            choice = arm.choice(plain, results)
            assert choice is not None  # or it would not be among the final methods
            entry |= {"name": plain.name, "label": plain.label, "edge": choice.edge}
        recipe = WORKLOADS[arm.workload]
        contents.append(
            {
                **content,
                "workload": recipe.label,
                "variant_of": recipe.variant_of,
                "series": recipe.series,
                "delay": recipe.delay,
                "wanted": [{"name": m.name, "label": m.label} for m in arm.methods],
                "search": _search_content(arm, results),
            }
        )
    return contents


def _search_content(arm: Arm, results: RunResults) -> dict[str, Any]:
    """What every rate of each method came to, seed by seed; None where a run diverged."""
    jobs = {m: arm.searching([m], results).jobs() for m in arm.methods}
    found = [results[job] for own in jobs.values() for job in own if job in results]
    tried = []
    for method, own in jobs.items():
        for rate in dict.fromkeys(job.run.method.learning_rate for job in own):
            runs = [results.get(job) for job in own if job.run.method.learning_rate == rate]
            losses = [_shortened(_final_loss(run)) for run in runs if run is not None]
            if len(losses) == len(runs):
                tried.append({"name": method.name, "learning rate": rate, "final loss": losses})
    return {
        "seeds": list(arm.design.search_seeds),
        "environments": distinct(e for record in found for e in record.environments),
        "tried": tried,
    }


def _shortened(loss: float | None) -> float | None:
    return None if loss is None else float(f"{loss:.7g}")
