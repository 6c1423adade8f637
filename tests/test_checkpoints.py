"""Nothing saved, copied or loaded ever holds or implies a predicted weight (R16, R17, R19)."""

import copy
import copyreg
import gc
import io
import pickle
import warnings

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.optim.swa_utils import AveragedModel, update_bn

import weightcast
from tests.helpers import (
    ANALYTIC_AND_OBSERVED,
    Recorder,
    attached,
    backward,
    data,
    kind_id,
    same,
    train,
    weights,
)

KINDS = pytest.mark.parametrize("kind", ANALYTIC_AND_OBSERVED, ids=kind_id)


def through_disk(thing: object, weights_only: bool) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=weights_only)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": lambda model: through_disk(model, weights_only=False),
    "AveragedModel": lambda model: AveragedModel(model).module,
    "state_dict": lambda model: load(Recorder(), model.state_dict()),
    "saved state_dict": lambda model: load(
        Recorder(), through_disk(model.state_dict(), weights_only=True)
    ),
}


def load(model: Recorder, state: dict) -> Recorder:
    model.load_state_dict(state)
    return model


@KINDS
@pytest.mark.parametrize("way", COPIES)
def test_a_copy_is_true_plain_and_unattached(kind: dict, way: str) -> None:
    model, optimizer, prediction = attached(**kind)
    theta = weights(model)
    model(data(model))
    model.seen.clear()
    assert prediction.is_predicted
    twin = COPIES[way](model)
    assert same(weights(twin), theta)
    assert vars(twin).keys() == vars(Recorder()).keys()
    for module in twin.modules():
        assert not any(table for name, table in vars(module).items() if "_hooks" in name)
    # it is trained on its own, and the original goes on predicting
    theta = weights(twin)
    twin(data(twin))
    assert same(twin.seen[-1], theta)
    train(model, optimizer, 1)
    model(data(model))
    assert prediction.is_predicted


def test_a_part_of_the_model_is_saved_and_copied_truly() -> None:
    model, _optimizer, prediction = attached()
    theta = weights(model.first)
    for part in (
        lambda: copy.deepcopy(model.first),
        lambda: pickle.loads(pickle.dumps(model.first)),
        lambda: load(torch.nn.Linear(3, 4, dtype=torch.float64), model.first.state_dict()),
        lambda: copy.copy(model.first),
    ):
        model(data(model))
        assert prediction.is_predicted
        twin = part()
        assert same(weights(twin), theta)
        assert vars(twin).keys() == vars(torch.nn.Linear(3, 4)).keys()
        assert not twin._state_dict_pre_hooks


class PassingOn(torch.nn.Module):
    """As PEFT's models and Fabric's: what it lacks, the model within has."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "AveragedModel"])
@pytest.mark.parametrize("is_inner", [True, False], ids=["inner", "outer"])
def test_a_copy_of_a_wrapper_is_a_wrapper(way: str, is_inner: bool) -> None:
    """Whichever of the two is attached: what copies the inner one is not found in its stead."""
    inner = Recorder()
    wrapper = PassingOn(inner)
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=0.05)
    prediction = weightcast.attach(inner if is_inner else wrapper, optimizer, steps=2)
    train(wrapper, optimizer)
    theta = weights(wrapper)
    wrapper(data(wrapper))
    assert prediction.is_predicted
    inner.seen.clear()
    twin = COPIES[way](wrapper)
    assert type(twin) is PassingOn
    assert type(twin.inner) is Recorder
    assert same(weights(twin), theta)
    assert not twin.inner._state_dict_pre_hooks


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_what_was_given_the_dict_of_an_attached_module_is_copied_as_itself(way: str) -> None:
    """As torch's replicas are made, and copies by hand."""
    model, _optimizer, prediction = attached()
    theta = weights(model)
    model(data(model))
    model.seen.clear()
    replica = Recorder.__new__(Recorder)
    replica.__dict__ = dict(vars(model))
    replica.name = "replica"
    twin = COPIES[way](replica)
    assert twin.name == "replica"
    assert same(weights(twin), theta)
    assert not twin._forward_pre_hooks
    assert not prediction.is_predicted


def test_nothing_is_left_with_copyreg() -> None:
    def ours() -> set[type]:
        gc.collect()  # other tests leave some, and packages that are imported meanwhile theirs
        kinds = torch.nn.Module, torch.optim.Optimizer
        return {cls for cls in copyreg.dispatch_table if issubclass(cls, kinds)}

    before = ours()
    one, _, prediction = attached()
    other, *rest = attached()
    assert ours() >= {Recorder, torch.optim.AdamW}
    prediction.detach()
    del other, rest
    assert ours() <= before
    copyreg.pickle(Recorder, theirs := lambda model: (Recorder, ()))
    try:
        weightcast.attach(one, torch.optim.AdamW(one.parameters())).detach()
        assert copyreg.dispatch_table[Recorder] is theirs
    finally:
        del copyreg.dispatch_table[Recorder]


