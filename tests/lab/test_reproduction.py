import json
import re

import pytest

from weightcast_lab.errors import LabError
from weightcast_lab.protocol import (
    METHODS,
    PRESETS,
    RECIPES,
    TABLES,
    networks_named,
    preset_named,
)
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
    for preset in PRESETS.values():
        for network in RECIPES:
            recipe = preset.recipe(network)
            assert all(0 < milestone < recipe.epochs for milestone in recipe.milestones)
    assert preset_named("paper").recipe("lstm2") == RECIPES["lstm2"]


def test_names_of_networks_and_tables():
    assert networks_named(["all"]) == [n for n in RECIPES if n != "vgg11_bn"]
    assert networks_named(["lstm2", "table3"]) == ["lstm2", "lstm1"]
    assert networks_named(["vgg11_bn"]) == ["vgg11_bn"]
    with pytest.raises(LabError, match="did you mean 'resnet34'"):
        networks_named(["resnet"])
    with pytest.raises(LabError, match="did you mean 'desk'"):
        preset_named("dask")


@pytest.fixture
def tiny(monkeypatch, small_text):
    """A preset that takes no time, on a text that is not Penn Treebank."""
    options = {"units": 4, "window": 5}
    changes = {"epochs": 2, "milestones": (1,), "batch_size": 4}
    monkeypatch.setitem(
        PRESETS, "smoke", type(PRESETS["smoke"])("t", 1, {"ptb": changes}, {"ptb": options})
    )
    monkeypatch.setattr(
        "weightcast_lab.tasks.ptb.PUBLISHED",
        {
            name: published(small_text / name)
            for name in ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
        },
    )
    return "--preset", "smoke", "--data", small_text, "--jobs", 1


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
        (("--beta2", "1.5"), "Betas (0.9, 1.5) are not possible"),
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
