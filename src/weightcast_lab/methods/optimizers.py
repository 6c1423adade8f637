"""What is compared: optimizers by name, plain or predicted some steps ahead."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

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
        raise LabError(MISSING_PACKAGE.format(name, package)) from None


MISSING_PACKAGE = (
    "{} comes from the package {}, which is not installed: pip install 'weightcast[study]'."
)


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


def _as_adamw(
    package: str, name: str, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Callable[..., Optimizer]:
    """A class of another package that takes what AdamW takes; it decays as AdamW by default."""

    def make(
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = betas,
        eps: float = eps,
        weight_decay: float = 0.01,
    ) -> Optimizer:
        made: Optimizer = _other(package, name)(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
        )
        return made

    return make


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
            raise LabError(MISSING_PACKAGE.format("Muon", "pytorch_optimizer"))
        kind = getattr(importlib.import_module("weightcast_lab.methods.muon"), name)
        made: Optimizer = kind(*args, **options, **kwargs)
        return made

    return make


def _smooth(inner: str, **settings: Any) -> Callable[..., Optimizer]:
    """The long form over another optimizer; `momentum` is β of the slow average."""

    def make(
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.99,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
    ) -> Optimizer:
        said = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        options = settings | {name: value for name, value in said.items() if value is not None}
        smooth = importlib.import_module("weightcast_lab.methods.smooth").Smooth
        made: Optimizer = smooth(OPTIMIZERS[inner][1](params, lr=lr, **options), momentum)
        return made

    return make


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
    "adabelief": ("AdaBelief", _as_adamw("pytorch_optimizer", "AdaBelief", eps=1e-16)),
    "soap": ("SOAP", _as_adamw("pytorch_optimizer", "SOAP", betas=(0.95, 0.95))),
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
    "smooth_adamw": ("Smooth AdamW", _smooth("adamw")),
    "smooth_adamw8": ("Smooth AdamW, inner β₁ 0.8", _smooth("adamw", betas=(0.8, 0.999))),
    "smooth_nadamw_mu": ("Smooth NAdamW, constant μ", _smooth("nadamw_mu")),
    "smooth_muon_nesterov": ("Smooth Muon Nesterov", _smooth("muon_nesterov")),
    "schedule_free": ("Schedule-free AdamW", _as_adamw("schedulefree", "AdamWScheduleFree")),
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
    "smooth_muon_nesterov": "pytorch_optimizer",
    "adabelief": "pytorch_optimizer",
    "soap": "pytorch_optimizer",
    "lookahead": "pytorch_optimizer",
    "schedule_free": "schedulefree",
}
"""The packages of the optimizers that torch lacks."""

PLAIN_ONLY = ("schedule_free", "lookahead")
"""They move the weights to places of their own, so that a forecast has no meaning."""


WITHOUT_SCHEDULE = ("schedule_free",)
"""They replace the learning rate's schedule: it stays constant."""


def optimizer_named(optimizer: str) -> tuple[str, Callable[..., Optimizer]]:
    """Label and constructor of an optimizer by its name, or by `path/to/file.py:name`.

    Raises:
        LabError: there is no such optimizer.
    """
    if is_own(optimizer):
        return name_in(optimizer), load(optimizer, "optimizer")
    if optimizer not in OPTIMIZERS:
        raise unknown_name("optimizer", optimizer, OPTIMIZERS)
    return OPTIMIZERS[optimizer]
