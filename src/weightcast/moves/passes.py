"""How bytes move: parameters of one kind go to θ̂ and back, in as few passes over memory as we can.

| parameters | how |
|---|---|
| float32, on a CPU or GPU for which there are kernels, by Adam's rule | kernels: one pass |
| on a CPU, by an element-wise rule, large | tiles: what is computed of each stays in the cache |
| on a CPU, by an element-wise rule, small | gathered: one formula for many |
| on other devices, by an element-wise rule | multi-tensor, where torch's optimizer is |
| by any other rule | one by one |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from weightcast.displacement.rules import OBSERVED, OBSERVED_RULE, Group, Rule
from weightcast.errors import InvalidArgumentError
from weightcast.tensors import StateView, Tensors, plain, plain_all, tiles


class Way(Enum):
    """How the parameters of a batch are computed."""

    KERNELS = auto()
    TILED = auto()
    GATHERED = auto()
    MULTI_TENSOR = auto()
    SINGLE = auto()


def pieces(
    way: Way,
    rule: Rule,
    params: Sequence[Tensor],
    states: list[dict[str, Any]],
    copies: Sequence[Tensor],
) -> Iterator[tuple[StateView, list[Tensor], list[Tensor]]]:
    """What is computed at once: the state, the parameters, and where to keep them."""
    params, copies = plain_all(params), plain_all(copies)
    if way is Way.TILED:
        (state,) = states
        names = columns(rule, state)
        for p, kept, *parts in tiles(params[0], copies[0], *(plain(state[k]) for k in names)):
            yield StateView([state | dict(zip(names, parts, strict=True))]), [p], [kept]
    elif way is Way.GATHERED and len(params) > 1:
        yield StateView(states, _flatten_dense_tensors), params, copies
    else:
        yield StateView(states), params, copies


def displacements(
    way: Way, rule: Rule, group: Group, state: StateView, params: list[Tensor]
) -> list[Tensor]:
    """Δ of each, by the rule.

    Raises:
        InvalidArgumentError: the rule returned another shape than the parameter's.
    """
    delta = rule.formula(state, group)
    if way is Way.GATHERED and len(params) > 1:
        if delta.shape == (sum(p.numel() for p in params),):
            return list(_unflatten_dense_tensors(delta, params))
        delta = Tensors([delta] * len(params))
    deltas = delta.tensors if isinstance(delta, Tensors) else [delta]
    for p, d in zip(params, deltas, strict=True):
        if d.shape != p.shape:
            name = getattr(rule.formula, "__name__", "rule")
            raise InvalidArgumentError(
                f"the rule {name!r} returned a displacement of shape {tuple(d.shape)} for a "
                f"parameter of shape {tuple(p.shape)}."
            )
    return [d.to_dense() if d.is_sparse else d for d in deltas]


def columns(rule: Rule, state: Mapping[str, Any]) -> list[str]:
    """The tensors that an element-wise rule reads."""
    if rule is OBSERVED_RULE:
        return [OBSERVED]
    return [k for k, v in state.items() if isinstance(v, Tensor) and k != "step"]
