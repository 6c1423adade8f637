"""The kernels in Triton for GPUs: two launches for all tensors, and nothing read on the host."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from itertools import accumulate, chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from weightcast.kernels import eager
from weightcast.kernels.operands import Operands, Settings, alike, example, likened
from weightcast.kernels.uploads import on_device

_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_BLOCK = tl.constexpr(1024)  # elements that one program moves
_OPTIONS = {
    "num_warps": 4 if torch.version.hip else 8,  # a thread for every four elements
    "enable_fp_fusion": False,  # as in C: every processor computes the same bits
}
_ROWS = tl.constexpr(128)  # tensors whose factors one program computes

# columns of the table, which has a row for each tensor: addresses, elements, first block
_COLUMNS = ("params", "sources", "sinks", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "counts")
_SOURCE, _SINK, _M, _V, _V_MAX, _T, _SIZE, _FIRST, _WIDTH = range(1, 10)
# columns of the factors
_BACK, _ROOT_BEFORE, _RATE, _AHEAD, _ROOT, _DECAY, _GRADIENT, _SKIPPED, _FACTORS = range(9)
# The kernels have both as defaults: at every launch Triton looks whether a global has changed.

_log = logging.getLogger("weightcast")


# --- on the device -------------------------------------------------------------------------------


@triton.jit
def _number(value: tl.tensor, at: tl.tensor) -> tl.tensor:
    """A setting, or what a tensor holds in its place."""
    if at is not None:
        number = tl.full((_ROWS,), tl.load(at).to(tl.float64), tl.float64)
    else:
        number = tl.full((_ROWS,), value, tl.float64)
    return number


@triton.jit
def _correction(log_beta: tl.tensor, t: tl.tensor) -> tl.tensor:
    """1 / (1 - βᵗ), and 0 before the first step, where nothing is to be walked."""
    return tl.where(t > 0, 1 / (1 - tl.exp(log_beta * tl.maximum(t, 1.0))), 0.0)


@triton.jit(do_not_specialize=["count"])
def _count_and_prepare(
    table: tl.tensor, factors: tl.tensor, count: tl.tensor,
    log_beta1: tl.float64, log_beta2: tl.float64, weight_decay: tl.float64, sign: tl.float64,
    lr: tl.float64, decay: tl.float64, back: tl.float64, ahead: tl.float64,
    lr_at: tl.tensor, decay_at: tl.tensor, back_at: tl.tensor, ahead_at: tl.tensor,
    grad_scale: tl.tensor, found_inf: tl.tensor, IS_STEP: tl.constexpr,
    T: tl.constexpr = _T, WIDTH: tl.constexpr = _WIDTH, BACK: tl.constexpr = _BACK,
    ROOT_BEFORE: tl.constexpr = _ROOT_BEFORE, RATE: tl.constexpr = _RATE,
    AHEAD: tl.constexpr = _AHEAD, ROOT: tl.constexpr = _ROOT, DECAY: tl.constexpr = _DECAY,
    GRADIENT: tl.constexpr = _GRADIENT, SKIPPED: tl.constexpr = _SKIPPED,
    FACTORS: tl.constexpr = _FACTORS,
) -> None:  # fmt: skip
    """Count the step; compute in float64 what is the same for all elements of a tensor."""
    k = tl.program_id(0) * _ROWS + tl.arange(0, _ROWS)
    mask = k < count
    t_at = tl.load(table + k * WIDTH + T, mask, other=0).to(tl.pointer_type(tl.float32))
    t_before = tl.load(t_at, mask, other=0.0).to(tl.float64)
    t = t_before
    lr = _number(lr, lr_at)
    decay = _number(decay, decay_at)
    is_skipped = _number(0.0, found_inf) != 0
    if IS_STEP:
        t = tl.where(is_skipped, t, t + 1)
        tl.store(t_at, t.to(tl.float32), mask)
        decay = 1 - lr * weight_decay
    correction = _correction(log_beta1, t)
    row = factors + k * FACTORS
    tl.store(row + BACK, _number(back, back_at) * _correction(log_beta1, t_before), mask)
    tl.store(row + ROOT_BEFORE, tl.sqrt(_correction(log_beta2, t_before)), mask)
    tl.store(row + RATE, lr * correction, mask)
    tl.store(row + AHEAD, _number(ahead, ahead_at) * correction, mask)
    tl.store(row + ROOT, tl.sqrt(_correction(log_beta2, t)), mask)
    tl.store(row + DECAY, decay, mask)
    tl.store(row + GRADIENT, sign / _number(1.0, grad_scale), mask)
    tl.store(row + SKIPPED, is_skipped, mask)


@triton.jit
def _scale(v: tl.tensor, root: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """Δ/γ = m / scale, up to the factor 1 / (1 - β₁ᵗ); root is 1 / sqrt(1 - β₂ᵗ)."""
    return tl.sqrt_rn(v) * root + eps


@triton.jit
def _rounded(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """To the nearest, ties to even: bfloat16 by hand, since Triton's interpreter truncates."""
    if dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        half = tl.where(is_nan, (bits >> 16) | 0x40, nearest)
        x = half.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def _at(
    address: tl.tensor, start: tl.tensor, dtype: tl.constexpr, IS_WHOLE: tl.constexpr
) -> tl.tensor:
    """Pointers to the elements of a block."""
    first = address.to(tl.pointer_type(dtype)) + start
    if IS_WHOLE:  # four elements at a time, of every dtype, so that all lie alike in registers
        first = tl.multiple_of(first, 16 if dtype == tl.float32 else 8)
    return first + tl.arange(0, _BLOCK)


