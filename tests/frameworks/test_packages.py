"""Packages around an optimizer or its weights, as they are: each against Algorithm 1 by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightcast
from tests.frameworks.helpers import STEPS, mean_square, network
from tests.frameworks.loops import Attached, Loop, Written, batches, difference, trained
from tests.frameworks.test_trainers import SENTENCES, trainable, with_adapters

pytestmark = [  # the packages' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]


# --- steps that are more than one ----------------------------------------------------------------


def sharpness_aware(model: nn.Module) -> Any:
    package = pytest.importorskip("pytorch_optimizer")
    return package.SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9, rho=0.05)


def by_sharpness(model: nn.Module, optimizer: Any, way: str, x: Tensor, y: Tensor) -> None:
    """An iteration as the package documents it, in both ways."""

    def backward() -> Tensor:
        loss = mean_square(model, x, y)
        loss.backward()
        return loss

    optimizer.zero_grad()
    backward()
    if way == "step(closure)":
        optimizer.step(backward)
    else:
        optimizer.first_step(zero_grad=True)
        backward()
        optimizer.second_step(zero_grad=True)


@pytest.mark.cell("pytorch_optimizer", "SAM")
@pytest.mark.parametrize("way", ["step(closure)", "first_step and second_step"])
def test_sam(way: str) -> None:
    """It climbs from the forecast, and Δ is what its base subtracts."""
    model, expected = network(), network()
    optimizer, other = sharpness_aware(model), sharpness_aware(expected)
    weightcast.attach(model, optimizer, STEPS)
    params = list(expected.parameters())
    deltas = [torch.zeros_like(p) for p in params]
    for x, y in batches():
        by_sharpness(model, optimizer, way, x, y)
        with torch.no_grad():
            for p, delta in zip(params, deltas, strict=True):
                p.sub_(STEPS * delta)
        hat = [p.detach().clone() for p in params]
        by_sharpness(expected, other, way, x, y)
        steps = [h - p.detach() for h, p in zip(hat, params, strict=True)]
        with torch.no_grad():  # θ - Δ, from θ̂ - Δ
            for p, delta in zip(params, deltas, strict=True):
                p.add_(STEPS * delta)
        deltas = steps
        for p, q in zip(model.parameters(), params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.cell("pytorch_optimizer", "Lookahead", "attach to the optimizer inside")
@pytest.mark.parametrize("base", [torch.optim.AdamW, torch.optim.SGD])
def test_lookahead(base: type) -> None:
    """It runs no hooks; Δ is what its base subtracts, θ where every second step interpolates to."""
    package = pytest.importorskip("pytorch_optimizer")
    model, expected = network(), network()
    inner, other = (base(m.parameters(), lr=0.05, weight_decay=0.0) for m in (model, expected))
    ours, by_hand = (package.Lookahead(one, k=2) for one in (inner, other))
    with pytest.raises(weightcast.UnsupportedOptimizerError, match="Attach the optimizer that it"):
        weightcast.attach(model, ours)
    weightcast.attach(model, inner, STEPS)
    params = list(expected.parameters())
    deltas = [torch.zeros_like(p) for p in params]
    before = [p.detach().clone() for p in params]

    def observe(*_: Any) -> None:
        deltas[:] = [b - p.detach() for b, p in zip(before, params, strict=True)]

    other.register_step_post_hook(observe)
    for x, y in batches():
        ours.zero_grad()
        mean_square(model, x, y).backward()
        ours.step()
        before[:] = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p, delta in zip(params, deltas, strict=True):
                p.sub_(STEPS * delta)
        by_hand.zero_grad()
        mean_square(expected, x, y).backward()
        with torch.no_grad():
            for p, theta in zip(params, before, strict=True):
                p.copy_(theta)
        by_hand.step()
        for p, q in zip(model.parameters(), params, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.cell("timm", "Adahessian")
def test_adahessian() -> None:
    """R4: its step differentiates the gradient again, where that was taken."""
    cls = pytest.importorskip("timm.optim.adahessian").Adahessian

    def script(loop: Loop) -> nn.Module:
        torch.manual_seed(0)
        model = network()
        optimizer = cls(model.parameters(), lr=0.05)
        if loop is Attached:
            weightcast.attach(model, optimizer, STEPS)
        params = list(model.parameters())
        deltas = [torch.zeros_like(p) for p in params]
        for x, y in batches():
            optimizer.zero_grad()
            if loop is Written:
                with torch.no_grad():
                    for p, delta in zip(params, deltas, strict=True):
                        p.sub_(STEPS * delta)
            mean_square(model, x, y).backward(create_graph=True)
            before = [p.detach().clone() for p in params]
            optimizer.step()
            if loop is Written:  # it went on from θ̂
                after = [p.detach().clone() for p in params]
                with torch.no_grad():
                    for p, delta in zip(params, deltas, strict=True):
                        p.add_(STEPS * delta)
                deltas = [b - a for b, a in zip(before, after, strict=True)]
            for p in params:
                p.grad = None
        return model

    assert difference(script) < 1e-10


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.cell("PEFT", "merge, save and unmerge between micro-batches")
def test_adapters_are_merged_and_unmerged() -> None:
    """R16: what is saved in between is merged of θ, and the frozen weights are as before."""
    merged: dict[type, list[Tensor]] = {Attached: [], Written: []}
    unchanged = []

    @contextmanager
    def at_theta(running: Any) -> Iterator[None]:
        """By hand: the weights as they are to be merged."""
        hat = [p.detach().clone() for p in running.by_hand.params]
        with torch.no_grad():
            for p, theta in zip(running.by_hand.params, running.by_hand.true, strict=True):
                p.copy_(theta)
            yield
            for p, h in zip(running.by_hand.params, hat, strict=True):
                p.copy_(h)

    def script(loop: Loop) -> nn.Module:
        model = with_adapters()
        frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
        running = loop(model, torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.0))

        def save() -> None:
            model.merge_adapter()
            state = model.state_dict()
            merged[loop] += [v.clone() for k, v in state.items() if "base_layer" in k]
            model.unmerge_adapter()

        for batch in SENTENCES.split(8):

            def backward(batch: Tensor = batch) -> None:
                first, second = batch.split(4)
                model(input_ids=first, labels=first).loss.backward()
                if loop is Written:
                    with at_theta(running):
                        save()
                else:
                    save()
                model(input_ids=second, labels=second).loss.backward()

            running.iterate(backward)
        params = dict(model.named_parameters())
        unchanged.append(max((params[n] - p).abs().max().item() for n, p in frozen.items()))
        return model

    assert difference(script) < 1e-12
    assert max(unchanged) < 1e-12
    assert merged[Attached]
    for ours, theirs in zip(merged[Attached], merged[Written], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# --- averages ------------------------------------------------------------------------------------


@pytest.mark.cell("ema-pytorch", "EMA.update()")
def test_an_average_of_ema_pytorch() -> None:
    """R6: after step(), it finds θ."""
    package = pytest.importorskip("ema_pytorch")

    def script(loop: Loop) -> nn.Module:
        model = network()
        ema = package.EMA(model, beta=0.9, update_after_step=0, update_every=1)
        trained(loop, model, after_step=ema.update)
        return nn.ModuleList([model, ema.ema_model])

    assert difference(script) < 1e-13


@pytest.mark.cell("Ignite", "Engine, with EMAHandler")
def test_an_average_of_ignite() -> None:
    """R6: at the end of an iteration, it finds θ."""
    pytest.importorskip("ignite")
    from ignite.engine import Engine, Events
    from ignite.handlers import EMAHandler

    def script(loop: Loop) -> nn.Module:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
        running = loop(model, optimizer)
        engine = Engine(lambda _, b: running.iterate(lambda: mean_square(model, *b).backward()))
        handler = EMAHandler(model, momentum=0.1)
        handler.attach(engine, event=Events.ITERATION_COMPLETED)
        engine.run(list(batches(1)), max_epochs=2)
        return nn.ModuleList([model, handler.ema_model])

    assert difference(script) < 1e-13
