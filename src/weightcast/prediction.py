"""The handle of weight prediction: the weights of an optimizer, there and back."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim import Optimizer

from weightcast.distance import checked_steps, decay_factor, reach
from weightcast.errors import WeightcastError
from weightcast.observed import Observer, takes_part
from weightcast.passes import Batch
from weightcast.plans import Plans, batches_of
from weightcast.reports import Reports, writes_to
from weightcast.rules import OBSERVED, OBSERVED_RULE, Group, Rule, rate
from weightcast.tensors import moving, plain_all, untraced, written
from weightcast.timetable import Timetable


class WeightPrediction:
    """The handle that `attach` returns. It has no state of its own to checkpoint.

    A copy or a pickle of it is detached: it belongs to one model and one optimizer.
    """

    _hears_of_steps = True  # a subclass's optimizer may begin and end its steps where it should

    def __init__(self, steps: float, *, decaying: bool = False, weight_decay: bool = False) -> None:
        """Keep the settings; `attach` does the rest."""
        self.decaying, self.weight_decay = decaying, weight_decay
        self._model: Callable[[], nn.Module | None] = _nobody
        self._optimizer: Callable[[], Optimizer | None] = _nobody
        self.steps = steps
        self._rule = OBSERVED_RULE
        self._timetable: Timetable | None = None
        self._observer = Observer()
        self._reports = Reports()
        self._plans: Plans = {}
        self._memory: dict[Tensor, Tensor] = {}  # for θ; reused, so that a loop allocates nothing
        self._moved: list[Batch] = []
        self._is_predicted = False
        self._settings_used: list[Any] = []
        self._steps_running = 0  # a subclass's step may call its parent's

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

    _is_awaited = is_predicted  # whether a backward may wait for θ̂

    @untraced
    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there.

        Raises:
            WeightcastError: detached, or the optimizer is gone.
        """
        optimizer = self._attached()
        settings = self._settings(optimizer)
        if self._is_predicted:
            self._reports.check_untouched(self._moved)
            if settings == self._settings_used:
                return
            self.restore()  # a scheduler went on after a step that the gradient scaler skipped
        self._settings_used = settings
        self._is_predicted = self._reports.ever_predicted = True
        self._steps_running = 0  # one that raised never ended
        try:
            with moving():
                batches = self._batches(optimizer)
                for batch in batches:
                    self._move(batch)
                self._reports.check_coarseness(self._moved)
                self._reports.writes = writes_to(self._moved)
        except BaseException:
            self.restore()
            raise
        if not self._observer.watched:  # then its memory holds θ from before the step
            self._reports.check_anything_known(batches)

    @untraced
    def restore(self) -> None:
        """Put the true weights back, bit for bit. Does nothing if they are there."""
        self._restore(for_update=False)

    @contextmanager
    def predicted(self) -> Iterator[WeightPrediction]:
        """Run forward and backward at θ̂; afterwards the weights are where they were, always."""
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
        if (optimizer := self._optimizer()) is None:
            return
        with torch.no_grad():
            batches = [*self._batches(optimizer), *(b for b in self._moved if b.is_observed)]
            pairs = [zip(b.params, b.displacements(), strict=True) for b in batches]
        for p, delta in chain.from_iterable(pairs):
            yield p, torch.view_as_complex(delta) if p.is_complex() else delta

    def detach(self) -> None:
        """Restore the weights and remove every trace: model and optimizer are plain again."""
        self.restore()
        if self._timetable is not None:
            self._timetable.end(self._model(), self._optimizer())
        if (optimizer := self._optimizer()) is not None:
            for state in optimizer.state.values():
                state.pop(OBSERVED, None)
        self._plans, self._memory, self._observer = {}, {}, Observer()
        self._model = self._optimizer = _nobody

    # --- belonging -------------------------------------------------------------------------------

    def _begin(self, model: nn.Module, optimizer: Optimizer, rule: Rule) -> None:
        """Hooks hold the prediction; it holds neither the model nor the optimizer."""
        self._rule = rule
        self._model, self._optimizer = weakref.ref(model), weakref.ref(optimizer)
        self._timetable = Timetable(self, model, optimizer)
        # held weakly: a rule may hold the optimizer
        end = weakref.WeakMethod(self.detach)
        weakref.finalize(optimizer, lambda: (end() or _nobody)()).atexit = False

    def _attached(self) -> Optimizer:
        if (optimizer := self._optimizer()) is None:
            raise WeightcastError("this handle is detached; call weightcast.attach again.")
        return optimizer

    def _restore_for_update(self) -> None:
        """Put θ back, and keep it once more where the update is to be observed."""
        optimizer = self._optimizer()
        held = self._restore(for_update=not hasattr(optimizer, "found_inf"))
        # a closure may run several times within a step, and may detach
        if optimizer is None or self._observer.watched:
            return
        for group in (g for g in optimizer.param_groups if self._rule_of(g) is OBSERVED_RULE):
            if self._reach(group):
                self._observer.remember(optimizer, group, held)
            else:
                self._observer.forget(optimizer, group)

    def _pause(self) -> Callable[[], None]:
        """Put θ back for an evaluation; gives what to call after it.

        If it runs without gradients, θ̂ comes back to the bit and the version counters with it, so
        that a graph that waits for its backward stays valid. Not so if anything else changed
        weights or settings meanwhile: PyTorch refuses that backward then.
        """
        if torch.is_grad_enabled() or not self._is_awaited:
            self.restore()
            return _nobody
        params = [p for group in self._attached().param_groups for p in group["params"]]
        tensors, settings = [*params, *plain_all(params)], self._settings_used
        counters = list(map(_unsafe_preserve_version_counter, tensors))
        hat = [p.clone() for p in plain_all(params)]
        self.restore()
        versions = [p._version for p in tensors]

        def resume() -> None:
            if versions == [p._version for p in tensors]:
                self.predict()
                if settings == self._settings_used:
                    with moving():
                        torch._foreach_copy_(plain_all(params), hat)
                    for counter in counters:
                        counter.__exit__()
                    self._reports.writes = writes_to(self._moved)

        return resume

    def _reach(self, group: Group) -> float:
        return reach(group, self._steps, self.decaying)

    def _is_wanted(self) -> bool:
        return any(map(self._reach, self._attached().param_groups))

    def _rule_of(self, group: Group) -> Rule:
        return self._rule if self._rule.when(group) else OBSERVED_RULE

    def _settings(self, optimizer: Optimizer) -> list[Any]:
        """What a prediction depends on besides the optimizer's state."""
        rates = [group.get("lr") for group in optimizer.param_groups]
        versions = [(id(r), r._version) if isinstance(r, Tensor) else r for r in rates]
        return [*map(self._reach, optimizer.param_groups), *versions]

    def _batches(self, optimizer: Optimizer) -> list[Batch]:
        """The parameters whose displacement is known, as they move together."""
        found: list[Batch] = []
        for n, group in enumerate(optimizer.param_groups):
            states = self._observer.states_of(optimizer, group["params"])
            found += batches_of(self._plans, n, group, self._rule_of(group), states, self._memory)
        return found

    def _move(self, batch: Batch) -> None:
        steps, lr = self._reach(batch.group), rate(batch.group)
        if steps == 0 or (batch.is_observed and not isinstance(lr, Tensor) and lr == 0):
            return
        decay = decay_factor(batch.rule, batch.group, steps) if self.weight_decay else 1.0
        batch.forecast(steps, decay)
        written(batch.params)
        self._moved.append(batch)

    def _restore(self, *, for_update: bool) -> dict[Tensor, Tensor]:
        """Bring every batch back to θ; each is forgotten only once it is, whatever interrupts.

        Before an update that is observed, the memory of the last displacements goes on to hold θ,
        and is returned.
        """
        held: dict[Tensor, Tensor] = {}
        if not self._is_predicted:
            return held
        self._reports.check_untouched(self._moved)
        self._reports.writes = 0  # what interrupts is no second cause
        with moving():
            while self._moved:
                batch = self._moved[-1]
                hold = for_update and batch.is_observed and all(map(takes_part, batch.params))
                displacements = batch.observed() if batch.is_observed and not hold else []
                batch.restore()
                written(batch.params)
                self._moved.pop()
                if hold:
                    held.update(zip(batch.params, batch.saved, strict=True))
                elif batch.is_observed:
                    batch.keep(displacements)
        self._is_predicted = False
        return held


def _nobody() -> None:
    """A reference to nothing."""
