"""`python -m tests.golden [DIR]` records the outputs, by default in tests/golden/recorded.

That is for deliberate changes of a format alone; the difference belongs into the message of the commit.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.golden.session import records, write

RECORDED = Path(__file__).parent / "recorded"


def main() -> None:
    """Runs every command in a folder of its own and writes the records."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else RECORDED).resolve()
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        write(target, dict(records(Path(folder))))


if __name__ == "__main__":
    main()
