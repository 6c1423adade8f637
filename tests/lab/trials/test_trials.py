"""The second study: its protocol, its search, and what its methods and readings are."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats
from torch import nn

pytest.importorskip("torchvision")

from tests.lab.conftest import LineTask
from weightcast_lab.methods.method import Method
from weightcast_lab.methods.optimizers import OPTIMIZERS
from weightcast_lab.report.blocks import Figure
from weightcast_lab.report.markdown import markdown
from weightcast_lab.report.terminal import terminal
from weightcast_lab.results.loading import load_results, save_results
from weightcast_lab.results.records import RunRecord
from weightcast_lab.results.statistics import holm, p_value
from weightcast_lab.running.readings import Averages
from weightcast_lab.running.train import cosine_factor
from weightcast_lab.study.studies import HEAVY, SCALES
from weightcast_lab.tasks import DataSource, make_task
from weightcast_lab.trials.answers import answers, changes, visible_change
from weightcast_lab.trials.contents import contents_of
from weightcast_lab.trials.protocol import (
    CANDIDATES,
    FEWER_SEEDS,
    NEAR,
    ROUNDS,
    SEARCH_SEEDS,
    SEEDS,
)
from weightcast_lab.trials.questions import QUESTIONS
from weightcast_lab.trials.report import report
from weightcast_lab.trials.savings import savings
from weightcast_lab.trials.search import open_trials, search
from weightcast_lab.trials.tolerances import tolerances
from weightcast_lab.trials.workloads import (
    AVERAGES,
    DELAYS,
    LATE_TASKS,
    LENGTHS,
    LONGER,
    TASKS,
    WARMUP,
    WORKLOADS,
)


def test_the_sentences_of_the_protocol_have_the_numbers_of_the_data() -> None:
    said = " ".join(Path("docs/trials.md").read_text().split())
    used = {c.method.optimizer for c in CANDIDATES.values()}
    for words in (
        f"rises in the first {WARMUP:.0%} of the steps",
        f"averages of θ over {_listed(f'{share:.0%}' for share in AVERAGES)} of the run",
        ", ".join(
            f"{OPTIMIZERS[name][0]} {scale:g} times that"
            for name, scale in SCALES.items()
            if scale != 1 and name in used
        ),
        f"{_listed(TASKS[task].label for task in LATE_TASKS)} also run with gradients that are "
        f"applied {_listed(DELAYS)} steps late",
        f"β₁ = {HEAVY} is the momentum of Ajanthan",
        f"Search seeds are {_listed(SEARCH_SEEDS)}; the second is spent only where the first ends "
        f"within {NEAR:.0%} of the best.",
        f"run the fresh seeds {_listed(SEEDS)};",
        f"28,000 steps ({_listed(w.label.split(', ')[-1] for w in LONGER.values())})",
        f"have the seeds {_listed(FEWER_SEEDS)}.",
        f"also run at {_listed(f'{length:g}' for length in LENGTHS)} of the length",
    ):
        assert words in said


def _listed(things: Iterable[object]) -> str:
    *first, last = map(str, things)
    return f"{', '.join(first)} and {last}" if first else last


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
    from weightcast_lab.methods.muon import MuonInside
    from weightcast_lab.methods.optimizers import _muon

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


# --- the whole study on losses that a formula gives ----------------------------------------------


def _loss(name: str, rate: float, seed: int, length: float) -> float:
    """A valley in the rate whose place and depth are the method's, and some scatter of seeds."""
    best = {"adamw": 3e-3, "adamw-s3": 5.2e-3}.get(name, 3e-3)
    depth = {"adamw": 1.40, "adamw-s3": 1.36, "adamw-b0.8": 1.37, "nadamw_mu": 1.37}
    scatter = 0.002 * math.sin(7 * seed + 3 * len(name))
    return (
        depth.get(name, 1.38) + 0.05 * math.log(rate / best) ** 2 + scatter - 0.1 * math.log(length)
    )


