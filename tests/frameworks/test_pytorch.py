"""PyTorch's own features, each as a script that is run under `attach` and by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, parametrizations
from torch.optim import lr_scheduler, swa_utils

import weightcast
from tests.frameworks.helpers import LR, STEPS, mean_square, network
from tests.frameworks.loops import (
    Attached,
    Loop,
    Script,
    Written,
    adversaries,
    batches,
    difference,
    gan_iteration,
    trained,
)
from tests.helpers import same, weights
from tests.oracles.by_hand import ByHand


def double(*layers: nn.Module) -> nn.Sequential:
    """In float64."""
    return nn.Sequential(*layers).double()


def normalised() -> nn.Sequential:
    """With BatchNorm, and no bias before it, whose gradient would be rounding alone."""
    return double(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


# --- the network ---------------------------------------------------------------------------------


def tied_weights(loop: Loop) -> nn.Module:
    model = double(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    model[2].weight = model[0].weight
    return trained(loop, model)


def shared_submodules(loop: Loop) -> nn.Module:
    layer = nn.Linear(3, 3)
    return trained(loop, double(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(3, 1)))


def weight_norm(loop: Loop) -> nn.Module:
    layer = parametrizations.weight_norm(nn.Linear(3, 4))
    return trained(loop, double(layer, nn.Tanh(), nn.Linear(4, 1)))


def spectral_norm(loop: Loop) -> nn.Module:
    """Its vectors advance in every training forward, without gradients."""
    layer = parametrizations.spectral_norm(nn.Linear(3, 4))
    return trained(loop, double(layer, nn.Tanh(), nn.Linear(4, 1)))


def batch_norm(loop: Loop) -> nn.Module:
    """R12: the statistics are those of the forecast."""
    return trained(loop, normalised())


def recurrent(loop: Loop) -> nn.Module:
    model = nn.LSTM(1, 4, batch_first=True, proj_size=1).double()
    return trained(loop, model, forward=lambda x: model(x.unsqueeze(2))[0][:, -1])


def frozen_parameters(loop: Loop) -> nn.Module:
    model = network()
    model[0].weight.requires_grad_(False)
    return trained(loop, model)


def late_parameters(loop: Loop) -> nn.Module:
    """Frozen at first, then with a parameter group of their own."""
    model = network()
    head, body = list(model[2].parameters()), list(model[0].parameters())
    running = loop(model, torch.optim.AdamW(head, lr=LR, weight_decay=0.0))
    for count, (x, y) in enumerate(batches()):
        if count == 4:
            running.add_group({"params": body, "lr": LR / 2})

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            mean_square(model, x, y).backward()

        model.zero_grad()
        running.iterate(backward)
    return model


# --- the loop ------------------------------------------------------------------------------------


def clipping(loop: Loop) -> nn.Module:
    model = network()

    def clip() -> None:
        clip_grad_norm_(model.parameters(), 0.3)
        clip_grad_value_(model.parameters(), 0.1)

    return trained(loop, model, before_step=clip)


def ema(loop: Loop) -> nn.Module:
    """R6."""
    model = network()
    average = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.8))
    trained(loop, model, after_step=lambda: average.update_parameters(model))
    return average


def swa(loop: Loop) -> nn.Module:
    """R12: `update_bn` gathers the statistics of the average, and so can it those of θ."""
    model = normalised()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    average, scheduler = swa_utils.AveragedModel(model), swa_utils.SWALR(optimizer, 0.01, 3)

    def update() -> None:
        average.update_parameters(model)
        scheduler.step()

    trained(loop, model, optimizer=optimizer, after_step=update)
    for averaged_or_not in (average, model):
        swa_utils.update_bn((x for x, _ in batches(1)), averaged_or_not)
    return nn.ModuleList([average, model])


def functional(loop: Loop) -> nn.Module:
    model = network()
    own = dict(model.named_parameters())
    return trained(loop, model, forward=lambda x: functional_call(model, own, (x,)))


def per_sample_gradients(loop: Loop) -> nn.Module:
    """torch.func transforms nothing that is written to: the context manager is around them."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    running = loop(model, optimizer)
    predicted = running.prediction.predicted if loop is Attached else torch.enable_grad

    def loss(own: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (functional_call(model, own, (x,)) - y).square().mean()

    for x, y in batches():

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            with predicted():
                own = {name: p.detach() for name, p in model.named_parameters()}
                each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(own, x, y)
            for name, p in model.named_parameters():
                p.grad = (each[name].clamp(-0.5, 0.5)).mean(0)

        running.iterate(backward)
    return model


def several_optimizers(loop: Loop) -> nn.Module:
    """Each with a forecast of its own part."""
    model = network()
    body = loop(model, torch.optim.AdamW(model[0].parameters(), lr=LR))
    head = loop(model, torch.optim.SGD(model[2].parameters(), lr=LR, momentum=0.9))
    for x, y in batches():

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            mean_square(model, x, y).backward()

        body.iterate(lambda backward=backward: head.iterate(backward))
    return model


# --- forwards without gradients ------------------------------------------------------------------


def teacher_pass(loop: Loop) -> nn.Module:
    """Self-training: targets from the same weights, between forward and backward."""
    model = network()

    def against_itself(x: Tensor) -> Tensor:
        output = model(x)
        with torch.no_grad():
            target = model(-x)
        return output + target

    return trained(loop, model, forward=against_itself)


def reference_pass(loop: Loop) -> nn.Module:
    """As DPO with one model: what the true weights say, between forward and backward."""
    model = network()
    running = loop(model, torch.optim.AdamW(model.parameters(), lr=LR))
    for x, y in batches():

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            output = model(x)
            reference = running.evaluate(x)
            ((output - y).square() + 0.3 * (output - reference).square()).mean().backward()

        running.iterate(backward)
    return model


def evaluation_within_an_accumulation(loop: Loop) -> nn.Module:
    """An early metric per micro-batch, before its backward."""
    model = network()
    running = loop(model, torch.optim.AdamW(model.parameters(), lr=LR))
    seen = []
    for _ in range(3):

        def backward() -> None:
            for x, y in batches(1):
                loss = mean_square(model, x, y) / 4
                seen.append(running.evaluate(x))
                loss.backward()

        running.iterate(backward)
    model.register_buffer("seen", torch.stack(seen))
    return model


def rollouts(loop: Loop) -> nn.Module:
    """Reinforcement learning: the policy that acts is the true one, in training mode too."""
    model = network()
    running = loop(model, torch.optim.AdamW(model.parameters(), lr=LR))
    for x, _ in batches():
        with torch.no_grad():
            actions = model(x) + torch.randn(len(x), 1, dtype=torch.float64)
            rewards = -(actions - x.sum(1, keepdim=True)).square()

        def backward(x: Tensor = x, a: Tensor = actions, r: Tensor = rewards) -> None:
            ((model(x) - a).square() * r.exp()).mean().backward()

        running.iterate(backward)
    return model


def gan(loop: Loop, gradient_free_half: bool = False) -> nn.Module:
    """Two models with two optimizers; the generator's loss goes through the discriminator."""
    nets = adversaries()
    running = [loop(net, torch.optim.AdamW(net.parameters(), lr=LR)) for net in nets]
    for noise, real in batches():
        gan_iteration(nets, running, noise, real, gradient_free_half)
    return nets


def gan_with_a_gradient_free_half(loop: Loop) -> nn.Module:
    return gan(loop, gradient_free_half=True)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=pytest.mark.cell("PyTorch", feature, *how), id=script.__name__)
        for script, feature, *how in [
            (tied_weights, "tied weights"),
            (shared_submodules, "shared submodules"),
            (weight_norm, "weight_norm"),
            (spectral_norm, "spectral_norm"),
            (batch_norm, "BatchNorm"),
            (recurrent, "LSTM"),
            (frozen_parameters, "frozen parameters"),
            (late_parameters, "parameters added late"),
            (clipping, "clip_grad_norm_, clip_grad_value_"),
            (ema, "EMA (AveragedModel)"),
            (swa, "SWA (AveragedModel, SWALR, update_bn)"),
            (functional, "functional_call"),
            (per_sample_gradients, "torch.func.grad and vmap", "`prediction.predicted()`"),
            (several_optimizers, "several optimizers on one model", "attach each"),
            (teacher_pass, "a teacher pass under no_grad before backward"),
            (reference_pass, "an evaluation between forward and backward (DPO)"),
            (evaluation_within_an_accumulation, "an evaluation within an accumulation"),
            (rollouts, "rollouts under no_grad in training mode"),
            (gan, "two models with two optimizers (GAN)", "attach each"),
            (gan_with_a_gradient_free_half, "the half of a GAN under no_grad", "attach each"),
        ]
    ],
)
def test_a_script_under_attach_equals_it_by_hand(script: Script) -> None:
    assert difference(script) < 1e-13


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.8)]
    ),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.8)], [3]
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.01, 3),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")  # SequentialLR's own
@pytest.mark.cell("PyTorch", "every scheduler of torch.optim")
def test_a_scheduler(name: str) -> None:
    """R13: the forecast is made at the learning rate in force when the forward starts."""

    def script(loop: Loop) -> nn.Module:
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
        scheduler = SCHEDULERS[name](optimizer)
        metric = [1.0] if name == "ReduceLROnPlateau" else []
        step = lambda: scheduler.step(*metric)  # noqa: E731
        return trained(loop, model, optimizer=optimizer, after_step=step)

    assert difference(script) < 1e-13


