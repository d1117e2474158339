"""A stranger's folder that bears the name of one of loradex's packages is named in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loradex.packages import NAMES, check_packages

ROOT = Path(__file__).parents[2]


def run_program(folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loradex", "--version"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_names_are_those_of_the_packages_that_are_installed() -> None:
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests", "tools", "loradex"}
    assert set(NAMES) == packages
    check_packages()


@pytest.mark.parametrize("name", ["cli/__init__.py", "catalog/__init__.py", "migrations.py"])
def test_a_package_that_is_hidden_is_one_sentence(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    # `python -m` puts the working folder before all others.
    result = run_program(tmp_path, str(ROOT))
    hidden = tmp_path / name.removesuffix("/__init__.py")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"Error: {hidden} hides the package {hidden.stem} of loradex, which is in {ROOT}; "
        f"remove {tmp_path} from PYTHONPATH, or work in another folder.\n"
    )


def test_a_folder_without_modules_hides_nothing(tmp_path: Path) -> None:
    for name in NAMES:
        (tmp_path / name).mkdir()
    result = run_program(tmp_path, f"{tmp_path}{os.pathsep}{ROOT}")
    assert result.stderr == ""
    assert result.stdout.startswith("loradex, version ")
