"""A study's report against fabricated results whose statistics are known from SciPy."""

import csv
import io
import re

import numpy as np
import pytest
from scipy import stats

from tests.lab.compare.test_report import Links
from weightcast_lab.errors import LabError
from weightcast_lab.kinds import in_latex, in_markdown, insert, report_of, write_report
from weightcast_lab.report.blocks import Figure
from weightcast_lab.report.drawing import DARK, LIGHT, to_image
from weightcast_lab.report.page import page
from weightcast_lab.report.tables import number
from weightcast_lab.results.statistics import MedianInterval
from weightcast_lab.study.advice import recommendations
from weightcast_lab.study.answers import Answer, Effect, answers, asked, heaviest, versus_plain
from weightcast_lab.study.brief import median_of_medians
from weightcast_lab.study.drawing import draw_delays, draw_rates
from weightcast_lab.study.questions import DELAY_QUESTIONS, METHODS, QUESTIONS
from weightcast_lab.study.report import report, verdicts
from weightcast_lab.study.studies import STUDIES
from weightcast_lab.study.text import change_text, median_text, overall_text, without_text
from weightcast_lab.study.workload_rows import workload_rows

NAMES = [method.name for method in STUDIES["core"].methods]
WORKLOADS = ("one", "two", "three")


def markdown(experiments):
    return in_markdown(experiments, notes=True)


def brief(experiments):
    return in_markdown(experiments, notes=True, brief=True)


def notes_of(experiments):
    return report(experiments).notes


def study_figures(experiments):
    return [block for block in report(experiments).blocks if isinstance(block, Figure)]


def run(name, seed, losses, *, environment=0, diverged_at=None, cpu=10.0, memory=2.0):
    return {
        "method": f"{name}-lr0.01",
        "seed": seed,
        "environment": [environment],
        "diverged_at": diverged_at,
        "history": {
            "step": [10 * n for n in range(len(losses))],
            "train_loss": [None, *losses[1:]],
            "validation_loss": losses,
            "metric": [100 - 10 * loss for loss in losses],
            "seconds": [float(n) for n in range(len(losses))],
        },
        "test": {},
        "memory": memory,
        "cpu_seconds": cpu,
    }


def experiment(key, runs, names=NAMES, *, seeds=5, variant_of="", device="cpu", edge=""):
    chosen = [name for name in names if any(r["method"] == f"{name}-lr0.01" for r in runs)]
    return {
        "key": key,
        "workload": f"Workload <{key}>",
        "variant_of": variant_of,
        "title": f"A <{key}>",
        "command": "weightcast study",
        "metric": {"name": "accuracy", "decimals": 1, "higher_is_better": True},
        "learning_rate_is_preset": True,
        "configuration": {"task": key, "epochs": 3},
        "methods": [
            {
                "key": f"{name}-lr0.01",
                "name": name,
                "label": METHODS[name].label,
                "optimizer": METHODS[name].optimizer,
                "steps": METHODS[name].steps,
                "learning rate": 0.01,
                "edge": edge if name == "adamw" else "",
            }
            for name in chosen
        ],
        "wanted": [{"name": name, "label": METHODS[name].label} for name in names],
        "seeds": list(range(seeds)),
        "environments": [
            {"device": d, "hardware": h, "python": "3", "torch": "2", "weightcast": "0"}
            for d, h in ((device, "A <CPU>"), ("cuda", "A GPU"))
        ],
        "search": {"seeds": [100, 101], "environments": [], "tried": []},
        "failures": [],
        "runs": runs,
    }


def whole(shift, *, names=NAMES, keys=WORKLOADS, scatter=0.002, **more):
    """Final losses are those of AdamW times `exp(shift[method])`, a little scattered."""
    random = np.random.default_rng(7)
    found = []
    for key in keys:
        level = np.exp(random.normal(size=5))
        runs = [
            run(name, seed, losses_of(level[seed] * np.exp(shift.get(name, 0) + noise)))
            for name in names
            for seed, noise in enumerate(scatter * random.normal(size=5))
        ]
        found.append(experiment(key, runs, names, **more))
    return found


def losses_of(final):
    return [float(final * factor) for factor in (9, 3, 2, 1)]


BETTER = {"adamw-s3": -0.05, "adamw-s1": -0.02, "adamw-s-1": 0.05, "nadamw": -0.05}


def final_losses(experiment, name):
    runs = [r for r in experiment["runs"] if r["method"] == f"{name}-lr0.01"]
    return np.log([r["history"]["validation_loss"][-1] for r in runs])


def answer_to(experiments, key):
    (answer,) = asked(answers(experiments), key)
    return answer


def row_of(answer, name):
    return next(row for row in answer.rows if row.name == name)


