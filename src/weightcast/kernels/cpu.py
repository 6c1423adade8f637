"""The kernels in C for CPUs, called through ctypes: `adamw.c`."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from weightcast.kernels import eager
from weightcast.kernels.build import FLAGS, LIBRARY, SOURCE, compile_library
from weightcast.kernels.operands import Operands, Settings, alike, likened

_DTYPES = (torch.float32, torch.bfloat16)
_FORECAST, _STEP, _RESTORE = range(3)  # as in adamw.c
_NOTHING = Settings(0.0, 0.0, 0.0, 0.0)
_NUMBERS = ("lr", "beta1", "beta2", "eps", "decay", "back", "ahead", "gradient", "joint", "done")


class _Settings(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in _NUMBERS)

    def has_run(self) -> bool:
        return bool(self.done)


def _library() -> ctypes.CDLL:
    """The compiled kernels: those of the wheel, else compiled once for this user and source."""
    path = LIBRARY
    if not path.exists():
        recipe = SOURCE.read_bytes() + " ".join((*FLAGS, platform.machine())).encode()
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(root, "weightcast", f"adamw-{hashlib.sha256(recipe).hexdigest()[:16]}.so")
        if path.exists() and not _is_ours(path):
            raise OSError(f"{path} can be written by others: remove it")
        if not path.exists():
            compile_library(path)
    return ctypes.CDLL(str(path))


def _is_ours(path: Path) -> bool:
    """Whether nobody else could have put there what is loaded into this process."""
    if not hasattr(os, "getuid"):
        return True
    owners = {os.getuid(), 0}
    places = [path.stat(), path.parent.stat()]
    return all(p.st_uid in owners and not p.st_mode & 0o022 for p in places)


def _parallel() -> int | None:
    """Where torch's own OpenMP runs a function on all its threads; None: use threads of ours."""
    path = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    try:
        return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


_PARALLEL = _parallel()
try:
    _run = _library().weightcast_run
except (OSError, RuntimeError, AttributeError) as error:
    raise ImportError(str(error)) from error
_run.restype = None
_run.argtypes = (
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.POINTER(_Settings),
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_void_p,
)


def handles(p: Tensor, moments: Sequence[Tensor]) -> bool:
    """Dense float32 and bfloat16, with float32 moments laid out like the parameter."""
    return p.dtype in _DTYPES and all(
        m.dtype is torch.float32 and alike(p, m) and m.device == p.device for m in moments
    )


def step(o: Operands, s: Settings) -> None:
    """AdamW's update of θ, then the forecast along it."""
    if s.found_inf is not None and s.found_inf.item():
        # nothing is updated; from where θ is, only the forecast is made anew
        _launch(o, replace(s, decay=1.0), _FORECAST)
        return
    gradient = 1.0 if s.grad_scale is None else 1 / s.grad_scale.item()
    _launch(o, s, _STEP, -gradient if s.maximize else gradient)


def forecast(o: Operands, s: Settings) -> None:
    """θ̂ = decay·θ - ahead·Δ/γ, whether the parameters are at θ or at another θ̂."""
    _launch(o, s, _FORECAST)


def restore(o: Operands) -> None:
    """θ from `sources` to `params`, bit for bit, even if these were moved meanwhile."""
    rows = zip(o.params, o.sources, strict=True)
    if o.prepared is None and all(p.dtype is torch.float32 and alike(p, s) for p, s in rows):
        o.prepared = _prepare(o)
    if o.prepared is not None and _is_where_it_was(o):
        _launch(o, _NOTHING, _RESTORE)
    else:
        eager.restore(o)


def _is_where_it_was(o: Operands) -> bool:
    """Whether the table still holds: others may move, cut or convert a parameter."""
    table, width = o.prepared, len(_COLUMNS)
    return bool(
        table[::width].tolist() == list(map(Tensor.data_ptr, o.params))
        and table[width - 1 :: width].tolist() == list(map(Tensor.numel, o.params))
        and {p.dtype for p in o.params} <= {torch.float32}
    )


def _launch(o: Operands, s: Settings, what: int, gradient: float = 1.0) -> None:
    if o.prepared is None:
        o.prepared = _prepare(o)
    operands = o.prepared
    grads = likened(o.grads, o.params) if what == _STEP else []  # alive until the end
    if grads:
        operands[_GRAD :: len(_COLUMNS)] = array("q", map(Tensor.data_ptr, grads))
    lr = float(s.lr)
    settings = _Settings(
        lr,
        s.beta1,
        s.beta2,
        s.eps,
        1 - lr * s.weight_decay if what == _STEP else float(s.decay),
        float(s.back),
        float(s.ahead),
        gradient,
        s.is_joint,
    )
    table, is_bfloat16 = operands.buffer_info()[0], o.params[0].dtype is torch.bfloat16
    # a signal that comes meanwhile is raised when all has run
    o.launched = settings.has_run
    _run(table, len(o.params), settings, what, is_bfloat16, torch.get_num_threads(), _PARALLEL)
    torch.autograd.graph.increment_version(o.params)  # written behind its back


_COLUMNS = ("params", "grads", "sources", "sinks", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs",
            "counts", "sizes")  # fmt: skip
_GRAD = _COLUMNS.index("grads")


def _prepare(o: Operands) -> array[int]:
    """The table of pointers that the kernels read, row by row."""
    table = array("q", bytes(8 * len(_COLUMNS) * len(o.params)))
    for column, name in enumerate(_COLUMNS[:-1]):
        if tensors := getattr(o, name):
            table[column :: len(_COLUMNS)] = array("q", map(Tensor.data_ptr, tensors))
    table[len(_COLUMNS) - 1 :: len(_COLUMNS)] = array("q", map(Tensor.numel, o.params))
    return table
