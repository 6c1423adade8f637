"""The kernels in Triton: in its interpreter, as machine code, and on a GPU where there is one."""

import copy
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightcast
from tests.helpers import nothing_waits_for_the_device, same, weights
from tests.test_kernels import BETAS, LISTS, assert_same, operands, ran
from weightcast import kernels
from weightcast.kernels import eager
from weightcast.kernels.operands import Operands, Settings

triton = pytest.importorskip("triton")
ours = pytest.importorskip("weightcast.kernels.triton")
cpu = kernels._load("cpu")

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(
    not IS_INTERPRETED or cpu is None, reason="runs in Triton's interpreter, beside C"
)
IS_OLD = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3)  # asked in another way
compiled = pytest.mark.skipif(
    IS_INTERPRETED or IS_OLD or "nvidia" not in triton.backends.backends,
    reason="needs Triton's compiler",
)
needs_cuda = pytest.mark.skipif(
    IS_INTERPRETED or not torch.cuda.is_available(), reason="needs CUDA"
)


# --- what they compute ---------------------------------------------------------------------------


@pytest.mark.skipif(IS_INTERPRETED, reason="this is it")
def test_in_the_interpreter_they_do_what_eager_does() -> None:
    """This file and test_kernels.py again: the interpreter is chosen when Triton is imported."""
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("kernels", "triton")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", "-k", "triton", *files],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 10


@interpreted
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(
    ("dtype", "copies"),
    [(torch.float32, "none"), (torch.float32, "sources"), (torch.bfloat16, "both")],
)
def test_they_compute_the_bits_of_the_c_kernels(
    dtype: torch.dtype, copies: str, amsgrad: bool
) -> None:
    """Also in views that are not aligned to 16 bytes."""
    shapes = [(5000,), (3,), (0,), (1024,), (2048, 1), ()]
    o = operands(shapes, dtype, counts=[0, 1, 7, 1000, 30, 2], copies=copies, amsgrad=amsgrad)
    for name in LISTS[:-1]:
        tensors = getattr(o, name)
        tensors[:2] = [torch.cat([t.new_zeros(1), t])[1:] for t in tensors[:2]]
    o.sinks = o.sources if copies == "both" else []
    setting = Settings(0.01, *BETAS, 1e-8, 0.1, back=0.02, ahead=0.03)
    for entry in ("step", "forecast"):
        if entry == "forecast":
            o.sinks = []
        for s in (setting, dataclasses.replace(setting, found_inf=torch.ones(()))):
            a, b = (ran(kernel, entry, o, s) for kernel in (ours, cpu))
            assert all(same(a[name], b[name]) for name in LISTS)


@interpreted
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_bfloat16_is_rounded_to_the_nearest_even_by_triton_too() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (20_000,), dtype=torch.int64).to(torch.int32)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1 + 2**-8, 1 + 3 * 2**-8])
    values = torch.cat([bits.view(torch.float32), special])
    o = operands([values.shape], torch.bfloat16, copies="sources")
    o.sources = [values]
    o.exp_avgs[0].zero_()
    ours.forecast(o, Settings(0.0, *BETAS, 1e-8))
    torch.testing.assert_close(o.params[0], values.bfloat16(), rtol=0, atol=0, equal_nan=True)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"in_step": True}], ids=str)
def test_the_optimizer_runs_on_them_as_on_the_c_kernels(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: torch.dtype
) -> None:
    """Plans, addresses that move, a parameter without gradient now and then."""
    results = []
    for kernel in (ours, cpu):
        monkeypatch.setattr(kernels, "_load", {"cpu": kernel, "eager": eager}.get)
        torch.manual_seed(0)
        layers = torch.nn.Linear(40, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1)
        model = torch.nn.Sequential(*layers).to(dtype)
        optimizer = weightcast.AdamW(model.parameters(), 0.01, amsgrad=True, steps=2, **options)
        weightcast.attach(model, optimizer)
        for step in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 40).to(dtype)).square().mean().backward()
            if step == 3:
                model[0].bias.grad = None
            optimizer.step()
        optimizer.eval()
        results.append(weights(model))
    assert same(*results)


