"""What is compared: optimizers by name, plain or predicted some steps ahead."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import weightcast
from weightcast.displacement.reach import checked_steps
from weightcast.displacement.rules import OBSERVED
from weightcast_lab.environment import NOT_INSTALLED, installed_version
from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.plugins import is_own, load, name_in


def _other(package: str, name: str) -> Any:
    """A class of a package that only some methods need.

    Raises:
        LabError: it is not installed.
    """
    try:
        return getattr(importlib.import_module(package), name)
    except ImportError:
        raise LabError(_MISSING.format(name, package)) from None


_MISSING = "{} comes from the package {}, which is not installed: pip install 'weightcast[study]'."


def _lion(
    params: Iterable[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.01,
) -> Optimizer:
    made: Optimizer = _other("pytorch_optimizer", "Lion")(
        params, lr=lr, betas=betas, weight_decay=weight_decay
    )
    return made


def _schedule_free(
    params: Iterable[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    made: Optimizer = _other("schedulefree", "AdamWScheduleFree")(
        params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )
    return made


def _lookahead(
    params: Iterable[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """AdamW whose weights go half the way back every five steps.

    It is evaluated where it is, not at the slow weights: they are the same every fifth step.
    """
    fast = torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    made: Optimizer = _other("pytorch_optimizer", "Lookahead")(fast, k=5, alpha=0.5)
    return made


def _muon(
    params: Iterable[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    momentum: float = 0.95,
    *,
    nesterov: bool,
    variant: Callable[..., Optimizer] | None = None,
) -> Optimizer:
    """Muon for all matrices but the first and the last, AdamW for these and for vectors.

    In the networks here the first is the embedding or the first convolution and the last makes the
    output. Muon's steps are scaled to the size of AdamW's, so that one learning rate suits both.
    """
    parameters = list(params)
    hidden = [p for p in parameters if p.ndim > 1][1:-1]
    inside = {id(p) for p in hidden}
    common = {"lr": lr, "weight_decay": weight_decay}
    rest = {"params": [p for p in parameters if id(p) not in inside], "use_muon": False}
    made: Optimizer = (variant or _other("pytorch_optimizer", "Muon"))(
        [
            {**rest, "betas": betas, "eps": eps, **common},
            *([{"params": hidden, "use_muon": True, **common}] if hidden else []),
        ],
        momentum=momentum,
        nesterov=nesterov,
        use_adjusted_lr=True,
    )
    return made


def _muon_variant(name: str, **options: Any) -> Callable[..., Optimizer]:
    """A Muon of `weightcast_lab.methods.muon`, loaded only where it is wanted."""

    def make(*args: Any, **kwargs: Any) -> Optimizer:
        if installed_version("pytorch_optimizer") == NOT_INSTALLED:
            raise LabError(_MISSING.format("Muon", "pytorch_optimizer"))
        kind = getattr(importlib.import_module("weightcast_lab.methods.muon"), name)
        made: Optimizer = kind(*args, **options, **kwargs)
        return made

    return make


def _adabelief(
    params: Iterable[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0.01,
) -> Optimizer:
    made: Optimizer = _other("pytorch_optimizer", "AdaBelief")(
        params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )
    return made


def _soap(
    params: Iterable[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.95, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    made: Optimizer = _other("pytorch_optimizer", "SOAP")(
        params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )
    return made


# name -> (label, constructor that takes parameters and lr); all else is torch's default, unless
# `Hyperparameters` says otherwise.
# NAdamW decays as AdamW does by default, so that the two differ in the look-ahead only.
OPTIMIZERS: dict[str, tuple[str, Callable[..., Optimizer]]] = {
    "adamw": ("AdamW", torch.optim.AdamW),
    "nadamw": (
        "NAdamW",
        partial(torch.optim.NAdam, weight_decay=0.01, decoupled_weight_decay=True),
    ),
    # torch's μ_t begins at half of β₁ and takes some ten thousand steps to reach it; with an
    # infinite decay of that half it is β₁ from the first step on, as in Dozat's paper and AlgoPerf
    "nadamw_mu": (
        "NAdamW, constant μ",
        partial(
            torch.optim.NAdam,
            weight_decay=0.01,
            decoupled_weight_decay=True,
            momentum_decay=math.inf,
        ),
    ),
    "adam": ("Adam", torch.optim.Adam),
    "adabelief": ("AdaBelief", _adabelief),
    "soap": ("SOAP", _soap),
    "radam": ("RAdam", torch.optim.RAdam),
    "sgd": ("SGD", partial(torch.optim.SGD, momentum=0.9)),
    "nesterov": ("Nesterov", partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
    "rmsprop": ("RMSprop", torch.optim.RMSprop),
    "adagrad": ("Adagrad", torch.optim.Adagrad),
    "lion": ("Lion", _lion),
    "muon": ("Muon", partial(_muon, nesterov=False)),
    "muon_nesterov": ("Muon Nesterov", partial(_muon, nesterov=True)),
    "muon_nadamw": (
        "Muon Nesterov, NAdamW",
        partial(_muon, nesterov=True, variant=_muon_variant("MuonNAdamW")),
    ),
    **{
        f"muon_inside{ahead}": (
            f"Muon {ahead} inside",
            partial(_muon, nesterov=False, variant=_muon_variant("MuonInside", ahead=ahead)),
        )
        for ahead in (1, 3, 8)
    },
    "schedule_free": ("Schedule-free AdamW", _schedule_free),
    "lookahead": ("Lookahead AdamW", _lookahead),
}

PACKAGES = {
    "lion": "pytorch_optimizer",
    "muon": "pytorch_optimizer",
    "muon_nesterov": "pytorch_optimizer",
    "muon_nadamw": "pytorch_optimizer",
    "muon_inside1": "pytorch_optimizer",
    "muon_inside3": "pytorch_optimizer",
    "muon_inside8": "pytorch_optimizer",
    "adabelief": "pytorch_optimizer",
    "soap": "pytorch_optimizer",
    "lookahead": "pytorch_optimizer",
    "schedule_free": "schedulefree",
}
"""Where those come from that torch lacks."""

PLAIN_ONLY = ("schedule_free", "lookahead")
"""They move the weights to places of their own, so that a forecast has no meaning."""

PARTS = ("", "matrices", "rest")

WITHOUT_SCHEDULE = ("schedule_free",)
"""They replace the learning rate's schedule: it stays constant."""


