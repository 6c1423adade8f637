import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from weightcast_lab.compare.figure import draw
from weightcast_lab.compare.report import csv_table, report
from weightcast_lab.compare.summary import summarize
from weightcast_lab.errors import LabError
from weightcast_lab.files import to_json
from weightcast_lab.kinds import in_markdown, insert, report_of, write_report
from weightcast_lab.report.drawing import DARK, LIGHT, in_the_dark, to_image
from weightcast_lab.report.page import page
from weightcast_lab.report.terminal import terminal
from weightcast_lab.results.loading import load_results

LABELS = {"adamw": "AdamW", "adamw-s1": "AdamW s=1", "adamw-s3": "AdamW s=3", "nadamw": "NAdamW"}


def run(method, seed, losses, diverged_at=None, test=None):
    history = {
        "step": [10 * n for n in range(len(losses))],
        "train_loss": [None, *losses[1:]],
        "validation_loss": losses,
        "metric": [100 - 10 * loss for loss in losses],
        "seconds": [float(n) for n in range(len(losses))],
    }
    return {
        "method": method,
        "seed": seed,
        "environment": [0],
        "diverged_at": diverged_at,
        "history": history,
        "test": test or {},
    }


def results(runs, seeds=2, higher_is_better=True):
    methods = dict.fromkeys(r["method"] for r in runs)
    return {
        "key": "task",
        "title": "A <task>",
        "command": "weightcast compare",
        "metric": {"name": "accuracy", "decimals": 1, "higher_is_better": higher_is_better},
        "learning_rate_is_preset": True,
        "configuration": {
            "learning rate": 0.01,
            "batch size": 8,
            "epochs": 2,
            "parameters": 1234,
        },
        "methods": [
            {
                "key": key,
                "label": LABELS[key],
                "optimizer": key.partition("-")[0],
                "steps": float(key.partition("-s")[2]) if "-s" in key else None,
                "learning rate": 0.01,
            }
            for key in methods
        ],
        "seeds": list(range(seeds)),
        "environments": [{"hardware": "A <CPU>", "python": "3", "torch": "2", "weightcast": "0"}],
        "runs": runs,
    }


@pytest.fixture
def two_seeds():
    return results(
        [
            run("adamw", 0, [9.0, 4.0, 2.0]),
            run("adamw", 1, [9.0, 5.0, 4.0]),
            # 1.5 and 1.4 below AdamW: a small interval around 1.45
            run("adamw-s3", 0, [9.0, 1.0, 0.5]),
            run("adamw-s3", 1, [9.0, 3.0, 2.6]),
            # 1 above in one seed, 1 below in the other
            run("nadamw", 0, [9.0, 4.0, 3.0]),
            run("nadamw", 1, [9.0, 4.0, 3.0]),
        ]
    )


def table_of(found):
    return in_markdown([found], notes=False)


def page_of(found):
    return page(report([found]))


def text_of(renderable):
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_numbers(two_seeds):
    reference, better, same = summarize(two_seeds).rows
    assert reference.values["final loss"].mean == 3
    assert reference.values["final metric"].mean == 70
    assert reference.differences == {}
    difference = better.differences["final loss"]
    assert difference.mean == pytest.approx(-1.45)
    assert difference.half_width == pytest.approx(12.7062 * 0.05, rel=1e-4)  # t of 1 degree
    assert same.differences["final loss"].mean == 0
    # AdamW's final losses are 2 and 4: from 9, s=3 passes 2 at 8.75 and 4 at 8.333 of 20 steps
    assert better.steps_ratio == pytest.approx((8.75 + 8.3333) / 2 / 20, rel=1e-4)
    assert (same.not_reached, same.compared) == (1, 2)


def test_best_is_the_lowest_loss_and_the_better_metric():
    runs = [run("adamw", 0, [9.0, 1.0, 2.0])]
    assert summarize(results(runs, 1)).rows[0].values["best loss"].mean == 1
    assert summarize(results(runs, 1)).rows[0].values["best metric"].mean == 90
    low = summarize(results(runs, 1, higher_is_better=False)).rows[0]
    assert low.values["best metric"].mean == 10


def test_a_difference_is_claimed_only_if_its_interval_excludes_zero(two_seeds):
    _, _, _, better, same = table_of(two_seeds).splitlines()
    assert "**−1.4500 ± 0.6353**".replace("± ", "±\N{NO-BREAK SPACE}") in better
    assert "**" not in same
    whole = page_of(two_seeds)
    assert re.findall(r'class="card (\w*)"', whole) == ["better", ""]
    assert "better than AdamW" in whole
    assert "no difference to AdamW shown" in whole


def test_worse_is_said_as_well(two_seeds):
    for entry in two_seeds["runs"]:
        if entry["method"] == "adamw-s3":
            losses = entry["history"]["validation_loss"]
            losses[-1] = (5.5 if entry["seed"] == 0 else 7.6) - 0.0
    assert re.findall(r'class="card (\w*)"', page_of(two_seeds)) == ["worse", ""]


