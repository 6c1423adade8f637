"""Training on two and four Gloo processes, against one process or the same one by hand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
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
from tests.frameworks.loops import Attached, Loop, Written, difference
from tests.processes import Body, spawn

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


def compare(model: nn.Module, expected: nn.Module, tolerance: float = 1e-12) -> None:
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(full(p).detach(), q.detach(), rtol=0, atol=tolerance)


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
    expected = trained_by_hand(EPOCHS)
    compare(model, expected)
    x, y = problem()
    loss = mean_square(model, x, y)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), expected(x), rtol=0, atol=1e-12)
    loss.backward()  # R9: DTensors count what is written to their memory too
    loss = mean_square(model.train(), x, y)
    model.eval()(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def sharded_by_hand_too(rank: int, name: str) -> None:
    """What changes the numbers of FSDP2, or where they lie: the script by hand is sharded too."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {"mesh": init_device_mesh("cpu", (2,))}
    if name == "mixed precision":
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    elif name == "offload":
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=False)
    dtype = torch.float32 if name == "mixed precision" else torch.float64

    def script(loop: Loop) -> nn.Module:
        model = network(dtype)
        if name == "checkpointing":
            model[0] = checkpoint_wrapper(model[0])
        fully_shard(model[0], **options)
        fully_shard(model, **options)
        running = loop(model, torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0))
        for x, y in ranks_batches(rank):
            x, y = x.to(dtype), y.to(dtype)
            running.iterate(lambda x=x, y=y: mean_square(model, x, y).backward())
        return model

    assert difference(script) < (1e-5 if name == "mixed precision" else 1e-13)


def sharded_and_evaluated(rank: int, _: str) -> None:
    """What an evaluation gathers of the root, which FSDP2 keeps, is not used for training."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, theta = network(), network()
    for module in (model[0], model):
        fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)

    @torch.no_grad()
    def check_evaluation(x: Tensor) -> None:
        for training in (True, False) if not is_waiting else (False,):
            output = model.train(training)(x)
            torch.testing.assert_close(output, theta(x), rtol=0, atol=1e-13)
        model.train()

    for x, y in ranks_batches(rank):
        is_waiting = False
        for p, q in zip(theta.parameters(), model.parameters(), strict=True):
            p.data.copy_(q.detach().full_tensor())
        check_evaluation(x)
        optimizer.zero_grad()
        loss = mean_square(model, x, y)
        is_waiting = True
        check_evaluation(x)
        loss.backward()
        optimizer.step()
    compare(model, trained_by_hand(EPOCHS))


def older_sharding(rank: int, _: str) -> None:
    """FSDP1 keeps what an evaluation gathered of its root: there is none here (docs/recipes.md)."""
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    model = FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)
    train_half(model, optimizer, rank)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT):
        state = model.state_dict()
    for name, expected in trained_by_hand(EPOCHS).state_dict().items():
        torch.testing.assert_close(state[name], expected, rtol=0, atol=1e-12)


def prefetched(rank: int, _: str) -> None:
    """`unshard()` gathers at once, before any forward: the forecast has to come before it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = adamw(model)
    prediction = weightcast.attach(model, optimizer, STEPS)
    for x, y in ranks_batches(rank):
        optimizer.zero_grad()
        prediction.predict()
        model.unshard(async_op=True)
        mean_square(model, x, y).backward()
        optimizer.step()
    compare(model, trained_by_hand(EPOCHS))


