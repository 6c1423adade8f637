"""A task or an optimizer of the user's own: `path/to/file.py:name`."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from weightcast_lab.errors import LabError, unknown_name


def is_own(reference: str) -> bool:
    """Whether it is the user's own, or a name that the laboratory knows."""
    return ":" in reference or reference.endswith(".py")


def name_in(reference: str) -> str:
    """The name alone."""
    return reference.rpartition(":")[2]


def resolved(reference: str) -> str:
    """The reference with an absolute path, which means the same in every process."""
    path, colon, name = reference.rpartition(":")
    return f"{Path(path).resolve()}:{name}" if colon else reference


def load(reference: str, kind: str) -> Callable[..., Any]:
    """The class or function that a reference names.

    Raises:
        LabError: there is no such file or no such name in it, or the file cannot be run.
    """
    path, colon, name = reference.rpartition(":")
    if not colon:
        raise LabError(f"{reference} is a file: say which {kind} in it, as path/to/file.py:name.")
    if not name.isidentifier():  # it becomes part of files' names
        raise LabError(f"{name!r} names no {kind}: write it like path/to/file.py:name.")
    module = _module(Path(path))
    found: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(found):
        own = [
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        ]
        if not own:
            raise LabError(f"{path} defines no class and no function: {kind} {name!r} must be one.")
        raise unknown_name(kind, name, own, place=f" in {path}")
    return found


def identity(reference: str, kind: str) -> dict[str, str]:
    """What a run's numbers depend on besides its recipe: the file, if it is the user's own."""
    if not is_own(reference):
        return {}
    content = Path(reference.rpartition(":")[0]).read_bytes()
    return {f"{kind} file sha256": hashlib.sha256(content).hexdigest()}


@contextmanager
def foreign(problem: str) -> Iterator[None]:
    """Around code of the user's own: what it prints goes to stderr, for stdout is for results.

    Raises:
        LabError: it raised anything; the sentence begins with `problem`.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except LabError:
        raise
    except (Exception, SystemExit) as error:
        reason = str(error).partition("\n")[0]
        raise LabError(f"{problem}: {type(error).__name__}: {reason}") from error


@cache
def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise LabError(f"{path} does not exist: name one of yours as path/to/file.py:name.")
    name = f"weightcast_lab.plugins.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LabError(f"{path} is no Python file: name one of yours as path/to/file.py:name.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    with foreign(f"{path} cannot be loaded"):
        spec.loader.exec_module(module)
    return module
