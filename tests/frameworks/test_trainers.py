"""Lightning, Accelerate and the Hugging Face Trainer, each against Algorithm 1 by hand."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

import weightcast
from tests.frameworks.helpers import (
    BATCH,
    STEPS,
    adamw,
    largest_difference,
    mean_square,
    network,
    problem,
    trained_by_hand,
)
from tests.frameworks.loops import (
    Attached,
    Loop,
    Written,
    adversaries,
    batches,
    difference,
    gan_iteration,
)
from tests.helpers import same, weights
from tests.oracles.by_hand import ByHand

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]
EPOCHS = 3


def loader(batch_size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(*problem()), batch_size=batch_size)


# --- Lightning -----------------------------------------------------------------------------------


def lightning_module(attach_to: str, manual: bool, gamma: float) -> Any:
    lightning = pytest.importorskip("lightning")

    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.automatic_optimization = not manual
            self.evaluated: list[tuple[bool, list[Tensor]]] = []

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            loss = mean_square(self.net, *batch)
            if manual:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.lr_schedulers().step()
            return loss

        def validation_step(self, batch: list[Tensor], index: int) -> None:
            mean_square(self.net, *batch)
            self.evaluated.append((self.prediction.is_predicted, weights(self.net)))

        def configure_optimizers(self) -> dict:
            optimizer = adamw(self.net)
            target = self if attach_to == "the LightningModule" else self.net
            self.prediction = weightcast.attach(target, optimizer, STEPS)
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }

    return Regression()


def fit(module: Any, folder: Path, epochs: int = EPOCHS, **options: Any) -> Any:
    lightning = pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    resume = options.pop("ckpt_path", None)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        precision=options.pop("precision", "64-true"),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, loader(), loader(), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("attach_to", ["the LightningModule", "its network"])
@pytest.mark.parametrize(
    ("manual", "accumulate"),
    [
        pytest.param(False, 1, marks=pytest.mark.cell("Lightning", "automatic optimization")),
        pytest.param(False, 2, marks=pytest.mark.cell("Lightning", "accumulate_grad_batches")),
        pytest.param(True, 1, marks=pytest.mark.cell("Lightning", "manual optimization")),
    ],
)
def test_lightning(tmp_path: Path, attach_to: str, manual: bool, accumulate: int) -> None:
    """R21, R22: also with a scheduler that moves after every step."""
    module = lightning_module(attach_to, manual, gamma=0.9)
    fit(module, tmp_path, accumulate_grad_batches=accumulate)
    expected = trained_by_hand(EPOCHS, accumulate=accumulate, gamma=0.9)
    assert largest_difference(module.net, expected) < 1e-14
    assert len(module.evaluated) == EPOCHS * 4
    assert not any(predicted for predicted, _ in module.evaluated)
    assert same(module.evaluated[-1][1], weights(module.net))


@pytest.mark.cell("Lightning", "gradient_clip_val")
def test_lightning_clips(tmp_path: Path) -> None:
    module = lightning_module("the LightningModule", manual=False, gamma=1.0)
    fit(module, tmp_path, gradient_clip_val=0.05)
    assert largest_difference(module.net, trained_by_hand(EPOCHS, clip=0.05)) < 1e-8


@pytest.mark.cell("Lightning", "checkpoint and resume")
def test_lightning_resumes(tmp_path: Path) -> None:
    """R16, R22: saved at θ, in a plain format; going on equals never having stopped."""
    module = lightning_module("the LightningModule", manual=False, gamma=0.9)
    trainer = fit(module, tmp_path, epochs=1)
    module.net.train()(problem()[0])
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    resumed = lightning_module("the LightningModule", manual=False, gamma=0.9)
    fit(resumed, tmp_path, ckpt_path=tmp_path / "one.ckpt")
    assert largest_difference(resumed.net, trained_by_hand(EPOCHS, gamma=0.9)) < 1e-14


@pytest.mark.cell("Lightning", "bf16-mixed")
def test_lightning_bf16_mixed(tmp_path: Path) -> None:
    """The forward runs in bfloat16: a plain loop under autocast is the reference."""
    module = lightning_module("the LightningModule", manual=False, gamma=1.0)
    module.net.float()
    x, y = problem(torch.float32)
    lightning = pytest.importorskip("lightning")
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, precision="bf16-mixed", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=BATCH))
    reference = network(torch.float32)
    by_hand = ByHand(adamw(reference), STEPS, decoupled=True)
    for inputs, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):

        def backward(inputs: Tensor = inputs, targets: Tensor = targets) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                loss = mean_square(reference, inputs, targets)
            loss.backward()

        by_hand.iterate(backward)
    assert largest_difference(module.net, reference) < 1e-5


HALF = "attach (tested on a CPU, with a scaler given to it: the setting itself wants a GPU)"


def in_half_precision(init_scale: float) -> nn.Module:
    """By hand: one epoch under float16 autocast and a scaler, whose first steps overflow."""
    model = network(torch.float32)
    running = Written(model, adamw(model))
    scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
    skipped = []
    for x, y in zip(*(t.split(BATCH) for t in problem(torch.float32)), strict=True):

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            with torch.autocast("cpu", torch.float16):
                return mean_square(model, x, y)

        skipped.append(running.scaled(scaler, loss))
    assert True in skipped
    assert False in skipped
    return model


@pytest.mark.cell("Lightning", "16-mixed, with overflows", HALF)
def test_lightning_16_mixed(tmp_path: Path) -> None:
    """R7, R22: precision="16-mixed" itself turns into bf16-mixed where there is no GPU."""
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    lightning = pytest.importorskip("lightning")
    module = lightning_module("the LightningModule", manual=False, gamma=1.0)
    module.net.float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False,
        plugins=[plugins.MixedPrecision("16-mixed", "cpu", scaler)],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*problem(torch.float32)), batch_size=BATCH))
    assert largest_difference(module.net, in_half_precision(2.0**18)) < 1e-5


@pytest.mark.cell("Lightning", "several optimizers", "attach each to its network")
def test_lightning_with_several_optimizers(tmp_path: Path) -> None:
    """R22: a GAN by manual optimization."""
    lightning = pytest.importorskip("lightning")

    class Manual(Attached):
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    class Gan(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.nets = adversaries()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], index: int) -> None:
            gan_iteration(self.nets, [Manual(o) for o in self.optimizers()], *batch)

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            optimizers = [adamw(net) for net in self.nets]
            for net, optimizer in zip(self.nets, optimizers, strict=True):
                weightcast.attach(net, optimizer, STEPS)
            return optimizers

        def validation_step(self, *_: Any) -> None:
            pass

    module = Gan()
    fit(module, tmp_path, epochs=2)
    nets = adversaries()
    running = [Written(net, adamw(net)) for net in nets]
    for noise, real in batches(2):
        gan_iteration(nets, running, noise, real)
    module.state_dict()  # puts θ back: the discriminator's last forward was the generator's
    assert largest_difference(module.nets, nets) < 1e-13


@pytest.mark.cell("Lightning", "StochasticWeightAveraging")
def test_lightning_stochastic_weight_averaging(tmp_path: Path) -> None:
    """R6, R22: the mean of the true weights at the epochs' ends, at its own learning rates."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    rates = []

    class Rates(callbacks.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = lightning_module("the LightningModule", manual=False, gamma=1.0)
    swa = callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=2, annealing_epochs=2)
    fit(module, tmp_path, epochs=4, callbacks=[swa, Rates()])
    assert len(set(rates)) > 1
    expected = network()
    running, average = Written(expected, adamw(expected)), AveragedModel(expected)
    for count, (rate, (x, y)) in enumerate(zip(rates, batches(4), strict=True), 1):
        running.optimizer.param_groups[0]["lr"] = rate
        running.iterate(lambda x=x, y=y: mean_square(expected, x, y).backward())
        if count in (4, 8, 12):
            average.update_parameters(expected)
    assert largest_difference(module.net, average.module) < 1e-13


