"""What a report of the second study reads: every run in short, and every choice."""

from __future__ import annotations

from typing import Any

from weightcast_lab.results.measures import distinct
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.workers import Failures
from weightcast_lab.trials.search import Arm, OpenTrials, RunResults
from weightcast_lab.trials.workloads import WORKLOADS


def contents_of(
    trials: OpenTrials, results: RunResults, failures: Failures
) -> list[dict[str, Any]]:
    """One experiment a workload that has finished runs."""
    found = [_content(trials, arm, results, failures) for arm in trials.arms.values()]
    return [content for content in found if content["runs"] or content["search"]]


def _content(
    trials: OpenTrials, arm: Arm, results: RunResults, failures: Failures
) -> dict[str, Any]:
    workload = WORKLOADS[arm.key]
    parts = {
        name: {job: r for job, r in results.items() if job.files.folder == e.folder}
        for name, e in (("search", arm.search), ("runs", arm.final))
    }
    both = [result for part in parts.values() for result in part.values()]
    environments = distinct(e for result in both for e in result.environments)
    return {
        "key": arm.key,
        **arm.final.about,
        "workload": workload.label,
        "trial": "cosine" if workload.cosine else "constant",
        "configuration": arm.final.configuration,
        "methods": [],
        "seeds": [],
        "environments": environments,
        "failures": [
            {"method": job.run.method.key, "seed": job.run.seed, "reason": reason}
            for job, reason in failures.items()
            if job.experiment in (arm.search.label, arm.final.label)
        ],
        "choices": [
            {
                "candidate": name,
                "at": at,
                "name": choice.candidate.method.name,
                "rate": choice.rate,
                "reading": trials.arms[_full(arm.key)].reading(choice, results),
                "is_edge": choice.is_edge,
            }
            for name, at, choice in trials.choices(arm.key, results)
        ],
        **{
            name: [_short(job, result, environments) for job, result in part.items()]
            for name, part in parts.items()
        },
    }


def _full(key: str) -> str:
    """The workload of full length."""
    return key.partition("-x")[0]


def _short(job: Job, result: RunRecord, environments: list[Any]) -> dict[str, Any]:
    method = job.run.method
    return {
        "name": method.name,
        "rate": method.learning_rate,
        "seed": job.run.seed,
        "diverged_at": result.diverged_at,
        "readings": {
            place: {data: float(f"{loss:.7g}") for data, loss in losses.items()}
            for place, losses in result.readings.items()
        },
        "steps": result.history["step"][-1],
        "cpu_seconds": round(result.cpu_seconds or 0.0, 2),
        "memory": round(result.memory or 0.0, 3),
        "environment": [environments.index(e) for e in result.environments],
    }
