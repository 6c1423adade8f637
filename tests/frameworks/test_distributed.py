"""Sharded training on Gloo, two processes, against one process."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import weightcast
from tests.frameworks.helpers import (
    BATCH,
    LR,
    STEPS,
    adamw,
    mean_square,
    network,
    problem,
    train,
    trained_by_hand,
)

EPOCHS = 2
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8)


def ranks_batches(rank: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's half of every batch."""
    half = BATCH // 2
    for _ in range(EPOCHS):
        for x, y in zip(*(t.split(BATCH) for t in problem()), strict=True):
            yield x[rank * half : (rank + 1) * half], y[rank * half : (rank + 1) * half]


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train_half(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rank: int,
    unsharded: nn.Module | None = None,
) -> None:
    """Nobody averages the gradients of an unsharded part but we."""
    for x, y in ranks_batches(rank):
        optimizer.zero_grad()
        mean_square(model, x, y).backward()
        for p in unsharded.parameters() if unsharded is not None else ():
            dist.all_reduce(p.grad)
            p.grad /= 2
        optimizer.step()


def compare(model: nn.Module, expected: nn.Module) -> None:
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(p).detach(), q.detach(), rtol=0, atol=1e-12)


def sharded(rank: int, name: str) -> None:
    """FSDP2 with an analytic and an observed rule; the saved state dict is θ."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    model = network()
    fully_shard(model[0], mesh=mesh)
    if name == "all":
        fully_shard(model, mesh=mesh)
    make: Callable[..., Any] = torch.optim.NAdam if name == "observed" else torch.optim.AdamW
    optimizer = make(model.parameters(), lr=LR)
    prediction = weightcast.attach(model, optimizer, STEPS)
    # unless all is sharded, DTensors and plain tensors share the optimizer
    train_half(model, optimizer, rank, unsharded=None if name == "all" else model[2])
    expected = trained_by_hand(
        EPOCHS, make=lambda m: make(m.parameters(), lr=LR), decoupled=name != "observed"
    )
    compare(model, expected)
    model(problem()[0])
    assert prediction.is_predicted
    state = model.state_dict()
    for value, q in zip(state.values(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(value), q.detach(), rtol=0, atol=1e-12)


def zero_redundancy(rank: int, _: str) -> None:
    """Each rank holds the state of its share; the observed rule sees every parameter move."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = nn.parallel.DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.NAdam, lr=LR
    )
    weightcast.attach(model, optimizer, STEPS)
    train_half(model, optimizer, rank)
    expected = trained_by_hand(
        EPOCHS, make=lambda m: torch.optim.NAdam(m.parameters(), lr=LR), decoupled=False
    )
    compare(model, expected)


def no_sync(rank: int, _: str) -> None:
    """Two micro-batches per step; only the second synchronises."""
    model = nn.parallel.DistributedDataParallel(network())
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)
    batches = list(ranks_batches(rank))
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        with model.no_sync():
            (mean_square(model, *first) / 2).backward()
        (mean_square(model, *second) / 2).backward()
        optimizer.step()
    compare(model, trained_by_hand(EPOCHS, accumulate=2))


def tensor_parallel(rank: int, _: str) -> None:
    """Weights split over the ranks by columns, then rows; all ranks see all examples."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = network()
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = parallelize_module(model, init_device_mesh("cpu", (2,)), plan)
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)
    train(model, optimizer, EPOCHS)
    compare(model, trained_by_hand(EPOCHS))


def _run(rank: int, folder: str, body: Callable[[int, str], None], name: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        body(rank, name)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        pytest.param(
            sharded, "all", marks=pytest.mark.cell("FSDP2", "fully_shard", "attach after it")
        ),
        pytest.param(
            sharded,
            "mixed",
            marks=pytest.mark.cell("FSDP2", "DTensor and plain parameters", "attach after it"),
        ),
        pytest.param(
            sharded,
            "observed",
            marks=pytest.mark.cell("FSDP2", "an observed optimizer", "attach after it"),
        ),
        pytest.param(
            tensor_parallel,
            "",
            marks=pytest.mark.cell("Tensor parallel", "parallelize_module", "attach after it"),
        ),
        pytest.param(no_sync, "", marks=pytest.mark.cell("DDP", "no_sync accumulation")),
        pytest.param(
            zero_redundancy, "", marks=pytest.mark.cell("ZeroRedundancyOptimizer", "training")
        ),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.skipif(OLD, reason="FSDP2 needs an accelerator before torch 2.8")
def test_two_processes_equal_one(tmp_path: Path, body: Callable, name: str) -> None:
    """R25."""
    mp.spawn(_run, (str(tmp_path), body, name), nprocs=2)


@pytest.mark.cell("DeepSpeed ZeRO, Megatron", "an optimizer of flat or master copies", "refused")
def test_an_optimizer_of_copies_is_refused(record_property: Callable) -> None:
    """R24."""
    model = network()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    with pytest.raises(weightcast.InvalidArgumentError) as error:
        weightcast.attach(model, torch.optim.AdamW([flat]))
    record_property("sentence", str(error.value))
