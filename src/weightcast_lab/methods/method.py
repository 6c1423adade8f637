"""What is compared: an optimizer, plain or predicted some steps ahead."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import weightcast
from weightcast.displacement.reach import checked_steps
from weightcast.displacement.rules import OBSERVED
from weightcast_lab.environment import NOT_INSTALLED, installed_version
from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.methods.optimizers import (
    MISSING_PACKAGE,
    PACKAGES,
    PLAIN_ONLY,
    WITHOUT_SCHEDULE,
    optimizer_named,
)
from weightcast_lab.plugins import name_in

PARTS = ("", "matrices", "rest")


@dataclass(frozen=True)
class Hyperparameters:
    """What every optimizer is given that takes it; None leaves the optimizer's default.

    Raises:
        LabError: a value is not possible.
    """

    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Check everything before anything runs."""
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            first, second = map(exact, self.betas)
            raise LabError(f"β₁ and β₂ must be in [0, 1), got {first} and {second}.")
        for name in ("eps", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                said = name.replace("_", " ")
                raise LabError(f"{said} must be 0 or more and finite, got {value:g}.")

    def taken_by(self, constructor: Callable[..., Optimizer]) -> dict[str, Any]:
        """The hyperparameters that are set and that the optimizer has."""
        known = inspect.signature(constructor).parameters
        return {name: v for name, v in vars(self).items() if v is not None and name in known}


NO_HYPERPARAMETERS = Hyperparameters()


def exact(value: float) -> str:
    """A number as short as it can be said without becoming another: `3`, `0.001`, `1e-05`."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


@cache  # a study makes each of its methods thousands of times
def _arguments_of(optimizer: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of the optimizer's constructor."""
    _, constructor = optimizer_named(optimizer)
    return inspect.signature(constructor).parameters


@dataclass(frozen=True)
class Method:
    """An optimizer, plain (`steps=None`) or with its weights predicted `steps` steps ahead.

    It may have a learning rate of its own. `decaying` is `damped` of `weightcast.attach`: the
    forecast walks as far as momentum alone would in so many steps. `beta1` is its own β₁, or SGD's
    momentum.
    `in_delays` says that `steps` counts delays: 1 looks as far ahead as the gradients are old.
    `part` is what is forecast of an optimizer that treats hidden matrices apart, as Muon does:
    `matrices` or the `rest`, and all where it is empty.

    Raises:
        LabError: there is no such optimizer, it cannot be predicted so far, or the learning rate
            or β₁ is not possible.
    """

    optimizer: str
    steps: float | None = None
    learning_rate: float | None = None
    decaying: bool = False
    beta1: float | None = None
    in_delays: bool = False
    part: str = ""

    def __post_init__(self) -> None:
        """Check everything before anything runs."""
        optimizer_named(self.optimizer)
        if self.part not in PARTS:
            raise unknown_name("part of the weights", self.part, PARTS)
        if self.steps is not None:
            if self.optimizer in PLAIN_ONLY:
                raise LabError(
                    f"{self.optimizer} cannot be predicted: it moves the weights to places of its "
                    f"own; name it as --baseline {self.optimizer}."
                )
            try:
                checked_steps(self.steps, "steps", self.decaying)
            except ValueError as error:
                raise LabError(f"--steps {self.steps:g}: {error}") from None
        if self.learning_rate is not None:
            check_learning_rate(self.learning_rate)
        if self.beta1 is not None:
            Hyperparameters((self.beta1, 0.0))
            if not {"betas", "momentum"} & _arguments_of(self.optimizer).keys():
                raise LabError(f"{self.optimizer} has no momentum to set.")

    @property
    def name(self) -> str:
        """What it is, whatever its learning rate: `adamw`, `adamw-s3`, `adamw-b0.99-s0.5D`."""
        name = name_in(self.optimizer)
        if self.beta1 is not None:
            name += f"-b{exact(self.beta1)}"
        if self.steps is None:
            return name
        unit = "D" if self.in_delays else ""
        part = f"-{self.part}" if self.part else ""
        decaying = "-decaying" if self.decaying else ""
        return f"{name}-s{exact(self.steps)}{unit}{decaying}{part}"

    @classmethod
    def parse(cls, name: str) -> Method:
        """The method of such a name or key, if its optimizer is one that the laboratory knows.

        Raises:
            LabError: it is not the name of a method.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise LabError(f"{name!r} is no method: write it like adamw-b0.99-s0.5D.")
        return cls(
            found["optimizer"],
            None if found["steps"] is None else float(found["steps"]),
            None if found["rate"] is None else float(found["rate"]),
            decaying=found["decaying"] is not None,
            beta1=None if found["beta1"] is None else float(found["beta1"]),
            in_delays=found["unit"] is not None,
            part=found["part"] or "",
        )

    @property
    def key(self) -> str:
        """A name for files: `adamw`, `adamw-s3`, `adamw-s3-lr0.01`."""
        own = "" if self.learning_rate is None else f"-lr{exact(self.learning_rate)}"
        return self.name + own

    @property
    def label(self) -> str:
        """A name for people: `AdamW`, `AdamW s=3`, `AdamW s=3, lr 0.01`."""
        label, _ = optimizer_named(self.optimizer)
        if self.beta1 is not None:
            symbol = "β" if self.optimizer.startswith("smooth") else "β₁"
            label += f" {symbol}={exact(self.beta1)}"
        if self.steps is not None:
            steps = "∞" if math.isinf(self.steps) else exact(self.steps).replace("-", "−")
            if self.in_delays:
                steps = {0.5: "D/2", 1.0: "D"}.get(self.steps, f"{steps}D")
            label += f" s={steps}" + (" decaying" if self.decaying else "")
            label += f" for the {self.part}" if self.part else ""
        return label + ("" if self.learning_rate is None else f", lr {exact(self.learning_rate)}")

    @property
    def plain(self) -> Method:
        """Without a forecast."""
        return replace(self, steps=None, decaying=False, in_delays=False, part="")

    @property
    def package(self) -> str | None:
        """The package that the optimizer comes from and its version, if it is not torch."""
        name = PACKAGES.get(self.optimizer)
        return None if name is None else f"{name} {installed_version(name)}"

    @property
    def is_scheduled(self) -> bool:
        """Whether its learning rate follows a schedule."""
        return self.optimizer not in WITHOUT_SCHEDULE

    def attach(
        self,
        model: nn.Module,
        learning_rate: float,
        hyperparameters: Hyperparameters = NO_HYPERPARAMETERS,
        delay: int = 0,
    ) -> Optimizer:
        """The optimizer of the model's parameters, with weight prediction on if wanted.

        `learning_rate` and `hyperparameters` are for those that have none of their own; `delay` is
        that of the gradients.
        """
        optimizer = self.make_optimizer(model, learning_rate, hyperparameters)
        self.predict(model, optimizer, delay)
        return optimizer

    def make_optimizer(
        self,
        model: nn.Module,
        learning_rate: float,
        hyperparameters: Hyperparameters = NO_HYPERPARAMETERS,
    ) -> Optimizer:
        """The plain optimizer of the model's parameters; arguments as `attach`."""
        _, constructor = optimizer_named(self.optimizer)
        lr = learning_rate if self.learning_rate is None else self.learning_rate
        options = hyperparameters.taken_by(constructor)
        if self.beta1 is not None and "momentum" in _arguments_of(self.optimizer):
            options["momentum"] = self.beta1
        elif self.beta1 is not None:
            _, beta2 = options.get("betas", _arguments_of(self.optimizer)["betas"].default)
            options["betas"] = self.beta1, beta2
        return constructor(model.parameters(), lr=lr, **options)

    def predict(
        self, model: nn.Module, optimizer: Optimizer, delay: int = 0
    ) -> weightcast.WeightPrediction | None:
        """Turn weight prediction on, if the method has it; `delay` is that of the gradients."""
        if self.steps is None:
            return None
        if self.part:
            for group in optimizer.param_groups:
                if group["use_muon"] is not (self.part == "matrices"):
                    group["prediction_steps"] = 0
        steps = self.steps * delay if self.in_delays else self.steps
        return weightcast.attach(model, optimizer, steps=steps, damped=self.decaying)

    def memory(self, model: nn.Module, optimizer: Optimizer) -> float:
        """What the method keeps beside the weights, in multiples of their own bytes.

        The optimizer's state, and a forecast's saved copy of the weights, which an observed
        displacement lends its own place. Gradients and temporary tensors are not counted.
        """
        weights = [p for p in model.parameters() if p.requires_grad]
        kept = sum(tensor.nbytes for tensor in _tensors_in(optimizer.state_dict()))
        if self.steps:
            kept += sum(p.nbytes for p in weights if OBSERVED not in optimizer.state.get(p, {}))
        return kept / sum(p.nbytes for p in weights)


_NUMBER = r"-?(?:inf|[\d.]+(?:e[+-]\d+)?)"
_NAME = re.compile(
    rf"(?P<optimizer>\w+)(?:-b(?P<beta1>{_NUMBER}))?"
    rf"(?:-s(?P<steps>{_NUMBER})(?P<unit>D)?(?P<decaying>-decaying)?(?:-(?P<part>matrices|rest))?)?"
    rf"(?:-lr(?P<rate>{_NUMBER}))?"
)


def methods_named(names: str) -> tuple[Method, ...]:
    """The methods in `adamw adamw-s1 nadamw`."""
    return tuple(map(Method.parse, names.split()))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors_in(part)


def check_learning_rate(value: float) -> None:
    """Refuse what no training can use.

    Raises:
        LabError: it is not positive and finite.
    """
    if not 0 < value < math.inf:
        raise LabError(f"--lr must be positive and finite, got {value:g}.")


def check_installed(methods: Iterable[Method]) -> None:
    """Find out before the first run, and not in the last.

    Raises:
        LabError: a method's optimizer comes from a package that is not installed.
    """
    for method in methods:
        package = PACKAGES.get(method.optimizer)
        if package is not None and installed_version(package) == NOT_INSTALLED:
            raise LabError(MISSING_PACKAGE.format(method.label, package))
