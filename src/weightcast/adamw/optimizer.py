"""AdamW with the forecast in its step: one pass over memory each, or one for both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from weightcast.adamw.forecast import AdamWForecast
from weightcast.adamw.masters import LOW_PRECISION
from weightcast.adamw.update import Updates
from weightcast.displacement.reach import STEPS, checked_steps
from weightcast.errors import InvalidArgumentError
from weightcast.tensors import untraced


class AdamW(torch.optim.AdamW):
    r"""`torch.optim.AdamW` that forecasts the weights in its own pass over memory.

    $$\theta_t = (1 - \gamma\lambda)\,\theta_{t-1} - \Delta_t,\qquad
      \Delta_t = \gamma\,\hat m_t / (\sqrt{\hat v_t} + \epsilon),\qquad
      \hat\theta = \theta_t - s\,\Delta_t.$$

    With `weightcast.attach(model, optimizer)` the loop stays as it is, and forward, backward and
    update are those of `torch.optim.AdamW` under `attach`, up to rounding. The arguments are
    torch's; state and checkpoints too: each loads the other's.

    Lazy (the default): after `step()` the weights are θ, and the next training forward moves them.
    In step: `step()` itself ends at θ̂, in the same pass and without a copy; the weights are θ
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
        damped: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s.
        in_step: The step itself makes the next forecast, and ends at θ̂. Where a kernel applies, no
            copy of θ is kept: θ = θ̂ + s·Δ, exact but for the last bit.

    Raises:
        InvalidArgumentError: an argument of its own has an impossible value.
        InvalidTypeError: `steps` is not a number.
        ValueError: as in torch.

    Examples:
        >>> import torch, weightcast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = weightcast.AdamW(model.parameters(), lr=0.1, steps=2, in_step=True)
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
        damped: bool = False,
        in_step: bool = False,
    ) -> None:
        if differentiable:
            raise InvalidArgumentError(
                "differentiable=True is not supported: use torch.optim.AdamW to differentiate "
                "through steps."
            )
        steps = checked_steps(steps, "steps", damped)
        self._damped, self._in_step = damped, in_step
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
        self._begin()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also after loading a checkpoint of torch's AdamW, which knows no forecasts."""
        super().__setstate__(state)  # type: ignore[no-untyped-call, unused-ignore]
        if "_forecast" in vars(self):
            self._forecast.forget()  # the weights are taken for what they are
        else:
            self._begin()
        for group in self.param_groups:
            group.setdefault(STEPS, self.defaults[STEPS])

    def __getstate__(self) -> dict[str, Any]:
        """A copy is at θ."""
        self.eval()
        return super().__getstate__() | {"_damped": self._damped, "_in_step": self._in_step}

    def __del__(self) -> None:
        """Nobody could put θ back any more."""
        if not sys.is_finalizing() and hasattr(self, "_forecast"):
            self._forecast.restore()

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
            if p.dtype in LOW_PRECISION:
                for key, value in state_dict["state"].get(index, {}).items():
                    if key != "step":
                        self.state[p][key] = value.to(p.device, torch.float32, copy=True)

    def _begin(self) -> None:
        self._forecast = AdamWForecast(self, self._damped, keeps=not self._in_step)
        self._updates = Updates()
        self._unused = 0  # steps since the last forecast

    # --- what was asked for: it stays ------------------------------------------------------------

    @property
    def damped(self) -> bool:
        """Whether it walks Σ β₁ᵏ displacements instead of s."""
        return self._damped

    @property
    def in_step(self) -> bool:
        """Whether each step ends at θ̂."""
        return self._in_step

    # --- where the weights are -------------------------------------------------------------------

    @property
    def forecast(self) -> AdamWForecast:
        """What `attach` hands to its hooks; another one once they are detached."""
        if self._forecast.optimizer is None:
            self._begin()
        return self._forecast

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now."""
        return self.forecast.is_predicted

    def train(self) -> None:
        """Move the weights to θ̂ at the present `lr` and steps. Does nothing if they are there.

        `attach` calls this before a training forward; without it, call it yourself, or pass
        `in_step=True`.
        """
        self.forecast.predict()

    def eval(self) -> None:
        """Put the true weights θ back. Does nothing if they are there."""
        self.forecast.restore()

    # --- the step --------------------------------------------------------------------------------

    @untraced
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        next_lr: float | Sequence[float] | None = None,
    ) -> Any:
        """Update θ by the gradients, from wherever the weights are; in step, move on to θ̂.

        Args:
            closure: Computes and returns the loss; it runs at θ̂.
            next_lr: The learning rate of the coming step, one or one per group, where the loop
                knows it already. In step, the forecast is then made with it at once; else `attach`
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
        forecast = self.forecast
        self._unused = 0 if forecast.is_awaited else self._unused + 1
        if self._unused == 2 and not self._in_step and any(g[STEPS] for g in groups):
            forecast.diagnostics.report(_UNUSED)
        self._updates.step(self, forecast, rates if self._in_step else None)
        return loss


_UNUSED = (
    "weightcast.AdamW has not forecast so far: step() ran twice at the true weights. Call "
    "weightcast.attach(model, optimizer) with the module that the loop calls in training mode, or "
    "optimizer.train() before each forward, or pass in_step=True."
)
