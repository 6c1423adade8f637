"""The examples run, learn, and do what their comments say."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import weightcast

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]


def example(name: str) -> Any:
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_the_plain_loop_saves_a_plain_optimizer() -> None:
    losses, averaged, checkpoint = example("plain_loop.py")()
    assert losses[-1] < losses[0] / 4
    assert averaged < losses[0]
    plain = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    plain.load_state_dict(checkpoint["model"])
    torch.optim.AdamW(plain.parameters()).load_state_dict(checkpoint["optimizer"])
    assert {key for state in checkpoint["optimizer"]["state"].values() for key in state} == {
        *("step", "exp_avg", "exp_avg_sq")
    }


def test_the_plain_loop_without_steps_is_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """R10: bit for bit, as if the one line were not there."""
    losses, _, _ = example("plain_loop.py")(steps=0, epochs=3)
    predicted, _, _ = example("plain_loop.py")(steps=3, epochs=3)
    monkeypatch.setattr(weightcast, "attach", lambda *_, **__: None)
    plain, _, _ = example("plain_loop.py")(epochs=3)
    assert losses == plain != predicted


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
def test_muon_and_adamw_of_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """R10: with s = 0 as if the lines were not there; with s = 3 it learns, by another way."""
    predicted, plain = (example("muon.py")(steps=s, epochs=3) for s in (3, 0))
    assert predicted[-1] > 0.6
    monkeypatch.setattr(weightcast, "attach", lambda *_, **__: None)
    assert example("muon.py")(epochs=3) == plain != predicted


def test_the_closure_is_nesterov(monkeypatch: pytest.MonkeyPatch) -> None:
    """R11a, R21: its losses are those of torch's own Nesterov form, at the same points."""
    losses = example("closure.py")()
    assert losses[-1] < losses[0] / 10
    monkeypatch.setattr(weightcast, "attach", lambda *_, **__: None)
    sgd = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *a, **k: sgd(*a, **k, nesterov=True))
    assert example("closure.py")() == pytest.approx(losses, rel=1e-3)


def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    losses = example("lightning_module.py")()
    assert len(losses) == 11
    assert losses[-1] < losses[0] / 2


def test_hugging_face() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    before, after = example("hugging_face.py")()
    assert after < before - 1


def test_an_optimizer_of_ones_own_learns_with_a_forecast_and_without() -> None:
    plain, predicted = (example("own_optimizer.py")(steps=s) for s in (0, 1))
    assert plain[0] == predicted[0]
    assert plain[1] != predicted[1]
    assert max(plain[1], predicted[1]) < plain[0] / 4


def torchrun(name: str, processes: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """What an example prints on so many processes.

    They leave by `_exit`: an interpreter that frees a DDP model over Gloo now and then aborts as it
    ends, with weightcast or without.
    """
    script = folder / name
    script.write_text(
        "import os, runpy, sys\n"
        f"runpy.run_path({str(EXAMPLES / name)!r}, run_name='__main__')\n"
        "sys.stdout.flush()\n"
        "os._exit(0)\n"
    )
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(script)],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_ddp(tmp_path: Path) -> None:
    """R25: two processes, as the example's own command starts them."""
    done = torchrun("ddp.py", 2, tmp_path)
    assert "the same weights in 2 processes" in done.stdout
    _, first, *_, last, _, _, _ = next(
        line for line in done.stdout.splitlines() if line.startswith("loss")
    ).split()
    assert float(last) < float(first) / 4


def test_pipeline(tmp_path: Path) -> None:
    """Four stages; the first one's gradient is three steps late, and a forecast helps."""
    done = torchrun("pipeline.py", 4, tmp_path)
    assert "comes 3 steps late, and is taken 3 steps ahead" in done.stdout
    late, ahead = map(float, re.findall(r"mean loss .*: ([\d.]+)", done.stdout))
    assert ahead < late < 4.0  # of a target whose variance is 4


def test_the_notebook_runs_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert sum("image/png" in out.get("data", {}) for c in code for out in c["outputs"]) == 2
    namespace: dict[str, Any] = {}
    for cell in code:
        exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), namespace)
    pyplot.close("all")
    theta, ahead = (torch.tensor(namespace[name]) for name in ("true", "ahead"))
    assert torch.equal(theta[0], ahead[0])
    # AdamW's weight decay is no part of the forecast
    forecast = theta[1:] + 3 * (theta[1:] - (1 - 0.3 * 0.01) * theta[:-1])
    torch.testing.assert_close(ahead[1:], forecast, rtol=1e-4, atol=1e-5)


def test_every_example_is_listed_and_run() -> None:
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    tests = Path(__file__).read_text("utf-8") + (
        Path(__file__).parent / "lab" / "test_plugins.py"
    ).read_text("utf-8")
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".ipynb"):
            assert f"({path.name})" in listed
            assert path.name in tests
