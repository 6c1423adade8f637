"""A method is its name: it is printed and read back."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightcast_lab.errors import LabError
from weightcast_lab.methods.method import Method, methods_named
from weightcast_lab.methods.optimizers import OPTIMIZERS, PLAIN_ONLY
from weightcast_lab.study.questions import METHODS
from weightcast_lab.trials.protocol import CANDIDATES

POSITIVE = st.floats(1e-12, 1e12)


def test_every_method_of_the_studies_is_read_back_from_its_name():
    methods = [*METHODS.values(), *(c.method for c in CANDIDATES.values())]
    assert len(methods) > 80
    for method in methods:
        assert Method.parse(method.name) == method
        tuned = replace(method, learning_rate=1.23e-5)
        assert Method.parse(tuned.key) == tuned


@given(
    optimizer=st.sampled_from(sorted({*OPTIMIZERS} - {*PLAIN_ONLY})),
    steps=st.none() | st.floats(-1, 1e6) | st.just(math.inf),
    rate=st.none() | POSITIVE,
    beta1=st.none() | st.floats(0, 1, exclude_max=True),
    flags=st.tuples(st.booleans(), st.booleans()),
    part=st.sampled_from(["", "matrices", "rest"]),
)
def test_any_method_is_read_back_from_its_key(optimizer, steps, rate, beta1, flags, part):
    decaying, in_delays = flags
    try:
        method = Method(optimizer, steps, rate, decaying, beta1, in_delays, part)
    except LabError:  # not every forecast and momentum is possible
        return
    if steps is None:
        method = method.plain
    assert Method.parse(method.key) == method


@pytest.mark.parametrize("name", ["", "adamw-", "adamw-s", "adamw-s3-b0.9", "adamw-s1-late"])
def test_what_is_no_name_is_refused(name):
    with pytest.raises(LabError, match="is no method: write it like"):
        Method.parse(name)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(LabError, match="There is no optimizer 'adamv': did you mean 'adam'"):
        methods_named("adamw adamv-s3")