def test_one_seed_claims_nothing():
    both = results([run("adamw", 0, [9.0, 4.0]), run("adamw-s3", 0, [9.0, 1.0])], seeds=1)
    assert "±" not in table_of(both)
    assert "One seed" in summarize(both).notes[0]
    assert "one seed shows no difference" in page_of(both)


def test_diverged_and_missing_runs_are_in_the_table_and_out_of_the_numbers():
    found = results(
        [
            run("adamw", 0, [9.0, 4.0]),
            run("adamw", 1, [9.0, 5.0]),
            run("adamw-s1", 0, [9.0], diverged_at=7),
            run("adamw-s1", 1, [9.0, 3.0]),
            run("adamw-s3", 0, [], diverged_at=0),
            run("adamw-s3", 1, [9.0], diverged_at=4),
            run("nadamw", 0, [9.0, 1.0]),
        ]
    )
    summary = summarize(found)
    _, one, three, nadamw = summary.rows
    assert one.problems() == "diverged at step 7 (1 of 2)"
    assert one.values["final loss"].mean == 3
    assert one.differences["final loss"].mean == -2
    assert three.problems() == "diverged at step 0 to 4 (2 of 2)"
    assert three.values["final loss"] is None
    assert nadamw.problems() == "missing (1 of 2)"
    for text in (table_of(found), text_of(terminal(report([found])))):
        assert "diverged at step 7 (1 of 2)" in " ".join(text.split())
    assert any("finished runs only" in note for note in summary.notes)


def test_everything_can_be_drawn_when_nothing_but_divergence_is_left(tmp_path):
    runs = [run("adamw", 0, [9.0], 3), run("adamw-s3", 0, [], 0)]
    files = write_report(report_of([results(runs, 1)]), tmp_path)
    assert all(path.stat().st_size > 0 for path in files)


def test_never_reached():
    runs = [run("adamw", 0, [9.0, 1.0]), run("nadamw", 0, [9.0, 2.0])]
    assert "not reached (1 of 1)" in table_of(results(runs, 1))


def test_test_metrics_have_a_column():
    runs = [run("adamw", 0, [9.0, 1.0], test={"test accuracy": 12.345})]
    table = table_of(results(runs, 1))
    assert "| Test accuracy |" in table
    assert "| 12.3 |" in table


def test_markdown_is_a_table(two_seeds):
    lines = table_of(two_seeds).splitlines()
    assert len(lines) == 2 + 3
    assert len({line.count("|") for line in lines}) == 1


def test_csv_has_the_numbers_in_full(two_seeds):
    rows = list(csv.DictReader(io.StringIO(csv_table(summarize(two_seeds)))))
    assert [row["method"] for row in rows] == ["AdamW", "AdamW s=3", "NAdamW"]
    assert float(rows[1]["final loss difference mean"]) == pytest.approx(-1.45)
    assert rows[0]["final loss difference mean"] == ""


def test_notes_name_seeds_interval_pairing_learning_rate_hardware_and_versions(two_seeds):
    notes = " ".join(summarize(two_seeds).notes)
    for words in (
        "2 seeds",
        "95% t interval",
        "paired",
        "0.01",
        "chosen for plain AdamW",
        "A <CPU>",
        "torch 2",
        "excludes zero",
    ):
        assert words in notes
    two_seeds["learning_rate_is_preset"] = False
    assert "none was tuned" in " ".join(summarize(two_seeds).notes)


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.addresses += [v for name, v in attributes if name in ("src", "srcset", "href", "data")]


def test_the_page_needs_nothing_else(two_seeds):
    whole = page_of(two_seeds)
    links = Links()
    links.feed(whole)
    assert len(links.addresses) == 4
    assert all(address.startswith("data:image/svg+xml;base64,") for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in whole
    assert "@import" not in whole
    assert "A &lt;task&gt;" in whole
    assert "<CPU>" not in whole


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_are_the_same_every_time(two_seeds, form, start, theme):
    rows = summarize(two_seeds).rows
    first, second = (to_image(draw(two_seeds, rows, theme, columns=1), form) for _ in range(2))
    assert first == second
    assert first.startswith(start)


def test_the_dark_picture_is_the_light_one_in_other_colours(two_seeds):
    rows = summarize(two_seeds).rows
    light, dark = (to_image(draw(two_seeds, rows, theme, 1), "svg") for theme in (LIGHT, DARK))
    # matplotlib's names of shapes depend on their colours
    turned, drawn, first = (
        re.sub(rb"m[0-9a-f]{10}", b"", image) for image in (in_the_dark(light), dark, light)
    )
    assert turned == drawn != first


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff\xfe", b'{"format": 2}', b'{"format": 2, "experiments": []}'],
)
def test_a_damaged_results_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(LabError, match="is damaged"):
        load_results(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("metric",), 5),
        (("metric", "decimals"), "three"),
        (("title",), None),
        (("configuration",), []),
        (("configuration", "learning rate"), "0.01"),
        (("methods",), 7),
        (("methods", 0, "label"), 3),
        (("seeds",), ["one"]),
        (("runs",), 3),
        (("runs", 0), [1]),
        (("runs", 0, "history"), {}),
        (("runs", 0, "history", "metric"), [1.0]),
        (("runs", 0, "history", "validation_loss", 0), "nothing"),
        (("runs", 0, "seed"), "0"),
    ],
)
def test_results_of_another_shape_are_damaged(tmp_path, two_seeds, place, value):
    *way, last = place
    inside = two_seeds
    for step in way:
        inside = inside[step]
    inside[last] = value
    path = tmp_path / "results.json"
    path.write_bytes(to_json({"format": 2, "command": "c", "experiments": [two_seeds]}))
    with pytest.raises(LabError, match="is damaged"):
        load_results(path)


