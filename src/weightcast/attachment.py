"""The one line that turns weight prediction on."""

from __future__ import annotations

from torch import jit, nn
from torch.optim import Optimizer

from weightcast.adamw import AdamW
from weightcast.adamw.forecast import AdamWForecast
from weightcast.displacement.reach import settings_of_groups
from weightcast.displacement.rules import Formula, check_supported, chosen_rule
from weightcast.errors import InvalidArgumentError, InvalidTypeError
from weightcast.forecast import Forecast
from weightcast.hooks.timetable import Timetable
from weightcast.moves.forecast import OptimizerForecast
from weightcast.moves.rivals import enlist, live
from weightcast.prediction import WeightPrediction


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    steps: float | None = None,
    *,
    rule: Formula | str | None = None,
    damped: bool = False,
    weight_decay: bool = False,
) -> WeightPrediction:
    r"""Turn weight prediction on; the training loop stays as it is.

    From now on every training forward of `model` and its backward run at the predicted weights

    $$\hat\theta = \theta - s\,\Delta,$$

    with Δ the optimizer's own last update (decoupled weight decay aside) at the present learning
    rate. `optimizer.step()` puts the true weights θ back, bit for bit, before it applies the
    gradient: Algorithm 1 of Guan, "Weight Prediction Boosts the Convergence of AdamW" (PAKDD 2023).
    While predicted, one saved copy of the weights is held.

    Args:
        model: The module whose forward is called in training; where it has none of its own, its
            children's. That forward moves all of the optimizer's parameters, so a part will do that
            runs first.
        optimizer: Its optimizer, which stays the plain torch optimizer that it is.
        steps: s, how many optimizer steps to look ahead, 3 unless given; fractions are fine, 0 is
            the plain optimizer, negative values a control. A group's own `"prediction_steps"` wins.
            What all groups name alike gives way to steps that are given. `weightcast.AdamW` keeps
            its steps there: they are set if given.
        rule: Where Δ comes from: a function as for `register_rule`, `"observed"` (the difference of
            the weights around the last step), or None: the rule of the optimizer's class, or
            `"observed"` if it has none.
        damped: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s, as a damped trend does: what
            momentum alone would still do. `steps` may then be infinite.
        weight_decay: Include decoupled weight decay, θ̂ = (1 - γλ)ˢ·θ - s·Δ. An observed Δ includes
            it in any case.

    Returns:
        The handle: `predict()`, `restore()`, `predicted()`, `true_weights()`, `steps`, `detach()`.

    Raises:
        InvalidTypeError: `model`, `optimizer`, `steps` or `rule` is of the wrong kind.
        InvalidArgumentError: `steps` is NaN, infinite or beyond ±100; the model has no parameters;
            the optimizer's parameters are not the model's; already attached; `rule`, `damped` or
            `weight_decay` for `weightcast.AdamW`, whose forecast is its own.
        UnsupportedOptimizerError: the optimizer has no displacement to forecast along.

    Examples:
        >>> import torch, weightcast
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        >>> prediction = weightcast.attach(model, optimizer, steps=3)
        >>> for _ in range(2):
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step()
        >>> prediction
        WeightPrediction(AdamW, steps=3, at the true weights)
    """
    if not isinstance(model, nn.Module) or isinstance(model, jit.ScriptModule):
        raise InvalidTypeError(f"model must be an unscripted Module, got {type(model).__name__}.")
    if not isinstance(optimizer, Optimizer):
        raise InvalidTypeError(_WRONG.format(type(optimizer).__name__))
    inner, hooks = getattr(optimizer, "optimizer", optimizer), "_optimizer_step_pre_hooks"
    # a framework's wrapper has no hooks of its own: look inside
    if vars(optimizer).get(hooks) is None or vars(optimizer)[hooks] is vars(inner).get(hooks):
        optimizer = inner
    check_supported(optimizer)
    chosen = 3.0 if steps is None else steps
    forecast: Forecast
    if not isinstance(optimizer, AdamW):
        forecast = OptimizerForecast(
            chosen,
            optimizer,
            chosen_rule(optimizer, rule),
            damped=damped,
            weight_decay=weight_decay,
        )
    elif rule is None and not damped and not weight_decay:
        forecast = AdamWForecast(chosen, optimizer)
    else:
        raise InvalidArgumentError(
            f"{type(optimizer).__name__} makes its own forecast: rule, damped and "
            "weight_decay do not apply to it here; see its own arguments."
        )
    # refuses steps that are not possible
    settings_of_groups(optimizer.param_groups, chosen, forecast.damped)
    _check_parameters(model, optimizer)
    if steps is not None:
        forecast.steps = steps
    forecast.introduce(f" ({type(model).__name__}, {type(optimizer).__name__})")
    enlist(forecast)
    timetable = Timetable(forecast, model, optimizer)
    return WeightPrediction(forecast, timetable.true_weights, timetable.end)


def _check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    owned = {id(p) for p in model.parameters()}
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not owned:
        raise InvalidArgumentError(f"the model ({type(model).__name__}) has no parameters.")
    if not owned & moved:
        raise InvalidArgumentError(
            "none of the optimizer's parameters belongs to the model: build the optimizer from "
            "model.parameters(), and attach after anything that replaces parameters (moving to "
            "another device type, FSDP, ZeRO). Back-ends that train a copy of the weights cannot "
            "be predicted."
        )
    for other in live():
        taken = other.optimizer
        if taken is not None and moved & {id(p) for g in taken.param_groups for p in g["params"]}:
            raise InvalidArgumentError(
                "weight prediction is attached to these parameters already; call detach() on the "
                "earlier WeightPrediction first, or set its steps."
            )


_WRONG = "optimizer must be a torch.optim.Optimizer, got {}; in place of ZeRO use FSDP2."
