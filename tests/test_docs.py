"""README and docs: their code runs, their links lead somewhere, their drawings are true."""

import re
import runpy
import socket
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
]
DRAWINGS = ROOT / "docs" / "drawings"
FRAMEWORKS = ("lightning", "accelerate", "transformers", "skorch")
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8)

pytestmark = [  # the frameworks' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("error::weightcast.PredictionWarning"),
]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What torchrun would say to the only process; files that a block writes go to a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("page", "number"),
    [
        pytest.param(page, number, id=f"{page.name}-{number}")
        for page in PAGES
        for number in range(len(blocks(page)))
    ],
)
@pytest.mark.usefixtures("one_process")
def test_code_in_the_docs_runs(page: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block after the first of its page, which may set things up."""
    first, block = blocks(page)[0], blocks(page)[number]
    for framework in FRAMEWORKS:
        if f"import {framework}" in block:
            pytest.importorskip(framework)
    if "process_group" not in block:  # a trainer would start one
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)
    if "fully_shard" in block and OLD:
        pytest.skip("FSDP2 needs an accelerator before torch 2.8")
    if "optim.Muon" in block and not hasattr(torch.optim, "Muon"):
        pytest.skip("Muon came with torch 2.9")
    namespace: dict = {"__name__": "__main__"}
    for code in [first, block] if number else [first]:
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    for link in links:
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        if path.startswith("../results/") and not (ROOT / "results").exists():
            continue  # a source archive, which leaves them out
        target = (page.parent / path).resolve() if path else page
        if target.name in ("contributing.md", "changelog.md"):  # the site makes them of the root's
            target = ROOT / target.name.upper().replace(".MD", ".md")
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_drawings_are_what_their_script_draws() -> None:
    script = runpy.run_path(str(DRAWINGS / "valley.py"))
    drawn = {f"{name}-{scheme}" for name in script["METHODS"] for scheme in script["COLORS"]}
    assert {path.stem for path in DRAWINGS.glob("*.svg")} - OTHERS == drawn
    for name in script["METHODS"]:
        for scheme in script["COLORS"]:
            committed = (DRAWINGS / f"{name}-{scheme}.svg").read_text("utf-8")
            assert committed == script["drawing"](name, scheme)


OTHERS = {f"{name}-{scheme}" for name in ("hero", "gains") for scheme in ("light", "dark")}


def test_the_hero_is_what_its_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be an <img> anywhere: no script, nothing from elsewhere, still where so wanted."""
    monkeypatch.syspath_prepend(DRAWINGS)
    script = runpy.run_path(str(DRAWINGS / "hero.py"))
    for scheme in script["COLORS"]:
        committed = (DRAWINGS / f"hero-{scheme}.svg").read_text("utf-8")
        assert committed == script["drawing"](scheme)
        assert not re.search(r"<script|<foreignObject|<image|@import|url\((?!#)|href=", committed)
        assert "prefers-reduced-motion: reduce" in committed


@pytest.mark.results
def test_the_figure_of_gains_is_what_its_script_draws() -> None:
    script = runpy.run_path(str(DRAWINGS / "gains.py"))
    for scheme in script["COLORS"]:
        committed = (DRAWINGS / f"gains-{scheme}.svg").read_text("utf-8")
        assert committed == script["drawing"](scheme)
        assert committed.count("<circle") == sum(len(rows) for _, rows in script["ROWS"])


def test_the_steps_of_the_hero_are_the_optimizers_own() -> None:
    """Algorithm 1 by hand: θ̂ = θ − 3Δ, the gradient there, and a step of momentum from θ."""
    script = runpy.run_path(str(DRAWINGS / "bend.py"))
    steps, valley, update = script["walk"](), script["Valley"](), torch.zeros(2)
    theta = valley.theta.detach().clone()
    for _ in range(6):
        move = next(steps)
        assert move.theta == pytest.approx(theta.tolist())
        ahead = (theta - script["AHEAD"] * update).requires_grad_()
        assert move.ahead == pytest.approx(ahead.tolist())
        valley.theta.data.copy_(ahead)
        (pull,) = torch.autograd.grad(valley(), valley.theta)
        assert move.pull == pytest.approx((-script["RATE"] * pull).tolist())
        update = script["MOMENTUM"] * update + script["RATE"] * pull
        theta = theta - update
        assert move.after == pytest.approx(theta.tolist())


@pytest.mark.results
def test_numbers_within_sentences_and_the_address_are_what_their_script_writes() -> None:
    """docs/quoted.py; tests/lab/test_published.py computes the numbers another way."""
    script = runpy.run_path(str(ROOT / "docs" / "quoted.py"))
    marked = [page for page in script["PAGES"] if script["MARK"].search(page.read_text("utf-8"))]
    assert ROOT / "README.md" in marked
    for page in marked:
        assert not re.search(r"^\s*<!--=", page.read_text("utf-8"), re.M), "it ends the paragraph"
        assert page.read_text("utf-8") == script["filled"](page.read_text("utf-8"))
    for path in script["WITH_ADDRESS"]:
        assert path.read_text("utf-8") == script["addressed"](path.read_text("utf-8"))
        assert "github.com" in path.read_text("utf-8")


@pytest.mark.results
def test_a_number_that_is_not_shown_is_not_quoted() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "quoted.py"))
    with pytest.raises(ValueError, match="write the sentence again"):
        script["said"]("study/radam/radam-s3/mean/lower")  # its interval holds zero
    with pytest.raises(ValueError, match="write the sentence again"):
        script["said"]("study/radam/radam-s3/-digits/higher")


def test_readme_is_read_in_a_few_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


def test_the_drawn_nesterov_is_nesterov() -> None:
    """R11a: torch's own form, whose weights are the points where gradients are taken."""
    script = runpy.run_path(str(DRAWINGS / "valley.py"))
    drawn = [ahead for _, ahead in script["walk"](*script["METHODS"]["nesterov"])]
    valley = script["Valley"]()
    lr = script["METHODS"]["nesterov"][1](valley).param_groups[0]["lr"]
    optimizer = torch.optim.SGD(valley.parameters(), lr=lr, momentum=0.9, nesterov=True)
    for point in drawn:
        assert valley.theta.tolist() == pytest.approx(point, abs=1e-12)
        optimizer.zero_grad()
        valley().backward()
        optimizer.step()


def test_the_documented_task_is_the_one_that_runs() -> None:
    """examples/own_task.py, which tests/lab/test_plugins.py trains; a page cannot include it."""
    example = (ROOT / "examples" / "own_task.py").read_text("utf-8")
    assert example in blocks(ROOT / "docs" / "laboratory.md")
