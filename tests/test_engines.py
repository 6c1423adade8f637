"""Autocast, gradient scaling, checkpointing, compilation and data parallelism."""

import copy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import weightcast
from tests.helpers import (
    Recorder,
    attached,
    data,
    forecast,
    nothing_waits_for_the_device,
    same,
    train,
    weights,
)
from tests.processes import spawn


class Plain(torch.nn.Sequential):
    """Without the recorder's side effects, for compilers."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(
            torch.nn.Linear(3, 4, dtype=dtype),
            torch.nn.Tanh(),
            torch.nn.Linear(4, 1, dtype=dtype),
        )


@pytest.mark.cell("PyTorch", "autocast")
def test_an_outer_autocast_region_forgets_its_casts(device: torch.device) -> None:
    """R8: the low-precision copy of a weight is made anew after every move."""
    model = torch.nn.Linear(3, 3, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    weightcast.attach(model, optimizer, 5)
    x = torch.ones(2, 3, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).float().sum().backward()
            optimizer.step()
        true = model.eval()(x)
        hat = model.train()(x)
        weight, bias = (w.bfloat16() for w in weights(model))
        again = model.eval()(x)
    assert torch.equal(hat, torch.nn.functional.linear(x.bfloat16(), weight, bias))
    assert not torch.equal(true, hat)
    assert torch.equal(true, again)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.cell("PyTorch", "GradScaler, with overflows")
def test_a_skipped_step_neither_compounds_nor_loses(
    device: torch.device, fused: bool, optimizer_class: type
) -> None:
    """R7, invariant 5: real overflows under GradScaler; SGD's Δ is observed.

    A fused step under a scaler is called and skips inside (`_step_supports_amp_scaling`).
    """
    model = Recorder(torch.float32).to(device)
    optimizer = optimizer_class(model.parameters(), lr=0.05, fused=fused)
    prediction = weightcast.attach(model, optimizer, 2)
    train(model, optimizer, 3)
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    theta, hat = weights(model), forecast(prediction, model, 2)
    for overflow in (True, True, False):
        optimizer.zero_grad()
        loss = model(data(model)).square().mean()
        for seen, expected in zip(model.seen[-1], hat, strict=True):
            torch.testing.assert_close(seen, expected, rtol=0, atol=1e-6)
        scaler.scale(loss * (torch.inf if overflow else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert same(list(model.state_dict().values()), theta)
            assert same(weights(model.eval()), theta)
            model.train()
    assert not same(weights(model), theta)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.cell(
    "PyTorch",
    "EMA after a step that GradScaler skipped",
    "a fused optimizer, or `prediction.restore()` before",
)
def test_an_average_after_a_skipped_step_is_one_of_true_weights(fused: bool) -> None:
    """R6, R7: an unfused optimizer does not hear of the skip: `restore()` before the update."""
    model = Recorder(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    prediction = weightcast.attach(model, optimizer, 2)
    train(model, optimizer, 3)
    theta, average = weights(model), torch.optim.swa_utils.AveragedModel(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(model(data(model)).sum() * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    if not fused:
        assert prediction.is_predicted
        prediction.restore()
    average.update_parameters(model)
    assert same(weights(average.module), theta)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_first_step_predicts_nothing(device: torch.device, fused: bool) -> None:
    """R3, R7: a fused step leaves a state that is all zero; its displacement is 0, not 0/0."""
    model = Recorder(torch.float32).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=fused)
    prediction = weightcast.attach(model, optimizer, 2)
    theta = weights(model)
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    scaler.scale(model(data(model)).sum() * torch.inf).backward()
    scaler.step(optimizer)
    model(data(model))
    assert same(model.seen[-1], theta)
    assert not any(delta.any() for _, delta in prediction.displacements())


def test_a_closure_under_an_enabled_scaler_fails_loudly() -> None:
    """R21: torch's own refusal comes through, and the weights are true."""
    model, optimizer, prediction = attached(dtype=torch.float32)
    theta = weights(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(data(model)).sum()).backward()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: None)
    prediction.restore()
    assert same(weights(model), theta)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.cell("PyTorch", "activation checkpointing")
def test_activation_checkpointing_recomputes_at_the_forecast(reentrant: bool) -> None:
    """R4: the same gradient as without checkpointing."""

    class Checkpointed(Recorder):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = checkpoint(
                lambda h: torch.tanh(self.first(h)), x.requires_grad_(), use_reentrant=reentrant
            )
            return self.second(hidden)

    plain, optimizer, _ = attached()
    model = Checkpointed()
    model.load_state_dict(plain.state_dict())
    twin = torch.optim.AdamW(model.parameters(), lr=0.05)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weightcast.attach(model, twin, 2)
    train(plain, optimizer)
    train(model, twin)
    assert same(weights(model), weights(plain))


