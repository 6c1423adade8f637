"""The forecast of any optimizer: what its state does not tell is seen around its steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from weightcast.displacement.observed import Observer, is_told, may_move
from weightcast.displacement.reach import checked_steps, take_over_steps
from weightcast.displacement.rules import OBSERVED, OBSERVED_RULE, Rule
from weightcast.moves.base import RuleForecast
from weightcast.moves.batch import Batch
from weightcast.moves.diagnostics import marks_of_gradients


class OptimizerForecast(RuleForecast):
    """The weights of any optimizer."""

    def __init__(self, steps: float, optimizer: Optimizer, rule: Rule, **settings: bool) -> None:
        self._observer = Observer()
        super().__init__(steps, optimizer, rule, **settings)

    @property
    def steps(self) -> float:
        """How many steps to look ahead."""
        return self._steps

    @steps.setter
    def steps(self, value: float) -> None:
        self._steps = checked_steps(value, "steps", self.damped)
        if (optimizer := self.optimizer) is not None:
            take_over_steps(optimizer.param_groups)

    def end(self) -> None:
        """Put θ back, and let go of everything."""
        self.restore()
        if (optimizer := self.optimizer) is not None:
            for state in optimizer.state.values():
                state.pop(OBSERVED, None)
        self._observer = Observer()
        super().end()

    def before_step(self, has_closure: bool) -> None:
        """Put θ back, and keep it once more where the update is to be observed."""
        self._observer.watched.clear()  # a step that raised never ended
        lends = not has_closure and not hasattr(self.optimizer, "found_inf")
        held = self.bring_back(for_update=lends)
        self._remember(held, may_predict=has_closure)

    def around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure at θ̂; it may run several times within a step, and may detach."""

        @functools.wraps(closure)
        def at_prediction() -> Any:
            optimizer, ever = self.optimizer, self.diagnostics.ever_predicted
            gradients = marks_of_gradients(optimizer)
            try:
                self.predict()
                loss = closure()
            finally:
                self.bring_back(for_update=False)
            # some trainers pass a closure that does nothing after a backward of their own
            self.diagnostics.ever_predicted = ever or marks_of_gradients(optimizer) != gradients
            return loss

        return at_prediction

    def after_step(self) -> None:
        """See what an observed update has subtracted."""
        if (optimizer := self.optimizer) is not None:
            self._observer.compare(optimizer)
            groups = optimizer.param_groups
            self.diagnostics.step_taken(any(self.reach_of(g) and may_move(g) for g in groups))

    def state_loaded(self) -> None:
        """The steps stay what they are, whatever the checkpoint's were."""
        if (optimizer := self.optimizer) is not None:
            take_over_steps(optimizer.param_groups)
            groups = [g for g in optimizer.param_groups if self.rule_of(g) is OBSERVED_RULE]
            if any(map(self.reach_of, groups)) and not is_told(optimizer):
                self.diagnostics.nothing_loaded()

    def state_replaced(self) -> None:
        """Put θ back, and forget what was known of the old state."""
        super().state_replaced()
        self._observer.apart.clear()

    def states_of(self, params: list[Tensor]) -> list[dict[str, Any]]:
        """The optimizer's states of parameters, or what is kept in their place."""
        optimizer = self.optimizer
        if optimizer is None:
            return super().states_of(params)
        return self._observer.states_of(optimizer, params)

    def drop_all_but(self, alive: set[Tensor]) -> None:
        """Forget parameters that the optimizer has no more."""
        super().drop_all_but(alive)
        self._observer.drop_all_but(alive)

    def check_anything_known(self, batches: list[Batch]) -> None:
        """Say so if no parameter has a displacement after a step."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        # while it is watched, its memory holds θ from before the step
        if not self._observer.watched and any(map(self.reach_of, groups)):
            super().check_anything_known(batches)

    def _remember(self, held: dict[Tensor, Tensor], *, may_predict: bool) -> None:
        """Keep θ where the update is to be observed."""
        self.rivals.restore()
        if (optimizer := self.optimizer) is None:
            return
        for group in (g for g in optimizer.param_groups if self.rule_of(g) is OBSERVED_RULE):
            if self.reach_of(group):
                self._observer.remember(optimizer, group, held, may_predict)
            else:
                self._observer.forget(optimizer, group)
