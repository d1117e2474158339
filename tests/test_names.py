"""What docstrings, comments and documents name by a path of packages exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
PACKAGES = ("catalog", "crawler", "merging", "studies", "cli", "loradex", "migrations", "tools")
NAME = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.\w+)+)`")
# Names of files.
FILES = {"catalog.db"}


def texts() -> list[Path]:
    sources = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted([*sources, *ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def exists(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                # A field of a dataclass without a default.
                return not isinstance(value, ModuleType) and part in getattr(value, "__annotations__", {})
            value = getattr(value, part)
        return True
    return False


def test_names_in_texts_exist() -> None:
    places: dict[str, Path] = {}
    for path in texts():
        for match in NAME.finditer(path.read_text(encoding="utf-8")):
            places.setdefault(match[1], path)
    assert len(places) > 50
    missing = {
        name: path.relative_to(ROOT)
        for name, path in places.items()
        if name not in FILES and not exists(name)
    }
    assert not missing


def test_a_name_that_was_moved_is_found_missing() -> None:
    assert exists("catalog.adapters.weights.module_norms")
    assert not exists("catalog.adapters.weights.module_norm")
    assert not exists("catalog.nothing.module_norms")
