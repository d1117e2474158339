"""Judges the recycling paper's own published tables once more, with an interval for each number.

`python -m tools.published DIR` reads the tables in DIR and writes docs/results/published and what
docs/results/published.md quotes of it; about four minutes of one thread. No model is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from catalog.errors import LoradexError
from merging.members import write_json, write_text
from studies.record import FACTS, RESULTS
from tools import published, study_pages

TITLE = "What the published tables say"
QUESTION = (
    "Do the published scores of 960 adapters bear out that recycling gives little over a new LoRA, "
    "and that the choice of adapters hardly matters?"
)


def results(tables: Path) -> str:
    """A line of JSON for each row of every part."""
    rows = [{**row, "status": "done"} for part in published.PARTS.values() for row in part(tables)]
    return "".join(
        json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Computes the rows and writes the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, metavar="DIR", help="the folder of the published tables")
    tables = parser.parse_args(argv).tables
    folder = study_pages.RESULTS / published.NAME
    try:
        digests = published.digests(tables)
        write_text(folder / RESULTS, results(tables))
    except LoradexError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_json(folder / FACTS, {"study": {"title": TITLE, "question": QUESTION}, "tables": digests})
    study_pages.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
