"""What a step costs with and without the forecast; how it is measured: see `step_cost_page.py`.

python benchmarks/step_cost.py --out benchmarks/results/step-cost.json --page docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightcast
from step_cost_page import machine, page
from step_cost_rows import (
    ADAMW,
    FUSED,
    LARGE_ROWS,
    LISTS,
    ROWS,
    TRAININGS,
    Holder,
    Step,
    available,
    plain,
)
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json


def holder_of(name: str, device: str) -> Holder:
    """Parameters of the list with gradients."""
    params = [nn.Parameter(torch.randn(shape, device=device) * 0.02) for shape in LISTS[name]()]
    for p in params:
        p.grad = torch.randn_like(p) * 0.01
    return Holder(params)


def seconds(step: Step, device: str) -> float:
    """Of one call; on a GPU of one of ten, which nobody waits for in between."""
    if device == "cpu":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 10


def interleaved(
    steps: dict[str, Step],
    device: str,
    rounds: int,
    budget: float,
    before: Step = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each, in rounds of random order, after two rounds to warm up.

    Beyond `budget` seconds there are no more, but twelve at least.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    began = time.perf_counter()
    for n in range(rounds + 2):
        for name in random.sample(list(steps), len(steps)):
            before()
            taken = seconds(steps[name], device)
            if n >= 2:
                times[name].append(taken)
        if n >= 13 and time.perf_counter() - began > budget:
            break
    return times


def ratio(times: dict[str, list[float]], name: str, other: str) -> float | None:
    """Median over the rounds, in which both met the same weather."""
    if name not in times or other not in times:
        return None
    pairs = zip(times[name], times[other], strict=True)
    return round(statistics.median(a / b for a, b in pairs), 3)


def measure_step(list_name: str, row: str, device: str, rounds: int) -> dict[str, Any]:
    """One row for one list."""
    holder = holder_of(list_name, device)
    normal, forecast, _ = ROWS[row]
    steps = {"fused": plain(ADAMW, holder, **FUSED)}
    if normal is not None:
        steps["plain"] = normal(holder)
    if forecast is not None:
        steps["forecast"] = forecast(holder)
    gradients = [p.grad for p in holder.parameters()]

    def give_back() -> None:  # some optimizers consume the gradients
        for p, gradient in zip(holder.parameters(), gradients, strict=True):
            p.grad = gradient

    times = interleaved(steps, device, rounds, 6 if device == "cpu" else 2, give_back)
    of_plain = ratio(times, "forecast", "plain" if normal else "fused")
    return {
        "fused ms": round(1e3 * statistics.median(times["fused"]), 3),
        "plain / fused": ratio(times, "plain", "fused") if normal else None,
        "forecast / fused": ratio(times, "forecast", "fused"),
        "forecast / plain": of_plain,
        "rounds": len(times["fused"]),
    }


def measure_memory(list_name: str, row: str, which: str, device: str) -> float:
    """Peak above parameters and gradients, in multiples of the parameters."""
    holder = holder_of(list_name, device)
    size = sum(p.numel() * p.element_size() for p in holder.parameters())
    normal, forecast, _ = ROWS[row]
    make = normal if which == "plain" else forecast
    warm = plain(ADAMW, Holder([nn.Parameter(torch.zeros(2, device=device))]))
    warm()

    def peak() -> int:
        if device == "cuda":
            return torch.cuda.max_memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # making the gradients took more for a moment
    before = peak()
    step = (make or partial(plain, ADAMW, **FUSED))(holder)
    for _ in range(3):
        step()
    return round((peak() - before) / size, 3)


def copy_rate(device: str) -> float:
    """GB/s, read and written, of a plain copy that no cache holds."""
    source = torch.ones(50_000_000, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(8)]
    return round(2 * source.numel() * 4 / statistics.median(times[2:]) / 1e9, 2)


# --- whole training steps ------------------------------------------------------------------------


def training(name: str, device: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A network, and its loss on one batch."""
    torch.manual_seed(0)
    if name.startswith("ResNet-34"):
        from weightcast_lab.tasks.networks.cifar import build_network

        images, labels = torch.randn(64, 3, 32, 32).to(device), torch.randint(10, (64,)).to(device)
        network = build_network("resnet34").to(device)
        return network, lambda m: nn.functional.cross_entropy(m(images), labels)
    if name.startswith("LSTM"):
        from weightcast_lab.tasks.networks.lstm import LSTMLanguageModel, next_token_loss

        tokens = torch.randint(10_000, (36, 20)).to(device)
        model = LSTMLanguageModel(10_000, 650, 1, 0.5).to(device)
        return model, lambda m: next_token_loss(m(tokens[:-1])[0], tokens[1:])
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 4)
    model = nn.Sequential(nn.Embedding(1000, 256), encoder, nn.Linear(256, 1000)).to(device)
    words = torch.randint(1000, (16, 128)).to(device)
    return model, lambda m: nn.functional.cross_entropy(m(words).flatten(0, 1), words.flatten())


