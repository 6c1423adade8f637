"""A reproduction's report against fabricated results whose statistics are known from SciPy."""

import csv
import io
import re

import numpy as np
import pytest
from scipy import stats

from tests.lab.compare.test_report import Links
from weightcast_lab.errors import LabError
from weightcast_lab.files import FORMAT, to_json
from weightcast_lab.kinds import in_latex, in_markdown, report_of, terminal_report, write_report
from weightcast_lab.paper.claims import claims
from weightcast_lab.paper.comparison import COLUMNS, comparisons, deviations, figures
from weightcast_lab.paper.protocol import BASELINE, METHODS, RECIPES, TABLES, recipe_at
from weightcast_lab.paper.report import csv_text, latex, notes_of
from weightcast_lab.report.drawing import DARK, draw_panels
from weightcast_lab.results.loading import load_results

NETWORKS = [n for n in RECIPES if n != "vgg11_bn"]
WHOLE = {
    "cifar10": {"width": 1.0, "training images": 50_000, "validation images": 10_000},
    "ptb": {"units": 650, "training tokens": 929_589, "validation tokens": 73_760},
}


def run(method, seed, losses, *, higher=True, environment=0, diverged_at=None):
    return {
        "method": method,
        "seed": seed,
        "environment": [environment],
        "diverged_at": diverged_at,
        "history": {
            "step": [10 * n for n in range(len(losses))],
            "train_loss": [None, *losses[1:]],
            "validation_loss": losses,
            "metric": [100 - 10 * x if higher else float(np.exp(x)) for x in losses],
            "seconds": [float(n) for n in range(len(losses))],
        },
        "test": {},
    }


def experiment(network, runs, seeds, *, beta2=0.9, failures=(), **configuration):
    recipe = RECIPES[network]
    is_image = recipe.task == "cifar10"
    return {
        "key": f"{network}-beta2-{beta2:g}",
        "network": network,
        "title": f"A <{network}>",
        "command": "weightcast reproduce",
        "metric": {
            "name": "accuracy" if is_image else "perplexity",
            "decimals": 2,
            "higher_is_better": is_image,
        },
        "learning_rate_is_preset": True,
        "configuration": {
            "task": recipe.task,
            "data": "CIFAR-10" if is_image else "Penn Treebank",
            "learning rate": recipe.learning_rate,
            "milestones": list(recipe.milestones),
            "batch size": recipe.batch_size,
            "epochs": recipe.epochs,
            "betas": [0.9, beta2],
            "eps": 1e-8,
            "weight decay": 5e-4,
            "gradient clipping": None,
            "precision": "fp32",
            "compiled": False,
            **WHOLE[recipe.task],
            **configuration,
        },
        "methods": [
            {
                "key": m.key,
                "label": m.label,
                "optimizer": m.optimizer,
                "steps": m.steps,
                "learning rate": recipe.learning_rate,
            }
            for m in COLUMNS
        ],
        "seeds": list(range(seeds)),
        "environments": [
            {"hardware": name, "python": "3", "torch": "2", "weightcast": "0"}
            for name in ("A <CPU>", "A GPU")
        ],
        "failures": list(failures),
        "runs": runs,
    }


def whole(shift, seeds=4, networks=NETWORKS, beta2=0.9):
    """Every method of every network; the loss of a method is AdamW's plus `shift[method]`."""
    random = np.random.default_rng(7)
    found = []
    for network in networks:
        level = 2 + random.normal(size=seeds)
        runs = []
        for method in COLUMNS:
            for seed in range(seeds):
                losses = level[seed] + np.array([3.0, 2.0, 1.5, 1.0, 1.2]) + shift[method.key]
                losses = (losses + 0.01 * random.normal(size=5)).tolist()
                is_image = RECIPES[network].task == "cifar10"
                runs.append(run(method.key, seed, losses, higher=is_image))
        found.append(experiment(network, runs, seeds, beta2=beta2))
    return found