@interpreted
def test_what_computes_something_else_does_not_handle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of compiler or driver costs speed, not weights: the first use compares with eager."""
    right = ours.step
    dense = torch.zeros(4, 6)
    for wrong, is_handled in [
        (lambda o, s: None, False),
        (lambda o, s: right(o, dataclasses.replace(s, ahead=s.ahead * 1.01)), False),
        (right, True),
    ]:
        monkeypatch.setattr(ours, "step", wrong)
        ours._works_on.cache_clear()
        assert ours.handles(dense, [dense]) is is_handled


def test_where_triton_cannot_run_it_does_not_handle() -> None:
    """A CPU without the interpreter stands for a machine without a compiler or a recent GPU."""
    dense = torch.zeros(4, 6)
    assert ours.handles(dense, [dense]) is IS_INTERPRETED
    for p, moment in [
        (dense.double(), dense.double()),
        (dense.bfloat16(), dense.bfloat16()),
        (dense, dense.T.contiguous().T),
    ]:
        assert not ours.handles(p, [moment])


# --- what they are compiled to -------------------------------------------------------------------


class Compiler:
    """In place of a kernel: compiles what would be launched, for an H100, whatever is here."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Any:
        return self.launch

    def launch(self, *args: Any, **kwargs: Any) -> None:
        names = self.kernel.arg_names
        defaults = {p.name: p.default for p in self.kernel.params if p.has_default}
        values = defaults | dict(zip(names, args, strict=False)) | kwargs
        options = {name: values.pop(name) for name in ours._OPTIONS}
        fixed = {p.name for p in self.kernel.params if p.is_constexpr}
        types = {n: "constexpr" if n in fixed else self.type_of(n, values[n]) for n in names}
        source = triton.compiler.ASTSource(
            fn=self.kernel,
            signature=types,
            constexprs={name: values[name] for name in names if types[name] == "constexpr"},
        )
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        self.code = triton.compile(source, target=target, options=options)

    def type_of(self, name: str, value: Any) -> str:
        if isinstance(value, Tensor):
            return {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}[
                value.dtype
            ]
        if type(value) in (int, float):
            return {int: "i32", float: self.types()[name] or "fp32"}[type(value)]
        return "constexpr"

    def types(self) -> dict[str, str]:
        return {param.name: param.annotation_type for param in self.kernel.params}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> dict[str, Compiler]:
    compilers = {name: Compiler(getattr(ours, name)) for name in ("_count_and_prepare", "_run")}
    for name, one in compilers.items():
        monkeypatch.setattr(ours, name, one)
    return compilers


