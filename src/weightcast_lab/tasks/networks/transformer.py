"""A small transformer language model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TransformerLanguageModel(nn.Module):
    """Embedding with sinusoidal positions, pre-norm blocks that see the past only, linear."""

    positions: Tensor
    mask: Tensor

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, window: int, dropout: float
    ) -> None:
        """Each block has `heads` heads and a hidden layer four times as wide."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.output = nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("positions", sinusoids(window, width), persistent=False)
        mask = nn.Transformer.generate_square_subsequent_mask(window)
        self.register_buffer("mask", mask, persistent=False)
        for parameter in self.blocks.parameters():  # the layers are copies of one another
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.output.weight, std=0.02)

    def forward(self, tokens: Tensor, state: None = None) -> tuple[Tensor, None]:
        """Logits of the next token, of shape (time, batch, vocabulary), and no state.

        Args:
            tokens: Integers of shape (time, batch), at most the window long.
            state: There is none: every window begins anew.
        """
        length = len(tokens)
        hidden = self.dropout(self.embedding(tokens) + self.positions[:length, None])
        hidden = self.blocks(hidden, mask=self.mask[:length, :length], is_causal=True)
        logits: Tensor = self.output(hidden)
        return logits, None


def sinusoids(window: int, width: int) -> Tensor:
    """Positions as Vaswani et al. (2017) have them, of shape (window, width), scaled to 0.02."""
    place = torch.arange(window).unsqueeze(1)
    angle = place / 10_000 ** (torch.arange(0, width, 2) / width)
    return 0.02 * torch.stack([angle.sin(), angle.cos()], 2).flatten(1)[:, :width]
