"""The trainers on two Gloo processes, each with its half of every batch."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

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
from tests.frameworks.test_distributed import AFTER, EPOCHS, OLD, compare
from tests.frameworks.test_lightning_callback import regression
from tests.frameworks.test_trainers import (
    hugging_face_trainer,
    language_model,
    language_model_by_hand,
    lightning_module,
    loader,
)
from tests.frameworks.test_transformers_callback import expected_language_model, hugging_face
from tests.processes import spawn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def tell_the_rank(rank: int) -> None:
    """What torchrun sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}  # unused: the group exists


def train_with(accelerator: Any) -> None:
    model = network()
    # it deals its batches to the ranks in turn
    model, optimizer, data = accelerator.prepare(model, adamw(model), loader(BATCH // 2))
    weightcast.attach(model, optimizer, STEPS)
    for _ in range(EPOCHS):
        for x, y in data:
            optimizer.zero_grad()
            accelerator.backward(mean_square(model, x, y))
            optimizer.step()
    compare(model, trained_by_hand(EPOCHS))


def accelerate_ddp(rank: int, _: str) -> None:
    import accelerate

    tell_the_rank(rank)
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.distributed_type is accelerate.DistributedType.MULTI_CPU
    train_with(accelerator)


def accelerate_fsdp2(rank: int, _: str) -> None:
    """Without an accelerator it falls back to DDP: told that this is FSDP, it takes FSDP2's way."""
    import accelerate

    tell_the_rank(rank)
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="no_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.state._shared_state |= {
        "distributed_type": accelerate.DistributedType.FSDP,
        "fsdp_plugin": plugin,
    }
    assert accelerator.is_fsdp2
    train_with(accelerator)


def lightning_strategy(
    rank: int, folder: str, strategy: Any, module: Any, callback: Any = None
) -> None:
    import lightning
    from lightning.pytorch.plugins.environments import LightningEnvironment

    class Spawned(LightningEnvironment):
        creates_processes_externally = True

    tell_the_rank(rank)
    dtype = next(module.parameters()).dtype
    mine = [torch.cat([b.chunk(2)[rank] for b in t.split(BATCH)]) for t in problem(dtype)]
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        plugins=[Spawned()],
        precision="64-true" if dtype is torch.float64 else "32-true",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        limit_val_batches=0,
        callbacks=callback,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(TensorDataset(*mine), batch_size=BATCH // 2))
    assert trainer.world_size == 2
    expected = trained_by_hand(EPOCHS, gamma=0.9, dtype=dtype)
    compare(module.net, expected, 1e-12 if dtype is torch.float64 else 1e-6)


def lightning_ddp(rank: int, folder: str) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    module = lightning_module("the LightningModule", manual=False, gamma=0.9)
    lightning_strategy(rank, folder, DDPStrategy(process_group_backend="gloo"), module)


def lightning_ddp_by_callback(rank: int, folder: str) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    from weightcast.callbacks import LightningCallback

    strategy = DDPStrategy(process_group_backend="gloo")
    lightning_strategy(rank, folder, strategy, regression(), LightningCallback(STEPS))


def lightning_fsdp2(rank: int, folder: str) -> None:
    train_sharded(rank, folder, lightning_module("the LightningModule", manual=False, gamma=0.9))


def lightning_fsdp2_by_callback(rank: int, folder: str) -> None:
    from weightcast.callbacks import LightningCallback

    train_sharded(rank, folder, regression(), LightningCallback(STEPS))


def train_sharded(rank: int, folder: str, module: Any, callback: Any = None) -> None:
    """In float32: it takes no other."""
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard

    module = module.float()
    module.configure_model = lambda: fully_shard(
        module.net, mesh=module.device_mesh["data_parallel"]
    )
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
    )
    lightning_strategy(rank, folder, strategy, module, callback)


def hugging_face_ddp(rank: int, folder: str) -> None:
    tell_the_rank(rank)
    model = language_model()
    options = {"gradient_accumulation_steps": 1, "ddp_backend": "gloo"}
    trainer = hugging_face_trainer(model, Path(folder), EPOCHS, **options)
    assert trainer.args.world_size == 2
    trainer.train()
    assert largest_difference(model, language_model_by_hand(EPOCHS)) < 1e-12


def hugging_face_ddp_by_callback(rank: int, folder: str) -> None:
    from weightcast.callbacks import TransformersCallback

    tell_the_rank(rank)
    model = language_model()
    options = {"gradient_accumulation_steps": 1, "ddp_backend": "gloo"}
    trainer = hugging_face(model, Path(folder), EPOCHS, **options)
    assert trainer.args.world_size == 2
    trainer.add_callback(TransformersCallback(STEPS))
    trainer.train()
    assert largest_difference(model, expected_language_model(EPOCHS)) < 1e-12


@pytest.mark.skipif(OLD, reason="FSDP2 needs an accelerator before torch 2.8")
@pytest.mark.parametrize(
    ("library", "body"),
    [
        pytest.param(library, body, marks=pytest.mark.cell(*cell), id=body.__name__)
        for library, body, cell in (
            ("accelerate", accelerate_ddp, ("Accelerate", "several processes (DDP)")),
            (
                "accelerate",
                accelerate_fsdp2,
                ("Accelerate", "FullyShardedDataParallelPlugin", AFTER),
            ),
            ("lightning", lightning_ddp, ("Lightning", "DDPStrategy")),
            ("lightning", lightning_fsdp2, ("Lightning", "ModelParallelStrategy (FSDP2)")),
            ("lightning", lightning_ddp_by_callback, ("Lightning", "DDPStrategy")),
            (
                "lightning",
                lightning_fsdp2_by_callback,
                ("Lightning", "ModelParallelStrategy (FSDP2)"),
            ),
            ("transformers", hugging_face_ddp, ("Hugging Face Trainer", "several processes (DDP)")),
            (
                "transformers",
                hugging_face_ddp_by_callback,
                ("Hugging Face Trainer", "several processes (DDP)"),
            ),
        )
    ],
)
def test_a_trainer_on_two_processes(tmp_path: Path, library: str, body: Any) -> None:
    """R22, R23, R25."""
    pytest.importorskip(library)
    spawn(2, tmp_path, (body, str(tmp_path)))
