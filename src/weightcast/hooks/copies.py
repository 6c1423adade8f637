"""Copies and pickles of what is attached: at θ, and plain."""

from __future__ import annotations

import copy
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from weightcast.forecast import Forecast
from weightcast.hooks.merging import is_ours

_COPYING = ("__deepcopy__", "__reduce_ex__")
"""What copying and pickling ask an instance for, before they touch any weight."""


def copy_plainly(things: Iterable[Any]) -> None:
    """From now on, copies of these modules or optimizers are at θ and unattached."""
    for thing in things:
        for way in _COPYING:
            vars(thing)[way] = functools.partial(_plainly, weakref.ref(thing), way)


def copy_as_before(things: Iterable[Any]) -> None:
    """Leave no trace on those that nobody else is attached to."""
    for thing in things:
        for way in _COPYING if not _owners(thing) else ():
            vars(thing).pop(way, None)


def _owners(thing: Any) -> dict[int, Forecast]:
    """The forecasts for which a module or an optimizer was hooked, by the hooks' numbers."""
    tables = [v for k, v in vars(thing).items() if "_hooks" in k and isinstance(v, OrderedDict)]
    hooks = [(n, getattr(hook, "hook", hook)) for table in tables for n, hook in table.items()]
    owners = {n: getattr(hook, "__self__", None) for n, hook in hooks if callable(hook)}
    forecasts = {n: getattr(owner, "forecast", None) for n, owner in owners.items()}
    return {n: forecast for n, forecast in forecasts.items() if isinstance(forecast, Forecast)}


def _plainly(reference: Callable[[], Any], way: str, how: Any) -> Any:
    """Copy or pickle an attached module or optimizer: at θ, and as if it were not attached.

    Its class may have a way of its own to do either, as those of parametrized modules have.
    """
    thing = reference()
    for forecast in _owners(thing).values():
        forecast.restore()
    attached, owners = vars(thing), _owners(thing)
    plain = {n: v for n, v in attached.items() if n not in _COPYING and not is_ours(v)}
    for name, table in plain.items():
        if "_hooks" in name and isinstance(table, OrderedDict):
            plain[name] = type(table)((n, hook) for n, hook in table.items() if n not in owners)
    object.__setattr__(thing, "__dict__", plain)
    try:
        return copy.deepcopy(thing, how) if way == "__deepcopy__" else thing.__reduce_ex__(how)
    finally:
        object.__setattr__(thing, "__dict__", attached)
