"""Many tensors that compute like one, so that a formula is written once.

A rule is an element-wise expression over the optimizer's state. Given a `Tensor` it runs tensor by
tensor (little memory: torch's choice on CPU); given `Tensors` the very same expression runs in
torch's multi-tensor kernels, a handful of launches for a whole model (torch's choice on CUDA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partialmethod
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from weightcast.errors import InvalidArgumentError

# As torch.optim does: never traced, and torch._dynamo (a second to import) is loaded on first use.
untraced = torch._disable_dynamo  # type: ignore[attr-defined]

TILE = 2**16
"""Elements of a tile, and of the small parameters that are gathered into one."""

_REAL = frozenset((Tensor, Parameter))  # types that wrap nothing


class Tensors:
    """A list of tensors with element-wise arithmetic, each operation one `torch._foreach` call.

    The other operand is a number, a tensor of one element, or `Tensors` of the same length.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def _apply(self, name: str, *others: Any) -> Tensors:
        operands = (other.tensors if isinstance(other, Tensors) else other for other in others)
        return Tensors(getattr(torch, f"_foreach_{name}")(self.tensors, *operands))

    __add__ = __radd__ = partialmethod(_apply, "add")
    __sub__ = partialmethod(_apply, "sub")
    __mul__ = __rmul__ = partialmethod(_apply, "mul")
    __truediv__ = partialmethod(_apply, "div")
    __neg__ = partialmethod(_apply, "neg")
    sqrt = partialmethod(_apply, "sqrt")
    sign = partialmethod(_apply, "sign")

    def __rsub__(self, other: Any) -> Tensors:
        return self._apply("neg")._apply("add", other)

    def __rpow__(self, base: float) -> Tensors:
        return Tensors(torch._foreach_pow(base, self.tensors))


def one_or_many(tensors: list[Tensor]) -> Tensor | Tensors:
    """What a formula is given: a tensor, or several that compute like one."""
    return tensors[0] if len(tensors) == 1 else Tensors(tensors)


def plain(tensor: Tensor) -> Tensor:
    """The memory behind a parameter or its state, as a real tensor on this device.

    A DTensor gives its local shard, a complex tensor its real view: element-wise rules hold there
    unchanged, and writing to the result writes to `tensor`.

    Raises:
        InvalidArgumentError: a lazy conjugate, whose memory holds other numbers.
    """
    if type(tensor) not in _REAL and hasattr(tensor, "to_local"):
        tensor = tensor.to_local()
    if not tensor.is_complex():
        return tensor
    if tensor.is_conj():
        raise InvalidArgumentError(
            "a parameter or its state is a lazy conjugate view, whose memory holds other numbers: "
            "give the optimizer tensor.resolve_conj()."
        )
    return torch.view_as_real(tensor)


