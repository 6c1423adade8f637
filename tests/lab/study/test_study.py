"""The study's data, its choice of learning rates, and a small one from runs to page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import weightcast
from tests.lab.helpers import LineTask, finished_in
from tests.lab.paper.test_reproduction import run_here
from weightcast_lab.environment import NOT_INSTALLED
from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import Hyperparameters, Method
from weightcast_lab.methods.optimizers import OPTIMIZERS, PLAIN_ONLY
from weightcast_lab.results.loading import load_results
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.study import protocol
from weightcast_lab.study.questions import (
    AGAINST_ADAMW,
    DELAY_QUESTIONS,
    METHODS,
    QUESTIONS,
    UNDELAYED,
    UNTUNED,
    VARIANTS,
)
from weightcast_lab.study.search import Choice, choose
from weightcast_lab.study.studies import HEAVY, SCALES, SGD, STUDIES, Design, Study, rounds_of
from weightcast_lab.study.workloads import DELAYS, LATE, SIX, WORKLOADS
from weightcast_lab.tasks import TASKS

PAGE = Path(__file__).parents[3] / "docs" / "study.md"


def listed(things):
    *first, last = map(str, things)
    return f"{', '.join(first)} and {last}"


def test_the_sentences_of_the_protocol_have_the_numbers_of_the_data():
    said = " ".join(PAGE.read_text().split())
    design, late = Design(), STUDIES["delay"].design
    together = [q for q in QUESTIONS if q.family == AGAINST_ADAMW]
    sizes = [len(question.methods) * len(SIX) for question in together]
    torchs = torch.optim.NAdam([torch.zeros(1)]).defaults["momentum_decay"]
    first, last = (0.9 * (1 - 0.5 * 0.96 ** (step * torchs)) for step in (1, 980))
    for words in (
        f"{len(design.multiples)} learning rates ({', '.join(f'{m:g}' for m in design.multiples)} "
        f"times the usual one of its optimizer) with seeds {listed(design.search_seeds)}.",
        f"{min(design.further):g} or {max(design.further):g} times the usual rate",
        f"the fresh seeds {listed(design.seeds)};",
        f"{listed(f'“{q.text}”' for q in together)} were three families, of {listed(sizes)} "
        f"comparisons, whose rows stood in one column of one table; now they are one of "
        f"{sum(sizes)}.",
        f"“{UNTUNED.text}”",
        f"Its methods: {', '.join(METHODS[name].label for name in UNTUNED.methods)}.",
        f"`momentum_decay` of {torchs:g}.",
        f"μₜ is {first:.2f} in the first step and at most {last:.2f} in the last",
        f"Its workloads run at D = {listed(DELAYS)}.",
        f"β₁ = {HEAVY} is that of Ajanthan",
        f"{', '.join(f'{m:g}' for m in late.multiples)} times the usual ones are searched, with "
        f"seed {late.search_seeds[0]}, and beyond an edge up to {min(late.further):g} and "
        f"{max(late.further):g} times them",
        f"then the chosen one runs with seeds {listed(late.seeds)}.",
    ):
        assert words in said


def test_the_tables_of_the_protocol_are_tables():
    tables = protocol.tables().values()
    assert len(tables) == 6
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_every_workload_and_method_is_possible():
    for key, workload in WORKLOADS.items():
        assert workload.task in TASKS
        assert all(0 < milestone < workload.epochs for milestone in workload.milestones)
        assert not workload.variant_of or workload.variant_of in WORKLOADS, key
    for one in STUDIES.values():
        assert set(one.workloads) <= WORKLOADS.keys()
        assert len(set(one.methods)) == len(one.methods)
        assert one.rounds[0][0] == Method("adamw")  # what the others are compared with comes first
    assert {m.optimizer for m in METHODS.values()} == {*SCALES, *SGD}
    wanted = {"radam", "lion", "rmsprop", "adagrad", "muon", "sgd"}
    for name in wanted:
        assert {name, f"{name}-s1", f"{name}-s3"} <= METHODS.keys()
    assert METHODS.keys() >= {"nesterov", "muon_nesterov", *PLAIN_ONLY}
    assert SCALES.keys() <= OPTIMIZERS.keys()


def test_every_method_has_the_same_budget_and_a_forecast_its_plain_forms_grid():
    design = Design()
    assert not set(design.search_seeds) & set(design.seeds)
    for workload in WORKLOADS.values():
        for method in METHODS.values():
            rates = design.rates(workload, method)
            assert len(set(rates)) == len(design.multiples)
            plain = Method(method.optimizer, beta1=method.beta1)
            assert rates == design.rates(workload, plain)
    assert design.rates(WORKLOADS["digits"], Method("adamw")) == (5e-4, 1.5e-3, 5e-3, 1.5e-2)
    assert design.rates(WORKLOADS["digits"], Method("sgd", 1.0)) == (0.005, 0.015, 0.05, 0.15)
    heavy = Method("sgd", beta1=0.99)  # its steps are ten times as long
    assert design.rates(WORKLOADS["digits"], heavy) == (0.0005, 0.0015, 0.005, 0.015)


def test_every_question_can_be_answered():
    questions = (*QUESTIONS, *DELAY_QUESTIONS)
    for question in (*questions, VARIANTS):
        assert {question.reference, *question.methods} <= METHODS.keys() | {UNDELAYED}
        assert question.reference not in question.methods
    assert len({question.key for question in questions}) == len(questions)
    asked = {name for q in questions for name in (q.reference, *q.methods)}
    assert asked == METHODS.keys() | {UNDELAYED}


def test_the_study_of_delay_is_the_same_tasks_at_every_delay():
    assert {w.delay for w in LATE.values()} == {0, 1, 2, 4, 8, 16}
    assert len(LATE) == 4 * 6
    for workload in LATE.values():
        (base,) = (w for w in LATE.values() if w.series == workload.series and w.delay == 0)
        assert replace(workload, delay=0, label=base.label) == base
        assert not workload.variant_of
    one = STUDIES["delay"]
    wanted = {"", "-s0.5D", "-s1D", "-s2D", "-s1D-decaying"}
    names = {n + b + s for n in ("adamw", "nadamw", "sgd") for b in ("", "-b0.99") for s in wanted}
    assert {method.name for method in one.methods} == names
    # without delay six plain methods, else all thirty
    assert one.runs == 4 * (6 + 5 * 30) * one.design.runs
    for other in ("core", "optimizers", "betas", "smoke"):
        assert all(WORKLOADS[key].delay == 0 for key in STUDIES[other].workloads)


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgd"])
def test_steps_in_delays_and_a_momentum_of_its_own_reach_the_optimizer(name):
    method = Method(name, 0.5, 0.1, beta1=0.99, in_delays=True)
    model = torch.nn.Linear(1, 1)
    asked, attach = [], weightcast.attach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weightcast, "attach", lambda *a, **k: asked.append(attach(*a, **k)))
        group = method.attach(model, 1.0, Hyperparameters((0.5, 0.95)), 6).param_groups[0]
    assert [prediction.steps for prediction in asked] == [3.0]
    assert group.get("betas") == (None if name == "sgd" else (0.99, 0.95))
    assert group.get("momentum") == (0.99 if name == "sgd" else None)
    assert method.key == f"{name}-b0.99-s0.5D-lr0.1"
    assert method.label == f"{OPTIMIZERS[name][0]} β₁=0.99 s=D/2, lr 0.1"
    assert Method(name, 2.0, in_delays=True).label.endswith("s=2D")


def test_an_impossible_momentum_is_refused():
    with pytest.raises(LabError, match="adagrad has no momentum to set"):
        Method("adagrad", beta1=0.9)
    with pytest.raises(LabError, match=r"must be in \[0, 1\), got 1"):
        Method("adamw", beta1=1.0)


def test_names_of_studies():
    rounds, design = rounds_of(["core", "betas", "core"])
    assert len(rounds) == len(STUDIES["core"].rounds) + len(STUDIES["betas"].rounds)
    assert rounds[0].workloads == STUDIES["core"].workloads
    assert rounds[-1].workloads == STUDIES["betas"].workloads
    assert design == Design()
    with pytest.raises(LabError, match="did you mean 'core'"):
        rounds_of(["cores"])
    with pytest.raises(LabError, match="core and smoke differ in seeds"):
        rounds_of(["core", "smoke"])


@pytest.mark.parametrize(
    ("losses", "choice"),
    [
        ({0.1: [3.0, 3.0], 0.3: [1.0, 2.0], 1.0: [1.0, 2.1]}, Choice(0.3)),
        ({0.1: [1.0, 1.0], 0.3: [2.0, 2.0], 1.0: [3.0, 3.0]}, Choice(0.1, "lowest")),
        ({1.0: [1.0, 1.0], 0.3: [2.0, 2.0], 0.1: [3.0, 3.0]}, Choice(1.0, "highest")),
        # diverged in one seed: worse than any that did not
        ({0.1: [9.0, 9.0], 0.3: [1.0, None], 1.0: [None, None]}, Choice(0.1, "lowest")),
        ({0.1: [None, None], 0.3: [None, 5.0], 1.0: [None, 6.0]}, Choice(0.3)),
        ({0.1: [None], 0.3: [None], 1.0: [None]}, Choice(0.1, "lowest")),
        ({0.1: [2.0], 0.3: [1.0], 1.0: [1.0]}, Choice(0.3)),  # a draw: the smaller rate
        ({0.1: [2.0]}, Choice(0.1)),  # a grid of one has no edges
    ],
)
def test_the_choice_of_a_learning_rate(losses, choice):
    assert choose(losses) == choice


def line(source):
    return LineTask()


@pytest.fixture
def small(monkeypatch):
    """A study that takes no time: a line, and a variant of it."""
    monkeypatch.setitem(TASKS, "line", "tests.lab.study.test_study:line")
    monkeypatch.setitem(
        WORKLOADS, "line", Recipe("line", 0.03, 4, 3, label="A line", sgd_rate=0.03)
    )
    variant = replace(
        WORKLOADS["line"],
        label="A line, batch 10",
        batch_size=10,
        milestones=(2,),
        variant_of="line",
    )
    monkeypatch.setitem(WORKLOADS, "line-batch", variant)
    one = Study(
        "a line",
        ("line", "line-batch"),
        ((METHODS["adamw"], METHODS["adamw-s1"]), (METHODS["adamw-sinf-decaying"],)),
        Design((0.3, 1.0, 3e30), (), (100, 101), (0, 1, 2)),
    )
    monkeypatch.setitem(STUDIES, "small", one)
    more = Study("a look-ahead", ("line",), ((METHODS["adamw"], METHODS["nadamw"]),), one.design)
    monkeypatch.setitem(STUDIES, "more", more)
    # worker processes would miss the task that is not there
    monkeypatch.setattr("weightcast_lab.running.workers.run_jobs", run_here)
    monkeypatch.setattr(
        "weightcast_lab.running.workers.gc.collect", lambda: 0
    )  # slow in a large process
    return one


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longer than these runs: not where nobody looks."""
    monkeypatch.setattr("weightcast_lab.kinds.write_report", lambda *_: [])


