"""The Penn Treebank in Mikolov's preparation, read word by word.

The treebank is licensed by the Linguistic Data Consortium and is not distributed here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from weightcast_lab.errors import LabError
from weightcast_lab.tasks.base import DataSource, Metric, Preset, Task
from weightcast_lab.tasks.language import (
    Corpus,
    Drawn,
    LanguageTask,
    LSTMShape,
    beginning,
    perplexity,
)

END_OF_SENTENCE = "<eos>"

# file -> (words without the ends of sentences, sha256)
PUBLISHED = {
    "ptb.train.txt": (
        887_521,
        "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    ),
    "ptb.valid.txt": (
        70_390,
        "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    ),
    "ptb.test.txt": (
        78_669,
        "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
}


def read_lines(path: Path, any_text: bool) -> tuple[list[list[str]], bool]:
    """The words of each line of a file, and whether it is the published one.

    Raises:
        LabError: the file cannot be read, is empty, is no UTF-8 text, or is not the published text
            although `any_text` is False.
    """
    if not path.parent.is_dir():
        raise LabError(
            f"--data {path.parent} is not a folder: give the one with {', '.join(PUBLISHED)}."
        )
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except FileNotFoundError:
        raise LabError(
            f"{path.name} is missing in {path.parent}: --data needs a folder with "
            f"{', '.join(PUBLISHED)}."
        ) from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise LabError(
            f"{path} is not UTF-8 text (byte {error.start:,}): --data needs the plain text files."
        ) from None
    lines = [line.split() for line in text.splitlines()]
    count = sum(map(len, lines))
    if count == 0:
        raise LabError(f"{path} is empty: copy it again.")
    published, digest = PUBLISHED[path.name]
    # line ends may have been converted on the way: the words are what counts
    canonical = "".join(f" {' '.join(line)} \n" for line in lines).encode()
    is_published = hashlib.sha256(canonical).hexdigest() == digest
    if not (is_published or any_text):
        problem = "is truncated" if count < published else "is another text"
        raise LabError(
            f"{path} {problem}: it has {count:,} words and the published file {published:,}; copy "
            "it again, or give --any-text to use it as it is."
        )
    return lines, is_published


def read_words(path: Path, any_text: bool) -> tuple[list[str], bool]:
    """The words of a file, `<eos>` after each line; all else as `read_lines`."""
    lines, is_published = read_lines(path, any_text)
    return [word for line in lines for word in (*line, END_OF_SENTENCE)], is_published


def text_folder(task: str, source: DataSource) -> Path:
    """Where the texts are: in the folder named, or in its folder `ptb`.

    Raises:
        LabError: no folder is named.
    """
    if source.folder is None:
        raise LabError(
            f"The task {task!r} needs --data FOLDER, a folder with {', '.join(PUBLISHED)}."
        )
    inner = source.folder / "ptb"
    return inner if inner.is_dir() else source.folder


def word_corpus(folder: Path, any_text: bool, size: int | None = None) -> Corpus:
    """Training, validation and test text as word numbers; the training text is the vocabulary.

    With a `size`, that many of its most frequent words are; all others become `<unk>`.

    Raises:
        LabError: a file is not usable, or has words outside the vocabulary and there is no `<unk>`
            to stand for them.
    """
    files = {name: read_words(folder / name, any_text) for name in PUBLISHED}
    texts = {name: words for name, (words, _) in files.items()}
    frequent = {word for word, _ in Counter(texts["ptb.train.txt"]).most_common(size)}
    known = (word for word in dict.fromkeys(texts["ptb.train.txt"]) if word in frequent)
    vocabulary = {word: n for n, word in enumerate(known)}

    def numbers(name: str) -> Tensor:
        unknown = vocabulary.get("<unk>")
        found = [vocabulary.get(word, unknown) for word in texts[name]]
        if None in found:
            raise LabError(
                f"{folder / name} has the word {texts[name][found.index(None)]!r}, which "
                "the vocabulary lacks: replace rare words by <unk> in all three files."
            )
        return torch.tensor(found, dtype=torch.int64)

    training, validation, test = map(numbers, PUBLISHED)
    is_published = all(published for _, published in files.values())
    name = "Penn Treebank" if is_published else "Another text (not Penn Treebank)"
    return Corpus(name, len(vocabulary), training, validation, test)


def ptb(
    source: DataSource,
    *,
    units: int = 200,
    layers: int = 1,
    dropout: float = 0.3,
    window: int = 35,
    training_tokens: int | None = None,
    validation_tokens: int | None = None,
    test_tokens: int | None = None,
    vocabulary: int | None = None,
    drawn: bool = False,
) -> Task:
    """The task `ptb`: an LSTM of `layers` layers of `units` units, the embedding included.

    Args:
        source: The folder with the three texts, or with a folder `ptb` that has them.
        units: Per layer.
        layers: Of the LSTM.
        dropout: On the connections that are not recurrent.
        window: Of truncated backpropagation, in words.
        training_tokens: Only so many from the beginning of the training text.
        validation_tokens: Only so many from the beginning of the validation text.
        test_tokens: Only so many from the beginning of the test text.
        drawn: Whether each epoch begins at a place of the training text that the seed draws.
        vocabulary: Only so many of the most frequent words; the others become `<unk>`.

    Raises:
        LabError: the texts cannot be used, or an option is not possible.
    """
    if min(units, layers, window) < 1 or not 0 <= dropout < 1:
        raise LabError(
            f"An LSTM of {layers} layers of {units} units with dropout {dropout:g} and a window of "
            f"{window} is not possible: give numbers of at least 1, and dropout in [0, 1)."
        )
    folder = text_folder("ptb", source)
    if vocabulary is not None and vocabulary < 1:
        raise LabError(f"vocabulary={vocabulary:,} is not possible: give at least 1 word.")
    corpus = word_corpus(folder, source.any_text, vocabulary)
    corpus = replace(
        corpus,
        training=beginning(corpus.training, training_tokens, "training_tokens"),
        validation=beginning(corpus.validation, validation_tokens, "validation_tokens"),
        test=None if corpus.test is None else beginning(corpus.test, test_tokens, "test_tokens"),
    )
    return LanguageTask(
        title=f"{corpus.name}, word by word, {layers}-layer LSTM of {units} units",
        corpus=corpus,
        shape=LSTMShape(units, layers, dropout, window),
        metric=Metric("perplexity", decimals=2, higher_is_better=False),
        metric_of_loss=perplexity,
        # Plain AdamW (one seed, validation loss): after one epoch 5.457 at 1e-3, 5.181 at 3e-3 and
        # 5.164 at 1e-2; after three, 4.837 at 3e-3 and 4.983 at 1e-2.
        preset=Preset(learning_rate=3e-3, batch_size=20, epochs=6, seeds=3, clip_norm=0.25),
        drawn=Drawn() if drawn else None,
    )
