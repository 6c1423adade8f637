"""The loss of a finished run, read at several places: θ, θ̂ and running averages of θ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from weightcast import WeightPrediction
from weightcast_lab.tasks import Task

TRUE, PREDICTED = "true", "predicted"
"""Names of readings: at θ and at θ̂."""


def average_name(share: float) -> str:
    """The name of the reading at an average over this share of the run."""
    return f"average-{share:g}"


class Averages:
    """Exponential moving averages of all that a model's training changes, one for each share of it.

    An average over a share q of T steps is a ← a + (θ - a) / min(t, max(1, q·T)) at step t: with
    the time scale q·T, and a plain mean until there are so many.
    """

    def __init__(self, model: nn.Module, shares: tuple[float, ...], steps: int) -> None:
        """`steps` is T; nothing is averaged yet."""
        self._live = moving_tensors(model)
        self._scales = {share: max(1.0, share * steps) for share in shares}
        self._steps = 0
        self._averages = {share: [t.detach().clone() for t in self._live] for share in shares}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the present weights in; they are θ."""
        self._steps += 1
        for share, average in self._averages.items():
            weight = 1 / min(self._steps, self._scales[share])
            torch._foreach_lerp_(average, self._live, weight)

    def items(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Each average by its reading's name."""
        for share, average in self._averages.items():
            yield average_name(share), average

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self._steps, "averages": dict(self.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._steps = state["steps"]
        for name, average in self.items():
            torch._foreach_copy_(average, state["averages"][name])


def moving_tensors(model: nn.Module) -> list[Tensor]:
    """All that changes in training: weights, and what normalisation gathers."""
    return [t for t in model.state_dict(keep_vars=True).values() if t.is_floating_point()]


def read(
    model: nn.Module, task: Task, prediction: WeightPrediction | None, averages: Averages
) -> dict[str, dict[str, float]]:
    """Validation and test loss at every place; the model is at θ before and after.

    Returns:
        By the reading's name: `validation`, and `test` if the task keeps test data apart.
    """
    live = moving_tensors(model)
    places = {TRUE: [t.detach().clone() for t in live], **dict(averages.items())}
    if prediction is not None:
        with prediction.predicted():
            places[PREDICTED] = [t.detach().clone() for t in live]
    readings = {}
    for name, place in places.items():
        with _moved(live, place):
            model.eval()
            validation, _ = task.evaluate(model)
            test = task.test_loss(model)
            readings[name] = {"validation": validation} | ({} if test is None else {"test": test})
    return readings


@contextmanager
def _moved(live: list[Tensor], place: list[Tensor]) -> Iterator[None]:
    with torch.no_grad():
        before = [t.clone() for t in live]
        torch._foreach_copy_(live, place)
        try:
            yield
        finally:
            torch._foreach_copy_(live, before)
