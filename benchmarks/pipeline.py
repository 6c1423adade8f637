"""Throughput of a pipeline without bubbles beside torch's synchronous one, as a ratio.

One process a stage, on this machine, one thread each; all stages compute the same amount. In every
round all schedules take turns on as many micro-batches, so that they meet the same weather; the
numbers are medians over the rounds of examples per second, in multiples of synchronous 1F1B's
(`torch.distributed.pipelining`) with as many micro-batches in a step as there are stages. The
asynchronous pipeline steps its optimizer after every micro-batch, the synchronous one after
several: small micro-batches leave it no time to gain. It is measured full; the synchronous one is
never full for long, which is the point.

On paper a synchronous step of M micro-batches takes M + P - 1 turns of a stage, and an asynchronous
pipeline M, if the optimizer's step takes no time. A stage needs a core (or GPU) of its own, or
nothing is gained by not waiting.

    python benchmarks/pipeline.py --stages 2 --out benchmarks/results/pipeline.json \
        --into docs/delays.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

import weightcast
from weightcast.pipeline import AsyncPipeline
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json, write_atomically
from weightcast_lab.report.markdown import fill_document, markdown_rows

NAME = "benchmarks/results/pipeline.json"
ON_PAPER = (2, 4, 8)

# label -> whether it predicts, whether it stashes
ASYNCHRONOUS = {
    "asynchronous, stashed": (False, True),
    "asynchronous, stashed, predicted": (True, True),
    "asynchronous, predicted, no copies": (True, False),
}


def synchronous(multiple: int) -> str:
    """The label of 1F1B with so many micro-batches a stage in every step."""
    return f"synchronous 1F1B, M = {multiple}P"


MULTIPLES = (1, 2, 4)


def part(width: int, blocks: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A stage, the same amount of work for each."""
    layers = [layer for _ in range(blocks) for layer in (nn.Linear(width, width), nn.GELU())]
    stage = nn.Sequential(*layers)
    return stage, torch.optim.AdamW(stage.parameters(), lr=1e-4, fused=True)


class Asynchronous:
    """Runs micro-batches; the first ones fill the pipeline and are not measured."""

    def __init__(
        self, options: argparse.Namespace, batch: int, predicts: bool, stash: bool
    ) -> None:
        stage, optimizer = part(options.width, options.blocks)
        prediction = weightcast.attach(stage, optimizer) if predicts else None
        loss = nn.functional.mse_loss
        self.pipeline = AsyncPipeline(stage, optimizer, loss, prediction=prediction, stash=stash)
        self.data = torch.randn(batch, options.width)

    def seconds(self, batches: int) -> float:
        """Of so many micro-batches in a full pipeline."""

        def run(count: int) -> None:
            for _ in range(count):
                self.pipeline.step(self.data, self.data)

        run(self.pipeline.stages)
        found = timed(lambda: run(batches))
        self.pipeline.drain()
        return found