@triton.jit
def _run(
    table: tl.tensor, gradients: tl.tensor, blocks: tl.tensor, factors: tl.tensor,
    rest1: tl.tensor, beta2: tl.tensor, rest2: tl.tensor, eps: tl.tensor,
    dtype: tl.constexpr, IS_STEP: tl.constexpr, IS_AHEAD: tl.constexpr, HAS_SOURCE: tl.constexpr,
    HAS_SINK: tl.constexpr, IS_AMSGRAD: tl.constexpr, MAY_SKIP: tl.constexpr,
    IS_JOINT: tl.constexpr, SOURCE: tl.constexpr = _SOURCE, SINK: tl.constexpr = _SINK,
    M: tl.constexpr = _M, V: tl.constexpr = _V, V_MAX: tl.constexpr = _V_MAX,
    SIZE: tl.constexpr = _SIZE, FIRST: tl.constexpr = _FIRST, WIDTH: tl.constexpr = _WIDTH,
    BACK: tl.constexpr = _BACK, ROOT_BEFORE: tl.constexpr = _ROOT_BEFORE,
    RATE: tl.constexpr = _RATE, AHEAD: tl.constexpr = _AHEAD, ROOT: tl.constexpr = _ROOT,
    DECAY: tl.constexpr = _DECAY, GRADIENT: tl.constexpr = _GRADIENT,
    SKIPPED: tl.constexpr = _SKIPPED, FACTORS: tl.constexpr = _FACTORS,
) -> None:  # fmt: skip
    """One block of one tensor: as in adamw.c, operation by operation."""
    k = tl.load(blocks + tl.program_id(0))
    row = table + k * WIDTH
    factors += k * FACTORS
    start = (tl.program_id(0) - tl.load(row + FIRST)) * _BLOCK
    rest = tl.minimum(tl.load(row + SIZE) - start, _BLOCK).to(tl.int32)
    grad = tl.load(gradients + k) if IS_STEP else tl.load(row)
    bits = tl.load(row) | tl.load(row + SOURCE) | tl.load(row + SINK) | grad
    bits |= tl.load(row + M) | tl.load(row + V) | tl.load(row + V_MAX)
    is_whole = (rest == _BLOCK) & (bits & 15 == 0)
    for IS_WHOLE in tl.static_range(2):  # compiled twice: with masks, and four elements at a time
        if is_whole == IS_WHOLE:
            mask = None if IS_WHOLE else tl.arange(0, _BLOCK) < rest
            params = _at(tl.load(row), start, dtype, IS_WHOLE)
            ms = _at(tl.load(row + M), start, tl.float32, IS_WHOLE)
            vs = _at(tl.load(row + V), start, tl.float32, IS_WHOLE)
            v_maxes = _at(tl.load(row + V_MAX), start, tl.float32, IS_WHOLE) if IS_AMSGRAD else vs
            if HAS_SOURCE:
                theta = tl.load(_at(tl.load(row + SOURCE), start, tl.float32, IS_WHOLE), mask)
            else:
                theta = tl.load(params, mask).to(tl.float32)
            m = tl.load(ms, mask)
            v_max = tl.load(v_maxes, mask)
            decay, ahead = tl.load(factors + DECAY), tl.load(factors + AHEAD)
            root = tl.load(factors + ROOT)
            m_before = m
            if IS_AHEAD:
                before = _scale(v_max, tl.load(factors + ROOT_BEFORE), eps)
                if not IS_JOINT:
                    theta += tl.load(factors + BACK) * tl.div_rn(m, before)
            if IS_STEP:
                g = tl.load(_at(grad, start, dtype, IS_WHOLE), mask).to(tl.float32)
                g = tl.load(factors + GRADIENT) * g
                v = tl.load(vs, mask) if IS_AMSGRAD else v_max
                new_m = m + rest1 * (g - m)
                new_v = v * beta2 + rest2 * g * g
                new_v_max = tl.where(v_max >= new_v, v_max, new_v) if IS_AMSGRAD else new_v
                if MAY_SKIP:
                    is_skipped = tl.load(factors + SKIPPED) != 0
                    new_m = tl.where(is_skipped, m, new_m)
                    new_v = tl.where(is_skipped, v, new_v)
                    new_v_max = tl.where(is_skipped, v_max, new_v_max)
                m, v, v_max = new_m, new_v, new_v_max
                tl.store(ms, m, mask)
                tl.store(vs, v, mask)
                if IS_AMSGRAD:
                    tl.store(v_maxes, v_max, mask)
            now = _scale(v_max, root, eps)
            if IS_JOINT:
                # their product must be finite
                before, now = tl.minimum(before, 1e38), tl.minimum(now, 1e38)
                shrink_before = tl.where(before > 1e15, 2.0**-64, 1.0)
                shrink_now = tl.where(now > 1e15, 2.0**-64, 1.0)
                before, now = before * shrink_before, now * shrink_now
                both = tl.div_rn(tl.full((_BLOCK,), 1.0, tl.float32), before * now)
                theta += tl.load(factors + BACK) * (m_before * shrink_before * now * both)
                u = m * shrink_now * before * both
            else:
                u = tl.div_rn(m, now)
            decayed = theta * decay
            if IS_STEP:
                # rounded here, before the forecast: else nobody could tell the two apart again
                decayed -= tl.load(factors + RATE) * u
                theta = tl.where(is_skipped, theta, decayed) if MAY_SKIP else decayed
                decayed = theta
            if HAS_SINK:
                tl.store(_at(tl.load(row + SINK), start, tl.float32, IS_WHOLE), theta, mask)
            tl.store(params, _rounded(decayed - ahead * u, dtype), mask)


