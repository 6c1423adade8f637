"""Which runs come next: rates and momenta are searched on seeds of their own, then measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightcast_lab.methods.method import check_installed
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.experiment import Experiment, open_experiment
from weightcast_lab.running.folders import open_folder
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.readings import TRUE, average_name
from weightcast_lab.running.recipe import tasks_of
from weightcast_lab.study.search import Phase
from weightcast_lab.tasks import DataSource
from weightcast_lab.trials.protocol import (
    COARSE,
    FARTHEST,
    FEWER_SEEDS,
    NEAR,
    ROUNDS,
    SEARCH_SEEDS,
    SEEDS,
    Candidate,
    Round,
    Stage,
)
from weightcast_lab.trials.workloads import AVERAGES, LENGTHS, WORKLOADS, shorter

RunResults = Mapping[Job, RunRecord]

Losses = Mapping[tuple[int, int], float]
"""Losses by the rate's power and the search seed's number; infinite where a run diverged."""


@dataclass(frozen=True)
class Search:
    """Where a search stands: what is to be run next, or nothing more and its choice."""

    missing: tuple[tuple[int, int], ...]
    best: int = 0
    loss: float = math.inf
    is_edge: bool = False


def search(losses: Losses, *, refined: bool) -> Search:
    """What the search for a rate does next, given what it has seen.

    The coarse grid first; while its best is at an end, one rate beyond (a factor of 3), up to
    `FARTHEST`. If `refined`, then the rates √3 above and below the best. At each of these stages
    the first seed runs everywhere and the second where the first came within `NEAR` of the best.
    """
    powers = list(COARSE)
    while (found := _best(losses, powers)).best in (min(powers), max(powers)):
        if found.missing:
            return found
        beyond = found.best + (2 if found.best == max(powers) else -2)
        if abs(beyond) > FARTHEST or not math.isfinite(found.loss):
            break
        powers.append(beyond)
    if found.missing:
        return found
    if refined:
        found = _best(losses, [*powers, found.best - 1, found.best + 1])
    return replace(found, is_edge=not min(powers) < found.best < max(powers))


def _best(losses: Losses, powers: Sequence[int]) -> Search:
    missing = tuple((power, 0) for power in powers if (power, 0) not in losses)
    if missing:
        return Search(missing)
    first = min(losses[power, 0] for power in powers)
    near = [power for power in powers if losses[power, 0] <= first * (1 + NEAR)]
    missing = tuple((power, 1) for power in near if (power, 1) not in losses)
    if missing:
        return Search(missing)
    means = {power: (losses[power, 0] + losses[power, 1]) / 2 for power in near}
    best = min(means, key=lambda power: (means[power], power))
    return Search((), best, means[best])


def loss_of(result: RunRecord, candidate: Candidate, data: str = "validation") -> float:
    """The final loss by which a candidate is chosen; infinite if the run diverged."""
    if result.diverged_at is not None:
        return math.inf
    names = list(map(average_name, AVERAGES)) if candidate.averaged else [TRUE]
    return min(result.readings[name][data] for name in names)


@dataclass(frozen=True)
class Choice:
    """A candidate's momentum and rate, as its search found them."""

    candidate: Candidate
    power: int
    rate: float
    loss: float
    is_edge: bool = False


BEST = ("best", Stage.MOMENTA)


