"""The paper as data: what it trained, how, and the numbers that it printed.

Lei Guan, "Weight Prediction Boosts the Convergence of AdamW" (PAKDD 2023, arXiv 2302.00195).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from weightcast_lab.errors import unknown_name
from weightcast_lab.methods.method import Method

BETA1, BETA2 = 0.9, 0.9
"""β₁ and β₂ as printed; torch's default for β₂ is 0.999."""

EPS, WEIGHT_DECAY = 1e-8, 5e-4

METHODS = (Method("adamw"), *(Method("adamw", float(s)) for s in (1, 2, 3)))
"""The columns of the tables."""

BASELINE = Method("nadamw")
"""Not in the paper: a look-ahead that costs nothing."""


@dataclass(frozen=True)
class Recipe:
    """How the paper trains one network; AdamW's settings are above.

    Attributes:
        label: The network's name in the tables.
        task: One of `weightcast_lab.tasks.TASKS`.
        options: What the task's function takes besides the data.
        epochs: Passes over the training data.
        batch_size: Images, or streams of text.
        learning_rate: γ of the first epochs.
        milestones: The learning rate is divided by 10 after so many epochs.
    """

    label: str
    task: str
    options: Mapping[str, Any]
    epochs: int
    batch_size: int
    learning_rate: float
    milestones: tuple[int, ...]


def _cnn(label: str, network: str) -> Recipe:
    return Recipe(label, "cifar10", {"network": network}, 120, 128, 1e-4, (90,))


def _lstm(label: str, layers: int) -> Recipe:
    # the window is not printed: 35 is the field's usual one
    shape = {"units": 650, "layers": layers, "dropout": 0.5, "window": 35}
    return Recipe(label, "ptb", shape, 100, 20, 0.01, (60, 80))


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


@dataclass(frozen=True)
class Preset:
    """A size at which to run the protocol: for each task, what differs from the paper's recipe."""

    about: str
    seeds: int
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def recipe(self, network: str) -> Recipe:
        """The recipe of a network at this size."""
        recipe = RECIPES[network]
        options = {**recipe.options, **self.options.get(recipe.task, {})}
        return replace(recipe, **self.changes.get(recipe.task, {}), options=options)


PRESETS = {
    "paper": Preset("the paper's own size: days on a GPU", seeds=1),
    "desk": Preset(
        "a quarter of the width, a tenth of the images, a fifth of the words: hours on a desk",
        seeds=1,
        changes={
            "cifar10": {
                "epochs": 12,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "milestones": (9,),
            },
            "ptb": {"epochs": 8, "milestones": (5, 6)},
        },
        options={
            "cifar10": {"width": 0.25, "training_images": 5_000, "validation_images": 2_000},
            "ptb": {"units": 200, "training_tokens": 185_917},
        },
    ),
    "smoke": Preset(
        "a few batches of everything: minutes, to see that it all runs",
        seeds=1,
        changes={
            "cifar10": {
                "epochs": 3,
                "batch_size": 32,
                "learning_rate": 1e-3,
                "milestones": (2,),
            },
            "ptb": {"epochs": 3, "milestones": (1, 2)},
        },
        options={
            "cifar10": {"width": 0.25, "training_images": 320, "validation_images": 200},
            "ptb": {"units": 100, "training_tokens": 20_000, "validation_tokens": 5_000},
        },
    ),
}


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


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        LabError: there is none.
    """
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]