# --- on the host ---------------------------------------------------------------------------------


def handles(p: Tensor, moments: Sequence[Tensor]) -> bool:
    """Dense float32, bfloat16 and float16, with float32 moments laid out like the parameter."""
    is_readable = p.dtype in _DTYPES and all(
        m.dtype is torch.float32 and alike(p, m) and m.device == p.device for m in moments
    )
    return is_readable and _works_on(p.device)


@functools.cache
def _works_on(device: torch.device) -> bool:
    """Whether Triton has all it needs for this device, and computes there what PyTorch does."""
    setting = Settings(0.01, 0.9, 0.999, 1e-8, weight_decay=0.1, back=0.02, ahead=0.03)
    try:
        with torch.inference_mode(False), torch.no_grad():
            mine, right = example(device), example(torch.device("cpu"))
            step(mine, setting)
            eager.step(right, setting)
            for name in ("params", "exp_avgs", "exp_avg_sqs", "counts"):
                (a,), (b,) = getattr(mine, name), getattr(right, name)
                torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6)
    except Exception as error:  # of any kind: from Triton, its compiler, the driver, the numbers
        _log.debug("weightcast: no triton kernels on %s (%s); using plain PyTorch.", device, error)
        return False
    return True


def step(o: Operands, s: Settings) -> None:
    """AdamW's update of θ, then the forecast along it."""
    _launch(o, s, is_step=True)


