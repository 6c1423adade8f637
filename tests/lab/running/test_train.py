import itertools
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch

from tests.lab.helpers import LineTask, runs_in, without_seconds
from tests.oracles.algorithm1 import Algorithm1, Group
from tests.test_algorithm1 import NAMES, Network, batches, initial_weights
from weightcast_lab.environment import environment
from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import Hyperparameters, Method
from weightcast_lab.methods.optimizers import OPTIMIZERS, PLAIN_ONLY
from weightcast_lab.results.records import RUNS
from weightcast_lab.running.jobs import Run
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.running.train import train
from weightcast_lab.tasks import DataSource, make_task


class Killed(BaseException):
    pass


def needs_its_package(method):
    """Skip where an optimizer comes from a package that is not installed."""
    try:
        method.attach(LineTask().build_model(), 0.01)
    except LabError as error:
        pytest.skip(str(error))


def kill_at(step_to_die):
    def on_step(step, steps, loss):
        if step == step_to_die:
            raise Killed

    return on_step


def files_of(folder, method=Method("adamw")):  # noqa: B008
    """Of the run that `train_line` makes if it is told of no other folder and seed."""
    return Run(method, 0).files(folder / "run", "configuration")


class HalfLine(LineTask):
    """In bfloat16, and its numbers are tensors."""

    def build_model(self):
        return super().build_model().to(torch.bfloat16)

    def loss(self, model, batch, carried):
        return (model(self.x[batch].bfloat16()) - self.y[batch]).square().mean(), None

    def evaluate(self, model):
        error = (model(self.x.bfloat16()) - self.y).square().mean()
        return error, error.sqrt()

    def test(self, model):
        return {"test error": self.evaluate(model)[1]}


def test_tensors_for_numbers_and_low_precision_are_fine(train_line):
    result = train_line(task=HalfLine())
    assert all(isinstance(x, float) for x in result.history["validation_loss"])
    assert result.test["test error"] == result.history["metric"][-1]


def test_history_has_an_evaluation_before_training_and_one_per_epoch(train_line):
    result = train_line()
    assert result.history["step"] == [0, 5, 10, 15]
    assert result.history["train_loss"][0] is None
    assert result.history["seconds"] == sorted(result.history["seconds"])
    assert result.diverged_at is None


def test_the_same_run_twice_is_the_same(train_line):
    first, second = train_line(folder="a"), train_line(folder="b")
    assert without_seconds(first) == without_seconds(second)


def test_zero_steps_ahead_is_the_plain_optimizer_bit_for_bit(train_line):
    plain = without_seconds(train_line(Method("adamw"), folder="a"))
    zero = without_seconds(train_line(Method("adamw", 0.0), folder="b"))
    assert zero == replace(plain, method="adamw-s0")


def test_prediction_acts(train_line):
    plain, three = train_line(Method("adamw"), folder="a"), train_line(Method("adamw", 3.0))
    assert plain.weights != three.weights
    assert plain.history["validation_loss"][0] == three.history["validation_loss"][0]


def test_training_is_plain_torch(train_line):
    result, batches = train_line(), train_batches(train_line)
    torch.manual_seed(0)
    task = LineTask()
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for batch in batches:
        optimizer.zero_grad()
        loss, _ = task.loss(model, torch.tensor(batch), None)
        loss.backward()
        optimizer.step()
    model.eval()
    assert task.evaluate(model)[0] == result.history["validation_loss"][-1]


def train_batches(train_line, **changes):
    task = LineTask()
    train_line(folder=f"batches-{changes}", task=task, **changes)
    return task.seen


def test_batches_depend_on_seed_and_epoch_and_not_on_the_method(train_line):
    batches = train_batches(train_line)
    assert batches == train_batches(train_line, method=Method("nadamw"))
    assert batches == train_batches(train_line, method=Method("adamw", 2.0))
    assert batches != train_batches(train_line, seed=1)
    assert batches[:5] != batches[5:10]
    assert sorted(n for batch in batches[5:10] for n in batch) == list(range(20))


