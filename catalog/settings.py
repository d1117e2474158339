"""The paths of the catalog and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from catalog.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """The paths of one catalog; `catalog_url` is a SQLAlchemy URL of SQLite or PostgreSQL.

    `rules_file` is a table of rules for engines that is named, in place of that of the data folder.
    """

    catalog_url: str
    data: Path
    rules_file: Path | None = None

    @classmethod
    def make(cls, *, data: Path, catalog_url: str | None = None, rules_file: Path | None = None) -> Settings:
        """The settings for a data folder; without a URL, the catalog is `catalog.db` in that folder.

        Raises UsageError for a path that is not Unicode, which no URL can name.
        """
        return cls(catalog_url or sqlite_url(data / "catalog.db"), data, rules_file)

    @property
    def blobs(self) -> Path:
        """The folder of content-addressed files."""
        return self.data / "blobs"

    @property
    def index(self) -> Path:
        """The folder of the vector indexes, which can be made again from the catalog."""
        return self.data / "index"

    @property
    def gradients(self) -> Path:
        """The folder of the gradients of tasks that were computed, which can be made again."""
        return self.data / "gradients"

    @property
    def bases(self) -> Path:
        """The folder of base models that are kept here."""
        return self.data / "bases"

    @property
    def engines(self) -> Path | None:
        """The table of rules for engines in place of the program's: the named one, or that of the data folder
        if it has one; None for the program's own.
        """
        own = self.data / "engines.toml"
        try:
            has_own = own.exists()
        except OSError:  # a closed folder: the catalog in it has its own sentence
            has_own = False
        return self.rules_file or (own if has_own else None)

    @property
    def pools(self) -> Path:
        """The folder of the manifests of pools."""
        return self.data / "pools"


def sqlite_url(file: Path) -> str:
    """The URL of a SQLite database, for any characters in its path; raises UsageError.

    A path that SQLite itself would take for an address (`file:…`) is written so that it does not.
    """
    path = f"./{file}" if str(file).startswith("file:") else str(file)
    try:
        return f"sqlite:///{quote(path)}"
    except UnicodeEncodeError:
        raise UsageError(f"the path {path!r} is not Unicode: choose another data folder") from None