def test_from_the_first_run_to_the_tables(weightcast, tmp_path, small, undrawn, one_thread):
    out = tmp_path / "out"
    before = weightcast("study", "small", "--out", out, "--missing")
    assert before.code == 0, before.err
    assert "54 runs are missing" in before.out  # 3 methods x 2 workloads x (3 rates x 2 + 3)
    assert not finished_in(out)

    stopped = weightcast("study", "small", "--out", out, "--minutes", 0)
    assert "0 of 54 runs are finished" in stopped.err

    done = weightcast("study", "small", "--out", out)
    assert done.code == 0, done.err
    assert "Does a forecast improve AdamW?" in done.out
    paths = finished_in(out).keys()
    assert len(paths) == 54
    # the search ran on its own seeds, at every rate, of which the last diverges
    assert "line/search/adamw-s1-lr9e+28/seed-101" in paths
    finals = [path.split("/")[2:] for path in paths if path.startswith("line/final/")]
    assert len({method for method, _ in finals}) == 3
    assert {seed for _, seed in finals} == {"seed-0", "seed-1", "seed-2"}

    experiments = load_results(out / "results.json")
    assert [e["workload"] for e in experiments] == ["A line", "A line, batch 10"]
    for experiment in experiments:
        names = [method["name"] for method in experiment["methods"]]
        assert names == [method.name for method in small.methods]
        assert {m["learning rate"] for m in experiment["methods"]} <= {0.009, 0.03}
        assert len(experiment["runs"]) == 9
        first = {r["history"]["validation_loss"][0] for r in experiment["runs"] if r["seed"] == 1}
        assert len(first) == 1  # the same initial weights for every method
        tried = experiment["search"]["tried"]
        assert len(tried) == 9
        assert experiment["search"]["seeds"] == [100, 101]
        assert all(len(entry["final loss"]) == 2 for entry in tried)
        assert all(e["final loss"] == [None, None] for e in tried if e["learning rate"] > 1)
        # the chosen rate is the best of the search
        for method in experiment["methods"]:
            means = {
                e["learning rate"]: sum(e["final loss"])
                for e in tried
                if e["name"] == method["name"] and None not in e["final loss"]
            }
            assert len(means) == 2
            assert method["learning rate"] == min(means, key=means.get)

    after = weightcast("study", "small", "--out", out, "--missing")
    assert "All runs are finished" in after.out

    # another study in the same folder goes on from what both have in common
    more = weightcast("study", "small", "more", "--out", out)
    assert more.code == 0, more.err
    assert "Does NAdamW improve AdamW?" in more.out
    assert len(finished_in(out).keys() - paths) == 9
    # more seeds at the same rates
    paths = finished_in(out).keys()
    seeded = weightcast("study", "small", "--out", out, "--seeds", 4)
    assert seeded.code == 0, seeded.err
    assert {path.split("/")[-1] for path in finished_in(out).keys() - paths} == {"seed-3"}
    assert len(finished_in(out).keys() - paths) == 6
    assert "4 seeds" in seeded.out
    markdown = weightcast("report", out, "--markdown")
    assert "| AdamW s=∞ decaying |" in markdown.out


