"""Everything that weightcast raises or warns about."""

import os
import sys
import warnings


class WeightcastError(Exception):
    """Base of every error of this library; the message is one sentence that says what to do."""


class InvalidArgumentError(WeightcastError, ValueError):
    """An argument has an impossible value, or does not fit the others."""


class InvalidTypeError(WeightcastError, TypeError):
    """An argument is of the wrong kind."""


class UnsupportedOptimizerError(InvalidTypeError):
    """Weight prediction cannot work with this optimizer."""


class PredictionWarning(UserWarning):
    """Prediction does nothing, or undoes what others do; reported once."""


def warn(message: str) -> None:
    """Warn at the user's own line: the first that is neither torch's nor ours.

    Each call is shown, wherever and however often the same was said before.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_inner_folders()):
        frame = frame.f_back
    where = frame.f_code.co_filename, frame.f_lineno
    warnings.warn_explicit(message, PredictionWarning, *where, frame.f_globals.get("__name__"))


def _inner_folders() -> tuple[str, ...]:
    """Where the lines of torch, of weightcast and of Python itself are."""
    torch = sys.modules["torch"].__file__ or ""
    files = (__file__, torch, os.__file__)
    return tuple(os.path.join(os.path.dirname(file), "") for file in files if file)