@pytest.mark.parametrize("order", ["before setup", "after setup"])
@pytest.mark.parametrize(
    "accumulate",
    [
        pytest.param(1, marks=pytest.mark.cell("Fabric", "setup")),
        pytest.param(2, marks=pytest.mark.cell("Fabric", "no_backward_sync accumulation")),
    ],
)
@pytest.mark.cell("Fabric", "save")
def test_fabric(tmp_path: Path, order: str, accumulate: int) -> None:
    """Attached to the plain objects, or to those that setup() returned."""
    fabric = pytest.importorskip("lightning").Fabric(accelerator="cpu", devices=1)
    model = network()
    optimizer = adamw(model)
    if order == "before setup":
        weightcast.attach(model, optimizer, STEPS)
    model, optimizer = fabric.setup(model, optimizer)
    if order == "after setup":
        weightcast.attach(model, optimizer, STEPS)
    for count, (x, y) in enumerate(batches(EPOCHS), 1):
        with fabric.no_backward_sync(model, enabled=count % accumulate > 0):
            fabric.backward(mean_square(model, x, y) / accumulate)
        if count % accumulate == 0:
            fabric.clip_gradients(model, optimizer, max_norm=0.5)
            optimizer.step()
            optimizer.zero_grad()
    expected = trained_by_hand(EPOCHS, accumulate=accumulate, clip=0.5)
    assert largest_difference(model, expected) < 1e-13
    theta = weights(model)
    model(problem()[0])
    fabric.save(tmp_path / "state.ckpt", {"model": model, "optimizer": optimizer})
    saved = torch.load(tmp_path / "state.ckpt", weights_only=True)
    assert same(list(saved["model"].values()), theta)


