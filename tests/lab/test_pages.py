"""Pages of the documentation whose tables come from data."""

import shutil
from pathlib import Path

import pytest

from weightcast_lab.errors import LabError
from weightcast_lab.pages import PAGES, fill

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted({*PAGES} - {"laws.md"}))  # whose second table takes minutes
def test_the_tables_of_a_page_come_from_the_data(tmp_path, name):
    copy = shutil.copy(DOCS / name, tmp_path / name)
    fill(copy)
    assert copy.read_text() == (DOCS / name).read_text()


def test_a_page_that_lacks_a_table_is_named(tmp_path):
    page = tmp_path / "networks.md"
    page.write_text("# The networks")
    with pytest.raises(LabError, match=r"networks\.md lacks the lines '<!-- begin networks -->'"):
        fill(page)
