"""The ready-made callbacks: each is the recipe, to the bit, and leaves no trace."""

import copy
import csv
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import weightcast
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
from tests.frameworks.test_trainers import (
    EPOCHS,
    SENTENCES,
    hugging_face_trainer,
    language_model,
    language_model_by_hand,
    loader,
    trainable,
    with_adapters,
)
from tests.helpers import same, weights

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]
CALLBACK = "a callback of `weightcast.callbacks`"


class Interrupted(Exception):
    """Whatever may happen in a training run."""


def traces(*things: Any) -> set[str]:
    """What is hooked, or copied in a way of its own."""
    parts = [part for t in things for part in (t.modules() if isinstance(t, nn.Module) else [t])]
    return {
        name
        for part in parts
        for name, value in vars(part).items()
        if (name.endswith("_hooks") and value) or name in ("__deepcopy__", "__reduce_ex__")
    }


# --- Lightning -----------------------------------------------------------------------------------


def regression(attached: bool = False, fails_at: int | None = None) -> Any:
    """A LightningModule; by the recipe it attaches where it makes its optimizer."""
    lightning = pytest.importorskip("lightning")

    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.lr = network(), LR
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
            mean_square(self.net, *batch)
            self.evaluated.append(weights(self.net))

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.lr)
            if attached:
                weightcast.attach(self, optimizer, STEPS)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
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


@pytest.mark.cell("Lightning", "automatic optimization, by LightningCallback", CALLBACK)
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


@pytest.mark.cell("Lightning", "several optimizers, by LightningCallback", CALLBACK)
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


# --- Hugging Face --------------------------------------------------------------------------------

CONSTANT = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "adamw_torch"}


def for_transformers(**options: Any) -> Any:
    pytest.importorskip("transformers")
    from weightcast.callbacks import TransformersCallback

    return TransformersCallback(STEPS, **options)


def hugging_face(model: nn.Module, folder: Path, epochs: int = EPOCHS, **options: Any) -> Any:
    """A Trainer that makes its own optimizer in `train()`."""
    return hugging_face_trainer(model, folder, epochs, own_optimizer=True, **(CONSTANT | options))


