import json
import re
from dataclasses import replace
from functools import partial

import pytest

from tests.discovery import DEVICE
from weightcast_lab.errors import LabError
from weightcast_lab.paper.protocol import (
    BASELINE,
    METHODS,
    PRESETS,
    RECIPES,
    TABLES,
    networks_named,
    recipe_at,
)
from weightcast_lab.results.loading import load_results
from weightcast_lab.running.workers import TaskLoader, compute, tell
from weightcast_lab.tasks import TASKS


def test_the_printed_tables_agree_with_each_other():
    """Perplexity is the exponential of the loss, and the paper's own averages come out."""
    losses, perplexities = TABLES["table4"].rows, TABLES["table3"].rows
    for network, printed in perplexities.items():
        for perplexity, loss in zip(printed, losses[network], strict=True):
            assert perplexity == pytest.approx(2.718281828**loss, rel=6e-4)
    gains = [max(row[1:]) - row[0] for row in TABLES["table1"].rows.values()]
    assert max(gains) == pytest.approx(0.74)
    assert sum(gains) / 4 == pytest.approx(0.47, abs=0.005)
    gains = [min(row[1:]) - row[0] for row in perplexities.values()]
    assert sum(gains) / 2 == pytest.approx(-5.63, abs=0.005)  # the text says -5.52


def test_every_cell_has_a_recipe_and_every_recipe_a_task():
    cells = {(n, m.key) for table in TABLES.values() for n in table.rows for m in METHODS}
    assert len(cells) == 24
    assert {network for network, _ in cells} <= RECIPES.keys()
    assert {recipe.task for recipe in RECIPES.values()} <= {*TASKS, "cifar10"}
    for preset in PRESETS:
        for network in RECIPES:
            recipe = recipe_at(preset, network)
            assert all(0 < milestone < recipe.epochs for milestone in recipe.milestones)
    assert recipe_at("paper", "lstm2") == RECIPES["lstm2"]


def test_names_of_networks_and_tables():
    assert networks_named(["all"]) == [n for n in RECIPES if n != "vgg11_bn"]
    assert networks_named(["lstm2", "table3"]) == ["lstm2", "lstm1"]
    assert networks_named(["vgg11_bn"]) == ["vgg11_bn"]
    with pytest.raises(LabError, match="did you mean 'resnet34'"):
        networks_named(["resnet"])
    with pytest.raises(LabError, match="did you mean 'desk'"):
        recipe_at("dask", "lstm2")


@pytest.fixture
def tiny(monkeypatch, small_text):
    """A preset that takes no time, on a text that is not Penn Treebank."""

    def smaller(recipe):
        recipe = recipe.with_options(units=4, window=5)
        return replace(recipe, epochs=2, milestones=(1,), batch_size=4)

    monkeypatch.setitem(PRESETS, "smoke", smaller)
    monkeypatch.setattr(
        "weightcast_lab.tasks.ptb.PUBLISHED",
        {
            name: published(small_text / name)
            for name in ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
        },
    )
    # worker processes would miss the Penn Treebank that it is not
    monkeypatch.setattr("weightcast_lab.running.workers.run_jobs", run_here)
    return "--preset", "smoke", "--data", small_text, "--jobs", 1


def run_here(jobs, workers, watcher, until):
    """As `runner.run_jobs` does, in this process."""
    failed, loader = {}, TaskLoader()
    for job in jobs:
        watcher.on_start(job)
        send = partial(relay, watcher, job)
        tell(watcher, failed, job, *compute(job, loader, send, until))
    return failed


def relay(watcher, job, event, *content):
    getattr(watcher, event)(*(content if event == "on_warning" else (job, *content)))


def published(path):
    import hashlib

    lines = [line.split() for line in path.read_text().splitlines()]
    canonical = "".join(f" {' '.join(line)} \n" for line in lines).encode()
    return sum(map(len, lines)), hashlib.sha256(canonical).hexdigest()


