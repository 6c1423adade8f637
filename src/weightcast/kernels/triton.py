"""The kernels in Triton for GPUs: two launches for all parameters, nothing read on the host."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from weightcast.kernels import Operands, Settings, alike, increment_version, like

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_BLOCK = tl.constexpr(1024)  # elements that one program of `_pass` handles
_ROWS = tl.constexpr(128)  # tensors that one program of `_factors` handles
_COLUMNS = (
    "params",
    "sources",
    "sinks",
    "exp_avgs",
    "exp_avg_sqs",
    "max_exp_avg_sqs",
    "counts",
)
_COUNT, _SIZE, _FIRST, _WIDTH = map(tl.constexpr, range(len(_COLUMNS) - 1, len(_COLUMNS) + 3))
_OPTIONS = {"enable_fp_fusion": False}  # as in C: every processor computes the same bits

_log = logging.getLogger("weightcast")


# --- on the device -------------------------------------------------------------------------------


@triton.jit
def _number(value: Any, at: Any) -> Any:
    """A setting, or what a tensor has in its place."""
    if at is None:
        return tl.full((_ROWS,), value, tl.float64)
    return tl.full((_ROWS,), tl.load(at).to(tl.float64), tl.float64)


@triton.jit
def _correction(log_beta: Any, t: Any) -> Any:
    """1 / (1 - βᵗ), and 0 before the first step, where nothing is to be walked."""
    return tl.where(t > 0, 1 / (1 - tl.exp(log_beta * tl.maximum(t, 1.0))), 0.0)


@triton.jit(do_not_specialize=["count"])
def _factors(
    table: Any,
    factors: Any,
    count: Any,
    log_beta1: tl.float64,
    log_beta2: tl.float64,
    lr: tl.float64,
    weight_decay: tl.float64,
    decay: tl.float64,
    back: tl.float64,
    ahead: tl.float64,
    sign: tl.float64,
    lr_at: Any,
    decay_at: Any,
    back_at: Any,
    ahead_at: Any,
    grad_scale: Any,
    found_inf: Any,
    IS_STEP: tl.constexpr,
) -> None:
    """Count the step, and write the factors of each tensor, which depend on its count."""
    k = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    mask = k < count
    t_at = tl.load(table + k * _WIDTH + _COUNT, mask, other=0).to(tl.pointer_type(tl.float32))
    before = tl.load(t_at, mask, other=0.0).to(tl.float64)
    t = before
    lr = _number(lr, lr_at)
    decay = _number(decay, decay_at)
    is_skipped = _number(0.0, found_inf) != 0
    if IS_STEP:
        t = tl.where(is_skipped, before, before + 1)
        tl.store(t_at, t.to(tl.float32), mask)
        decay = 1 - lr * weight_decay
    rate = _correction(log_beta1, t)
    row = factors + k * 8
    tl.store(row, _number(back, back_at) * _correction(log_beta1, before), mask)
    tl.store(row + 1, tl.sqrt(_correction(log_beta2, before)), mask)
    tl.store(row + 2, lr * rate, mask)
    tl.store(row + 3, _number(ahead, ahead_at) * rate, mask)
    tl.store(row + 4, tl.sqrt(_correction(log_beta2, t)), mask)
    tl.store(row + 5, decay, mask)
    tl.store(row + 6, sign / _number(1.0, grad_scale), mask)
    tl.store(row + 7, is_skipped, mask)


@triton.jit
def _direction(m: Any, v: Any, root: Any, eps: Any) -> Any:
    """Δ/γ, up to the factor 1 / (1 - β₁ᵗ); root is 1 / sqrt(1 - β₂ᵗ)."""
    return tl.div_rn(m, tl.sqrt_rn(v) * root + eps)


@triton.jit
def _rounded(x: Any, DTYPE: tl.constexpr) -> Any:
    """To the nearest, ties to even: for bfloat16 by hand, as Triton's interpreter truncates."""
    if DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        half = tl.where(is_nan, (bits >> 16) | 0x40, nearest)
        x = half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)


@triton.jit
def _at(address: Any, start: Any, DTYPE: tl.constexpr, IS_WHOLE: tl.constexpr) -> Any:
    """Pointers to the elements of a block."""
    first = address.to(tl.pointer_type(DTYPE)) + start
    if IS_WHOLE:  # else the compiler could not move 16 bytes at a time
        first = tl.multiple_of(first, 16)
    return first + tl.arange(0, _BLOCK)


