"""How the code lies in its folders: each package has its public names, and others import those alone."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("catalog", "crawler", "merging", "studies", "loradex", "cli")
STUBS = (stub for room in ROOMS for stub in (ROOT / room).glob("*/__init__.pyi"))
PACKAGES = sorted(".".join(stub.parent.relative_to(ROOT).parts) for stub in STUBS)


def imports(room: str) -> Iterator[tuple[str, str, str]]:
    """(module, from, name) for every `from … import …` below a room."""
    for path in sorted((ROOT / room).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield from ((module, node.module, alias.name) for alias in node.names)


def problems(room: str) -> Iterator[str]:
    """The imports that reach into a package from outside, or take what it does not offer."""
    for module, source, name in imports(room):
        for package in PACKAGES:
            if module.startswith(f"{package}."):
                continue
            if source.startswith(f"{package}."):
                yield f"{module} imports {name} from {source}; import what {package} offers"
            elif source == package and name not in importlib.import_module(package).__all__:
                yield f"{module} imports {name} from {package}, which does not offer it"


@pytest.mark.parametrize("room", ROOMS)
def test_a_package_is_imported_through_its_public_names(room: str) -> None:
    assert list(problems(room)) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_can_be_imported(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__all__
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []


def test_a_class_name_has_one_meaning() -> None:
    modules: dict[str, list[str]] = {}
    for room in (*ROOMS, "tools", "tests"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    modules.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: places for name, places in modules.items() if len(places) > 1} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_texts_spell_license_as_the_field_does(room: str) -> None:
    """The other spelling is a word that is read alone, never a part of a text."""
    # A comment of the database, which would need a migration.
    others = {"licence id of the base model, for instance llama3.1"}
    texts = {
        node.value
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert {text for text in texts - others if "licence" in text.lower() and text != "licence"} == set()
