"""What a step costs with and without the forecast, in time and memory, beside other optimizers.

Every row is a process of its own in which three optimizers take turns on the same parameters and
gradients: torch's fused AdamW, the row's optimizer plain, and the row's with its forecast. So all
meet the same weather, and the numbers are ratios: medians over the rounds. A step without forecast
is `optimizer.step()`; one with it also moves the weights to the forecast, as a training forward
would. Peak memory is that of a further process, above parameters and gradients, in multiples of the
parameters' own. Whole training steps are measured alike.

    python benchmarks/step_cost.py --out benchmarks/results/step-cost.json --page docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import weightcast
from weightcast_lab.environment import environment
from weightcast_lab.files import to_json

Step = Callable[[], Any]


class Holder(nn.Module):
    """Parameters, and nothing to compute with them."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.params = nn.ParameterList(params)


def gpt2_medium() -> list[tuple[int, ...]]:
    """The shapes of GPT-2 medium: 355 million parameters."""
    d = 1024
    block = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,)]
    block += [(4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(50257, d), (1024, d), *(shape for _ in range(24) for shape in block), (d,), (d,)]


def resnet34() -> list[tuple[int, ...]]:
    """The shapes of ResNet-34: 21.8 million parameters."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for channels, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            first = inputs if block == 0 else channels
            shapes += [(channels, first, 3, 3), (channels,), (channels,)]
            shapes += [(channels, channels, 3, 3), (channels,), (channels,)]
            if block == 0 and first != channels:
                shapes += [(channels, first, 1, 1), (channels,), (channels,)]
        inputs = channels
    return [*shapes, (1000, 512), (1000,)]


LISTS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "25M in one": lambda: [(25_000_000,)],
    "ResNet-34": resnet34,
    "1,000 small": lambda: [(42, 50)] * 1000,
    "GPT-2 medium": gpt2_medium,
}


def plain(make: Callable[..., Any], holder: Holder, **options: Any) -> Step:
    """The optimizer's own step."""
    return make(holder.parameters(), **options).step  # type: ignore[no-any-return]


def attached(make: Callable[..., Any], holder: Holder, **options: Any) -> Step:
    """Forecast and step."""
    optimizer = make(holder.parameters(), **options)
    prediction = weightcast.attach(holder, optimizer, 2)

    def step() -> None:
        prediction.predict()
        optimizer.step()

    return step


def own(holder: Holder, **options: Any) -> Step:
    """Forecast and step of `weightcast.AdamW`."""
    optimizer = weightcast.AdamW(holder.parameters(), steps=2, **options)

    def step() -> None:
        optimizer.train()
        optimizer.step()

    return step


def library(name: str, attribute: str) -> Any:
    """An optimizer of another library."""
    return getattr(importlib.import_module(name), attribute)


def available(name: str) -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec(name) is not None


def lookahead(params: Iterable[nn.Parameter]) -> Any:
    """Lookahead around torch's fused AdamW."""
    from pytorch_optimizer import Lookahead

    return Lookahead(torch.optim.AdamW(params, fused=True), k=5, alpha=0.5)


def schedule_free(params: Iterable[nn.Parameter]) -> Any:
    """In the mode in which it trains."""
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(params)
    optimizer.train()
    return optimizer


ADAMW = torch.optim.AdamW
FUSED, FOREACH, SINGLE = {"fused": True}, {"foreach": True}, {"foreach": False, "fused": False}
NADAMW = partial(torch.optim.NAdam, weight_decay=0.01, decoupled_weight_decay=True)
SGD = partial(torch.optim.SGD, lr=1e-3, momentum=0.9)

# name -> (plain, with its forecast, the library it needs)
Maker = Callable[[Holder], Step]
ROWS: dict[str, tuple[Maker | None, Maker | None, str]] = {
    "AdamW, fused": (None, partial(attached, ADAMW, **FUSED), "torch"),
    "AdamW, foreach": (
        partial(plain, ADAMW, **FOREACH),
        partial(attached, ADAMW, **FOREACH),
        "torch",
    ),
    "AdamW, single": (partial(plain, ADAMW, **SINGLE), partial(attached, ADAMW, **SINGLE), "torch"),
    "weightcast.AdamW, lazy": (None, own, "torch"),
    "weightcast.AdamW, recompute": (None, partial(own, backup="recompute"), "torch"),
    "weightcast.AdamW, eager": (None, partial(own, in_step=True), "torch"),
    "NAdamW": (partial(plain, NADAMW), partial(attached, NADAMW), "torch"),
    "RAdam": (partial(plain, torch.optim.RAdam), partial(attached, torch.optim.RAdam), "torch"),
    "RMSprop": (
        partial(plain, torch.optim.RMSprop),
        partial(attached, torch.optim.RMSprop),
        "torch",
    ),
    "SGD with momentum": (partial(plain, SGD), partial(attached, SGD), "torch"),
    "Lion": (
        lambda h: plain(library("pytorch_optimizer", "Lion"), h),
        lambda h: attached(library("pytorch_optimizer", "Lion"), h),
        "pytorch_optimizer",
    ),
    "schedule-free AdamW": (partial(plain, schedule_free), None, "schedulefree"),
    "Lookahead on fused AdamW": (partial(plain, lookahead), None, "pytorch_optimizer"),
    "optimi.AdamW": (lambda h: plain(library("optimi", "AdamW"), h, lr=1e-3), None, "optimi"),
    "heavyball.AdamW": (
        lambda h: plain(library("heavyball", "AdamW"), h, lr=1e-3),
        None,
        "heavyball",
    ),
}
LARGE_ROWS = ("AdamW, fused", "weightcast.AdamW, lazy", "weightcast.AdamW, eager")


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


TRAININGS = (
    "ResNet-34, 64 images of 32x32",
    "LSTM of 650 units, 20 streams of 35 words",
    "Transformer of 4 layers of 256, 16 texts of 128",
)


def measure_training(name: str, device: str, rounds: int) -> dict[str, Any]:
    """Plain, attached and eager steps of copies of the same network."""
    steps: dict[str, Step] = {}
    for way in ("plain", "attached", "eager"):
        model, loss_of = training(name, device)
        if way == "eager":
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
        "eager / plain": ratio(times, "eager", "plain"),
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


def number(value: Any, digits: int = 2) -> str:
    """For a cell."""
    return f"{value:.{digits}f}" if isinstance(value, float | int) else "–"


REMARKS = {
    "cpu": "Milliseconds vary with what else runs on the machine; ratios, by a few hundredths from "
    "process to process, as memory happens to be laid out. One thread seems to wait for reads, "
    "seven words an element with a lazy forecast and four in torch's step: 1.75 times as many.",
    "cuda": "Ten steps are timed together and nothing waits in between, as in a loop: what counts "
    "is the longer of the GPU's time and the host's. The host's, in Python, is the longer where "
    "parameters are many and small (ResNet-34's 110, and the training steps here), and on a busy "
    "host, as the H100's was, also where one tensor is all there is (its noise makes a forecast "
    "look faster than none); the GPU's, where there are many and large ones.",
}


def page(*all_found: dict[str, Any]) -> str:
    """`docs/benchmarks.md`, from the measurements on every machine, CPUs first."""
    about = (__doc__ or "").split("\n\n")[1].replace("\n", " ")
    lines = ["# Benchmarks", "", about]
    for found in sorted(all_found, key=machine):
        lines += part(found)
    return "\n".join(lines) + "\n"


def machine(found: dict[str, Any]) -> tuple[str, str]:
    """Where it was measured: device and hardware."""
    return found["environment"]["device"], found["environment"]["hardware"]


def part(found: dict[str, Any]) -> list[str]:
    """Its section on one machine."""
    e = found["environment"]
    is_cuda = e["device"] == "cuda"
    file, options = "step-cost.json", ""
    if is_cuda:
        model = e["hardware"].removeprefix("NVIDIA ").split()[0].lower()
        file, options = f"step-cost-{model}.json", "--device cuda --threads 1 "
    lines = [
        "",
        f"## On {'an ' + e['hardware'] if is_cuda else 'a CPU'}",
        "",
        f"`python benchmarks/step_cost.py {options}--out benchmarks/results/{file} "
        "--page docs/benchmarks.md`,",
        f"on {e['hardware']}, Python {e['python']}, torch {e['torch']}, float32. "
        + REMARKS[e["device"]],
        "",
        "### Whole training steps",
        "",
        "Plain is torch's fused AdamW; attached is `weightcast.attach` on it; eager is "
        "`weightcast.AdamW(in_step=True)` under `attach`.",
        "",
        "| | threads | plain (ms) | attached / plain | eager / plain |",
        "|---|---:|---:|---:|---:|",
    ]
    for threads, trainings in found["training"].items():
        for name, r in trainings.items():
            cells = (r.get("plain ms"), r.get("attached / plain"), r.get("eager / plain"))
            digits = 1 if is_cuda else 0
            shown = [number(cells[0], digits), *(number(c, 3) for c in cells[1:])]
            lines.append(f"| {name} | {threads} | {' | '.join(shown)} |")
    lines += [
        "",
        "### The step alone",
        "",
        "Multiples of torch's fused AdamW step of the same round; in brackets, with the forecast, "
        "multiples of the same optimizer's own plain step.",
    ]
    for threads, lists in found["steps"].items():
        plural = "" if threads == "1" else "s"
        rate = found["copy GB/s"].get(threads)
        lines += [
            "",
            f"**{threads} thread{plural}.** A copy moves {number(rate, 1)} GB/s here; torch's "
            "fused AdamW, which reads or writes 28 bytes an element, "
            + ", ".join(
                f"{28e-6 * elements(name) / fused_ms(rows):.1f} GB/s ({name}: "
                f"{fused_ms(rows):.{1 if fused_ms(rows) > 5 else 2}f} ms)"
                for name, rows in lists.items()
            )
            + ".",
            "",
            "| optimizer | " + " | ".join(lists) + " |",
            "|---" * (len(lists) + 1) + "|",
        ]
        for row in (row for row in ROWS if any(row in rows for rows in lists.values())):
            if ROWS[row][0] is not None:
                values = (rows.get(row, {}).get("plain / fused") for rows in lists.values())
                lines.append(f"| {row} | {' | '.join(map(number, values))} |")
            if ROWS[row][1] is not None:
                cells = []
                for rows in lists.values():
                    r = rows.get(row, {})
                    bracket = f" ({number(r.get('forecast / plain'))})" if ROWS[row][0] else ""
                    value = number(r.get("forecast / fused"))
                    cells.append("–" if value == "–" else value + bracket)
                name = row if row.startswith("weightcast") else f"{row}, attached"
                lines.append(f"| **{name}** | {' | '.join(cells)} |")
    lines += [
        "",
        "### Peak memory",
        "",
        "Above parameters and gradients, in multiples of the parameters' own size (25 million in "
        "one tensor); AdamW's moments alone are 2.",
        "",
        "| optimizer | plain | with its forecast |",
        "|---|---:|---:|",
    ]
    for row, values in found["memory"].items():
        normal = values.get("plain") if ROWS[row][0] or row == "AdamW, fused" else None
        lines.append(f"| {row} | {number(normal)} | {number(values.get('forecast'))} |")
    return lines


def elements(name: str) -> int:
    """How many numbers a list has."""
    return sum(torch.Size(shape).numel() for shape in LISTS[name]())


def fused_ms(rows: dict[str, Any]) -> float:
    """Median over the rows."""
    return statistics.median(r["fused ms"] for r in rows.values() if "fused ms" in r)


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
