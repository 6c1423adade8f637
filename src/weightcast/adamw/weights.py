"""Where the weights of an `AdamW` are, and how they get there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weightcast.adamw.launches import Distance, Launches, Scaling
from weightcast.adamw.legs import LOW_PRECISION, Journal, Leg, is_same
from weightcast.displacement.rules import Group, adam
from weightcast.errors import InvalidTypeError
from weightcast.moves.diagnostics import Diagnostics
from weightcast.moves.replaced import carry_over, replaced
from weightcast.tensors import StateView, moving, plain, untraced

Row = tuple[Group, Distance]


@dataclass(eq=False)
class Place:
    """The record of a group that is predicted: where its parameters are, and by what formula."""

    group: Group
    params: list[Tensor]
    ahead: Distance  # how many times Δ/γ
    formula: Group  # what else the forecast depends on, as the group had it


class Weights:
    """Where the weights of an `AdamW` are, and how they get there."""

    def __init__(self, launches: Launches) -> None:
        self.launches = launches
        self.diagnostics = Diagnostics()
        self._places: dict[int, Place] = {}  # of the groups that are predicted
        self._journal = Journal()
        self._rows: list[Row] = []  # of the legs under way

    @property
    def is_predicted(self) -> bool:
        """Whether any group is at θ̂ now, or on the way."""
        return bool(self._places) or self._journal.is_open

    # --- there and back --------------------------------------------------------------------------

    @untraced
    def move(self, groups: Sequence[Group], thens: Sequence[Distance]) -> None:
        """From wherever the weights are to `then` times Δ/γ ahead of θ, group by group."""
        self._settle(groups)
        rows = zip(groups, thens, strict=True)
        self._go([(g, then) for g, then in rows if not is_same(self._now(g), then)])

    def step(self, groups: Sequence[Group], thens: Sequence[Distance], scaling: Scaling) -> None:
        """Update θ by the gradients, and move to `then` times Δ/γ ahead of it."""
        self._settle(groups)
        rows = list(zip(groups, thens, strict=True))
        with moving():
            legs = [leg for group, then in rows for leg in self._step(group, then, scaling)]
            if self.launches.shared:
                self._step_in_turn(scaling)
                self.move(groups, thens)
            else:
                self._run(legs, rows)

    def _step_in_turn(self, scaling: Scaling) -> None:
        """Of parameters that share memory, one update goes on from the other, as in torch."""
        rows: list[Row] = [(group, 0.0) for group in self.launches.groups]
        self._go(rows)
        for leg in [leg for group, _ in rows for leg in self._step(group, 0.0, scaling)]:
            if leg.launch.operands.params[0].dtype in LOW_PRECISION:
                self.launches.heed(leg.launch, others_wrote=True)
            self._run([leg], [])

    def note_writes(self) -> None:
        """What was written to the weights so far is no matter."""
        params = [p for place in self._places.values() for p in place.params]
        if params and self._is_kept(params):
            self.diagnostics.note_writes(params)

    def _now(self, group: Group) -> Distance:
        place = self._places.get(id(group))
        return 0.0 if place is None else place.ahead

    def _go(self, rows: list[Row]) -> None:
        if not rows:
            return
        is_back = all(is_same(then, 0.0) for _, then in rows)
        with moving():
            legs = [leg for group, then in rows for leg in self._legs(group, then)]
            if self.launches.lost:
                self.diagnostics.shapes_changed(self.launches.lost)
                self.launches.lost = []
            # memory that two parameters share goes back in reverse order
            self._run(reversed(legs) if is_back else legs, rows)

    def _run(self, legs: Iterable[Leg], rows: list[Row]) -> None:
        """Launch them, and write down where the groups are then."""
        legs, self._rows = list(legs), rows
        self._journal.begin(legs)
        for launch in {id(leg.launch): leg.launch for leg in legs}.values():
            self.launches.watch(launch)
        for group, then in rows:
            self._arrive(group, then)
        self._journal.close()
        if self._places:
            self.note_writes()

    def _settle(self, groups: Sequence[Group]) -> None:
        """What was interrupted, or what another formula than the present moved, goes back first."""
        present = {id(group) for group in groups}
        gone = [p.group for p in self._places.values() if id(p.group) not in present]
        self.launches.groups = [*groups, *gone] if gone else groups
        if self._journal.is_open:
            with moving():
                self._journal.go_back()
                for group, _ in self._rows:
                    self._places.pop(id(group), None)
                self._journal.close()
        if self._places:
            self._check_untouched()
        for key, place in list(self._places.items()):
            if self.launches.kept:
                self._follow(place)
            formula = _formula(place.group)
            if key not in present or place.formula != formula:  # betas are scheduled
                place.group.update(place.formula)
                try:
                    self._go([(place.group, 0.0)])
                finally:
                    place.group.update(formula)

    def _follow(self, place: Place) -> None:
        """Parameters that were replaced by others: θ of what is still θ̂ in them."""
        for old, new in replaced(place.params, place.group["params"]):
            kept = self.launches.drop(old)
            if new is not None and kept is not None:
                theta = carry_over(old, new, kept)
                if theta is not None:
                    self.launches.kept[new] = theta

    def _leave(self, group: Group, params: list[Tensor]) -> None:
        """Without a state there is no forecast; θ is where it was if that went while predicted."""
        for p in params:
            kept = self.launches.drop(p)
            if kept is not None and id(group) in self._places:
                p.copy_(kept)

    def _arrive(self, group: Group, then: Distance) -> None:
        """All of the group is at `then` now."""
        place = self._places.get(id(group))
        if place and isinstance(place.ahead, Tensor) and isinstance(then, Tensor):
            place.ahead.copy_(then)  # the very memory that a captured graph reads
        elif isinstance(then, Tensor) or then != 0:
            params, formula = list(group["params"]), _formula(group)
            self._places[id(group)] = Place(group, params, then, formula)
        else:
            self._places.pop(id(group), None)

    def _check_untouched(self) -> None:
        """Whether others wrote to what the next restoring would undo."""
        params = [p for place in self._places.values() for p in place.params]
        if params and self._is_kept(params):
            is_as_before = lambda: all(map(self._is_at_forecast, self._places.values()))  # noqa: E731
            self.diagnostics.check_untouched(params, is_as_before)

    def _is_kept(self, params: list[Tensor]) -> bool:
        return self.launches.keeps or params[0].dtype in LOW_PRECISION

    def _is_at_forecast(self, place: Place) -> bool:
        """Whether the parameters are where they were moved, as far as the formula tells."""
        group = {**place.formula, "lr": place.ahead}
        with torch.no_grad():
            return all(
                torch.allclose(
                    plain(p),
                    plain(kept) - adam(StateView([self.launches.state[p]]), group),
                    rtol=1e-4,
                )
                for p in place.params
                if (kept := self.launches.kept.get(p)) is not None and kept.shape == p.shape
            )

    # --- what is to be launched ------------------------------------------------------------------

    def _legs(self, group: Group, then: Distance) -> Iterator[Leg]:
        """Move a group."""
        params = group["params"]
        states = list(map(self.launches.state.get, params))
        if not all(states):
            self._leave(group, [p for p, state in zip(params, states, strict=True) if not state])
            params = [p for p, state in zip(params, states, strict=True) if state]
            states = list(filter(None, states))
        yield from self._moves(group, then, params, states, "move")

    def _moves(
        self, group: Group, then: Distance, params: list[Tensor], states: list[Any], kind: str
    ) -> list[Leg]:
        now = self._now(group)
        if is_same(now, then):
            return []
        settings = self.launches.settings(group, back=now, ahead=then)
        is_predicted, legs = id(group) in self._places, list[Leg]()
        for launch in self.launches.of(group, params, states, kind, is_predicted):
            is_back = launch.operands.sources and is_same(then, 0.0)
            legs.append(Leg(launch, "restore" if is_back else "forecast", settings, now, then))
        return legs

    def _step(self, group: Group, then: Distance, scaling: Scaling) -> list[Leg]:
        """Update a group."""
        rows: dict[str, tuple[list[Tensor], list[Any]]] = {
            kind: ([], []) for kind in ("idle", "none", "step", "first step")
        }
        idle, none, known, fresh = rows.values()
        state_of = self.launches.state.get
        for p in group["params"]:
            if (grad := p.grad) is not None and grad.is_sparse:
                raise InvalidTypeError(_SPARSE)
            state = state_of(p)
            params, states = (
                (known if state else fresh) if grad is not None else (idle if state else none)
            )
            params.append(p)
            states.append(state)
        self._leave(group, fresh[0] + none[0])
        legs = self._moves(group, then, *idle, "idle")
        is_predicted = id(group) in self._places
        for kind in ("step", "first step"):
            if rows[kind][0]:
                now = self._now(group) if kind == "step" else 0.0
                settings = self.launches.settings(group, scaling, back=now, ahead=then)
                launches = self.launches.of(group, *rows[kind], kind, is_predicted)
                legs += [Leg(launch, "step", settings, now, then) for launch in launches]
        return legs


def _formula(group: Group) -> Group:
    return {name: group[name] for name in ("betas", "eps", "amsgrad")}


_SPARSE = (
    "weightcast.AdamW does not support sparse gradients: use torch.optim.SparseAdam, or an "
    "embedding with sparse=False."
)
