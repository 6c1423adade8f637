"""However the bytes move, and whatever the parameters look like: θ̂ = θ - s·Δ, and back."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import weightcast
from tests.helpers import same
from weightcast import tensors
from weightcast.moves import plans
from weightcast.moves.passes import Way
from weightcast.tensors import TILE, tiles

LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "channels last": lambda t: (
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 and t.numel() else t
    ),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
}
OPTIMIZERS = {
    "Adamax": (torch.optim.Adamax, {}),
    "AdamW": (torch.optim.AdamW, {"amsgrad": True, "weight_decay": 0.1}),
    "NAdam": (torch.optim.NAdam, {}),  # observed
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
}


class Holder(nn.Module):
    """Nothing but parameters."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.tensors = nn.ParameterList(map(nn.Parameter, tensors))


def holder(
    sizes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64, layout: str = "contiguous"
) -> Holder:
    generator = torch.Generator().manual_seed(len(sizes))
    tensors = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    return Holder([LAYOUTS[layout](t.to(dtype)) for t in tensors])


def set_gradients(model: Holder, seed: int, *, among: int | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    for k, p in enumerate(model.parameters()):
        gradient = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        p.grad = gradient if among is None or k < among else None


def optimizer_of(params, kind: str) -> torch.optim.Optimizer:
    cls, options = OPTIMIZERS[kind]
    return cls(params, lr=0.05, **options)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=6),
    layout=st.sampled_from(sorted(LAYOUTS)),
    kind=st.sampled_from(sorted(OPTIMIZERS)),
    dtype=st.sampled_from([torch.float64, torch.complex128]),
    tile=st.sampled_from([4, 16, 64, TILE]),
)
def test_tiles_and_gathered_parameters_move_as_each_would_alone(
    sizes, layout, kind, dtype, tile
) -> None:
    """The same bits as an optimizer and a forecast of its own for each parameter, moved whole."""
    if kind == "Adamax" and dtype.is_complex:
        kind = "SGD"
    moved = []
    for alone in (False, True):
        model = holder(sizes, dtype, layout)
        groups = [[p] for p in model.parameters()] if alone else [list(model.parameters())]
        optimizers = [optimizer_of(g, kind) for g in groups]
        with pytest.MonkeyPatch.context() as patch:
            for module in (tensors, plans):
                patch.setattr(module, "TILE", 2**40 if alone else tile)
            patch.setitem(plans._LARGEST, Way.GATHERED, tile)
            predictions = [weightcast.attach(model, o, 2, weight_decay=True) for o in optimizers]
            for seed in range(2):
                for prediction in predictions:
                    prediction.predict()
                set_gradients(model, seed)
                for optimizer in optimizers:
                    optimizer.step()
            theta = [p.detach().clone() for p in model.parameters()]
            for prediction in predictions:
                prediction.predict()
            moved.append([p.detach().clone() for p in model.parameters()])
            layouts = [p.stride() for p in model.parameters()]
            for prediction in predictions:
                prediction.restore()
        assert same(theta, [p.detach() for p in model.parameters()])
        assert layouts == [p.stride() for p in model.parameters()]
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_tiles_cover_every_element_once(layout: str) -> None:
    x = LAYOUTS[layout](torch.arange(3.0 * 40 * 40 * 40).view(3, 40, 40, 40))
    y = x.clone(memory_format=torch.preserve_format)
    pieces = list(tiles(x, y))
    assert len(pieces) > 1
    assert all(torch.equal(a, b) for a, b in pieces)
    assert sorted(torch.cat([a.flatten() for a, _ in pieces]).tolist()) == x.flatten().tolist()
    for a, _ in pieces:
        a.zero_()
    assert not x.any()