def data_parallel(rank: int, name: str) -> None:
    """The options of DDP; a part of the module is never used."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    def script(loop: Loop) -> nn.Module:
        module = nn.ModuleDict({"used": network(), "unused": network()})
        module.forward = lambda x: module["used"](x)
        options = {} if name == "hook" else {name: True}
        if name == "hook":
            module["unused"].requires_grad_(False)
        model = nn.parallel.DistributedDataParallel(module, **options)
        if name == "hook":
            model.register_comm_hook(None, default_hooks.allreduce_hook)
        running = loop(model, torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0))
        for x, y in ranks_batches(rank):
            running.iterate(lambda x=x, y=y: mean_square(model, x, y).backward())
        return module

    assert difference(script) < 1e-13


def post_local_sgd(rank: int, _: str) -> None:
    """Ranks go their own ways for a while, and then take the mean: attach to what it wraps."""
    from torch.distributed.algorithms.ddp_comm_hooks import post_localSGD_hook as local
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    alone = [dist.new_group([r]) for r in range(2)][rank]

    def script(loop: Loop) -> nn.Module:
        model = nn.parallel.DistributedDataParallel(network())
        model.register_comm_hook(local.PostLocalSGDState(None, alone, 2), local.post_localSGD_hook)
        running = loop(model, torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0))
        averager = PeriodicModelAverager(period=3, warmup_steps=2)
        if loop is Attached:
            running.optimizer = PostLocalSGDOptimizer(running.optimizer, averager)
        for x, y in ranks_batches(rank):
            running.iterate(lambda x=x, y=y: mean_square(model, x, y).backward())
            if loop is Written:
                averager.average_parameters(model.parameters())
        return model

    assert difference(script) < 1e-13


def two_dimensional(rank: int, folder: str) -> None:
    """Tensor parallel by two, each half sharded by two; saved by torch.distributed.checkpoint."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = parallelize_module(network(), mesh["tensor"], plan)
    fully_shard(model, mesh=mesh["data"])
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)
    train_half(model, optimizer, rank // 2)
    compare(model, trained_by_hand(EPOCHS))
    model(problem()[0][:BATCH])  # at the forecast: what is saved is not
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/saved")


def resumed(rank: int, folder: str) -> None:
    """What four processes saved, on two, otherwise sharded."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = adamw(model)
    weightcast.attach(model, optimizer, STEPS)
    weights, state = get_state_dict(model, optimizer)
    checkpoint.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/saved")
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    compare(model, trained_by_hand(EPOCHS))
    train_half(model, optimizer, rank)
    compare(model, trained_by_hand(2 * EPOCHS))


AFTER = "attach after it"
OLDER = f"{AFTER}; after an evaluation, the first training forward is at the true weights"
IN_TWO_PROCESSES: list[list[tuple[Body, str, tuple[str, ...]]]] = [
    [
        (sharded, "all", ("FSDP2", "fully_shard", AFTER)),
        (sharded, "mixed", ("FSDP2", "DTensor and plain parameters", AFTER)),
        (sharded, "observed", ("FSDP2", "an observed optimizer", AFTER)),
        (sharded_and_evaluated, "", ("FSDP2", "evaluation at any time", AFTER)),
    ],
    [
        (sharded_by_hand_too, "mixed precision", ("FSDP2", "MixedPrecisionPolicy", AFTER)),
        (sharded_by_hand_too, "offload", ("FSDP2", "CPUOffloadPolicy", AFTER)),
        (sharded_by_hand_too, "checkpointing", ("FSDP2", "activation checkpointing", AFTER)),
        (prefetched, "", ("FSDP2", "explicit unshard()", f"{AFTER}; `prediction.predict()` first")),
    ],
    [
        (older_sharding, "", ("FSDP1", "FullyShardedDataParallel", OLDER)),
        (no_sync, "", ("DDP", "no_sync accumulation")),
        (data_parallel, "static_graph", ("DDP", "static_graph")),
        (data_parallel, "find_unused_parameters", ("DDP", "find_unused_parameters")),
        (data_parallel, "hook", ("DDP", "a communication hook")),
        (post_local_sgd, "", ("DDP", "PostLocalSGDOptimizer", "attach to the optimizer inside")),
    ],
    [
        (tensor_parallel, "", ("Tensor parallel", "parallelize_module", AFTER)),
        (zero_redundancy, "", ("ZeroRedundancyOptimizer", "training")),
    ],
]


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param(
            [(body, name) for body, name, _ in group],
            marks=[pytest.mark.cell(*cell) for _, _, cell in group],
            id="-".join(name or body.__name__ for body, name, _ in group),
        )
        for group in IN_TWO_PROCESSES
    ],
)
@pytest.mark.skipif(OLD, reason="FSDP2 needs an accelerator before torch 2.8")
def test_two_processes_equal_one(tmp_path: Path, bodies: list[tuple[Body, str]]) -> None:
    """R25."""
    spawn(2, tmp_path, *bodies)


@pytest.mark.cell("FSDP2", "with tensor parallelism (2-D)", AFTER)
@pytest.mark.cell("FSDP2", "torch.distributed.checkpoint, saved on 4 and loaded on 2", AFTER)
@pytest.mark.skipif(OLD, reason="FSDP2 needs an accelerator before torch 2.8")
def test_four_processes_save_and_two_go_on(tmp_path: Path) -> None:
    """R16, R25."""
    spawn(4, tmp_path, (two_dimensional, str(tmp_path)))
    spawn(2, tmp_path, (resumed, str(tmp_path)))


def deepspeed_zero(rank: int, file: str) -> None:
    import deepspeed

    os.environ["LOCAL_RANK"] = str(rank)

    config = {
        "train_micro_batch_size_per_gpu": BATCH,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    model = network(torch.float32)
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=adamw(model), config=config, dist_init_required=False
    )
    try:
        weightcast.attach(engine, optimizer, STEPS)
    except weightcast.InvalidTypeError as error:
        Path(file).write_text(str(error))


@pytest.mark.cell("DeepSpeed", "ZeRO", "refused")
def test_deepspeeds_optimizer_is_refused(tmp_path: Path, record_property: Callable) -> None:
    """R24."""
    pytest.importorskip("deepspeed")
    spawn(1, tmp_path, (deepspeed_zero, str(tmp_path / "sentence")))
    record_property("sentence", (tmp_path / "sentence").read_text())


@pytest.mark.cell("DeepSpeed", "flat or master copies (ZeRO, Megatron)", "refused")
def test_an_optimizer_of_copies_is_refused(record_property: Callable) -> None:
    """R24."""
    model = network()
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).requires_grad_()
    with pytest.raises(weightcast.InvalidArgumentError) as error:
        weightcast.attach(model, torch.optim.AdamW([flat]))
    record_property("sentence", str(error.value))
