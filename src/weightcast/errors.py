"""Everything that weightcast raises or warns about."""


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