AHEAD = {"adamw": 0.0, "adamw-s1": -0.3, "adamw-s2": -0.3, "adamw-s3": -0.3, "nadamw": -0.6}


def of(experiments, table, network, method):
    found = next(c for c in comparisons(experiments) if c.key == table)
    return found.rows[network][[m.key for m in COLUMNS].index(method)]


def test_a_cell_is_mean_interval_and_paired_difference_as_scipy_has_them():
    experiments = whole(AHEAD)
    runs = next(e for e in experiments if e["network"] == "resnet34")["runs"]
    best = {
        key: np.array([max(r["history"]["metric"]) for r in runs if r["method"] == key])
        for key in AHEAD
    }
    entry = of(experiments, "table1", "resnet34", "adamw-s2")
    low, high = stats.t.interval(0.95, 3, best["adamw-s2"].mean(), stats.sem(best["adamw-s2"]))
    assert entry.ours.mean == pytest.approx((low + high) / 2)
    assert entry.ours.half_width == pytest.approx((high - low) / 2)
    test = stats.ttest_rel(best["adamw-s2"], best["adamw"]).confidence_interval(0.95)
    assert entry.difference.mean == pytest.approx((test.low + test.high) / 2)
    assert entry.difference.half_width == pytest.approx((test.high - test.low) / 2)
    assert entry.printed == TABLES["table1"].rows["resnet34"][2]
    assert of(experiments, "table1", "resnet34", "nadamw").is_best
    assert of(experiments, "table1", "resnet34", "adamw").difference is None


def test_every_table_has_its_own_quantity():
    losses = [5.0, 1.0, 2.0]
    experiments = [
        experiment("vgg11", [run("adamw", 0, losses)], 1),
        experiment("lstm1", [run("adamw", 0, losses, higher=False)], 1),
    ]
    assert [c.key for c in comparisons(experiments)] == list(TABLES)
    assert of(experiments, "table1", "vgg11", "adamw").ours.mean == 90
    assert of(experiments, "table2", "vgg11", "adamw").ours.mean == 1
    assert of(experiments, "table3", "lstm1", "adamw").ours.mean == pytest.approx(np.e)
    assert of(experiments, "table4", "lstm1", "adamw").ours.mean == 1
    assert of(experiments, "table3", "lstm2", "adamw").problem == "missing"


def test_seeds_of_two_machines_are_not_compared():
    """The same seed gives other numbers elsewhere: only like is paired with like."""
    runs = [run("adamw", seed, [4.0, 2.0 + seed]) for seed in range(3)]
    runs += [run("adamw-s1", 0, [4.0, 1.5]), run("adamw-s1", 1, [4.0, 2.25])]
    runs += [run("adamw-s1", 2, [4.0, -90.0], environment=1)]
    entry = of([experiment("vgg11", runs, 3)], "table2", "vgg11", "adamw-s1")
    assert entry.ours.n == 3
    assert entry.difference.n == 2
    assert entry.difference.mean == pytest.approx((-0.5 - 0.75) / 2)


def test_what_is_not_in_the_numbers_is_named():
    runs = [
        run("adamw", 0, [4.0, 2.0]),
        run("adamw-s1", 0, [4.0], diverged_at=7),
        run("nadamw", 0, [4.0, 1.0]),
    ]
    failure = {"method": "adamw-s2", "seed": 0, "reason": "its process was ended by SIGKILL"}
    found = [experiment("vgg11", runs, 2, failures=[failure])]
    assert of(found, "table2", "vgg11", "adamw-s1").problem == "diverged at step 7; 1 seed missing"
    assert "ended by SIGKILL" in of(found, "table2", "vgg11", "adamw-s2").problem
    assert of(found, "table2", "vgg11", "adamw-s3").problem == "missing"
    notes = " ".join(notes_of(found))
    assert "VGG-11, β₂ = 0.9: AdamW s=1: diverged at step 7" in notes
    assert "AdamW s=3: missing" in notes
    assert not of(found, "table2", "vgg11", "adamw-s1").is_best


