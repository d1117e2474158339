"""Writes a migration from the difference between catalog/database/schema.py and the newest one.

.venv/bin/python -m tools.migration 0006 "what changes"

Read the file that it names and correct it: Alembic does not see everything, such as a renamed column.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from alembic import command

from catalog.database import config, make_engine, upgrade


def write_migration(revision: str, message: str) -> None:
    """Writes migrations/versions/REVISION_….py against an empty catalog of the newest schema, formatted."""
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(f"sqlite:///{Path(folder) / 'catalog.db'}")
        upgrade(engine)
        with engine.begin() as connection:
            command.revision(config(connection), message, autogenerate=True, rev_id=revision)
        engine.dispose()
    for step in (["check", "-q", "--fix"], ["format", "-q"]):
        subprocess.run([Path(sys.executable).with_name("ruff"), *step, "migrations"], check=True)


if __name__ == "__main__":
    write_migration(*sys.argv[1:])
