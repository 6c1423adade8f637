"""A recurrent language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, Tensor]


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM, linear; dropout on the connections that are not recurrent."""

    def __init__(self, vocabulary: int, units: int, layers: int, dropout: float) -> None:
        """All layers, the embedding included, have `units` units."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, units)
        self.lstm = nn.LSTM(units, units, layers, dropout=dropout if layers > 1 else 0.0)
        self.output = nn.Linear(units, vocabulary)
        self.dropout = nn.Dropout(dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of the next token and the recurrent state after the last one.

        Args:
            tokens: Integers of shape (time, batch).
            state: Of the previous window; None is zero.

        Returns:
            Logits of shape (time, batch, vocabulary), and the state, detached from the graph:
            backpropagation through time is truncated at the window.
        """
        hidden, (h, c) = self.lstm(self.dropout(self.embedding(tokens)), state)
        logits: Tensor = self.output(self.dropout(hidden))
        return logits, (h.detach(), c.detach())


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token; `targets` has shape (time, batch)."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