def _result(job) -> RunRecord:
    name, rate, seed = job.run.method.name, job.run.method.learning_rate, job.run.seed
    key = job.files.folder.parent.name
    length = float(key.partition("-x")[2] or 1)
    loss = _loss(name, rate, seed, length)
    averages = {f"average-{share:g}": loss + d for share, d in ((0.01, 0), (0.03, -0.01), (0.1, 1))}
    readings = {"true": loss} | averages
    return RunRecord(
        configuration="",
        method=job.run.method.key,
        seed=seed,
        history={"step": [0, 10]},
        diverged_at=3 if name == "adamw-s1" and seed == 4 else None,
        readings={n: {"validation": v, "test": v + 0.1} for n, v in readings.items()},
        environments=[
            {
                "device": "cpu",
                "hardware": "a processor",
                "python": "3.11",
                "torch": "2.14",
                "weightcast": "0.1",
            }
        ],
    )


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """All experiments of a finished study, and its raw results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "weightcast_lab.trials.search.tasks_of",
            lambda settings: dict.fromkeys(settings, LineTask()),
        )
        trials = open_trials(DataSource(), "cpu", tmp_path_factory.mktemp("trials"))
        results: dict = {}
        for phase in trials.phases(results):
            results |= {job: _result(job) for job in phase.jobs if job not in results}
        return [e | {"command": ""} for e in contents_of(trials, results, {})], results


def test_every_round_ends_and_leaves_its_runs(studied) -> None:
    experiments, results = studied
    by_key = {e["key"]: e for e in experiments}
    assert set(by_key) == set(WORKLOADS)
    long = by_key["long-cosine"]
    best = {(c["candidate"], c["at"]): c for c in long["choices"]}
    assert best["adamw", "usual"]["rate"] == 3e-3
    assert best["adamw-s3", "usual"]["rate"] == 5.2e-3
    assert best["adamw", "best"]["name"] == "adamw-b0.8"
    assert best["adamw-average", "usual"]["reading"] == "average-0.03"
    for choice in long["choices"]:
        runs = [
            r for r in long["runs"] if (r["name"], r["rate"]) == (choice["name"], choice["rate"])
        ]
        assert {run["seed"] for run in runs} == {0, 1, 2, 3, 4}
    assert {r["seed"] for r in by_key["longer-text-cosine"]["runs"]} == {0, 1, 2}
    assert len(results) == sum(len(e["runs"]) + len(e["search"]) for e in experiments)


def test_a_sample_of_the_tables_is_what_other_code_finds_in_the_raw_runs(studied) -> None:
    experiments, results = studied
    raw = {
        (job.experiment, job.run.method.name, job.run.method.learning_rate, job.run.seed): r
        for job, r in results.items()
    }
    label = WORKLOADS["long-cosine"].label
    answer = next(a for a in answers(experiments) if (a.question.key, a.at) == ("nadamw", "usual"))
    row = next(one.row for one in answer.rows if one.row.name == "adamw-s3")
    effect = row.effects[answer.workloads.index(label)]
    both = [
        [raw[f"{label} (final)", name, rate, seed].readings["true"]["test"] for seed in range(5)]
        for name, rate in (("adamw-s3", 5.2e-3), ("nadamw_mu", 3e-3))
    ]
    found = stats.ttest_rel(*(np.log(losses) for losses in both))
    low, high = found.confidence_interval(0.95)
    assert effect.change.mean == pytest.approx((low + high) / 2, rel=1e-4)
    assert effect.change.half_width == pytest.approx((high - low) / 2, rel=1e-3)
    diverged = next(one for one in answer.rows if one.row.name == "adamw-s1")
    assert diverged.row.overall.problem == "1 of 5 diverged"
    assert not diverged.row.overall.verdict


def test_steps_saved_are_where_the_line_meets_the_rival(studied) -> None:
    """Losses fall by 0.1 for each unit of log length: 0.01 of loss saves 1 - exp(-0.1) of all."""
    experiments, _ = studied
    found = {(s.candidate, s.rival, s.workload, s.at): s for s in savings(experiments)}
    label = WORKLOADS["long-cosine"].label
    saving = found["adamw-s3", "nadamw_mu", label, "usual"]
    expected = [
        1 - math.exp((_loss("adamw-s3", 5.2e-3, s, 1) - _loss("nadamw_mu", 3e-3, s, 1)) / 0.1)
        for s in range(5)
    ]
    assert saving.share.mean == pytest.approx(np.mean(expected), rel=1e-4)
    assert found["adamw-s3", "adamw", label, "usual"].is_more  # 0.04 of loss: a third of the steps
    worse = found["adamw", "adamw-s3", label, "usual"]
    assert worse.share is None
    assert not worse.is_more


def test_the_visible_change_is_one_that_four_of_five_studies_show() -> None:
    """Of five pairs of unit scatter, by simulation."""
    rng = np.random.default_rng(0)
    sample = rng.normal(size=5)
    sample /= sample.std(ddof=1)
    change = visible_change([sample])
    studies = change + rng.normal(size=(20_000, 5))
    shown = stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(0.8, abs=0.01)


def test_the_range_that_is_forgiven_lies_where_the_valley_is_two_percent_up(studied) -> None:
    experiments, _ = studied
    label = WORKLOADS["text-lstm-cosine"].label
    found = {(t.candidate, t.workload): t for t in tolerances(experiments)}
    tolerance = found["adamw-s3", label]
    # 0.02·1.36 of loss is a distance of √0.544 on either side, up to the grid's straight lines
    assert math.log(tolerance.factor) == pytest.approx(2 * math.sqrt(0.544), rel=0.15)
    assert not tolerance.is_open


def test_one_comparison_of_a_question_is_not_corrected(studied) -> None:
    """The primary one, at the best momentum; at the usual one all are secondary."""
    experiments, _ = studied
    long = next(e for e in experiments if e["key"] == "long-cosine")
    for at, primary in (("best", "muon_inside3"), ("usual", "")):
        found = {(a.question.key, a.at): a for a in answers(experiments)}["place", at]
        assert found.workloads == (WORKLOADS["long-cosine"].label,)  # on the long task alone
        rows = {one.row.name: one.row.effects[0] for one in found.rows}
        assert [one.row.name for one in found.rows if one.is_primary] == [primary][: at == "best"]
        raw = {name: p_value(changes(long, name, "muon-s3-matrices", at)[0]) for name in rows}
        others = [name for name in rows if name != primary]
        expected = dict(zip(others, holm([raw[name] for name in others]), strict=True))
        assert {name: rows[name].p for name in others} == expected
        assert at == "usual" or rows[primary].p == raw[primary]


def test_longer_runs_are_asked_apart(studied) -> None:
    experiments, _ = studied
    found = {(a.question.key, a.at): a for a in answers(experiments)}
    assert len(found["nadamw", "usual"].workloads) == 6
    assert len(found["nadamw-longer", "usual"].workloads) == 3
    assert len(found["late-4", "usual"].workloads) == 2


def test_results_come_back_from_their_file(studied, tmp_path) -> None:
    experiments, _ = studied
    content = [{k: v for k, v in e.items() if k != "command"} for e in experiments]
    path = save_results(tmp_path, "study", content, command="weightcast study trials")
    assert markdown(report(load_results(path))) == markdown(report(experiments))


def test_the_report_shows_every_question(studied) -> None:
    experiments, _ = studied
    text = markdown(report(experiments))
    for question in QUESTIONS:
        assert question.text in text
    assert "1 of 5 diverged" in text
    console = Console(width=400, file=io.StringIO())
    console.print(terminal(report(experiments)))
    assert "Steps saved" in console.file.getvalue()
    figures = {b.key for b in report(experiments).blocks if isinstance(b, Figure)}
    assert {"nadamw-usual", "muon-best"} <= figures


# --- what is published ---------------------------------------------------------------------------


@pytest.mark.results
def test_the_published_tables_and_sentences_follow_from_the_raw_runs() -> None:
    """docs/answers.md, recomputed from the lines of the runs with numpy and scipy alone."""
    page = Path("docs/answers.md").read_text("utf-8")
    losses: dict[str, dict[str, dict[int, float]]] = {}
    for folder in Path("results/trials").glob("*-cosine"):
        for line in (folder / "final/runs.jsonl").read_text().splitlines():
            run = json.loads(line)
            name = run["method"].rpartition("-lr")[0]
            some = losses.setdefault(folder.name, {}).setdefault(name, {})
            some[run["seed"]] = run["readings"]["true"]["test"]

    def differences(task: str, name: str, reference: str) -> np.ndarray:
        found = losses[task]
        seeds = sorted(found[name].keys() & found[reference].keys())
        assert len(seeds) == 5
        own, base = (np.log([found[n][s] for s in seeds]) for n in (name, reference))
        return own - base

    def cell_of(middle: float, low: float, high: float) -> str:
        mean, low, high = (
            f"{100 * math.expm1(x):+.1f}".replace("-", "−") for x in (middle, low, high)
        )
        return f"{mean} [{low}, {high}]"

    def change(task: str, name: str, reference: str) -> tuple[float, str]:
        some = differences(task, name, reference)
        low, high = stats.ttest_1samp(some, 0).confidence_interval(0.95)
        return 100 * math.expm1(some.mean()), cell_of(some.mean(), low, high)

    text = " ".join(page.split())
    for task, name, label, reference, sentence in (
        ("long-cosine", "adamw-s3", "AdamW s=3", "adamw", ""),
        ("long-cosine", "adamw-s3", "AdamW s=3", "nadamw_mu", "The long task ends {} % lower"),
        (
            "long-cosine",
            "muon-s3",
            "",
            "muon_nesterov",
            "{} % below Muon-Nesterov as it is shipped",
        ),
        (
            "long-cosine",
            "muon-s3",
            "Muon s=3",
            "muon_nesterov-s3-rest",
            "and {} % below the fairest",
        ),
        ("cifar10-bn-cosine", "adamw-s3", "", "nadamw_mu", "with BatchNorm {} % lower"),
        ("cifar10-plain-cosine", "adamw-s3", "", "nadamw_mu", "CIFAR-10 without {} % higher"),
        ("text-lstm-cosine", "nadamw", "", "nadamw_mu", "{} % lower on one text"),
        ("text-transformer-cosine", "nadamw", "", "nadamw_mu", "{} % higher on another"),
    ):
        mean, cell = change(task, name, reference)
        if label:
            assert re.search(rf"\| {label} \|.*{re.escape(cell)}", page), cell
        assert sentence.format(f"{abs(mean):.1f}") in text, (sentence, mean)
        assert (mean > 0) is ("higher" in sentence)
    # the means over tasks, with Satterthwaite's degrees of freedom
    for reference in ("adamw", "nadamw_mu"):
        each = [differences(task, "adamw-s3", reference) for task in losses]
        parts = np.array([some.var(ddof=1) / len(some) for some in each]) / len(each) ** 2
        freedom = parts.sum() ** 2 / (parts**2 / 4).sum()
        middle = float(np.mean([some.mean() for some in each]))
        half = stats.t.ppf(0.975, freedom) * math.sqrt(parts.sum())
        assert cell_of(middle, middle - half, middle + half) in page


def test_another_version_of_weightcast_is_no_other_place(studied) -> None:
    """A study that goes on after a release compares its runs with those from before."""
    both, (results, _) = [], studied
    for version in ("0.1.0.dev0", "0.1.0"):
        renamed = [
            e | {"environments": [one | {"weightcast": version} for one in e["environments"]]}
            for e in results
        ]
        both.append(next(e for e in renamed if e["key"] == "long-cosine"))
    mixed = both[0] | {"environments": [*both[0]["environments"], *both[1]["environments"]]}
    later = len(both[0]["environments"])
    mixed["runs"] = [
        run | {"environment": [n + later for n in run["environment"]]}
        if run["name"] == "adamw-s3"
        else run
        for run in mixed["runs"]
    ]
    assert changes(mixed, "adamw-s3", "adamw", "usual") == changes(
        both[0], "adamw-s3", "adamw", "usual"
    )
    assert changes(mixed, "adamw-s3", "adamw", "usual")[0]
