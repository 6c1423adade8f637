"""The second study: its protocol, its search, and what its methods and readings are."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("torchvision")

from weightcast_lab.optimizers import Method
from weightcast_lab.readings import Averages
from weightcast_lab.tasks import DataSource, make_task
from weightcast_lab.train import cosine_factor
from weightcast_lab.trials import page
from weightcast_lab.trials.protocol import CANDIDATES, QUESTIONS, ROUNDS, WORKLOADS
from weightcast_lab.trials.search import search


def test_the_page_is_the_protocol() -> None:
    assert Path("docs/trials.md").read_text() == page.page()


def test_rounds_and_questions_name_what_there_is() -> None:
    for one in ROUNDS:
        assert set(one.workloads) <= set(WORKLOADS)
        assert {c.name for c in one.candidates} <= set(CANDIDATES)
    for question in QUESTIONS:
        assert question.primary in question.candidates
        assert {question.reference, *question.candidates} <= set(CANDIDATES)


def _run_search(loss, refined: bool):
    """All that a search looks at of a function of the rate's power, and what it finds."""
    losses: dict[tuple[int, int], float] = {}
    while (found := search(losses, refined=refined)).missing:
        assert not set(found.missing) & set(losses)  # nothing runs twice
        losses |= {(power, n): loss(power) for power, n in found.missing}
    return losses, found


@pytest.mark.parametrize("best", range(-6, 7))
def test_a_search_finds_the_lowest_of_a_valley(best: int) -> None:
    losses, found = _run_search(lambda power: 1 + 0.01 * (power - best) ** 2, refined=True)
    assert found.best == best
    assert found.is_edge is (abs(best) == 6)
    assert all(abs(power) <= 7 for power, _ in losses)


def test_a_search_spends_its_second_seed_near_the_best() -> None:
    losses, found = _run_search(lambda power: 1 + 0.01 * abs(power), refined=False)
    assert found.best == 0
    assert {power for power, n in losses if n == 1} == {-2, 0, 2}
    losses, _ = _run_search(lambda power: 1 + 0.1 * abs(power), refined=False)
    assert {power for power, n in losses if n == 1} == {0}


def test_a_search_of_nothing_but_divergence_ends() -> None:
    _, found = _run_search(lambda power: math.inf, refined=True)
    assert math.isinf(found.loss)


def test_a_cosine_rises_and_falls_to_zero() -> None:
    factors = [cosine_factor(step, 200, 0.05) for step in range(201)]
    assert factors[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert factors[10] == 1
    assert factors[105] == pytest.approx(0.5)
    assert factors[200] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_averages_are_a_mean_first_and_then_exponential() -> None:
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, (0.5,), steps=8)  # a time scale of 4 steps
    mean = 0.0
    for step in range(1, 9):
        nn.init.constant_(model.weight, float(step))
        averages.after_step()
        mean += (step - mean) / min(step, 4)
        ((_, (average,)),) = averages.items()
        assert average.item() == pytest.approx(mean)


def _two_steps(name: str, **options: float) -> list[torch.Tensor]:
    """Weights of a small network after two steps with given gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    optimizer = Method(name, **options).attach(model, 0.01)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_muons_nesterov_is_its_look_ahead_by_beta() -> None:
    """m + β·(m - m_before) is Nesterov's form; more ahead is something else."""
    from weightcast_lab.muon import MuonInside
    from weightcast_lab.optimizers import _muon

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    optimizer = _muon(
        model.parameters(),
        0.01,
        nesterov=False,
        variant=lambda *args, **options: MuonInside(*args, ahead=0.95, **options),
    )
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    own = [p.detach() for p in model.parameters()]
    nesterov, other = _two_steps("muon_nesterov"), _two_steps("muon_inside3")
    # the iteration works in bfloat16: its inputs may differ in the last bit
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(own, nesterov, strict=True))
    assert not torch.allclose(other[2], nesterov[2], atol=2e-4)  # the hidden matrix
    assert torch.equal(other[0], nesterov[0])  # all else is AdamW's


def test_muons_rest_may_be_nadamw() -> None:
    """Its rest moves as torch's NAdam does with a constant μ."""
    mixed, nadamw = _two_steps("muon_nadamw"), _two_steps("nadamw_mu")
    muon = _two_steps("muon_nesterov")
    for n, (a, b) in enumerate(zip(mixed, nadamw, strict=True)):
        if n == 2:  # the hidden matrix
            assert torch.allclose(a, muon[n])
        else:
            assert torch.allclose(a, b, atol=1e-6)


def test_nadamw_with_constant_mu_is_dozats() -> None:
    """By hand in float64: m̂ = μ·m/(1-μ^(t+1)) + (1-μ)·g/(1-μ^t)."""
    model = nn.Linear(1, 1, bias=False).double()
    theta = model.weight.item()
    optimizer = Method("nadamw_mu").attach(model, 0.1)
    m = v = 0.0
    for t, g in enumerate((0.5, -0.2, 0.7), 1):
        model.weight.grad = torch.full_like(model.weight, g)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        theta = theta * (1 - 0.1 * 0.01) - 0.1 * ahead / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert model.weight.item() == pytest.approx(theta, rel=1e-6)  # torch keeps Πμ in float32


@pytest.mark.parametrize(("part", "moves"), [("matrices", [2]), ("rest", [0, 1, 3, 4, 5])])
def test_a_part_of_muons_weights_is_forecast(part: str, moves: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    method = Method("muon", 3.0, part=part)
    optimizer = method.make_optimizer(model, 0.01)
    prediction = method.predict(model, optimizer)
    assert prediction is not None
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    with prediction.predicted():
        moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved == [n in moves for n in range(6)]


def test_seeds_draw_the_batches_of_a_text() -> None:
    for options in ({}, {"network": "transformer", "epoch_steps": 5}):
        task = make_task("text", DataSource(), drawn=True, training_tokens=10_000, **options)
        first, again, other = (
            task.batches(4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
        )
        assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
        assert any(not torch.equal(a[0], b[0]) for a, b in zip(first, other, strict=True))
        tokens, targets = first[0]
        assert torch.equal(tokens[1:], targets[:-1])


def test_test_data_are_apart() -> None:
    """The documentation's last tenth reports, the tenth before it chooses."""
    whole = make_task("text", DataSource()).corpus
    parts = make_task("text", DataSource(), drawn=True).corpus
    text = torch.cat([whole.training, whole.validation])
    assert torch.equal(torch.cat([parts.training, parts.validation, parts.test]), text)
    assert len(parts.test) == len(parts.validation) == len(text) // 10


def test_a_folder_with_texts_is_read_by_character(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"ptb.{name}.txt").write_text(f" some words of {name} \n and more \n" * 40)
    task = make_task(
        "ptb_characters",
        DataSource(tmp_path, any_text=True),
        training_tokens=500,
        validation_tokens=300,
        test_tokens=400,
        epoch_steps=3,
    )
    batches = task.batches(2, torch.Generator())
    assert len(batches) == 3
    assert batches[0][0].shape == (64, 2)
    model = task.build_model()
    loss = task.test_loss(model)
    assert loss is not None
    assert task.test(model)["test bits per character"] == pytest.approx(loss / math.log(2))
