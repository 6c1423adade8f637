"""Where the weights of an `AdamW` are, and how they get there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightcast.displacement.reach import STEPS, reach
from weightcast.displacement.rules import Group
from weightcast.errors import InvalidTypeError
from weightcast.kernels import backend_for, eager
from weightcast.kernels.operands import FUSED_DEVICES, Operands, Settings, likened, operands_of
from weightcast.moves.plans import Plans, memory_of, planned
from weightcast.tensors import kept_memory, moving, plain, plain_all, untraced, written

DISTANCE = "prediction_distance"
"""Group key, there while the weights are predicted: s·γ of the forecast that was made."""

FORMULA = "prediction_formula"
"""Group key beside it: what else that forecast depends on, as the group had it."""

LOW_PRECISION = (torch.bfloat16, torch.float16)


Scaling = tuple[Tensor | None, Tensor | None]
"""What a gradient scaler leaves to the step: `grad_scale`, `found_inf`."""


class Weights:
    """Where the weights of an `AdamW` are, and how they get there.

    Args:
        state: The optimizer's.
        defaults: The optimizer's.
        decaying: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s.
        keeps: Whether a copy of θ is kept while the weights are predicted.
    """

    def __init__(self, state: Any, defaults: Group, decaying: bool, keeps: bool) -> None:
        self.state, self._defaults = state, defaults
        self._decaying, self._keeps = decaying, keeps
        self.kept: dict[Tensor, Tensor] = {}  # memory of θ; it is θ while its group is predicted
        self.plans: Plans = {}  # the last batches of each kind
        self._versions: dict[Tensor, int] = {}  # of low-precision weights, as last written here

    def distance(self, group: Group, lr: float | Tensor | None = None) -> float | Tensor:
        """How many times Δ/γ to walk: s·γ."""
        lr = group["lr"] if lr is None else lr
        if isinstance(lr, Tensor) and lr.device.type == "cpu":
            lr = lr.item()
        steps: float | Tensor = reach(group, self._defaults[STEPS], self._decaying)
        return steps * lr if steps else 0.0

    @untraced
    def move(self, group: Group, then: float | Tensor, idle: list[Tensor] | None = None) -> None:
        """From wherever the weights are to `then` times Δ/γ ahead of θ: the group's, or some."""
        self._undo_other(group)
        now = group.get(DISTANCE, 0.0)
        if _is_same(now, then):
            return
        with moving():
            params = group["params"] if idle is None else idle
            known = [p for p in params if self.state.get(p)]
            if len(known) < len(params):
                self._leave(group, [p for p in params if not self.state.get(p)])
            for batch in self._batches(group, known, "move" if idle is None else "idle"):
                o = batch.operands
                if o.sources and _is_same(then, 0.0):
                    batch.backend.restore(o)
                else:
                    batch.backend.forecast(o, self._settings(group, back=now, ahead=then))
                self._watch(batch)
            if idle is None:
                self._arrive(group, then)

    def _undo_other(self, group: Group) -> None:
        """A forecast by another formula than the present (betas are scheduled) goes back first."""
        present = _formula(group)
        if group.get(FORMULA, present) != present:
            group.update(group[FORMULA])
            try:
                self.move(group, 0.0)
            finally:
                group.update(present)

    def _leave(self, group: Group, params: list[Tensor]) -> None:
        """Without a state there is no forecast; θ is where it was if that went while predicted."""
        for p in params:
            kept = self.kept.pop(p, None)
            if kept is not None and DISTANCE in group:
                p.copy_(kept)

    def _arrive(self, group: Group, distance: float | Tensor) -> None:
        """All of the group is at `distance` now."""
        now = group.get(DISTANCE)
        if isinstance(now, Tensor) and isinstance(distance, Tensor):
            now.copy_(distance)  # the very memory that a captured graph reads
        elif isinstance(distance, Tensor) or distance != 0:
            group[DISTANCE], group[FORMULA] = distance, _formula(group)
        else:
            group.pop(DISTANCE, None)
            group.pop(FORMULA, None)

    def _watch(self, batch: _Batch) -> None:
        """Remember what low-precision weights look like, to notice if others write to them."""
        written(batch.params)
        if batch.operands.params[0].dtype in LOW_PRECISION:
            for p, weight in zip(batch.params, batch.operands.params, strict=True):
                self._versions[p] = weight._version

    def step(self, group: Group, then: float | Tensor, scaling: Scaling) -> None:
        """Update θ by the gradients, and move to `then` times Δ/γ ahead of it."""
        self._undo_other(group)
        known: list[Tensor] = []
        fresh: list[Tensor] = []
        idle: list[Tensor] = []
        for p in group["params"]:
            if (grad := p.grad) is not None and grad.is_sparse:
                raise InvalidTypeError(_SPARSE)
            (idle if grad is None else known if self.state.get(p) else fresh).append(p)
        self._leave(group, fresh)
        self.move(group, then, idle)
        ahead = group.get(DISTANCE, 0.0)
        for params, kind, back in ((known, "step", ahead), (fresh, "first step", 0.0)):
            for batch in self._batches(group, params, kind):
                batch.operands.grads = plain_all(p.grad for p in batch.params if p.grad is not None)
                batch.backend.step(
                    batch.operands, self._settings(group, scaling, back=back, ahead=then)
                )
                batch.operands.grads = []
                self._watch(batch)
        self._arrive(group, then)

    def _batches(self, group: Group, params: list[Tensor], kind: str) -> list[_Batch]:
        """The parameters sorted by back-end and kind: those of last time, if nothing moved."""
        if not params:
            return []
        is_predicted = DISTANCE in group
        kept = [self.kept.get(p) for p in params] if is_predicted and self.kept else []
        key = (id(group), kind, is_predicted, group["amsgrad"], self._is_torchs(group))
        batches: list[_Batch] = planned(
            self.plans,
            key,
            lambda _: [*memory_of(params, [self.state[p] for p in params]), *map(id, kept)],
            lambda: self._sorted(group, params, kind),
        )
        for batch in batches:
            if batch.operands.params[0].dtype in LOW_PRECISION and not is_predicted:
                self._heed(batch)
        return batches

    def _sorted(self, group: Group, params: list[Tensor], kind: str) -> list[_Batch]:
        """All memory is made before any weight moves."""
        is_step = kind in ("step", "first step")
        keeps = kind == "move" and self._keeps
        members: dict[Any, list[tuple[Tensor, Any, Tensor | None, Tensor | None]]] = {}
        for p in params:
            state = self._prepared(p, group)
            source = sink = None
            if "master" in state:
                source = plain(state["master"])
                sink = source if is_step else None
            elif DISTANCE not in group:
                sink = plain(kept_memory(p, self.kept)) if keeps else None
            elif p in self.kept:  # the weight may be laid out anew since
                self.kept[p] = likened([self.kept[p]], [p])[0]
                source = plain(self.kept[p])
            is_torchs = self._is_torchs(group) and p.dtype not in LOW_PRECISION
            backend = eager if is_torchs else backend_for(p, state, group)
            key = (backend, p.device, p.dtype, source is None)
            members.setdefault(key, []).append((p, state, source, sink))
        batches = []
        for (backend, *_), rows in members.items():
            mine, states, sources, sinks = map(list, zip(*rows, strict=True))
            sources, sinks = ([t for t in ts if t is not None] for ts in (sources, sinks))
            operands = operands_of(mine, states, group, sources, sinks)
            operands.counts = [plain(state["step"]) for state in states]
            batches.append(_Batch(backend, mine, operands))
        return batches

    def _is_torchs(self, group: Group) -> bool:
        """Whether this is the plain optimizer, which is torch's bit for bit."""
        return not reach(group, self._defaults[STEPS], self._decaying)

    def _prepared(self, p: Tensor, group: Group) -> dict[str, Any]:
        """The state of a parameter: new, completed, or as it is."""
        state: dict[str, Any] = self.state[p]
        is_low = p.dtype in LOW_PRECISION
        # on the device, so that nothing waits for it; the plain optimizer's where torch has it
        is_there = group["capturable"] or group["fused"] or is_low or not self._is_torchs(group)
        device = p.device if is_there and p.device.type in FUSED_DEVICES else torch.device("cpu")
        dtype = torch.float32 if is_low else p.dtype
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype)
        elif state["step"].device != device or state["step"].dtype != torch.float32:
            state["step"] = state["step"].to(device, torch.float32)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = state["exp_avg_sq"].clone()
        if not is_low:
            state.pop("master", None)  # of a checkpoint that was made in low precision
        elif "master" not in state:
            state["master"] = p.detach().to(torch.float32, copy=True)
            self._versions[p] = plain(p)._version
        return state

    def _heed(self, batch: _Batch) -> None:
        """Where somebody else wrote to low-precision weights, what differs is the truth."""
        for p, weight in zip(batch.params, batch.operands.params, strict=True):
            if self._versions.get(p) != weight._version:
                master = self.state[p]["master"]
                is_stale = master.to(p.dtype) != p
                master.copy_(torch.where(is_stale, p, master))

    def _settings(
        self,
        group: Group,
        scaling: Scaling = (None, None),
        *,
        back: float | Tensor = 0.0,
        ahead: float | Tensor,
    ) -> Settings:
        beta1, beta2 = group["betas"]
        lr, options = group["lr"], None
        if self._is_torchs(group):
            options = {name: group[name] for name in ("foreach", "fused", "capturable")}
        elif isinstance(lr, Tensor) and lr.device.type == "cpu":
            lr = lr.item()
        return Settings(
            lr=lr,
            beta1=float(beta1),
            beta2=float(beta2),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            back=back,
            ahead=ahead,
            maximize=group["maximize"],
            grad_scale=scaling[0],
            found_inf=scaling[1],
            options=options,
        )


@dataclass
class _Batch:
    """Parameters that one launch of a kernel handles."""

    backend: Any
    params: list[Tensor]
    operands: Operands


def _formula(group: Group) -> Group:
    return {name: group[name] for name in ("betas", "eps", "amsgrad")}


def _is_same(one: float | Tensor, other: float | Tensor) -> bool:
    """Whether two numbers are known to be equal; one on a device would have to be waited for."""
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and one == other


_SPARSE = (
    "weightcast.AdamW does not support sparse gradients: use torch.optim.SparseAdam, or an "
    "embedding with sparse=False."
)
