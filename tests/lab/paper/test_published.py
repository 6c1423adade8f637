"""What README and docs print, computed again from the runs with other code than the report's.

Everything here is NumPy and SciPy on the final losses; nothing of `evidence` or the tables is used.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from weightcast_lab.paper.protocol import TABLES
from weightcast_lab.results.loading import load_results

pytestmark = pytest.mark.results

ROOT = Path(__file__).parents[3]
FORECASTS = (
    *("adamw-s0.5", "adamw-s1", "adamw-s2", "adamw-s3", "adamw-s5", "adamw-s8"),
    *("adamw-s3-decaying", "adamw-sinf-decaying"),
)


@pytest.fixture(scope="module")
def study():
    """The six tasks, digits first."""
    found = load_results(ROOT / "results" / "study" / "results.json")
    return [e for e in found if not e["variant_of"]]


@pytest.fixture(scope="module")
def delay():
    return load_results(ROOT / "results" / "delay" / "results.json")


def rate(experiment, name):
    return next(m["learning rate"] for m in experiment["methods"] if m["name"] == name)


def finals(experiment, name, read=lambda run: run["history"]["validation_loss"][-1]):
    """Of a method's runs, seeds in order."""
    key = next(m["key"] for m in experiment["methods"] if m["name"] == name)
    runs = sorted((r for r in experiment["runs"] if r["method"] == key), key=lambda r: r["seed"])
    assert [r["seed"] for r in runs] == [0, 1, 2, 3, 4]
    return np.array([read(r) for r in runs])


def log_changes(experiment, name, reference):
    return np.log(finals(experiment, name) / finals(experiment, reference))


def at_adamws_rate(experiment, name):
    """The search's runs at the rate that was chosen for AdamW, seed by seed."""
    wanted = rate(experiment, "adamw")
    tried = {
        (t["name"], t["learning rate"]): t["final loss"] for t in experiment["search"]["tried"]
    }
    return np.log(np.divide(tried[name, wanted], tried["adamw", wanted]))


def mean_of(groups):
    """The mean of the groups' means, its interval and p: Welch and Satterthwaite, written out."""
    parts = np.array([np.var(g, ddof=1) / len(g) for g in groups])
    sizes = np.array([len(g) for g in groups])
    freedom = parts.sum() ** 2 / (parts**2 / (sizes - 1)).sum()
    mean, error = np.mean([np.mean(g) for g in groups]), math.sqrt(parts.sum()) / len(groups)
    reach = stats.t.ppf(0.975, freedom) * error
    return mean, mean - reach, mean + reach, 2 * stats.t.sf(abs(mean) / error, freedom)


def holm(values):
    ranked = sorted(range(len(values)), key=values.__getitem__)
    steps = [min(1.0, (len(values) - rank) * values[place]) for rank, place in enumerate(ranked)]
    return dict(zip(ranked, np.maximum.accumulate(steps), strict=True))


def percent(logarithm):
    return f"{100 * math.expm1(logarithm):+.1f}".replace("-", "−")


def interval(mean, low, high, *_):
    return f"{percent(mean)} [{percent(low)}, {percent(high)}]"


def with_p(values, p):
    shown = "< 0.0001" if p < 1e-4 else f"= {p:.2g}" if p < 0.1 else f"= {p:.2f}"
    return f"{interval(*values)}, p {shown}"