@pytest.mark.parametrize(
    ("shift", "verdicts"),
    [
        (AHEAD, ("supported", "supported", "contradicted", "supported")),
        (
            {"adamw": 0, "adamw-s1": 0.3, "adamw-s2": 0.3, "adamw-s3": 0.3, "nadamw": 0.9},
            ("contradicted", "contradicted", "supported", "contradicted"),
        ),
        (
            {"adamw": 0, "adamw-s1": 0.3, "adamw-s2": -0.3, "adamw-s3": 0.0, "nadamw": 0.5},
            ("mixed", "mixed", "supported", "contradicted"),
        ),
    ],
)
def test_verdicts_follow_from_the_intervals(shift, verdicts):
    a, b, _, d, beyond, nadamw = claims(whole(shift, networks=["vgg11", "resnet34"]))
    assert (a.verdict, b.verdict, beyond.verdict, nadamw.verdict) == verdicts
    assert d.verdict == "not tested in these runs"


def test_how_much_depends_on_s():
    """Claim (c) compares s = 2 and 3 with s = 1, and knows when they differ."""
    same = claims(whole(AHEAD))[2]
    apart = claims(whole(AHEAD | {"adamw-s3": 0.4}))[2]
    assert apart.verdict == "contradicted in part"
    assert "0.7" in apart.reason
    assert same.verdict in ("not contradicted", "contradicted in part")  # 12 intervals at 95%
    assert float(re.search(r"within (\d\.\d+)", same.reason)[1]) < 0.05


def test_the_paper_is_averaged_over_the_networks_that_ran():
    """Its VGG-11 gains 88.59 - 87.85, not the table's mean."""
    said = " ".join(claim.reason for claim in claims(whole(AHEAD, networks=["vgg11"])))
    assert "(the paper's table: +0.74)" in said


def test_one_seed_proves_nothing():
    found = claims(whole(AHEAD, seeds=1))
    assert [c.verdict for c in found[:3]] == ["not shown: one seed"] * 3
    assert "better than AdamW's in 18 of 18 cells" in found[0].reason
    assert "NAdamW's best metric is better than AdamW's in 6 of 6 cells" in found[-1].reason
    assert any("One seed" in note for note in notes_of(whole(AHEAD, seeds=1)))


def test_nothing_is_claimed_where_nothing_ran():
    found = claims([experiment("vgg11", [run("adamw", 0, [4.0, 2.0])], 1)])
    assert {c.verdict for c in found} == {"not tested here", "not tested in these runs"}


def test_departures_are_said_in_words():
    found = experiment(
        "lstm1",
        [],
        1,
        beta2=0.999,
        **{"gradient clipping": 0.25, "milestones": [5, 6], "training tokens": 185_917},
    )
    assert deviations(found) == [
        "milestones 5 and 6 instead of 60 and 80",
        "betas 0.9 and 0.999 instead of 0.9 and 0.9",
        "gradient clipping 0.25 instead of none",
        "training tokens 185,917 instead of 929,589",
    ]
    assert deviations(experiment("vgg11", [], 1)) == []
    lossy = experiment("vgg11_bn", [], 1, data="CIFAR-10 (lossy JPEG)")
    assert deviations(lossy) == [
        "the paper has no such network",
        "images that went through JPEG, which costs accuracy",
    ]


def test_both_betas_have_tables_and_figures_of_their_own():
    experiments = whole(AHEAD, seeds=2) + whole(AHEAD, seeds=2, beta2=0.999)
    keys = [c.key for c in comparisons(experiments)]
    assert keys == [f"table{n}-beta2-{b}" for b in ("0.9", "0.999") for n in (1, 2, 3, 4)]
    assert len({f.key for f in figures(experiments)}) == 8


