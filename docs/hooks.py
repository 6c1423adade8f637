"""What the site adds to the pages that GitHub shows as they are.

CONTRIBUTING.md, CHANGELOG.md and the committed pictures of results become part of it; formulas
become MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LIGHT = re.compile(r"!\[([^\]]*)\]\(([^)]+)-light\.svg\)(\{[^}]*\})?")
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add what lies outside docs."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text("utf-8")))
    for path in (ROOT / "results").rglob("*"):
        if path.suffix in (".png", ".svg"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links between docs and the rest of the repository lead to where things are on the site."""
    markdown = markdown.replace("](../results/", "](results/").replace("](docs/", "](")
    for name, page in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({page}")
    return LIGHT.sub(_both, markdown)


def _both(found: re.Match[str]) -> str:
    """A picture that is drawn light and dark; the theme shows the one that suits it."""
    text, path, classes = found.groups()
    return "".join(
        f"![{text}]({path}-{scheme}.svg#only-{scheme}){classes or ''}"
        for scheme in ("light", "dark")
    )


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML."""
    return re.sub(
        r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _formula, content, flags=re.S
    )


def _formula(found: re.Match[str]) -> str:
    display = "block" if found[1] == "div" else "inline"
    formula = convert(html.unescape(found[2]), display=display)
    # hats that every font sets where they belong
    return re.sub(
        r'<mover accent="true"><mi>([^<]*)</mi><mo>&#x0005E;</mo></mover>',
        r'<mi style="font-style: italic">\1&#x0302;</mi>',
        formula,
    )