@dataclass(frozen=True)
class Arm:
    """A workload, and where its runs live."""

    key: str
    search: Experiment
    final: Experiment

    def job(self, candidate: Candidate, rate: float, seed: int, *, is_search: bool) -> Job:
        """One run."""
        experiment = self.search if is_search else self.final
        method = replace(candidate.method, learning_rate=rate)
        (job,) = replace(experiment, methods=(method,), seeds=(seed,)).jobs()
        return job

    def searching(
        self, candidate: Candidate, results: RunResults, *, refined: bool
    ) -> tuple[list[Job], Choice | None]:
        """The runs that the search wants next; if there are none, its choice."""
        workload, jobs = WORKLOADS[self.key], {}
        losses: dict[tuple[int, int], float] = {}
        while True:
            found = search(losses, refined=refined)
            if not found.missing:
                rate = candidate.rate(workload, found.best)
                return [], Choice(candidate, found.best, rate, found.loss, found.is_edge)
            jobs = {
                (power, n): self.job(
                    candidate, candidate.rate(workload, power), SEARCH_SEEDS[n], is_search=True
                )
                for power, n in found.missing
            }
            wanted = [job for job in jobs.values() if job not in results]
            if wanted:
                return wanted, None
            losses |= {at: loss_of(results[job], candidate) for at, job in jobs.items()}

    def choice(self, candidate: Candidate, results: RunResults) -> Choice | None:
        """The choice at this momentum, if its search has ended."""
        return self.searching(candidate, results, refined=True)[1]

    def over_momenta(
        self, candidate: Candidate, results: RunResults
    ) -> tuple[list[Job], Choice | None]:
        """The runs that the search over momenta wants next; if there are none, its choice."""
        each = [self.searching(one, results, refined=False) for one in candidate.each]
        if wanted := [job for jobs, _ in each for job in jobs]:
            return wanted, None
        best = min((c for _, c in each if c is not None), key=lambda choice: choice.loss)
        return self.searching(best.candidate, results, refined=True)

    def reading(self, choice: Choice, results: RunResults) -> str:
        """Where a candidate's loss is read: θ, or the average that its search found best."""
        if not choice.candidate.averaged:
            return TRUE
        jobs = [
            self.job(choice.candidate, choice.rate, seed, is_search=True) for seed in SEARCH_SEEDS
        ]
        found = [results[job].readings for job in jobs if job in results]
        return min(
            map(average_name, AVERAGES),
            key=lambda name: sum(readings[name]["validation"] for readings in found if readings),
        )

    def from_shorter(self, found: Choice, results: RunResults) -> tuple[list[Job], Choice | None]:
        """For a run four times as long: the rate that was found, or one √3 lower; one search seed.

        The runs that are wanted next; if there are none, the choice.
        """
        choices: list[tuple[Job, Choice | None]] = []
        candidate = found.candidate
        for power in (found.power, found.power - 1):
            rate = candidate.rate(WORKLOADS[self.key], power)
            job = self.job(candidate, rate, SEARCH_SEEDS[0], is_search=True)
            if job not in results:
                choices.append((job, None))
            else:
                loss = loss_of(results[job], candidate)
                choices.append((job, Choice(candidate, power, rate, loss)))
        wanted = [job for job, choice in choices if choice is None]
        if wanted:
            return wanted, None
        return [], min((c for _, c in choices if c is not None), key=lambda choice: choice.loss)

    def finals(self, choice: Choice, seeds: Iterable[int] = SEEDS) -> list[Job]:
        """The runs that are evidence."""
        return [self.job(choice.candidate, choice.rate, seed, is_search=False) for seed in seeds]


