"""The pipeline on Gloo processes against one process that applies the same delays, in NumPy."""

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import weightcast
from tests.oracles.pipeline import Layer, Stage, simulate
from tests.processes import forkserver, gloo
from weightcast.pipeline import AsyncPipeline

WIDTHS = (3, 6, 5, 4, 2)
CUTS = {2: (0, 4, 7), 4: (0, 2, 4, 6, 7)}  # of the nn.Sequential: a linear layer, tanh, and so on
LAYERS = {2: (0, 2, 4), 4: (0, 1, 2, 3, 4)}
SEGMENTS = (9, 7)  # batches between two drains
LR = 0.02


class Case(NamedTuple):
    optimizer: str = "adamw"
    predicted: bool = False
    stash: bool = True
    beyond: bool = False


CASES = [
    Case(),  # PipeDream
    Case(predicted=True),
    Case(stash=False),
    Case(predicted=True, stash=False),  # PipeOptim
    Case(predicted=True, stash=False, beyond=True),  # SpecTrain, XPipe
    Case(predicted=True, beyond=True),
    Case("sgd", predicted=True),
    Case("observed", predicted=True),  # AdamW's Δ as it is seen
    Case("weightcast", predicted=True),  # our own AdamW
    Case("weightcast", predicted=True, stash=False, beyond=True),
]


def layers() -> list[Layer]:
    random = np.random.default_rng(3)
    return [(random.normal(0, 0.6, (n, m)), random.normal(0, 0.2, n)) for m, n in pairwise(WIDTHS)]


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(4)
    inputs = [random.normal(size=(8, WIDTHS[0])) for _ in range(sum(SEGMENTS))]
    return [(x, np.sin(x[:, :2]) + 0.1 * random.normal(size=(8, 2))) for x in inputs]


def decay_of(case: Case) -> float:
    """None where Δ is observed, which would include it."""
    return 0.0 if case.optimizer == "observed" else 0.01


def half_mean_square(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return 0.5 * (output - target).square().mean()


def whole_model() -> nn.Sequential:
    modules: list[nn.Module] = []
    for w, b in layers():
        linear = nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        linear.load_state_dict({"weight": torch.tensor(w), "bias": torch.tensor(b)})
        modules += [linear, nn.Tanh()]
    return nn.Sequential(*modules[:-1])


def make(case: Case) -> tuple[nn.Module, torch.optim.Optimizer, AsyncPipeline]:
    """This process's stage, in the ten lines of a user."""
    rank, cuts = dist.get_rank(), CUTS[dist.get_world_size()]
    stage = whole_model()[cuts[rank] : cuts[rank + 1]]
    if case.optimizer == "sgd":
        optimizer = torch.optim.SGD(stage.parameters(), lr=LR, momentum=0.9)
    elif case.optimizer == "weightcast":
        optimizer = weightcast.AdamW(stage.parameters(), lr=LR, weight_decay=decay_of(case))
    else:
        optimizer = torch.optim.AdamW(stage.parameters(), lr=LR, weight_decay=decay_of(case))
    more: dict[str, Any] = {"stash": case.stash}
    if case.predicted:
        rule = "observed" if case.optimizer == "observed" else None
        more["prediction"] = weightcast.attach(stage, optimizer, rule=rule)
        more["beyond"] = rank // 2 if case.beyond else 0
    return stage, optimizer, AsyncPipeline(stage, optimizer, half_mean_square, **more)


def run_case(case: Case, folder: Path, kill_at: int | None = None) -> dict[str, Any]:
    """Train from the last checkpoint, if there is one; a checkpoint follows every drain."""
    stage, optimizer, pipeline = make(case)
    rank, checkpoint = dist.get_rank(), folder / f"checkpoint-{dist.get_rank()}"
    done, losses = 0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        stage.load_state_dict(saved["stage"])
        optimizer.load_state_dict(saved["optimizer"])
        done, losses = saved["done"], saved["losses"]
    ends = [sum(SEGMENTS[: n + 1]) for n in range(len(SEGMENTS))]
    for x, y in batches()[done:]:
        if done == kill_at and rank == pipeline.stages - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = pipeline.step(torch.tensor(x), torch.tensor(y))
        done += 1
        assert (loss is None) == (rank < pipeline.stages - 1)
        losses.append(None if loss is None else loss.item())
        if done in ends:
            pipeline.drain()
            state = {"stage": stage.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"done": done, "losses": losses}, checkpoint)
            dist.barrier()  # the checkpoint of a part of the stages is none
    return {"weights": [p.detach() for p in stage.parameters()], "losses": losses}


