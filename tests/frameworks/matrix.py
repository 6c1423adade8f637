"""Draws docs/compatibility.md from results/compatibility.json (`python -m` this module)."""

import json
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
RESULTS, PAGE = ROOT / "results" / "compatibility.json", ROOT / "docs" / "compatibility.md"


def page(results: dict) -> str:
    """One table of all frameworks, then what needs more than `attach`, or is refused."""
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    cells = [cell for features in results["cells"].values() for cell in features.values()]
    where = "on CPUs, " if any(cell["outcome"] == "skipped" for cell in cells) else ""
    lines = [
        "# Compatibility",
        "",
        "Every feature named here is a test, or several, in",
        "`tests/frameworks`: they train with weight prediction and compare the",
        "final weights with Algorithm 1 written out by hand, and evaluation and checkpoints with",
        "the true weights. [Recipes](recipes.md) has the loops.",
        "",
        "| framework | works with `attach` alone | works, with care | refused |",
        "| --- | --- | --- | --- |",
    ]
    cares = []
    for framework, features in results["cells"].items():
        columns: dict[str, list[str]] = {"alone": [], "care": [], "refused": []}
        for feature, cell in features.items():
            if cell["outcome"] == "skipped":
                cares.append((framework, feature, "its test waits for a GPU"))
                columns["care"].append(feature)
            elif cell["support"] == "refused":
                cares.append((framework, feature, f"refused: “{cell['sentence']}”"))
                columns["refused"].append(feature)
            elif cell["support"] == "attach":
                columns["alone"].append(feature)
            else:
                cares.append((framework, feature, cell["support"]))
                columns["care"].append(feature)
        texts = ["; ".join(column) or "–" for column in columns.values()]
        lines.append(f"| **{framework}** | {' | '.join(texts)} |")
    lines += ["", "## What needs care, and what is refused", ""]
    framework = None
    for name, feature, how in cares:
        if name != framework:
            lines += ["", f"**{name}**", ""] if framework else [f"**{name}**", ""]
            framework = name
        lines.append(f"- {feature}: {how}")
    lines += ["", f"Measured {where}with {versions}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(json.loads(RESULTS.read_text())))
