"""English that CPython carries: the texts behind `help()`, read character by character."""

from __future__ import annotations

import math
import platform
from pydoc_data.topics import topics

import torch

from weightcast_lab.tasks import DataSource, Metric, Preset, Task, refuse_source
from weightcast_lab.tasks.language import Corpus, LanguageTask, LSTMShape


def character_corpus(name: str, text: str) -> Corpus:
    """The text as character numbers; the last tenth is for validation."""
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([alphabet[character] for character in text], dtype=torch.int64)
    end = len(tokens) - len(tokens) // 10
    return Corpus(name, len(alphabet), tokens[:end], tokens[end:])


def docs_text(source: DataSource) -> Task:
    """The task `text`.

    The text differs between Python versions: results carry its hash and compare within one only.
    """
    refuse_source("text", source)
    text = "\n".join(topics[key] for key in sorted(topics))
    return LanguageTask(
        title="Python's own documentation, character-level LSTM",
        corpus=character_corpus(f"pydoc topics of Python {platform.python_version()}", text),
        shape=LSTMShape(units=128, layers=1, dropout=0.0, window=64),
        metric=Metric("bits per character", decimals=3, higher_is_better=False),
        metric_of_loss=lambda loss: loss / math.log(2),
        # Plain AdamW ends lowest at 5e-3 among 2e-3, 5e-3, 1e-2 and 2e-2 (one seed, 8 epochs,
        # nats per character): 1.354 1.288 1.308 1.350.
        preset=Preset(learning_rate=5e-3, batch_size=32, epochs=8, seeds=3, clip_norm=1.0),
    )