METHODS = [
    *(Method(name) for name in OPTIMIZERS),
    *(Method(name, 2.0) for name in OPTIMIZERS if name not in PLAIN_ONLY),
    Method("adamw", math.inf, decaying=True),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.key)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(train_line, method):
    needs_its_package(method)
    undisturbed = train_line(method, folder="undisturbed")
    for step in (3, 8, 14):
        with pytest.raises(Killed):
            train_line(method, on_step=kill_at(step))
    taken = []
    resumed = train_line(method, on_step=lambda step, steps, loss: taken.append(step))
    assert taken == [11, 12, 13, 14, 15]
    assert without_seconds(resumed) == without_seconds(undisturbed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: b"something else",
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_run_starts_again(train_line, tmp_path, damage):
    undisturbed = train_line(folder="undisturbed")
    with pytest.raises(Killed):
        train_line(on_step=kill_at(8))
    path = files_of(tmp_path).working_folder / "checkpoint"
    path.write_bytes(damage(path.read_bytes()))
    warnings, taken = [], []
    result = train_line(warn=warnings.append, on_step=lambda step, *_: taken.append(step))
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert taken[0] == 1
    assert without_seconds(result) == without_seconds(undisturbed)


def test_a_run_ends_where_the_loss_stops_being_finite(train_line, tmp_path):
    result = train_line(task=LineTask(broken=[7]))
    assert result.diverged_at == 7
    assert result.history["step"] == [0, 5]
    assert runs_in(tmp_path / "run") == [result]


def test_a_run_ends_where_a_gradient_stops_being_finite(train_line):
    class BrokenGradient(LineTask):
        def loss(self, model, batch, carried):
            loss, carried = super().loss(model, batch, carried)
            if len(self.seen) == 7:
                model[0].weight.register_hook(lambda gradient: gradient * torch.nan)
            return loss, carried

    assert train_line(task=BrokenGradient()).diverged_at == 6


def test_a_run_ends_where_the_validation_loss_stops_being_finite(train_line):
    class BrokenEvaluation(LineTask):
        def evaluate(self, model):
            return (torch.nan, 0.0) if self.seen else super().evaluate(model)

    assert train_line(task=BrokenEvaluation()).diverged_at == 5


def test_a_run_whose_test_is_not_finite_has_diverged(train_line, tmp_path):
    class BrokenTest(LineTask):
        def test(self, model):
            return {"test loss": torch.inf}

    result = train_line(task=BrokenTest())
    assert (result.diverged_at, result.test) == (result.history["step"][-1], {})
    assert runs_in(tmp_path / "run") == [result]


def test_a_learning_rate_without_reason_diverges(train_line):
    result = train_line(Method("sgd"), learning_rate=1e25)
    assert 1 <= result.diverged_at <= 5


def test_the_state_is_carried_within_an_epoch_only(train_line):
    class Carrying(LineTask):
        given: list[int | None] = []  # noqa: RUF012

        def loss(self, model, batch, carried):
            self.given.append(carried)
            return super().loss(model, batch, carried)

    train_line(task=(task := Carrying()))
    assert task.given == [None, 1, 2, 3, 4] * 3


def test_clipping_bounds_the_gradient(train_line):
    norms = []

    class Clipped(LineTask):
        def loss(self, model, batch, carried):
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.nn.utils.get_total_norm(gradients).item())
            return super().loss(model, batch, carried)

    train_line(task=Clipped(), clip_norm=1e-3)
    assert norms
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


def test_clipping_of_a_language_model_is_on_and_its_test_text_is_read(tmp_path, small_text):
    task = make_task("ptb", DataSource(small_text, any_text=True))
    assert task.preset.clip_norm is not None
    recipe = Recipe("ptb", 0.01, 4, 2)
    cell = Run(Method("adamw", 1.0), 0)
    files = cell.files(tmp_path / "run", "configuration")
    result = train(cell, task, recipe, files, lambda *_: None, pytest.fail)
    # the text repeats two sentences: nearly all of it can be learnt
    assert result.history["metric"][-1] < result.history["metric"][0]
    assert result.test.keys() == {"test perplexity"}


