"""English that CPython carries: the texts behind `help()`, read character by character."""

from __future__ import annotations

import math
import platform
from dataclasses import replace
from pydoc_data.topics import topics

import torch

from weightcast_lab.errors import unknown_name
from weightcast_lab.tasks.base import DataSource, Metric, Preset, Task, refuse_source
from weightcast_lab.tasks.language import (
    Corpus,
    Drawn,
    LanguageTask,
    LSTMShape,
    TransformerShape,
    beginning,
)

# network -> (name for people, shape, learning rate that suits plain AdamW)
NETWORKS: dict[str, tuple[str, LSTMShape | TransformerShape, float]] = {
    # Plain AdamW ends lowest at 5e-3 among 2e-3, 5e-3, 1e-2 and 2e-2 (one seed, 8 epochs,
    # nats per character): 1.354 1.288 1.308 1.350.
    "lstm": ("LSTM", LSTMShape(units=128, layers=1, dropout=0.0, window=64), 5e-3),
    "transformer": (
        "transformer",
        TransformerShape(width=64, layers=2, heads=4, dropout=0.0, window=64),
        3e-3,
    ),
}


def character_corpus(name: str, text: str) -> Corpus:
    """The text as character numbers; the last tenth is for validation."""
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([alphabet[character] for character in text], dtype=torch.int64)
    end = len(tokens) - len(tokens) // 10
    return Corpus(name, len(alphabet), tokens[:end], tokens[end:])


def docs_text(
    source: DataSource,
    *,
    network: str = "lstm",
    training_tokens: int | None = None,
    drawn: bool = False,
    epoch_steps: int | None = None,
) -> Task:
    """The task `text`.

    The text differs between Python versions: results carry its hash and compare within one only.

    Args:
        source: Nothing: the task carries its text.
        network: `lstm` or `transformer`.
        training_tokens: Only so many characters from the beginning of the training text.
        drawn: Whether the seed draws the batches; the last tenth is then kept apart for tests, and
            the tenth before it for validation.
        epoch_steps: With `drawn`, so many batches of windows that begin anywhere are an epoch.

    Raises:
        LabError: there is no such network, or the text is shorter.
    """
    refuse_source("text", source)
    if network not in NETWORKS:
        raise unknown_name("network", network, NETWORKS)
    label, shape, rate = NETWORKS[network]
    text = "\n".join(topics[key] for key in sorted(topics))
    corpus = character_corpus(f"pydoc topics of Python {platform.python_version()}", text)
    if drawn:
        end = len(corpus.training) - len(corpus.validation)
        corpus = replace(
            corpus,
            training=corpus.training[:end],
            validation=corpus.training[end:],
            test=corpus.validation,
        )
    corpus = replace(corpus, training=beginning(corpus.training, training_tokens))
    return LanguageTask(
        title=f"Python's own documentation, character-level {label}",
        corpus=corpus,
        shape=shape,
        metric=Metric("bits per character", decimals=3, higher_is_better=False),
        metric_of_loss=lambda loss: loss / math.log(2),
        preset=Preset(rate, batch_size=32, epochs=8, seeds=3, clip_norm=1.0),
        drawn=Drawn(epoch_steps) if drawn else None,
    )


def small_text(source: DataSource) -> Task:
    """The task `small_text`: the transformer on the same text, 600 steps of random windows.

    Small enough to be the first thing that is tried: a run takes some fifteen seconds on one core.

    Raises:
        LabError: a source is given.
    """
    refuse_source("small_text", source)
    task = docs_text(source, network="transformer", drawn=True, epoch_steps=75)
    task.title = "Python's own documentation by character, small transformer"
    # Plain AdamW ends lowest at 1.7e-3 among 1e-3, 1.7e-3, 3e-3 and 9e-3 (two or three seeds, nats
    # per character): 2.208 2.183 2.282 2.419.
    task.preset = Preset(1.7e-3, batch_size=16, epochs=8, seeds=3, clip_norm=1.0)
    return task
