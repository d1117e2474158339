"""Code of a wheel runs without what it imports, and leaves no module behind."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tools.engine_check import Outcome, compared, package_of

CODE = """
from wheeled.kernels import run, Base, decorate

@decorate(fast=True)
class Engine(Base):
    pass

def answer():
    return 42 if not run(1)[2] else 0
"""


def test_the_modules_named_run_and_every_other_one_is_empty(tmp_path: Path) -> None:
    wheel = tmp_path / "wheeled-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("wheeled/__init__.py", "raise ImportError('needs a GPU')")
        archive.writestr("wheeled/core.py", CODE)
        archive.writestr("wheeled/kernels.py", "raise ImportError('needs a GPU')")
    with package_of(wheel, "wheeled", ("wheeled.core",)) as root:
        assert importlib.import_module("wheeled.core").answer() == 42
        assert (root / "wheeled" / "core.py").is_file()
    assert not [name for name in sys.modules if name.startswith("wheeled")]
    with pytest.raises(ImportError):
        importlib.import_module("wheeled.core")


def test_an_engine_runs_an_adapter_if_every_product_is_in_place_and_nothing_is_beside_them() -> None:
    wanted = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    assert compared(wanted, wanted, []) == Outcome("runs")
    assert compared(wanted, {"a": torch.ones(2, 2)}, []).reason == "1 of 2 modules are not placed"
    assert compared(wanted, {**wanted, "b": 2 * torch.ones(2, 2)}, []).reason == "products differ by 100%"
    assert compared(wanted, wanted, ["alora"]).kind == "differs"