def test_a_results_file_of_another_format_is_refused(tmp_path, two_seeds):
    path = tmp_path / "results.json"
    for number, remedy in ((99, "upgrade"), (1, "compute it again"), ("x", "compute it again")):
        path.write_bytes(to_json(two_seeds | {"format": number}))
        with pytest.raises(LabError, match=f"format {number!r}.*{remedy}"):
            load_results(path)


def test_results_survive_the_file(tmp_path, two_seeds):
    path = tmp_path / "results.json"
    path.write_bytes(to_json({"format": 2, "command": "c", "experiments": [two_seeds]}))
    assert load_results(path) == [two_seeds | {"command": "c"}]
    assert json.loads(path.read_text())["experiments"] == [two_seeds]


def test_what_ran_elsewhere_is_not_compared_and_named(two_seeds):
    two_seeds["environments"].append(two_seeds["environments"][0] | {"hardware": "B"})
    (run,) = (r for r in two_seeds["runs"] if (r["method"], r["seed"]) == ("adamw-s3", 1))
    run["environment"] = [1]
    summary = summarize(two_seeds)
    row = summary.rows[1]
    assert (row.compared, row.elsewhere) == (1, 1)
    assert row.values["final loss"].n == 2
    assert row.differences["final loss"].mean == pytest.approx(-1.5)
    notes = " ".join(summary.notes)
    assert "AdamW s=3: 1 of 2 seeds ran in another environment" in notes
    assert "A <CPU>" in notes
    assert "B, Python" in notes
    paired = draw(two_seeds, summary.rows, LIGHT, columns=2).axes[2]
    (line,) = [line for line in paired.lines if line.get_label() == "AdamW s=3"]
    assert line.get_ydata() == pytest.approx([-75, -75])  # of seed 0: 1 to 4, and 0.5 to 2


@pytest.mark.parametrize("shift", [4.0, 0.5])
def test_losses_that_are_not_positive_are_subtracted(two_seeds, shift):
    """Of a task of one's own: log-likelihoods, or a loss that comes down to 0."""
    for run in two_seeds["runs"]:
        losses = run["history"]["validation_loss"]
        run["history"]["validation_loss"] = [loss - shift for loss in losses]
    paired = draw(two_seeds, summarize(two_seeds).rows, LIGHT, columns=2).axes[2]
    assert paired.get_title(loc="left") + paired.get_title() == "Loss minus AdamW's (paired)"
    (line,) = [line for line in paired.lines if line.get_label() == "AdamW s=3"]
    runs = {(r["method"], r["seed"]): r["history"]["validation_loss"] for r in two_seeds["runs"]}
    seeds = two_seeds["seeds"]
    shown = [np.subtract(runs["adamw-s3", s], runs["adamw", s])[1:] for s in seeds]
    assert line.get_ydata() == pytest.approx(np.mean(shown, axis=0))
    assert (line.get_ydata() < 0).all()  # lower is better, and lies lower


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path, two_seeds):
    document = tmp_path / "page.md"
    text = "# Title\n<!-- begin a -->\nold\n<!-- end a -->\ntail <!-- end a -->\n"
    document.write_text(text)
    summary = summarize(two_seeds)
    insert(document, "a", [two_seeds])
    written = document.read_text()
    notes = "".join(f"- {note}\n" for note in summary.notes)
    filled = f"<!-- begin a -->\n{table_of(two_seeds)}\n{notes}<!-- end a -->"
    assert written == f"# Title\n{filled}\ntail <!-- end a -->\n"
    insert(document, "a", [two_seeds])
    assert document.read_text() == written
    with pytest.raises(LabError, match="lacks the lines '<!-- begin b -->'"):
        insert(document, "b", [two_seeds])
    with pytest.raises(LabError, match="cannot be read"):
        insert(tmp_path / "missing.md", "a", [two_seeds])
