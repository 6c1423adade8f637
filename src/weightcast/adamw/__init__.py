"""AdamW with the forecast in its own pass over memory."""

from weightcast.adamw.optimizer import AdamW

__all__ = ["AdamW"]