@triton.jit
def _block(
    row: Any,
    grad: Any,
    row_factors: Any,
    start: Any,
    rest: Any,
    rest1: Any,
    beta2: Any,
    rest2: Any,
    eps: Any,
    DTYPE: tl.constexpr,
    IS_STEP: tl.constexpr,
    IS_BACK: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    HAS_SINK: tl.constexpr,
    IS_AMSGRAD: tl.constexpr,
    MAY_SKIP: tl.constexpr,
    IS_WHOLE: tl.constexpr,
) -> None:
    mask = None if IS_WHOLE else tl.arange(0, _BLOCK) < rest
    params = _at(tl.load(row), start, DTYPE, IS_WHOLE)
    ms = _at(tl.load(row + 3), start, tl.float32, IS_WHOLE)
    vs = _at(tl.load(row + 4), start, tl.float32, IS_WHOLE)
    v_maxes = _at(tl.load(row + 5), start, tl.float32, IS_WHOLE)
    if HAS_SOURCE:
        theta = tl.load(_at(tl.load(row + 1), start, tl.float32, IS_WHOLE), mask)
    else:
        theta = tl.load(params, mask).to(tl.float32)
    m = tl.load(ms, mask)
    if IS_STEP or not IS_AMSGRAD:
        v = tl.load(vs, mask)
    if IS_AMSGRAD:
        v_max = tl.load(v_maxes, mask)
    else:
        v_max = v
    if IS_BACK:
        u = _direction(m, v_max, tl.load(row_factors + 1), eps)
        theta += tl.load(row_factors) * u
    ahead = tl.load(row_factors + 3)
    root = tl.load(row_factors + 4)
    decay = tl.load(row_factors + 5)
    if IS_STEP:
        g = tl.load(_at(grad, start, DTYPE, IS_WHOLE), mask).to(tl.float32)
        g = tl.load(row_factors + 6) * g
        new_m = m + rest1 * (g - m)
        new_v = v * beta2 + rest2 * g * g
        if IS_AMSGRAD:
            new_v_max = tl.where(v_max >= new_v, v_max, new_v)
        else:
            new_v_max = new_v
        u = _direction(new_m, new_v_max, root, eps)
        # rounded here, before the forecast: else nobody could tell the two apart again
        new_theta = theta * decay - tl.load(row_factors + 2) * u
        if MAY_SKIP:
            is_skipped = tl.load(row_factors + 7) != 0
            new_m = tl.where(is_skipped, m, new_m)
            new_v = tl.where(is_skipped, v, new_v)
            new_v_max = tl.where(is_skipped, v_max, new_v_max)
            new_theta = tl.where(is_skipped, theta, new_theta)
            u = _direction(new_m, new_v_max, root, eps)
        tl.store(ms, new_m, mask)
        tl.store(vs, new_v, mask)
        if IS_AMSGRAD:
            tl.store(v_maxes, new_v_max, mask)
        theta = new_theta
        decayed = theta
    else:
        u = _direction(m, v_max, root, eps)
        decayed = theta * decay
    if HAS_SINK:
        tl.store(_at(tl.load(row + 2), start, tl.float32, IS_WHOLE), theta, mask)
    tl.store(params, _rounded(decayed - ahead * u, DTYPE), mask)


@triton.jit
def _pass(
    table: Any,
    gradients: Any,
    blocks: Any,
    factors: Any,
    rest1: Any,
    beta2: Any,
    rest2: Any,
    eps: Any,
    DTYPE: tl.constexpr,
    IS_STEP: tl.constexpr,
    IS_BACK: tl.constexpr,
    HAS_SOURCE: tl.constexpr,
    HAS_SINK: tl.constexpr,
    IS_AMSGRAD: tl.constexpr,
    MAY_SKIP: tl.constexpr,
) -> None:
    """One block of one tensor: whole and aligned without masks, else with them."""
    k = tl.load(blocks + tl.program_id(0))
    row = table + k * _WIDTH
    row_factors = factors + k * 8
    start = (tl.program_id(0) - tl.load(row + _FIRST)) * _BLOCK
    rest = tl.minimum(tl.load(row + _SIZE) - start, _BLOCK).to(tl.int32)
    addresses = tl.load(row) | tl.load(row + 1) | tl.load(row + 2)
    addresses |= tl.load(row + 3) | tl.load(row + 4) | tl.load(row + 5)
    grad = tl.load(row)
    if IS_STEP:
        grad = tl.load(gradients + k)
    if (rest == _BLOCK) & (((addresses | grad) & 15) == 0):
        _block(
            row, grad, row_factors, start, rest, rest1, beta2, rest2, eps, DTYPE, IS_STEP,
            IS_BACK, HAS_SOURCE, HAS_SINK, IS_AMSGRAD, MAY_SKIP, True,
        )  # fmt: skip
    else:
        _block(
            row, grad, row_factors, start, rest, rest1, beta2, rest2, eps, DTYPE, IS_STEP,
            IS_BACK, HAS_SOURCE, HAS_SINK, IS_AMSGRAD, MAY_SKIP, False,
        )  # fmt: skip


# --- on the host ---------------------------------------------------------------------------------


def handles(p: Tensor, moments: Sequence[Tensor]) -> bool:
    """Dense float32, bfloat16 and float16, with float32 moments laid out like the parameter."""
    is_dense = p.dtype in _DTYPES and all(
        m.dtype is torch.float32 and alike(p, m) and m.device == p.device for m in moments
    )
    return is_dense and _works_on(p.device)