def test_a_search_goes_beyond_its_grid_as_long_as_the_best_rate_is_an_edge(
    weightcast, tmp_path, small, undrawn, one_thread, monkeypatch
):
    design = Design((0.003, 0.01), (0.001, 0.03, 0.1, 1e30, 1e31), (100, 101), (0, 1))
    one = Study("t", ("line",), ((METHODS["adamw"], METHODS["adamw-s1"]),), design)
    monkeypatch.setitem(STUDIES, "small", one)
    out = tmp_path / "out"
    assert weightcast("study", "small", "--out", out).code == 0
    (experiment,) = load_results(out / "results.json")
    # higher and higher, until the next rate diverges; nothing lower than the grid, which is worse
    tried = {
        (e["name"], e["learning rate"]): e["final loss"] for e in experiment["search"]["tried"]
    }
    rates = [9e-5, 3e-4, 9e-4, 3e-3, 3e28]
    assert list(tried) == [(name, rate) for name in ("adamw", "adamw-s1") for rate in rates]
    assert [None in losses for losses in tried.values()] == 2 * [False, False, False, False, True]
    assert [(m["learning rate"], m["edge"]) for m in experiment["methods"]] == [(3e-3, "")] * 2
    assert len(finished_in(out)) == 2 * (5 * 2 + 2)
    again = weightcast("study", "small", "--out", out, "--missing")
    assert "All runs are finished" in again.out
    assert "beyond the grid" in again.out

    # at the last rate of all it stays an edge
    short = replace(one, design=replace(design, further=(0.001, 0.03, 0.1)))
    monkeypatch.setitem(STUDIES, "small", short)
    assert weightcast("study", "small", "--out", out).code == 0
    (experiment,) = load_results(out / "results.json")
    assert [m["edge"] for m in experiment["methods"]] == ["highest"] * 2


