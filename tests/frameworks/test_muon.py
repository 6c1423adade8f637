"""torch.optim.Muon for the hidden matrices and AdamW for the rest, both attached to one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import weightcast
from tests.frameworks.helpers import mean_square
from tests.frameworks.loops import Loop, batches, difference
from tests.frameworks.test_distributed import OLD, ranks_batches
from tests.processes import spawn

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")


def deep() -> nn.Sequential:
    """Always the same initial weights; one hidden matrix."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    return nn.Sequential(*layers).double()


def optimizers(
    model: nn.Module, *, nesterov: bool
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    inside = "2.weight"
    hidden = [p for name, p in model.named_parameters() if name.endswith(inside)]
    rest = [p for name, p in model.named_parameters() if not name.endswith(inside)]
    assert len(hidden) == 1
    muon = torch.optim.Muon(hidden, lr=0.05, weight_decay=0.0, nesterov=nesterov)
    return muon, torch.optim.AdamW(rest, lr=0.05, weight_decay=0.0)


def script(
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    nesterov: bool = False,
    data: Callable = batches,
) -> Callable[[Loop], nn.Module]:
    """Both optimizers step in every iteration, each in a loop of its own around the other's."""

    def run(loop: Loop) -> nn.Module:
        model = wrap(deep())
        muon, adamw = optimizers(model, nesterov=nesterov)
        outer, inner = loop(model, muon), loop(model, adamw)
        for x, y in data():

            def backward(x: torch.Tensor = x, y: torch.Tensor = y) -> None:
                mean_square(model, x, y).backward()

            outer.iterate(lambda backward=backward: inner.iterate(backward))
        return model

    return run


@pytest.mark.parametrize("nesterov", [False, True])
def test_two_optimizers_of_one_model_equal_algorithm_1(nesterov: bool) -> None:
    # θ̂ differs by rounding in float64; Muon's iteration works in bfloat16, where that is invisible
    # unless a value happens to lie at the border between two
    assert difference(script(nesterov=nesterov)) < 1e-3


def test_without_steps_both_are_torchs_own() -> None:
    """R10, bit for bit."""

    def run(attached: bool) -> nn.Module:
        model = deep()
        pair = optimizers(model, nesterov=True)
        if attached:
            for optimizer in pair:
                weightcast.attach(model, optimizer, steps=0)
        for x, y in batches():
            for optimizer in pair:
                optimizer.zero_grad()
            mean_square(model, x, y).backward()
            for optimizer in pair:
                optimizer.step()
        return model

    for a, b in zip(run(True).parameters(), run(False).parameters(), strict=True):
        assert torch.equal(a, b)


def test_all_that_is_saved_between_steps_is_true() -> None:
    """R6, R16: a checkpoint between the forward and the steps, and between the two steps."""
    model = deep()
    pair = optimizers(model, nesterov=False)
    for optimizer in pair:
        weightcast.attach(model, optimizer, steps=3)
    for x, y in batches():
        theta = [p.detach().clone() for p in model.parameters()]
        loss = mean_square(model, x, y)
        loss.backward()
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), theta, strict=True)
        )
        pair[0].step()
        saved = model.state_dict()
        changed = [not torch.equal(a, b) for a, b in zip(saved.values(), theta, strict=True)]
        assert changed == [name == "2.weight" for name in saved]
        pair[1].step()
        for optimizer in pair:
            optimizer.zero_grad()


def data_parallel(rank: int, _: str) -> None:
    wrap = nn.parallel.DistributedDataParallel
    assert difference(script(wrap, data=lambda: ranks_batches(rank))) < 1e-3


def sharded(rank: int, _: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))

    def wrap(model: nn.Module) -> nn.Module:
        for module in (model[2], model):
            fully_shard(module, mesh=mesh)
        return model

    assert difference(script(wrap, data=lambda: ranks_batches(rank))) < 1e-3


@pytest.mark.skipif(OLD, reason="FSDP2 needs an accelerator before torch 2.8")
def test_two_processes_equal_algorithm_1(tmp_path: Path) -> None:
    """R25: under DDP, and with FSDP2's DTensors."""
    spawn(2, tmp_path, (data_parallel, ""), (sharded, ""))


def test_what_is_observed_is_the_orthogonalised_momentum() -> None:
    """So a rule that computes it again would say the same, only later."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False)
    muon = torch.optim.Muon(
        model.parameters(), lr=0.05, nesterov=False, adjust_lr_fn="match_rms_adamw"
    )
    prediction = weightcast.attach(model, muon, steps=3)
    for _ in range(3):
        muon.zero_grad()
        model(torch.randn(5, 6)).square().mean().backward()
        muon.step()
    momentum = muon.state[model.weight]["momentum_buffer"]
    group = muon.param_groups[0]
    settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
    update = _zeropower_via_newtonschulz(momentum, *settings).float()
    ((_, delta),) = prediction.displacements()
    decayed = 0.05 * group["weight_decay"] / (1 - 0.05 * group["weight_decay"])
    expected = 0.05 * 0.2 * 6**0.5 * update
    # observed displacements include decoupled weight decay
    expected = expected + decayed * (model.weight.detach() + expected)
    torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)
