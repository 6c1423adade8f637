"""Compile the C kernels: for a wheel when it is built, else for this machine on first use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("adamw.c")
LIBRARY = Path(__file__).with_name("_adamw.so")
"""Where a wheel carries the compiled kernels."""

FLAGS = ["-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=off"]  # no fused multiply-adds: every processor computes the same bits


def compile_library(target: Path) -> None:
    """Compile to `target`, which appears whole or not at all.

    Raises:
        OSError: no C compiler was found, it failed, or the folder cannot be written.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform == "win32":
        raise OSError("no C compiler was found")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [*compiler.split(), *FLAGS, str(SOURCE), "-o", str(built)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise OSError(f"{compiler} failed: {result.stderr.strip()}")
        built.replace(target)
