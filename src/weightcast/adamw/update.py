"""The update of θ by the gradients: where kernels allow it, in one launch with the forecast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from weightcast.adamw.forecast import AdamWForecast
from weightcast.adamw.masters import LOW_PRECISION
from weightcast.displacement.rules import Group
from weightcast.errors import InvalidTypeError
from weightcast.kernels import backend_for, eager
from weightcast.kernels.operands import Operands, Settings, operands_of
from weightcast.moves.batch import Batch, Place
from weightcast.moves.plans import Plans, planned
from weightcast.tensors import memory_of, moving, overlapping, plain, plain_all, resolved, written

Scaling = tuple[Tensor | None, Tensor | None]
"""What a gradient scaler leaves to the step: `grad_scale`, `found_inf`."""


@dataclass
class Launch:
    """Parameters that are updated together: from θ, or a batch from its forecast too.

    Attributes:
        number: The group's.
        backend: The kernels.
        params: The parameters.
        operands: What the kernels are given.
        batch: The record of where they are, if a step need not begin and end at θ.
        is_alone: Whether others share the parameter's memory.
        from_copy: Operands that read θ from the batch's copy.
    """

    number: int
    backend: Any
    params: list[Tensor]
    operands: Operands
    batch: Batch | None = None
    is_alone: bool = False
    from_copy: Operands | None = None

    def step(self, settings: Settings, then: Any) -> None:
        """Update; a batch ends `then` times Δ/γ ahead of θ."""
        batch, operands = self.batch, self.operands
        is_ahead = batch is not None and batch.place is Place.PREDICTED
        if batch is not None and is_ahead and batch.saved:
            if self.from_copy is None or self.from_copy.sources[0] is not batch.saved[0]:
                self.from_copy = replace(operands, sources=plain_all(batch.saved))
            operands = self.from_copy
        operands.grads = resolved(p.grad for p in self.params if p.grad is not None)
        try:
            if batch is None:
                self.backend.step(operands, settings)
            else:
                if not batch.keeps:
                    batch.prepare()
                back = batch.distance if is_ahead and batch.is_computed else 0.0
                settings = replace(settings, back=back, ahead=then)
                batch.leap(self.backend.step, operands, settings, then)
        finally:
            operands.grads = []
        written(self.params)


class Updates:
    """The steps of an optimizer, planned anew where gradients or memory are others than before."""

    def __init__(self) -> None:
        self.plans: Plans = {}

    def step(
        self, optimizer: Optimizer, forecast: AdamWForecast, rates: Sequence[Any] | None
    ) -> None:
        """Update θ by the gradients; if there are coming rates, move on to θ̂ by them.

        Raises:
            InvalidTypeError: a gradient is sparse.
        """
        groups = optimizer.param_groups
        scaling = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        graded = [[p for p in group["params"] if p.grad is not None] for group in groups]
        if any(map(_is_sparse, (p.grad for params in graded for p in params))):
            raise InvalidTypeError(_SPARSE)
        thens = [0.0] * len(groups)
        if rates is not None:
            thens = list(map(forecast.distance, groups, rates))
        with moving():
            launches = planned(
                self.plans,
                "step",
                lambda _: _mark(optimizer, forecast, graded),
                lambda: list(_sorted(optimizer, forecast, graded)),
            )
            forecast.begin_step([x.batch for x in launches if x.batch is not None])
            settings = [_settings(forecast, group, scaling) for group in groups]
            for launch in launches:
                if launch.is_alone:
                    forecast.masters.heed(optimizer, others_wrote=True)
                launch.step(settings[launch.number], thens[launch.number])
            forecast.end_step(rates)


_is_sparse = Tensor.is_sparse.__get__  # type: ignore[attr-defined]


def _mark(optimizer: Optimizer, forecast: AdamWForecast, graded: list[list[Tensor]]) -> list[Any]:
    params = [p for group in graded for p in group]
    mark = [*map(id, params), *map(id, forecast.known())]
    for group, some in zip(optimizer.param_groups, graded, strict=True):
        mark += (id(group), group["amsgrad"], not forecast.reach_of(group), len(some))
    return mark + memory_of(params, [optimizer.state[p] for p in params])


def _sorted(
    optimizer: Optimizer, forecast: AdamWForecast, graded: list[list[Tensor]]
) -> Iterator[Launch]:
    """All memory is made before any weight moves."""
    groups, state = optimizer.param_groups, optimizer.state
    for group, params in zip(groups, graded, strict=True):
        for p in params:
            forecast.complete_state(group, p, state[p])
    everybody = [p for params in graded for p in params]
    shared = {everybody[n] for n in overlapping(list(map(plain, everybody)))}
    batches = forecast.batches()
    for number, (group, params) in enumerate(zip(groups, graded, strict=True)):
        left = dict.fromkeys(params)
        is_torchs = not forecast.reach_of(group)  # bit for bit
        for batch in batches:
            whole = not is_torchs and batch.group is group and not shared & set(batch.params)
            if whole and batch.is_one_launch and left.keys() >= set(batch.params):
                yield Launch(
                    number,
                    batch.kernels,
                    batch.params,
                    _operands(batch.params, batch.states, group),
                    batch,
                )
                left = {p: None for p in left if p not in set(batch.params)}
        together: dict[Any, list[Tensor]] = {}
        for p in left:
            is_plain = is_torchs and p.dtype not in LOW_PRECISION
            backend = eager if is_plain else backend_for(p, state[p], group)
            key = (backend, p.device, p.dtype, id(p) if p in shared else None)
            together.setdefault(key, []).append(p)
        for (backend, *_, alone), some in together.items():
            operands = _operands(some, [state[p] for p in some], group)
            yield Launch(number, backend, some, operands, is_alone=alone is not None)


def _settings(forecast: AdamWForecast, group: Group, scaling: Scaling) -> Settings:
    """An update from θ to θ."""
    beta1, beta2 = map(float, group["betas"])
    lr, options = group["lr"], None
    if not forecast.reach_of(group):  # torch's, bit for bit
        options = {name: group[name] for name in ("foreach", "fused", "capturable")}
    elif isinstance(lr, Tensor) and lr.device.type == "cpu":
        lr = lr.item()
    return Settings(
        lr,
        beta1,
        beta2,
        group["eps"],
        group["weight_decay"],
        maximize=group["maximize"],
        grad_scale=scaling[0],
        found_inf=scaling[1],
        options=options,
    )


def _operands(params: list[Tensor], states: list[dict[str, Any]], group: Group) -> Operands:
    """θ is read from the masters, and written there, if there are any."""
    masters = [plain(state["master"]) for state in states if "master" in state]
    operands = operands_of(params, states, group, masters, masters)
    operands.counts = [plain(state["step"]) for state in states]
    return operands


_SPARSE = (
    "weightcast.AdamW does not support sparse gradients: use torch.optim.SparseAdam, or an "
    "embedding with sparse=False."
)
