"""The forecast of any optimizer: where its weights are, and the way there and back."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.displacement.observed import Observer, is_told, may_move, takes_part
from weightcast.displacement.reach import (
    checked_steps,
    decay_factor,
    reach,
    settings_of_groups,
    take_over_steps,
)
from weightcast.displacement.rules import OBSERVED, OBSERVED_RULE, Group, Rule, rate
from weightcast.forecast import Forecast, nothing
from weightcast.moves.diagnostics import Diagnostics, marks_of_gradients
from weightcast.moves.passes import Batch, Place
from weightcast.moves.pause import paused
from weightcast.moves.plans import Plans, batches_of, generation
from weightcast.moves.replaced import give_back
from weightcast.moves.rivals import Rivals
from weightcast.tensors import moving, untraced, written


class OptimizerForecast(Forecast):
    """The weights of any optimizer; θ is kept while they are at θ̂."""

    def __init__(
        self,
        steps: float,
        optimizer: Optimizer | None = None,
        rule: Rule = OBSERVED_RULE,
        *,
        damped: bool = False,
        weight_decay: bool = False,
    ) -> None:
        self.damped, self.weight_decay = damped, weight_decay
        self._optimizer: Callable[[], Optimizer | None] = nothing
        self.steps = steps
        if optimizer is not None:
            self._optimizer = weakref.ref(optimizer)
        self._rule = rule
        self._observer = Observer()
        self._diagnostics = Diagnostics()
        self._plans: Plans = {}
        self.memory: dict[Tensor, Tensor] = {}  # for θ; reused, so that a loop allocates nothing
        self.moved: list[Batch] = []
        self._is_predicted, self._is_checked = False, True
        self._settings_used: list[Any] = []
        self._used: list[tuple[Group, list[Tensor]]] = []  # groups and parameters of the forecast
        self._rivals = Rivals(self)

    def __reduce__(self) -> tuple[Any, ...]:
        detached = functools.partial(
            OptimizerForecast, damped=self.damped, weight_decay=self.weight_decay
        )
        return detached, (self.steps,)

    @property
    def optimizer(self) -> Optimizer | None:
        """Whose weights these are; None once it has ended, or the optimizer is gone."""
        return self._optimizer()

    @property
    def steps(self) -> float:
        """How many steps to look ahead."""
        return self._steps

    @steps.setter
    def steps(self, value: float) -> None:
        self._steps = checked_steps(value, "steps", self.damped)
        if (optimizer := self._optimizer()) is not None:
            take_over_steps(optimizer.param_groups)

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now (which is θ itself where nothing is known yet)."""
        return self._is_predicted

    backward_pending = is_predicted

    # --- there and back --------------------------------------------------------------------------

    @untraced
    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there."""
        if (optimizer := self._optimizer()) is None:
            return
        settings = settings_of_groups(optimizer.param_groups, self._steps, self.damped)
        if self._is_predicted:
            if self.others_stepped:  # else what was written may be put back: a climb, an average
                self.others_stepped = False
                self._check_untouched()
            if settings == self._settings_used:
                return
            self._restore(
                for_update=False
            )  # a scheduler went on after a step that the gradient scaler skipped
        self._settings_used = settings
        try:
            with moving():
                batches = self.batches()
                self._rivals.restore()
                self._used = [(group, list(group["params"])) for group in optimizer.param_groups]
                self._is_predicted = self._diagnostics.ever_predicted = True
                for batch in batches:
                    self._move(batch)
                self._diagnostics.check_coarseness(self.moved)
                self._note_writes()
            self._is_checked = self.others_stepped = False
        except BaseException:
            self.restore()
            raise
        # while it is watched, its memory holds θ from before the step
        if not self._observer.watched and any(map(self._reach, optimizer.param_groups)):
            self._diagnostics.check_anything_known(batches)

    @untraced
    def restore(self) -> None:
        """Put θ back, bit for bit. Does nothing if it is there."""
        was_predicted = self._is_predicted
        self._restore(for_update=False)
        if was_predicted:
            self.interrupted()

    def pause(self, for_reading: bool = False) -> Callable[[], None]:
        """Put θ back for an evaluation, or for reading; gives what to call after it."""
        used = self._settings_used
        return paused(self, for_reading, lambda: used == self._settings_used, self._note_writes)

    def displacements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its Δ, as far as it is known."""
        with torch.no_grad():
            batches = [*self.batches(), *(b for b in self.moved if b.is_observed)]
            pairs = [zip(b.params, b.displacements(), strict=True) for b in batches]
        for p, delta in chain.from_iterable(pairs):
            yield p, torch.view_as_complex(delta) if p.is_complex() else delta

    def batches(self) -> list[Batch]:
        """The parameters whose displacement is known, as they move together."""
        found, seen = list[Batch](), generation()
        if (optimizer := self._optimizer()) is not None:
            for n, group in enumerate(optimizer.param_groups):
                states = self._observer.states_of(optimizer, group["params"])
                rule = self._rule_of(group)
                found += batches_of(self._plans, n, group, rule, states, self.memory)
            if generation() != seen:  # somebody may have replaced parameters
                alive = {p for group in optimizer.param_groups for p in group["params"]}
                self._observer.drop_all_but(alive)
                for p in self.memory.keys() - alive:
                    del self.memory[p]
        return found

    def end(self) -> None:
        """Put θ back, and let go of everything."""
        self.restore()
        if (optimizer := self._optimizer()) is not None:
            for state in optimizer.state.values():
                state.pop(OBSERVED, None)
        self._plans, self.memory, self._observer = {}, {}, Observer()
        self._diagnostics.forget_weights()
        self._used, self._optimizer = [], nothing

    # --- the optimizer's step --------------------------------------------------------------------

    def before_step(self, has_closure: bool) -> None:
        """Put θ back, and keep it once more where the update is to be observed."""
        self._observer.watched.clear()  # a step that raised never ended
        lends = not has_closure and not hasattr(self._optimizer(), "found_inf")
        held = self._restore(for_update=lends)
        self._remember(held, may_predict=has_closure)

    def around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure at θ̂; it may run several times within a step, and may detach."""

        @functools.wraps(closure)
        def at_prediction() -> Any:
            optimizer, ever = self._optimizer(), self._diagnostics.ever_predicted
            gradients = marks_of_gradients(optimizer)
            try:
                self.predict()
                loss = closure()
            finally:
                self._restore(for_update=False)
            # some trainers pass a closure that does nothing after a backward of their own
            self._diagnostics.ever_predicted = ever or marks_of_gradients(optimizer) != gradients
            return loss

        return at_prediction

    def introduce(self, about: str) -> None:
        """What every warning ends with: of which model and optimizer it is."""
        self._diagnostics.about = about

    def expect_writes(self) -> None:
        """The optimizer climbs from the forecast, and comes back, before it steps."""
        self._diagnostics.expects_writes = True

    def after_step(self) -> None:
        """See what an observed update has subtracted."""
        if (optimizer := self._optimizer()) is not None:
            self._observer.compare(optimizer)
            groups = optimizer.param_groups
            self._diagnostics.step_taken(any(self._reach(g) and may_move(g) for g in groups))

    def state_loaded(self) -> None:
        """The steps stay what they are, whatever the checkpoint's were."""
        if (optimizer := self._optimizer()) is not None:
            take_over_steps(optimizer.param_groups)
            groups = [g for g in optimizer.param_groups if self._rule_of(g) is OBSERVED_RULE]
            if any(map(self._reach, groups)) and not is_told(optimizer):
                self._diagnostics.nothing_loaded()

    def state_replaced(self) -> None:
        """Put θ back, and forget what was known of the old state."""
        self.restore()
        self._plans.clear()  # they hold the old state
        self._observer.apart.clear()
        self._diagnostics.has_stepped = False  # the loaded one may not have

    def _remember(self, held: dict[Tensor, Tensor], *, may_predict: bool) -> None:
        """Keep θ where the update is to be observed."""
        self._rivals.restore()
        if (optimizer := self._optimizer()) is None:
            return
        for group in (g for g in optimizer.param_groups if self._rule_of(g) is OBSERVED_RULE):
            if self._reach(group):
                self._observer.remember(optimizer, group, held, may_predict)
            else:
                self._observer.forget(optimizer, group)

    # --- moving ----------------------------------------------------------------------------------

    def _reach(self, group: Group) -> float:
        return reach(group, self._steps, self.damped)

    def _rule_of(self, group: Group) -> Rule:
        return self._rule if self._rule.when(group) else OBSERVED_RULE

    def _note_writes(self) -> None:
        self._diagnostics.note_writes([p for batch in self.moved for p in batch.params])

    def _check_untouched(self) -> None:
        self._diagnostics.check_untouched(
            [p for batch in self.moved for p in batch.params],
            lambda: all(batch.is_at_forecast() for batch in self.moved),
        )

    def _move(self, batch: Batch) -> None:
        steps, lr = self._reach(batch.group), rate(batch.group)
        if steps == 0 or (batch.is_observed and not isinstance(lr, Tensor) and lr == 0):
            return
        decay = decay_factor(batch.rule, batch.group, steps) if self.weight_decay else 1.0
        self.moved.append(batch)
        batch.forecast(steps, decay)
        written(batch.params)

    def _restore(self, *, for_update: bool) -> dict[Tensor, Tensor]:
        """Bring every batch back to θ; each is forgotten only once it is, whatever interrupts.

        Before an update that is observed, the memory of the last displacements goes on to hold θ,
        and is returned.
        """
        held: dict[Tensor, Tensor] = {}
        if not self._is_predicted:
            return held
        if not self._is_checked:  # one that was interrupted has written itself
            self._is_checked = True
            self._check_untouched()
        for old, new in give_back(self.moved, self._used, self._optimizer()):
            self._diagnostics.replaced(old, new)
        self._used = []
        with moving():
            while self.moved:
                batch = self.moved[-1]
                is_whole = batch.is_observed and batch.place is Place.PREDICTED
                hold = for_update and is_whole and all(map(takes_part, batch.params))
                if is_whole and not hold:
                    batch.observed()
                if lost := batch.restore():
                    self._diagnostics.shapes_changed(lost)
                written(batch.params)
                if hold:
                    held.update(zip(batch.params, batch.saved, strict=True))
                elif batch.walked:
                    batch.keep(batch.walked)
                self.moved.pop()
        self._is_predicted = False
        return held
