"""Copies and pickles of what is attached: at θ, and plain."""

from __future__ import annotations

import copy
import copyreg
import functools
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from weightcast.forecast import Forecast
from weightcast.hooks.merging import is_ours

_OWN = "__deepcopy__"
"""What copying asks a class for first, as that of parametrized modules, and then `copyreg`."""

_ends: weakref.WeakKeyDictionary[Any, weakref.finalize[..., Any]] = weakref.WeakKeyDictionary()
_classes: Counter[type] = Counter()  # of what is attached


def copy_plainly(things: Iterable[Any]) -> None:
    """From now on, copies of these modules or optimizers are at θ and unattached.

    `copyreg` reduces instances of their classes by us. A method in the instance would be found by
    wrappers that pass on what they lack, and copied with its `__dict__`, and copy another thing.
    """
    for thing in things:
        if thing in _ends:
            continue
        cls = type(thing)
        if hasattr(cls, _OWN):
            vars(thing)[_OWN] = functools.partial(_copied, weakref.ref(thing))
        if not _classes[cls]:
            theirs = copyreg.dispatch_table.get(cls)
            copyreg.dispatch_table[cls] = functools.partial(_reduced, theirs)
        _classes[cls] += 1
        _ends[thing] = weakref.finalize(thing, _forget, cls)
        _ends[thing].atexit = False


def copy_as_before(things: Iterable[Any]) -> None:
    """Leave no trace on those that nobody else is attached to."""
    for thing in things:
        if thing in _ends and not _owners(thing):
            vars(thing).pop(_OWN, None)
            _ends.pop(thing)()


def _forget(cls: type) -> None:
    """One instance less is attached."""
    _classes[cls] -= 1
    if not _classes[cls]:
        del _classes[cls]
        theirs = getattr(copyreg.dispatch_table.pop(cls, None), "args", (None,))[0]
        if theirs is not None:
            copyreg.dispatch_table[cls] = theirs


def _owners(thing: Any) -> dict[int, Forecast]:
    """The forecasts for which a module or an optimizer was hooked, by the hooks' numbers."""
    tables = [v for k, v in vars(thing).items() if "_hooks" in k and isinstance(v, OrderedDict)]
    hooks = [(n, getattr(hook, "hook", hook)) for table in tables for n, hook in table.items()]
    owners = {n: getattr(hook, "__self__", None) for n, hook in hooks if callable(hook)}
    forecasts = {n: getattr(owner, "forecast", None) for n, owner in owners.items()}
    return {n: forecast for n, forecast in forecasts.items() if isinstance(forecast, Forecast)}


def _reduced(theirs: Callable[[Any], Any] | None, thing: Any) -> Any:
    """For `copyreg`: what is not attached is reduced as ever."""
    return _plainly(thing, theirs or (lambda one: one.__reduce_ex__(4)))


def _copied(reference: Callable[[], Any], memo: Any) -> Any:
    """Of a class that copies its instances itself."""
    return _plainly(reference(), lambda one: copy.deepcopy(one, memo))


def _plainly(thing: Any, act: Callable[[Any], Any]) -> Any:
    """Copy or reduce a module or optimizer: at θ, and as if it were not attached."""
    if thing not in _ends and not _owners(thing):
        return act(thing)
    for forecast in _owners(thing).values():
        forecast.restore()
    attached, owners = vars(thing), _owners(thing)
    plain = {n: v for n, v in attached.items() if not is_ours(v) and not _is_our_copier(v)}
    for name, table in plain.items():
        if "_hooks" in name and isinstance(table, OrderedDict):
            plain[name] = type(table)((n, hook) for n, hook in table.items() if n not in owners)
    try:
        object.__setattr__(thing, "__dict__", plain)
        return act(thing)
    finally:
        object.__setattr__(thing, "__dict__", attached)


def _is_our_copier(value: Any) -> bool:
    return getattr(value, "func", None) is _copied
