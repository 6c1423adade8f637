"""Weight prediction for any training loop: the weights move to θ̂ and back at the right moments.

| moment | the weights become |
|---|---|
| `model(...)` in training mode with gradients enabled | θ̂ = θ - s·Δ |
| `model(...)` in eval mode or under `no_grad` | θ |
| `optimizer.step()` begins | θ; a closure runs at θ̂ |
| `state_dict()`, loading, `copy.deepcopy`, pickling | θ; a copy is plain and unattached |

Between `step()` and the next training forward the weights are θ: averaging, logging, saving and
evaluating need no mode switch. Micro-batches of an accumulation share one θ̂.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from weightcast.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    PredictionWarning,
    WeightcastError,
)
from weightcast.kernels import Settings, fused_backend, operands_of
from weightcast.rules import (
    OBSERVED,
    OBSERVED_RULE,
    Formula,
    Group,
    Rule,
    adam,
    check_supported,
    checked_steps,
    decay_factor,
    reach,
    rule_for,
)
from weightcast.tensors import StateView, Tensors, host_step, moving, plain, untraced

DEFAULT_STEPS = 3.0

_MULTI_TENSOR_ELEMENTS = 2**26  # bounds the temporary memory of one multi-tensor pass
_COARSE = (torch.bfloat16, torch.float16)

_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]

_live: weakref.WeakSet[WeightPrediction] = weakref.WeakSet()


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    steps: float | None = None,
    *,
    rule: Formula | str | None = None,
    decaying: bool = False,
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
        model: The module whose forward is called in training.
        optimizer: Its optimizer, which stays the plain torch optimizer that it is.
        steps: s, how many optimizer steps to look ahead, 3 unless given; fractions are fine, 0 is
            the plain optimizer, negative values a control. A group's own `"prediction_steps"` wins.
            `weightcast.AdamW` keeps its steps there: they are set if given.
        rule: Where Δ comes from: a function as for `register_rule`, `"observed"` (the difference of
            the weights around the last step), or None for the rule of the optimizer's class, else
            `"observed"`.
        decaying: Walk Σ β₁ᵏ (k = 1..s) displacements instead of s: what momentum alone would still
            do. `steps` may then be infinite.
        weight_decay: Include decoupled weight decay, θ̂ = (1 - γλ)ˢ·θ - s·Δ. An observed Δ includes
            it in any case.

    Returns:
        The handle: `predict()`, `restore()`, `predicted()`, `steps`, `detach()`.

    Raises:
        InvalidTypeError: `model`, `optimizer`, `steps` or `rule` is of the wrong kind.
        InvalidArgumentError: `steps` is NaN, infinite or beyond ±100; the model has no parameters;
            the optimizer's parameters are not the model's; already attached; `rule`, `decaying` or
            `weight_decay` for `weightcast.AdamW`, whose forecast is its own.
        UnsupportedOptimizerError: the optimizer has no displacement to forecast along.

    Example:
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
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(optimizer, Optimizer):
        raise InvalidTypeError(
            f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}."
        )
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):  # a framework's wrapper: look inside
        optimizer = getattr(optimizer, "optimizer", optimizer)
    check_supported(optimizer)
    handle: type[WeightPrediction] = getattr(optimizer, "prediction_handle", WeightPrediction)
    if handle is not WeightPrediction and (rule is not None or decaying or weight_decay):
        raise InvalidArgumentError(
            f"{type(optimizer).__name__} makes its own forecast: rule, decaying and weight_decay "
            "do not apply to it here; see its own arguments."
        )
    prediction = handle(
        DEFAULT_STEPS if steps is None else steps, decaying=decaying, weight_decay=weight_decay
    )
    prediction._rule = _chosen_rule(optimizer, rule)
    for group in optimizer.param_groups:
        prediction._reach(group)
    _check_parameters(model, optimizer)
    prediction._attach(model, optimizer)
    if steps is not None:
        prediction.steps = steps
    return prediction


def _chosen_rule(optimizer: Optimizer, choice: Formula | str | None) -> Rule:
    if choice is None:
        return rule_for(optimizer)
    if choice == "observed":
        return OBSERVED_RULE
    if isinstance(choice, str):
        raise InvalidArgumentError(f"rule must be None, 'observed' or a function, got {choice!r}.")
    if not callable(choice):
        raise InvalidTypeError(f"rule must be None, 'observed' or a function, got {choice!r}.")
    return Rule(choice, decoupled=rule_for(optimizer).decoupled)


def _check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    owned = {id(p) for p in model.parameters()}
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not owned:
        raise InvalidArgumentError(
            f"the model ({type(model).__name__}) has no parameters to predict."
        )
    if not owned & moved:
        raise InvalidArgumentError(
            "none of the optimizer's parameters belongs to the model: build the optimizer from "
            "model.parameters(), and attach after anything that replaces parameters (moving to "
            "another device type, FSDP, ZeRO). Back-ends that train a copy of the weights cannot "
            "be predicted."
        )
    for other in _live:
        taken = other._optimizer()
        if taken is not None and moved & {id(p) for g in taken.param_groups for p in g["params"]}:
            raise InvalidArgumentError(
                "weight prediction is attached to these parameters already; call detach() on the "
                "earlier WeightPrediction first, or set its steps."
            )


class _Batch(NamedTuple):
    """Parameters of one group whose displacements are computed together."""

    group: Group
    rule: Rule
    params: list[Tensor]
    states: list[dict[str, Any]]
    kernels: Any = None  # that make the forecast in one pass over memory

    def displacements(self) -> list[Tensor]:
        """Δ of each parameter, as new `plain` tensors.

        Raises:
            InvalidArgumentError: the rule returned another shape than the parameter's.
        """
        delta = self.rule.formula(StateView(self.states), self.group)
        deltas = delta.tensors if isinstance(delta, Tensors) else [delta]
        for p, d in zip(_plain(self.params), deltas, strict=True):
            if d.shape != p.shape:
                name = getattr(self.rule.formula, "__name__", "rule")
                raise InvalidArgumentError(
                    f"the rule {name!r} returned a displacement of shape {tuple(d.shape)} for a "
                    f"parameter of shape {tuple(p.shape)}."
                )
        return [d.to_dense() if d.is_sparse else d for d in deltas]

    def forecast(self, saved: list[Tensor], steps: float, decay: Any) -> None:
        """Keep the parameters in `saved` and move them by `steps` displacements, in one go."""
        group = self.group
        beta1, beta2 = map(float, group["betas"])
        self.kernels.forecast(
            operands_of(self.params, self.states, group, sinks=_plain(saved)),
            Settings(0.0, beta1, beta2, group["eps"], decay=decay, ahead=steps * group["lr"]),
        )


class _Moved(NamedTuple):
    """A batch at θ̂, its saved θ, and how far it was moved."""

    batch: _Batch
    saved: list[Tensor]
    scale: float | Tensor

    def observed(self) -> list[Tensor]:
        """The observed displacements whose buffers hold θ meanwhile: (θ - θ̂) / scale."""
        walked = torch._foreach_sub(_plain(self.saved), _plain(self.batch.params))
        return list(torch._foreach_div(walked, self.scale))


class WeightPrediction:
    """The handle that `attach` returns. It has no state of its own to checkpoint.

    A copy or a pickle of it is detached: it belongs to one model and one optimizer.
    """

    def __init__(self, steps: float, *, decaying: bool = False, weight_decay: bool = False) -> None:
        """Keep the settings; `attach` does the rest."""
        self.decaying, self.weight_decay = decaying, weight_decay
        self._model: Callable[[], nn.Module | None] = _nobody
        self._optimizer: Callable[[], Optimizer | None] = _nobody
        self.steps = steps
        self._rule = OBSERVED_RULE
        self._handles: list[RemovableHandle] = []
        self._is_predicted = False
        self._settings_used: list[Any] = []
        self._moved: list[_Moved] = []
        self._before: list[tuple[Group, list[Tensor], list[Tensor]]] = []  # θ before this step
        self._buffers: dict[Tensor, Tensor] = {}  # reused, so that a loop allocates nothing
        self._apart: dict[Tensor, dict[str, Any]] = {}  # state of those whose own stays empty
        self._depth = 0  # of running steps: a subclass's step may call its parent's
        self._steps_taken = 0
        self._ever_predicted = False
        self._checked_coarseness = False
        self._reported: set[str] = set()

    def __repr__(self) -> str:
        optimizer = self._optimizer()
        name = "detached" if optimizer is None else type(optimizer).__name__
        place = "predicted" if self.is_predicted else "true"
        return f"WeightPrediction({name}, steps={self.steps:g}, at the {place} weights)"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"decaying": self.decaying, "weight_decay": self.weight_decay}
        return functools.partial(WeightPrediction, **settings), (self.steps,)

    @property
    def steps(self) -> float:
        """How many steps to look ahead; settable at any time, in force from the next forward."""
        return self._steps

    @steps.setter
    def steps(self, value: float) -> None:
        self._steps = checked_steps(value, "steps", self.decaying)

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now (which is θ itself where nothing is known yet)."""
        return self._is_predicted

    @untraced
    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there.

        Raises:
            WeightcastError: detached, or the optimizer is gone.
        """
        optimizer = self._attached()
        settings = self._settings(optimizer)
        if self._is_predicted:
            if settings == self._settings_used:
                return
            self.restore()  # a scheduler went on after a step that the gradient scaler skipped
        self._settings_used = settings
        self._is_predicted = self._ever_predicted = True
        self._depth = 0  # a step that raised never ended
        known = 0
        try:
            with moving():
                for batch in self._batches(optimizer):
                    known += sum(p.numel() for p in batch.params)
                    self._move(batch)
                if not self._checked_coarseness:
                    self._check_coarseness()
        except BaseException:
            self.restore()
            raise
        # while a step runs, the buffers of observed displacements hold θ from before it
        if self._steps_taken and not known and not self._before and self._wants(optimizer):
            self._report(_NOTHING_MOVED)

    @untraced
    def restore(self) -> None:
        """Put the true weights back, bit for bit. Does nothing if they are there."""
        if not self._is_predicted:
            return
        with moving():
            while self._moved:
                self._move_back()
        self._is_predicted = False

    @contextmanager
    def predicted(self) -> Iterator[WeightPrediction]:
        """Run forward and backward at θ̂; θ is back afterwards, also after an exception."""
        nested = self.is_predicted
        self.predict()
        try:
            yield self
        finally:
            if not nested:
                self.restore()

    def displacements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its Δ: one step, of the parameter's shape (a DTensor's local shard).

        Parameters that have not been stepped yet are left out.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            return
        with torch.no_grad():
            pairs = [
                pair
                for batch in self._batches(optimizer)
                for pair in zip(batch.params, batch.displacements(), strict=True)
            ]
            for moved in self._moved:
                if moved.batch.rule is OBSERVED_RULE:
                    lr = moved.batch.group.get("lr", 1.0)
                    deltas = torch._foreach_mul(moved.observed(), lr)
                    pairs += zip(moved.batch.params, deltas, strict=True)
        for p, delta in pairs:
            yield p, torch.view_as_complex(delta) if p.is_complex() else delta

    def detach(self) -> None:
        """Restore the weights and remove every trace: model and optimizer are plain again."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        model, optimizer = self._model(), self._optimizer()
        for thing in (*(model.modules() if model is not None else ()), optimizer):
            if thing is not None and not _owners(thing):
                vars(thing).pop("__getstate__", None)
        for state in optimizer.state.values() if optimizer is not None else ():
            state.pop(OBSERVED, None)
        for held in (self._buffers, self._apart, self._before):
            held.clear()
        self._model = self._optimizer = _nobody

    def _attached(self) -> Optimizer:
        if (optimizer := self._optimizer()) is None:
            raise WeightcastError("this handle is detached; call weightcast.attach again.")
        return optimizer

    # --- there and back --------------------------------------------------------------------------

    def _reach(self, group: Group) -> float:
        return reach(group, self._steps, self.decaying)

    def _wants(self, optimizer: Optimizer) -> bool:
        return any(map(self._reach, optimizer.param_groups))

    def _settings(self, optimizer: Optimizer) -> list[Any]:
        """What a prediction depends on besides the optimizer's state."""
        rates = [group.get("lr") for group in optimizer.param_groups]
        versions = [(id(r), r._version) if isinstance(r, Tensor) else r for r in rates]
        return [*map(self._reach, optimizer.param_groups), *versions]

    def _rule_of(self, group: Group) -> Rule:
        return self._rule if self._rule.when(group) else OBSERVED_RULE

    def _batches(self, optimizer: Optimizer) -> Iterator[_Batch]:
        """The parameters whose displacement is known: one by one, or multi-tensor."""
        for group in optimizer.param_groups:
            rule = self._rule_of(group)
            together: dict[Any, list[tuple[Tensor, dict[str, Any]]]] = {}
            for p in group["params"]:
                state = optimizer.state.get(p) or self._apart.get(p)
                if state and _is_known(state, rule):
                    kernels = fused_backend(p, state, group) if rule.formula is adam else None
                    multi = rule.foreach and _prefers_foreach(group, p)
                    key: tuple[Any, ...] = (kernels, p.device, p.dtype)
                    if kernels is None:
                        key += (host_step(state),) if multi else (id(p),)
                    together.setdefault(key, []).append((p, state))
            for (kernels, *_), members in together.items():
                for chunk in _chunks(members):
                    params, states = map(list, zip(*chunk, strict=True))
                    yield _Batch(group, rule, params, states, kernels)

    def _move(self, batch: _Batch) -> None:
        """θ̂ = (1 - γλ)ˢ·θ - s·Δ, the paper's Eq. 7; without the decay unless asked for."""
        reach = self._reach(batch.group)
        is_observed = batch.rule is OBSERVED_RULE
        scale = reach * batch.group.get("lr", 1.0) if is_observed else reach
        if reach == 0 or (not isinstance(scale, Tensor) and scale == 0):
            return
        params = _plain(batch.params)
        deltas = [] if batch.kernels else batch.displacements()
        decay = decay_factor(batch.rule, batch.group, reach) if self.weight_decay else 1.0
        saved = [
            self._buffer(p, state.pop(OBSERVED, None) if is_observed else None)
            for p, state in zip(batch.params, batch.states, strict=True)
        ]
        if batch.kernels:
            batch.forecast(saved, reach, decay)
            self._moved.append(_Moved(batch, saved, 1.0))
            return
        torch._foreach_copy_(_plain(saved), params)
        self._moved.append(_Moved(batch, saved, _nonzero(scale)))
        if self.weight_decay:
            torch._foreach_mul_(params, decay)
        torch._foreach_sub_(params, deltas, alpha=reach)

    def _move_back(self) -> None:
        """Bring the last batch back to θ; forgotten only then, whatever interrupts."""
        batch, saved, _ = moved = self._moved[-1]
        displacements = moved.observed() if batch.rule is OBSERVED_RULE else []
        torch._foreach_copy_(_plain(batch.params), _plain(saved))
        self._moved.pop()
        if displacements:
            torch._foreach_copy_(_plain(saved), displacements)
            for state, buffer in zip(batch.states, saved, strict=True):
                state[OBSERVED] = buffer
        else:
            self._buffers.update(zip(batch.params, saved, strict=True))

    def _buffer(self, p: Tensor, buffer: Tensor | None = None) -> Tensor:
        """Memory of the parameter's size: the one offered, the one used last, or new."""
        if buffer is None:
            buffer = self._buffers.pop(p, None)
        if buffer is None or (buffer.shape, buffer.dtype, buffer.device) != (
            p.shape,
            p.dtype,
            p.device,
        ):
            buffer = torch.empty_like(p)
        return buffer

    # --- the timetable ---------------------------------------------------------------------------

    def _attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Hook both. They hold the prediction; it holds neither of them."""
        self._model, self._optimizer = weakref.ref(model), weakref.ref(optimizer)
        for module in (model, *_parts(model)):
            hook = module.register_forward_pre_hook(self._before_forward, prepend=True)
            self._handles.append(hook)
        self._hook_steps(optimizer)
        self._handles += [
            optimizer.register_state_dict_pre_hook(self._before_access),
            optimizer.register_load_state_dict_pre_hook(self._before_loading_state),
        ]
        for module in model.modules():  # a part may be saved, loaded or copied on its own
            self._handles += [
                module.register_state_dict_pre_hook(self._before_access),
                module.register_load_state_dict_pre_hook(self._before_access),
            ]
        for thing in (*model.modules(), optimizer):
            vars(thing)["__getstate__"] = functools.partial(_plain_state, weakref.ref(thing))
        for keyed_by_parameter in (self._buffers, self._apart):
            weakref.finalize(optimizer, keyed_by_parameter.clear).atexit = False
        _live.add(self)

    def _hook_steps(self, optimizer: Optimizer) -> None:
        self._handles += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @untraced
    def _before_forward(self, module: nn.Module, args: Any) -> None:
        model = self._model()
        if torch.compiler.is_compiling() or _is_tracing():  # an export shows stand-ins of weights
            if self.is_predicted:
                raise WeightcastError(_TRACED)
        elif model is None or self._optimizer() is None:
            self.detach()
        elif model.training and torch.is_grad_enabled():
            self.predict()
        elif module is model or not model.training:  # not a teacher or a metric among the parts
            self.restore()

    def _before_access(self, *_: Any) -> None:
        self.restore()

    def _before_loading_state(self, *_: Any) -> None:
        self.restore()
        self._apart.clear()
        self._steps_taken = 0  # the new state may be that of an optimizer before its first step

    @untraced
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self.restore()
        self._depth += 1
        if self._depth > 1:
            return None
        self._before.clear()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._check_ever_predicted(optimizer)
            self._remember(optimizer)
            return None

        @functools.wraps(closure)
        def at_prediction() -> Any:
            ever, gradients = self._ever_predicted, _marks_of_gradients(optimizer)
            with self.predicted():
                loss = closure()
            # some trainers pass a closure that does nothing after a backward of their own
            self._ever_predicted = ever or _marks_of_gradients(optimizer) != gradients
            self._check_ever_predicted(optimizer)
            self._depth = 1
            if not self._before:
                self._remember(optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": at_prediction}
        return (args[0], at_prediction, *args[2:]), kwargs

    def _remember(self, optimizer: Optimizer) -> None:
        """Keep θ of the observed parameters, in the buffers of their displacements."""
        may_skip = hasattr(optimizer, "found_inf")  # a fused step under a gradient scaler
        for group in optimizer.param_groups:
            if self._rule_of(group) is not OBSERVED_RULE:
                continue
            params = [p for p in group["params"] if p.requires_grad or p.grad is not None]
            states = [optimizer.state.get(p) or self._apart.get(p, {}) for p in params]
            if self._reach(group) == 0:
                for state in states:
                    state.pop(OBSERVED, None)
                continue
            last = [None if may_skip else state.pop(OBSERVED, None) for state in states]
            buffers = list(map(self._buffer, params, last))
            with moving():
                torch._foreach_copy_(_plain(buffers), _plain(params))
            self._before.append((group, params, buffers))

    @untraced
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._steps_taken += 1
        found_inf = getattr(optimizer, "found_inf", None)
        for group, params, buffers in self._before:
            with moving():
                torch._foreach_sub_(_plain(buffers), _plain(params))
                torch._foreach_div_(_plain(buffers), _nonzero(group.get("lr", 1.0)))
            # an empty state tells many optimizers to initialise it: it stays empty
            is_lazy = any(optimizer.state.get(p) for p in params)
            for p, displacement in zip(params, buffers, strict=True):
                is_apart = is_lazy and not optimizer.state.get(p)
                state = self._apart.setdefault(p, {}) if is_apart else optimizer.state[p]
                if found_inf is not None and OBSERVED in state:
                    _keep_if(found_inf, displacement, state[OBSERVED])
                    self._buffers[p] = state[OBSERVED]
                state[OBSERVED] = displacement
        self._before.clear()

    # --- what would silently do nothing ----------------------------------------------------------

    def _report(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            warnings.warn(message, PredictionWarning, stacklevel=3)

    def _check_ever_predicted(self, optimizer: Optimizer) -> None:
        if self._steps_taken and not self._ever_predicted and self._wants(optimizer):
            self._report(_NEVER_CALLED)

    def _check_coarseness(self) -> None:
        """Whether low-precision weights can express the forecast; synchronises, once."""
        stuck = total = 0
        for batch, saved, _ in self._moved:
            if batch.params[0].dtype in _COARSE and batch.rule is not OBSERVED_RULE:
                for p, before, delta in zip(
                    _plain(batch.params), _plain(saved), batch.displacements(), strict=True
                ):
                    wanted = delta != 0
                    total += int(wanted.sum())
                    stuck += int((wanted & (p == before)).sum())
        self._checked_coarseness = bool(self._moved)
        if stuck > total / 2:
            self._report(_TOO_COARSE.format(stuck / total))


_TRACED = (
    "the model is being exported while its weights are predicted: call prediction.restore() first."
)
_NEVER_CALLED = (
    "weight prediction has done nothing so far: optimizer.step() ran twice without a training-mode "
    "forward of the attached module. Attach the module that the loop calls (and call its train()), "
    "or wrap forward and backward in `with prediction.predicted():`."
)
_NOTHING_MOVED = (
    "weight prediction moves no parameter: the optimizer has taken steps but shows no displacement "
    "for any of them. Its weights may live elsewhere (ZeRO, flattened or master copies), or all "
    "parameters may be frozen."
)
_TOO_COARSE = (
    "{:.0%} of the low-precision weights are too coarse to move when predicted: the displacement "
    "is below their resolution. Train float32 parameters under autocast instead."
)


def _nobody() -> None:
    """A reference to nothing."""


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose forward stands for the model's, where a trainer never calls the model.

    Lightning calls `training_step`, which calls what the LightningModule is made of.
    """
    if hasattr(model, "training_step"):
        parts = list(model.children())
        for part in parts:
            if isinstance(part, nn.ModuleList | nn.ModuleDict):  # called by none either
                parts += part.children()
            else:
                yield part