class Synchronous:
    """Runs steps of M micro-batches each."""

    def __init__(self, options: argparse.Namespace, batch: int, multiple: int) -> None:
        self.rank, self.stages = dist.get_rank(), dist.get_world_size()
        stage, self.optimizer = part(options.width, options.blocks)
        self.micro_batches = multiple * self.stages
        place = PipelineStage(stage, self.rank, self.stages, torch.device("cpu"))
        self.schedule = Schedule1F1B(place, self.micro_batches, loss_fn=nn.functional.mse_loss)
        self.data = torch.randn(self.micro_batches * batch, options.width)

    def step(self) -> None:
        """One step of the optimizer."""
        inputs = (self.data,) if self.rank == 0 else ()
        target: Tensor | None = self.data if self.rank == self.stages - 1 else None
        self.optimizer.zero_grad()
        self.schedule.step(*inputs, target=target, losses=[] if target is not None else None)
        self.optimizer.step()

    def seconds(self, batches: int) -> float:
        """Of so many micro-batches, in whole steps."""

        def run() -> None:
            for _ in range(batches // self.micro_batches):
                self.step()

        return timed(run)


def timed(run: Callable[[], Any]) -> float:
    """Seconds until all stages are done."""
    dist.barrier()
    started = time.perf_counter()
    run()
    dist.barrier()
    return time.perf_counter() - started


def measure(rank: int, options: argparse.Namespace, folder: str) -> None:
    """A stage's process; the first one writes the seconds of every round down."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.stages)
    found = [measured(options, batch) for batch in options.batch]
    if rank == 0:
        Path(folder, "found").write_text(json.dumps(found))
    dist.destroy_process_group()


def measured(options: argparse.Namespace, batch: int) -> dict[str, list[float]]:
    """Seconds of every schedule in every round, with so many examples in a micro-batch."""
    schedules: dict[str, Any] = {synchronous(m): Synchronous(options, batch, m) for m in MULTIPLES}
    schedules |= {label: Asynchronous(options, batch, *how) for label, how in ASYNCHRONOUS.items()}
    batches = options.batches * MULTIPLES[-1] * options.stages
    found: dict[str, list[float]] = {label: [] for label in schedules}
    for turn in range(options.rounds + 1):
        for label, schedule in schedules.items():
            seconds = schedule.seconds(batches)
            if turn:  # the first is to warm up
                found[label].append(seconds)
    return found


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Throughput in multiples of the first synchronous schedule's, round by round: the medians."""
    base = seconds[synchronous(MULTIPLES[0])]
    return {
        label: statistics.median(b / s for b, s in zip(base, found, strict=True))
        for label, found in seconds.items()
    }


def table(results: dict[str, Any]) -> str:
    """Measured, and on paper, in multiples of the first row's."""
    stages, base = results["stages"], synchronous(MULTIPLES[0])
    header = ["Schedule", *(f"{stages} stages, batch {size}" for size in results["throughput"])]
    header += [f"{p} stages, on paper" for p in ON_PAPER]
    columns = list(results["throughput"].values())
    rows = []
    for label in columns[0]:
        turns = {synchronous(m): m for m in MULTIPLES}.get(label)
        paper = []
        for p in ON_PAPER:
            share = 1.0 if turns is None else turns * p / (turns * p + p - 1)
            paper.append(f"{share * (2 * p - 1) / p:.2f}")
        rows.append([label, *(f"{ratio[label]:.2f}" for ratio in columns), *paper])
    e = results["environment"]
    return (
        markdown_rows(header, rows)
        + f"\n- Examples per second, in multiples of {base}; medians of {results['rounds']} rounds."
        + f"\n- A batch is a micro-batch; {results['parameters']:,} weights a stage; "
        + f"{results['cores']} cores; {e['hardware']}, torch {e['torch']}.\n"
    )


def main() -> None:
    """Measure, and write the results down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=4, help="linear layers in a stage")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[64, 256, 1024], help="examples in a micro-batch"
    )
    parser.add_argument("--batches", type=int, default=2, help="largest steps in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--into", type=Path, help="document whose table is to be filled")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (options, folder), nprocs=options.stages)
        seconds = json.loads(Path(folder, "found").read_text())
    throughput = {str(b): ratios(s) for b, s in zip(options.batch, seconds, strict=True)}
    results = {
        **{key: vars(options)[key] for key in ("stages", "width", "blocks", "rounds")},
        "parameters": sum(p.numel() for p in part(options.width, options.blocks)[0].parameters()),
        "cores": len(os.sched_getaffinity(0)),
        "environment": environment("cpu"),
        "throughput": throughput,
        "seconds": dict(zip(throughput, seconds, strict=True)),
    }
    print(table(results))
    if options.out:
        write_atomically(options.out, to_json(results))
    if options.into:
        fill_document(options.into, NAME, table(results))


if __name__ == "__main__":
    main()
