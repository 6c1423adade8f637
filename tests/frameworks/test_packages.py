"""Other people's packages, unchanged: steps that are more than one, averages, merged adapters."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import weightcast
from tests.frameworks.helpers import (
    LR,
    STEPS,
    adamw,
    largest_difference,
    mean_square,
    network,
    trained_by_hand,
)
from tests.frameworks.loops import Attached, Loop, batches, difference
from tests.frameworks.test_distributed import OLD, compare, ranks_batches
from tests.frameworks.test_trainers import SENTENCES, trainable, with_adapters
from tests.helpers import same, weights
from tests.oracles.by_hand import ByHand
from tests.processes import spawn

pytestmark = [  # the packages' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]


def backward_of(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        model.zero_grad()
        loss = mean_square(model, x, y)
        loss.backward(**options)
        return loss

    return closure


# --- optimizers of several steps -----------------------------------------------------------------


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.cell("pytorch_optimizer", "SAM, by its step(closure)")
def test_sharpness_aware_steps(foreach: bool) -> None:
    """R21: it climbs from θ̂; its base goes from θ; Δ is what the base did."""
    sam_of = pytest.importorskip("pytorch_optimizer").SAM
    model = network()
    sam = sam_of(
        model.parameters(), torch.optim.AdamW, lr=LR, rho=0.1, weight_decay=0.0, foreach=foreach
    )
    prediction = weightcast.attach(model, sam, STEPS)
    for x, y in batches():
        closure = backward_of(model, x, y)
        closure()
        sam.step(closure)
        assert not prediction.is_predicted
    # its norm of the gradient is in float32
    assert largest_difference(model, sharpness_aware_by_hand()) < 1e-7


def sharpness_aware_by_hand() -> nn.Module:
    model = network()
    by_hand = ByHand(torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0), STEPS, True)
    for x, y in batches():
        closure = backward_of(model, x, y)

        @torch.no_grad()
        def climb(closure: Callable[[], Tensor] = closure) -> None:
            with torch.enable_grad():
                closure()
            gradients = [p.grad.clone() for p in model.parameters()]
            norm = torch.cat([g.flatten() for g in gradients]).norm() + 1e-12
            for p, g in zip(model.parameters(), gradients, strict=True):
                p.add_(g, alpha=(0.1 / norm).item())
            with torch.enable_grad():
                closure()

        by_hand.iterate(climb)
    return model


@pytest.mark.parametrize("base", ["AdamW", "NAdam"])
@pytest.mark.cell("pytorch_optimizer", "Lookahead", "attach to the optimizer inside")
def test_lookahead(base: str) -> None:
    """Each third step ends halfway to where the slow weights were; Δ is what the base did."""
    lookahead_of = pytest.importorskip("pytorch_optimizer").Lookahead
    cls = getattr(torch.optim, base)
    model, expected = network(), network()
    inner = cls(model.parameters(), lr=LR, weight_decay=0.0)
    optimizer = lookahead_of(inner, k=3, alpha=0.5)
    weightcast.attach(model, inner, STEPS)
    other = cls(expected.parameters(), lr=LR, weight_decay=0.0)
    by_hand = ByHand(other, STEPS, decoupled=False)
    slow = weights(expected)
    for k, (x, y) in enumerate(batches(3), 1):
        backward_of(model, x, y)()
        optimizer.step()
        by_hand.iterate(backward_of(expected, x, y))
        if k % 3 == 0:
            with torch.no_grad():
                torch._foreach_lerp_(list(expected.parameters()), slow, 0.5)
            slow = weights(expected)
    assert largest_difference(model, expected) < 1e-12


@pytest.mark.cell("pytorch_optimizer", "Lookahead itself", "refused")
def test_lookahead_itself_is_refused(record_property: Callable) -> None:
    lookahead_of = pytest.importorskip("pytorch_optimizer").Lookahead
    model = network()
    with pytest.raises(weightcast.UnsupportedOptimizerError) as error:
        weightcast.attach(model, lookahead_of(adamw(model)))
    record_property("sentence", str(error.value))


@pytest.mark.cell("timm", "Adahessian (`backward(create_graph=True)`)")
def test_a_step_that_needs_the_graph() -> None:
    """R4: its curvature is that at θ̂, as when it is taken beside the gradient, before θ is back."""
    adahessian_of = pytest.importorskip("timm.optim.adahessian").Adahessian
    model, expected = network(), network()
    optimizer = adahessian_of(model.parameters(), lr=LR)
    weightcast.attach(model, optimizer, STEPS)
    other = adahessian_of(expected.parameters(), lr=LR)
    by_hand = ByHand(other, STEPS, decoupled=False)
    for x, y in batches(1):
        backward_of(model, x, y, create_graph=True)()
        optimizer.step()

        def backward(x: Tensor = x, y: Tensor = y) -> None:
            backward_of(expected, x, y, create_graph=True)()
            type(other).zero_hessian(other)
            type(other).set_hessian(other)
            other.zero_hessian = other.set_hessian = lambda: None

        by_hand.iterate(backward)
        for p in (*model.parameters(), *expected.parameters()):
            p.grad = None  # the graph of a gradient holds the gradient
    assert largest_difference(model, expected) < 1e-12


# --- averages ------------------------------------------------------------------------------------


def ema_pytorch(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Callable]:
    package = pytest.importorskip("ema_pytorch")
    average = package.EMA(model, beta=0.8, update_after_step=0, update_every=1, power=1.0)
    return average.ema_model, average.update


def ignite(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Callable]:
    handlers, engine = map(pytest.importorskip, ("ignite.handlers", "ignite.engine"))
    average = handlers.EMAHandler(model, momentum=0.2)
    loop = engine.Engine(lambda *_: None)
    average.attach(loop, event=engine.Events.ITERATION_COMPLETED)
    return average.ema_model, lambda: loop.run([0])


def timm_ema(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Callable]:
    average = pytest.importorskip("timm.utils").ModelEmaV3(model, decay=0.8)
    return average.module, lambda: average.update(model)


@pytest.mark.parametrize("when", ["after step()", "at the forecast"])
@pytest.mark.parametrize(
    "package",
    [
        ema_pytorch,
        ignite,
        pytest.param(timm_ema, marks=pytest.mark.cell("timm", "ModelEmaV3")),
    ],
    ids=lambda maker: maker.__name__,
)
def test_an_average_of_the_true_weights(package: Callable, when: str) -> None:
    """R6: after the step by itself; elsewhere in `true_weights()`, with a backward that waits."""
    model, plain = network(), network()
    optimizer = adamw(model)
    prediction = weightcast.attach(model, optimizer, STEPS)
    average, update = package(model, optimizer)
    expected, update_plain = package(plain, optimizer)
    for x, y in batches():
        optimizer.zero_grad()
        theta = weights(model)
        loss = mean_square(model, x, y)
        if when == "at the forecast":
            with prediction.true_weights():
                assert same(weights(model), theta)
                update()
        loss.backward()
        optimizer.step()
        if when == "after step()":
            update()
            theta = weights(model)
        with torch.no_grad():
            for p, t in zip(plain.parameters(), theta, strict=True):
                p.copy_(t)
        update_plain()
        assert same(weights(average), weights(expected))
    assert largest_difference(model, trained_by_hand(2)) < 1e-14
    assert not same(weights(average), weights(model))


@pytest.mark.cell(
    "PyTorch", "target networks, by `prediction.true_weights()`", "`true_weights()` around it"
)
def test_a_polyak_target_while_a_backward_waits() -> None:
    """R6: at every update, between the critic's forward and its backward."""

    def script(loop: Loop) -> nn.Module:
        critic = network()
        target = copy.deepcopy(critic).requires_grad_(False)
        running = loop(critic, torch.optim.AdamW(critic.parameters(), lr=LR, weight_decay=0.0))
        for x, y in batches(3):

            def backward(x: Tensor = x, y: Tensor = y) -> None:
                loss = mean_square(critic, x, y + 0.5 * target(x))
                if isinstance(running, Attached):
                    with running.prediction.true_weights():
                        theta = weights(critic)
                else:
                    theta = running.by_hand.true
                torch._foreach_lerp_(list(target.parameters()), theta, 0.1)
                loss.backward()

            running.iterate(backward)
        return nn.ModuleList([critic, target])

    assert difference(script) < 1e-13