def test_a_full_disk_is_one_sentence(train_line, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("weightcast_lab.files.os.replace", full)
    with pytest.raises(LabError, match="No space left on device"):
        train_line()


def test_files_of_an_unfinished_and_of_a_finished_run(train_line, tmp_path):
    with pytest.raises(Killed):
        train_line(on_step=kill_at(8))
    assert not (tmp_path / "run" / RUNS).exists()
    assert [path.name for path in files_of(tmp_path).working_folder.iterdir()] == ["checkpoint"]
    result = train_line()
    assert not files_of(tmp_path).working_folder.exists()
    assert runs_in(tmp_path / "run") == [result]


def test_time_is_up_at_a_checkpoint_and_the_run_goes_on_as_if_nothing_had_happened(train_line):
    whole = train_line(folder="whole", milestones=(1,))
    taken = []

    def slow(step, *_):
        taken.append(step)
        time.sleep(0.02)

    # an epoch takes 0.1 s: another would end too late
    assert train_line(until=time.time() + 0.15, on_step=slow, milestones=(1,)) is None
    assert taken == [1, 2, 3, 4, 5]
    assert train_line(until=0.0, on_step=slow, milestones=(1,)) is None
    assert without_seconds(train_line(milestones=(1,))) == without_seconds(whole)


def test_milestones_divide_the_learning_rate_by_ten(train_line, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args: (rates.append(self.param_groups[0]["lr"]), step(self, *args)),
    )
    train_line(Method("sgd"), learning_rate=0.1, milestones=(1, 2))
    assert rates == pytest.approx([0.1] * 5 + [0.01] * 5 + [0.001] * 5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_the_schedule_but_the_one_that_has_none(
    train_line, monkeypatch, name
):
    needs_its_package(Method(name))
    made, make = [], Method.make_optimizer

    def remember(self, *rest):
        made.append(make(self, *rest))
        return made[-1]

    monkeypatch.setattr(Method, "make_optimizer", remember)
    train_line(Method(name), milestones=(1, 2))
    rate = 0.01 if name == "schedule_free" else 0.0001
    assert [group["lr"] for group in made[0].param_groups] == pytest.approx(
        [rate] * len(made[0].param_groups)
    )


def test_hyperparameters_reach_the_optimizers_that_have_them():
    chosen = Hyperparameters((0.8, 0.9), 1e-6, 0.3)
    model = torch.nn.Linear(1, 1)
    for name in OPTIMIZERS:
        try:
            group = Method(name).attach(model, 0.1, chosen).param_groups[0]
        except LabError as error:
            assert "weightcast[study]" in str(error)
            continue
        assert group["weight_decay"] == 0.3
        assert group.get("betas", (0.8, 0.9)) == (0.8, 0.9)
        assert group.get("eps", 1e-6) == 1e-6
    assert Method("adamw", learning_rate=0.02).attach(model, 0.1).param_groups[0]["lr"] == 0.02


@pytest.mark.parametrize(
    "values", [{"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0}, {"weight_decay": -1.0}]
)
def test_impossible_hyperparameters_are_refused(values):
    with pytest.raises(LabError, match=r"must be (in|0 or more)"):
        Hyperparameters(**values)


def test_bf16_computes_in_bf16_and_keeps_float32_weights(train_line):
    class Seen(LineTask):
        dtypes: set[torch.dtype] = set()  # noqa: RUF012

        def loss(self, model, batch, carried):
            self.dtypes.add(model(self.x[batch]).dtype)
            return super().loss(model, batch, carried)

    train_line(task=(task := Seen()), precision="bf16")
    assert task.dtypes == {torch.bfloat16}
    plain = train_line(folder="fp32")
    assert train_line(folder="bf16", precision="bf16").weights != plain.weights


def test_every_environment_of_a_run_is_kept(train_line, monkeypatch):
    with pytest.raises(Killed):
        train_line(on_step=kill_at(8))
    monkeypatch.setattr("weightcast_lab.environment.torch.__version__", "elsewhere")
    first, second = train_line().environments
    assert first | {"torch": "elsewhere"} == second


def train_digits(folder, killed_at=None, seconds=0.0):
    """In a process of its own, as a worker would; it may be killed so long after so many steps."""
    torch.set_num_threads(1)
    recipe = Recipe("digits", 0.005, 32, 8)
    cell = Run(Method("adamw", 3.0), 0)
    steps = itertools.count(1)

    def on_step(*_):
        if next(steps) == killed_at:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    files = cell.files(folder, "configuration")
    task = make_task("digits", DataSource())
    files.save_result(train(cell, task, recipe, files, on_step, pytest.fail))


def test_killed_ten_times_at_random_it_ends_as_if_nothing_had_happened(tmp_path):
    """Wherever it hits: in a step, in an evaluation, in the writing of a checkpoint."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["weightcast_lab.running.train", "sklearn.datasets"])
    undisturbed = processes.Process(target=train_digits, args=(tmp_path / "undisturbed",))
    undisturbed.start()
    cell = Run(Method("adamw", 3.0), 0)
    whole, part = (cell.files(tmp_path / name, "configuration") for name in ("undisturbed", "part"))
    dice, found = random.Random(7), []
    for _ in range(10):
        moment = (dice.randint(1, 75), dice.uniform(0, 0.05))  # an epoch has 45 steps
        victim = processes.Process(target=train_digits, args=(tmp_path / "part", *moment))
        victim.start()
        victim.join()
        assert victim.exitcode == -signal.SIGKILL
        assert not runs_in(part.folder), "it ended before it could be killed"
        checkpoint = part.load_checkpoint(torch.device("cpu"), pytest.fail)
        found.append(checkpoint["epoch"] if checkpoint else 0)
        if found[-1] > 4:  # let it not come to its end before the tenth time
            part.working_folder.joinpath("checkpoint").unlink()
    assert len(set(found)) > 1
    last = processes.Process(target=train_digits, args=(tmp_path / "part",))
    last.start()
    last.join()
    undisturbed.join()
    (mine,), (theirs,) = runs_in(part.folder), runs_in(whole.folder)
    assert without_seconds(mine) == without_seconds(theirs)


@pytest.mark.parametrize("name", PLAIN_ONLY)
def test_what_cannot_be_predicted_is_refused_before_anything_runs(name):
    with pytest.raises(LabError, match=f"{name} cannot be predicted.*--baseline {name}"):
        Method(name, 1.0)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(LabError, match=r"Lion comes from.*pip install 'weightcast\[study\]'"):
        Method("lion").attach(torch.nn.Linear(1, 1), 0.1)


def test_a_decaying_forecast_is_another_method_and_may_be_infinite(train_line):
    decaying, infinite = Method("adamw", 3.0, decaying=True), Method("adamw", math.inf, None, True)
    assert (decaying.key, decaying.label) == ("adamw-s3-decaying", "AdamW s=3 decaying")
    assert (infinite.key, infinite.label) == ("adamw-sinf-decaying", "AdamW s=∞ decaying")
    ends = {
        train_line(method, folder=method.key).weights
        for method in (Method("adamw"), Method("adamw", 3.0), decaying, infinite)
    }
    assert len(ends) == 4
    with pytest.raises(LabError, match="--steps inf: "):
        Method("adamw", math.inf)


def test_schedule_free_trains_at_one_point_evaluates_at_another_and_keeps_its_rate(train_line):
    pytest.importorskip("schedulefree")
    modes, rates = [], []
    made = {}

    class Watching(LineTask):
        def note(self):
            group = made["optimizer"].param_groups[0]
            modes.append((group["train_mode"], len(self.seen) % 5))
            rates.append(group["lr"])

        def loss(self, model, batch, carried):
            self.note()
            return super().loss(model, batch, carried)

        def evaluate(self, model):
            self.note()
            return super().evaluate(model)

    make = Method.make_optimizer

    def remember(self, *rest):
        made["optimizer"] = make(self, *rest)
        return made["optimizer"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Method, "make_optimizer", remember)
        train_line(Method("schedule_free"), task=Watching(), milestones=(1, 2))
    assert [mode for mode, _ in modes] == [False] + ([True] * 5 + [False]) * 3
    assert set(rates) == {0.01}


@pytest.mark.parametrize(
    ("method", "copies"),
    [
        (Method("adamw"), 2),
        (Method("adamw", 3.0), 3),  # and the saved weights
        (Method("sgd"), 1),
        (Method("sgd", 1.0), 2),
        (Method("rmsprop"), 1),
        (Method("rmsprop", 1.0), 2),  # observed: Δ, whose place the saved weights take
        (Method("lookahead"), 3),
        (Method("schedule_free"), 2),
    ],
    ids=lambda value: getattr(value, "key", str(value)),
)
def test_what_a_method_keeps_beside_the_weights(train_line, method, copies):
    needs_its_package(method)
    result = train_line(method)
    # steps and other counters come on top of this tiny network's 25 weights
    assert copies <= result.memory < copies + 0.5


def test_a_run_names_the_package_that_its_optimizer_comes_from(train_line):
    assert train_line(folder="plain").package is None
    needs_its_package(Method("lion"))
    installed = f"pytorch_optimizer {version('pytorch_optimizer')}"
    assert train_line(Method("lion")).package == installed


def test_a_run_names_its_processor(train_line):
    assert train_line().processor.startswith(environment("cpu")["hardware"])


def test_muon_is_for_the_matrices_inside_only():
    pytest.importorskip("pytorch_optimizer")
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
    rest, hidden = Method("muon").attach(model, 0.1).param_groups
    assert [p is model[1].weight for p in hidden["params"]] == [True]
    assert len(rest["params"]) == 5
    assert (hidden["use_muon"], rest["use_muon"]) == (True, False)
    assert not hidden["nesterov"]
    assert Method("muon_nesterov").attach(model, 0.1).param_groups[1]["nesterov"]


def test_cpu_seconds_go_on_with_an_interrupted_run(train_line, tmp_path):
    with pytest.raises(Killed):
        train_line(on_step=kill_at(8))
    files = files_of(tmp_path)
    before = files.load_checkpoint(torch.device("cpu"), pytest.fail)["cpu_seconds"]
    assert before > 0
    assert train_line().cpu_seconds > before


class OracleTask(LineTask):
    """The oracle's network on its data, in float64; it keeps the model that it built."""

    data = list(batches(5))  # noqa: RUF012

    def build_model(self):
        self.model = Network(initial_weights())
        return self.model

    def batches(self, batch_size, generator):
        return self.data

    def loss(self, model, batch, carried):
        return model.loss(*batch), None

    def evaluate(self, model):
        return model.loss(*self.data[0]).item(), 0.0


@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("steps", [None, 2.0, 4.0])
@pytest.mark.parametrize("delay", [0, 1, 4])
def test_a_delayed_gradient_is_that_of_so_many_steps_before(train_line, delay, steps, clip_norm):
    """Against AdamW in NumPy, which takes batch t - D again at the predicted weights of t - D."""
    task = OracleTask()
    train_line(Method("adamw", steps), task=task, delay=delay, clip_norm=clip_norm)
    group = Group(NAMES, lr=0.01, weight_decay=0.01, steps=steps or 0.0)
    clip = math.inf if clip_norm is None else clip_norm
    reference = Algorithm1(initial_weights(), [group], delay=delay, clip_norm=clip)
    for batch in task.data * 3:
        reference.iterate([batch])
    for name in NAMES:
        found = getattr(task.model, name).detach().numpy()
        np.testing.assert_allclose(found, reference.theta[name], rtol=0, atol=1e-12)


def test_before_the_first_gradient_arrives_the_weights_stay(train_line):
    class Watched(OracleTask):
        seen = []  # noqa: RUF012

        def loss(self, model, batch, carried):
            self.seen.append(model.w1.detach().clone())
            return super().loss(model, batch, carried)

    train_line(Method("adamw"), task=(task := Watched()), delay=4)
    moved = [not torch.equal(weights, task.seen[0]) for weights in task.seen]
    assert moved == [False] * 5 + [True] * 10


@pytest.mark.parametrize("delay", [1, 4])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.key)
def test_gradients_under_way_survive_a_kill(train_line, tmp_path, method, delay):
    needs_its_package(method)
    undisturbed = train_line(method, folder="undisturbed", delay=delay)
    with pytest.raises(Killed):
        train_line(method, on_step=kill_at(8), delay=delay)
    checkpoint = files_of(tmp_path, method).load_checkpoint(torch.device("cpu"), pytest.fail)
    assert len(checkpoint["under_way"]) == delay
    resumed = train_line(method, delay=delay)
    assert without_seconds(resumed) == without_seconds(undisturbed)
    assert undisturbed.weights != train_line(method, folder="prompt").weights


def test_a_parameter_without_a_gradient_has_none_later_either(train_line):
    class PartlyUsed(LineTask):
        def build_model(self):
            self.model = super().build_model()
            self.model.append(torch.nn.Linear(1, 1))
            return self.model

        def loss(self, model, batch, carried):
            used = model if len(self.seen) >= 6 else model[:3]
            return super().loss(used, batch, carried)

    task, steps = PartlyUsed(), []

    def on_step(step, *_):
        steps.append(task.model[3].weight.grad is not None)

    train_line(Method("sgd"), task=task, delay=2, on_step=on_step)
    # what stands there while the queue fills is the batch's own, and is not applied
    assert steps == [False] * 8 + [True] * 7


def test_a_checkpoint_from_before_there_were_delays_goes_on(train_line, tmp_path):
    undisturbed = train_line(folder="undisturbed")
    with pytest.raises(Killed):
        train_line(on_step=kill_at(8))
    files = files_of(tmp_path)
    checkpoint = files.load_checkpoint(torch.device("cpu"), pytest.fail)
    assert checkpoint.pop("under_way") == []
    files.save_checkpoint(checkpoint)
    assert without_seconds(train_line()) == without_seconds(undisturbed)


def test_a_negative_delay_is_refused():
    with pytest.raises(LabError, match=r"--delay must be 0 or more, got -1\."):
        Recipe("line", 0.01, 4, 3, delay=-1)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf])
def test_a_norm_to_clip_to_that_would_stop_or_turn_training_is_refused(clip_norm):
    with pytest.raises(LabError, match="--clip must be positive and finite, got"):
        Recipe("line", 0.01, 4, 3, clip_norm=clip_norm)
