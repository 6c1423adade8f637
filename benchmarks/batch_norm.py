r"""What it costs BatchNorm that its running statistics are gathered at the predicted weights.

A small convolutional network learns scikit-learn's digits under `weightcast.attach`. Beside it a
twin, which always holds the true weights, sees the same batches in training mode: its statistics
are those that would have been gathered there. At the end both, and the statistics that
`torch.optim.swa_utils.update_bn` gathers anew at the true weights, are compared, and what the
network says with each.

    python benchmarks/batch_norm.py --out benchmarks/results/batch-norm.json \
        --page docs/batch-norm.md
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import weightcast
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json
from weightcast_lab.results.statistics import mean_interval
from weightcast_lab.tasks.digits import DigitsTask

SETTINGS = {"lr": 5e-3, "batch size": 32, "epochs": 6, "seeds": 5}
STEPS = (0, 1, 3)
WAYS = ("as gathered", "at the true weights", "update_bn")


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Its BatchNorm layers."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def shift(model: nn.Module, twin: nn.Module) -> float:
    """How far apart the means are, in standard deviations of a channel: the mean over channels."""
    pairs = list(zip(norms(model), norms(twin), strict=True))
    off: list[Tensor] = [
        (a.running_mean - b.running_mean).abs() / b.running_var.sqrt() for a, b in pairs
    ]
    return torch.cat(off).mean().item()


def stretch(model: nn.Module, twin: nn.Module) -> float:
    """By how much the standard deviations differ, relatively: the mean over channels."""
    pairs = list(zip(norms(model), norms(twin), strict=True))
    off = [((a.running_var / b.running_var).sqrt() - 1).abs() for a, b in pairs]
    return torch.cat(off).mean().item()


def run(task: DigitsTask, steps: float, seed: int) -> dict[str, Any]:
    """Train once; the validation loss and accuracy with each of the statistics."""
    torch.manual_seed(seed)
    model = task.build_model()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS["lr"])
    weightcast.attach(model, optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(SETTINGS["epochs"]):
        for batch in task.batches(SETTINGS["batch size"], generator):
            for p, q in zip(twin.parameters(), model.parameters(), strict=True):
                p.data.copy_(q.data)
            with torch.no_grad():
                task.loss(twin, batch, None)
            optimizer.zero_grad()
            loss, _ = task.loss(model, batch, None)
            loss.backward()
            optimizer.step()
    for p, q in zip(twin.parameters(), model.parameters(), strict=True):
        p.data.copy_(q.data)
    anew = copy.deepcopy(model)
    update_bn(task.training[0].split(SETTINGS["batch size"]), anew)
    found: dict[str, Any] = {"shift": shift(model, twin), "stretch": stretch(model, twin)}
    for way, network in zip(WAYS, (model, twin, anew), strict=True):
        with torch.no_grad():
            found[way] = dict(zip(("loss", "accuracy"), task.evaluate(network.eval()), strict=True))
    return found


def page(results: dict[str, Any]) -> str:
    """The page of the docs."""
    machine, settings = results["environment"], results["settings"]
    lines = [
        "# BatchNorm",
        "",
        "The running statistics of BatchNorm are gathered in training forwards, and so at the",
        "predicted weights, while evaluation runs at the true ones. Measured by",
        "`python benchmarks/batch_norm.py --out benchmarks/results/batch-norm.json --page "
        "docs/batch-norm.md`:",
        f"a small convolutional network on scikit-learn's digits, AdamW at a learning rate of "
        f"{settings['lr']:g}",
        f"throughout, {settings['epochs']} epochs in batches of {settings['batch size']}, "
        f"{settings['seeds']} seeds; {machine['hardware']}, Python {machine['python']}, torch "
        f"{machine['torch']}.",
        "",
        "| | statistics apart: means (σ) | standard deviations (%) | loss as gathered | "
        "loss, statistics of the true weights, paired difference | "
        "loss after `update_bn`, paired difference |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for steps, runs in results["runs"].items():
        mean = {key: sum(r[key] for r in runs) / len(runs) for key in ("shift", "stretch")}
        loss = [r["as gathered"]["loss"] for r in runs]
        cells = [f"{mean['shift']:.3f}", f"{100 * mean['stretch']:.1f}", _number(loss)]
        for way in WAYS[1:]:
            cells.append(_number([r[way]["loss"] - r["as gathered"]["loss"] for r in runs], "+"))
        lines.append(f"| s={steps} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_REMEDY, ""])


def _number(values: list[float], sign: str = "") -> str:
    found = mean_interval(values)
    assert found is not None
    return f"{found.mean:{sign}.4f} ± {found.half_width:.4f}".replace("-", "−")


_REMEDY = [
    "± is half the 95% t interval over seeds; s=0 is plain AdamW, whose running statistics lag",
    "behind the weights all the same. `torch.optim.swa_utils.update_bn(loader, model)`, after a",
    "step, gathers those of the true weights: [an example](faq.md#batchnorm).",
]


def main() -> None:
    """Measure, write, and draw the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the measurements, as JSON")
    parser.add_argument("--page", type=Path, help="write the page of the docs here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = DigitsTask()
    runs = {
        f"{steps}": [run(task, steps, seed) for seed in range(SETTINGS["seeds"])] for steps in STEPS
    }
    results = {
        "environment": environment("cpu"),
        "settings": SETTINGS,
        "runs": runs,
    }
    arguments.out.write_bytes(to_json(results))
    if arguments.page:
        arguments.page.write_text(page(json.loads(arguments.out.read_text())))


if __name__ == "__main__":
    main()