@dataclass(frozen=True)
class OpenTrials:
    """The study in its folder."""

    arms: Mapping[str, Arm]
    rounds: tuple[Round, ...]

    def phases(self, results: RunResults) -> Iterator[Phase]:
        """All phases in order: `results` grow from one to the next."""
        for one in self.rounds:
            if one.stage is Stage.LENGTHS:
                jobs = list(self._at_lengths(one, results))
                yield Phase(f"{one.label}: {one.stage.value}", jobs, len(jobs))
                continue
            number = 0
            while wanted := list(dict.fromkeys(self._wanted(one, results))):
                number += 1
                yield Phase(f"{one.label}: search, part {number}", _ordered(wanted), len(wanted))
                if any(job not in results for job in wanted):
                    break  # out of time, or failed: its final runs cannot be chosen yet
            jobs = _ordered(job for choices in self.chosen(one, results) for job in choices)
            yield Phase(f"{one.label}: {one.stage.value}", jobs, len(jobs))

    def _searched(
        self, one: Round, arm: Arm, candidate: Candidate, results: RunResults
    ) -> tuple[list[Job], Choice | None]:
        if one.stage is Stage.MOMENTA:
            return arm.over_momenta(candidate, results)
        if one.stage is Stage.PLANE:
            rate = candidate.rate(WORKLOADS[arm.key], 0)
            return [], Choice(candidate, 0, rate, math.nan)
        if one.stage is Stage.LONGER:
            found = self.arms["long-cosine"].choice(candidate.usual, results)
            return ([], None) if found is None else arm.from_shorter(found, results)
        return arm.searching(candidate.usual, results, refined=True)

    def _wanted(self, one: Round, results: RunResults) -> Iterator[Job]:
        for key in one.workloads:
            for candidate in one.candidates:
                yield from self._searched(one, self.arms[key], candidate, results)[0]

    def chosen(self, one: Round, results: RunResults) -> Iterator[list[Job]]:
        """The final runs of every candidate whose search has ended."""
        for key in one.workloads:
            for candidate in one.candidates:
                choice = self._searched(one, self.arms[key], candidate, results)[1]
                if choice is not None:
                    is_short = one.stage in (Stage.LONGER, Stage.PLANE)
                    seeds = FEWER_SEEDS if is_short else SEEDS
                    yield self.arms[key].finals(choice, seeds)

    def choices(self, key: str, results: RunResults) -> Iterator[tuple[str, str, Choice]]:
        """The choices on a workload: candidate, `usual` or `best` momentum, and choice."""
        base = next((k for k in WORKLOADS if key in (shorter(k, x) for x in LENGTHS)), key)
        rounds = [one for one in self.rounds if base in one.workloads]
        for candidate in dict.fromkeys(c for one in rounds for c in one.candidates):
            stages = {one.stage for one in rounds if candidate in one.candidates}
            for at, stage in (("usual", Stage.DEFAULTS), ("usual", Stage.LONGER), BEST):
                if stage in stages:
                    one = Round("", (base,), (candidate,), stage)
                    _, choice = self._searched(one, self.arms[base], candidate, results)
                    if choice is not None:
                        yield candidate.name, at, choice

    def _at_lengths(self, one: Round, results: RunResults) -> Iterator[Job]:
        for length in LENGTHS:
            for key in one.workloads:
                arm, short = self.arms[key], self.arms[shorter(key, length)]
                for candidate in one.candidates:
                    choices = (
                        arm.choice(candidate.usual, results),
                        arm.over_momenta(candidate, results)[1],
                    )
                    for choice in dict.fromkeys(c for c in choices if c is not None):
                        yield from short.finals(choice)


def _ordered(jobs: Iterable[Job]) -> list[Job]:
    """Each job once: those that have begun first, then seed by seed."""
    return sorted(dict.fromkeys(jobs), key=lambda job: (not job.files.has_begun, job.run.seed))


def open_trials(source: DataSource, device: str, folder: Path) -> OpenTrials:
    """Make the folders of the study, or resume in them.

    Raises:
        LabError: its data cannot be used, a package is missing, or the folder holds something else.
    """
    check_installed(c.method for one in ROUNDS for c in one.candidates)
    recipes = {key: recipe.placed(source, device) for key, recipe in WORKLOADS.items()}
    tasks = tasks_of(recipes)
    open_folder(folder, {"kind": "trials", "search seeds": list(SEARCH_SEEDS)})

    def opened(key: str, phase: str) -> Experiment:
        label = f"{WORKLOADS[key].label} ({phase})"
        return open_experiment(key, recipes[key], (), (), folder / key / phase, tasks[key], label)

    arms = {key: Arm(key, opened(key, "search"), opened(key, "final")) for key in WORKLOADS}
    return OpenTrials(arms, ROUNDS)