def worker(rank: int, stages: int, folder: Path, cases: list[Case], kill_at: int | None) -> None:
    with gloo(rank, stages, folder / f"store-{kill_at}"):
        for number, case in enumerate(cases):
            own = folder / str(number)
            own.mkdir(exist_ok=True)
            torch.save(run_case(case, own, kill_at), own / f"result-{rank}")


def train(stages: int, folder: Path, cases: list[Case], kill_at: int | None = None) -> list[int]:
    """The exit codes of the stages."""
    arguments = (stages, folder, cases, kill_at)
    running = [forkserver.Process(target=worker, args=(r, *arguments)) for r in range(stages)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return [process.exitcode or 0 for process in running]


def expected(stages: int, case: Case) -> tuple[list[Stage], list[float]]:
    ends, data, losses = LAYERS[stages], batches(), []
    settings = (case.optimizer, LR, decay_of(case))
    simulated = [Stage(layers()[a:b], *settings) for a, b in pairwise(ends)]
    start = 0
    for count in SEGMENTS:
        part = data[start : start + count]
        losses += simulate(simulated, part, case.predicted, case.stash, case.beyond)
        start += count
    return simulated, losses


def compare(folder: Path, stages: int, case: Case) -> None:
    simulated, losses = expected(stages, case)
    for rank, stage in enumerate(simulated):
        found = torch.load(folder / f"result-{rank}", weights_only=True)
        assert stage.t == sum(SEGMENTS)  # every batch is applied, once
        for weight, array in zip(found["weights"], stage.arrays(), strict=True):
            np.testing.assert_allclose(weight.numpy(), array, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["losses"], losses, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All cases in one run of the processes, for each number of stages."""
    folders: dict[int, Path] = {}

    def run(stages: int) -> Path:
        if stages not in folders:
            folders[stages] = tmp_path_factory.mktemp(f"{stages}-stages")
            assert train(stages, folders[stages], CASES) == [0] * stages
        return folders[stages]

    return run


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: str(CASES[n]))
@pytest.mark.parametrize("stages", [2, 4])
def test_every_stage_equals_one_process_with_the_same_delays(trained, stages, number):
    compare(trained(stages) / str(number), stages, CASES[number])


def test_the_cases_differ():
    """Or the test above would show nothing."""
    cases = [case for case in CASES if case.optimizer != "weightcast"]  # the same as torch's
    ends = [expected(4, case)[0][0].arrays()[0] for case in cases]
    for n, one in enumerate(ends):
        for other in ends[:n]:
            assert np.abs(one - other).max() > 1e-6


@pytest.mark.parametrize("stages", [2, 4])
def test_killed_in_mid_run_it_goes_on_from_its_checkpoints(tmp_path, stages):
    """The last stage is killed in the second segment; all end as if nothing had happened."""
    case = Case(predicted=True)
    codes = train(stages, tmp_path, [case], kill_at=SEGMENTS[0] + 3)
    assert codes[-1] == -signal.SIGKILL
    assert not (tmp_path / "0" / "result-0").exists()
    assert train(stages, tmp_path, [case]) == [0] * stages
    compare(tmp_path / "0", stages, case)


@pytest.fixture
def alone(tmp_path):
    """A process group of one: a pipeline without delay."""
    with gloo(0, 1, tmp_path / "store"):
        yield


@pytest.mark.parametrize("case", [Case(), Case(predicted=True)], ids=str)
def test_one_stage_is_the_plain_loop_bit_for_bit(alone, monkeypatch, case):
    monkeypatch.setitem(CUTS, 1, (0, 7))
    stage, _, pipeline = make(case)
    plain = whole_model()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LR)
    for x, y in batches():
        x, y = torch.tensor(x), torch.tensor(y)
        loss = half_mean_square(plain(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.equal(pipeline.step(x, y), loss)
    for p, q in zip(stage.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


class Turned(nn.Module):
    """Its backward needs views of a weight that are lazily conjugate or negative."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.weight = nn.Parameter(torch.tensor([0.5 + 1j, -1 + 2j], dtype=torch.complex128))

    def forward(self, x):
        turned = self.weight.conj()  # a view on the weight's own memory
        return (turned.imag if self.way == "negative" else turned) * x


@pytest.mark.parametrize("way", ["conjugate", "negative"])
def test_lazy_views_of_weights_are_stashed_for_what_they_are(alone, way):
    ends = []
    for is_piped in (True, False):
        stage = Turned(way)
        optimizer = torch.optim.SGD(stage.parameters(), lr=0.1, momentum=0.9)
        if is_piped:
            prediction = weightcast.attach(stage, optimizer)
            pipeline = AsyncPipeline(stage, optimizer, loss_of, prediction=prediction, beyond=0.0)
            pipeline.stash = True  # as in a stage with a delay
        for k in range(4):
            x = torch.tensor([1.0 + k, 2.0], dtype=torch.float64, requires_grad=True)
            if is_piped:
                pipeline.step(x, None)
            else:
                optimizer.zero_grad()
                loss_of(stage(x), None).backward()
                optimizer.step()
            ends.append(x.grad)
        ends.append(stage.weight.detach().clone())
    half = len(ends) // 2
    for piped, plain in zip(ends[:half], ends[half:], strict=True):
        assert torch.equal(piped, plain)


def loss_of(output, target):
    return output.abs().square().sum()


def test_mistakes_are_one_sentence(alone):
    stage, other = nn.Linear(1, 1), nn.Linear(1, 1)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1, momentum=0.9)
    theirs = weightcast.attach(other, torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9))
    with pytest.raises(weightcast.InvalidArgumentError, match="belongs to another optimizer"):
        AsyncPipeline(stage, optimizer, half_mean_square, prediction=theirs)
    own = torch.optim.SGD([{"params": stage.parameters(), "prediction_steps": 1}], momentum=0.9)
    own_steps = weightcast.attach(stage, own)
    with pytest.raises(weightcast.InvalidArgumentError, match="names prediction_steps of its own"):
        AsyncPipeline(stage, own, half_mean_square, prediction=own_steps)
    own_steps.detach()
    with pytest.raises(weightcast.InvalidArgumentError, match="beyond=1 needs a prediction"):
        AsyncPipeline(stage, optimizer, half_mean_square, beyond=1)
    pipeline = AsyncPipeline(stage, optimizer, half_mean_square)
    pipeline._shapes["output"] = (torch.Size([4, 1]), torch.float32)  # as a first batch leaves it
    with pytest.raises(weightcast.InvalidArgumentError, match=r"has shape \(3, 1\).*smaller last"):
        pipeline._send(torch.zeros(3, 1), 1, None, "output")


def test_the_example_in_the_documentation_runs(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "delays.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    (tmp_path / "late.py").write_text(block)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", "late.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        saved = torch.load(tmp_path / f"stage-{rank}.pt", weights_only=True)
        steps = {int(state["step"]) for state in saved["optimizer"]["state"].values()}
        assert steps == {200}  # every batch was applied


def test_without_processes_it_says_what_to_call():
    stage = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    with pytest.raises(weightcast.WeightcastError, match="init_process_group first"):
        AsyncPipeline(stage, optimizer, half_mean_square)