@functools.cache
def _works_on(device: torch.device) -> bool:
    """Whether Triton compiles here for this device: it needs a C compiler and a recent GPU."""
    lists = [[torch.zeros(1, device=device)] for _ in range(4)]
    count = torch.zeros((), device=device)
    o = Operands(*lists[:2], exp_avgs=lists[2], exp_avg_sqs=lists[3], counts=[count])
    try:
        step(o, Settings(0.0, 0.9, 0.999, 1e-8))
    except Exception as error:  # whatever its compiler or driver raises
        _log.debug("weightcast: no triton kernels on %s (%s); using plain PyTorch.", device, error)
        return False
    return True


def step(o: Operands, s: Settings) -> None:
    """AdamW's update of θ, then the forecast along it."""
    _launch(o, s, is_step=True)


def forecast(o: Operands, s: Settings) -> None:
    """θ̂ = decay·θ - ahead·Δ/γ, whether the parameters are at θ or at another θ̂."""
    _launch(o, s, is_step=False)


class _Plan(NamedTuple):
    """What the kernels know of operands that stay what they are."""

    table: Tensor
    blocks: Tensor
    factors: Tensor
    layouts: list[tuple[int, ...]]


def _prepare(o: Operands) -> _Plan:
    count, device, block = len(o.params), o.params[0].device, _BLOCK.value
    sizes = [p.numel() for p in o.params]
    blocks = [-(-size // block) for size in sizes]
    columns = [[t.data_ptr() for t in getattr(o, name)] or [0] * count for name in _COLUMNS]
    rows = zip(*columns, sizes, accumulate(blocks, initial=0), strict=False)
    table = _uploaded(tuple(chain.from_iterable(rows)), device)
    repeats = (table[_SIZE.value :: _WIDTH.value] + block - 1) // block
    return _Plan(
        table,
        torch.repeat_interleave(repeats, output_size=sum(blocks)),
        torch.empty(count, 8, device=device),
        [p.stride() for p in o.params],
    )


def _launch(o: Operands, s: Settings, is_step: bool) -> None:
    if o.prepared is None:
        o.prepared = _prepare(o)
    table, blocks, factors, layouts = o.prepared
    device, count = table.device, len(o.params)
    gradients = None
    if is_step:
        grads = [
            g if g.dtype is p.dtype and g.stride() == layout else like(g, p)
            for g, p, layout in zip(o.grads, o.params, layouts, strict=True)
        ]
        gradients = _uploaded(tuple(map(Tensor.data_ptr, grads)), device)
    found_inf = s.found_inf if is_step else None
    numbers, tensors = [], []
    for value in (s.lr, s.decay, s.back, s.ahead):
        is_tensor = isinstance(value, Tensor)
        numbers.append(0.0 if is_tensor else float(value))
        tensors.append(value if is_tensor else None)
    tensors += [s.grad_scale, found_inf]
    tensors = [t if t is None else t.to(device, non_blocking=True) for t in tensors]
    log_betas = [math.log(b) if b else -math.inf for b in (s.beta1, s.beta2)]
    with torch.cuda.device_of(table):
        _factors[(triton.cdiv(count, _ROWS.value),)](
            table,
            factors,
            count,
            *log_betas,
            numbers[0],
            float(s.weight_decay),
            *numbers[1:],
            -1.0 if s.maximize else 1.0,
            *tensors,
            IS_STEP=is_step,
            **_OPTIONS,
        )
        if len(blocks):
            _pass[(len(blocks),)](
                table,
                gradients,
                blocks,
                factors,
                1.0 - s.beta1,
                float(s.beta2),
                1.0 - s.beta2,
                float(s.eps),
                DTYPE=_DTYPES[o.params[0].dtype],
                IS_STEP=is_step,
                IS_BACK=not o.sources and (tensors[2] is not None or numbers[2] != 0),
                HAS_SOURCE=bool(o.sources),
                HAS_SINK=bool(o.sinks),
                IS_AMSGRAD=bool(o.max_exp_avg_sqs),
                MAY_SKIP=found_inf is not None,
                **_OPTIONS,
            )
    increment_version(o.params)


_uploads: dict[tuple[torch.device, tuple[int, ...]], Tensor] = {}
_spares: dict[int, Tensor] = {}
_captured: list[Tensor] = []


def _uploaded(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Addresses on the device, which mostly are those of before.

    A CUDA graph copies them anew at each replay, from pinned memory that nothing else may touch
    and that older versions of torch cannot make while they capture: so there is a spare.
    """
    is_cuda = device.type == "cuda"
    found = _uploads.get((device, numbers))
    if is_cuda and torch.cuda.is_current_stream_capturing():
        if found is None:
            pinned = _spares.pop(len(numbers), None)
            pinned = torch.empty(len(numbers), dtype=torch.int64, pin_memory=True) if pinned is None else pinned
            pinned.copy_(torch.tensor(numbers))
            _captured.append(pinned)
            found = pinned.to(device, non_blocking=True)
        _captured.append(found)
    elif found is None:
        host = torch.tensor(numbers, dtype=torch.int64, pin_memory=is_cuda)
        if is_cuda and len(numbers) not in _spares:
            _spares[len(numbers)] = torch.empty_like(host, pin_memory=True)
        while len(_uploads) >= 64:
            del _uploads[next(iter(_uploads))]
        found = _uploads[device, numbers] = host.to(device, non_blocking=True)
    return found
