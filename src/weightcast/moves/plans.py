"""Which parameters move together: worked out once, and again when anything has changed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from weightcast.displacement.rules import OBSERVED, OBSERVED_RULE, Group, Rule, adam
from weightcast.kernels import backend_for, fused_backend
from weightcast.kernels.operands import reads_count
from weightcast.moves.batch import Batch
from weightcast.moves.passes import Way, columns
from weightcast.tensors import TILE, are_real, host_step, memory_of, overlapping, plain

_LARGEST = {Way.GATHERED: TILE, Way.MULTI_TENSOR: 2**26}
"""Elements in a batch at most: bounds the temporary memory of a pass."""

Row = tuple[Tensor, dict[str, Any]]
States = list[dict[str, Any]]
Memory = dict[Tensor, Tensor]
Plans = dict[Any, tuple[Any, list[Any]]]
"""By key: what a plan was made for, and the plan."""


_generations = itertools.count()
_generation = 0


def generation() -> int:
    """Another number whenever any parameter may have found another memory."""
    return _generation


def planned(
    plans: Plans, key: Any, mark: Callable[[list[Any]], Any], build: Callable[[], list[Any]]
) -> list[Any]:
    """The plan of last time if its mark is still the same, else a new one."""
    made_for, plan = plans.get(key, (None, []))
    if made_for != mark(plan):
        global _generation
        _generation = next(_generations)
        plan = build()
        plans[key] = mark(plan), plan  # building may have made what the mark tells of
    return plan


def batches_of(
    plans: Plans,
    key: Any,
    group: Group,
    rule: Rule,
    states: States,
    memory: Memory,
    keeps: bool,
    complete: Callable[[Group, Tensor, dict[str, Any]], None],
) -> list[Batch]:
    """What moves together of a group's parameters whose displacement is known.

    If not `keeps`, there is no copy of θ where kernels compute it. States are completed first.
    """

    def build() -> list[Batch]:
        for p, state in zip(group["params"], states, strict=True):
            if state:
                complete(group, p, state)
        return list(_sorted(group, rule, states, memory, keeps))

    return planned(plans, key, partial(_mark, group, rule, states), build)


def _is_known(state: dict[str, Any], rule: Rule) -> bool:
    """Whether the state holds the parameter's last displacement (it does after a first step)."""
    is_there = [value is not None for key, value in state.items() if key != OBSERVED]
    return OBSERVED in state if rule is OBSERVED_RULE else bool(is_there) and all(is_there)


def _mark(group: Group, rule: Rule, states: States, plan: list[Batch]) -> list[Any]:
    """All that a plan depends on, and that a pass does not read anew."""
    params = group["params"]
    mark = [rule, *map(id, (group, *params, *states)), group.get("foreach"), group.get("amsgrad")]
    if rule.formula is adam:
        mark += memory_of(params, states)
    else:  # nobody keeps the state's addresses
        values = [*chain.from_iterable(state.values() for state in states)]
        mark += [*memory_of(params, []), *(OBSERVED in state for state in states)]
        mark += [*map(type, values), *(() if are_real(values) else map(_scalars, states))]
    if any(b.way is not Way.KERNELS or not reads_count(b.params[0], b.states[0]) for b in plan):
        # only those of equal counts are together, as far as the host knows them
        steps = [host_step(state) for state in states]
        first = next((step for step in steps if step is not None), 0)
        mark += (step and step - first for step in steps)
    return mark


def _scalars(state: dict[str, Any]) -> tuple[Any, ...]:
    """What a formula would take for the same in all parameters of a batch."""
    return tuple(v for k, v in state.items() if k != "step" and type(v) in (bool, int, float))


def _sorted(
    group: Group, rule: Rule, states: States, memory: Memory, keeps: bool
) -> Iterator[Batch]:
    together: dict[Any, list[Row]] = {}
    rows = [(p, s) for p, s in zip(group["params"], states, strict=True) if _is_known(s, rule)]
    shared = overlapping([plain(p) for p, _ in rows])
    seen: set[Any] = set()
    for number, (p, state) in enumerate(rows):
        if number in shared and rule is OBSERVED_RULE:
            if (place := (plain(p).data_ptr(), p.numel())) in seen:
                continue  # what was seen of the memory is known already
            seen.add(place)
        kernels = None
        if rule.has_masters and "master" in state:
            kernels = backend_for(p, state, group)
        elif rule.formula is adam and p.dtype is torch.float32:
            kernels = fused_backend(p, state, group)
        way = _way(p, state, group, rule) if kernels is None else Way.KERNELS
        key: tuple[Any, ...] = (way, kernels, p.device, p.dtype)  # masters go with dtypes
        if way in (Way.TILED, Way.SINGLE) or number in shared:  # these go back in reverse order
            key += (id(p),)
        elif kernels is None or not reads_count(p, state):
            key += (host_step(state), *_scalars(state))
        together.setdefault(key, []).append((p, state))
    for (way, kernels, *_), members in together.items():
        for chunk in _chunks(members, _LARGEST.get(way, math.inf)):
            params, states = map(list, zip(*chunk, strict=True))
            has_masters = rule.has_masters and "master" in states[0]
            is_kept = way is not Way.KERNELS or (keeps and not has_masters)
            yield Batch(group, rule, way, params, states, kernels, memory, is_kept)


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