@pytest.mark.cell("Lightning", "EMA (WeightAveraging)")
def test_lightning_weight_averaging(tmp_path: Path) -> None:
    """R6, R22: the average is one of true weights."""
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    averages = []

    class Average(callbacks.WeightAveraging):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            averages.append([p.clone() for p in self._average_model.module.net.parameters()])
            super().on_train_end(trainer, module)

    module = lightning_module("the LightningModule", manual=False, gamma=1.0)
    total, count = [torch.zeros_like(p) for p in module.net.parameters()], 0

    class Sum(callbacks.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            nonlocal count
            count += 1
            for t, p in zip(total, module.net.parameters(), strict=True):
                t += p.detach()

    fit(module, tmp_path, callbacks=[Average(), Sum()])
    for average, t in zip(averages[0], total, strict=True):
        torch.testing.assert_close(average, t / count, rtol=1e-6, atol=1e-8)


# --- Accelerate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["before prepare", "after prepare"])
@pytest.mark.parametrize(
    ("accumulate", "clip"),
    [
        pytest.param(1, None, marks=pytest.mark.cell("Accelerate", "prepare")),
        pytest.param(2, None, marks=pytest.mark.cell("Accelerate", "accumulate")),
        pytest.param(1, 0.05, marks=pytest.mark.cell("Accelerate", "clip_grad_norm_")),
    ],
)
@pytest.mark.cell("Accelerate", "save_state")
def test_accelerate(tmp_path: Path, order: str, accumulate: int, clip: float | None) -> None:
    """R23: attached to the plain objects, or to those that prepare() returned."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    model = network()
    optimizer = adamw(model)
    if order == "before prepare":
        weightcast.attach(model, optimizer, STEPS)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader())
    if order == "after prepare":
        weightcast.attach(model, optimizer, STEPS)
    for _ in range(EPOCHS):
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(mean_square(model, x, y))
                if clip and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    expected = trained_by_hand(EPOCHS, accumulate=accumulate, clip=clip)
    assert largest_difference(model, expected) < 1e-14
    theta = weights(model)
    model(problem()[0])
    accelerator.save_state(tmp_path, safe_serialization=False)
    saved = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert same(list(saved.values()), theta)


@pytest.mark.cell("Accelerate", "bf16")
def test_accelerate_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is a plain loop under autocast."""
    accelerate = pytest.importorskip("accelerate")
    monkeypatch.setattr(accelerate.state.AcceleratorState, "_shared_state", {})
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model, expected = network(torch.float32), network(torch.float32)
    optimizer = adamw(model)
    data = DataLoader(TensorDataset(*problem(torch.float32)), batch_size=BATCH)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    weightcast.attach(model, optimizer, STEPS)
    running = Written(expected, adamw(expected))
    for x, y in data:
        accelerator.backward(mean_square(model, x, y))
        optimizer.step()
        optimizer.zero_grad()

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                output = expected(x)
            mean_square(lambda _: output.float(), x, y).backward()

        running.iterate(backward)
    assert largest_difference(model, expected) < 1e-5


@pytest.mark.cell("Accelerate", "fp16, with overflows", HALF)
def test_accelerate_in_float16() -> None:
    """R7, R23: mixed_precision="fp16" itself refuses a CPU."""
    wrappers = pytest.importorskip("accelerate.optimizer")
    pytest.importorskip("accelerate").Accelerator(cpu=True)
    model = network(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**18)
    optimizer = wrappers.AcceleratedOptimizer(adamw(model), scaler=scaler)
    weightcast.attach(model, optimizer, STEPS)
    for x, y in zip(*(t.split(BATCH) for t in problem(torch.float32)), strict=True):
        with torch.autocast("cpu", torch.float16):
            loss = mean_square(model, x, y)
        scaler.scale(loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert largest_difference(model, in_half_precision(2.0**18)) < 1e-5


# --- Hugging Face --------------------------------------------------------------------------------


def language_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, max_position_embeddings=32, **sizes, **heads)
    return transformers.LlamaForCausalLM(config).double()


SENTENCES = torch.randint(0, 32, (16, 8), generator=torch.Generator().manual_seed(0))


def hugging_face_trainer(
    model: nn.Module, folder: Path, epochs: int, own_optimizer: bool = False, **options: Any
) -> Any:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    examples = [{"input_ids": tokens, "labels": tokens} for tokens in SENTENCES]

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(examples)

    optimizer, scheduler = None, None
    if not own_optimizer:
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        weightcast.attach(model, optimizer, STEPS)
    usual = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=epochs, **(usual | options)
    )
    return InOrder(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=examples[:4],
        optimizers=(optimizer, scheduler),
    )


