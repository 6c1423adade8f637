"""Every kernel does what `eager` does, and `eager` what torch's AdamW and the rules do."""

import copy
import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightcast import kernels
from weightcast.displacement.rules import adam
from weightcast.kernels import build, eager
from weightcast.kernels.operands import FUSED_DEVICES, Operands, Settings
from weightcast.tensors import StateView

# those that run on the CPU: Triton in its interpreter alone (test_triton.py)
FUSED = [
    module
    for name in ("cpu", "triton")
    if (module := kernels._load(name)) and module.handles(torch.zeros(1), [])
]
LOW_PRECISION = (torch.bfloat16, torch.float16)
LISTS = [f.name for f in dataclasses.fields(Operands) if f.init]
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: (
        t.to(memory_format=torch.channels_last) if t.dim() == 4 and t.numel() else t
    ),
}
BETAS = (0.9, 0.98)

each_kernel = pytest.mark.parametrize("kernel", FUSED, ids=lambda m: m.__name__.split(".")[-1])


def operands(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype = torch.float32,
    *,
    counts: list[int] | None = None,
    amsgrad: bool = False,
    copies: str = "none",
    layout: str = "contiguous",
    seed: int = 0,
) -> Operands:
    """Weights, gradients and moments such as training leaves behind."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype is torch.float64 else torch.float32

    def make(scale: float, dtype: torch.dtype = wide) -> list[Tensor]:
        tensors = (torch.randn(shape, generator=generator) * scale for shape in shapes)
        return [LAYOUTS[layout](t).to(dtype) for t in tensors]

    params, grads, moments = make(1, dtype), make(0.1, dtype), make(0.01)
    squares, largest, others = make(0.01), make(0.01), make(1)
    counts = counts or [7] * len(shapes)
    for k, count in enumerate(counts):
        if count == 0:
            for tensors in (moments, squares, largest):
                tensors[k].zero_()
    return Operands(
        params,
        grads,
        sources=others if copies in ("sources", "both") else [],
        sinks=others if copies == "both" else make(1) if copies == "sinks" else [],
        exp_avgs=moments,
        exp_avg_sqs=[s.square_() for s in squares],
        max_exp_avg_sqs=[s.square_() for s in largest] if amsgrad else [],
        counts=[torch.tensor(float(count)) for count in counts],
    )


def ran(
    kernel: ModuleType, entry: str, given: Operands, setting: Settings
) -> dict[str, list[Tensor]]:
    """All memory afterwards."""
    o = copy.deepcopy(given)
    getattr(kernel, entry)(o, setting)
    return {name: getattr(o, name) for name in LISTS}


def assert_same(actual: dict, expected: dict, dtype: torch.dtype) -> None:
    for name in LISTS:
        for a, e in zip(actual[name], expected[name], strict=True):
            assert a.stride() == e.stride()
            tolerance = {"rtol": 2e-6, "atol": 1e-6}
            if name == "params" and dtype in LOW_PRECISION:  # a tie may round the other way
                tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
            torch.testing.assert_close(a, e, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


shapes = st.lists(
    st.one_of(
        st.lists(st.integers(0, 9), max_size=4).map(tuple),
        st.integers(1, 3000).map(lambda n: (n,)),
    ),
    min_size=1,
    max_size=4,
)


@each_kernel
@settings(max_examples=150, deadline=None)
@given(
    shapes=shapes,
    dtype=st.sampled_from([torch.float32, *LOW_PRECISION]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    entry=st.sampled_from(["step", "forecast"]),
    copies=st.sampled_from(["none", "sources", "sinks", "both"]),
    amsgrad=st.booleans(),
    maximize=st.booleans(),
    scaled=st.booleans(),
    found_inf=st.sampled_from([None, 0.0, 1.0]),
    back=st.sampled_from([0.0, 0.02]),
    ahead=st.sampled_from([0.0, 0.02, -0.01]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decay=st.sampled_from([1.0, 0.97]),
    strange_grads=st.booleans(),
    on_device=st.booleans(),
    data=st.data(),
)
def test_a_kernel_does_what_eager_does(
    kernel, shapes, dtype, layout, entry, copies, amsgrad, maximize, scaled, found_inf, back,
    ahead, weight_decay, decay, strange_grads, on_device, data,
):  # fmt: skip
    """R3, R7, R14, R28: every option, size, layout and step count, the first included."""
    if not kernel.handles(torch.zeros(1, dtype=dtype), []):
        dtype = torch.bfloat16
    if dtype in LOW_PRECISION:  # θ̂ is a rounded copy: θ is elsewhere, and stays there
        copies = "both" if entry == "step" else "sources"
    elif entry == "step" and copies in ("sinks", "both"):
        copies = "sources"
    counts = [data.draw(st.sampled_from([0, 1, 7, 1000])) for _ in shapes]
    given = operands(
        shapes,
        dtype,
        counts=counts,
        amsgrad=amsgrad,
        copies=copies,
        layout=layout,
        seed=len(shapes),
    )
    if strange_grads:  # neither laid out nor typed like the weights
        given.grads = [
            torch.stack([g, g], -1)[..., 0].to(torch.float32 if i % 2 else dtype)
            for i, g in enumerate(given.grads)
        ]
    back = back if copies != "sinks" else 0.0
    numbers = 0.01, decay, back, ahead
    lr, decay, back, ahead = map(torch.tensor, numbers) if on_device else numbers
    setting = Settings(
        lr,
        *BETAS,
        1e-8,
        weight_decay=weight_decay,
        decay=decay,
        back=back,
        ahead=ahead,
        maximize=maximize,
        grad_scale=torch.tensor(4.0) if scaled else None,
        found_inf=None if found_inf is None else torch.tensor(found_inf),
    )
    assert kernel.handles(given.params[0], given.exp_avgs[:1])
    actual, expected = (ran(k, entry, given, setting) for k in (kernel, eager))
    assert_same(actual, expected, dtype)
    for before, after in zip(given.grads, actual["grads"], strict=True):
        assert torch.equal(before, after)  # R29
    if dtype in LOW_PRECISION and entry == "step" and not ahead:
        for p, theta in zip(actual["params"], actual["sinks"], strict=True):
            assert torch.equal(p, theta.to(dtype))


@each_kernel
@pytest.mark.parametrize("eps", [1e-30, 2e-15, 1e-8, 1.0])
@pytest.mark.parametrize("size", [0.0, 1e-16, 1e-12, 1.0, 1e15])
def test_an_epsilon_and_gradients_of_any_size(kernel: ModuleType, eps: float, size: float) -> None:
    """Nothing overflows and no digit is lost, though the kernel may divide once for two."""
    o = operands([(70,)])
    o.grads[0].mul_(10 * size)
    o.exp_avgs[0].mul_(100 * size)
    o.exp_avg_sqs[0].mul_(1e4 * size).mul_(size)
    setting = Settings(0.01, *BETAS, eps, back=0.02, ahead=0.02)
    actual, expected = (ran(k, "step", o, setting) for k in (kernel, eager))
    assert all(t.isfinite().all() for t in expected["params"])
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_eager_is_torchs_step_and_the_rules_displacement(amsgrad: bool, maximize: bool) -> None:
    """The oracle itself: torch.optim.AdamW, then θ - ahead·Δ/γ of `rules.adam`."""
    o = operands([(5, 3), (4,)], torch.float64, amsgrad=amsgrad)
    params = [torch.nn.Parameter(p.clone()) for p in o.params]
    theirs = torch.optim.AdamW(
        params, 0.01, BETAS, amsgrad=amsgrad, maximize=maximize, weight_decay=0.1
    )
    for p, g, m, v, t, *most in zip(
        params, o.grads, o.exp_avgs, o.exp_avg_sqs, o.counts, *[o.max_exp_avg_sqs] * amsgrad,
        strict=True,
    ):  # fmt: skip
        p.grad = g.clone()
        theirs.state[p] = {"step": t.clone(), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
        if amsgrad:
            theirs.state[p]["max_exp_avg_sq"] = most[0].clone()
    theirs.step()
    setting = Settings(0.01, *BETAS, 1e-8, 0.1, ahead=0.03, maximize=maximize)
    eager.step(o, setting)
    group = theirs.param_groups[0] | {"lr": 0.03}
    for p, moved in zip(params, o.params, strict=True):
        expected = p.detach() - adam(StateView([theirs.state[p]]), group)
        torch.testing.assert_close(moved, expected, rtol=1e-13, atol=0)


@each_kernel
@pytest.mark.parametrize("copies", ["none", "sources"])
def test_the_true_weights_come_back_within_their_last_bit(kernel: ModuleType, copies: str) -> None:
    """θ is rounded before the forecast is taken from it, so that θ̂ + s·Δ finds it again."""
    o = operands([(4000,)], copies=copies)
    twin = copy.deepcopy(o)
    there = Settings(1e-3, *BETAS, 1e-8, ahead=3e-3)
    kernel.step(o, there)
    kernel.step(twin, dataclasses.replace(there, ahead=0.0))
    o.sources = o.sinks = []
    o.prepared = None
    kernel.forecast(o, dataclasses.replace(there, ahead=-3e-3))
    equal = (o.params[0] == twin.params[0]).float().mean()
    assert equal > 0.98
    torch.testing.assert_close(o.params[0], twin.params[0], rtol=2**-23, atol=1e-9)


def test_bfloat16_is_rounded_to_the_nearest_even() -> None:
    """As torch rounds, for ties, subnormals, infinities and NaN."""
    cpu = pytest.importorskip("weightcast.kernels.cpu")
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1 + 2**-8, 1 + 3 * 2**-8])
    values = torch.cat([bits.view(torch.float32), special])
    o = operands([values.shape], torch.bfloat16, copies="sources")
    o.sources = [values]
    o.exp_avgs[0].zero_()
    cpu.forecast(o, Settings(0.0, *BETAS, 1e-8))
    torch.testing.assert_close(o.params[0], values.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("copies", ["none", "sources", "sinks"])
@pytest.mark.parametrize("entry", ["step", "forecast"])
@pytest.mark.parametrize("threads_of", ["torch", "our own"])
def test_large_tensors_are_streamed_and_shared_between_threads(
    monkeypatch: pytest.MonkeyPatch, copies: str, entry: str, threads_of: str
) -> None:
    """The same bits whatever the number of threads; memory that is not aligned to 16 bytes too."""
    cpu = pytest.importorskip("weightcast.kernels.cpu")
    if threads_of == "our own":
        monkeypatch.setattr(cpu, "_PARALLEL", None)
    elif cpu._PARALLEL is None:
        pytest.skip("this torch has no OpenMP of GNU's interface")
    o = operands([(2**21 - 77,), (3,), (0,), (100_001,)], copies="" if entry == "step" else copies)
    if copies != "none" and entry == "step":
        o.sources = [p.clone() for p in o.params]
    for name in LISTS[:-1]:  # a view into a larger buffer
        for k, t in enumerate(getattr(o, name)):
            getattr(o, name)[k] = torch.cat([t.new_zeros(1), t])[1:]
    setting = Settings(0.01, *BETAS, 1e-8, ahead=0.02)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ran(cpu, entry, o, setting))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name in LISTS:
            assert all(map(torch.equal, results[0][name], other[name])), name
    assert_same(results[0], ran(eager, entry, o, setting), torch.float32)


@each_kernel
@settings(max_examples=30, deadline=None)
@given(shapes=shapes, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_restoring_is_a_copy(kernel: ModuleType, shapes, dtype: torch.dtype) -> None:
    """R1: bit for bit; where θ is a float32 master, its rounded copy."""
    o = operands(shapes, dtype, copies="sources")
    kernel.restore(o)
    assert all(torch.equal(p, s.to(dtype)) for p, s in zip(o.params, o.sources, strict=True))


def test_large_tensors_are_restored_past_the_cache() -> None:
    """The same bits whatever the number of threads and the alignment."""
    cpu = pytest.importorskip("weightcast.kernels.cpu")
    before = torch.get_num_threads()
    try:
        for threads, offset in ((1, 0), (2, 1), (5, 3)):
            torch.set_num_threads(threads)
            source = torch.randn(2**21 + 333)
            source[::1000] = torch.nan
            target = torch.zeros(2**21 + 333 + offset)[offset:]
            small = torch.zeros(3)
            cpu.restore(Operands([target, small], sources=[source, torch.ones(3)]))
            assert torch.equal(target.view(torch.int32), source.view(torch.int32))
            assert torch.equal(small, torch.ones(3))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("times", [0, 1], ids=["at first", "later"])
@pytest.mark.parametrize("way", ["elsewhere", "channels last", "double"])
@each_kernel
def test_weights_that_were_moved_meanwhile_are_restored(
    kernel: ModuleType, way: str, times: int
) -> None:
    """Neither is the memory they left written to, nor the order of the elements mistaken."""
    p = torch.nn.Parameter(torch.randn(2, 3, 4, 5))
    true = p.detach().clone()
    o = Operands([p], sources=[true])
    with torch.no_grad():
        for _ in range(times):
            kernel.restore(o)
        left = p.data.zero_()
        if way == "elsewhere":
            p.data = left.clone()
        elif way == "double":
            p.data = left.double()
        else:
            p.data = left.contiguous(memory_format=torch.channels_last)
        kernel.restore(o)
    assert torch.equal(p, true.to(p.dtype))
    assert not left.any()


@each_kernel
def test_a_move_keeps_the_version_counter_honest(kernel: ModuleType) -> None:
    """R9, invariant 7."""
    o = operands([(5,), (2, 2)])
    moved = Settings(0.01, *BETAS, 1e-8, ahead=0.01)
    back = Operands(o.params, sources=[p.clone() for p in o.params])
    for entry in (
        lambda: kernel.forecast(o, moved),
        lambda: kernel.step(o, moved),
        lambda: kernel.restore(back),
    ):
        versions = [p._version for p in o.params]
        entry()
        assert all(p._version > v for p, v in zip(o.params, versions, strict=True))


def test_what_a_kernel_cannot_read_is_left_to_eager() -> None:
    cpu = pytest.importorskip("weightcast.kernels.cpu")
    dense = torch.zeros(4, 6)
    assert cpu.handles(dense, [torch.zeros(4, 6)])
    for p, moment in [
        (dense.double(), dense.double()),
        (dense.half(), dense),
        (dense.bfloat16(), dense.bfloat16()),
        (dense.T, dense.T),
        (dense[:, ::2], dense[:, ::2]),
        (dense, dense.T.contiguous().T),
        (dense[:1].expand(4, 6), dense),
    ]:
        assert not cpu.handles(p, [moment])
        state = {"exp_avg": moment, "exp_avg_sq": moment}
        assert kernels.backend_for(p, state, {"amsgrad": False}) is eager


# --- where there is no compiler ------------------------------------------------------------------

TRAIN = """
import logging, sys, torch, weightcast
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(message)s")
logging.getLogger().handlers[0].addFilter(lambda record: record.name == "weightcast")
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.Tanh(), torch.nn.Linear(40, 1))
for in_step in (False, True):
    optimizer = weightcast.AdamW(model.parameters(), 0.01, steps=2, in_step=in_step)
    prediction = weightcast.attach(model, optimizer)
    for step in range(20):
        optimizer.zero_grad()
        model(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
    prediction.detach()
torch.save((model.state_dict(), "weightcast.kernels.cpu" in sys.modules), sys.argv[1])
"""


def trained(folder: Path, **environment: str) -> tuple[list[Tensor], bool, str]:
    """The weights, whether they were trained by the kernels, and what was logged."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder / "weights.pt")],
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    weights, fused = torch.load(folder / "weights.pt", weights_only=True)
    return list(weights.values()), fused, done.stderr


@pytest.mark.skipif(build.LIBRARY.exists(), reason="the kernels came with the wheel")
def test_without_a_compiler_the_numbers_are_the_same(tmp_path: Path) -> None:
    """It is said once, at debug level; and the next process with a compiler has the kernels."""
    slow, fused, log = trained(tmp_path / "none", CC="/bin/false")
    assert not fused
    assert log.count("using plain PyTorch") == 1
    assert "no cpu kernels" in log
    fast, fused, log = trained(tmp_path / "compiler")
    if not fused:
        pytest.skip("no compiler here")
    assert "using plain PyTorch" not in log
    assert len(list((tmp_path / "compiler" / "weightcast").iterdir())) == 1
    for a, b in zip(slow, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiler", ["/bin/false", "/nowhere/cc"])
def test_a_compiler_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(OSError, match=compiler):
        build.compile_library(tmp_path / "kernels" / "adamw.so")
    assert not list((tmp_path / "kernels").iterdir())


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no C compiler was found"):
        build.compile_library(tmp_path / "adamw.so")


def test_a_missing_backend_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    kernels._load.cache_clear()
    with caplog.at_level(logging.DEBUG, "weightcast"):
        assert kernels._load("abacus") is kernels._load("abacus") is None
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_devices_with_a_fused_step_are_torchs_own() -> None:
    assert {"cpu", "cuda"} <= set(FUSED_DEVICES)


# --- the wheel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["", "/bin/false"])
def test_a_wheel_carries_the_kernels_where_they_could_be_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    """For its platform; else it is pure Python and fits everywhere."""
    wheel = pytest.importorskip("hatchling.builders.wheel")
    root = Path(__file__).parent.parent
    if not (root / "hatch_build.py").exists():
        pytest.skip("not a source tree")
    monkeypatch.setenv("CC", compiler)
    try:
        build.compile_library(tmp_path / "probe.so")
        compiles = True
    except OSError:
        compiles = False
    assert not (compiler and compiles)
    (built,) = wheel.WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", built], capture_output=True, text=True, check=True
    ).stdout
    assert ("weightcast/kernels/_adamw.so" in names) is compiles
    assert "weightcast/kernels/adamw.c" in names
    assert built.endswith("-py3-none-any.whl") is not compiles