# --- adapters ------------------------------------------------------------------------------------


@pytest.mark.cell("PEFT", "merge, save, unmerge between micro-batches")
def test_adapters_are_merged_and_unmerged() -> None:
    """R16: what is merged is θ, and the frozen weights are as they were before."""
    model = with_adapters()
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.0)
    prediction = weightcast.attach(model, optimizer, STEPS)
    expected = with_adapters()
    by_hand = ByHand(
        torch.optim.AdamW(trainable(expected), lr=1e-2, weight_decay=0.0), STEPS, decoupled=True
    )
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    for batch in SENTENCES.split(8):
        optimizer.zero_grad()
        for part, tokens in enumerate(batch.split(4)):
            (model(input_ids=tokens, labels=tokens).loss / 2).backward()
            if part == 0:
                theta = copy.deepcopy(model)  # at θ, plain
                model.merge_adapter()
                saved = {n: p.clone() for n, p in model.state_dict().items()}
                model.unmerge_adapter()
                theta.merge_adapter()
                for name, value in theta.state_dict().items():
                    torch.testing.assert_close(saved[name], value, rtol=0, atol=0)
        optimizer.step()

        def backward(batch: Tensor = batch) -> None:
            for tokens in batch.split(4):
                (expected(input_ids=tokens, labels=tokens).loss / 2).backward()

        by_hand.iterate(backward)
    for name, p in model.named_parameters():
        if name in frozen:  # adding and subtracting rounds
            torch.testing.assert_close(p.detach(), frozen[name], rtol=0, atol=1e-14)
    assert largest_difference(model, expected) < 1e-11
    assert not prediction.is_predicted


