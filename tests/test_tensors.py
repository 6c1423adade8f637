"""A formula over `Tensors` is the formula over each tensor."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightcast.tensors import StateView, Tensors, host_step, plain

FORMULAS = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "x / y": lambda x, y: x / y,
    "2 + x": lambda x, y: 2 + x,
    "2 * x": lambda x, y: 2 * x,
    "1 - x": lambda x, y: 1 - x,
    "-x": lambda x, y: -x,
    "0.9 ** x": lambda x, y: 0.9**x,
    "lr * x": lambda x, y: torch.tensor(0.3, dtype=torch.float64) * x,
    "x / t": lambda x, y: x / torch.tensor(0.3, dtype=torch.float64),
    "sqrt": lambda x, y: x.sqrt(),
    "sign": lambda x, y: (x - 1).sign(),
    "adam": lambda x, y: 0.1 * (x / (1 - 0.9**7.0)) / ((y / 0.5).sqrt() + 1e-8),
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
@given(values=st.lists(st.floats(0.1, 10), min_size=1, max_size=4))
def test_multi_tensor_equals_tensor_by_tensor(formula: object, values: list[float]) -> None:
    xs = [torch.tensor([value, 2 * value], dtype=torch.float64) for value in values]
    ys = [x.flip(0) for x in xs]
    kept = [x.clone() for x in xs]
    together = formula(Tensors(xs), Tensors(ys))
    for x, y, result in zip(xs, ys, together.tensors, strict=True):
        torch.testing.assert_close(result, formula(x, y), rtol=1e-15, atol=0)
    assert all(map(torch.equal, xs, kept))


def test_a_state_gives_one_tensor_or_many() -> None:
    states = [{"m": torch.ones(2), "step": torch.tensor(3.0), "flag": 7} for _ in range(2)]
    one, two = StateView(states[:1]), StateView(states)
    assert one["m"] is states[0]["m"]
    assert [t.data_ptr() for t in two["m"].tensors] == [s["m"].data_ptr() for s in states]
    assert (one["step"], two["step"], one["flag"]) == (3.0, 3.0, 7)
    assert set(one) == {"m", "step", "flag"}
    assert len(one) == 3
    with pytest.raises(KeyError):
        one["missing"]


def test_counts_on_a_device_are_read_there_in_float64() -> None:
    """R27: nothing is fetched; 1 - β₂ᵗ would lose four digits in float32 at t = 1."""
    device = torch.device("cuda" if torch.cuda.is_available() else "meta")
    states = [{"step": torch.ones((), device=device)} for _ in range(2)]
    assert host_step(states[0]) is None
    counts = StateView(states)["step"].tensors
    assert [(c.device.type, c.dtype) for c in counts] == [(device.type, torch.float64)] * 2
    assert StateView(states[:1])["step"].shape == ()
    assert host_step({"step": 4}) == 4
    assert host_step({}) is None


def test_plain_shares_memory() -> None:
    z = torch.tensor([1 + 2j])
    plain(z)[0, 1] = 5
    assert z[0].imag == 5
    assert plain(z).shape == (1, 2)
    x = torch.ones(2)
    assert plain(x) is x
    assert not math.isnan(plain(x).sum())