def test_a_part_that_was_parametrized_after_attach_is_copied_plainly() -> None:
    """Its class is another then."""
    model, _optimizer, prediction = attached()
    prediction.restore()
    weight_norm(model.first)
    theta = [p.detach().clone() for p in model.second.parameters()]
    twin = copy.deepcopy(model)
    assert same(weights(twin.second), theta)
    twin(data(twin))
    assert same(weights(twin.second), theta)


@pytest.mark.parametrize("order", ["model first", "optimizer first"])
def test_model_and_optimizer_copied_together(order: str) -> None:
    model, optimizer, _ = attached()
    theta = weights(model)
    model(data(model))
    pair = (model, optimizer) if order == "model first" else (optimizer, model)
    twins = copy.deepcopy(pair)
    twin, twin_optimizer = twins if order == "model first" else reversed(twins)
    assert same(weights(twin), theta)
    assert not twin_optimizer._optimizer_step_pre_hooks
    assert twin_optimizer.param_groups[0]["params"][0] is twin.first.weight
    train(twin, twin_optimizer, 1)
    assert same(weights(model), theta)


def test_a_copy_does_not_drag_the_optimizer_along() -> None:
    """The pickle of a model is no larger for being attached."""
    model, _optimizer, _ = attached()
    plain = copy.deepcopy(model)
    assert len(pickle.dumps(model)) == len(pickle.dumps(plain))
    file, plain_file = io.BytesIO(), io.BytesIO()
    torch.save(model, file)
    torch.save(plain, plain_file)
    assert file.tell() == plain_file.tell()


def test_a_class_with_getstate_of_its_own_keeps_it() -> None:
    class Forgetful(Recorder):
        def __getstate__(self) -> dict:
            return {**vars(self), "seen": ["forgotten"]}

    model = Forgetful()
    optimizer = torch.optim.AdamW(model.parameters())
    weightcast.attach(model, optimizer)
    train(model, optimizer)
    twin = copy.deepcopy(model)
    assert twin.seen == ["forgotten"]
    assert not twin._forward_pre_hooks
    optimizer.zero_grad()


def test_a_class_with_a_way_of_its_own_to_be_copied_keeps_it() -> None:
    """Parametrized modules and graphs copy and pickle what they are made of themselves."""
    linear = torch.nn.Linear(3, 4, dtype=torch.float64)
    for model in (weight_norm(copy.deepcopy(linear)), torch.fx.symbolic_trace(Recorder().first)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        weightcast.attach(model, optimizer)
        train(model, optimizer)
        theta = weights(model)
        model(data(model))
        assert not same(weights(model), theta)
        twin = copy.deepcopy(model)
        assert same(weights(twin), theta)
        assert not twin._forward_pre_hooks
        assert "__reduce_ex__" not in vars(twin)
        model(data(model))
        if isinstance(model, torch.fx.GraphModule):  # torch pickles the other by state dict alone
            assert same(weights(pickle.loads(pickle.dumps(model))), theta)


def test_a_copy_of_a_part_that_was_parametrized_is_its_own() -> None:
    """Not the original's, which it was copied with."""
    model = Recorder()
    weight_norm(model.first)
    weightcast.attach(model, torch.optim.AdamW(model.parameters()))
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.first.bias)
    remove_parametrizations(twin.first, "weight")
    assert not copy.deepcopy(twin).first.bias.any()


def test_what_a_module_names_hooks_is_its_own() -> None:
    """Handles in a list, as probes of activations keep them, are no table of torch's."""

    class Probed(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.forward_hooks: list = []

    model = Probed()
    prediction = weightcast.attach(model, torch.optim.AdamW(model.parameters()))
    assert copy.deepcopy(model).forward_hooks == []
    prediction.detach()
    assert vars(model).keys() == vars(Probed()).keys()


def test_a_copied_handle_is_detached() -> None:
    """A trainer or a module may hold the handle and still be copied."""
    model, _optimizer, prediction = attached(attach={"damped": True, "weight_decay": True})
    model.prediction = prediction
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert repr(twin.prediction) == "WeightPrediction(detached, steps=2, at the true weights)"
        assert (twin.prediction.damped, twin.prediction.weight_decay) == (True, True)
        twin(data(twin))


@KINDS
@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.cell("PyTorch", "checkpoint and resume")
def test_resuming_equals_going_on(kind: dict, predicted: bool) -> None:
    """R16: saved at any moment, loaded in any mode; observed displacements travel in the state."""
    model, optimizer, _ = attached(**kind)
    if predicted:
        model(data(model))
    saved = through_disk([model.state_dict(), optimizer.state_dict()], weights_only=True)
    resumed, resumed_optimizer, _ = attached(**kind, iterations=1)
    if predicted:
        resumed(data(resumed))
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    train(model, optimizer)
    train(resumed, resumed_optimizer)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)  # torch loads NAdam's μ in float64