# --- checkpoints of several processes ------------------------------------------------------------


def checkpointed(rank: int, case: str) -> None:
    """Stopped after four batches and gone on in new objects, as if nothing had happened."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    name, was, folder = case.split(":")
    cls = getattr(torch.optim, name)

    def made(is_attached: bool) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
        model = nn.parallel.DistributedDataParallel(network())
        optimizer = cls(model.parameters(), lr=LR)
        handle = weightcast.attach(model, optimizer, STEPS) if is_attached else None
        return model, optimizer, handle

    def run(model: nn.Module, optimizer: torch.optim.Optimizer, some: list) -> None:
        for x, y in some:
            optimizer.zero_grad()
            mean_square(model, x, y).backward()
            optimizer.step()

    batches_of_rank = list(ranks_batches(rank))
    first, rest = batches_of_rank[:4], batches_of_rank[4:]
    model, optimizer, handle = made(was == "attached")
    run(model, optimizer, first)
    if handle is not None:
        model(rest[0][0])  # at the forecast: what is saved is not
    own, its = get_state_dict(model, optimizer)
    checkpoint.save({"model": own, "optimizer": its}, checkpoint_id=folder)
    twin, other, prediction = made(True)
    if was == "attached":
        run(twin, other, rest[:1])  # it plans by the keys that are there
    own, its = get_state_dict(twin, other)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("weightcast").addHandler(handler)
    checkpoint.load({"model": own, "optimizer": its}, checkpoint_id=folder)
    set_state_dict(twin, other, model_state_dict=own, optim_state_dict=its)
    assert same(list(twin.state_dict().values()), list(model.state_dict().values()))
    if handle is None:
        assert "holds no displacements" in said[0]
        assert not any(delta.any() for _, delta in prediction.displacements())
    else:
        assert not said
        for new, old in zip(prediction.displacements(), handle.displacements(), strict=True):
            assert torch.equal(new[1], old[1])
            assert old[1].any()
        run(twin, other, rest)
        run(model, optimizer, rest)
        # loading rounds NAdam's product of momenta to the parameter's dtype
        compare(twin, model, 1e-7)


@pytest.mark.cell("DDP", "torch.distributed.checkpoint, attached or not when it was saved")
@pytest.mark.skipif(OLD, reason="as the others on several processes")
def test_a_checkpoint_of_two_processes(tmp_path: Path) -> None:
    """R16, R17: of observed optimizers, whose displacement is in the checkpoint."""
    cases = [f"{name}:{was}:{tmp_path}/{name}-{was}" for name in ("NAdam", "Adagrad")
             for was in ("attached", "plain")]  # fmt: skip
    spawn(2, tmp_path, *((checkpointed, case) for case in cases))
