"""Results from disk, and what they come to: means, intervals, paired differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightcast_lab.errors import LabError
from weightcast_lab.files import FORMAT, to_json, write_atomically

Results = dict[str, Any]
StoredRun = dict[str, Any]


RUN_DEFAULTS: StoredRun = {"diverged_at": None, "test": {}}
"""What a run has that does not say otherwise."""

_KEYS = ("title", "metric", "configuration", "methods", "seeds", "environments", "runs")


def load_results(path: Path) -> list[Results]:
    """The experiments in a `results.json`: one of a comparison, many of anything else.

    Raises:
        LabError: it is missing, damaged, or of another version.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            newer = isinstance(content["format"], int) and content["format"] > FORMAT
            raise LabError(
                f"{path} has format {content['format']!r} and this version reads {FORMAT}: "
                + ("upgrade weightcast." if newer else "compute it again with this version.")
            )
        experiments = [
            {key: found[key] for key in _KEYS}
            | found
            | {"command": content["command"], "runs": [RUN_DEFAULTS | r for r in found["runs"]]}
            for found in content["experiments"]
        ]
        if not experiments:
            raise ValueError
        for experiment in experiments:
            _check_shape(experiment)
        return experiments
    except FileNotFoundError:
        raise LabError(
            f"{path} does not exist: give the folder of a command that has finished runs."
        ) from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LabError(f"{path} is damaged: the command that wrote it writes it again.") from None


def _check_shape(experiment: Results) -> None:
    """Check the shape of all that every report reads.

    Raises:
        ValueError: something is not of its type.
        KeyError: something is missing.
        TypeError: something that should have parts has none.
    """
    metric, configuration = experiment["metric"], experiment["configuration"]
    texts = [experiment["title"], metric["name"]]
    texts += [method[name] for method in experiment["methods"] for name in ("key", "label")]
    numbers = [metric["decimals"], configuration["learning rate"], *experiment["seeds"]]
    if "trial" in experiment:  # its runs have readings in place of curves
        both = [*experiment["runs"], *experiment["search"]]
        texts += [*(run["name"] for run in both), *(c["reading"] for c in experiment["choices"])]
        losses = [
            loss for run in both for place in run["readings"].values() for loss in place.values()
        ]
        numbers += [*(run["seed"] for run in both), *(run["rate"] for run in both), *losses]
    for run in experiment["runs"] if "trial" not in experiment else ():
        texts.append(run["method"])
        columns = [run["history"][name] for name in ("step", "validation_loss", "metric")]
        numbers += [run["seed"], *(value for column in columns for value in column)]
        if len(set(map(len, columns))) != 1 or not isinstance(run["history"]["seconds"], list):
            raise ValueError
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers)
    ):
        raise ValueError


def save_results(
    folder: Path, kind: str, experiments: Sequence[dict[str, Any]], **about: Any
) -> Path:
    """Write `results.json`: one small file with everything that a report needs."""
    path = folder / "results.json"
    content = {"format": FORMAT, "kind": kind, **about, "experiments": list(experiments)}
    write_atomically(path, to_json(content))
    return path