def test_time_is_up_before_anything_has_begun(weightcast, tmp_path, tiny):
    out = tmp_path / "out"
    done = weightcast("reproduce", "lstm1", *tiny, "--out", out, "--minutes", 0)
    assert done.code == 0, done.err
    assert "0 of 5 runs are finished" in done.err
    left = weightcast("reproduce", "lstm1", *tiny, "--out", out, "--missing")
    assert left.code == 0
    assert "5 of 5 runs are missing" in left.out
    assert len(re.findall("0 of 2", left.out)) == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("vgg12",), "did you mean 'vgg11'?"),
        (("--preset", "dask"), "did you mean 'desk'?"),
        (("--beta2", "1.5"), "β₁ and β₂ must be in [0, 1), got 0.9 and 1.5."),
        (("--precision", "fp16"), "did you mean 'bf16'?"),
        (("--precision", "tf32", "--device", "cpu"), "needs a GPU"),
        (("lstm1",), "needs --data FOLDER"),
    ],
)
def test_mistakes_are_one_sentence(weightcast, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    outcome = weightcast("reproduce", *words)
    assert outcome.code == 2
    assert sentence in " ".join(outcome.err.split())


def test_another_preset_in_the_same_folder_is_refused(weightcast, tmp_path, tiny):
    out = tmp_path / "out"
    weightcast("reproduce", "lstm1", *tiny, "--out", out, "--minutes", 0)
    refused = weightcast("reproduce", "lstm1", *tiny, "--preset", "desk", "--out", out)
    assert refused.code == 2
    assert "preset 'smoke' (now 'desk')" in " ".join(refused.err.split())
    assert json.loads((out / "config.json").read_text())["preset"] == "smoke"


def test_from_the_first_run_to_the_tables(weightcast, tmp_path, tiny, one_thread):
    """Two seeds, and then a third in the same folder: only that is computed (R30)."""
    out = tmp_path / "out"
    words = ("reproduce", "table3", *tiny, "--beta2", 0.9, "--beta2", 0.999, "--out", out)
    done = weightcast(*words, "--seeds", 2)
    assert done.code == 0, done.err
    assert "40 runs" in done.err
    assert "Table 3. Minimum validation perplexity, Penn Treebank (β₂ = 0.999)" in done.out
    experiments = load_results(out / "results.json")
    assert [e["network"] for e in experiments] == ["lstm1", "lstm2"] * 2
    for experiment in experiments:
        assert {(r["method"], r["seed"]) for r in experiment["runs"]} == {
            (method.key, seed) for method in (*METHODS, BASELINE) for seed in (0, 1)
        }
        first = [r["history"]["validation_loss"][0] for r in experiment["runs"] if r["seed"] == 0]
        assert len(set(first)) == 1  # the same initial weights for every method
    assert (out / "figure3-beta2-0.9-dark.svg").exists()
    more = weightcast(*words, "--seeds", 3)
    assert more.code == 0, more.err
    assert f"60 runs on {DEVICE}, 40 finished already" in more.err
    assert "3 seeds" in more.out
    latex = weightcast("report", out, "--latex")
    assert latex.out.count(r"\begin{tabular}") == 4
    markdown = weightcast("report", out, "--markdown")
    assert "| 2-layer LSTM |" in markdown.out


def test_a_run_that_fails_is_named_and_the_others_go_on(weightcast, tmp_path, tiny, monkeypatch):
    """As when one network needs more memory than there is."""
    honest = compute

    def with_a_failure(job, *rest):
        if job.run.method.key == "adamw-s2":
            return "on_failure", "OutOfMemoryError: CUDA out of memory"
        return honest(job, *rest)

    monkeypatch.setattr("tests.lab.paper.test_reproduction.compute", with_a_failure)
    out = tmp_path / "out"
    done = weightcast("reproduce", "lstm1", *tiny, "--out", out)
    assert done.code == 1
    assert "1 of 5 runs failed" in done.err
    text = " ".join(done.out.split())
    assert "AdamW s=2: failed: OutOfMemoryError: CUDA out of memory" in text