def by_recipe(model: nn.Module, folder: Path) -> nn.Module:
    """A callback as one writes it."""
    transformers = pytest.importorskip("transformers")

    class Recipe(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            weightcast.attach(model, optimizer, STEPS)

    trainer = hugging_face(model, folder)
    trainer.add_callback(Recipe)
    trainer.train()
    return model


def expected_language_model(epochs: int = EPOCHS, model: nn.Module | None = None) -> nn.Module:
    return language_model_by_hand(epochs, model, gamma=1.0, weight_decay=0.0)


@pytest.mark.cell("Hugging Face Trainer", "TransformersCallback", CALLBACK)
def test_transformers_callback_is_the_recipe(tmp_path: Path) -> None:
    """R23: with accumulation, clipping and an evaluation; and no hook is left."""
    model, recipe = language_model(), language_model()
    trainer = hugging_face(model, tmp_path)
    trainer.add_callback(for_transformers())
    trainer.train()
    assert same(weights(model), weights(by_recipe(recipe, tmp_path)))
    assert largest_difference(model, expected_language_model()) < 1e-12
    assert not traces(model, trainer.optimizer.optimizer)


@pytest.mark.cell("Hugging Face Trainer", "attach before train()", "attach to `create_optimizer()`")
def test_one_line_before_train(tmp_path: Path) -> None:
    """R23: the optimizer that the Trainer makes, made a little earlier; `train()` runs twice."""
    model = language_model()
    trainer = hugging_face(model, tmp_path, epochs=1)
    weightcast.attach(trainer.model, trainer.create_optimizer(), steps=STEPS)
    trainer.train()
    assert largest_difference(model, expected_language_model(1)) < 1e-12
    trainer.train()
    assert largest_difference(model, expected_language_model(2)) < 1e-12


@pytest.mark.cell("Hugging Face Trainer", "train() twice", CALLBACK)
def test_transformers_callback_trains_twice(tmp_path: Path) -> None:
    """The Trainer keeps its optimizer, whose state tells the first forecast of the second run."""
    model = language_model()
    trainer = hugging_face(model, tmp_path, epochs=1)
    trainer.add_callback(for_transformers())
    trainer.train()
    trainer.train()
    assert largest_difference(model, expected_language_model(2)) < 1e-12
    assert not traces(model, trainer.optimizer.optimizer)


@pytest.mark.cell("Hugging Face Trainer", "auto_find_batch_size", CALLBACK)
def test_transformers_callback_with_a_smaller_batch(tmp_path: Path) -> None:
    """Memory ran out at the forecast, after one step: the smaller batches go on from θ."""
    model = language_model()
    sizes: list[int] = []

    def run_out(module: nn.Module, args: Any, kwargs: Any) -> None:
        sizes.append(len(kwargs["input_ids"]))
        if len(sizes) == 2:
            raise RuntimeError("CUDA out of memory.")

    model.model.register_forward_pre_hook(run_out, with_kwargs=True)
    options = {"gradient_accumulation_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    trainer = hugging_face(model, tmp_path, 1, auto_find_batch_size=True, **options)
    trainer.add_callback(for_transformers())
    trainer.train()
    assert sizes[:2] == [4, 4]
    assert set(sizes[2:-1]) == {3}
    model.model._forward_pre_hooks.clear()
    assert not traces(model, trainer.optimizer.optimizer)
    expected = language_model()
    running = Written(expected, torch.optim.AdamW(expected.parameters(), lr=1e-2, weight_decay=0.0))
    for batch in [SENTENCES[:4], *SENTENCES.split(3)]:

        def backward(batch: Tensor = batch) -> None:
            expected(input_ids=batch, labels=batch).loss.backward()
            nn.utils.clip_grad_norm_(expected.parameters(), 0.5)

        running.iterate(backward)
    assert largest_difference(model, expected) < 1e-12


def test_transformers_callback_logs(tmp_path: Path) -> None:
    """Beside the loss; and those that come later in the list of callbacks see it."""
    transformers = pytest.importorskip("transformers")
    seen = []

    class Later(transformers.TrainerCallback):
        def on_log(self, *_: Any, logs: dict, **__: Any) -> None:
            seen.append(dict(logs))

    mine = for_transformers()
    trainer = hugging_face(language_model(), tmp_path, 1, logging_strategy="steps", logging_steps=1)
    trainer.add_callback(mine)
    trainer.add_callback(Later)
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(history) == 2
    assert [entry["forecast_steps"] for entry in history] == [STEPS, STEPS]
    assert min(entry["forecast_length"] for entry in history) > 0
    assert [entry["forecast_length"] for entry in seen if "loss" in entry] == [
        entry["forecast_length"] for entry in history
    ]


@pytest.mark.parametrize("way", ["with", "the next train()"])
@pytest.mark.cell("Hugging Face Trainer", "an exception in train()", f"{CALLBACK}, in a `with`")
def test_transformers_callback_on_an_exception(tmp_path: Path, way: str) -> None:
    """R5: the Trainer tells no callback of it; `with` detaches, and so does the next run."""
    model = language_model()
    interrupt = model.register_forward_hook(interrupted_at(4))
    trainer = hugging_face(model, tmp_path, epochs=1)
    callback = for_transformers()
    trainer.add_callback(callback)
    if way == "with":
        with pytest.raises(Interrupted), callback:
            trainer.train()
        interrupt.remove()
        assert not traces(model, trainer.optimizer.optimizer)
        first = expected_language_model(1)
        partial = language_model()
        trained_one_step(partial)
        assert largest_difference(model, partial) < 1e-12
        assert largest_difference(model, first) > 1e-3
        return
    with pytest.raises(Interrupted):
        trainer.train()
    interrupt.remove()
    assert callback.predictions[0].is_predicted
    trainer.train()
    assert not traces(model, trainer.optimizer.optimizer)
    partial = language_model()
    trained_one_step(partial, then_epochs=1)
    assert largest_difference(model, partial) < 1e-12


def interrupted_at(number: int) -> Any:
    """A forward hook that raises after that many training forwards."""
    count = 0

    def hook(module: nn.Module, *_: Any) -> None:
        nonlocal count
        count += module.training
        if count == number:
            raise Interrupted

    return hook


def trained_one_step(model: nn.Module, then_epochs: int = 0) -> None:
    """By hand: a step on the first eight sentences, then whole epochs."""
    running = Written(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0))
    for batch in [SENTENCES[:8], *SENTENCES.split(8) * then_epochs]:

        def backward(batch: Tensor = batch) -> None:
            for tokens in batch.split(4):
                (model(input_ids=tokens, labels=tokens).loss / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)

        running.iterate(backward)


@pytest.mark.cell("PEFT", "LoRA in the Trainer, by TransformersCallback", CALLBACK)
def test_transformers_callback_of_adapters(tmp_path: Path) -> None:
    model = with_adapters()
    trainer = hugging_face(model, tmp_path, 2)
    trainer.add_callback(for_transformers())
    trainer.train()
    assert largest_difference(model, expected_language_model(2, with_adapters())) < 1e-12
