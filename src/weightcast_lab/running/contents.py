"""What a report needs to know of an experiment's runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from weightcast_lab.plugins import name_in
from weightcast_lab.results.loading import RUN_DEFAULTS
from weightcast_lab.results.measures import distinct
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.experiment import Experiment
from weightcast_lab.running.jobs import Job
from weightcast_lab.running.workers import Failures


def contents_of(
    experiments: Iterable[Experiment], results: Mapping[Job, RunRecord], failures: Failures
) -> list[dict[str, Any]]:
    """All that a report needs to know of each."""
    return [content_of(experiment, results, failures) for experiment in experiments]


def content_of(
    experiment: Experiment, results: Mapping[Job, RunRecord], failures: Failures
) -> dict[str, Any]:
    """All that a report needs to know of an experiment."""
    jobs = experiment.jobs()
    own = [results[job] for job in jobs if job in results]
    environments = distinct(e for record in own for e in record.environments)
    return {
        "key": experiment.key,
        **experiment.about,
        "configuration": experiment.configuration,
        "methods": [
            {
                "key": m.key,
                "label": m.label,
                "optimizer": name_in(m.optimizer),
                "steps": str(m.steps) if m.steps == math.inf else m.steps,  # JSON has no infinity
                "learning rate": m.learning_rate or experiment.recipe.learning_rate,
            }
            for m in experiment.methods
        ],
        "seeds": list(experiment.seeds),
        "environments": environments,
        "failures": [
            {"method": job.run.method.key, "seed": job.run.seed, "reason": failures[job]}
            for job in jobs
            if job in failures
        ],
        "runs": [_compact(record, environments) for record in own],
    }


_COSTS = ("memory", "cpu_seconds", "processor", "package")
"""What runs of earlier versions lack, or most runs."""


def _compact(record: RunRecord, environments: list[Any]) -> dict[str, Any]:
    """What reports read of a run: with seven digits, and without what most runs have not."""

    def shorten(value: Any) -> Any:
        return float(f"{value:.7g}") if isinstance(value, float) else value

    history = {name: list(map(shorten, column)) for name, column in record.history.items()}
    history["seconds"] = [round(value, 2) for value in history["seconds"]]
    test = {name: shorten(value) for name, value in record.test.items()}
    costs = {name: shorten(getattr(record, name)) for name in _COSTS}
    ends = {"diverged_at": record.diverged_at, "test": test}
    return {
        "method": record.method,
        "seed": record.seed,
        "environment": [environments.index(e) for e in record.environments],
        "history": history,
        **{name: value for name, value in costs.items() if value is not None},
        **{name: value for name, value in ends.items() if value != RUN_DEFAULTS[name]},
    }