def assert_nothing_is_spilled(code: Any, folder: Path) -> None:
    """Everything fits into registers, as Triton's own assembler tells."""
    assert not re.search(r"\.local\b", code.asm["ptx"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    found = [tools / name for name in ("ptxas-blackwell", "ptxas") if (tools / name).exists()]
    if not found:
        pytest.skip("no ptxas")
    (folder / "kernel.ptx").write_text(code.asm["ptx"])
    done = subprocess.run(
        [found[0], "-v", "-arch=sm_90a", "--fmad=false", "kernel.ptx", "-o", "kernel.cubin"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    assert spilled and set(spilled) == {"0"}


@compiled
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("found_inf", [None, torch.zeros(())], ids=["", "scaled"])
@pytest.mark.parametrize(
    ("entry", "dtype", "copies", "loads", "stores"),
    [
        ("step", torch.float32, "none", "pgmv", "pmv"),
        ("step", torch.float32, "sources", "sgmv", "pmv"),
        ("step", torch.bfloat16, "both", "sGmv", "Psmv"),
        ("step", torch.float16, "both", "sGmv", "Psmv"),
        ("forecast", torch.float32, "none", "pmv", "p"),
        ("forecast", torch.float32, "sinks", "pmv", "ps"),
        ("forecast", torch.bfloat16, "sources", "smv", "P"),
    ],
)
def test_whole_blocks_move_four_elements_at_a_time(
    compiler: dict[str, Compiler],
    tmp_path: Path,
    entry: str,
    dtype: torch.dtype,
    copies: str,
    found_inf: Tensor | None,
    amsgrad: bool,
    loads: str,
    stores: str,
) -> None:
    """Each tensor is read and written once (capitals: two bytes an element); no contraction."""
    if amsgrad and entry == "step":
        loads, stores = loads + "w", stores + "w"
    o = operands([(2000,)], dtype, copies=copies, amsgrad=amsgrad)
    getattr(ours, entry)(o, Settings(0.01, *BETAS, 1e-8, back=0.02, found_inf=found_inf))
    code = compiler["_run"].code
    ptx = code.asm["ptx"]
    assert ours._BLOCK.value == 4 * 32 * code.metadata.num_warps
    for direction, tensors in (("ld", loads), ("st", stores)):
        for width, count in (
            ("v4", sum(map(str.islower, tensors))),
            ("v2", sum(map(str.isupper, tensors))),
        ):
            found = re.findall(rf"\b{direction}\.global\.{width}\.b32", ptx)
            assert len(found) == count, (direction, width)
    assert not re.search(r"\bfma\.|\.ftz\b|\.approx\b", ptx)
    assert_nothing_is_spilled(code, tmp_path)


@compiled
@pytest.mark.parametrize("entry", ["step", "forecast"])
@pytest.mark.parametrize("on_device", [None, torch.float32, torch.float64], ids=str)
def test_bias_corrections_are_computed_in_float64(
    compiler: dict[str, Compiler], entry: str, on_device: torch.dtype | None
) -> None:
    """1 - β₂ᵗ would lose four digits in float32 at t = 1."""
    number = 0.01 if on_device is None else torch.tensor(0.01, dtype=on_device)
    setting = Settings(number, *BETAS, 1e-8, decay=number, back=number, ahead=number)
    if on_device:
        setting = dataclasses.replace(setting, grad_scale=number, found_inf=torch.zeros(()))
    getattr(ours, entry)(operands([(3,), (4,)]), setting)
    ptx = compiler["_count_and_prepare"].code.asm["ptx"]
    assert not re.search(r"\b(sub|div|sqrt|ex2|lg2)\S*\.f32", ptx)
    assert re.search(r"\bsqrt\.rn\.f64", ptx)


# --- on a GPU ------------------------------------------------------------------------------------


def on_gpu(o: Operands) -> Operands:
    o = copy.deepcopy(o)  # `sources` and `sinks` may be the same tensors
    moved: dict[int, Tensor] = {}
    for name in LISTS:
        tensors = getattr(o, name)
        setattr(o, name, [moved.setdefault(id(t), t.cuda()) for t in tensors])
    return o


@needs_cuda
@pytest.mark.parametrize("entry", ["step", "forecast"])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("found_inf", [None, 0.0, 1.0])
@pytest.mark.parametrize(
    ("dtype", "copies"),
    [
        (torch.float32, "none"),
        (torch.float32, "sources"),
        (torch.bfloat16, "both"),
        (torch.float16, "both"),
    ],
)
def test_on_a_gpu_they_do_what_eager_does(
    entry: str, amsgrad: bool, found_inf: float | None, dtype: torch.dtype, copies: str
) -> None:
    """On the CPU, whose bits those of float32 are."""
    shapes = [(5000,), (3,), (0,), (1024,), (2048, 1), (), (300, 1000)]
    o = operands(shapes, dtype, counts=[0, 1, 7, 1000, 30, 2, 5], copies=copies, amsgrad=amsgrad)
    if entry == "forecast" and copies == "both":
        o.sinks = []
    there = on_gpu(o)
    assert ours.handles(there.params[0], there.exp_avgs[:1])
    setting = Settings(
        0.01, *BETAS, 1e-8, 0.1, decay=0.97, back=0.02, ahead=0.03, maximize=True,
        grad_scale=torch.tensor(4.0),
        found_inf=None if found_inf is None else torch.tensor(found_inf),
    )  # fmt: skip
    on_device = dataclasses.replace(
        setting,
        **{
            name: torch.as_tensor(value, device="cuda", dtype=torch.float64)
            for name in ("lr", "decay", "back", "ahead", "grad_scale", "found_inf")
            if (value := getattr(setting, name)) is not None
        },
    )
    expected = ran(eager, entry, o, setting)
    for s in (setting, on_device):
        actual = ran(ours, entry, there, s)
        actual = {name: [t.cpu() for t in tensors] for name, tensors in actual.items()}
        assert_same(actual, expected, dtype)
        if cpu is not None and dtype is not torch.float16:
            exact = ran(cpu, entry, o, setting)
            assert all(same(actual[name], exact[name]) for name in LISTS)


def gpu_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(40, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1)
    return torch.nn.Sequential(*layers).to("cuda", dtype)


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"in_step": True}], ids=str)
def test_a_captured_step_replays_as_the_loop_runs(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    """R9, R27: memory stays, step counts and rates are read on the device; loops may mix."""
    models = [gpu_model(dtype) for _ in range(2)]
    lrs = [torch.tensor(0.01, device="cuda") for _ in models]
    optimizers = []
    for model, lr in zip(models, lrs, strict=True):
        groups = [{"params": layer.parameters()} for layer in (model[0], model[2])]
        optimizers.append(weightcast.AdamW(groups, lr=lr, capturable=True, steps=2, **options))
        weightcast.attach(model, optimizers[-1])
    x = torch.randn(8, 40, device="cuda", dtype=dtype)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            train_step(models[0], optimizers[0], x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train_step(models[0], optimizers[0], x)
    for k in range(6):
        lrs[0].fill_(0.01 / (k + 1))
        graph.replay()
    for k in range(-3, 6):
        lrs[1].fill_(0.01 / (max(k, 0) + 1))
        train_step(models[1], optimizers[1], x)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4 if dtype is torch.float32 else 2e-2, atol=1e-5)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"in_step": True}], ids=str)
def test_nothing_waits_for_the_device(options: dict[str, Any], dtype: torch.dtype) -> None:
    """R27, also under a gradient scaler's `found_inf`."""
    model = gpu_model(dtype)
    lr = torch.tensor(0.01, device="cuda")
    optimizer = weightcast.AdamW(model.parameters(), lr=lr, steps=2, **options)
    weightcast.attach(model, optimizer)
    optimizer.grad_scale = torch.ones((), device="cuda")
    optimizer.found_inf = torch.zeros((), device="cuda")
    x = torch.randn(8, 40, device="cuda", dtype=dtype)
    for _ in range(3):
        train_step(model, optimizer, x)
    with nothing_waits_for_the_device():
        for _ in range(3):
            train_step(model, optimizer, x)
