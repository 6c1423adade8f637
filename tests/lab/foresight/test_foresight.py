"""A forecast beside what came: closed forms, and the command from end to end."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.lab.helpers import finished_in, without_seconds
from weightcast_lab.foresight import variations as foresight_study
from weightcast_lab.foresight.variations import HORIZONS, as_it_is, variations, variations_of
from weightcast_lab.methods.method import Hyperparameters, Method
from weightcast_lab.results.loading import load_results
from weightcast_lab.running.foresight import SAMPLES, Foresight
from weightcast_lab.study.workloads import WORKLOADS


def watched(gradient_of, optimizer_of, steps=20, horizons=(1, 2, 3, 5)):
    """An epoch on one tensor: the gradient is a function of step and weights."""
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.float64)
    torch.nn.init.constant_(model.weight, 2.0)
    optimizer = optimizer_of(model.parameters())
    foresight = Foresight(model, optimizer, horizons, steps)
    for step in range(steps):
        model.weight.grad = gradient_of(step, model.weight.detach())
        optimizer.step()
        foresight.after_step()
    return foresight.result()


def test_on_a_bowl_steps_shrink_as_the_closed_form_says():
    """θ(t) = (1-q) θ(t-1): of Δ = q θ(t-1) it takes (1-q)(1-(1-q)^s)/q."""
    q = 0.1
    found = watched(lambda _, w: w.clone(), lambda p: torch.optim.SGD(p, lr=q))
    for place, s in enumerate((1, 2, 3, 5)):
        assert found["cosine"][place] == pytest.approx(1)
        multiple = (1 - q) * (1 - (1 - q) ** s) / q
        assert found["multiple"][place] == pytest.approx(multiple, rel=1e-5)
        assert found["error"][place] == pytest.approx(abs(s / multiple - 1), rel=1e-4)
        # without momentum a decaying forecast goes nowhere
        assert found["decaying error"][place] == pytest.approx(1)


def test_without_gradients_momentum_does_what_the_decaying_forecast_says():
    mu = 0.8
    found = watched(
        lambda step, w: torch.ones_like(w) * (step == 0),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=mu),
    )
    for place, s in enumerate((1, 2, 3, 5)):
        reach = sum(mu**k for k in range(1, s + 1))
        assert found["multiple"][place] == pytest.approx(reach, rel=1e-5)
        assert found["decaying error"][place] == pytest.approx(0, abs=1e-5)
        assert found["error"][place] == pytest.approx(s / reach - 1, rel=1e-4)


def test_a_turn_of_a_right_angle_has_no_cosine():
    axes = torch.eye(3, dtype=torch.float64)
    found = watched(
        lambda step, _: axes[step % 2][None], lambda p: torch.optim.SGD(p, lr=0.1), horizons=(1, 2)
    )
    assert found["cosine"] == pytest.approx([0, 1 / math.sqrt(2)], rel=1e-5)
    assert found["error"] == pytest.approx([math.sqrt(2), math.sqrt(2 * 0.5 + 0)], rel=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, SAMPLES, 500])
def test_every_forecast_is_compared_within_its_epoch(steps):
    found = watched(lambda _, w: w.clone(), lambda p: torch.optim.SGD(p, lr=0.01), steps, (1, 3, 7))
    period = max(1, steps // SAMPLES)
    for place, s in enumerate((1, 3, 7)):
        begun = [t for t in range(2, steps - s + 1) if t % period == 0]
        assert found["samples"][place] == len(begun)
        assert (found["cosine"][place] is None) == (not begun)


def test_nothing_moves_and_nothing_is_divided_by_zero():
    found = watched(lambda _, w: torch.zeros_like(w), lambda p: torch.optim.SGD(p, lr=0.1))
    assert found["samples"] == [0, 0, 0, 0]
    assert found["cosine"] == [None] * 4


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_is_the_same_when_it_is_watched(train_line, optimizer):
    method = Method(optimizer, 2.0)
    plain = train_line(method=method, folder="plain")
    seen = train_line(method=method, folder="seen", horizons=(1, 2))
    rows = seen.history.pop("foresight")
    assert without_seconds(seen) == without_seconds(plain)
    assert rows[0] is None
    assert all(row["samples"][0] > 0 for row in rows[1:])


def test_the_variations_name_what_they_change():
    every = variations()
    assert len({v.key for v in every}) == len(every)
    for variation in every:
        recipe, usual = variation.recipe, WORKLOADS[variation.base]
        assert recipe.horizons == HORIZONS
        if not variation.varied:
            assert replace(recipe, horizons=()) == usual
        elif variation.varied == "beta1":
            assert recipe.hyperparameters == Hyperparameters((variation.value, 0.999))
            assert recipe.hyperparameters != usual.hyperparameters
        else:
            field = variation.varied.replace(" ", "_")
            assert getattr(recipe, field) == variation.value
            assert variation.value != getattr(usual, field)


@pytest.fixture
def small(monkeypatch):
    """Three variations of seconds."""
    usual = as_it_is("smoke-digits")
    monkeypatch.setattr(foresight_study, "VARIED", ("smoke-digits",))
    others = variations_of("smoke-digits")[:2]
    monkeypatch.setattr(foresight_study, "variations", lambda: (usual, *others))


def test_the_command_writes_tables_and_a_figure(weightcast, tmp_path, small):
    out = tmp_path / "out"
    done = weightcast("foresight", "--out", out, "--seeds", 1, "--jobs", 1)
    assert done.code == 0, done.err
    experiments = load_results(out / "results.json")
    assert [e["varied"] for e in experiments] == ["", "beta1", "beta1"]
    assert experiments[0]["configuration"]["horizons"] == list(HORIZONS)
    tables = (out / "tables.md").read_text()
    assert "Digits, CNN, 2 epochs, β₁ 0.8 | AdamW |" in tables
    light, dark = ((out / f"foresight-{t}.svg").read_text() for t in ("light", "dark"))
    assert "</svg>" in light
    assert "</svg>" in dark
    assert light != dark
    assert "Cosine of the last update" in " ".join(done.out.split())

    page = tmp_path / "page.md"
    page.write_text(f"<!-- begin {out.as_posix()} -->\n<!-- end {out.as_posix()} -->\n")
    assert weightcast("report", out, "--into", page).code == 0
    assert tables in page.read_text()

    brief = weightcast("report", out, "--markdown", "--brief")
    assert (brief.code, brief.out) == (2, "")
    assert "--brief is for a study" in brief.err

    alone = weightcast("report", out, "--brief")
    assert (alone.code, alone.out) == (2, "")
    assert "give one of them" in " ".join(alone.err.split())

    missing = weightcast("foresight", "--out", out, "--seeds", 2, "--missing")
    assert missing.code == 0
    assert "5 of 10" in missing.out + missing.err
    record = finished_in(out)["smoke-digits/adamw/seed-0"]
    assert len(record.history["foresight"]) == 3

    # what has failed is left out, and the rest is drawn
    results = json.loads((out / "results.json").read_text())
    for lost in ("smoke-digits", ""):
        for experiment in results["experiments"]:
            if experiment["key"].startswith(lost) and not (lost and experiment["varied"]):
                experiment["runs"] = []
        (out / "results.json").write_text(json.dumps(results))
        drawn = weightcast("report", out)
        assert drawn.code == 0, drawn.err
        assert "missing or diverged" in " ".join(drawn.out.split())
