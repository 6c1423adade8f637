"""Which parameters move together: worked out once, and again when anything has changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from weightcast.kernels import fused_backend, reads_count
from weightcast.passes import TILE, Batch, Way, columns
from weightcast.rules import OBSERVED, OBSERVED_RULE, Group, Rule, adam
from weightcast.tensors import host_step, plain

_LARGEST = {Way.GATHERED: TILE, Way.MULTI_TENSOR: 2**26}
"""Elements in a batch at most: bounds the temporary memory of a pass."""

Row = tuple[Tensor, dict[str, Any]]
Plans = dict[Any, tuple[Any, list[Any]]]
"""By key: what a plan was made for, and the plan."""


def planned(
    plans: Plans, key: Any, mark: Callable[[], Any], build: Callable[[], list[Any]]
) -> list[Any]:
    """The plan of last time if its mark is still the same, else a new one."""
    if key not in plans or plans[key][0] != mark():
        plan = build()
        plans[key] = mark(), plan  # building may have made what the mark tells of
    return plans[key][1]


def memory_of(p: Tensor, state: dict[str, Any]) -> tuple[Any, ...]:
    """What tells whether a parameter and its state are where they were."""
    if type(p) is Parameter:  # a few lines for speed: this runs for every parameter in every step
        try:
            return p.data_ptr(), p.stride(), *map(Tensor.data_ptr, state.values())
        except TypeError:  # a number among the state
            pass
    p = plain(p)
    values = [plain(v).data_ptr() if isinstance(v, Tensor) else v for v in state.values()]
    return p.data_ptr(), p.stride(), *values


def batches_of(
    plans: Plans,
    key: Any,
    group: Group,
    rule: Rule,
    states: Iterable[Row],
    memory: dict[Tensor, Tensor],
) -> list[Batch]:
    """What moves together of the parameters whose displacement is known."""
    rows = [(p, state) for p, state in states if state and _is_known(state, rule)]
    return planned(
        plans,
        key,
        lambda: _mark(group, rule, rows),
        lambda: list(_sorted(group, rule, rows, memory)),
    )


def _is_known(state: dict[str, Any], rule: Rule) -> bool:
    """Whether the state holds the parameter's last displacement (it does after a first step)."""
    if rule is OBSERVED_RULE:
        return OBSERVED in state
    own = [value for key, value in state.items() if key != OBSERVED]
    return bool(own) and all(value is not None for value in own)


def _mark(group: Group, rule: Rule, rows: list[Row]) -> list[Any]:
    """All that a plan depends on, and that a pass does not read anew."""
    steps = [host_step(state) for _, state in rows]
    first = next((step for step in steps if step is not None), 0)
    mark = [id(group), rule, group.get("foreach"), group.get("amsgrad")]
    for (p, state), step in zip(rows, steps, strict=True):
        mark += (id(p), id(state), p.dtype, p.device, p.shape, step and step - first)
        if rule.formula is adam:
            mark += memory_of(p, state)
        elif rule is not OBSERVED_RULE:
            mark += _scalars(state)
    return mark


def _scalars(state: dict[str, Any]) -> tuple[Any, ...]:
    """What a formula would take for the same in all parameters of a batch."""
    return tuple(v for k, v in state.items() if k != "step" and type(v) in (bool, int, float))


def _sorted(
    group: Group, rule: Rule, rows: list[Row], memory: dict[Tensor, Tensor]
) -> Iterator[Batch]:
    together: dict[Any, list[Row]] = {}
    for p, state in rows:
        is_theirs = rule.formula is adam and p.dtype is torch.float32
        kernels = fused_backend(p, state, group) if is_theirs else None
        way = _way(p, state, group, rule) if kernels is None else Way.KERNELS
        key: tuple[Any, ...] = (way, kernels, p.device, p.dtype)
        if way in (Way.TILED, Way.SINGLE):
            key += (id(p),)
        elif kernels is None or not reads_count(p, state):
            key += (host_step(state), *_scalars(state))
        together.setdefault(key, []).append((p, state))
    for (way, kernels, *_), members in together.items():
        for chunk in _chunks(members, _LARGEST.get(way, math.inf)):
            params, states = map(list, zip(*chunk, strict=True))
            yield Batch(group, rule, way, params, states, kernels, memory)


def _way(p: Tensor, state: dict[str, Any], group: Group, rule: Rule) -> Way:
    size = plain(p).numel()
    shapes = {plain(state[name]).shape for name in columns(rule, state)}
    if not rule.foreach or not size or shapes != {plain(p).shape}:
        return Way.SINGLE
    if p.device.type == "cpu":
        return Way.GATHERED if size < TILE // 4 else Way.TILED
    # as torch.optim itself: multi-tensor on GPUs unless told otherwise
    foreach = group.get("foreach")
    is_multi = p.device.type in ("cuda", "xpu") if foreach is None else foreach
    return Way.MULTI_TENSOR if is_multi else Way.SINGLE


def _chunks(rows: list[Row], largest: float) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    elements = 0
    for row in rows:
        if chunk and elements + row[0].numel() > largest:
            yield chunk
            chunk, elements = [], 0
        chunk.append(row)
        elements += row[0].numel()
    yield chunk
