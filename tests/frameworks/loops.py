"""One script, two ways to run it: under `attach`, and with Algorithm 1 written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import weightcast
from tests.frameworks.helpers import BATCH, STEPS, mean_square, network, problem
from tests.oracles.by_hand import ByHand, last_displacement


class Attached:
    """A user's loop."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.prediction = weightcast.attach(model, optimizer, STEPS)

    def iterate(self, backward: Callable[[], Any]) -> None:
        self.optimizer.zero_grad()
        backward()
        self.optimizer.step()

    def forecast(self) -> AbstractContextManager[None]:
        """Around a training forward that is not followed by a step: it predicts by itself."""
        return nullcontext()

    @torch.no_grad()
    def evaluate(self, *inputs: Tensor) -> Tensor:
        """What the model says in eval mode."""
        output = self.model.eval()(*inputs)
        self.model.train()
        return output

    def add_group(self, group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(group)


class Written:
    """The same by hand. The weights are where the algorithm says, nothing of weightcast is used."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.by_hand = ByHand(optimizer, STEPS, decoupled=True)
        self.iterate, self.forecast = self.by_hand.iterate, self.by_hand.forecast

    @torch.no_grad()
    def evaluate(self, *inputs: Tensor) -> Tensor:
        """Within an iteration: at θ, beside the weights."""
        names = [name for name, _ in self.model.named_parameters()]
        theta = dict(zip(names, self.by_hand.true, strict=True))
        output = functional_call(self.model.eval(), theta, inputs)
        self.model.train()
        return output

    def scaled(self, scaler: torch.amp.GradScaler, loss: Callable[[], Tensor]) -> bool:
        """One iteration under a scaler; whether it skipped the step, which then never was."""
        with self.forecast():
            self.optimizer.zero_grad()
            scaler.scale(loss()).backward()
        scaler.unscale_(self.optimizer)
        skipped = not all(p.grad.isfinite().all() for p in self.by_hand.params)
        scaler.step(self.optimizer)
        scaler.update()
        if not skipped:
            self.by_hand.per_lr = last_displacement(self.optimizer, self.by_hand.true, True)
        return skipped

    def add_group(self, group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(group)
        assert self.by_hand.per_lr is not None
        self.by_hand.per_lr += [torch.zeros_like(p) for p in group["params"]]


Loop = type[Attached] | type[Written]
Script = Callable[[Loop], nn.Module]


def batches(epochs: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(epochs):
        yield from zip(*(t.split(BATCH) for t in problem()), strict=True)


def trained(
    loop: Loop,
    model: nn.Module,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    before_step: Callable[[], Any] = lambda: None,
    after_step: Callable[[], Any] = lambda: None,
) -> nn.Module:
    """The model after two epochs of regression."""
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.0)
    running = loop(model, optimizer)
    for x, y in batches():

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            mean_square(forward or model, x, y).backward()
            before_step()

        running.iterate(backward)
        after_step()
    return model


def adversaries() -> nn.ModuleList:
    """A generator and its discriminator, always with the same initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        discriminator = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    return nn.ModuleList([network(), discriminator.double()])


def gan_iteration(
    nets: nn.ModuleList,
    running: list[Any],
    noise: Tensor,
    real: Tensor,
    gradient_free_half: bool = False,
) -> None:
    """One step of a discriminator, then one of its generator; each is run by a loop of its own."""
    (generator, discriminator), (g, d) = nets, running

    def judged(samples: Tensor, verdict: float) -> Tensor:
        logits = discriminator(samples)
        expected = torch.full_like(logits, verdict)
        return nn.functional.binary_cross_entropy_with_logits(logits, expected)

    def tell_apart(fake: Tensor) -> None:
        (judged(real, 1.0) + judged(fake, 0.0)).backward()

    def deceive() -> None:
        fake = generator(noise)
        if not gradient_free_half:
            d.iterate(lambda: tell_apart(fake.detach()))
        with d.forecast():
            judged(fake, 1.0).backward()

    if gradient_free_half:
        with torch.no_grad():
            fake = generator(noise)
        d.iterate(lambda: tell_apart(fake))
    g.iterate(deceive)


def difference(script: Script) -> float:
    """The largest one between weights and buffers of the two ways to run a script."""
    ends = []
    for loop in (Attached, Written):
        torch.manual_seed(0)
        ends.append(script(loop).state_dict().values())  # saved at θ
    gaps = ((plain(a) - plain(b)).abs() for a, b in zip(*ends, strict=True))
    return max(gap.max().item() for gap in gaps if gap.numel())


def plain(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
