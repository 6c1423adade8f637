"""Tasks and optimizers of the user's own: `path/to/file.py:name`."""

import json
from pathlib import Path

import pytest
import torch

from tests.lab.helpers import LineTask, finished_in
from weightcast_lab.cli.parsing import methods_to_compare
from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import Method
from weightcast_lab.plugins import resolved
from weightcast_lab.results.records import RUNS
from weightcast_lab.running.experiment import open_experiment
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.tasks import DataSource, make_task, parse_options

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPE = Recipe("line", 0.01, 4, 3)
TEACHER, LION = f"{EXAMPLES}/own_task.py:Teacher", f"{EXAMPLES}/own_optimizer.py:Lion"


def test_a_task_and_an_optimizer_of_ones_own_are_compared(weightcast, tmp_path, monkeypatch):
    """In worker processes, from paths relative to where the command was typed."""
    monkeypatch.chdir(EXAMPLES.parent)
    words = ["--task", "examples/own_task.py:Teacher", "--set", "width=8"]
    words += ["--optimizer", "examples/own_optimizer.py:Lion", "--baseline", "none", "--steps", 1]
    words += ["--lr", 0.001, "--lr", "Lion-s1=0.002", "--seeds", 1, "--epochs", 2, "--jobs", 1]
    done = weightcast("compare", *words, "--out", tmp_path)
    assert done.code == 0, done.err
    assert "another network" in done.out
    assert "Lion s=1, lr 0.002" in done.out
    (experiment,) = json.loads((tmp_path / "results.json").read_text())["experiments"]
    assert experiment["configuration"]["task"] == experiment["key"] == "Teacher"
    assert [m["optimizer"] for m in experiment["methods"]] == ["Lion", "Lion"]
    assert str(EXAMPLES.parent) not in (tmp_path / "results.json").read_text()
    assert sorted(finished_in(tmp_path)) == ["Lion-s1-lr0.002/seed-0", "Lion/seed-0"]


def test_a_changed_file_does_not_pass_for_the_old_one(weightcast, tmp_path):
    """The runs of an optimizer are computed again; a task is all runs' and wants another folder."""
    for name in ("own_task.py", "own_optimizer.py"):
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    words = ["--task", f"{tmp_path}/own_task.py:Teacher", "--baseline", "sgd", "--steps", 1]
    words += ["--optimizer", f"{tmp_path}/own_optimizer.py:Lion", "--seeds", 1, "--epochs", 1]
    words += ["--jobs", 1, "--out", tmp_path / "out"]
    assert weightcast("compare", *words).code == 0
    out = tmp_path / "out"
    kept = {name: record.weights for name, record in finished_in(out).items()}
    (out / RUNS).write_text((out / RUNS).read_text().replace(kept["Lion/seed-0"], "old"))
    with (tmp_path / "own_optimizer.py").open("a") as file:
        file.write("# changed\n")
    done = weightcast("compare", *words)
    assert done.code == 0
    assert "runs.jsonl: Lion, seed 0, has another configuration" in done.err.replace("\n", "")
    assert "sgd, seed" not in done.err
    assert {name: record.weights for name, record in finished_in(out).items()} == kept
    assert "1 finished already" in done.err
    with (tmp_path / "own_task.py").open("a") as file:
        file.write("# changed\n")
    done = weightcast("compare", *words)
    assert done.code == 2
    assert "task file sha256" in done.err


def test_its_options_are_those_of_its_function():
    assert parse_options(TEACHER, ["width=8"]) == {"width": 8}
    assert make_task(TEACHER, DataSource(), width=8).facts["width"] == 8
    with pytest.raises(LabError, match="did you mean 'width'"):
        parse_options(TEACHER, ["widt=8"])


@pytest.mark.parametrize(
    ("word", "value"), [("augment=False", False), ("augment=true", True), ("name=x", "x")]
)
def test_an_option_is_of_the_type_of_its_default(tmp_path, word, value):
    (tmp_path / "mine.py").write_text("def Mine(source, *, augment=True, name='', sizes=()): ...")
    mine = f"{tmp_path}/mine.py:Mine"
    assert list(parse_options(mine, [word]).values()) == [value]
    with pytest.raises(LabError, match="takes true or false, for example augment=True"):
        parse_options(mine, ["augment=1"])
    with pytest.raises(LabError, match="default of sizes must be a number, a text, True or False"):
        parse_options(mine, ["sizes=3"])


def test_two_methods_never_share_a_name(tmp_path):
    (tmp_path / "other.py").write_text("import torch\nclass Lion(torch.optim.SGD): ...")
    with pytest.raises(LabError, match="Two methods are called 'Lion"):
        methods_to_compare([LION, f"{tmp_path}/other.py:Lion"], [], [])
    near = methods_to_compare([LION], [], [1.0, 1.0000001])
    assert [method.key for method in near] == ["Lion", "Lion-s1", "Lion-s1.0000001"]
    assert len(methods_to_compare([LION, LION], ["adamw", "adamw"], [])) == 2


