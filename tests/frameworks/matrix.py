"""Draws docs/compatibility.md from results/compatibility.json (`python -m` this module)."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RESULTS, PAGE = ROOT / "results" / "compatibility.json", ROOT / "docs" / "compatibility.md"


def page(results: dict) -> str:
    """One table per framework; what is refused comes with its sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    cells = [cell for features in results["cells"].values() for cell in features.values()]
    where = "on CPUs, " if any(cell["outcome"] == "skipped" for cell in cells) else ""
    lines = [
        "# Compatibility",
        "",
        "Every line is a test, or several: `pytest -m cell` runs them. They train with weight",
        "prediction and compare the final weights with Algorithm 1 written out by hand, and",
        f"evaluation and checkpoints with the true weights. Measured {where}with {versions}.",
        "",
    ]
    for framework, features in results["cells"].items():
        lines += [f"## {framework}", "", "| feature | works | with |", "| --- | --- | --- |"]
        for feature, cell in features.items():
            refused = cell["support"] == "refused"
            how = f"refused: “{cell['sentence']}”" if refused else cell["support"]
            works = "no" if refused else "yes"
            if cell["outcome"] == "skipped":
                works, how = "not tried", "its test waits for a GPU"
            lines.append(f"| {feature} | {works} | {how} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