def test_effects_are_paired_t_tests_corrected_over_the_table():
    """Forecasts, control and NAdamW against AdamW stand in one table: one bar for all its rows."""
    experiments = whole(BETTER)
    family = [answer_to(experiments, key) for key in ("adamw", "control", "look-ahead")]
    for answer in family:
        assert answer.workloads == tuple(e["workload"] for e in experiments)
        assert answer.corrected == 30
        assert "(a family of 30)" in answer.reason
    raw = {
        (row.name, place): stats.ttest_rel(final_losses(e, row.name), final_losses(e, "adamw"))
        for answer in family
        for row in answer.rows
        for place, e in enumerate(experiments)
    }
    assert len(raw) == (8 + 1 + 1) * 3
    ranked = sorted(raw, key=lambda key: raw[key].pvalue)
    least = 0.0
    corrected = {}
    for rank, key in enumerate(ranked):  # Holm, by hand
        least = corrected[key] = max(least, min(1.0, (30 - rank) * raw[key].pvalue))
    for row in [row for answer in family for row in answer.rows]:
        for place, effect in enumerate(row.effects):
            interval = raw[row.name, place].confidence_interval(0.95)
            assert effect.change.mean == pytest.approx((interval.low + interval.high) / 2)
            assert effect.change.half_width == pytest.approx((interval.high - interval.low) / 2)
            assert effect.p == pytest.approx(corrected[row.name, place])
    # a question in a table of its own is a family of its own
    beyond = answer_to(experiments, "nadamw")
    assert beyond.corrected == 24
    assert "in its family" not in beyond.reason


def test_means_without_one_task():
    """Of three tasks two are left: their mean's test is Welch's of the one against minus the other.

    Corrected by Holm over the ten rows of the table.
    """
    experiments = whole(BETTER | {"adamw-s3": 0.0}, scatter=0.02)
    family = [answer_to(experiments, key) for key in ("adamw", "control", "look-ahead")]
    rows = [row for answer in family for row in answer.rows]
    for left_out in range(3):
        kept = [e for place, e in enumerate(experiments) if place != left_out]
        tests = {}
        for row in rows:
            one, two = (final_losses(e, row.name) - final_losses(e, "adamw") for e in kept)
            tests[row.name] = stats.ttest_ind(one, -two, equal_var=False)
            interval = tests[row.name].confidence_interval(0.95)
            change = row.without[left_out].change
            assert change.mean == pytest.approx((one.mean() + two.mean()) / 2)
            assert change.half_width == pytest.approx((interval.high - interval.low) / 4)
        smallest = min(rows, key=lambda row: tests[row.name].pvalue)
        assert smallest.without[left_out].p == pytest.approx(10 * tests[smallest.name].pvalue)
        for row in rows:
            p = tests[row.name].pvalue
            assert p <= row.without[left_out].p * (1 + 1e-9) <= min(1, 10 * p) * (1 + 2e-9)


