"""LightningCallback: the recipe, to the bit, and no trace of it afterwards."""

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, TensorDataset

import weightcast
from tests.frameworks.callbacks import Interrupted, traces
from tests.frameworks.helpers import (
    BATCH,
    LR,
    STEPS,
    adamw,
    largest_difference,
    mean_square,
    network,
    problem,
    trained_by_hand,
)
from tests.frameworks.loops import Attached, Written, adversaries, batches, gan_iteration
from tests.frameworks.test_trainers import EPOCHS, in_half_precision, loader
from tests.helpers import same, weights

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]
CALLBACK = "`LightningCallback`"


def regression(attached: bool = False, fails_at: int | None = None, gamma: float = 0.9) -> Any:
    """A LightningModule; by the recipe it attaches where it makes its optimizer."""
    lightning = pytest.importorskip("lightning")

    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.lr = network(), LR
            self.losses: list[float] = []
            self.evaluated: list[list[Tensor]] = []
            self.seen: list[list[Tensor]] = []
            self.was_hooked: list[bool] = []

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = mean_square(self.net, *batch)
            self.seen.append(weights(self.net))
            self.was_hooked.append(bool(traces(self)))
            if index == fails_at:
                raise Interrupted
            return loss

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            self.losses.append(mean_square(self.net, *batch).item())
            self.evaluated.append(weights(self.net))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr)
            if attached:
                weightcast.attach(self, optimizer, STEPS)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return Regression()


