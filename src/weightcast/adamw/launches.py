"""What is to be launched: the parameters of an `AdamW`, sorted, with all that kernels need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from weightcast.adamw.legs import LOW_PRECISION, Launch
from weightcast.displacement.reach import STEPS, reach
from weightcast.displacement.rules import Group
from weightcast.kernels import backend_for, eager
from weightcast.kernels.operands import FUSED_DEVICES, Settings, likened, operands_of
from weightcast.moves.plans import Plans, memory_of, planned
from weightcast.tensors import kept_memory, overlapping, plain, written

Distance = float | Tensor
Scaling = tuple[Tensor | None, Tensor | None]
"""What a gradient scaler leaves to the step: `grad_scale`, `found_inf`."""


class Launches:
    """The plans of an `AdamW`, and the memory of θ.

    Args:
        state: The optimizer's.
        defaults: The optimizer's.
        damped: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s.
        keeps: Whether a copy of θ is kept while the weights are predicted.
    """

    def __init__(self, state: Any, defaults: Group, damped: bool, keeps: bool) -> None:
        self.state, self._defaults = state, defaults
        self._damped, self.keeps = damped, keeps
        self.groups: Sequence[Group] = ()  # all, with those that were taken away while predicted
        self.kept: dict[Tensor, Tensor] = {}  # memory of θ; it is θ while its group is predicted
        self.plans: Plans = {}  # the last launches of each kind
        self.shared: frozenset[int] = frozenset()  # parameters that share memory with others
        self._drops = 0  # of memory that plans may hold still
        self.lost: list[Tensor] = []  # of another shape than their state, to be reported
        self._versions: dict[Tensor, int] = {}  # of low-precision weights, as last written here

    def distance(self, group: Group, lr: Distance | None = None) -> Distance:
        """How many times Δ/γ to walk: s·γ."""
        lr = group["lr"] if lr is None else lr
        if isinstance(lr, Tensor) and lr.device.type == "cpu":
            lr = lr.item()
        steps: Distance = reach(group, self._defaults[STEPS], self._damped)
        return steps * lr if steps else 0.0

    def watch(self, launch: Launch) -> None:
        """Remember what low-precision weights look like, to notice if others write to them."""
        written(launch.params)
        if launch.operands.params[0].dtype in LOW_PRECISION:
            for p, weight in zip(launch.params, launch.operands.params, strict=True):
                self._versions[p] = weight._version

    def drop(self, p: Tensor) -> Tensor | None:
        """Take away what was kept of a parameter."""
        if (kept := self.kept.pop(p, None)) is not None:
            self._drops += 1
        return kept

    def of(
        self,
        group: Group,
        params: list[Tensor],
        states: list[Any],
        kind: str,
        is_predicted: bool,
    ) -> list[Launch]:
        """The parameters sorted by back-end and kind: those of last time, if nothing moved."""
        if not params:
            return []
        key = (id(group), kind, is_predicted, group["amsgrad"], self._is_torchs(group))
        launches: list[Launch] = planned(
            self.plans,
            key,
            # those of the first step are made with the plan
            lambda _: [
                self._drops,
                *memory_of(params, states if all(states) else [self.state[p] for p in params]),
            ],
            lambda: self._sorted(group, params, kind, is_predicted),
        )
        for launch in launches:
            if launch.operands.params[0].dtype in LOW_PRECISION and not is_predicted:
                self.heed(launch)
        return launches

    def _sorted(
        self, group: Group, params: list[Tensor], kind: str, is_predicted: bool
    ) -> list[Launch]:
        """All memory is made before any weight moves."""
        is_step = kind in ("step", "first step")
        keeps = kind == "move" and self.keeps
        self._forget_the_gone()
        members: dict[Any, list[tuple[Tensor, Any, Tensor | None, Tensor | None]]] = {}
        for p in params:
            state = self._prepared(p, group)
            source = sink = None
            if not is_step and state["exp_avg"].shape != p.shape:  # the weight was cut or grown
                self.drop(p)
                self.lost.append(p)
                continue
            if "master" in state:
                source = plain(state["master"])
                sink = source if is_step else None
            elif not is_predicted:
                sink = plain(kept_memory(p, self.kept)) if keeps else None
            elif p in self.kept:  # the weight may be laid out anew since
                self.kept[p] = likened([self.kept[p]], [p])[0]
                source = plain(self.kept[p])
            is_torchs = self._is_torchs(group) and p.dtype not in LOW_PRECISION
            backend = eager if is_torchs else backend_for(p, state, group)
            alone = id(p) if self.shared and id(p) in self.shared else None
            key = (backend, p.device, p.dtype, source is None, alone)
            members.setdefault(key, []).append((p, state, source, sink))
        launches = []
        for (backend, *_), rows in members.items():
            mine, states, sources, sinks = map(list, zip(*rows, strict=True))
            sources, sinks = ([t for t in ts if t is not None] for ts in (sources, sinks))
            operands = operands_of(mine, states, group, sources, sinks)
            operands.counts = [plain(state["step"]) for state in states]
            launches.append(Launch(backend, mine, operands))
        return launches

    def _forget_the_gone(self) -> None:
        """Memory and plans of parameters that nobody has any more; and who shares memory."""
        groups = set(map(id, self.groups))
        for key in [key for key in self.plans if key[0] not in groups]:
            del self.plans[key]
        present = [p for group in self.groups for p in group["params"] if not is_lazy(p)]
        for memory in (self.kept, self._versions):
            for p in memory.keys() - set(present):
                del memory[p]
        self.shared = frozenset(id(present[n]) for n in overlapping(list(map(plain, present))))

    def _is_torchs(self, group: Group) -> bool:
        """Whether this is the plain optimizer, which is torch's bit for bit."""
        return not reach(group, self._defaults[STEPS], self._damped)

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

    def heed(self, launch: Launch, others_wrote: bool = False) -> None:
        """Where somebody else wrote to low-precision weights, what differs is the truth."""
        for p, weight in zip(launch.params, launch.operands.params, strict=True):
            if others_wrote or self._versions.get(p) != weight._version:
                master = self.state[p]["master"]
                is_stale = master.to(p.dtype) != p
                master.copy_(torch.where(is_stale, p, master))

    def settings(
        self,
        group: Group,
        scaling: Scaling = (None, None),
        *,
        back: float | Tensor = 0.0,
        ahead: float | Tensor,
    ) -> Settings:
        """What a pass over the group does."""
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