def test_each_parameter_goes_the_fastest_way_that_is_right_for_it() -> None:
    model = holder([(300, 300), (5,), (2, 2), (0, 3)])
    optimizer = optimizer_of(model.parameters(), "SGD")
    prediction = weightcast.attach(model, optimizer)
    set_gradients(model, 0)
    optimizer.step()
    prediction.predict()
    sizes = {batch.way: len(batch.params) for batch in prediction._forecast.moved}
    assert sizes == {Way.TILED: 1, Way.GATHERED: 2, Way.SINGLE: 1}


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_thousand_steps_make_one_plan(kind: str, dtype: torch.dtype, monkeypatch) -> None:
    """Whatever the scheduler does to the learning rate."""
    made = []
    build = plans._sorted
    monkeypatch.setattr(plans, "_sorted", lambda *args: made.append(1) or build(*args))
    model = holder([(3, 4), (5,)], dtype)
    optimizer = optimizer_of(model.parameters(), kind)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.999)
    prediction = weightcast.attach(model, optimizer)
    held: set[int] = set()
    for step in range(1000):
        prediction.predict()
        set_gradients(model, step % 7)
        optimizer.step()
        scheduler.step()
        if step == 10:
            made.clear()
            held = {t.data_ptr() for t in prediction._forecast.memory.values()}
    assert len(made) == 0
    assert {t.data_ptr() for t in prediction._forecast.memory.values()} == held


def test_frozen_parameters_do_not_make_plans_anew(monkeypatch) -> None:
    """They have no state, whatever else is allocated between the steps."""
    made, others = [], []
    build = plans._sorted
    monkeypatch.setattr(plans, "_sorted", lambda *args: made.append(1) or build(*args))
    model = holder([(3, 4), (5,), (2,)])
    optimizer = optimizer_of(model.parameters(), "AdamW")
    prediction = weightcast.attach(model, optimizer)
    for step in range(30):
        prediction.predict()
        set_gradients(model, step, among=1)
        optimizer.step()
        others.append([{} for _ in range(step % 5)])
        if step == 5:
            made.clear()
    assert len(made) == 0


def displaced(p: Tensor, theta: Tensor) -> bool:
    return not torch.equal(p.detach(), theta)