def test_vgg_with_batch_norm_is_a_row_without_printed_numbers():
    experiments = whole(AHEAD, seeds=2, networks=["vgg11", "vgg11_bn"])
    entry = of(experiments, "table1", "vgg11_bn", "adamw")
    assert entry.ours is not None
    assert entry.printed is None


def test_all_files(tmp_path):
    experiments = whole(AHEAD)
    path = tmp_path / "results.json"
    content = [{k: v for k, v in e.items() if k != "command"} for e in experiments]
    path.write_bytes(
        to_json({"format": FORMAT, "command": "weightcast reproduce", "experiments": content})
    )
    loaded = load_results(path)
    names = {file.name for file in write_report(report_of(loaded), tmp_path)}
    expected = {"report.html", "tables.md"}
    expected |= {f"table{n}.{form}" for n in (1, 2, 3, 4) for form in ("tex", "csv")}
    forms = (".png", "-light.svg", "-dark.svg")
    expected |= {f"figure{n}{form}" for n in (1, 2, 3, 4) for form in forms}
    assert names == expected
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Links()
    page.feed(text)
    assert len(page.addresses) == 4 * 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not page.tags & {"script", "link", "iframe", "object"}
    for table in TABLES.values():
        assert table.title in text
    for claim in claims(experiments):
        assert claim.verdict in text
    assert "A &lt;CPU&gt;" in text
    assert "<CPU>" not in text
    assert terminal_report(loaded) is not None
    again = write_report(report_of(loaded), tmp_path / "again")
    for file in again:
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_figures_have_a_panel_for_each_network():
    experiments = whole(AHEAD)
    one, two, three, four = figures(experiments)
    assert [one.column, two.column] == ["metric", "validation_loss"]
    assert [three.column, four.column] == ["validation_loss", "metric"]
    drawn = draw_panels(one.labelled, one.column, DARK, columns=2)
    assert [a.get_title(loc="left") for a in drawn.axes] == [
        "VGG-11",
        "ResNet-34",
        "DenseNet-121",
        "Inception-V3",
    ]
    lines = drawn.axes[0].get_lines()
    assert [line.get_label() for line in lines] == [m.label for m in COLUMNS]
    runs = [r for r in one.experiments[0]["runs"] if r["method"] == "adamw"]
    mean = np.mean([r["history"]["metric"][1:] for r in runs], axis=0)
    np.testing.assert_allclose(lines[0].get_ydata(), mean)
    np.testing.assert_array_equal(lines[0].get_xdata(), [1, 2, 3, 4])


def test_latex_and_markdown_and_csv_say_the_same():
    experiments = whole(AHEAD)
    table = comparisons(experiments)[0]
    entry = table.rows["resnet34"][4]
    text = f"{entry.ours.mean:.2f}"
    assert f"**{text}" in in_markdown(experiments, notes=True)
    assert rf"\textbf{{{text} $\pm$" in latex(table)
    assert "(\\%)" in latex(table)
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    row = next(r for r in rows if r["network"] == "resnet34" and r["method"] == BASELINE.key)
    assert float(row["mean"]) == entry.ours.mean
    assert row["printed"] == ""
    printed = next(r for r in rows if r["network"] == "vgg11" and r["method"] == METHODS[0].key)
    assert float(printed["printed"]) == 87.85
    lines = [line for line in latex(table).splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in lines} == {len(COLUMNS)}


def test_a_comparison_has_no_latex():
    from tests.lab.compare.test_report import results
    from tests.lab.compare.test_report import run as run_of_comparison

    with pytest.raises(LabError, match="--markdown"):
        in_latex([results([run_of_comparison("adamw", 0, [3.0, 2.0])], seeds=1)])


def test_presets_name_what_they_change():
    """The desk's deviations come out of its own recipe."""
    for network in NETWORKS:
        recipe = recipe_at("desk", network)
        said = deviations(experiment(network, [], 1, epochs=recipe.epochs))
        assert said == [f"epochs {recipe.epochs} instead of {RECIPES[network].epochs}"]
