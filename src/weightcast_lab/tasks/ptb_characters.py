"""The Penn Treebank's texts, read character by character by a small transformer."""

from __future__ import annotations

import math

import torch

from weightcast_lab.tasks.base import DataSource, Metric, Preset, Task
from weightcast_lab.tasks.language import (
    Corpus,
    Drawn,
    LanguageTask,
    TransformerShape,
    beginning,
)
from weightcast_lab.tasks.ptb import PUBLISHED, read_lines, text_folder


def ptb_characters(
    source: DataSource,
    *,
    width: int = 64,
    training_tokens: int = 2_000_000,
    validation_tokens: int = 100_000,
    test_tokens: int = 200_000,
    epoch_steps: int = 700,
) -> Task:
    """The task `ptb_characters`: two blocks with four heads that see 64 characters.

    Args:
        source: The folder with the three texts, or with a folder `ptb` that has them.
        width: Of the transformer.
        training_tokens: So many characters from the beginning of the training text.
        validation_tokens: The same of the validation text.
        test_tokens: The same of the test text.
        epoch_steps: What is called an epoch: so many batches of windows that begin anywhere.

    Raises:
        LabError: the texts cannot be used, or are shorter.
    """
    folder = text_folder("ptb_characters", source)
    files = [read_lines(folder / name, source.any_text) for name in PUBLISHED]
    texts = ["\n".join(map(" ".join, lines)) for lines, _ in files]
    alphabet = {character: n for n, character in enumerate(sorted(set().union(*texts)))}
    sizes = {
        "training_tokens": training_tokens,
        "validation_tokens": validation_tokens,
        "test_tokens": test_tokens,
    }
    training, validation, test = (
        beginning(torch.tensor([alphabet[character] for character in text]), size, option)
        for text, (option, size) in zip(texts, sizes.items(), strict=True)
    )
    is_published = all(published for _, published in files)
    name = "Penn Treebank" if is_published else "Another text (not Penn Treebank)"
    return LanguageTask(
        title=f"{name}, character by character, transformer of width {width}",
        corpus=Corpus(f"{name}, characters", len(alphabet), training, validation, test),
        shape=TransformerShape(width=width, layers=2, heads=4, dropout=0.0, window=64),
        metric=Metric("bits per character", decimals=3, higher_is_better=False),
        metric_of_loss=lambda loss: loss / math.log(2),
        preset=Preset(learning_rate=3e-3, batch_size=16, epochs=10, seeds=3, clip_norm=1.0),
        drawn=Drawn(epoch_steps),
    )
