"""What the laboratory's tests share."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.lab.helpers import LineTask
from weightcast_lab.cli import main
from weightcast_lab.methods.method import Method
from weightcast_lab.results.records import RunRecord
from weightcast_lab.running.jobs import Run
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.running.train import train
from weightcast_lab.tasks import Task


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def weightcast(capsys) -> Callable[..., Outcome]:
    """Runs the command in this process (its runs are in worker processes all the same)."""

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


@pytest.fixture
def train_line(tmp_path: Path) -> Callable[..., RunRecord | None]:
    """Trains a `LineTask` here and saves the run; the same `folder` goes on with the same run."""

    def run(
        method: Method = Method("adamw"),  # noqa: B008
        seed: int = 0,
        folder: str = "run",
        task: Task | None = None,
        on_step: Callable[[int, int, float], None] = lambda *_: None,
        warn: Callable[[str], None] = pytest.fail,
        learning_rate: float = 0.01,
        until: float = math.inf,
        **more: Any,
    ) -> RunRecord | None:
        recipe = Recipe("line", learning_rate, 4, 3, **more)
        cell = Run(method, seed)
        files = cell.files(tmp_path / folder, "configuration")
        record = train(cell, task or LineTask(), recipe, files, on_step, warn, until)
        if record is not None:
            files.save_result(record)
        return record

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Computes as the workers do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_text(tmp_path: Path) -> Path:
    """A folder with three small texts in the Penn Treebank's format."""
    folder = tmp_path / "text"
    folder.mkdir()
    for name, lines in (("train", 60), ("valid", 15), ("test", 20)):
        text = "".join(f" the {'cat' if n % 3 else 'dog'} sat <unk> \n" for n in range(lines))
        (folder / f"ptb.{name}.txt").write_text(text)
    return folder
