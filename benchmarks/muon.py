"""What a forecast of Muon costs, and whether its displacement should be kept or computed again.

Muon's state does not tell its last update: that is the momentum, orthogonalised by five matrix
iterations. `weightcast.attach` observes it, as the difference of the weights around the step, in
one buffer that also holds the saved weights while they are predicted. A rule that computes it again
needs no observation, but another saved copy of the weights, and does the iterations twice.

Processor time of one thread, plain and forecast in turn: nothing else on the machine counts.

    python benchmarks/muon.py --out benchmarks/results/muon.json --into docs/recipes.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim._muon import _zeropower_via_newtonschulz

import weightcast
from step_cost import training
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json
from weightcast_lab.report.markdown import fill_document

COEFFICIENTS, EPS, ITERATIONS = (3.4445, -4.775, 2.0315), 1e-7, 5
NAME = "benchmarks/muon.py"


Update = Callable[[], None]


def loop(steps: float | None, rule: Any = None) -> tuple[Update, Update, Update]:
    """A training loop: forward and backward, the optimizers' steps, and what predicts before."""
    model, loss_of = training("Transformer", "cpu")
    hidden = [p for p in model[1].parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in hidden)]
    muon = torch.optim.Muon(hidden, lr=1e-3, nesterov=False, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=1e-3)
    handles = []
    if steps is not None:
        handles = [
            weightcast.attach(model, muon, steps=steps, rule=rule),
            weightcast.attach(model, adamw, steps=steps),
        ]

    def train() -> None:
        model.zero_grad()
        loss_of(model).backward()

    def step() -> None:
        muon.step()
        adamw.step()

    def predict() -> None:
        for handle in handles:
            handle.predict()

    train()
    return train, predict, step


def computed_again(state: Any, group: dict[str, Any]) -> torch.Tensor:
    """Δ of Muon without Nesterov's form: γ·0.2·sqrt(max(rows, columns)) times the polar factor."""
    momentum = state["momentum_buffer"]
    update = _zeropower_via_newtonschulz(momentum, COEFFICIENTS, ITERATIONS, EPS)
    scale = 0.2 * max(momentum.shape) ** 0.5
    return group["lr"] * scale * update.to(momentum.dtype)  # type: ignore[no-any-return]


def milliseconds(act: Callable[[], None]) -> float:
    """Processor time."""
    start = time.process_time()
    act()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    """Measure all in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    parser.add_argument("--into", type=Path, help="write the table into this document")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loops = {
        "plain": loop(None),
        "observed": loop(3),
        "computed again": loop(3, computed_again),
    }
    times: dict[str, dict[str, list[float]]] = {
        name: {"update": [], "training": []} for name in loops
    }
    for number in range(arguments.rounds + 3):
        for name, (train, predict, step) in loops.items():
            training = milliseconds(train)  # `attach` predicts in its forward
            update = milliseconds(step)
            before = milliseconds(predict)  # what the next forward finds done
            if number >= 3:
                times[name]["update"].append(before + update)
                times[name]["training"].append(before + training + update)
    found = {
        "environment": environment("cpu"),
        "rounds": arguments.rounds,
        "ms": {
            name: {what: round(statistics.median(t), 3) for what, t in some.items()}
            for name, some in times.items()
        },
        "ratios": {
            name: {
                what: round(
                    statistics.median(
                        a / b for a, b in zip(some[what], times["plain"][what], strict=True)
                    ),
                    3,
                )
                for what in some
            }
            for name, some in times.items()
        },
    }
    print(table(found))
    if arguments.out:
        arguments.out.write_bytes(to_json(found))
    if arguments.into:
        fill_document(arguments.into, NAME, table(found))


def table(found: dict[str, Any]) -> str:
    """For the documentation."""
    lines = [
        "| Displacement of Muon | optimizers and forecast | the whole training step |",
        "|---|---:|---:|",
    ]
    for name, ratios in found["ratios"].items():
        ms = found["ms"][name]
        if name == "plain":
            lines.append(f"| no forecast | {ms['update']:.1f} ms | {ms['training']:.1f} ms |")
        else:
            lines.append(f"| {name} | {ratios['update']:.3f} | {ratios['training']:.3f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
