import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.helpers import finished_in, without_seconds
from weightcast_lab.files import digest_of
from weightcast_lab.methods.method import Method
from weightcast_lab.methods.optimizers import OPTIMIZERS
from weightcast_lab.results.loading import load_results
from weightcast_lab.results.records import RUNS
from weightcast_lab.running.experiment import open_experiment
from weightcast_lab.running.jobs import Run
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.running.train import train
from weightcast_lab.tasks import DataSource, make_task

DIGITS = ("compare", "--task", "digits")
SMALL = (*DIGITS, "--jobs", 1, "--epochs", 1, "--seeds", 2, "--steps", 1, "--baseline", "none")


def test_compare_report_and_go_on(weightcast, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = weightcast(*SMALL, "--out", out)
    assert first.code == 0, first.err
    assert "AdamW s=1" in first.out
    assert "\x1b" not in first.out + first.err
    lines = first.err.splitlines()
    assert lines[0].startswith("Handwritten digits, small CNN: 4 runs")
    assert 2 <= len(lines) <= 10  # no bars, and not a line per run either
    assert all("runs finished" in line for line in lines[1:])
    written = {path.name for path in out.iterdir()} - {".lock"}
    assert written == {
        *("config.json", "results.json", RUNS),
        *("report.html", "curves.png", "table.md", "table.csv"),
        *("curves-light.svg", "curves-dark.svg"),
    }
    before = finished_in(out)

    # the same command computes nothing and shows the same
    again = weightcast(*SMALL, "--out", out)
    assert again.out == first.out
    assert "4 finished already" in again.err
    assert finished_in(out) == before

    # more seeds and steps compute only what is missing; a damaged result is computed again
    lines = (out / RUNS).read_bytes().splitlines(keepends=True)
    (place,) = (n for n, line in enumerate(lines, 1) if b'"adamw","seed":1,' in line)
    lines[place - 1] = lines[place - 1][:50] + b"\n"
    (out / RUNS).write_bytes(b"".join(lines))
    more = weightcast(
        *SMALL[:7], "--seeds", 2, "--steps", "1,2.5", "--baseline", "none", "--out", out
    )
    assert more.code == 0
    assert f"runs.jsonl, line {place}, is damaged" in more.err
    assert "6 runs of 1 epoch" in more.err
    assert "3 finished already" in more.err
    lines = (out / RUNS).read_bytes().splitlines(keepends=True)
    del lines[place - 1]  # as we were told
    (out / RUNS).write_bytes(b"".join(lines))
    after = finished_in(out)
    assert after.keys() - before.keys() == {f"adamw-s2.5/seed-{n}" for n in (0, 1)}
    for name, record in before.items():
        assert without_seconds(record) == without_seconds(after[name])

    # the one file is enough to redraw everything
    alone = tmp_path / "alone.json"
    alone.write_bytes((out / "results.json").read_bytes())
    table = weightcast("report", alone, "--markdown")
    assert table.out == (out / "table.md").read_text()
    redrawn = weightcast("report", alone, "--out", tmp_path / "redrawn")
    assert redrawn.code == 0
    for name in ("report.html", "curves.png", "table.md", "table.csv"):
        assert (tmp_path / "redrawn" / name).read_bytes() == (out / name).read_bytes()

    # machines get that file itself
    content = (out / "results.json").read_text()
    assert weightcast("report", out, "--json").out == content
    printed = weightcast(*SMALL[:7], "--seeds", 2, "--steps", "1,2.5", *SMALL[-2:], "--out", out,
                         "--json")  # fmt: skip
    assert printed.out == content
    assert "--json" not in json.loads(content)["command"]

    # another configuration is refused, and nothing is lost
    refused = weightcast(*SMALL, "--out", out, "--lr", 0.01)
    assert refused.code == 2
    assert "learning rate 0.005 (now 0.01)" in " ".join(refused.err.split())
    assert finished_in(out) == after


def test_a_learning_rate_for_one_method(weightcast, tmp_path):
    out = tmp_path / "out"
    words = ("--lr", "0.004", "--lr", "adamw-s1=0.002", "--betas", "0.8,0.9", "--milestones", "1")
    words += ("--weight-decay", 0)
    done = weightcast(*SMALL[:8], 1, *SMALL[9:], "--epochs", 2, *words, "--out", out)
    assert done.code == 0, done.err
    assert "AdamW s=1, lr 0.002" in done.out
    results = json.loads((out / "results.json").read_text())
    (experiment,) = results["experiments"]
    assert [m["learning rate"] for m in experiment["methods"]] == [0.004, 0.002]
    configuration = experiment["configuration"]
    assert (configuration["betas"], configuration["milestones"]) == ([0.8, 0.9], [1])
    assert "--lr 0.004 --lr adamw-s1=0.002 --milestones 1 --betas 0.8,0.9" in results["command"]
    assert "--weight-decay 0.0" in results["command"]  # not the optimizers' own
    assert str(tmp_path) not in results["command"]


def test_any_text(weightcast, tmp_path, small_text):
    out = tmp_path / "out"
    arguments = (*SMALL, "--task", "ptb", "--data", small_text, "--batch-size", 4, "--out", out)
    refused = weightcast(*arguments)
    assert refused.code == 2
    assert "--any-text" in refused.err
    done = weightcast(*arguments, "--any-text")
    assert done.code == 0, done.err
    assert "not Penn Treebank" in done.out
    assert "Test perplexity" in " ".join(done.out.split())
    assert str(small_text) not in (out / "results.json").read_text()


def test_a_divergence_is_in_the_table_and_no_failure(weightcast, tmp_path):
    done = weightcast(*SMALL, "--lr", 1e20, "--optimizer", "sgd", "--out", tmp_path / "out")
    assert done.code == 0
    assert "diverged at step" in done.err
    assert "diverged at step" in " ".join(done.out.split())


EPOCHS, BATCH_SIZE = 80, 64  # long enough that a blow falls while it runs, on a busy machine too


def start(out: Path) -> subprocess.Popen[str]:
    words = f"--epochs {EPOCHS} --batch-size {BATCH_SIZE} --seeds 1 --steps 3 --baseline none"
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "weightcast_lab", *DIGITS),
            *(*words.split(), "--jobs", "1", "--out", str(out)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def hear_ctrl_c() -> None:
    """A shell's background jobs, and what they start, ignore Ctrl-C unless told otherwise."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def written_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def blow_after_next_checkpoint(out: Path, blow: signal.Signals) -> tuple[int, str]:
    checkpoint = out / "runs" / "adamw-s3" / "seed-0" / "checkpoint"
    before = written_at(checkpoint)
    process = start(out)
    deadline = time.monotonic() + 100
    while written_at(checkpoint) == before:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, blow)
    _, err = process.communicate(timeout=60)
    assert "adamw-s3/seed-0" not in finished_in(out), err
    assert checkpoint.exists(), err
    return process.returncode, err


def test_a_killed_comparison_goes_on_as_if_nothing_had_happened(tmp_path, one_thread):
    out = tmp_path / "out"
    code, err = blow_after_next_checkpoint(out, signal.SIGINT)
    assert code == 130
    assert "Interrupted: 1 of 2 runs are finished" in err
    assert "Traceback" not in err

    code, _ = blow_after_next_checkpoint(out, signal.SIGKILL)
    assert code == -signal.SIGKILL

    process = start(out)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "1 finished already" in err

    task = make_task("digits", DataSource())
    recipe = Recipe("digits", task.preset.learning_rate, BATCH_SIZE, EPOCHS)
    for method in (Method("adamw"), Method("adamw", 3.0)):
        cell = Run(method, 0)
        files = cell.files(tmp_path / "undisturbed", "undisturbed")
        whole = train(cell, task, recipe, files, lambda *_: None, pytest.fail)
        found = finished_in(out)[f"{method.key}/seed-0"]
        assert without_seconds(found) == without_seconds(whole)


def test_delayed_gradients_are_another_configuration_and_the_report_says_so(weightcast, tmp_path):
    words = (*SMALL, "--seeds", 1, "--out", tmp_path / "out")
    late = weightcast(*words, "--delay", 3)
    assert late.code == 0, late.err
    assert "Every gradient is applied 3 steps after it was computed" in " ".join(late.out.split())
    (results,) = load_results(tmp_path / "out" / "results.json")
    assert results["configuration"]["delay"] == 3
    assert "--delay 3" in results["command"]
    prompt = weightcast(*words)
    assert prompt.code == 2
    assert "delay 3 (now None)" in " ".join(prompt.err.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--delay", 456), "--delay 456 is longer than a run of 456 steps"),
        (("--batch-size", 99999999999999999999), "The batches of 'Handwritten digits"),
        (("--seeds", 10**9), "Invalid value for '--seeds'"),
        (("--task", "ptb", "--data", "x" * 5000), "File name too long"),
    ],
)
def test_numbers_beyond_reason_are_one_sentence(weightcast, tmp_path, words, sentence):
    refused = weightcast(*DIGITS, *words, "--out", tmp_path / "out")
    assert refused.code == 2
    assert sentence in " ".join(re.sub("[│╭╮╰╯─]", "", refused.err).split())
    assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.results
def test_outputs_that_exclude_one_another_are_refused(weightcast):
    results = Path(__file__).parents[3] / "results" / "digits"
    refused = weightcast("report", results, "--markdown", "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "exclude one another" in refused.err


@pytest.mark.results
def test_without_delay_a_configuration_is_what_it_was_before_there_were_delays(tmp_path):
    """Its hash decides whether earlier runs count: it must not change."""
    committed = Path(__file__).parents[3] / "results" / "digits" / "results.json"
    (before,) = load_results(committed)
    task = make_task("digits", DataSource())
    found = []
    for delay in (0, 1):
        recipe = Recipe("digits", 0.005, 32, 12, delay=delay)
        opened = open_experiment("digits", recipe, (), (), tmp_path / str(delay), task)
        found.append(opened.configuration)
    assert digest_of(found[0]) == digest_of(before["configuration"])
    assert found[1] == found[0] | {"delay": 1}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--task", "digit"), "did you mean 'digits'?"),
        (("--task", "xyz"), "choose one of cifar10, digits, ptb, ptb_characters, small_text, text"),
        (("--optimizer", "adanw"), "did you mean 'adamw'?"),
        (("--baseline", "nadam"), "did you mean 'nadamw'?"),
        (("--steps", "1,x"), "not a list of numbers"),
        (("--steps", ""), "not a list of numbers"),
        (("--steps", "nan"), "--steps nan: "),
        (("--steps", "1,inf"), "--steps inf: "),
        (("--steps", "1000"), "--steps 1000: "),
        (("--lr", "fast"), "not a learning rate"),
        (("--lr", "adamw-s4=1"), "There is no method 'adamw-s4'"),
        (("--lr", "nadamw_mu=-1"), "--lr must be positive and finite, got -1."),
        (("--betas", "0.9"), "must be two numbers"),
        (("--betas", "0.9,1"), "β₁ and β₂ must be in [0, 1), got 0.9 and 1."),
        (("--milestones", "1.5"), "whole numbers of epochs"),
        (("--milestones", "8,12"), "there are 8 epochs"),
        (("--task", "own.py"), "say which task in it"),
        (("--optimizer", "own.py"), "say which optimizer in it"),
        (("--delay", "-1"), "--delay must be 0 or more, got -1."),
        (("--weight-decay", "-1"), "weight decay must be 0 or more and finite, got -1."),
        (("--precision", "fp8"), "choose one of bf16, fp32, tf32"),
        (("--precision", "tf32", "--device", "cpu"), "needs a GPU"),
        (("--set", "width=2"), "has no options"),
        (("--task", "ptb", "--set", "unit=2"), "did you mean 'units'?"),
        (("--task", "ptb", "--set", "units=2.5"), "takes a whole number"),
        (("--lr", "0"), "--lr must be positive and finite, got 0."),
        (("--lr", "-1"), "--lr must be positive and finite, got -1."),
        (("--lr", "nan"), "--lr must be positive and finite, got nan."),
        (("--lr", "inf"), "--lr must be positive and finite, got inf."),
        (("--device", "tpu"), "choose one of auto, cpu, cuda"),
        (("--device", "cdua"), "did you mean 'cuda'?"),
        (("--sed", "3"), "--seeds"),
        (("--seeds", "0"), "--seeds"),
        (("--epochs", "0"), "--epochs"),
        (("--jobs", "0"), "--jobs"),
        (("--batch-size", "0"), "--batch-size"),
        (("--task", "ptb"), "needs --data FOLDER"),
        (("--task", "ptb", "--data", "missing"), "is not a folder"),
        (("--data", "."), "carries its own data"),
        (("--out", "a-file"), "is a file"),
        (("--task", "text", "--batch-size", "10000000"), "smaller --batch-size"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_starts(
    weightcast, tmp_path, monkeypatch, arguments, sentence
):
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    outcome = weightcast("compare", *arguments)
    assert outcome.code == 2
    assert sentence in " ".join(outcome.err.split())
    assert "Traceback" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_no_cuda_is_one_sentence(weightcast, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    outcome = weightcast("compare", "--device", "cuda", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "use --device cpu" in outcome.err


def test_a_report_of_nothing_is_one_sentence(weightcast, tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        outcome = weightcast("report", path)
        assert outcome.code == 2
        assert "does not exist" in " ".join(outcome.err.split())


@pytest.mark.parametrize("name", ["compare", "reproduce", "study", "report", "doctor"])
def test_help_suffices(weightcast, name):
    outcome = weightcast(name, "--help")
    assert outcome.code == 0
    assert "Example" in outcome.out


def test_help_names_every_optimizer(weightcast, monkeypatch):
    monkeypatch.setenv("COLUMNS", "600")
    words = weightcast("compare", "--help").out
    assert all(name in words for name in OPTIMIZERS)


def test_help_says_what_exit_codes_mean_and_how_shells_complete(weightcast, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    words = weightcast("--help").out
    assert "130, interrupted" in words
    assert "--install-completion" in words


@pytest.mark.parametrize(("setting", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured(weightcast, monkeypatch, setting, colored):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in ({"FORCE_COLOR": "1", "TERM": "xterm-256color"} | setting).items():
        monkeypatch.setenv(name, value)
    assert ("\x1b[31m" in weightcast("compare", "--task", "digit").err) == colored
