"""What the laboratory tells its user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """Something the user can put right; the message is one sentence that says how."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, place: str = "") -> LabError:
    """The error for a name that does not exist (in a place), with the nearest one that does."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return LabError(f"There is no {kind} {name!r}{place}: {hint}choose one of {', '.join(known)}.")