def trainer_of(folder: Path, **options: Any) -> Any:
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    usual = {
        "max_epochs": EPOCHS,
        "accelerator": "cpu",
        "devices": 1,
        "precision": "64-true",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(**(usual | options))


def for_lightning(**options: Any) -> Any:
    pytest.importorskip("lightning")
    from weightcast.callbacks import LightningCallback

    return LightningCallback(STEPS, **options)


@pytest.mark.cell("Lightning", "accumulation, scheduler, validation, ModelCheckpoint", CALLBACK)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_callback_is_the_recipe(tmp_path: Path, accumulate: int) -> None:
    """R22: evaluation and what ModelCheckpoint wrote are at θ, and no hook is left."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    saver = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    module, recipe = regression(), regression(attached=True)
    trainer = trainer_of(tmp_path, callbacks=[saver, for_lightning()], **options)
    trainer.fit(module, loader(), loader())
    trainer_of(tmp_path / "recipe", **options).fit(recipe, loader(), loader())
    assert same(weights(module), weights(recipe))
    expected = trained_by_hand(EPOCHS, accumulate=accumulate, gamma=0.9)
    assert largest_difference(module.net, expected) < 1e-14
    assert all(map(same, module.evaluated, recipe.evaluated))
    for epoch in range(EPOCHS):
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=False)["state_dict"]
        assert same(list(saved.values()), module.evaluated[4 * epoch])
    assert not traces(module, *trainer.optimizers)


@pytest.mark.cell("Lightning", "fit twice", CALLBACK)
def test_lightning_callback_fits_twice(tmp_path: Path) -> None:
    """Lightning makes a new optimizer for each."""
    module = regression()
    trainer = trainer_of(tmp_path, callbacks=[for_lightning()], max_epochs=1)
    trainer.fit(module, loader())
    assert largest_difference(module.net, trained_by_hand(1, gamma=0.9)) < 1e-14
    module.net = network()
    trainer.fit_loop.max_epochs = 1 + EPOCHS
    trainer.fit(module, loader())
    assert largest_difference(module.net, trained_by_hand(EPOCHS, gamma=0.9)) < 1e-14


@pytest.mark.cell("Lightning", "Tuner.lr_find, then fit", CALLBACK)
@pytest.mark.parametrize("finder", ["Tuner", "LearningRateFinder"])
def test_lightning_callback_after_a_search(tmp_path: Path, finder: str) -> None:
    """Lightning leaves callbacks out of the search, which is plain; what is fitted is predicted."""
    module, mine = regression(), for_lightning()
    options = {"num_training": 6} if finder == "Tuner" else {"num_training_steps": 6}
    options |= {"update_attr": False}
    if finder == "Tuner":
        trainer = trainer_of(tmp_path, callbacks=[mine])
        tuner_of = pytest.importorskip("lightning.pytorch.tuner").Tuner
        tuner_of(trainer).lr_find(module, loader(), **options)
    else:
        callbacks = pytest.importorskip("lightning.pytorch.callbacks")
        search = callbacks.LearningRateFinder(**options)
        trainer = trainer_of(tmp_path, callbacks=[mine, search])
    trainer.fit(module, loader())
    assert module.was_hooked == [False] * 6 + [True] * 4 * EPOCHS
    assert largest_difference(module.net, trained_by_hand(EPOCHS, gamma=0.9)) < 1e-14
    assert not traces(module, *trainer.optimizers)


@pytest.mark.cell("Lightning", "an exception in fit", CALLBACK)
def test_lightning_callback_detaches_on_an_exception(tmp_path: Path) -> None:
    """R5: at θ, of the last step that was taken."""
    module = regression(fails_at=2)
    callback = for_lightning()
    trainer = trainer_of(tmp_path, callbacks=[callback])
    with pytest.raises(Interrupted):
        trainer.fit(module, loader())
    assert not same(module.seen[-1], weights(module.net))
    expected = network()
    running = Written(expected, adamw(expected))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(running.optimizer, 0.9)
    for x, y in list(batches(1))[:2]:
        running.iterate(lambda x=x, y=y: mean_square(expected, x, y).backward())
        scheduler.step()
    assert largest_difference(module.net, expected) < 1e-14
    assert not traces(module, *trainer.optimizers)
    assert callback.predictions == []


@pytest.mark.cell("Lightning", "WeightAveraging, validated within an accumulation", CALLBACK)
@pytest.mark.parametrize("place", ["first", "last"])
def test_lightning_callback_beside_an_average(tmp_path: Path, place: str) -> None:
    """R6, R22: it swaps weights by `.data` to validate, which would go unnoticed at θ̂."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    module = regression()
    both = [for_lightning(), callbacks.WeightAveraging()]
    trainer = trainer_of(
        tmp_path,
        callbacks=both if place == "first" else both[::-1],
        accumulate_grad_batches=2,
        val_check_interval=1,
    )
    trainer.fit(module, loader(), loader(BATCH * 4))
    expected = network()
    running = Written(expected, adamw(expected))
    scheduler = torch.optim.lr_scheduler.ExponentialLR(running.optimizer, 0.9)
    losses, average = [], AveragedModel(expected)
    steps = list(batches(EPOCHS))
    for first, second in zip(steps[::2], steps[1::2], strict=True):

        def backward(pair: Any = (first, second)) -> None:
            for x, y in pair:
                (mean_square(expected, x, y) / 2).backward()

        losses.append(mean_square(average, *problem()).item())
        running.iterate(backward)
        scheduler.step()
        average.update_parameters(expected)
        losses.append(mean_square(average, *problem()).item())
    assert module.losses == pytest.approx(losses, rel=1e-12)
    assert largest_difference(module.net, average.module) < 1e-13


def test_lightning_callback_stopped_within_an_accumulation(tmp_path: Path) -> None:
    """What WeightAveraging copied into the model at the end stays there."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")

    class Stop(callbacks.WeightAveraging):
        def on_train_batch_end(self, trainer: Any, module: Any, *others: Any) -> None:
            super().on_train_batch_end(trainer, module, *others)
            trainer.should_stop = others[-1] == 6

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self.average = weights(self._average_model.module.net)
            super().on_train_end(trainer, module)

    module, stop = regression(), Stop()
    trainer_of(
        tmp_path, callbacks=[stop, for_lightning()], accumulate_grad_batches=2, max_epochs=1
    ).fit(module, loader(BATCH // 2))
    assert len(module.seen) == 7
    assert same(weights(module.net), stop.average)


@pytest.mark.cell("Lightning", "fp16 by a scaler, with overflows", CALLBACK)
def test_lightning_callback_16_mixed(tmp_path: Path) -> None:
    """R7, R22: as the recipe's own test, on a CPU."""
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    module = regression(gamma=1.0).float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    trainer = trainer_of(
        tmp_path,
        max_epochs=1,
        precision=None,
        plugins=[plugins.MixedPrecision("16-mixed", "cpu", scaler)],
        callbacks=[for_lightning()],
    )
    trainer.fit(module, DataLoader(TensorDataset(*problem(torch.float32)), batch_size=BATCH))
    assert largest_difference(module.net, in_half_precision(2.0**18)) < 1e-5


@pytest.mark.cell("Lightning", "a GAN by manual optimization", CALLBACK)
def test_lightning_callback_of_several_optimizers(tmp_path: Path) -> None:
    """R22: a GAN by manual optimization; all are attached."""
    lightning = pytest.importorskip("lightning")

    class Manual:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

        iterate, forecast = Attached.iterate, Attached.forecast

    class Gan(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.nets = adversaries()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], index: int) -> None:
            gan_iteration(self.nets, [Manual(o) for o in self.optimizers()], *batch)

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [adamw(net) for net in self.nets]

    module = Gan()
    trainer_of(tmp_path, max_epochs=2, callbacks=[for_lightning()]).fit(module, loader())
    nets = adversaries()
    running = [Written(net, adamw(net)) for net in nets]
    for noise, real in batches(2):
        gan_iteration(nets, running, noise, real)
    assert largest_difference(module.nets, nets) < 1e-13
    assert not traces(module)


def test_lightning_callback_logs(tmp_path: Path) -> None:
    """The steps, and how far the next forecast is from θ."""
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    logger = loggers.CSVLogger(tmp_path)
    lengths = []

    class Measure(callbacks.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            theta = weights(module)
            with mine.predictions[0].predicted():
                moved = zip(weights(module), theta, strict=True)
                lengths.append(sum((a - b).square().sum() for a, b in moved).sqrt().item())

    mine = for_lightning()
    trainer_of(
        tmp_path, logger=logger, log_every_n_steps=2, max_epochs=1, callbacks=[mine, Measure()]
    ).fit(regression(), loader())
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["forecast_steps"]) for row in rows] == [STEPS, STEPS]
    logged = [float(row["forecast_length"]) for row in rows]
    assert logged == pytest.approx(lengths[1::2])
    assert min(logged) > 0