def _marks_of_gradients(optimizer: Optimizer) -> list[Any]:
    """Differs after a backward."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [(id(p.grad), p.grad._version) for p in params if p.grad is not None]


def _plain(tensors: list[Tensor]) -> list[Tensor]:
    return [plain(t) for t in tensors]


def _nonzero(scale: float | Tensor) -> float | Tensor:
    """A divisor for what is zero itself where `scale` is."""
    if isinstance(scale, Tensor):
        return torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale or 1.0


def _keep_if(found_inf: Tensor, displacement: Tensor, last: Tensor) -> None:
    """Where the step was skipped, the last displacement stands; decided on the device."""
    target = plain(displacement)
    skipped = found_inf.to(target.device) > 0
    with moving():
        target.copy_(torch.where(skipped, plain(last), target))


def _is_known(state: dict[str, Any], rule: Rule) -> bool:
    """Whether the state holds the parameter's last displacement (it does after a first step)."""
    if rule is OBSERVED_RULE:
        return OBSERVED in state
    own = [value for key, value in state.items() if key != OBSERVED]
    return bool(own) and all(value is not None for value in own)


def _prefers_foreach(group: Group, p: Tensor) -> bool:
    """Torch's own choice: multi-tensor on CUDA unless told otherwise, tensor by tensor on CPU."""
    foreach = group.get("foreach")
    return p.device.type in ("cuda", "xpu") if foreach is None else bool(foreach)


