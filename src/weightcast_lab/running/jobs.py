"""A run that is to be computed: what, how, and where it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightcast_lab.methods.method import Method
from weightcast_lab.running.folders import RunFiles
from weightcast_lab.running.recipe import Recipe


@dataclass(frozen=True)
class Run:
    """One run: a method and a seed."""

    method: Method
    seed: int

    @property
    def label(self) -> str:
        """A name for people."""
        return f"{self.method.label}, seed {self.seed}"

    def files(self, folder: Path, configuration: str) -> RunFiles:
        """Where the run lives in the folder of its comparison."""
        return RunFiles(folder, self.method.key, self.seed, configuration)


@dataclass(frozen=True)
class Job:
    """A run that is to be computed: what, how, and where it is kept."""

    run: Run
    recipe: Recipe
    files: RunFiles
    experiment: str = ""

    @property
    def label(self) -> str:
        """A name for people."""
        return f"{self.experiment}: {self.run.label}" if self.experiment else self.run.label