CHANGES = {
    "a state is loaded": lambda m, o: o.load_state_dict(copy.deepcopy(o.state_dict())),
    "a moment is replaced": lambda m, o: o.state[m.tensors[0]].update(
        {
            k: v.clone()
            for k, v in o.state[m.tensors[0]].items()
            if isinstance(v, Tensor) and k != "step"
        }
    ),
    "the weights live elsewhere": lambda m, o: [
        setattr(p, "data", p.data.clone()) for p in m.parameters()
    ],
    "another layout": lambda m, o: setattr(
        m.tensors[0], "data", m.tensors[0].data.mT.contiguous().mT
    ),
    "a group is added": lambda m, o: o.add_param_group({"params": [nn.Parameter(torch.ones(3))]}),
    "a parameter is left out of a step": lambda m, o: (
        set_gradients(m, 5, among=1),
        o.step(),
    ),
    "the state of one is gone": lambda m, o: o.state.pop(m.tensors[1]),
    "an option changes": lambda m, o: o.param_groups[0].update(eps=1e-3, betas=(0.8, 0.99)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["AdamW", "Adamax", "SGD"])
def test_no_plan_is_stale(kind: str, dtype: torch.dtype, change) -> None:
    """What the plan rests on changes: the forecast is that of a prediction that has none yet."""
    model = holder([(6, 4), (5,), (300, 300)], dtype)
    optimizer = optimizer_of(model.parameters(), kind)
    prediction = weightcast.attach(model, optimizer)
    for seed in range(3):
        prediction.predict()
        set_gradients(model, seed)
        optimizer.step()
    prediction.predict()
    prediction.restore()
    change(model, optimizer)
    theta = [p.detach().clone() for p in model.parameters()]
    prediction.predict()
    seen = [p.detach().clone() for p in model.parameters()]
    prediction.detach()
    assert same(theta, [p.detach() for p in model.parameters()])
    fresh = weightcast.attach(model, optimizer)
    fresh.predict()
    assert same(seen, [p.detach() for p in model.parameters()])
    assert displaced(model.tensors[0], theta[0])


def test_a_count_that_the_kernels_cannot_read_is_read_for_them() -> None:
    """A step count in float64, as torch makes it where that is the default dtype."""
    model = holder([(6, 4), (5,)], torch.float32)
    optimizer = optimizer_of(model.parameters(), "AdamW")
    prediction = weightcast.attach(model, optimizer)
    for seed in range(4):
        set_gradients(model, seed)
        optimizer.step()
        for state in optimizer.state.values():
            state["step"] = state["step"].double()
        expected = [p.detach() - 3 * delta for p, delta in prediction.displacements()]
        prediction.predict()
        for p, e in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*too coarse:weightcast.PredictionWarning")
def test_low_precision_weights_with_moments_in_float32_are_read_as_what_they_are() -> None:
    model = holder([(60, 4), (5,)], torch.bfloat16)
    optimizer = optimizer_of(model.parameters(), "AdamW")
    prediction = weightcast.attach(model, optimizer)
    set_gradients(model, 0)
    optimizer.step()
    for state in optimizer.state.values():
        state |= {k: v.float() for k, v in state.items() if k != "step"}
    theta = [p.detach().clone() for p in model.parameters()]
    deltas = [delta for _, delta in prediction.displacements()]
    prediction.predict()
    for p, t, delta in zip(model.parameters(), theta, deltas, strict=True):
        expected = (t.float() - 3 * delta).bfloat16()
        torch.testing.assert_close(p.detach(), expected, rtol=2**-7, atol=1e-6)
    prediction.restore()
    assert same(theta, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("size", [(5,), (300, 300)])
def test_a_forecast_that_is_interrupted_leaves_the_true_weights(size, monkeypatch) -> None:
    model = holder([size, (4,)])
    optimizer = optimizer_of(model.parameters(), "SGD")
    prediction = weightcast.attach(model, optimizer)
    set_gradients(model, 0)
    optimizer.step()
    theta = [p.detach().clone() for p in model.parameters()]
    subtract, calls = torch._foreach_sub_, []

    def interrupted(*args, **kwargs):
        subtract(*args, **kwargs)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_foreach_sub_", interrupted)
    if size == (5,):  # one batch
        calls.append(1)
    with pytest.raises(KeyboardInterrupt):
        prediction.predict()
    assert not prediction.is_predicted
    assert same(theta, [p.detach() for p in model.parameters()])


@pytest.mark.parametrize("own", [False, True])
def test_a_signal_during_a_kernel_leaves_the_true_weights(own: bool, monkeypatch) -> None:
    """Python raises it when the kernel has run, before anybody has noted that it did."""
    cpu = pytest.importorskip("weightcast.kernels.cpu", exc_type=ImportError)
    model = holder([(300, 300), (4,)], torch.float32)
    cls = weightcast.AdamW if own else torch.optim.AdamW
    optimizer = cls(model.parameters(), lr=0.05)
    prediction = weightcast.attach(model, optimizer, 2)
    set_gradients(model, 0)
    optimizer.step()
    theta = [p.detach().clone() for p in model.parameters()]
    run = cpu._run

    def interrupted(*args):
        run(*args)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(cpu, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prediction.predict()
    prediction.restore()
    assert not prediction.is_predicted
    assert same(theta, [p.detach() for p in model.parameters()])
    prediction.predict()
    assert displaced(model.tensors[0], theta[0])


def test_a_learning_rate_of_one_element_is_a_number() -> None:
    """Also of a single parameter without dimensions."""
    model = holder([()])
    set_gradients(model, 0)
    options = {"lr": torch.tensor([0.05]), "weight_decay": 0.0, "foreach": False}
    try:
        torch.optim.AdamW(model.parameters(), **options).step()
    except RuntimeError:
        pytest.skip("torch's own optimizer refuses the rate in this version")
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    prediction = weightcast.attach(model, optimizer, 2)
    before = model.tensors[0].item()
    optimizer.step()
    theta = model.tensors[0].item()
    prediction.predict()
    assert model.tensors[0].item() == pytest.approx(theta + 2 * (theta - before), rel=1e-6)


def test_a_rule_of_several_parameters_must_return_what_can_be_told_apart() -> None:
    class Odd(torch.optim.SGD):
        pass

    @weightcast.register_rule(Odd, foreach=True)
    def odd(state, group):
        return state["momentum_buffer"].sum()

    model = holder([(2, 2), (5,)])
    optimizer = Odd(model.parameters(), lr=0.1, momentum=0.9)
    prediction = weightcast.attach(model, optimizer)
    set_gradients(model, 0)
    optimizer.step()
    with pytest.raises(weightcast.InvalidArgumentError, match=r"'odd' returned .* shape \(\)"):
        prediction.predict()
    assert not prediction.is_predicted