def forecast(o: Operands, s: Settings) -> None:
    """θ̂ = decay·θ - ahead·Δ/γ, whether the parameters are at θ or at another θ̂."""
    _launch(o, s, is_step=False)


restore = eager.restore


def _prepare(o: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """The table, the row of each block, and memory for the factors."""
    count, device, block = len(o.params), o.params[0].device, _BLOCK.value
    sizes = [p.numel() for p in o.params]
    blocks = [-(-size // block) for size in sizes]
    columns = [[t.data_ptr() for t in getattr(o, name)] or [0] * count for name in _COLUMNS]
    rows = zip(*columns, sizes, accumulate(blocks, initial=0), strict=False)
    table = on_device(tuple(chain.from_iterable(rows)), device)
    repeats = (table[_SIZE::_WIDTH] + (block - 1)) // block
    rows_of_blocks = torch.repeat_interleave(repeats, output_size=sum(blocks))
    factors = torch.empty(count, _FACTORS, dtype=torch.float32, device=device)
    return table, rows_of_blocks, factors


def _launch(o: Operands, s: Settings, is_step: bool) -> None:
    if o.prepared is None:
        o.prepared = _prepare(o)
    table, blocks, factors = o.prepared
    count, size, device, gradients = len(o.params), blocks.numel(), table.device, None
    if is_step:
        grads = likened(o.grads, o.params)  # alive until their kernel is launched
        gradients = on_device(tuple(map(Tensor.data_ptr, grads)), device)
    settings = (s.lr, s.decay, s.back, s.ahead)
    found_inf = s.found_inf if is_step else None
    tensors = [
        x.to(device, non_blocking=True) if isinstance(x, Tensor) else None
        for x in (*settings, s.grad_scale, found_inf)
    ]
    with torch.cuda.device_of(table):
        _count_and_prepare[(-(-count // _ROWS.value),)](
            table, factors, count,
            *(math.log(beta) if beta else -math.inf for beta in (s.beta1, s.beta2)),
            float(s.weight_decay), -1.0 if s.maximize else 1.0,
            *(0.0 if isinstance(x, Tensor) else float(x) for x in settings), *tensors,
            IS_STEP=is_step, **_OPTIONS,
        )  # fmt: skip
        is_ahead = not o.sources and (isinstance(s.back, Tensor) or s.back != 0)
        if size:
            _run[(size,)](
                table, gradients, blocks, factors,
                1.0 - s.beta1, float(s.beta2), 1.0 - s.beta2, float(s.eps),
                dtype=_DTYPES[o.params[0].dtype], IS_STEP=is_step, IS_AHEAD=is_ahead,
                HAS_SOURCE=bool(o.sources), HAS_SINK=bool(o.sinks),
                IS_AMSGRAD=bool(o.max_exp_avg_sqs), MAY_SKIP=found_inf is not None,
                IS_JOINT=is_step and is_ahead and s.is_joint, **_OPTIONS,
            )  # fmt: skip
    torch.autograd.graph.increment_version(o.params)  # written behind its back