def trainable(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def with_adapters() -> nn.Module:
    """Only the adapters train; neither of their factors is zero at first."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    return peft.get_peft_model(language_model(), config).double()


def language_model_by_hand(
    epochs: int, model: nn.Module | None = None, gamma: float = 0.9, weight_decay: float = 0.01
) -> nn.Module:
    model = language_model() if model is None else model
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
    by_hand = ByHand(optimizer, STEPS, decoupled=True)
    for _ in range(epochs):
        for batch in SENTENCES.split(8):

            def backward(batch: Tensor = batch) -> None:
                for tokens in batch.split(4):
                    (model(input_ids=tokens, labels=tokens).loss / 2).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)

            by_hand.iterate(backward)
            scheduler.step()
    return model


@pytest.mark.cell("Hugging Face Trainer", "accumulation, clipping, evaluation, scheduler")
def test_hugging_face_trainer(tmp_path: Path) -> None:
    """R23."""
    model = language_model()
    hugging_face_trainer(model, tmp_path, EPOCHS).train()
    assert largest_difference(model, language_model_by_hand(EPOCHS)) < 1e-12


@pytest.mark.cell(
    "Hugging Face Trainer", "the optimizer of TrainingArguments", "attach in `on_train_begin`"
)
def test_hugging_face_trainer_with_its_own_optimizer(tmp_path: Path) -> None:
    """R23: it is made in `train()`, and a callback sees it before the first step."""
    transformers = pytest.importorskip("transformers")

    class Forecast(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            weightcast.attach(model, optimizer, STEPS)

    model = language_model()
    options = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "adamw_torch"}
    trainer = hugging_face_trainer(model, tmp_path, EPOCHS, own_optimizer=True, **options)
    trainer.add_callback(Forecast)
    trainer.train()
    expected = language_model_by_hand(EPOCHS, gamma=1.0, weight_decay=0.0)
    assert largest_difference(model, expected) < 1e-12


@pytest.mark.cell(
    "Hugging Face Trainer", "weightcast.AdamW in `optimizer_cls_and_kwargs`", "attach in a callback"
)
@pytest.mark.parametrize("in_step", [False, True])
def test_hugging_face_trainer_makes_our_optimizer(tmp_path: Path, in_step: bool) -> None:
    """R23, R32: from the class and its arguments, with the Trainer's own groups for decay."""
    transformers = pytest.importorskip("transformers")

    class Forecast(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, optimizer: Any, **__: Any) -> None:
            weightcast.attach(model, optimizer)

    model = language_model()
    options = {"own_optimizer": True, "lr_scheduler_type": "constant"}
    trainer = hugging_face_trainer(model, tmp_path, EPOCHS, **options)
    chosen = {"lr": 1e-2, "steps": STEPS, "in_step": in_step}
    trainer.optimizer_cls_and_kwargs = weightcast.AdamW, chosen
    trainer.add_callback(Forecast)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, weightcast.AdamW)
    expected = language_model_by_hand(EPOCHS, gamma=1.0, weight_decay=0.0)
    assert largest_difference(model, expected) < 1e-12


