"""What a step costs the host where parameters are many and tiny: nothing but calls remains.

Its page is that of `step_cost.py`; the command is there.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import weightcast
from step_cost_page import page
from step_cost_rows import Step
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json, write_atomically

COUNTS = (110, 1000)  # of parameters: as many as a ResNet-34 has, and as a large language model
SIZE = 8
CALLS = 3  # of each way in a row, in turn with the others


class Idle(nn.Module):
    """A forward that computes nothing: what is around it remains."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.params = nn.ParameterList(nn.Parameter(torch.ones(SIZE)) for _ in range(count))

    def forward(self) -> None:
        """Nothing."""


def ways(count: int) -> dict[str, Step]:
    """Each with parameters of its own: a forward and a step."""
    made: dict[str, Step] = {}
    for way in ("torch", "attach", "lazy", "in step"):
        model = Idle(count)
        optimizer: Any
        if way in ("torch", "attach"):
            optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        else:
            optimizer = weightcast.AdamW(model.parameters(), in_step=way == "in step")
        if way != "torch":
            weightcast.attach(model, optimizer)
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.01)

        def step(model: nn.Module = model, optimizer: Any = optimizer) -> None:
            model()
            optimizer.step()

        made[way] = step
    return made


def least(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Microseconds of one call of each, in the best of the rounds: what else runs only adds.

    The clock is that of this thread, which stands still while another process has the processor.
    """
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds):
        for name in random.sample(list(steps), len(steps)):
            step = steps[name]
            step()
            began = time.thread_time()
            for _ in range(CALLS):
                step()
            best[name] = min(best[name], 1e6 * (time.thread_time() - began) / CALLS)
    return best


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    parser.add_argument("--page", type=Path, help="write the tables here, with those of the steps")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    host: dict[str, dict[str, float]] = {}
    for count in COUNTS:
        best = least(ways(count), arguments.rounds)
        ratios = {name: round(value / best["torch"], 2) for name, value in best.items()}
        host[str(count)] = {"torch µs": round(best["torch"], 1)} | ratios
        print(count, host[str(count)])
    if arguments.out:
        content = {"environment": environment("cpu"), "rounds": arguments.rounds, "host": host}
        write_atomically(arguments.out, to_json(content))
    if arguments.page:
        write_page(arguments.page)


def write_page(file: Path) -> None:
    """From all that is kept."""
    kept = Path(__file__).with_name("results").glob("step-cost*.json")
    file.write_text(page(*(json.loads(k.read_bytes()) for k in kept)))


if __name__ == "__main__":
    main()
