"""`docs/benchmarks.md`, from what `step_cost.py` has measured.

Every row is a process of its own in which three optimizers take turns on the same parameters and
gradients: torch's fused AdamW, the row's optimizer plain, and the row's with its forecast. So all
meet the same weather, and the numbers are ratios: medians over the rounds. A step without forecast
is `optimizer.step()`; one with it also moves the weights to the forecast, as a training forward
would. Peak memory is that of a further process, above parameters and gradients, in multiples of the
parameters' own. Whole training steps are measured alike.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from step_cost_rows import LISTS, ROWS


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
    about = (__doc__ or "").split("\n\n")[1].strip().replace("\n", " ")
    lines = ["# Benchmarks", "", about]
    for found in sorted(all_found, key=machine):
        lines += host_part(found) if "host" in found else part(found)
    return "\n".join(lines) + "\n"


def machine(found: dict[str, Any]) -> tuple[str, str, bool]:
    """Where it was measured: device and hardware; what the host's part costs is apart."""
    return found["environment"]["device"], found["environment"]["hardware"], "host" in found


def host_part(found: dict[str, Any]) -> list[str]:
    """What `host_cost.py` measured."""
    e = found["environment"]
    lines = [
        "",
        "## The host's part",
        "",
        "`python benchmarks/host_cost.py --out benchmarks/results/step-cost-host.json "
        "--page docs/benchmarks.md`,",
        f"on {e['hardware']}, Python {e['python']}, torch {e['torch']}. Parameters of 8 numbers, "
        "one thread: what remains is the calls, for which small models on a GPU wait. A forward "
        "that computes nothing and a step, in processor time, the least of "
        f"{found['rounds']} rounds, as multiples of torch's `AdamW(foreach=True)`.",
        "",
        "| parameters | torch (µs) | AdamW, attached | weightcast.AdamW, lazy | in step |",
        "|---:|---:|---:|---:|---:|",
    ]
    for count, row in found["host"].items():
        cells = [f"{row['torch µs']:.0f}", *(number(row[k]) for k in ("attach", "lazy", "in step"))]
        lines.append(f"| {int(count):,} | {' | '.join(cells)} |")
    return lines


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
        "Plain is torch's fused AdamW; attached is `weightcast.attach` on it; in step is "
        "`weightcast.AdamW(in_step=True)` under `attach`.",
        "",
        "| | threads | plain (ms) | attached / plain | in step / plain |",
        "|---|---:|---:|---:|---:|",
    ]
    for threads, trainings in found["training"].items():
        for name, r in trainings.items():
            cells = (r.get("plain ms"), r.get("attached / plain"), r.get("in step / plain"))
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