@pytest.mark.cell("Hugging Face Trainer", "save and resume_from_checkpoint")
def test_hugging_face_trainer_resumes(tmp_path: Path) -> None:
    """R16, R23: what save_strategy wrote is θ, and training goes on from it."""
    safetensors = pytest.importorskip("safetensors.torch")
    model = language_model()
    hugging_face_trainer(model, tmp_path, EPOCHS).train()
    first = tmp_path / "checkpoint-2"
    saved = safetensors.load_file(first / "model.safetensors")
    after_one = dict(language_model_by_hand(1).named_parameters())
    for name, value in saved.items():
        torch.testing.assert_close(value, after_one[name].detach(), rtol=0, atol=1e-12)
    resumed = language_model()
    hugging_face_trainer(resumed, tmp_path, EPOCHS).train(resume_from_checkpoint=str(first))
    assert largest_difference(resumed, model) < 1e-12


@pytest.mark.cell("Hugging Face Trainer", "gradient_checkpointing")
def test_hugging_face_trainer_with_checkpointing(tmp_path: Path) -> None:
    """R4: what is recomputed in backward is recomputed at the forecast."""
    model = language_model()
    hugging_face_trainer(model, tmp_path, 2, gradient_checkpointing=True).train()
    assert model.is_gradient_checkpointing
    assert largest_difference(model, language_model_by_hand(2)) < 1e-12


@pytest.mark.cell("Hugging Face Trainer", "LoRA (PEFT)")
def test_hugging_face_trainer_of_adapters(tmp_path: Path) -> None:
    model = with_adapters()
    hugging_face_trainer(model, tmp_path, 2).train()
    assert largest_difference(model, language_model_by_hand(2, with_adapters())) < 1e-12


@pytest.mark.cell("PEFT", "a reference pass with the adapters disabled (DPO)")
def test_a_reference_pass_without_adapters() -> None:
    """Between forward and backward, under no_grad."""

    def script(loop: Loop) -> nn.Module:
        model = with_adapters()
        running = loop(model, torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.0))
        for batch in SENTENCES.split(4):

            def backward(batch: Tensor = batch) -> None:
                logits = model(input_ids=batch).logits
                with torch.no_grad(), model.disable_adapter():
                    reference = model(input_ids=batch).logits
                (logits - reference).square().mean().backward()

            running.iterate(backward)
        return model

    assert difference(script) < 1e-12


@pytest.mark.cell("TRL", "SFTTrainer, with LoRA")
def test_trl_fine_tunes(tmp_path: Path) -> None:
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
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    weightcast.attach(model, optimizer, STEPS)
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
    )
    trainer = InOrder(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_dict({"input_ids": SENTENCES.tolist()}),
        optimizers=(optimizer, scheduler),
    )
    trainer.train()
    expected = language_model_by_hand(2, with_adapters())
    assert largest_difference(model, expected) < 1e-6  # its loss is in float32
