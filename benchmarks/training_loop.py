r"""What the laboratory's training loop costs beside a hand-written one.

Both train the same network on the same batches for one epoch at the size of a desk, and evaluate
it; the laboratory checks the loss and all gradients of every step, tells about its progress and
writes a checkpoint besides. They take turns, so that both meet the same weather; the ratio is the
median over the rounds.

    python benchmarks/training_loop.py --data FOLDER --out benchmarks/results/training-loop.json \
        --into docs/laboratory.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weightcast_lab.environment import environment
from weightcast_lab.files import to_json, write_atomically
from weightcast_lab.methods.method import Hyperparameters, Method
from weightcast_lab.paper.protocol import EPS, WEIGHT_DECAY, recipe_at
from weightcast_lab.report.markdown import fill_document, markdown_rows
from weightcast_lab.running.jobs import Run
from weightcast_lab.running.recipe import Recipe
from weightcast_lab.running.train import batch_order, train
from weightcast_lab.running.workers import prepare_process
from weightcast_lab.tasks import DataSource, Task

NAME = "benchmarks/training_loop.py"
NETWORKS = ("resnet34", "lstm1")


def by_hand(task: Task, recipe: Recipe) -> None:
    """As one would write it."""
    torch.manual_seed(0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=recipe.learning_rate,
        betas=recipe.hyperparameters.betas,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
    )
    evaluate(task, model)
    model.train()
    total, carried = 0.0, None
    for batch in task.batches(recipe.batch_size, batch_order(0, 0)):
        loss, carried = task.loss(model, batch, carried)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    evaluate(task, model)
    with torch.no_grad():
        task.test(model)


def evaluate(task: Task, model: torch.nn.Module) -> None:
    """Before the first epoch and after every one."""
    model.eval()
    with torch.no_grad():
        task.evaluate(model)


def in_the_laboratory(task: Task, recipe: Recipe) -> None:
    """The same by `train`, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Method("adamw"), 0)
        files = run.files(Path(folder), "benchmark")
        record = train(run, task, recipe, files, lambda *_: None, print)
        assert record is not None
        files.save_result(record)


def seconds(function: Callable[[Task, Recipe], None], task: Task, recipe: Recipe) -> float:
    """Of one call."""
    began = time.perf_counter()
    function(task, recipe)
    return time.perf_counter() - began


def table(results: dict[str, Any]) -> str:
    """Seconds and their ratio."""
    rows = [
        [
            label,
            f"{statistics.median(found['seconds by hand']):.2f}",
            f"{statistics.median(found['seconds in the laboratory']):.2f}",
            f"{found['median ratio']:.3f}",
        ]
        for label, found in results["networks"].items()
    ]
    e = results["environment"]
    header = ["One epoch at a desk", "by hand (s)", "here (s)", "median ratio"]
    return markdown_rows(header, rows) + f"\nOn {e['hardware']}, torch {e['torch']}, one thread.\n"


def main() -> None:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 and PTB")
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    parser.add_argument("--into", type=Path, help="document whose table is to be filled")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    prepare_process()
    found: dict[str, Any] = {}
    if arguments.out and arguments.out.exists():  # what it holds of the other networks stays
        found = json.loads(arguments.out.read_bytes())["networks"]
    for network in arguments.networks:
        recipe = replace(
            recipe_at("desk", network).placed(DataSource(arguments.data), "cpu"),
            epochs=1,
            hyperparameters=Hyperparameters((0.9, 0.9), EPS, WEIGHT_DECAY),
            milestones=(),
        )
        task = recipe.make_task()
        by_hand(task, recipe)  # the first one warms up
        rounds = []
        for n in range(arguments.rounds):
            pair = [by_hand, in_the_laboratory] if n % 2 else [in_the_laboratory, by_hand]
            times = {function.__name__: seconds(function, task, recipe) for function in pair}
            rounds.append((times["by_hand"], times["in_the_laboratory"]))
        ratios = sorted(ours / hand for hand, ours in rounds)
        found[recipe.label] = {
            "seconds by hand": [round(hand, 4) for hand, _ in rounds],
            "seconds in the laboratory": [round(ours, 4) for _, ours in rounds],
            "median ratio": round(statistics.median(ratios), 4),
        }
        print(
            f"{recipe.label}: {statistics.median(ratios):.3f} of a hand-written loop "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f} in {len(ratios)} rounds)"
        )
    results = {"environment": environment("cpu"), "networks": found}
    if arguments.out:
        write_atomically(arguments.out, to_json(results))
    if arguments.into:
        fill_document(arguments.into, NAME, table(results))


if __name__ == "__main__":
    main()
