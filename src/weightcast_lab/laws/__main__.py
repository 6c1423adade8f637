"""`python -m weightcast_lab.laws [docs/laws.md]`."""

from __future__ import annotations

import sys
from pathlib import Path

from weightcast_lab.laws.page import tables
from weightcast_lab.report.markdown import fill_document

for name, table in tables().items():
    fill_document(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/laws.md"), name, table)
