"""How far rounding carries the weights that are never copied from those that are.

`weightcast.AdamW` brings the true weights back from a copy; with `in_step=True` it computes them,
θ = θ̂ + s·Δ, at every step. Both get the same random gradients here, whatever their weights; so does
the default in float64, which tells how far the rounding of AdamW itself has carried the default by
then.

    python benchmarks/drift.py --out benchmarks/results/drift.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

import weightcast
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json

SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "steps": 3}
WEIGHTS = 2000
SCALE = 0.05  # of the weights at first; the gradients are of scale 1
VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "default": (torch.float32, {}),
    "float64": (torch.float64, {}),
    "in step": (torch.float32, {"in_step": True}),
}
COMPUTED = ("in step",)
FLOAT32 = ("default", *COMPUTED)


def distance(weights: Tensor, reference: Tensor) -> dict[str, float]:
    """The mean and the largest difference; and how many weights are the same, bit for bit."""
    off = (weights.double() - reference.double()).abs()
    found = {"mean": float(f"{off.mean():.3g}"), "max": float(f"{off.max():.3g}")}
    if weights.dtype is reference.dtype:
        found["equal"] = round((off == 0).double().mean().item(), 4)
    return found


def main() -> None:
    """Train all variants side by side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(WEIGHTS, generator=generator) * SCALE
    weights = {name: Parameter(start.to(dtype, copy=True)) for name, (dtype, _) in VARIANTS.items()}
    optimizers = {
        name: weightcast.AdamW([weights[name]], **SETTINGS, **options)
        for name, (_, options) in VARIANTS.items()
    }
    found: dict[str, Any] = {}
    for step in range(1, arguments.steps + 1):
        gradient = torch.randn(WEIGHTS, generator=generator)
        for name, optimizer in optimizers.items():
            optimizer.train()
            weights[name].grad = gradient.to(weights[name].dtype)
            optimizer.step()
        if step == arguments.steps or (step >= 100 and str(step).strip("0") == "1"):
            for optimizer in optimizers.values():
                optimizer.eval()
            now = {name: weight.detach() for name, weight in weights.items()}
            found[f"after {step} steps"] = part = {
                "mean size of the weights": float(f"{now['default'].abs().mean():.3g}"),
                "mean distance moved": float(f"{(now['default'] - start).abs().mean():.3g}"),
                "from the default": {n: distance(now[n], now["default"]) for n in COMPUTED},
                "from float64": {n: distance(now[n], now["float64"]) for n in FLOAT32},
            }
            print(f"after {step} steps")
            for reference in ("from the default", "from float64"):
                for name, off in part[reference].items():
                    print(f"  {name} {reference}: {off['mean']:.2g}, at most {off['max']:.2g}")
    if arguments.out:
        settings = {"weights": WEIGHTS, "scale": SCALE, **SETTINGS}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"environment": environment("cpu"), "settings": settings} | found
        arguments.out.write_bytes(to_json(result))


if __name__ == "__main__":
    main()