def resolved(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The memory behind tensors that are only read, as `plain`; views that are lazy are computed.

    Autograd gives such: a conjugate, a negative, or zeros that have no memory at all.
    """
    tensors = list(tensors)
    is_complex = any(map(Tensor.is_complex, tensors))
    if is_complex or any(map(Tensor.is_neg, tensors)) or any(map(Tensor._is_zerotensor, tensors)):
        tensors = [t.clone() if t._is_zerotensor() else t for t in tensors]
        tensors = [t.resolve_conj().resolve_neg() for t in tensors]
    return tensors if are_real(tensors) and not is_complex else [plain(t) for t in tensors]


def are_real(tensors: Iterable[Any]) -> bool:
    """Whether all are tensors that wrap no others. Fast: loops ask for every tensor."""
    return _REAL.issuperset(map(type, tensors))


def plain_all(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The memory behind each."""
    tensors = list(tensors)
    if are_real(tensors) and not any(map(Tensor.is_complex, tensors)):
        return tensors
    return [plain(t) for t in tensors]


def written(tensors: list[Tensor]) -> None:
    """Tell autograd of writes to the memory behind wrappers (DTensor), which count on their own."""
    if not are_real(tensors):
        torch.autograd.graph.increment_version([t for t in tensors if type(t) not in _REAL])


def host_step(state: Mapping[str, Any]) -> float | None:
    """The step count of a parameter, if it can be read without synchronising with a device."""
    step = state.get("step")
    if isinstance(step, Tensor):
        return step.item() if step.device.type == "cpu" else None
    return step


class StateView(Mapping[str, Any]):
    """The optimizer's state of one or more parameters, as a rule reads it.

    `state["exp_avg"]` is a `Tensor` (one parameter) or `Tensors` (several), or what `joined` makes
    of them; what is no tensor has one value for all. `state["step"]` is a number where the count
    lives on the host, else a float64 tensor on the device: 1 - β₂ᵗ of a float32 count loses four
    digits at t = 1. It is at least 1: where the very first step was skipped, the moments are zero,
    and so is Δ rather than 0/0.
    """

    def __init__(
        self,
        states: Sequence[Mapping[str, Any]],
        joined: Callable[[list[Tensor]], Tensor | Tensors] = one_or_many,
    ) -> None:
        self._states, self._joined = states, joined

    def __getitem__(self, key: str) -> Any:
        values = [state[key] for state in self._states]
        if key == "step":
            if (step := host_step(self._states[0])) is not None:
                return max(step, 1)
            # one launch converts all the counts; MPS has no float64
            counts = torch.stack([plain(value) for value in values])
            counts = counts if counts.device.type == "mps" else counts.double()
            return one_or_many(list(counts.clamp(min=1).unbind()))
        if isinstance(values[0], Tensor):
            return self._joined(plain_all(values))
        return values[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states[0])

    def __len__(self) -> int:
        return len(self._states[0])


@contextmanager
def moving() -> Iterator[None]:
    """Weights change in place, outside autograd, and autocast forgets its casts of them."""
    with torch.inference_mode(False), torch.no_grad():
        yield
    torch.clear_autocast_cache()


def tiles(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Pieces of tensors of one shape that belong together, each of about `TILE` elements."""
    if tensors[0].numel() <= TILE:
        yield tensors
        return
    if all(t.is_contiguous() for t in tensors):
        tensors = tuple(t.view(-1) for t in tensors)
    rows = max(1, TILE * len(tensors[0]) // tensors[0].numel())
    yield from zip(*(t.split(rows) for t in tensors), strict=True)


def nonzero(scale: float | Tensor) -> float | Tensor:
    """A divisor for what is zero itself where `scale` is."""
    if isinstance(scale, Tensor):
        return torch.where(scale == 0, torch.ones_like(scale), scale)
    return scale or 1.0


def buffer_like(p: Tensor, buffer: Tensor | None) -> Tensor:
    """Memory of the parameter's size: the one offered, if it fits, or new."""
    if buffer is not None and _kind(buffer) == _kind(p):
        return buffer
    return torch.empty_like(p)


def kept_memory(p: Tensor, memory: dict[Tensor, Tensor]) -> Tensor:
    """The parameter's part of `memory`, made or made anew if need be."""
    memory[p] = buffer_like(p, memory.get(p))
    return memory[p]


def overlapping(tensors: Sequence[Tensor]) -> set[int]:
    """The numbers of those that share memory with another, wholly or in part."""
    ends = []
    for number, tensor in enumerate(tensors):
        if tensor.numel():
            start, pairs = tensor.data_ptr(), zip(tensor.shape, tensor.stride(), strict=True)
            size = 1 + sum((count - 1) * stride for count, stride in pairs)
            ends.append((tensor.device, start, start + size * tensor.element_size(), number))
    found: set[int] = set()
    last: tuple[Any, ...] = (None, 0, 0, 0)
    for row in sorted(ends, key=lambda row: (str(row[0]), row[1])):
        if row[0] == last[0] and row[1] < last[2]:
            found |= {row[3], last[3]}
        if row[0] != last[0] or row[2] > last[2]:
            last = row
    return found


def memory_of(params: Sequence[Tensor], states: Sequence[Mapping[str, Any]] = ()) -> list[Any]:
    """What tells whether parameters and their states are where and what they were."""
    values = [*params, *chain.from_iterable(state.values() for state in states)]
    if not are_real(values):
        return [*map(_memory, values), *map(len, states)]
    # every step asks for all of them; a state's dtype goes with its address, or its new tensor's
    kinds = chain(map(_dtype, params), map(Tensor.stride, params), map(Tensor.numel, params))
    return [*map(Tensor.data_ptr, values), *kinds, *map(len, states)]


_dtype = Tensor.dtype.__get__  # type: ignore[attr-defined]


def _memory(value: Any) -> Any:
    """Address and kind of a tensor; of what is no tensor, the value."""
    if not isinstance(value, Tensor):
        return value
    if is_lazy(value):  # it has no memory yet
        return None
    value = plain(value)
    return value.data_ptr(), value.dtype, value.stride(), value.numel()


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors must share to be copied element by element in the order of memory."""
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()