def test_the_optimizer_is_the_one_in_the_file():
    model = torch.nn.Linear(2, 1)
    optimizer = Method(LION, 2.0).attach(model, 0.25)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.weight, before - 0.25)
    model(torch.ones(1, 2))
    assert torch.equal(model.weight, before - 3 * 0.25)  # two further steps of its rule


def test_names_of_the_laboratory_stay_as_they_are():
    assert resolved("digits") == "digits"


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (None, "Mine", "does not exist"),
        ("class Mine: pass", "Mine", "makes no Task"),
        ("class Mine: pass", "Nine", "did you mean 'Mine'"),
        ("Mine = None", "Mine", "defines no class and no function"),
        ("import nothing_like_it", "Mine", "cannot be loaded: ModuleNotFoundError"),
        (
            "from weightcast_lab.tasks import Task\nclass Mine(Task):\n"
            + "".join(
                f" def {method}(self): ...\n"
                for method in ("build_model", "to", "batches", "loss", "evaluate")
            )
            + " title = 'Mine'\n def __init__(self, source): ...",
            "Mine",
            "lacks metric, preset, facts",
        ),
    ],
)
def test_mistakes_are_one_sentence(weightcast, tmp_path, content, name, sentence):
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content.replace("class Mine: pass", "def Mine(source): return 1"))
    outcome = weightcast("compare", "--task", f"{file}:{name}", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert sentence in " ".join(outcome.err.split())
    assert not (tmp_path / "out").exists()


OWN = """
from tests.lab.helpers import LineTask
from weightcast_lab.tasks import Metric

print("hello from the file")

class Mine(LineTask):
    def __init__(self, source):
        super().__init__()
"""


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("        raise OSError('no data')", "The task {} cannot be made: OSError: no data"),
        ("        raise SystemExit(3)", "The task {} cannot be made: SystemExit: 3"),
        ("        self.metric = 'error'", "{}: metric must be a Metric"),
        ("        self.title = 7", "{}: title must be a str"),
        (
            "    def build_model(self):\n        return 1 / 0",
            "The model of 'A line' cannot be built: ZeroDivisionError",
        ),
        (
            "    def batches(self, size, generator):\n        yield 1",
            "The batches of 'A line' cannot be made: TypeError",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_one_sentence(weightcast, tmp_path, lines, sentence):
    file = tmp_path / "mine.py"
    file.write_text(OWN + lines + "\n")
    outcome = weightcast("compare", "--task", f"{file}:Mine", "--out", tmp_path / "out")
    assert outcome.code == 2
    text = " ".join(outcome.err.split())
    assert sentence.format(f"{file}:Mine") in text
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_any_title_is_shown_as_it_is_and_prints_do_not_spoil_the_json(weightcast, tmp_path):
    file, title, metric = tmp_path / "mine.py", "{} [/red] {x} :smile: $x_$", "e|r [/b] $_$"
    file.write_text(
        OWN
        + f"        self.title, self.metric = {title!r}, Metric({metric!r}, 3, False)\n"
        + "    def evaluate(self, model):\n        print('hello')\n"
        + "        return super().evaluate(model)\n"
    )
    words = ("compare", "--task", f"{file}:Mine", "--steps", 1, "--baseline", "none")
    words += ("--seeds", 1, "--epochs", 1, "--jobs", 1, "--out", tmp_path / "out")
    done = weightcast(*words, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["title"] == title
    assert done.err.startswith("hello from the file\n" + title)
    shown = weightcast(*words)
    assert title in shown.out
    assert metric.split()[0] in shown.out
    header, line, *rows = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert "Final e\\|r [/b] $_$ |" in header
    columns = header.replace("\\|", "").count("|")
    assert {text.replace("\\|", "").count("|") for text in (line, *rows)} == {columns}


@pytest.mark.parametrize("name", ["../../evil", "a.b", "", "a/b"])
def test_a_name_cannot_lead_elsewhere(tmp_path, name):
    (tmp_path / "mine.py").write_text("globals()['../../evil'] = globals()['a/b'] = print")
    with pytest.raises(LabError, match="names no task"):
        make_task(f"{tmp_path}/mine.py:{name}", DataSource())


class Facts(LineTask):
    """With facts that JSON would change."""

    def __init__(self, **facts):
        super().__init__()
        self.facts = facts


@pytest.mark.parametrize("facts", [{"shape": (3, 4)}, {"by": {1: "one"}}])
def test_facts_are_compared_as_they_were_written(tmp_path, facts):
    for _ in range(2):
        opened = open_experiment("line", RECIPE, (), (), tmp_path, Facts(**facts))
    assert opened.configuration == json.loads(json.dumps(opened.configuration))


def test_facts_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(LabError, match="facts of 'A line' must be numbers, texts and lists"):
        open_experiment("line", RECIPE, (), (), tmp_path, Facts(size=object()))
    assert not list(tmp_path.iterdir())
