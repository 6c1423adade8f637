"""The paper as data: what it trained, how, and the numbers that it printed.

Lei Guan, "Weight Prediction Boosts the Convergence of AdamW" (PAKDD 2023, arXiv 2302.00195).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from weightcast_lab.errors import unknown_name
from weightcast_lab.methods.method import Method
from weightcast_lab.running.recipe import Recipe, options_of

BETA1, BETA2 = 0.9, 0.9
"""β₁ and β₂ as printed; torch's default for β₂ is 0.999."""

EPS, WEIGHT_DECAY = 1e-8, 5e-4

METHODS = (Method("adamw"), *(Method("adamw", float(s)) for s in (1, 2, 3)))
"""The columns of the tables."""

BASELINE = Method("nadamw")
"""Not in the paper: a look-ahead that costs nothing."""


def _cnn(label: str, network: str) -> Recipe:
    return Recipe(
        "cifar10",
        learning_rate=1e-4,
        batch_size=128,
        epochs=120,
        options=options_of(network=network),
        label=label,
        milestones=(90,),
    )


def _lstm(label: str, layers: int) -> Recipe:
    return Recipe(
        "ptb",
        learning_rate=0.01,
        batch_size=20,
        epochs=100,
        # the window is not printed: 35 is the field's usual one
        options=options_of(units=650, layers=layers, dropout=0.5, window=35),
        label=label,
        milestones=(60, 80),
    )


RECIPES = {
    "vgg11": _cnn("VGG-11", "vgg11"),
    "resnet34": _cnn("ResNet-34", "resnet34"),
    "densenet121": _cnn("DenseNet-121", "densenet121"),
    "inception_v3": _cnn("Inception-V3", "inception_v3"),
    "lstm1": _lstm("1-layer LSTM", 1),
    "lstm2": _lstm("2-layer LSTM", 2),
    "vgg11_bn": _cnn("VGG-11 with BatchNorm", "vgg11_bn"),
}
"""The paper's six networks; and VGG-11 with BatchNorm, since the paper does not say which it is."""


@dataclass(frozen=True)
class PrintedTable:
    """A table of the paper.

    `rows` has the values of `METHODS`, by key of `RECIPES`. `quantity` names what is measured in a
    run: "best metric" or "best loss", over all epochs, on the validation data.
    """

    title: str
    quantity: str
    decimals: int
    higher_is_better: bool
    rows: Mapping[str, tuple[float, float, float, float]]


TABLES = {
    "table1": PrintedTable(
        "Table 1. Maximum validation accuracy (%), CIFAR-10",
        "best metric",
        decimals=2,
        higher_is_better=True,
        rows={
            "vgg11": (87.85, 87.83, 88.34, 88.59),
            "resnet34": (94.03, 94.06, 93.95, 94.37),
            "densenet121": (93.97, 94.13, 94.04, 94.39),
            "inception_v3": (93.53, 93.90, 93.60, 93.61),
        },
    ),
    "table2": PrintedTable(
        "Table 2. Minimum validation loss, CIFAR-10",
        "best loss",
        decimals=3,
        higher_is_better=False,
        rows={
            "vgg11": (0.485, 0.475, 0.474, 0.456),
            "resnet34": (0.323, 0.318, 0.305, 0.297),
            "densenet121": (0.327, 0.319, 0.319, 0.302),
            "inception_v3": (0.346, 0.333, 0.331, 0.324),
        },
    ),
    "table3": PrintedTable(
        "Table 3. Minimum validation perplexity, Penn Treebank",
        "best metric",
        decimals=2,
        higher_is_better=False,
        rows={
            "lstm1": (126.21, 124.75, 116.99, 124.71),
            "lstm2": (114.68, 114.80, 113.99, 112.64),
        },
    ),
    "table4": PrintedTable(
        "Table 4. Minimum validation loss, Penn Treebank",
        "best loss",
        decimals=3,
        higher_is_better=False,
        rows={
            "lstm1": (4.838, 4.826, 4.762, 4.826),
            "lstm2": (4.742, 4.743, 4.736, 4.724),
        },
    ),
}


def _on_a_desk(recipe: Recipe) -> Recipe:
    if recipe.task == "ptb":
        smaller = recipe.with_options(units=200, training_tokens=185_917)
        return replace(smaller, epochs=8, milestones=(5, 6))
    smaller = recipe.with_options(width=0.25, training_images=5_000, validation_images=2_000)
    return replace(smaller, epochs=12, batch_size=32, learning_rate=1e-3, milestones=(9,))


def _for_smoke(recipe: Recipe) -> Recipe:
    if recipe.task == "ptb":
        smaller = recipe.with_options(units=100, training_tokens=20_000, validation_tokens=5_000)
        return replace(smaller, epochs=3, milestones=(1, 2))
    smaller = recipe.with_options(width=0.25, training_images=320, validation_images=200)
    return replace(smaller, epochs=3, batch_size=32, learning_rate=1e-3, milestones=(2,))


PRESETS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "paper": lambda recipe: recipe,
    "desk": _on_a_desk,
    "smoke": _for_smoke,
}
"""The paper's own size: days on a GPU; a quarter of the width, a tenth of the images and a fifth of
the words: hours on a desk; a few batches of everything: minutes, to see that it all runs."""


def recipe_at(preset: str, network: str) -> Recipe:
    """The recipe of a network at this size.

    Raises:
        LabError: there is no such preset.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return PRESETS[preset](RECIPES[network])


def networks_named(names: Iterable[str]) -> list[str]:
    """The networks that `all`, names of tables and names of networks stand for, each once.

    Raises:
        LabError: something else is there.
    """
    found: list[str] = []
    for name in names:
        if name == "all":
            found += [key for table in TABLES.values() for key in table.rows]
        elif name in TABLES:
            found += TABLES[name].rows
        elif name in RECIPES:
            found.append(name)
        else:
            raise unknown_name("network or table", name, ["all", *TABLES, *RECIPES])
    return list(dict.fromkeys(found))