def _known(optimizer: str) -> tuple[str, Callable[..., Optimizer]]:
    """Label and constructor of an optimizer by its name, or by `path/to/file.py:name`.

    Raises:
        LabError: there is no such optimizer.
    """
    if is_own(optimizer):
        return name_in(optimizer), load(optimizer, "optimizer")
    if optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer]


@dataclass(frozen=True)
class Hyperparameters:
    """For every optimizer that takes them; None leaves the optimizer's default.

    Raises:
        LabError: a value is not possible.
    """

    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Check everything before anything runs."""
        if self.betas is not None and not all(0 <= beta < 1 for beta in self.betas):
            raise LabError(f"Betas {self.betas} are not possible: each must be in [0, 1).")
        for name in ("eps", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise LabError(f"{name} {value:g} is not possible: it must be 0 or more.")

    def taken_by(self, constructor: Callable[..., Optimizer]) -> dict[str, Any]:
        """Those that are set and that the optimizer has."""
        known = inspect.signature(constructor).parameters
        return {name: v for name, v in vars(self).items() if v is not None and name in known}


NO_HYPERPARAMETERS = Hyperparameters()


def exact(value: float) -> str:
    """A number as short as it can be said without becoming another: `3`, `0.001`, `1e-05`."""
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


@cache  # a study makes each of its methods thousands of times
def _arguments_of(optimizer: str) -> Mapping[str, inspect.Parameter]:
    """Of the optimizer's constructor."""
    _, constructor = _known(optimizer)
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
        _known(self.optimizer)
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
                raise LabError(f"--steps {self.steps:g} is not possible: {error}") from None
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

    @property
    def key(self) -> str:
        """A name for files: `adamw`, `adamw-s3`, `adamw-s3-lr0.01`."""
        own = "" if self.learning_rate is None else f"-lr{exact(self.learning_rate)}"
        return self.name + own

    @property
    def label(self) -> str:
        """A name for people: `AdamW`, `AdamW s=3`, `AdamW s=3, lr 0.01`."""
        label, _ = _known(self.optimizer)
        if self.beta1 is not None:
            label += f" β₁={exact(self.beta1)}"
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
        _, constructor = _known(self.optimizer)
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
        raise LabError(f"--lr {value:g} is not possible: it must be positive and finite.")


def check_installed(methods: Iterable[Method]) -> None:
    """Find out before the first run, and not in the last.

    Raises:
        LabError: a method's optimizer comes from a package that is not installed.
    """
    for method in methods:
        package = PACKAGES.get(method.optimizer)
        if package is not None and installed_version(package) == NOT_INSTALLED:
            raise LabError(_MISSING.format(method.label, package))
