"""The machine and the versions that numbers are computed with."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from weightcast_lab.errors import LabError, unknown_name

PRECISIONS = ("fp32", "tf32", "bf16")

NOT_INSTALLED = "not installed"


def device_named(name: str, *, is_here: bool = True) -> str:
    """The device to compute on; `auto` is the GPU if there is one here.

    Unless `is_here`, `cuda` is one of other machines.

    Raises:
        LabError: there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise unknown_name("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and is_here and not torch.cuda.is_available():
        raise LabError("No CUDA device is available here: use --device cpu.")
    return name


def check_precision(precision: str, device: str) -> None:
    """Refuse what does not exist.

    Raises:
        LabError: there is no such precision, or not on this device.
    """
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision == "tf32" and device == "cpu":
        raise LabError("--precision tf32 needs a GPU: a CPU computes in fp32 or bf16.")


def use_precision(precision: str) -> None:
    """Let matrix products and convolutions round their inputs to TF32, or not."""
    is_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = is_tf32


def environment(device: str) -> dict[str, str]:
    """What differs from machine to machine and may change the last digits of a result."""
    return {
        "device": device,
        "hardware": hardware(device),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "weightcast": installed_version("weightcast"),
    }


def hardware(device: str) -> str:
    """The model of the processor or the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def processor(device: str) -> str:
    """More exactly: one name of a model may stand for several that differ in speed alone."""
    known = {} if device == "cuda" else _cpuinfo()
    details = [f"{name} {known[name]}" for name in ("cpu family", "model") if name in known]
    return ", ".join([hardware(device), *details])


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    if sys.platform != "linux":
        return {}
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


def installed_version(package: str) -> str:
    """The version of a package, for people."""
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
