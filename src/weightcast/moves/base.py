"""There and back: the forecast of an optimizer whose state tells its displacement."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from weightcast.displacement.observed import UNKNOWN, takes_part
from weightcast.displacement.reach import checked_steps, decay_factor, reach, settings_of_groups
from weightcast.displacement.rules import OBSERVED_RULE, Group, Rule, rate
from weightcast.forecast import Forecast, nothing
from weightcast.moves.batch import Batch, Place
from weightcast.moves.diagnostics import Diagnostics
from weightcast.moves.pause import paused
from weightcast.moves.plans import Plans, batches_of, generation
from weightcast.moves.replaced import give_back
from weightcast.moves.rivals import Rivals
from weightcast.tensors import moving, untraced, written


class RuleForecast(Forecast):
    """The weights of an optimizer whose state tells its displacement.

    Attributes:
        rule: The displacement's.
        at_forecast: Whether the weights are at θ̂, or some of them.
        moved: The records of what is predicted now, or on the way.
        memory: For copies of θ; reused, so that a loop allocates nothing.
        keeps: Whether θ is kept where it could be computed.
        settings_used: What the last forecast was made for, as `settings_of_groups`.
        diagnostics: What has happened so far.
        rivals: Others that move the same memory.
    """

    keeps = True

    def __init__(
        self,
        steps: float,
        optimizer: Optimizer | None = None,
        rule: Rule = OBSERVED_RULE,
        *,
        damped: bool = False,
        weight_decay: bool = False,
    ) -> None:
        self.damped, self.weight_decay, self.rule = damped, weight_decay, rule
        self._optimizer: Callable[[], Optimizer | None] = nothing
        self.steps = steps
        if optimizer is not None:
            self._optimizer = weakref.ref(optimizer)
        self.plans: Plans = {}
        self.memory: dict[Tensor, Tensor] = {}
        self.moved: list[Batch] = []
        self.at_forecast, self._is_checked = False, True
        self.settings_used: list[Any] = []
        self._used: list[tuple[Group, list[Tensor]]] = []  # groups and parameters of the forecast
        self.diagnostics, self.rivals = Diagnostics(), Rivals(self)

    def __reduce__(self) -> tuple[Any, ...]:
        detached = functools.partial(
            RuleForecast, damped=self.damped, weight_decay=self.weight_decay
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

    @property
    def is_predicted(self) -> bool:
        """Whether the parameters are at θ̂ now (which is θ itself where nothing is known yet)."""
        return self.at_forecast

    backward_pending = is_predicted

    # --- there and back --------------------------------------------------------------------------

    @untraced
    def predict(self) -> None:
        """Move the weights from θ to θ̂. Does nothing if they are there."""
        if (optimizer := self._optimizer()) is None:
            return
        settings = settings_of_groups(optimizer.param_groups, self._steps, self.damped)
        if self.at_forecast:
            if self.others_stepped:  # else what was written may be put back: a climb, an average
                self.others_stepped = False
                self._check_untouched()
            if settings == self.settings_used or self.corrected():
                self.settings_used = settings
                return
            # a scheduler went on after a step that the gradient scaler skipped
            self.bring_back(for_update=False)
        self.settings_used = settings
        try:
            with moving():
                batches = self.batches()
                self.rivals.restore()
                self._used = [(group, list(group["params"])) for group in optimizer.param_groups]
                self._is_checked = True  # who is interrupted has written itself
                self.at_forecast = self.diagnostics.ever_predicted = True
                for batch in batches:
                    self.move(batch)
                self.diagnostics.check_coarseness(self.moved)
                self.note_writes()
            self.others_stepped = False
        except BaseException:
            self.restore()
            raise
        self.check_anything_known(batches)

    @untraced
    def restore(self) -> None:
        """Put θ back, bit for bit. Does nothing if it is there."""
        was_pending = self.backward_pending
        self.bring_back(for_update=False)
        if was_pending:
            self.interrupted()

    def pause(self, for_reading: bool = False) -> Callable[[], None]:
        """Put θ back for an evaluation, or for reading; gives what to call after it."""
        used = self.settings_used
        return paused(self, for_reading, lambda: used == self.settings_used, self.note_writes)

    def displacements(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its Δ, as far as it is known."""
        with torch.no_grad():
            batches = [*self.batches(), *(b for b in self.moved if b.is_observed)]
            pairs = [zip(b.params, b.displacements(), strict=True) for b in batches]
        for p, delta in chain.from_iterable(pairs):
            yield p, torch.view_as_complex(delta) if p.is_complex() else delta

    def end(self) -> None:
        """Put θ back, and let go of everything."""
        self.restore()
        self.plans, self.memory = {}, {}
        self.diagnostics.forget_weights()
        self._used, self._optimizer = [], nothing

    # --- what others tell ------------------------------------------------------------------------

    def before_step(self, has_closure: bool) -> None:
        """Put θ back."""
        self.restore()

    def around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The optimizer's own step runs it at θ̂."""
        return closure

    def after_step(self) -> None:
        """The state tells."""

    def state_replaced(self) -> None:
        """Put θ back, and forget what was known of the old state."""
        self.restore()
        self.plans.clear()  # they hold the old state
        self.diagnostics.has_stepped = False  # the loaded one may not have

    def state_loaded(self) -> None:
        """The state tells."""

    def introduce(self, about: str) -> None:
        """What every warning ends with: of which model and optimizer it is."""
        self.diagnostics.about = about

    def expect_writes(self) -> None:
        """The optimizer climbs from the forecast, and comes back, before it steps."""
        self.diagnostics.expects_writes = True

    def note_writes(self) -> None:
        """What was written to the weights so far is no matter."""
        self._is_checked = True
        self.diagnostics.note_writes(self._kept())
        self._is_checked = False

    def _kept(self) -> list[Tensor]:
        """Those to which nobody may write now: it would be lost."""
        return [p for batch in self.moved if not batch.is_computed for p in batch.params]

    def corrected(self) -> bool:
        """Whether what is predicted went straight on to where other settings want it."""
        return False

    def check_once(self) -> None:
        """Say so if others wrote to the weights since `note_writes`."""
        if self.at_forecast and not self._is_checked:
            self._is_checked = True
            self._check_untouched()

    def _check_untouched(self) -> None:
        self.diagnostics.check_untouched(
            self._kept(), lambda: all(batch.is_at_forecast() for batch in self.moved)
        )

    # --- what moves ------------------------------------------------------------------------------

    def check_anything_known(self, batches: list[Batch]) -> None:
        """Say so if no parameter has a displacement after a step."""
        self.diagnostics.check_anything_known(batches)

    def reach_of(self, group: Group) -> float:
        """How many displacements to walk in this group."""
        return reach(group, self._steps, self.damped)

    def rule_of(self, group: Group) -> Rule:
        """By which rule a group moves."""
        return self.rule if self.rule.when(group) else OBSERVED_RULE

    def states_of(self, params: list[Tensor]) -> list[dict[str, Any]]:
        """The optimizer's states of parameters."""
        optimizer = self._optimizer()
        return [UNKNOWN if optimizer is None else optimizer.state.get(p) or UNKNOWN for p in params]

    def complete_state(self, group: Group, p: Tensor, state: dict[str, Any]) -> None:
        """Before a plan is made: what the state of a parameter lacks."""

    def drop_all_but(self, alive: set[Tensor]) -> None:
        """Forget parameters that the optimizer has no more."""
        for p in self.memory.keys() - alive:
            del self.memory[p]

    def batches(self) -> list[Batch]:
        """The parameters whose displacement is known, as they move together."""
        found, seen = list[Batch](), generation()
        if (optimizer := self._optimizer()) is not None:
            for n, group in enumerate(optimizer.param_groups):
                rule, states = self.rule_of(group), self.states_of(group["params"])
                found += batches_of(
                    self.plans, n, group, rule, states, self.memory, self.keeps, self.complete_state
                )
            if generation() != seen:  # somebody may have replaced parameters
                self.drop_all_but({p for g in optimizer.param_groups for p in g["params"]})
        return found

    def known(self) -> list[Batch]:
        """As `batches`, as they were when somebody last asked."""
        return [batch for _, plan in self.plans.values() for batch in plan]

    def move(self, batch: Batch) -> None:
        """To its forecast, if there is one."""
        steps, lr = self.reach_of(batch.group), rate(batch.group)
        if steps == 0 or (batch.is_observed and not isinstance(lr, Tensor) and lr == 0):
            return
        decay = decay_factor(batch.rule, batch.group, steps) if self.weight_decay else 1.0
        self.moved.append(batch)
        batch.forecast(steps, decay)
        written(batch.params)

    def bring_back(self, *, for_update: bool) -> dict[Tensor, Tensor]:
        """Bring every batch back to θ; each is forgotten only once it is, whatever interrupts.

        Before an update that is observed, the memory of the last displacements goes on to hold θ,
        and is returned.
        """
        held: dict[Tensor, Tensor] = {}
        if not self.at_forecast:
            return held
        self.check_once()
        for old, new in give_back(self.moved, self._used, self._optimizer()):
            self.diagnostics.replaced(old, new)
        self._used = []
        with moving():
            while self.moved:
                batch = self.moved[-1]
                is_whole = batch.is_observed and batch.place is Place.PREDICTED
                hold = for_update and is_whole and all(map(takes_part, batch.params))
                if is_whole and not hold:
                    batch.observed()
                if lost := batch.restore():
                    self.diagnostics.shapes_changed(lost)
                written(batch.params)
                if hold:
                    held.update(zip(batch.params, batch.saved, strict=True))
                elif batch.walked:
                    batch.keep(batch.walked)
                self.moved.pop()
        self.at_forecast = False
        self.note_writes()
        return held