def table_after(page, title):
    """Header and rows of the first table below a title; the bold marks are taken off."""
    text = (ROOT / page).read_text("utf-8")
    assert text.count(title) == 1, title
    lines = re.search(r"^\|.*?(?=^[^|]|\Z)", text[text.index(title) :], re.S | re.M)[0].splitlines()
    header, _, *rows = ([c.strip() for c in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


QUOTED = re.compile(r"<!--=(\S+?)-->(.*?)<!--/-->", re.S)


def test_the_numbers_within_the_sentences_of_readme(study, delay):
    """Every marked one, from the final losses alone; and that its interval is on one side of 0."""
    marks = dict(QUOTED.findall((ROOT / "README.md").read_text("utf-8")))
    assert len(marks) >= 10
    for mark, said in marks.items():
        folder, question, *rest = mark.split("/")
        if folder == "cost":
            files = (ROOT / "benchmarks" / "results").glob(f"{question}.json")
            found = [
                row[f"{rest[0].replace('-', ' ')} / plain"]
                for file in files
                for rows in json.loads(file.read_text()).get("training", {}).values()
                for row in rows.values()
            ]
            assert said == f"{100 * (max(found) - 1):.1f} %"
            continue
        if rest == ["momentum"]:
            continue
        method, where, claim = rest
        if folder == "trials":
            groups = [trial_changes(where, method, question)]
        elif folder == "delay":
            reference = {"delay-adamw-8": "adamw", "delay-on-nadamw-8": "nadamw-b0.99"}[question]
            tasks = [e for e in delay if e["delay"] == 8 and e["key"] != where.removeprefix("-")]
            assert len(tasks) == (4 if where == "mean" else 3)
            groups = [log_changes(e, method, reference) for e in tasks]
        else:
            assert where == "-digits"
            groups = [log_changes(e, method, question) for e in study[1:]]
        mean, low, high = mean_of(groups)[:3]
        assert claim == "lower"
        assert high < 0
        values = [f"{-100 * math.expm1(x):.1f}" for x in (mean, high, low)]
        assert said == "{} % [{}, {}]".format(*values), mark


def trial_changes(key, method, question):
    """Of the second study's final test losses, at the momentum that README speaks of."""
    rival = {"adamw": "adamw", "nadamw": "nadamw_mu", "muon": "muon_nesterov-s3-rest"}[question]
    found = load_results(ROOT / "results" / "trials" / "results.json")
    experiment = next(e for e in found if e["key"] == key)
    said = re.search(r"<!--=trials/nadamw/momentum-->(.*?)<!--/-->", prose("README.md"))[1]
    at = {"at the usual momentum": "usual", "each at its best momentum": "best"}[said]
    both = []
    for name in (method, rival):
        choice = next(c for c in experiment["choices"] if (c["candidate"], c["at"]) == (name, at))
        own = (choice["name"], choice["rate"])
        runs = sorted(
            (r for r in experiment["runs"] if (r["name"], r["rate"]) == own),
            key=lambda r: r["seed"],
        )
        assert [r["seed"] for r in runs] == [0, 1, 2, 3, 4]
        both.append([r["readings"][choice["reading"]]["test"] for r in runs])
    return np.log(np.divide(*both))


def unmarked(cell):
    return cell.removeprefix("**").removesuffix("**")


def prose(page):
    return " ".join((ROOT / page).read_text("utf-8").split())


LABELS = {
    "nadamw": "NAdamW",
    "adamw-s0.5": "AdamW s=0.5",
    "adamw-s1": "AdamW s=1",
    "adamw-s2": "AdamW s=2",
    "adamw-s3": "AdamW s=3",
    "adamw-s5": "AdamW s=5",
    "adamw-s8": "AdamW s=8",
    "adamw-s3-decaying": "AdamW s=3 decaying",
    "adamw-sinf-decaying": "AdamW s=∞ decaying",
    "adamw-s-1": "AdamW s=−1",
}


def test_the_means_in_brief_are_one_family_with_digits_and_without(study):
    """Every mean, its interval, its corrected p, and how often a task is better or worse."""
    table = table_after("docs/results.md", "<!-- begin results/study -->")
    assert list(table) == list(LABELS.values())
    changes = {name: [log_changes(e, name, "adamw") for e in study] for name in LABELS}
    for column, tasks in (
        ("Final loss, change to AdamW in %", slice(0, 6)),
        ("Without Digits, CNN", slice(1, 6)),
    ):
        means = [mean_of(groups[tasks]) for groups in changes.values()]
        corrected = holm([mean[-1] for mean in means])
        for place, (name, mean) in enumerate(zip(LABELS, means, strict=True)):
            cell = table[LABELS[name]][column]
            assert unmarked(cell) == with_p(mean, corrected[place]), name
            assert cell.startswith("**") == (corrected[place] < 0.05)
    tests = [stats.ttest_1samp(c, 0).pvalue for groups in changes.values() for c in groups]
    assert len(tests) == 60
    corrected = holm(tests)
    for row, (name, groups) in enumerate(changes.items()):
        shown = [g.mean() for n, g in enumerate(groups) if corrected[6 * row + n] < 0.05]
        better, worse = sum(m < 0 for m in shown), sum(m > 0 for m in shown)
        assert table[LABELS[name]]["Better / worse on"] == f"{better} / {worse} of 6"


@pytest.mark.parametrize(
    ("title", "names", "reference"),
    [
        ("**Does a forecast improve AdamW?** Change", FORECASTS, "adamw"),
        ("**Is a forecast of AdamW more than NAdamW, ", FORECASTS, "nadamw"),
        ("**Does a forecast improve SGD?** Change", ("sgd-s1", "sgd-s3"), "sgd"),
        ("**Is a forecast of Muon more than its own", ("muon-s1", "muon-s3"), "muon_nesterov"),
    ],
)
def test_means_without_one_task(study, title, names, reference):
    labels = {m["name"]: m["label"] for e in study for m in e["methods"]}
    table = table_after("docs/tables.md", title)
    whole = {name: [log_changes(e, name, reference) for e in study] for name in names}
    alone = {name: mean_of(groups[1:]) for name, groups in whole.items()}
    if reference != "adamw":  # where the table is not a part of a family
        corrected = holm([mean[-1] for mean in alone.values()])
        for place, (name, mean) in enumerate(alone.items()):
            cell = table[labels[name]]["Mean without Digits, CNN"]
            assert unmarked(cell) == with_p(mean, corrected[place])
    for name, groups in whole.items():
        cell = table[labels[name]]["Mean without Digits, CNN"]
        assert unmarked(cell).startswith(interval(*alone[name]))
        ends = sorted(
            (np.mean([g.mean() for g in groups[:n] + groups[n + 1 :]]), e["workload"])
            for n, e in enumerate(study)
        )
        expected = " to ".join(f"{percent(mean)} ({task})" for mean, task in (ends[0], ends[-1]))
        assert table[labels[name]]["Means without one task: lowest to highest"] == expected


def test_one_line_added_and_nothing_retuned(study):
    table = table_after("docs/tables.md", "own learning rate?** Change of the final loss")
    names = (*FORECASTS, "nadamw")
    changes = {name: [at_adamws_rate(e, name) for e in study] for name in names}
    means = [mean_of(changes[name][1:]) for name in names]
    corrected = holm([mean[-1] for mean in means])
    for place, name in enumerate(names):
        row = table[LABELS[name]]
        assert unmarked(row["Mean without Digits, CNN"]) == with_p(means[place], corrected[place])
        for e, change in zip(study, changes[name], strict=True):
            found = stats.ttest_1samp(change, 0).confidence_interval()
            assert unmarked(row[e["workload"]]) == interval(change.mean(), *found)
    # the sentences
    few = ("adamw-s1", "adamw-s2", "adamw-s3")
    one, two, three = (percent(mean_of(changes[name][1:])[0]) for name in few)
    pairs = np.concatenate([group for name in few for group in changes[name][1:]])
    assert (pairs.size, (pairs < 0).sum()) == (30, 30)
    nadamw = np.concatenate(changes["nadamw"][1:])
    assert ((nadamw < 0).sum(), nadamw.size, percent(nadamw.mean())) == (8, 10, "+0.0")
    said = f"30 of 30 pairs of runs on the five tasks ({one}, {two} and {three} %; NAdamW 0.0)"
    assert said in prose("docs/results.md")
    assert "NAdamW in 8 of 10, by 0.0 %" in prose("docs/results.md")


def test_how_often_the_story_says_that_a_forecast_is_better(study):
    """Over all tasks and lengths, after Holm's correction of the family."""
    for reference, others, said in (
        ("adamw", ("adamw-s-1", "nadamw"), "forecasts are better eight times and worse never"),
        ("nadamw", (), "forecasts are better nine times, and worse twice"),
    ):
        names = (*FORECASTS, *others)
        groups = [log_changes(e, name, reference) for name in names for e in study]
        corrected = holm([stats.ttest_1samp(group, 0).pvalue for group in groups])
        shown = [
            g.mean() for n, g in enumerate(groups[: 6 * len(FORECASTS)]) if corrected[n] < 0.05
        ]
        counts = sum(m < 0 for m in shown), sum(m > 0 for m in shown)
        assert counts == {"adamw": (8, 0), "nadamw": (9, 2)}[reference]
        assert said in prose("docs/results.md")


def test_penn_treebanks_test_perplexity(study):
    ptb = next(e for e in study if e["key"] == "ptb-lstm")
    table = table_after("docs/tables.md", "**Penn Treebank, LSTM** (")
    for name in ("adamw-s1", "adamw-s3", "nadamw", "muon_nesterov"):
        label = next(m["label"] for m in ptb["methods"] if m["name"] == name)
        own, plain = (
            finals(ptb, n, lambda run: run["test"]["test perplexity"]) for n in (name, "adamw")
        )
        half = stats.t.ppf(0.975, 4) * own.std(ddof=1) / math.sqrt(5)
        assert table[label]["Test perplexity"] == f"{own.mean():.2f} ±\N{NO-BREAK SPACE}{half:.2f}"
        change = np.log(own / plain)
        found = stats.ttest_1samp(change, 0).confidence_interval()
        cell = table[label]["Test perplexity, change to AdamW in %"]
        assert cell == interval(change.mean(), *found)
    assert table["AdamW"]["Test perplexity, change to AdamW in %"] == "–"


def test_delay_with_digits_and_without(delay):
    of = {(e["series"], e["delay"]): e for e in delay}
    tasks = list(dict.fromkeys(e["series"] for e in delay))
    assert tasks[0] == "Digits, CNN"
    for title, name, label, reference in (
        ("**D steps late: does a forecast improve AdamW?**", "adamw-s1D", "AdamW s=D", "adamw"),
        (
            "**D steps late: is a forecast of AdamW more than NAdamW",
            *("adamw-s0.5D", "AdamW s=D/2", "nadamw-b0.99"),
        ),
        (
            "**D steps late: does a forecast improve NAdamW",
            *("nadamw-b0.99-s0.5D", "NAdamW β₁=0.99 s=D/2", "nadamw-b0.99"),
        ),
    ):
        table = table_after("docs/delays.md", title)
        for steps in (1, 2, 4, 8, 16):
            groups = [log_changes(of[task, steps], name, reference) for task in tasks]
            column = f"D = {steps}"
            assert unmarked(table[label][column]).startswith(interval(*mean_of(groups)) + "; ")
            rest = unmarked(table[f"{label}, without Digits, CNN"][column])
            assert rest == interval(*mean_of(groups[1:]))


def test_edges_are_counted_among_the_rates_that_ran(delay):
    ran = [m for e in delay for m in e["methods"] if m["key"] in {r["method"] for r in e["runs"]}]
    edges = sum(bool(m["edge"]) for m in ran)
    assert f"- {edges} of the {len(ran)} learning rates are" in prose("docs/delays.md")


def test_the_momentum_of_torchs_nadamw(study):
    """As its own state has it; the formula beyond is the one of its documentation."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.NAdam([p], decoupled_weight_decay=True)
    decay = optimizer.defaults["momentum_decay"]

    def mu(step):
        return 0.9 * (1 - 0.5 * 0.96 ** (step * decay))

    before = 1.0
    for step in range(1, 21):
        p.grad = torch.ones(1)
        optimizer.step()
        product = optimizer.state[p]["mu_product"].item()
        assert product / before == pytest.approx(mu(step), rel=1e-4)
        before = product
    first, middle, late = (f"{mu(step):.2f}" for step in (1, 700, 10_000))
    said = f"it is {first} in the first step, {middle} in the 700th and {late} in the 10,000th"
    assert said in prose("docs/faq.md")
    last = max(r["history"]["step"][-1] for e in study for r in e["runs"])
    assert f"{mu(1):.2f} in the first step and at most {mu(last):.2f}" in prose("docs/study.md")
    for page in ("docs/results.md", "docs/tables.md", "docs/delays.md"):
        assert f"momentum_decay of {decay:g} keeps" in prose(page)


def test_where_lookahead_is_read(study):
    """Its fast weights are its slow ones after every fifth step."""
    ends = {e["key"]: e["runs"][0]["history"]["step"][-1] % 5 for e in study}
    assert [key for key, rest in ends.items() if rest == 0] == ["text-transformer"]
    assert {rest for rest in ends.values() if rest} == {1, 2, 3}
    assert "one to three steps past its average" in prose("docs/study.md")


def test_what_a_run_and_a_step_take(study):
    everything = load_results(ROOT / "results" / "study" / "results.json")
    longest = max(run["cpu_seconds"] for e in everything for run in e["runs"])
    assert 30 < longest < 35
    assert "at most thirty-five seconds a run on one CPU core" in prose("docs/study.md")
    costs = {}
    for e in study:
        plain = finals(e, "adamw", lambda run: run["cpu_seconds"])
        own = [np.median(finals(e, n, lambda run: run["cpu_seconds"]) / plain) for n in FORECASTS]
        costs[e["key"]] = max(own)
    assert max(costs, key=costs.get) == "digits"
    assert f"{100 * (costs['digits'] - 1):.0f} % for a network as tiny" in prose("docs/use.md")


def test_what_the_reproduction_says_of_the_study_and_of_the_paper(study):
    for plain in ("rmsprop", "adagrad"):
        for name in (f"{plain}-s1", f"{plain}-s3"):
            groups = [log_changes(e, name, plain) for e in study]
            assert mean_of(groups)[1] > 0, name
            assert mean_of(groups[1:])[1] > 0, name
    gains = [min(row[1:]) - row[0] for row in TABLES["table3"].rows.values()]
    assert [f"{-gain:.2f}" for gain in gains] == ["9.22", "2.04"]
    assert f"{-np.mean(gains):.2f}" == "5.63"
    cells = [
        (row[0] - cell) * (1 if table.higher_is_better else -1)
        for table in (TABLES["table1"], TABLES["table3"])
        for row in table.rows.values()
        for cell in row[1:]
    ]
    assert (len(cells), sum(loss > 0 for loss in cells)) == (18, 3)
    said = prose("docs/reproduction.md")
    assert "its Table 3 gives 5.63 and 2.04" in said
    assert "three of the 18 cells" in said
    assert "NAdamW's best metric is better than AdamW's in 6 of 6 cells" in said