def test_a_reentrant_checkpoint_of_the_attached_module_is_reported() -> None:
    """Its forward keeps no graph, like a rollout's: the one in the backward is at θ too."""
    model, optimizer, earlier = attached()
    earlier.detach()
    prediction = weightcast.attach(model, optimizer, 2)
    with pytest.warns(weightcast.PredictionWarning, match="done nothing so far"):
        for seed in range(2):
            optimizer.zero_grad()
            model.seen.clear()
            x = data(model, seed).requires_grad_()
            checkpoint(model, x, use_reentrant=True).square().mean().backward()
            first, again = model.seen
            assert same(first, again)
            assert not prediction.is_predicted
            optimizer.step()


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=needs_compiler)])
@pytest.mark.parametrize("attach_to", ["model", "compiled"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles")  # torch 2.6
@pytest.mark.filterwarnings("ignore:Guards may run slower")  # Python 3.13.0
@pytest.mark.cell("PyTorch", "torch.compile of the model")
def test_compiled_models_run_at_the_forecast(backend: str, attach_to: str) -> None:
    """R27: the same weights as without torch.compile, and no recompilation in the loop."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, plain = Plain(), Plain()
    plain.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend=backend)
    runs = []
    for module, forward in ((plain, plain), (model, compiled)):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
        target = forward if attach_to == "compiled" else module
        prediction = weightcast.attach(target, optimizer, 2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        compiled_before = None
        for iteration in range(8):
            optimizer.zero_grad()
            forward(data(module, iteration)).square().mean().backward()
            assert prediction.is_predicted
            optimizer.step()
            scheduler.step()
            if iteration == 3:
                compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        runs.append((module, compiled_before, torch._dynamo.utils.counters["stats"]))
    _, before, stats = runs[-1]
    assert before == stats["unique_graphs"]
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert same(weights(compiled.eval()), weights(model))


@pytest.mark.parametrize("way", ["export", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.cell("PyTorch", "torch.export, torch.jit.trace")
def test_an_exported_model_is_at_the_true_weights(way: str) -> None:
    """Exporting shows the hooks stand-ins of the weights: moving those would lose the real."""
    torch._dynamo.reset()
    model = Plain(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer, 2)
    train(model, optimizer)
    theta, x = weights(model), data(model)

    def export() -> torch.nn.Module:
        if way == "trace":
            return torch.jit.trace(model, x)
        return torch.export.export(model, (x,), strict=False).module()

    for mode in (True, False):
        assert same([p.detach() for p in export().parameters()], theta)
        model.train(mode)
    model.train()(x)
    with pytest.raises(weightcast.WeightcastError, match=r"call prediction\.restore\(\) first"):
        export()
    prediction.restore()
    assert same(weights(model), theta)
    assert same([p.detach() for p in export().parameters()], theta)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_part_is_trained_and_saved_with_the_model() -> None:
    """It takes no hooks; so a whole that is scripted is refused, before anything is hooked."""
    plain = Plain(torch.float64)
    model = copy.deepcopy(plain)
    model[0] = torch.jit.script(model[0])
    for network in (plain, model):
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.05)
        prediction = weightcast.attach(network, optimizer, 2)
        train(network, optimizer)
    assert same(weights(model), weights(plain))
    theta = weights(model)
    for read in (copy.deepcopy, lambda model: model.load_state_dict(model.state_dict()) and model):
        model(data(model))
        assert not same(weights(model), theta)
        assert same(weights(read(model)), theta)
    prediction.detach()
    with pytest.raises(TypeError, match=r"an unscripted Module, got RecursiveScriptModule"):
        weightcast.attach(torch.jit.script(model), optimizer)
    assert not optimizer._optimizer_state_dict_pre_hooks


def _data_parallel(rank: int, folder: str, *, wrap_first: bool) -> None:
    torch.manual_seed(0)
    model = Plain(torch.float64)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.05)
    weightcast.attach(parallel if wrap_first else model, optimizer, 2)
    for iteration in range(4):
        optimizer.zero_grad()
        batch = data(model, iteration)[4 * rank : 4 * rank + 4]
        parallel(batch).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")


@pytest.mark.parametrize("wrap_first", [True, False])
@pytest.mark.cell("DDP", "training")
def test_data_parallel_equals_one_process(tmp_path: Path, wrap_first: bool) -> None:
    """R25: identical state on all ranks, identical forecasts; attached outside or inside of DDP."""
    spawn(2, tmp_path, (partial(_data_parallel, wrap_first=wrap_first), str(tmp_path)))
    torch.manual_seed(0)
    model = Plain(torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    weightcast.attach(model, optimizer, 2)
    train(model, optimizer, 4)
    for rank in range(2):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, p in model.state_dict().items():
            torch.testing.assert_close(theirs[name], p, rtol=0, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_synchronisation_on_the_hot_path() -> None:
    """Invariant 8, R27: CUDA raises on any synchronising call in the loop."""
    model = Plain().cuda()
    lr = torch.tensor(0.01, device="cuda")
    for optimizer in (
        torch.optim.AdamW(model.parameters(), lr=lr, capturable=True),
        torch.optim.AdamW(model.parameters(), fused=True),
        torch.optim.NAdam(model.parameters()),
    ):
        prediction = weightcast.attach(model, optimizer, 2)
        train(model, optimizer, 3)
        batches = [data(model, seed) for seed in range(3)]
        with nothing_waits_for_the_device():
            for batch in batches:
                optimizer.zero_grad()
                model(batch).square().mean().backward()
                optimizer.step()
        prediction.detach()


@pytest.mark.cell("PyTorch", "CUDA graphs")
def test_a_captured_training_step_replays_the_prediction() -> None:
    """R9: buffers keep their addresses, so forward, backward and step fit into a CUDA graph."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    torch.manual_seed(0)
    model, plain = Plain().cuda(), Plain().cuda()
    plain.load_state_dict(model.state_dict())
    optimizers = [
        torch.optim.AdamW(m.parameters(), lr=0.05, capturable=True) for m in (model, plain)
    ]
    for module, optimizer in zip((model, plain), optimizers, strict=True):
        weightcast.attach(module, optimizer, 2)
    x = data(model)

    def step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        module(x).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(model, optimizers[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, optimizers[0])
    for _ in range(5):
        graph.replay()
    for _ in range(8):
        step(plain, optimizers[1])
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
