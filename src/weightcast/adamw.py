"""AdamW with the forecast in its step: one pass over memory each, or one for both."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from weightcast.distance import STEPS, checked_steps, reach
from weightcast.errors import InvalidArgumentError, InvalidTypeError, PredictionWarning
from weightcast.kernels import (
    FUSED_DEVICES,
    Operands,
    Settings,
    backend_for,
    eager,
    likened,
    operands_of,
)
from weightcast.passes import kept_memory
from weightcast.plans import Plans, memory_of, planned
from weightcast.rules import Group, adam, register_rule
from weightcast.tensors import moving, plain, plain_all, untraced, written

DISTANCE = "prediction_distance"
"""Group key, there while the weights are predicted: s·γ of the forecast that was made."""

FORMULA = "prediction_formula"
"""Group key beside it: what else that forecast depends on, as the group had it."""

_LOW_PRECISION = (torch.bfloat16, torch.float16)


class AdamW(torch.optim.AdamW):
    r"""`torch.optim.AdamW` that forecasts the weights in its own pass over memory.

    $$\theta_t = (1 - \gamma\lambda)\,\theta_{t-1} - \Delta_t,\qquad
      \Delta_t = \gamma\,\hat m_t / (\sqrt{\hat v_t} + \epsilon),\qquad
      \hat\theta = \theta_t - s\,\Delta_t.$$

    With `weightcast.attach(model, optimizer)` the loop stays as it is, and forward, backward and
    update are those of `torch.optim.AdamW` under `attach`, up to rounding. The arguments are
    torch's; state and checkpoints too: each loads the other's.

    Lazy (the default): after `step()` the weights are θ, and the next training forward moves them.
    Eager: `step()` itself ends at θ̂, in the same pass and without a copy; the weights are θ
    wherever `attach` puts them back (evaluating, saving), or after `eval()`. An average of the
    weights taken right after `step()` then sees θ̂, as does a forward of a mere part of the model:
    be lazy, or call `eval()` first. `state_dict()` too puts θ back, so that model and optimizer are
    saved at θ together.

    bfloat16 and float16 parameters are rounded copies of float32 weights kept in the state as
    `"master"`, beside float32 moments: neither small updates nor small forecasts are lost.

    A group whose steps are 0 is `torch.optim.AdamW` bit for bit (float32 and float64).

    Args:
        params: As in torch.
        lr: γ, a number or a tensor of one element.
        betas: (β₁, β₂).
        eps: ε, added outside the root.
        weight_decay: λ, decoupled.
        amsgrad: Use the maximum of v̂ so far.
        maximize: Ascend.
        foreach: As in torch, for steps = 0; every other step is one pass where a kernel applies.
        capturable: As in torch, for steps = 0; every other step may be captured in any case.
        differentiable: Not supported.
        fused: As in torch: for steps = 0, and to leave unscaling to the step under `GradScaler`.
        steps: s, how many steps to look ahead. It is kept, as the other hyper-parameters are, in
            the parameter groups: as `"prediction_steps"`.
        decaying: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s.
        eager: End each step at θ̂.
        backup: What brings θ back when lazy: `"copy"`, bit for bit, at the price of one more copy
            of the weights, or `"recompute"`, θ = θ̂ + s·Δ, exact but for the last bit.

    Raises:
        InvalidArgumentError: an argument of its own has an impossible value.
        InvalidTypeError: `steps` is not a number.
        ValueError: as in torch.

    Examples:
        >>> import torch, weightcast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = weightcast.AdamW(model.parameters(), lr=0.1, steps=2, eager=True)
        >>> for _ in range(3):
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> optimizer.is_predicted
        True
        >>> optimizer.eval()  # to evaluate or save; nothing else needs it
        >>> optimizer.is_predicted
        False
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        steps: float = 3,
        decaying: bool = False,
        eager: bool = False,
        backup: Literal["copy", "recompute"] = "copy",
    ) -> None:
        if differentiable:
            raise InvalidArgumentError(
                "differentiable=True is not supported: use torch.optim.AdamW to differentiate "
                "through steps."
            )
        if backup not in ("copy", "recompute"):
            raise InvalidArgumentError(f"backup must be 'copy' or 'recompute', got {backup!r}.")
        steps = checked_steps(steps, "steps", decaying)
        self._decaying, self._eager, self._backup = decaying, eager, backup
        self._forget()
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            fused=fused,
        )
        self.defaults[STEPS] = steps
        for group in self.param_groups:
            group.setdefault(STEPS, steps)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also after loading a checkpoint of torch's AdamW, which knows no forecasts."""
        super().__setstate__(state)  # type: ignore[no-untyped-call, unused-ignore]
        self._forget()
        for group in self.param_groups:
            group.setdefault(STEPS, self.defaults[STEPS])

    def __getstate__(self) -> dict[str, Any]:
        """A copy is at θ."""
        self.eval()
        settings = {name: getattr(self, name) for name in ("_decaying", "_eager", "_backup")}
        return super().__getstate__() | settings

    def __del__(self) -> None:
        """Nobody could put θ back any more."""
        if not sys.is_finalizing() and hasattr(self, "param_groups"):
            self.eval()

    def state_dict(self) -> dict[str, Any]:
        """As in torch. The weights are θ afterwards: a checkpoint never implies a forecast."""
        self.eval()
        found = super().state_dict()
        for group in found["param_groups"]:
            # torch has the other counts on the host; on a device it would wait for each
            for index in () if group["capturable"] or group["fused"] else group["params"]:
                if state := found["state"].get(index):
                    found["state"][index] = state | {"step": state["step"].cpu()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch. The weights are taken for what they are: load them before or after.

        Raises:
            ValueError: the checkpoint's parameter groups are of another shape.
        """
        super().load_state_dict(state_dict)
        # torch rounds every state to the parameter's dtype
        indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, p in zip(indices, params, strict=True):
            if p.dtype in _LOW_PRECISION:
                for key, value in state_dict["state"].get(index, {}).items():
                    if key != "step":
                        self.state[p][key] = value.to(p.device, torch.float32, copy=True)

    def _forget(self) -> None:
        self._kept: dict[Tensor, Tensor] = {}  # memory of θ; it is θ while its group is predicted
        self._plans: Plans = {}  # the last batches of each kind
        self._versions: dict[Tensor, int] = {}  # of low-precision weights, as last written here
        self._unused = 0  # steps since the last forecast

    # --- what was asked for: it stays ------------------------------------------------------------

    @property
    def decaying(self) -> bool:
        """Whether it walks Σ β₁ᵏ displacements instead of s."""
        return self._decaying

    @property
    def eager(self) -> bool:
        """Whether each step ends at θ̂."""
        return self._eager

    @property
    def backup(self) -> str:
        """What brings θ back: `"copy"` or `"recompute"`."""
        return self._backup

    # --- where the weights are -------------------------------------------------------------------

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now."""
        return any(DISTANCE in group for group in self.param_groups)

    def train(self) -> None:
        """Move the weights to θ̂ at the present `lr` and steps. Does nothing if they are there.

        `attach` calls this before a training forward; without it, call it yourself, or be eager.
        """
        self._unused = -1
        for group in self.param_groups:
            self._move(group, self._distance(group))

    def eval(self) -> None:
        """Put the true weights θ back. Does nothing if they are there."""
        for group in self.param_groups:
            self._move(group, 0.0)

    def _distance(self, group: Group, lr: float | Tensor | None = None) -> float | Tensor:
        """How many times Δ/γ to walk: s·γ."""
        lr = group["lr"] if lr is None else lr
        if isinstance(lr, Tensor) and lr.device.type == "cpu":
            lr = lr.item()
        steps: float | Tensor = reach(group, self.defaults[STEPS], self._decaying)
        return steps * lr if steps else 0.0

    # --- there and back --------------------------------------------------------------------------

    @untraced
    def _move(self, group: Group, then: float | Tensor, idle: list[Tensor] | None = None) -> None:
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
                self._move(group, 0.0)
            finally:
                group.update(present)

    def _leave(self, group: Group, params: list[Tensor]) -> None:
        """Without a state there is no forecast; θ is where it was if that went while predicted."""
        for p in params:
            kept = self._kept.pop(p, None)
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
        if batch.operands.params[0].dtype in _LOW_PRECISION:
            for p, weight in zip(batch.params, batch.operands.params, strict=True):
                self._versions[p] = weight._version

    # --- the step --------------------------------------------------------------------------------

    @untraced
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        next_lr: float | Sequence[float] | None = None,
    ) -> Any:
        """Update θ by the gradients, from wherever the weights are; eager, move on to θ̂.

        Args:
            closure: Computes and returns the loss; it runs at θ̂.
            next_lr: The learning rate of the coming step, one or one per group, where the loop
                knows it already. Eager, the forecast is then made with it at once; else `attach`
                corrects the forecast before the next forward if a scheduler changes the rate, which
                costs one pass.

        Raises:
            InvalidArgumentError: `next_lr` has another number of entries than there are groups.
            InvalidTypeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            self.train()
            try:
                with torch.enable_grad():
                    loss = closure()
            except BaseException:
                self.eval()
                raise
        groups = self.param_groups
        rates = next_lr if isinstance(next_lr, Sequence) else [next_lr] * len(groups)
        if len(rates) != len(groups):
            raise InvalidArgumentError(
                f"next_lr needs one learning rate for each of the {len(groups)} parameter groups, "
                f"got {len(rates)}."
            )
        self._unused += 1
        if self._unused == 2 and not self._eager and any(g[STEPS] for g in groups):
            warnings.warn(_UNUSED, PredictionWarning, stacklevel=2)
        with moving():
            for group, rate in zip(groups, rates, strict=True):
                self._step(group, self._distance(group, rate) if self._eager else 0.0)
        return loss

    def _step(self, group: Group, then: float | Tensor) -> None:
        self._undo_other(group)
        known: list[Tensor] = []
        fresh: list[Tensor] = []
        idle: list[Tensor] = []
        for p in group["params"]:
            if (grad := p.grad) is not None and grad.is_sparse:
                raise InvalidTypeError(_SPARSE)
            (idle if grad is None else known if self.state.get(p) else fresh).append(p)
        self._leave(group, fresh)
        self._move(group, then, idle)
        ahead = group.get(DISTANCE, 0.0)
        for params, kind, back in ((known, "step", ahead), (fresh, "first step", 0.0)):
            for batch in self._batches(group, params, kind):
                batch.operands.grads = plain_all(p.grad for p in batch.params if p.grad is not None)
                batch.backend.step(batch.operands, self._settings(group, back=back, ahead=then))
                batch.operands.grads = []
                self._watch(batch)
        self._arrive(group, then)

    def _batches(self, group: Group, params: list[Tensor], kind: str) -> list[_Batch]:
        """The parameters sorted by back-end and kind: those of last time, if nothing moved."""
        if not params:
            return []
        is_predicted = DISTANCE in group
        kept = [self._kept.get(p) for p in params] if is_predicted and self._kept else []
        key = (id(group), kind, is_predicted, group["amsgrad"], self._is_torchs(group))
        batches: list[_Batch] = planned(
            self._plans,
            key,
            lambda _: [*memory_of(params, [self.state[p] for p in params]), *map(id, kept)],
            lambda: self._sorted(group, params, kind),
        )
        for batch in batches:
            if batch.operands.params[0].dtype in _LOW_PRECISION and not is_predicted:
                self._heed(batch)
        return batches

    def _sorted(self, group: Group, params: list[Tensor], kind: str) -> list[_Batch]:
        """All memory is made before any weight moves."""
        is_step = kind in ("step", "first step")
        keeps = kind == "move" and not self._eager and self._backup == "copy"
        members: dict[Any, list[tuple[Tensor, Any, Tensor | None, Tensor | None]]] = {}
        for p in params:
            state = self._prepared(p, group)
            source = sink = None
            if "master" in state:
                source = plain(state["master"])
                sink = source if is_step else None
            elif DISTANCE not in group:
                sink = plain(kept_memory(p, self._kept)) if keeps else None
            elif p in self._kept:  # the weight may be laid out anew since
                self._kept[p] = likened([self._kept[p]], [p])[0]
                source = plain(self._kept[p])
            is_torchs = self._is_torchs(group) and p.dtype not in _LOW_PRECISION
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
        return not reach(group, self.defaults[STEPS], self._decaying)

    def _prepared(self, p: Tensor, group: Group) -> dict[str, Any]:
        """The state of a parameter: new, completed, or as it is."""
        state: dict[str, Any] = self.state[p]
        is_low = p.dtype in _LOW_PRECISION
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
        self, group: Group, *, back: float | Tensor = 0.0, ahead: float | Tensor
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
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=getattr(self, "found_inf", None),
            options=options,
        )


register_rule(AdamW, decoupled_weight_decay=True, foreach=True)(adam)


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

_UNUSED = (
    "weightcast.AdamW has not forecast so far: step() ran twice at the true weights. Call "
    "weightcast.attach(model, optimizer) with the module that the loop calls in training mode, or "
    "optimizer.train() before each forward, or pass eager=True."
)
