"""Weight prediction for any PyTorch optimizer."""

from weightcast.adamw import AdamW
from weightcast.attachment import attach
from weightcast.displacement.rules import register_rule
from weightcast.errors import (
    InvalidArgumentError,
    InvalidTypeError,
    PredictionWarning,
    UnsupportedOptimizerError,
    WeightcastError,
)
from weightcast.prediction import WeightPrediction

__version__ = "0.1.0"

__all__ = [
    "AdamW",
    "InvalidArgumentError",
    "InvalidTypeError",
    "PredictionWarning",
    "UnsupportedOptimizerError",
    "WeightPrediction",
    "WeightcastError",
    "attach",
    "register_rule",
]