def test_a_failed_search_leaves_its_method_out_and_the_others_go_on(
    weightcast, tmp_path, small, undrawn, monkeypatch
):
    from weightcast_lab.running.workers import compute

    def with_a_failure(job, *rest):
        if job.run.method.name == "adamw-s1" and job.run.seed == 101:
            return "on_failure", "OutOfMemoryError: no memory"
        return compute(job, *rest)

    monkeypatch.setattr("tests.lab.paper.test_reproduction.compute", with_a_failure)
    out = tmp_path / "out"
    done = weightcast("study", "small", "--out", out)
    assert done.code == 1
    assert "6 of 54 runs failed" in done.err
    first, _ = load_results(out / "results.json")
    assert [m["name"] for m in first["methods"]] == ["adamw", "adamw-sinf-decaying"]
    assert "A line: AdamW s=1: missing." in " ".join(done.out.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("cor",), "did you mean 'core'?"),
        (("core", "smoke"), "differ in seeds or learning rates"),
        (("core",), "needs --data FOLDER"),
    ],
)
def test_mistakes_are_one_sentence(weightcast, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    outcome = weightcast("study", *words)
    assert outcome.code == 2
    assert sentence in " ".join(outcome.err.split())


def test_another_design_in_the_same_folder_is_refused(weightcast, tmp_path, small, monkeypatch):
    out = tmp_path / "out"
    weightcast("study", "small", "--out", out, "--minutes", 0)
    other = Study("t", small.workloads, small.rounds, Design((1.0,), (), (100,), (0,)))
    monkeypatch.setitem(STUDIES, "small", other)
    refused = weightcast("study", "small", "--out", out)
    assert refused.code == 2
    assert "results of another configuration" in " ".join(refused.err.split())
    assert json.loads((out / "config.json").read_text())["search seeds"] == [100, 101]


def test_a_study_of_delay_from_its_runs_to_its_questions(
    weightcast, tmp_path, small, undrawn, one_thread, monkeypatch
):
    for delay in (0, 2):
        late = replace(WORKLOADS["line"], label=f"A line, D = {delay}", delay=delay, series="L")
        monkeypatch.setitem(WORKLOADS, f"line-d{delay}", late)
    methods = tuple(METHODS[name] for name in ("adamw", "adamw-s1D", "nadamw-b0.99"))
    one = Study("late", ("line-d0", "line-d2"), (methods,), replace(small.design, seeds=(0, 1, 2)))
    monkeypatch.setitem(STUDIES, "late", one)
    out = tmp_path / "out"
    done = weightcast("study", "late", "--out", out)
    assert done.code == 0, done.err
    for question in ("what does it cost", "is a forecast of AdamW more than NAdamW"):
        assert f"2 steps late: {question}" in done.out
    assert "Does a forecast improve AdamW?" not in done.out
    paths = finished_in(out).keys()
    # 2 rates finish and one diverges, 2 search seeds, 3 seeds; the forecast at D = 2 only
    assert len(paths) == 5 * (3 * 2 + 3) == one.runs
    assert not any("s1D" in path for path in paths if path.startswith("line-d0/"))
    prompt, late = load_results(out / "results.json")
    assert (prompt["delay"], late["delay"]) == (0, 2)
    assert "delay" not in prompt["configuration"]
    assert late["configuration"]["delay"] == 2
    assert [w["name"] for w in late["wanted"]] == [method.name for method in methods]
    after = weightcast("study", "late", "--out", out, "--missing")
    assert "All runs are finished" in after.out


@pytest.mark.parametrize(
    "words", [("study", "optimizers", "--missing"), ("compare", "--optimizer", "lion")]
)
def test_a_missing_package_is_noticed_before_the_first_run(
    weightcast, tmp_path, monkeypatch, words
):
    monkeypatch.setattr(
        "weightcast_lab.methods.method.installed_version", lambda package: NOT_INSTALLED
    )
    said = weightcast(*words, "--out", tmp_path / "out")
    assert said.code == 2
    text = " ".join(said.err.split())
    assert "comes from the package" in text
    assert "which is not installed: pip install 'weightcast[study]'" in text
    assert not (tmp_path / "out").exists()
