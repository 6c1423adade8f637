"""The house rules, held by tools: lint, format, types, doctests, generated pages."""

import ast
import doctest
import graphlib
import importlib
import importlib.metadata
import json
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weightcast
from tests.frameworks import matrix
from weightcast_lab.kinds import insert
from weightcast_lab.report.markdown import fill_document
from weightcast_lab.results.loading import load_results

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "src" / "weightcast"


@pytest.mark.parametrize(
    "command",
    [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]],
    ids=" ".join,
)
def test_static_checks(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module", [name for _, name, _ in pkgutil.walk_packages([str(LIBRARY)], "weightcast.")]
)
def test_documented_examples_run(module: str) -> None:
    # not every machine can have every back-end, nor every framework
    if module.startswith(("weightcast.kernels.", "weightcast.callbacks.")):
        pytest.importorskip(module, exc_type=ImportError)
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_the_examples_are_there() -> None:
    assert "tests/test_quality.py" in (ROOT / ".pre-commit-config.yaml").read_text()
    for function in (weightcast.attach, weightcast.register_rule):
        assert ">>>" in function.__doc__


def test_no_file_is_above_300_lines() -> None:
    files = [path for folder in ("src", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name for name, size in sizes.items() if size > 300} == set()


def imports_of(path: Path) -> set[str]:
    """The modules of the project that a file imports, whenever it does."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else node.module)
    return found & MODULES.keys()


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in (ROOT / "src").rglob("*.py")}


def test_the_imports_have_no_circle() -> None:
    graph = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    # a kernel names the package that it is in, which loads it by name when it is wanted
    assert graph["weightcast.kernels"] == {"weightcast.kernels.operands", "weightcast.tensors"}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_a_room_knows_only_what_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contracts of pyproject.toml."""
    linter = pytest.importorskip("importlinter.cli")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "src")
    assert linter.lint_imports(no_cache=True) == 0


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=name_of)
def test_a_private_member_is_touched_in_its_own_file_alone(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own, touched, torchs = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            touched.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("weightcast"):
            touched |= {alias.name for alias in node.names if alias.name.startswith("_")}
    torchs = {
        "_version", "_C", "_disable_dynamo", "_foreach_utils", "_optimizer_step_pre_hooks",
        "_get_fused_kernels_supported_devices", "_current_graph_task_id", "_utils", "_fields_",
        "_getframe", "_neg_view", "_is_zerotensor", "_current_autograd_node", "_sequence_nr",
    }  # fmt: skip
    foreign = touched - own - torchs
    assert {n for n in foreign if not n.startswith(("__", "_foreach_"))} == set()


def test_a_rule_is_at_most_a_dozen_lines() -> None:
    source = (LIBRARY / "displacement" / "rules.py").read_text()
    rules = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any("register_rule" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert len(rules) >= 6
    for rule in rules:
        assert rule.end_lineno - rule.lineno + 1 <= 12, rule.name


OPTIONAL = {  # what a file needs that is imported only when asked for
    "kernels/triton.py": {"triton"},
    "callbacks/lightning.py": {"lightning", "pytorch_lightning"},
    "callbacks/skorch.py": {"skorch"},
    "callbacks/transformers.py": {"transformers"},
}


def test_the_library_needs_torch_alone() -> None:
    for path in LIBRARY.rglob("*.py"):
        imported = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
        optional = OPTIONAL.get(path.relative_to(LIBRARY).as_posix(), set())
        assert imported - sys.stdlib_module_names <= {"torch", "weightcast"} | optional, path


def test_the_version_is_that_of_the_installed_package() -> None:
    assert weightcast.__version__ == importlib.metadata.version("weightcast")


def test_importing_is_cheap() -> None:
    """torch._dynamo takes over a second to import: not before an optimizer needs it anyway."""
    code = "import sys, weightcast; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.results
@pytest.mark.parametrize(
    ("document", "results", "brief"),
    [
        ("docs/results.md", "results/study", True),
        ("docs/tables.md", "results/study", False),
        ("docs/tables.md", "results/digits", False),
        ("docs/laboratory.md", "results/small_text", False),
        ("docs/tables.md", "results/foresight", False),
        ("docs/delays.md", "results/delay", True),
        ("docs/answers.md", "results/trials", False),
        ("docs/reproduction.md", "results/desk", False),
        ("docs/reproduction.md", "results/paper", False),
    ],
)
def test_printed_numbers_come_from_committed_results(
    tmp_path: Path, document: str, results: str, brief: bool
) -> None:
    """What `weightcast report RESULTS --into DOCUMENT` writes is what stands there."""
    copy = tmp_path / "copy.md"
    copy.write_text((ROOT / document).read_text())
    insert(copy, results, load_results(ROOT / results / "results.json"), brief=brief)
    assert copy.read_text() == (ROOT / document).read_text()
    assert re.search(r"AdamW s=[3D]", copy.read_text())


@pytest.mark.results
def test_the_compatibility_page_comes_from_the_committed_results() -> None:
    """As `python -m tests.frameworks.matrix` writes it; nothing in it is unknown or failed."""
    results = json.loads(matrix.RESULTS.read_text())
    assert matrix.PAGE.read_text() == matrix.page(results)
    cells = [cell for features in results["cells"].values() for cell in features.values()]
    assert {cell["outcome"] for cell in cells} <= {"passed", "skipped"}
    not_run = {f for c in results["cells"].values() for f in c if c[f]["outcome"] == "skipped"}
    assert not_run <= {"CUDA graphs"}  # on the machine without a GPU that wrote it
    assert all(cell.get("sentence") for cell in cells if cell["support"] == "refused")


@pytest.mark.parametrize(
    ("script", "results", "document"),
    [
        ("step_cost_page.py", "step-cost*.json", "benchmarks.md"),
        ("batch_norm.py", "batch-norm.json", "batch-norm.md"),
    ],
)
def test_benchmark_pages_come_from_the_committed_measurements(
    monkeypatch: pytest.MonkeyPatch, script: str, results: str, document: str
) -> None:
    """As the scripts write them with `--page`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = runpy.run_path(str(ROOT / "benchmarks" / script))["page"]
    files = (ROOT / "benchmarks" / "results").glob(results)
    found = [json.loads(file.read_bytes()) for file in files]
    assert found
    assert (ROOT / "docs" / document).read_text() == page(*found)


@pytest.mark.parametrize(
    ("script", "results", "document"),
    [
        ("training_loop.py", "training-loop.json", "laboratory.md"),
        ("muon.py", "muon.json", "recipes.md"),
    ],
)
def test_costs_come_from_the_committed_measurements(
    script: str,
    results: str,
    document: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `python benchmarks/SCRIPT --into` writes them."""
    if script == "muon.py" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has no Muon")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / script))
    found = json.loads((ROOT / "benchmarks" / "results" / results).read_bytes())
    page, copy = ROOT / "docs" / document, tmp_path / "copy.md"
    copy.write_text(page.read_text())
    fill_document(copy, benchmark["NAME"], benchmark["table"](found))
    assert copy.read_text() == page.read_text()


def test_ci_runs_the_readmes_own_test_command() -> None:
    command = re.search(r"```sh\n(.*pytest)\n```", (ROOT / "README.md").read_text()).group(1)
    done = subprocess.run(
        ["bash", ROOT / ".ci" / "run", "--print"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == command


def test_nothing_of_a_machine_is_in_the_project() -> None:
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not files:
        pytest.skip("not a git checkout")
    assert len(files) < 800  # all runs of a folder are one file
    assert not [name for name in files if "/runs/" in name]  # no checkpoint
