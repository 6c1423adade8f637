"""A report as a list of blocks, whatever it is about and wherever it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Flag, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it takes a while to import, and only figures need it
    from matplotlib.figure import Figure as Drawn

    from weightcast_lab.report.drawing import Theme

Cell = tuple[str, str]
"""A text, and `better`, `worse`, `best` or nothing."""


class Place(Flag):
    """Where a block is shown."""

    TERMINAL = auto()
    MARKDOWN = auto()
    PAGE = auto()


EVERYWHERE = Place.TERMINAL | Place.MARKDOWN | Place.PAGE
WRITTEN = Place.MARKDOWN | Place.PAGE
"""Everywhere but in the terminal, which has less room."""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: Its heading.
        header: Names of the columns.
        rows: The label first.
        lead: What follows the heading.
        caption: What stands below.
        left: How many columns are set to the left.
        narrow: How many columns a terminal has room for, if not all.
        is_detail: Whether the page folds it away; its cells are then not marked in Markdown.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    lead: str = ""
    caption: str = ""
    left: int = 1
    narrow: int | None = None
    is_detail: bool = False
    places: Place = EVERYWHERE


@dataclass(frozen=True)
class Card:
    """A question or a method, what came out, and further lines; `tone` is better or worse."""

    title: str
    verdict: str
    lines: tuple[str, ...]
    tone: str = ""


@dataclass(frozen=True)
class Cards:
    """Verdicts side by side; a list where there is no room for that."""

    title: str
    cards: Sequence[Card]
    caption: str = ""
    places: Place = EVERYWHERE


@dataclass(frozen=True)
class Points:
    """A list of sentences under a heading."""

    title: str
    lines: Sequence[str]
    places: Place = EVERYWHERE


@dataclass(frozen=True)
class Figure:
    """A picture: `draw(theme, columns)` makes it when it is wanted.

    It becomes files of its own, called `key`: a PNG, and an SVG for light and for dark pages.
    """

    key: str
    title: str
    draw: Callable[[Theme, int], Drawn]
    places: Place = Place.PAGE


Block = Table | Cards | Points | Figure


@dataclass(frozen=True)
class Report:
    """All that there is to show of some experiments.

    Attributes:
        command: What was called to compute them, without its options.
        title: What it is about.
        facts: Its size and the machines, in a few words each.
        blocks: What came out, in order.
        notes: What a reader must know to judge the numbers.
        repeat: The whole command.
        configuration: By name.
        files: Further ones, by name.
        latex: The tables for a paper, if it has such.
    """

    command: str
    title: str
    facts: Sequence[str]
    blocks: Sequence[Block]
    notes: Sequence[str]
    repeat: str
    configuration: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    latex: str = ""

    def shown_in(self, place: Place) -> list[Block]:
        """The blocks that are shown there."""
        return [block for block in self.blocks if place in block.places]

    @property
    def is_one_table(self) -> bool:
        """Whether it is written as one table, which then needs no heading."""
        written = self.shown_in(Place.MARKDOWN)
        return len(written) == 1 and isinstance(written[0], Table)


def plain(rows: Sequence[Sequence[str]]) -> list[list[Cell]]:
    """Cells without a verdict."""
    return [[(text, "") for text in row] for row in rows]
