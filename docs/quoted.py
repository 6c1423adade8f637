"""Numbers within sentences, from committed results: `python docs/quoted.py` writes them anew.

A sentence of README or docs holds its number between two marks:

    three steps end <!--=trials/nadamw/adamw-s3/long-cosine/lower-->0.5 % [0.1, 0.9]<!--/-->

A mark names a folder of results/, a question, a method, where (`mean`, a workload, or `-` and the
workload that the mean leaves out), and what the sentence says: `lower`, `higher` or `neither`. If
the results do not show that (any more), the sentence has to be written again, and this says so.

Two more: `trials/QUESTION/momentum` is at which momentum the second study answers by now, and
`cost/FILES/COLUMN` the largest cost of a whole training step in those files of benchmarks/results/.

No line begins with a mark: there it would end the paragraph.

The repository's address is written too: pyproject.toml has it, all else repeats it.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from weightcast_lab.report.tables import number
from weightcast_lab.results.loading import Results, load_results
from weightcast_lab.study.answers import Effect
from weightcast_lab.study.answers import answers as first_answers
from weightcast_lab.trials.answers import answers as second_answers
from weightcast_lab.trials.report import AT

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(Path(__file__).parent.glob("*.md"))]
MARK = re.compile(r"<!--=(?P<what>\S+?)-->(?P<said>.*?)<!--/-->", re.S)

WITH_ADDRESS = [
    ROOT / name for name in ("README.md", "pyproject.toml", "mkdocs.yml", "CITATION.cff")
]
OWNED = re.compile(r"(github\.com/|githubusercontent\.com/)[\w.-]+(?=/weightcast\b)")
SITE = re.compile(r"https://[\w-]+(?=\.github\.io/weightcast\b)")


@cache
def results(folder: str) -> list[Results]:
    """Experiments of a folder of results."""
    return list(load_results(ROOT / "results" / folder / "results.json"))


@cache
def found(folder: str) -> dict[str, Any]:
    """A study's answers by their question; the second study's at the best momentum where it is."""
    if folder != "trials":
        return {answer.question.key: answer for answer in first_answers(results(folder))}
    both = sorted(second_answers(results(folder)), key=lambda a: a.at == "best")
    return {answer.question.key: answer for answer in both}


def effect(folder: str, question: str, method: str, where: str) -> Effect:
    """What a method changes there."""
    answer = found(folder)[question]
    rows = [getattr(row, "row", row) for row in answer.rows]
    row = next(row for row in rows if row.name == method)
    if where == "mean":
        return row.overall
    labels = {e["key"]: e.get("series") or e["workload"] for e in results(folder)}
    place = getattr(answer, "tasks", answer.workloads).index(labels[where.removeprefix("-")])
    return row.without[place] if where.startswith("-") else row.effects[place]


def said(mark: str) -> str:
    """What stands for a mark: `2.0 % [1.2, 2.7]`, without a sign.

    Raises:
        ValueError: the results do not show what the sentence says.
    """
    folder, question, *rest = mark.split("/")
    if folder == "cost":
        return _cost(question, rest[0])
    if rest == ["momentum"]:
        return AT[found(folder)[question].at]
    method, where, claim = rest
    one = effect(folder, question, method, where)
    verdicts = {"lower": "better", "higher": "worse", "neither": ""}
    if one.verdict != verdicts[claim] or one.change is None:
        raise ValueError(f"{mark!r}: the results do not show it {claim}: write the sentence again.")
    width, sign = one.change.half_width or 0.0, -1 if claim == "lower" else 1
    middle, *ends = (
        number(100 * sign * math.expm1(one.change.mean + sign * part * width), 1)
        for part in (0, -1, 1)
    )
    sign_of = "+" if claim == "neither" and one.change.mean > 0 else ""
    return f"{sign_of}{middle} % [{', '.join(ends)}]"


def _cost(files: str, column: str) -> str:
    """The largest cost of a training step, in per cent of the plain one."""
    found = [
        training[f"{column.replace('-', ' ')} / plain"]
        for path in (ROOT / "benchmarks" / "results").glob(f"{files}.json")
        for of_threads in json.loads(path.read_text("utf-8")).get("training", {}).values()
        for training in of_threads.values()
    ]
    return f"{number(100 * (max(found) - 1), 1)} %"


def filled(text: str) -> str:
    """The text with every marked number as the results have it."""
    return MARK.sub(lambda m: f"<!--={m['what']}-->{said(m['what'])}<!--/-->", text)


def owner() -> str:
    """Whose repository it is, as pyproject.toml says."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(project["urls"]["Repository"].split("/")[-2])


def addressed(text: str) -> str:
    """The text with that repository's address."""
    name = owner()
    return SITE.sub(f"https://{name.lower()}", OWNED.sub(rf"\g<1>{name}", text))


def main() -> None:
    """Write all pages anew."""
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
    for path in WITH_ADDRESS:
        path.write_text(addressed(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
