"""TransformersCallback, in Hugging Face's Trainer, with PEFT, and in TRL's."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

import weightcast
from tests.frameworks.callbacks import Interrupted, interrupted_at, traces
from tests.frameworks.helpers import STEPS, largest_difference
from tests.frameworks.loops import Written
from tests.frameworks.test_trainers import (
    EPOCHS,
    SENTENCES,
    hugging_face_trainer,
    language_model,
    language_model_by_hand,
    with_adapters,
)
from tests.helpers import same, weights

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]
CALLBACK = "`TransformersCallback`"
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


@pytest.mark.cell("Hugging Face Trainer", "accumulation, clipping, evaluation", CALLBACK)
def test_transformers_callback_is_the_recipe(tmp_path: Path) -> None:
    """R23: with accumulation, clipping and an evaluation; and no hook is left."""
    model, recipe = language_model(), language_model()
    trainer = hugging_face(model, tmp_path)
    trainer.add_callback(for_transformers())
    trainer.train()
    assert same(weights(model), weights(by_recipe(recipe, tmp_path)))
    assert largest_difference(model, expected_language_model()) < 1e-12
    assert not traces(model, trainer.optimizer.optimizer)


@pytest.mark.cell(
    "Hugging Face Trainer", "train() twice, without a callback", "attach to `create_optimizer()`"
)
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


@pytest.mark.parametrize("place", ["last", "first"])
def test_transformers_callback_logs(tmp_path: Path, place: str) -> None:
    """Beside the loss, in the history; in reports too, if it comes before those who send them."""
    transformers = pytest.importorskip("transformers")
    reported = []

    class Report(transformers.TrainerCallback):
        def on_log(self, *_: Any, logs: dict, **__: Any) -> None:
            reported.append(dict(logs))

    options = {"logging_strategy": "steps", "logging_steps": 1}
    trainer = hugging_face(language_model(), tmp_path, 1, **options)
    trainer.add_callback(Report)
    if place == "last":
        trainer.add_callback(for_transformers())
    else:
        trainer.callback_handler.callbacks.insert(0, for_transformers())
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["forecast_steps"] for entry in history] == [STEPS, STEPS]
    lengths = [entry["forecast_length"] for entry in history]
    assert min(lengths) > 0
    found = [entry.get("forecast_length") for entry in reported if "loss" in entry]
    assert found == (lengths if place == "first" else [None, None])


@pytest.mark.parametrize("way", ["with", "the next train()"])
@pytest.mark.cell("Hugging Face Trainer", "an exception in train()", f"{CALLBACK}, in a `with`")
def test_transformers_callback_on_an_exception(tmp_path: Path, way: str) -> None:
    """R5: the Trainer tells no callback of it; `with` detaches, and so does the next run."""
    model, callback = language_model(), for_transformers()
    interrupt = model.register_forward_hook(interrupted_at(4))
    trainer = hugging_face(model, tmp_path, epochs=1)
    trainer.add_callback(callback)
    with pytest.raises(Interrupted), callback if way == "with" else nullcontext():
        trainer.train()
    interrupt.remove()
    if way == "with":
        assert not traces(model, trainer.optimizer.optimizer)
        assert largest_difference(model, after_one_step()) < 1e-12
    else:
        assert callback.predictions[0].is_predicted
    trainer.train()
    assert not traces(model, trainer.optimizer.optimizer)
    assert largest_difference(model, after_one_step(then_epochs=1)) < 1e-12


def after_one_step(then_epochs: int = 0) -> nn.Module:
    """By hand: a step on the first eight sentences, then whole epochs."""
    model = language_model()
    running = Written(model, torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0))
    for batch in [SENTENCES[:8], *SENTENCES.split(8) * then_epochs]:

        def backward(batch: Tensor = batch) -> None:
            for tokens in batch.split(4):
                (model(input_ids=tokens, labels=tokens).loss / 2).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)

        running.iterate(backward)
    return model


@pytest.mark.cell("PEFT", "LoRA in the Trainer", CALLBACK)
def test_transformers_callback_of_adapters(tmp_path: Path) -> None:
    model = with_adapters()
    trainer = hugging_face(model, tmp_path, 2)
    trainer.add_callback(for_transformers())
    trainer.train()
    assert largest_difference(model, expected_language_model(2, with_adapters())) < 1e-12


@pytest.mark.parametrize("way", ["callback", "one line"])
@pytest.mark.cell("TRL", "SFTTrainer, LoRA: its own optimizer", CALLBACK)
def test_callback_and_one_line_in_trl(tmp_path: Path, way: str) -> None:
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    tokenizers, transformers = map(pytest.importorskip, ("tokenizers", "transformers"))
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w0")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), pad_token="w31", eos_token="w30"
    )

    class InOrder(trl.SFTTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

    model = with_adapters()
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        max_grad_norm=0.5,
        save_strategy="no",
        logging_strategy="no",
        gradient_checkpointing=False,
        bf16=False,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **CONSTANT,
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"input_ids": SENTENCES.tolist()}),
        callbacks=[for_transformers()] if way == "callback" else [],
    )
    if way == "one line":
        weightcast.attach(trainer.model, trainer.create_optimizer(), steps=STEPS)
    trainer.train()
    expected = expected_language_model(2, with_adapters())
    assert largest_difference(model, expected) < 1e-6  # its loss is in float32
    if way == "callback":
        assert not traces(model, trainer.optimizer.optimizer)
