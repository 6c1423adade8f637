"""What is said to `weightcast compare`, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weightcast_lab.errors import LabError, unknown_name
from weightcast_lab.methods.method import Method


def parse_numbers(text: str, option: str) -> list[float]:
    """The numbers in `1,2,3`.

    Raises:
        LabError: something else is there.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise LabError(
            f"{option} {text!r} is not a list of numbers: write it like 1,2,3 or 0.5,1."
        ) from None


def parse_milestones(text: str, epochs: int) -> tuple[int, ...]:
    """The epochs in `8,10`; none in an empty text.

    Raises:
        LabError: something else is there, or an epoch after which none is left.
    """
    numbers = parse_numbers(text, "--milestones") if text else []
    if any(number < 1 or number % 1 for number in numbers):
        raise LabError(f"--milestones {text!r} must be whole numbers of epochs, like 8,10.")
    if any(number >= epochs for number in numbers):
        raise LabError(f"--milestones {text!r} would do nothing: there are {epochs} epochs.")
    return tuple(map(int, numbers))


def parse_betas(text: str | None) -> tuple[float, float] | None:
    """The two numbers in `0.9,0.999`.

    Raises:
        LabError: something else is there.
    """
    if text is None:
        return None
    numbers = parse_numbers(text, "--betas")
    if len(numbers) != 2:
        raise LabError(f"--betas {text!r} must be two numbers, like 0.9,0.999.")
    return numbers[0], numbers[1]


def methods_to_compare(
    optimizers: Sequence[str], baselines: Sequence[str], steps: Sequence[float]
) -> list[Method]:
    """Every optimizer plain and with each of the steps, then the baselines, each once.

    Raises:
        LabError: an optimizer does not exist, steps are not possible, or two methods have one name.
    """
    methods = [Method(name, s) for name in optimizers for s in (None, *steps)]
    methods += [Method(name) for name in baselines if name != "none"]
    methods = list(dict.fromkeys(methods))
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:  # their runs would be kept in one place
            raise LabError(f"Two methods are called {name!r}: give one of them another name.")
    return methods


def with_learning_rates(
    methods: Sequence[Method], words: Sequence[str]
) -> tuple[float | None, list[Method]]:
    """The common learning rate in words like `0.01`, and the methods with those like `nadamw=0.02`.

    Raises:
        LabError: a word is no learning rate, or there is no such method.
    """
    common, own = None, {}
    for word in words:
        name, equals, value = word.rpartition("=")
        try:
            rate = float(value)
        except ValueError:
            raise LabError(
                f"--lr {word!r} is not a learning rate: write it like 0.001, or like nadamw=0.002 "
                "for one method."
            ) from None
        if not equals:
            common = rate
        elif name not in (known := [method.name for method in methods]):
            raise unknown_name("method", name, known)
        else:
            own[name] = rate
    return common, [replace(method, learning_rate=own.get(method.name)) for method in methods]