def test_the_heaviest_task_is_the_one_that_moves_the_means_most():
    names = ["adamw", "adamw-s3", "nadamw"]
    heavy = whole({"adamw-s3": 0.3}, names=names, keys=["heavy"])
    light = whole({"adamw-s3": -0.05}, names=names, keys=["one", "two"])
    found = answers(light + heavy)
    (task,) = set(heaviest(found).values())
    assert task == "Workload <heavy>"
    answer = asked(found, "adamw")[0]
    assert answer.verdict == "worse"
    assert answer.verdict_without(task) == "better"
    text = markdown(light + heavy)
    assert "Without Workload <heavy>: better." in text
    header = next(x for x in text.splitlines() if x.startswith("| Method | Workload"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert columns[-2] == "Mean without Workload <heavy>"
    (line, *_) = (x for x in text.splitlines() if x.startswith("| AdamW s=3 |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    row = row_of(answer, "adamw-s3")
    assert cells[-2] == f"**{without_text(row, 2)}**"
    assert cells[-1].startswith(f"{number(100 * np.expm1(row.without[2].change.mean), 1)} (")
    assert cells[-1].startswith("−") and "to +" in cells[-1]
    (brief_line,) = (x for x in brief(light + heavy).splitlines() if x.startswith("| AdamW s=3 |"))
    assert f"| **{without_text(row, 2)}** |" in brief_line
    (advice, *_) = recommendations(found, lambda change: number(change.mean, 2))
    assert "Without Workload <heavy>, against AdamW: better; lowest AdamW s=3 (−0.05)." in advice
    assert heaviest(answers(light)) == {}  # of two tasks none is left out
    assert "without Workload" not in markdown(light)


def test_the_brief_table_of_questions_that_were_asked_of_different_tasks():
    """The mean without a task is of a question that was asked of it; elsewhere there is none."""
    experiments = whole({"adamw-s3": 0.1}, names=["adamw", "adamw-s3", "nadamw"])
    del experiments[0]["wanted"][2]  # NAdamW was not to run on the first two tasks
    del experiments[1]["wanted"][2]
    found = answers(experiments)
    (task,) = heaviest(found).values()
    (nadamw,) = (x for x in brief(experiments).splitlines() if x.startswith("| NAdamW |"))
    assert nadamw.split("|")[3].strip() == "–"
    (s3,) = (x for x in brief(experiments).splitlines() if x.startswith("| AdamW s=3 |"))
    row = row_of(answer_to(experiments, "adamw"), "adamw-s3")
    place = answer_to(experiments, "adamw").tasks.index(task)
    assert without_text(row, place) in s3


def test_nothing_retuned_is_the_search_at_adamws_own_rate():
    """Pairs of the search's seeds at the rate that was chosen for AdamW, diverged runs left out."""
    experiments = whole(BETTER, names=["adamw", "adamw-s1", "adamw-s3", "nadamw"])
    assert not asked(answers(experiments), "untuned")
    losses = {
        "adamw": [2.0, 4.0],
        "adamw-s1": [1.0, 1.0],
        "adamw-s3": [1.9, 3.6],
        "nadamw": [1.0, None],
    }
    for e in experiments:
        e["search"]["environments"] = e["environments"][:1]
        e["search"]["tried"] = [
            {"name": name, "learning rate": 0.01 if name != "adamw-s1" else 0.03, "final loss": own}
            for name, own in losses.items()
        ] + [{"name": "adamw-s1", "learning rate": 0.01, "final loss": [2.2, 4.2]}]
    answer = answer_to(experiments, "untuned")
    assert [row.name for row in answer.rows] == ["adamw-s1", "adamw-s3", "nadamw"]
    worse, better, diverged = answer.rows
    test = stats.ttest_1samp(np.log([1.9 / 2.0, 3.6 / 4.0]), 0)
    interval = test.confidence_interval(0.95)
    assert better.effects[0].change.mean == pytest.approx((interval.low + interval.high) / 2)
    assert better.effects[0].change.half_width == pytest.approx(
        interval.high - better.effects[0].change.mean
    )
    assert worse.effects[0].change.mean == pytest.approx(np.log([1.1, 1.05]).mean())
    assert diverged.effects[0].problem == "1 of 2 diverged"
    assert (diverged.effects[0].verdict, diverged.overall.verdict) == ("", "")
    assert any(note.startswith("With nothing retuned") for note in notes_of(experiments))
    # nobody knows which runs came from where
    for e in experiments:
        e["search"]["environments"] = e["environments"]
    assert not asked(answers(experiments), "untuned")


def test_what_was_measured_on_test_data_has_its_columns():
    names = ["adamw", "adamw-s3"]
    (one,) = whole(BETTER, names=names, keys=["one"])
    assert "est perplexity" not in markdown([one])
    tested = {
        "adamw": [90.0, 100.0, 110.0, 95.0, 105.0],
        "adamw-s3": [88.0, 97.0, 108.0, 93.0, 101.0],
    }
    for r in one["runs"]:
        r["test"] = {"test perplexity": tested[r["method"].removesuffix("-lr0.01")][r["seed"]]}
    reference, row = workload_rows(one)
    test = stats.ttest_rel(np.log(tested["adamw-s3"]), np.log(tested["adamw"]))
    value, change = row.tests["test perplexity"]
    assert value.mean == pytest.approx(np.mean(tested["adamw-s3"]))
    assert change.mean == pytest.approx(
        np.mean(np.log(tested["adamw-s3"]) - np.log(tested["adamw"]))
    )
    assert change.mean + change.half_width == pytest.approx(test.confidence_interval(0.95).high)
    assert reference.tests["test perplexity"][1] is None
    assert "| Test perplexity | Test perplexity, change to AdamW in % |" in markdown([one])
    assert f"| {change_text(change)} |" in markdown([one])


def test_verdicts_follow_from_the_corrected_means():
    experiments = whole(BETTER)
    answer = answer_to(experiments, "adamw")
    assert [row.name for row in answer.rows if row.overall.verdict == "better"] == [
        "adamw-s1",
        "adamw-s3",
    ]
    assert answer.verdict == "better: AdamW s=1, AdamW s=3"
    assert answer_to(experiments, "control").verdict == "worse"
    assert answer_to(experiments, "look-ahead").verdict == "better"
    beyond = answer_to(experiments, "nadamw")
    assert row_of(beyond, "adamw-s3").overall.verdict == ""
    assert row_of(beyond, "adamw-s8").overall.verdict == "worse"
    questions = {question.text for question in QUESTIONS}
    assert {question for question, _, _ in verdicts(answers(experiments))} < questions
    assert answer_to(whole({}), "adamw").verdict == "on average no difference shown"


def test_without_correction_chance_would_be_called_a_difference():
    """Nothing but noise: of 240 comparisons some have p < 0.05, and none is claimed."""
    keys = [f"w{n}" for n in range(30)]
    answer = answer_to(whole({}, keys=keys), "adamw")
    effects = [effect for row in answer.rows for effect in row.effects]
    assert sum(effect.change.excludes_zero for effect in effects) > 3
    assert not any(effect.verdict for effect in effects)


def test_a_diverged_run_is_named_and_its_method_called_neither():
    experiments = whole(BETTER)
    broken = next(r for r in experiments[0]["runs"] if r["method"] == "adamw-s3-lr0.01")
    broken |= {"diverged_at": 7}
    row = row_of(answer_to(experiments, "adamw"), "adamw-s3")
    assert row.effects[0].problem == "1 of 5 diverged"
    assert [effect.verdict for effect in row.effects] == ["", "better", "better"]
    assert row.overall.verdict == ""
    assert "AdamW s=3: 1 of 5 diverged." in " ".join(notes_of(experiments))
    assert "(1 of 5 diverged)" in markdown(experiments)


def test_what_is_missing_is_said_and_the_rest_compared():
    experiments = whole(BETTER)
    experiments[1]["runs"] = [r for r in experiments[1]["runs"] if "s3-lr" not in r["method"]]
    experiments[1]["methods"] = [m for m in experiments[1]["methods"] if m["name"] != "adamw-s3"]
    experiments[2]["runs"] = [r for r in experiments[2]["runs"] if r["seed"] != 4]
    row = row_of(answer_to(experiments, "adamw"), "adamw-s3")
    assert row.effects[1].change is None
    assert row.effects[1].p is None
    assert row.effects[1].problem == "missing"
    assert row.effects[2].change.n == 4
    assert row.overall.change.n == 9
    assert overall_text(row).endswith(" (of 2)")
    assert not overall_text(row_of(answer_to(experiments, "adamw"), "adamw-s1")).endswith(")")
    notes = " ".join(notes_of(experiments))
    assert "Workload <two>: AdamW s=3: missing." in notes
    assert "Workload <three>: all methods: 1 of 5 missing." in notes


def test_what_is_not_begun_is_named_below_the_tables_alone():
    experiments = whole(BETTER, names=["adamw", "adamw-s3"])
    for e in experiments:
        e["wanted"] += [
            {"name": name, "label": METHODS[name].label} for name in ("adamw-s5", "sgd")
        ]
    text = markdown(experiments)
    assert "| AdamW s=3 |" in text
    assert "| AdamW s=5 |" not in text
    assert "Does NAdamW improve AdamW? **not tested here**" not in text
    assert "Do other optimizers, plain, do better than AdamW?** Change" not in text
    assert "Workload <one>: AdamW s=5, SGD: missing." in text
    experiments[0]["runs"].append(run("adamw-s5", 0, losses_of(1.0), diverged_at=3))
    experiments[0]["methods"].append(
        experiments[0]["methods"][1] | {"key": "adamw-s5-lr0.01", "name": "adamw-s5"}
    )
    assert "| AdamW s=5 |" in markdown(experiments)


def test_nothing_but_wanted():
    experiments = [experiment(key, []) for key in WORKLOADS]
    assert {answer.verdict for answer in answers(experiments)} == {"not tested here"}
    assert "AdamW: not tested here." in markdown(experiments)


def test_seeds_of_another_environment_are_not_compared():
    experiments = whole(BETTER)
    for r in experiments[0]["runs"]:
        if r["method"] == "adamw-s3-lr0.01" and r["seed"] > 2:
            r["environment"] = [1]
    row = row_of(answer_to(experiments, "adamw"), "adamw-s3")
    assert [effect.change.n for effect in row.effects] == [3, 5, 5]


def test_variants_have_a_table_of_their_own_and_do_not_count_twice():
    names = ["adamw", "adamw-s3", "nadamw"]
    main = whole(BETTER, names=names)
    variant = whole(BETTER, names=names, keys=["one-batch"], variant_of="one")
    together = main + variant
    assert answer_to(together, "adamw").rows == answer_to(main, "adamw").rows
    own = answer_to(together, "variants")
    assert own.workloads == ("Workload <one>", "Workload <one-batch>")
    assert [row.name for row in own.rows] == ["adamw-s3", "nadamw"]
    # a method that nobody wanted there is not missing there
    wider = answer_to(whole(BETTER, names=[*names, "adamw-s8"], keys=["one"]) + variant, "variants")
    assert row_of(wider, "adamw-s8").effects[1] == Effect(None, None, "")
    assert not asked(answers(main), "variants")


def test_steps_hours_cost_and_memory():
    shares = [  # at 20 and 30 steps: AdamW ends at 1; s=3 is there after 20 + 10·share steps
        run("adamw-s3", seed, [9.0, 3.0, 2.0, 0.5], cpu=12.0, memory=3.0) for seed in range(5)
    ]
    shares[0]["history"]["validation_loss"] = [9.0, 3.0, 2.0, 1.5]  # never
    runs = [run("adamw", seed, [9.0, 3.0, 2.0, 1.0]) for seed in range(5)] + shares
    reference, row = workload_rows(experiment("one", runs, ["adamw", "adamw-s3"], edge="lowest"))
    share = (20 + 10 * (2 - 1) / (2 - 0.5)) / 30
    assert row.steps.median == pytest.approx(share)
    assert (row.steps.low, row.steps.high) == (pytest.approx(share), None)
    assert row.cost == pytest.approx(1.2)
    assert row.hours.median == pytest.approx(1.2 * share)
    assert (reference.memory, row.memory) == (2.0, 3.0)
    assert (reference.edge, row.edge) == ("lowest", "")
    assert row.values["best metric"].mean == 95
    # speeds of different processors are not compared, seeds are
    for r in shares:
        r["processor"] = "faster"
    _, elsewhere = workload_rows(experiment("one", runs, ["adamw", "adamw-s3"]))
    assert (elsewhere.cost, elsewhere.hours) == (None, None)
    assert elsewhere.steps == row.steps
    for r in runs:
        r["processor"] = "faster"
    # on a GPU the process's own time says nothing
    for r in shares:
        r["history"]["seconds"][-1] *= 3
    _, row = workload_rows(experiment("one", runs, ["adamw", "adamw-s3"], device="cuda"))
    assert row.cost == pytest.approx(3.0)


def test_advice_is_the_lowest_mean_of_what_is_better():
    def advice(shift):
        return recommendations(answers(whole(shift)), lambda c: number(c.mean, 2))

    first, second, third = advice(BETTER)
    assert first.startswith("AdamW: AdamW s=3 has the lowest mean of those that are better (−0.05)")
    assert "shown to be worse on none. Without Workload <" in first
    assert first.endswith("better: AdamW s=1, AdamW s=3; lowest AdamW s=3 (−0.05).")
    assert second.startswith("NAdamW instead of AdamW: better (−0.05).")
    assert "NAdamW: no forecast is shown to improve it" in third
    assert "nothing to set" in advice({})[0]


def test_advice_claims_no_test_where_one_seed_allows_none():
    experiments = whole(BETTER)
    for e in experiments:
        e["runs"] = [r for r in e["runs"] if r["seed"] == 0]
    said = recommendations(answers(experiments), lambda c: number(c.mean, 2))
    assert said[1].startswith("NAdamW instead of AdamW: not tested here.")


def test_advice_where_a_forecast_is_better_in_places_and_not_on_average():
    noisy = whole({}, names=["adamw", "adamw-s1", "adamw-s3"], keys=["one"], scatter=0.5)
    clear = whole(BETTER, names=["adamw", "adamw-s1", "adamw-s3"], keys=["two"])
    found = answers(noisy + clear)
    assert asked(found, "adamw")[0].verdict == "on average no difference shown"
    (said, *_) = recommendations(found, lambda c: number(c.mean, 2))
    assert "no forecast is shown to improve it on average; AdamW s=" in said
    assert "is better on 1 of 2 tasks (Workload <two>) and shown to be worse on none" in said
    assert said.endswith("worth a comparison on your own.")


def test_advice_where_a_forecast_is_worse_as_often_as_better():
    names = ["adamw", "adamw-s3"]
    found = answers(
        whole({"adamw-s3": -0.05}, names=names, keys=["one"])
        + whole({"adamw-s3": 0.2}, names=names, keys=["two"])
    )
    (said, *_) = recommendations(found, lambda c: number(c.mean, 2))
    assert "better on 1 of 2 tasks (Workload <one>) and worse on Workload <two>" in said
    assert said.endswith("not to be recommended.")


def test_changes_in_per_cent():
    (answer,) = asked(answers(whole({"adamw-s3": np.log(0.9)}, scatter=0.0)), "adamw")
    row = row_of(answer, "adamw-s3")
    assert change_text(row.overall.change).startswith("−10.0 [−10.0, −10.0]")
    assert change_text(None) == "–"


@pytest.fixture
def core():
    return whole(BETTER)


def test_markdown_marks_what_is_shown(core):
    text = markdown(core)
    line = next(x for x in text.splitlines() if x.startswith("| AdamW s=3 |"))
    assert line.count("**") == 10
    for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({row.count("|") for row in table.splitlines()}) == 1
    assert "0.01 ↓" in markdown(whole(BETTER, edge="lowest"))
    assert text.count("**Workload <") == 3


def test_csv_has_every_comparison_in_full(core):
    rows = list(csv.DictReader(io.StringIO(report(core).files["table.csv"])))
    found = answers(core)
    # three workloads, their mean, and three means without one of them
    assert len(rows) == sum(len(answer.rows) * (3 + 1 + 3) for answer in found)
    (s3,) = (
        r
        for r in rows
        if (r["question"], r["method"], r["workload"]) == ("adamw", "adamw-s3", "overall")
    )
    overall = row_of(answer_to(core, "adamw"), "adamw-s3").overall
    assert float(s3["log change"]) == overall.change.mean
    assert float(s3["corrected p"]) == overall.p
    assert s3["verdict"] == "better"


def test_notes_name_seeds_correction_edges_hardware_and_versions():
    notes = " ".join(notes_of(whole(BETTER, edge="highest")))
    for words in (
        "5 seeds",
        "95% t intervals",
        "Holm",
        "seeds: 100 and 101",
        "94% confidence",
        "A <CPU>",
        "torch 2",
        "3 of the 36 learning rates are the lowest or highest that was tried",
    ):
        assert words in notes


def test_packages_are_named_where_they_were_used(core):
    assert "torch lacks" not in " ".join(notes_of(core))
    core[0]["runs"][0]["package"] = "schedulefree 1.4"
    assert "torch lacks come from schedulefree 1.4." in " ".join(notes_of(core))


def test_a_study_is_not_a_reproduction(core, tmp_path):
    assert in_markdown(core, notes=True) == markdown(core)
    with pytest.raises(LabError, match="--latex is for a reproduction"):
        in_latex(core)
    document = tmp_path / "results.md"
    document.write_text("<!-- begin s -->\n<!-- end s -->\n")
    insert(document, "s", core)
    assert markdown(core) in document.read_text()


def test_all_files_of_a_report(core, tmp_path):
    variant = whole(BETTER, names=["adamw", "adamw-s3"], keys=["more"], variant_of="one")
    names = {path.name for path in write_report(report_of(core + variant), tmp_path)}
    figures = ("curves", "rates", "ahead", "forest-adamw", "forest-nadamw", "forest-plain")
    assert names == {
        *("report.html", "tables.md", "table.csv"),
        *(
            f"{name}{form}"
            for name in (*figures, "forest-variants")
            for form in (".png", "-light.svg", "-dark.svg")
        ),
    }
    page = (tmp_path / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert all(address.startswith("data:image/svg+xml;base64,") for address in links.addresses)
    assert not links.tags & {"script", "link", "iframe", "object"}
    assert "<CPU>" not in page
    assert "Workload <" not in page
    assert 'class="better"' in page


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_pictures_of_a_study_are_the_same_every_time(theme):
    few = whole(BETTER, names=["adamw", "adamw-s3", "nadamw"], keys=["one"])
    for figure in study_figures(few):
        first, second = (to_image(figure.draw(theme, 1), "svg") for _ in range(2))
        assert first == second


def test_a_study_of_nothing_can_be_drawn():
    assert "not tested here" in page(report([experiment("one", [])]))


def test_which_answers_go_into_which_picture():
    names = [*NAMES, "sgd", "sgd-s1", "nesterov", "schedule_free"]
    found = answers(whole(BETTER, names=names))
    assert all(isinstance(answer, Answer) for answer in found)
    assert [a.question.key for a in versus_plain(found)] == ["on-nadamw", "sgd"]


def test_the_search_is_drawn_by_learning_rate_without_what_diverged():
    (one,) = whole(BETTER, names=["adamw", "adamw-s3"], keys=["one"])
    one["search"]["tried"] = [
        {"name": "adamw", "learning rate": rate, "final loss": losses}
        for rate, losses in ((0.1, [3.0, None]), (0.01, [1.0, 2.0]), (0.001, [2.0, 2.5]))
    ]
    (panel,) = draw_rates([one], LIGHT, 2).axes
    (line,) = panel.lines
    assert line.get_xydata().tolist() == [[0.001, 2.25], [0.01, 1.5]]


def test_the_brief_table_has_the_means_counts_and_the_median_task():
    experiments = whole(BETTER)
    text = brief(experiments)
    answer = answer_to(experiments, "adamw")
    row = row_of(answer, "adamw-s3")
    assert row.overall.verdict == "better"
    better = sum(effect.verdict == "better" for effect in row.effects)
    (line,) = [line for line in text.splitlines() if line.startswith("| AdamW s=3 |")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == f"**{overall_text(row)}**"
    assert cells[3] == f"{better} / 0 of 3"
    own = [r for e in experiments for r in workload_rows(e) if r.label == "AdamW s=3"]
    medians = sorted(r.steps.median for r in own)
    assert cells[4] == median_text(MedianInterval(medians[1], medians[0], medians[2], 1.0))
    assert cells[5] == "1.00"
    assert text.index("| NAdamW |") < text.index("| AdamW s=")
    assert "5 fresh seeds" in text
    assert "A <CPU>" in text


def test_the_brief_table_names_what_diverged():
    """A method that diverged everywhere has its row; one that did in places says so beside it."""
    experiments = whole(BETTER)
    for e in experiments:
        for r in e["runs"]:
            if r["method"] == "adamw-s8-lr0.01":
                r["diverged_at"] = 7
    experiments[0]["runs"][NAMES.index("adamw-s3") * 5]["diverged_at"] = 7
    lines = brief(experiments).splitlines()
    (everywhere,) = [line for line in lines if line.startswith("| AdamW s=8 |")]
    assert "| – (5 of 5 diverged) | – | 0 / 0 of 3 |" in everywhere
    (in_places,) = [line for line in lines if line.startswith("| AdamW s=3 |")]
    assert " (1 of 5 diverged) | " in in_places
    assert "| 2 / 0 of 3 |" in in_places


def test_machines_are_named_once():
    one, two, _ = whole(BETTER)
    two["environments"] = two["environments"][:1]
    (said,) = [note for note in notes_of([one, two]) if note.startswith("Computed on")]
    assert (said.count("A <CPU>"), said.count("A GPU")) == (1, 1)


@pytest.mark.parametrize(
    ("medians", "expected"),
    [
        ([0.5], (0.5, 0.5, 0.5)),
        ([0.7, None, 0.5], (0.7, 0.5, None)),
        ([None, None, 0.5], (None, 0.5, None)),
        ([0.5, 0.9, 0.7, None], (0.9, 0.5, None)),
    ],
)
def test_the_median_task_counts_never_as_the_latest(medians, expected):
    found = median_of_medians([MedianInterval(m, m, m, 1.0) for m in medians])
    assert (found.median, found.low, found.high) == expected
    assert median_of_medians([]) is None


def test_the_brief_table_names_rates_at_an_edge():
    assert "learning rates are the lowest" not in brief(whole(BETTER))
    assert "- 3 of the 36 learning rates are the lowest" in brief(whole(BETTER, edge="highest"))


def test_brief_is_of_a_study(core):
    assert in_markdown(core, notes=True, brief=True) == brief(core)
    with pytest.raises(LabError, match="--brief is for a study"):
        in_markdown([{"network": "vgg11"}], notes=True, brief=True)


LATER = ["adamw-s2D", "sgd", "sgd-s1D"]
LATE_NAMES = ["adamw", "nadamw-b0.99", "adamw-s1D", "adamw-b0.99"]


@pytest.fixture
def delayed():
    """Two tasks at three delays: a loss grows with its delay, of forecasts half as much."""
    found = []
    for delay in (0, 1, 4):
        names = [name for name in LATE_NAMES if delay or "D" not in name]
        shift = {name: 0.1 * delay * (0.5 if "D" in name else 1.0) for name in names}
        # the same dice at every delay: scatter that differs makes pairs differ
        scatter = 0.002 + 0.001 * delay
        for one in whole(shift, names=names, keys=("one", "two"), scatter=scatter):
            found.append(one | {"series": f"Task {one['key']}", "delay": delay})
    return found


def test_delay_is_asked_about_on_its_own(delayed):
    """Each delay is a family of its own, and the tasks without delay are not asked again."""
    found = answers(whole(BETTER) + delayed)
    usual = [a for a in found if a.question.delay is None]
    assert {len(a.workloads) for a in usual} == {3}
    late = [a for a in found if a.question.delay is not None]
    assert {a.question.delay for a in late} == {1, 4}
    assert {a.question for a in late} < set(DELAY_QUESTIONS)
    answer = answer_to(delayed, "delay-adamw-4")
    assert [row.name for row in answer.rows] == ["adamw-s1D"]
    assert answer.workloads == ("Workload <one>", "Workload <two>")
    assert answer.rows[0].overall.change.mean == pytest.approx(-0.2, abs=0.01)
    assert answer.verdict == "better"
    assert versus_plain(late) == []
    said = recommendations(found, lambda change: f"{change.mean:.2f}")
    late = [line for line in said if line.startswith("D = ")]
    assert [line[:5] for line in late] == ["D = 1", "D = 4"]
    assert all("Forecasts of AdamW against NAdamW β₁=0.99: " in line for line in late)


def test_what_delay_costs_is_paired_with_the_same_seed_without_delay(delayed):
    answer = answer_to(delayed, "delay-restored-4")
    assert answer.reference == "AdamW without delay"
    assert [row.name for row in answer.rows] == [
        *("adamw", "adamw-b0.99", "nadamw-b0.99", "adamw-s1D"),
    ]
    one = {e["delay"]: e for e in delayed if e["key"] == "one"}
    for row in answer.rows:
        test = stats.ttest_rel(final_losses(one[4], row.name), final_losses(one[0], "adamw"))
        interval = test.confidence_interval(0.95)
        change = row.effects[0].change
        assert change.mean == pytest.approx((interval.low + interval.high) / 2)
        assert change.half_width == pytest.approx((interval.high - interval.low) / 2)
    # runs elsewhere are not paired, here as everywhere
    for run_there in one[0]["runs"]:
        run_there["environment"] = [1]
    assert answer_to(delayed, "delay-restored-4").rows[0].effects[0].change is None
    # and without the runs at D = 0 there is nothing to say
    late = [e for e in delayed if e["delay"]]
    assert not asked(answers(late), "delay-restored-4")


def test_the_final_loss_against_the_delay(delayed):
    for run_here in delayed[4]["runs"]:  # "one" at D = 4
        if run_here["method"].startswith("nadamw") and run_here["seed"] == 0:
            run_here["diverged_at"] = 7
    figure = draw_delays(delayed, LATE_NAMES, LIGHT, 2)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Task one", "Task two"]
    one = {e["delay"]: e for e in delayed if e["key"] == "one"}
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines.keys() == {METHODS[name].label for name in LATE_NAMES}
    for name in LATE_NAMES:
        at_rest = name.removesuffix("-s1D")  # a forecast of no steps is its plain form
        means = [
            np.mean(np.exp(final_losses(one[delay], name if delay else at_rest)))
            for delay in (0, 1, 4)
        ]
        if name.startswith("nadamw"):
            means[-1] = np.nan  # the rest would flatter
        np.testing.assert_allclose(lines[METHODS[name].label], means)


def test_a_study_of_delay_has_its_figures(delayed):
    keys = [figure.key for figure in study_figures(delayed)]
    assert keys == [
        "delay",  # of SGD and NAdamW there is no forecast here
        *("forest-delay-nadamw-1", "forest-delay-nadamw-4"),
    ]
    figure = study_figures(delayed)[0]
    first, second = (to_image(figure.draw(DARK, 1), "svg") for _ in range(2))
    assert first == second
    assert "4 steps late: does a forecast improve AdamW?" in markdown(delayed)


def test_a_study_of_delay_in_brief_is_one_table_a_question(delayed):
    text = brief(delayed)
    tables = re.findall(r"\*\*(.*?)\*\* (.*)\n\n((?:\|.*\n)+)", text)
    assert [question for question, _, _ in tables] == [
        "D steps late: what does it cost, and what restores it?",
        "D steps late: does a forecast improve AdamW?",
        "D steps late: is a forecast of AdamW more than NAdamW with heavy momentum?",
        "D steps late: does heavy momentum or NAdamW, plain, improve AdamW?",
    ]
    answer = answer_to(delayed, "delay-adamw-4")
    _, against, table = tables[1]
    assert against == "Change to AdamW in %"
    header, _, row = table.splitlines()
    assert header == "| Method | D = 1 | D = 4 |"
    assert row.startswith("| AdamW s=D | **")
    assert row.endswith(f"| **{change_text(answer.rows[0].overall.change)}; 2 / 0** |")
    assert "Tasks: Task one; Task two." in text


def test_a_study_of_delay_in_brief_leaves_out_what_is_not_begun(delayed):
    for experiment in delayed:
        experiment["wanted"] += [{"name": n, "label": METHODS[n].label} for n in LATER]
    assert "AdamW s=2D" not in brief(delayed)
    assert "SGD" not in brief(delayed)
    assert "AdamW s=2D" in markdown(delayed)
    assert [f.key for f in study_figures(delayed)][:2] == ["delay", "forest-delay-nadamw-1"]
    for experiment in delayed:  # one seed is missing everywhere
        experiment["runs"] = [r for r in experiment["runs"] if r["seed"] != 0]
    text = brief(delayed)
    assert "(1 of 5 missing)" in text
    assert "missing; 1 of 5 missing" not in text