@KINDS
def test_checkpoints_are_those_of_the_plain_optimizer(kind: dict) -> None:
    """R17: both ways, and what an observed rule adds does not disturb."""
    model, optimizer, prediction = attached(**kind)
    plain = Recorder()
    options = {k: v for k, v in kind.items() if k != "optimizer_class"}
    bare = type(optimizer)(plain.parameters(), lr=0.05, **options)
    train(plain, bare, 2)
    keys = {key for state in bare.state_dict()["state"].values() for key in state}
    model(data(model))
    saved = optimizer.state_dict()
    ours = {key for state in saved["state"].values() for key in state}
    assert ours - keys <= {"prediction_displacement"}
    assert saved["param_groups"][0].keys() == bare.state_dict()["param_groups"][0].keys()
    # ours into the plain optimizer
    plain.load_state_dict(model.state_dict())
    bare.load_state_dict(copy.deepcopy(saved))
    prediction.detach()
    train(model, optimizer)
    train(plain, bare)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-9)  # torch loads NAdam's μ in float64
    # the plain optimizer's into ours
    prediction = weightcast.attach(model, optimizer, 2)
    optimizer.load_state_dict(copy.deepcopy(bare.state_dict()))
    train(model, optimizer, 1)
    model(data(model))
    assert prediction.is_predicted


def test_a_group_that_was_never_used_is_saved_as_such() -> None:
    """Many optimizers take a parameter that has any state for one that they know."""
    first, second = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)

    def optimizer() -> torch.optim.NAdam:
        return torch.optim.NAdam([{"params": part.parameters()} for part in (first, second)])

    ours, plain = optimizer(), optimizer()
    weightcast.attach(torch.nn.ModuleList([first, second]), ours, 2)
    first(data(first)).sum().backward()
    ours.step()
    assert set(ours.state_dict()["state"]) == {0, 1}
    plain.load_state_dict(ours.state_dict())
    second(data(second)).sum().backward()
    plain.step()


def test_an_empty_state_and_none_buffers_load() -> None:
    """R19: before the first step, and SGD's momentum_buffer=None of older checkpoints."""
    model, optimizer, prediction = attached(torch.optim.SGD, momentum=0.9)
    fresh = torch.optim.SGD(Recorder().parameters(), lr=0.05, momentum=0.9)
    optimizer.load_state_dict(fresh.state_dict())
    assert list(prediction.displacements()) == []
    for p in model.parameters():
        optimizer.state[p]["momentum_buffer"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", weightcast.PredictionWarning)
        train(model, optimizer)
    assert len(list(prediction.displacements())) == 4


def test_loading_keeps_the_dtype_of_the_state() -> None:
    """R18: a bfloat16 parameter's own displacement loads as it was."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", weightcast.PredictionWarning)
        model, optimizer, prediction = attached(torch.optim.SGD, dtype=torch.bfloat16)
        before = [d.clone() for _, d in prediction.displacements()]
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        after = [d for _, d in prediction.displacements()]
        assert same(before, after)
        model(data(model))


def test_averaged_weights_and_batch_norm_statistics() -> None:
    """R6, R12: EMA and SWA read θ after step() with no mode switch; update_bn runs at θ."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    weightcast.attach(model, optimizer, 3)
    average = AveragedModel(model)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for seed in range(4):
        train(model, optimizer, 1)
        average.update_parameters(model)
        for total, p in zip(sums, model.parameters(), strict=True):
            total += p.detach() / 4
        backward(model, seed)
        model.zero_grad()
        optimizer.step()
    theta = weights(model)
    update_bn([data(model)], model)
    assert same(weights(model), theta)
    expected = torch.nn.functional.linear(data(model), model[0].weight, model[0].bias).mean(0)
    torch.testing.assert_close(model[1].running_mean, expected.detach())
    for p, total in zip(average.module.parameters(), sums, strict=True):
        torch.testing.assert_close(p, total)
