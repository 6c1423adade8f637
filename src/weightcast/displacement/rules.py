r"""The displacement Δ of each optimizer: what its last step subtracted from the weights.

With θ the weights after step t, γ the learning rate and λ a decoupled weight decay,

$$\Delta = (1 - \gamma\lambda)\,\theta_{t-1} - \theta_t.$$

A rule reads Δ from the optimizer's state, where the state suffices. Where it does not (the last
gradient would be needed), Δ is *observed*: the mechanism subtracts the weights after the step from
those before it.

| paper | state | |
|---|---|---|
| m | `exp_avg` | moving average of the gradient |
| v | `exp_avg_sq` | moving average of its square |
| t | `step` | steps taken so far |
| γ, β₁, β₂, ε | `lr`, `betas`, `eps` | of the parameter group |
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from weightcast.errors import InvalidArgumentError, InvalidTypeError, UnsupportedOptimizerError

Group = dict[str, Any]
Formula = Callable[[Mapping[str, Any], Group], Any]
F = TypeVar("F", bound=Formula)

OBSERVED = "prediction_displacement"
"""State key of an observed displacement, divided by the learning rate of its step."""


@dataclass(frozen=True)
class Rule:
    """How to know an optimizer's displacement.

    `formula(state, group)` gives Δ of a parameter; `when(group)` tells whether the state suffices
    under the group's options; `decoupled` whether the optimizer decays the weights apart from Δ;
    `foreach` whether the formula also takes `Tensors`; `has_masters` whether low-precision weights
    have float32 masters in the state.
    """

    formula: Formula
    when: Callable[[Group], bool] = lambda group: True
    decoupled: bool = False
    foreach: bool = False
    has_masters: bool = False


_RULES: dict[type[Optimizer], Rule] = {}


def register_rule(
    optimizer_class: type[Optimizer],
    *,
    when: Callable[[Group], bool] = lambda group: True,
    decoupled_weight_decay: bool = False,
    foreach: bool = False,
) -> Callable[[F], F]:
    """Teach weightcast the displacement of an optimizer (decorator).

    The decorated function is pure and takes the optimizer's state of a parameter and the parameter
    group. It returns Δ, of the parameter's shape: what the last step subtracted from it, decoupled
    weight decay aside. It must not change the state.

    Args:
        optimizer_class: The class; subclasses that keep its `step` are included.
        when: Tells from a parameter group whether its state suffices; else Δ is observed.
        decoupled_weight_decay: The optimizer decays weights by 1 - lr·weight_decay each step. A
            group's own `"decoupled_weight_decay"` wins.
        foreach: The formula uses only + - * / sqrt and sign, so it can run multi-tensor.

    Raises:
        InvalidTypeError: `optimizer_class` is not a subclass of `torch.optim.Optimizer`.

    Examples:
        >>> class SignDescent(torch.optim.Optimizer):
        ...     def __init__(self, params, lr):
        ...         super().__init__(params, {"lr": lr})
        ...     def step(self):
        ...         for group in self.param_groups:
        ...             for p in group["params"]:
        ...                 self.state[p]["sign"] = p.grad.sign()
        ...                 p.data.sub_(group["lr"] * self.state[p]["sign"])
        >>> @register_rule(SignDescent)
        ... def sign_descent(state, group):
        ...     return group["lr"] * state["sign"]
    """
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise InvalidTypeError(
            f"register_rule needs a subclass of torch.optim.Optimizer, got {optimizer_class!r}."
        )

    def register(formula: F) -> F:
        _RULES[optimizer_class] = Rule(formula, when, decoupled_weight_decay, foreach)
        return formula

    return register


def rule_for(optimizer: Optimizer) -> Rule:
    """The rule registered for the optimizer's class, else the observed one.

    A subclass with a `step` of its own may move the weights otherwise: it is observed.
    """
    step = inspect.unwrap(type(optimizer).step)
    for base in type(optimizer).__mro__:
        if base in _RULES and inspect.unwrap(base.step) is step:
            return _RULES[base]
    return OBSERVED_RULE


def check_supported(optimizer: Optimizer) -> None:
    """Refuse, by name, the optimizers for which a forecast has no meaning.

    Raises:
        UnsupportedOptimizerError: with the reason.
    """
    name = type(optimizer).__name__
    if not hasattr(optimizer, "_optimizer_state_dict_pre_hooks"):
        raise UnsupportedOptimizerError(
            f"{name} does not call torch.optim.Optimizer.__init__ and so runs no hooks: nobody can "
            "tell when it steps. Attach the optimizer that it wraps, if its updates are that one's."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UnsupportedOptimizerError(
            f"{name} evaluates the loss many times within one step and has no single displacement "
            "to forecast along; use a first-order optimizer."
        )
    if any("schedulefree" in base.__name__.lower() for base in type(optimizer).__mro__):
        raise UnsupportedOptimizerError(
            f"{name} already evaluates gradients at a point of its own (and switches with train() "
            "and eval()); use it without weight prediction."
        )


def chosen_rule(optimizer: Optimizer, choice: Formula | str | None) -> Rule:
    """What `attach` was asked for.

    Raises:
        InvalidTypeError, InvalidArgumentError: it is neither a function nor `"observed"` nor None.
    """
    if choice is None:
        return rule_for(optimizer)
    if choice == "observed":
        return OBSERVED_RULE
    if callable(choice):
        return Rule(choice, decoupled=rule_for(optimizer).decoupled)
    kind = InvalidArgumentError if isinstance(choice, str) else InvalidTypeError
    raise kind(f"rule must be None, 'observed' or a function, got {choice!r}.")


# --- the rules -----------------------------------------------------------------------------------


def rate(group: Group) -> Any:
    """γ of a group: a number or a tensor without dimensions, 1 where the optimizer has its own."""
    lr = group.get("lr")
    return lr.squeeze() if isinstance(lr, torch.Tensor) else 1.0 if lr is None else lr


def observed(state: Mapping[str, Any], group: Group) -> Any:
    """Δ as the mechanism saw it, at the present learning rate: θ_before - θ_after."""
    return rate(group) * state[OBSERVED]


OBSERVED_RULE = Rule(observed, when=lambda group: False, foreach=True)


@register_rule(torch.optim.AdamW, decoupled_weight_decay=True, foreach=True)
@register_rule(torch.optim.Adam, foreach=True)
def adam(state: Mapping[str, Any], group: Group) -> Any:
    """Δ = γ·m̂ / (√v̂ + ε): the paper's Eq. 7, with torch's placement of ε."""
    beta1, beta2 = group["betas"]
    v = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    m_hat = state["exp_avg"] / (1 - beta1 ** state["step"])
    v_hat = v / (1 - beta2 ** state["step"])
    return rate(group) * m_hat / (v_hat.sqrt() + group["eps"])


@register_rule(torch.optim.Adamax, foreach=True)
def adamax(state: Mapping[str, Any], group: Group) -> Any:
    """Δ = γ·m̂ / u, with u the running maximum of |g|."""
    m_hat = state["exp_avg"] / (1 - group["betas"][0] ** state["step"])
    return rate(group) * m_hat / state["exp_inf"]


@register_rule(torch.optim.RAdam, when=lambda group: not group["capturable"], foreach=True)
def radam(state: Mapping[str, Any], group: Group) -> Any:
    """Δ = γ·r·m̂ / (√v̂ + ε) once the variance is tractable (ρ > 5), else γ·m̂."""
    (beta1, beta2), t = group["betas"], state["step"]
    m_hat = state["exp_avg"] / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return rate(group) * m_hat
    r2 = (rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)
    scale = (r2 * (1 - beta2**t)) ** 0.5
    return rate(group) * scale * m_hat / (state["exp_avg_sq"].sqrt() + group["eps"])


@register_rule(
    torch.optim.SGD, when=lambda group: group["momentum"] and not group["nesterov"], foreach=True
)
def sgd(state: Mapping[str, Any], group: Group) -> Any:
    """Δ = γ·b, with b the momentum buffer."""
    return rate(group) * state["momentum_buffer"]


@register_rule(torch.optim.RMSprop, when=lambda group: group["momentum"] > 0, foreach=True)
def rmsprop(state: Mapping[str, Any], group: Group) -> Any:
    """Δ = γ·b, with b the momentum of the normalised gradients."""
    return rate(group) * state["momentum_buffer"]


@register_rule(torch.optim.Rprop, foreach=True)
def rprop(state: Mapping[str, Any], group: Group) -> Any:
    """Δ = η·sign(g), with a step size η per weight; `prev` is g, zeroed where its sign flipped."""
    return state["prev"].sign() * state["step_size"]