@pytest.mark.cell("PyTorch", "schedulers that cycle β₁ too", "attach; Δ is that of the present β₁")
def test_a_scheduler_of_betas() -> None:
    """R13: what holds for the learning rate holds for the betas: those in force count."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    prediction = weightcast.attach(model, optimizer, STEPS)
    scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
    for t, (x, y) in enumerate(batches(1), 1):
        optimizer.zero_grad()
        mean_square(model, x, y).backward()
        optimizer.step()
        scheduler.step()
        (group,) = optimizer.param_groups
        beta1, beta2 = group["betas"]
        for p, delta in prediction.displacements():
            m, v = optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"]
            expected = group["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + 1e-8)
            torch.testing.assert_close(delta, expected, rtol=0, atol=1e-14)


def test_no_scheduler_is_missing() -> None:
    base = lr_scheduler.LRScheduler
    found = [c for c in vars(lr_scheduler).values() if isinstance(c, type) and issubclass(c, base)]
    assert {c.__name__ for c in found} - {"LRScheduler", "_LRScheduler"} <= {*SCHEDULERS}


@pytest.mark.cell("PyTorch", "an optimizer for each parameter, stepped in backward", "attach each")
def test_an_optimizer_in_backward() -> None:
    """The pattern of torch's tutorial, by register_post_accumulate_grad_hook."""
    model, expected = network(), network()
    optimizers = {p: torch.optim.AdamW([p], lr=LR) for p in model.parameters()}

    def step(p: Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p, optimizer in optimizers.items():
        weightcast.attach(model, optimizer, STEPS)
        p.register_post_accumulate_grad_hook(step)
    by_hand = ByHand(torch.optim.AdamW(expected.parameters(), lr=LR), STEPS, decoupled=True)
    for x, y in batches():
        mean_square(model, x, y).backward()
        by_hand.iterate(lambda x=x, y=y: mean_square(expected, x, y).backward())
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("step", marks=pytest.mark.cell("PyTorch", "torch.compile of the step")),
        pytest.param("both", marks=pytest.mark.cell("PyTorch", "torch.compile of model and step")),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("error::weightcast.PredictionWarning")
def test_compiled_steps(what: str) -> None:
    """R27; tests/test_engines.py has the model alone, with inductor."""
    torch._dynamo.reset()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    weightcast.attach(model, optimizer, STEPS)

    def iterate(x: Tensor, y: Tensor) -> None:
        mean_square(model, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()

    step = torch.compile(optimizer.step, backend="aot_eager")
    whole = torch.compile(iterate, backend="aot_eager")
    for x, y in batches():
        if what == "both":
            whole(x, y)
        else:
            optimizer.zero_grad()
            mean_square(model, x, y).backward()
            step()
    expected = trained(Written, network())
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        # compiled, torch corrects the bias of the moments in float32
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
    assert same(weights(model.eval()), weights(model))