def _chunks(members: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[Any]:
    """Split so that the temporaries of one multi-tensor pass stay small beside the model."""
    chunk: list[Any] = []
    elements = 0
    for member in members:
        if chunk and elements + member[0].numel() > _MULTI_TENSOR_ELEMENTS:
            yield chunk
            chunk, elements = [], 0
        chunk.append(member)
        elements += member[0].numel()
    yield chunk


def _owners(thing: Any) -> list[WeightPrediction]:
    """The predictions that hooked a module or an optimizer."""
    tables = [table for name, table in vars(thing).items() if name.endswith("_hooks")]
    return [owner for table in tables for hook in table.values() if (owner := _owner(hook))]


def _owner(hook: Any) -> WeightPrediction | None:
    owner = getattr(getattr(hook, "hook", hook), "__self__", None)
    return owner if isinstance(owner, WeightPrediction) else None


def _plain_state(reference: Callable[[], Any]) -> Any:
    """`__getstate__` of an attached module or optimizer: a copy is at θ, and unattached.

    Both copying and pickling ask the instance for it, before they touch any weight.
    """
    thing = reference()
    for prediction in _owners(thing):
        prediction.restore()
    kind: Any = type(thing)
    state = kind.__getstate__(thing)
    if isinstance(state, dict):
        state = {name: value for name, value in state.items() if name != "__getstate__"}
        for name, table in state.items():
            if name.endswith("_hooks"):
                state[name] = type(table)((i, h) for i, h in table.items() if not _owner(h))
    return state