def measure_training(name: str, device: str, rounds: int) -> dict[str, Any]:
    """Steps of the same network: plain, attached, and with the forecast in the step."""
    steps: dict[str, Step] = {}
    for way in ("plain", "attached", "in step"):
        model, loss_of = training(name, device)
        if way == "in step":
            optimizer: Any = weightcast.AdamW(model.parameters(), steps=2, in_step=True)
        else:
            optimizer = ADAMW(model.parameters(), fused=True)
        if way != "plain":
            weightcast.attach(model, optimizer)

        def step(model: Any = model, loss_of: Any = loss_of, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()

        steps[way] = step
    times = interleaved(steps, device, rounds, 40 if device == "cpu" else 10)
    return {
        "plain ms": round(1e3 * statistics.median(times["plain"]), 2),
        "attached / plain": ratio(times, "attached", "plain"),
        "in step / plain": ratio(times, "in step", "plain"),
        "rounds": len(times["plain"]),
    }


# --- all of it -----------------------------------------------------------------------------------


def in_a_process(what: list[str], threads: int, device: str) -> Any:
    """The result of one measurement, or why there is none."""
    command = [sys.executable, __file__, "--device", device, "--threads", str(threads), "--one"]
    done = subprocess.run([*command, *what], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def one(what: list[str], device: str, rounds: int) -> Any:
    """What `in_a_process` asked for."""
    kind, *names = what
    if kind == "step":
        return measure_step(*names, device=device, rounds=rounds)
    if kind == "memory":
        return measure_memory(*names, device=device)
    if kind == "training":
        return measure_training(*names, device=device, rounds=rounds)
    return copy_rate(device)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for; what `--out` holds already stays."""
    device = arguments.device
    found: dict[str, Any] = {"steps": {}, "memory": {}, "training": {}, "copy GB/s": {}}
    if arguments.out and arguments.out.exists():
        found = json.loads(arguments.out.read_bytes())
    found["environment"] = environment(device) | {"system": platform.system()}
    rows = [row for row in ROWS if available(ROWS[row][2])]

    def keep(section: str, keys: list[str], value: Any) -> None:
        level = found[section]
        for key in keys[:-1]:
            level = level.setdefault(key, {})
        level[keys[-1]] = value
        print(" | ".join([section, *keys]), value, flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_bytes(to_json(found))

    for threads in arguments.threads:
        keep("copy GB/s", [str(threads)], in_a_process(["copy"], threads, device))
        for name in arguments.trainings:
            result = in_a_process(["training", name], threads, device)
            keep("training", [str(threads), name], result)
        for name in arguments.lists:
            for row in LARGE_ROWS if device == "cpu" and name == "GPT-2 medium" else rows:
                if arguments.rows and row not in arguments.rows:
                    continue
                result = in_a_process(["step", name, row], threads, device)
                keep("steps", [str(threads), name, row], result)
    for row in rows if arguments.memory else ():
        values = {
            which: in_a_process(["memory", "25M in one", row, which], 1, device)
            for which, make in zip(("plain", "forecast"), ROWS[row], strict=False)
            if make is not None or which == "plain"
        }
        keep("memory", [row], values)
    return found


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the measurements here as JSON")
    parser.add_argument("--page", type=Path, help="write the tables here")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--lists", nargs="*", default=list(LISTS), choices=list(LISTS))
    parser.add_argument("--rows", nargs="*", default=[], choices=list(ROWS))
    parser.add_argument("--trainings", nargs="*", default=list(TRAININGS))
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--one", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        torch.set_num_threads(arguments.threads[0])
        print(json.dumps(one(arguments.one, arguments.device, arguments.rounds)))
        return
    found = measure(arguments)
    if arguments.page:
        kept = Path(__file__).with_name("results").glob("step-cost*.json")
        others = [json.loads(k.read_bytes()) for k in kept]
        arguments.page.write_text(page(found, *(o for o in others if machine(o) != machine(found))))


if __name__ == "__main__":
    main()
