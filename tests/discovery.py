"""Every optimizer of the installed torch with every option, found by looking."""

import copy
import inspect
import itertools
import warnings
from typing import Any

import torch
from torch.optim import Optimizer

REFUSED = {torch.optim.LBFGS}
VALUES = {  # a telling value for each option that is not a plain switch
    "momentum": 0.9,
    "weight_decay": 0.1,
    "dampening": 0.3,
    "lr": 0.05,
}


def optimizers() -> list[type[Optimizer]]:
    """All optimizer classes of torch.optim that weightcast supports."""
    found = [
        cls
        for _, cls in inspect.getmembers(torch.optim, inspect.isclass)
        if issubclass(cls, Optimizer) and cls is not Optimizer
    ]
    return [cls for cls in found if cls not in REFUSED]


def options(cls: type[Optimizer]) -> list[dict[str, Any]]:
    """The settings to try: each switch and number alone, and each pair of them."""
    parameters = inspect.signature(cls).parameters
    single: list[tuple[str, Any]] = []
    for name, parameter in parameters.items():
        if name in VALUES and name != "lr":
            single.append((name, VALUES[name]))
        elif isinstance(parameter.default, bool) or name in ("foreach", "fused"):
            single.append((name, True))
    single.append(("lr", torch.tensor(VALUES["lr"], dtype=torch.float64)))
    settings = [(), *((s,) for s in single), *itertools.combinations(single, 2)]
    # Nesterov and dampening need momentum
    wide = [dict(chosen) for chosen in settings]
    if "momentum" in parameters:
        wide += [{**chosen, "momentum": VALUES["momentum"]} for chosen in wide]
    return [{"lr": VALUES["lr"], **chosen} for chosen in wide]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def shapes(cls: type[Optimizer]) -> list[tuple[int, ...]]:
    """Parameter shapes that the optimizer takes."""
    return [(3, 4), (5, 2)] if cls.__name__ == "Muon" else [(3, 4), (5,), ()]


def set_gradients(optimizer: Optimizer) -> None:
    """Random gradients, sparse where the optimizer wants them so."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            gradient = torch.randn_like(p)
            sparse = isinstance(optimizer, torch.optim.SparseAdam)
            p.grad = gradient.to_sparse() if sparse else gradient


def torch_accepts(cls: type[Optimizer], setting: dict[str, Any]) -> bool:
    """Whether torch itself can take a step so, on this machine."""
    params = [torch.zeros(shape, device=DEVICE) for shape in shapes(cls)]
    try:
        optimizer = cls(params, **copy.deepcopy(setting))
        set_gradients(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    except (ValueError, RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def cases() -> list[tuple[type[Optimizer], dict[str, Any]]]:
    """Every (optimizer, settings) that torch accepts, once."""
    found = {
        f"{cls.__name__} {setting}": (cls, setting)
        for cls in optimizers()
        for setting in options(cls)
    }
    return [case for case in found.values() if torch_accepts(*case)]


def case_id(case: Any) -> str:
    """A readable name."""
    if isinstance(case, type):
        return case.__name__
    return ",".join(
        f"{k}={'tensor' if isinstance(v, torch.Tensor) else v}" for k, v in case.items()
    )


def decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    """Whether its weight decay acts on the weights directly (torch's documentation)."""
    return group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))
