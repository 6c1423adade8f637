"""Language modelling: predict the next token of a text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightcast_lab.errors import LabError
from weightcast_lab.tasks.base import Metric, Preset, Task
from weightcast_lab.tasks.networks.lstm import LSTMLanguageModel, State, next_token_loss
from weightcast_lab.tasks.networks.transformer import TransformerLanguageModel

EVALUATION_STREAMS = 10


@dataclass(frozen=True)
class Corpus:
    """Tokens as one-dimensional integer tensors, and where they come from."""

    name: str
    vocabulary: int
    training: Tensor
    validation: Tensor
    test: Tensor | None = None

    def facts(self) -> dict[str, Any]:
        """The identity of the tokens."""
        digest = hashlib.sha256()
        for tokens in (self.training, self.validation, self.test):
            if tokens is not None:
                digest.update(tokens.numpy().tobytes())
        return {
            "data": self.name,
            "data sha256": digest.hexdigest(),
            "vocabulary": self.vocabulary,
            "training tokens": len(self.training),
            "validation tokens": len(self.validation),
        }


@dataclass(frozen=True)
class LSTMShape:
    """The model, and the window of truncated backpropagation in tokens."""

    units: int
    layers: int
    dropout: float
    window: int

    def build(self, vocabulary: int) -> nn.Module:
        """The LSTM."""
        return LSTMLanguageModel(vocabulary, self.units, self.layers, self.dropout)


@dataclass(frozen=True)
class TransformerShape:
    """The model, and the window that it sees in tokens."""

    width: int
    layers: int
    heads: int
    dropout: float
    window: int
    network: str = "transformer"

    def build(self, vocabulary: int) -> nn.Module:
        """The transformer."""
        return TransformerLanguageModel(
            vocabulary, self.width, self.layers, self.heads, self.window, self.dropout
        )


@dataclass(frozen=True)
class Drawn:
    """Training batches that depend on the seed.

    Without `steps` every epoch reads the text from another place on, round to its end again; a
    recurrent state is carried along. With `steps` an epoch is so many batches of windows that
    begin anywhere, for networks that carry no state.
    """

    steps: int | None = None

    def facts(self) -> dict[str, Any]:
        """Make it for a task."""
        return {"drawn": "from another place" if self.steps is None else f"{self.steps:,} batches"}


class LanguageTask(Task):
    """A model that reads the text in parallel streams, its state carried from window to window.

    The text is cut into `batch_size` streams of equal length (a remainder shorter than a stream is
    left out). The order is the text's own, so batches do not depend on the seed, unless they are
    `Drawn`.
    """

    def __init__(
        self,
        title: str,
        corpus: Corpus,
        shape: LSTMShape | TransformerShape,
        metric: Metric,
        metric_of_loss: Callable[[float], float],
        preset: Preset,
        drawn: Drawn | None = None,
    ) -> None:
        """`metric_of_loss` turns nats per token into the metric.

        Raises:
            LabError: a text is too short to be judged by.
        """
        for text in (corpus.validation, corpus.test):
            if text is not None and len(text) < 2 * EVALUATION_STREAMS:
                raise LabError(
                    f"A text of {len(text):,} tokens is too short to be judged by: it needs "
                    f"{2 * EVALUATION_STREAMS} (validation_tokens, or a longer file)."
                )
        self.title, self.corpus, self.shape = title, corpus, shape
        self.metric, self.metric_of_loss = metric, metric_of_loss
        self.preset, self.drawn = preset, drawn
        self.facts = corpus.facts() | vars(shape) | ({} if drawn is None else drawn.facts())
        self.device = torch.device("cpu")

    def build_model(self) -> nn.Module:
        """The language model."""
        return self.shape.build(self.corpus.vocabulary)

    def to(self, device: torch.device) -> None:
        """Batches will be made on the device."""
        self.device = device

    def batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Sequence[tuple[Tensor, Tensor]]:
        """Windows of the training text: tokens and next tokens, each of shape (time, batch)."""
        text = self.corpus.training
        if self.drawn is None:
            return self._windows(text, batch_size)
        if self.drawn.steps is None:
            start = int(torch.randint(len(text), (), generator=generator))
            return self._windows(text.roll(-start), batch_size)
        return self._places(text, batch_size, self.drawn.steps, generator)

    def loss(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], carried: State | None
    ) -> tuple[Tensor, State]:
        """Nats per token."""
        tokens, targets = batch
        logits, state = model(tokens, carried)
        return next_token_loss(logits, targets), state

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """Nats per token and the metric on the validation text."""
        loss = self._mean_loss(model, self.corpus.validation)
        return loss, self.metric_of_loss(loss)

    def test(self, model: nn.Module) -> dict[str, float]:
        """The metric on the test text, if there is one."""
        loss = self.test_loss(model)
        return {} if loss is None else {f"test {self.metric.name}": self.metric_of_loss(loss)}

    def test_loss(self, model: nn.Module) -> float | None:
        """Nats per token on the test text, if there is one."""
        return None if self.corpus.test is None else self._mean_loss(model, self.corpus.test)

    def _mean_loss(self, model: nn.Module, text: Tensor) -> float:
        total, count, state = 0.0, 0, None
        for batch in self._windows(text, EVALUATION_STREAMS):
            loss, state = self.loss(model, batch, state)
            total += loss.item() * batch[1].numel()
            count += batch[1].numel()
        return total / count

    def _places(
        self, text: Tensor, batch_size: int, steps: int, generator: torch.Generator
    ) -> list[tuple[Tensor, Tensor]]:
        """So many batches of windows that begin anywhere in the text."""
        window = self.shape.window
        if len(text) <= window:
            raise LabError(f"A text of {len(text):,} tokens is shorter than a window of {window}.")
        starts = torch.randint(len(text) - window, (steps, 1, batch_size), generator=generator)
        tokens = text[starts + torch.arange(window + 1).unsqueeze(1)].to(self.device)
        return [(batch[:-1], batch[1:]) for batch in tokens]

    def _windows(self, text: Tensor, streams: int) -> list[tuple[Tensor, Tensor]]:
        length = len(text) // streams
        if length < 2:
            raise LabError(
                f"A text of {len(text):,} tokens cannot be read in {streams:,} parallel streams: "
                "use a smaller --batch-size or a longer text."
            )
        columns = text[: length * streams].view(streams, length).t().contiguous().to(self.device)
        starts = range(0, length - 1, self.shape.window)
        ends = (min(start + self.shape.window, length - 1) for start in starts)
        return [
            (columns[start:end], columns[start + 1 : end + 1])
            for start, end in zip(starts, ends, strict=True)
        ]


def perplexity(loss: float) -> float:
    """exp(nats per token); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def beginning(text: Tensor, tokens: int | None, option: str = "training_tokens") -> Tensor:
    """The first `tokens` of a text, or all of it.

    Raises:
        LabError: it has not so many.
    """
    if tokens is not None and not 0 < tokens <= len(text):
        raise LabError(f"{option}={tokens:,} is not possible: the text has {len(text):,} tokens.")
    return text[:tokens]
