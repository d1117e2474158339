"""What is imported before any work is done: `loradex --help` answers at once, as that is next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
MODELS = {"torch", "faiss", "transformers", "sentence_transformers", "peft", "sklearn", "scipy"}
SERVER = {"starlette", "uvicorn"}
LIBRARIES = {
    "sqlalchemy",
    "alembic",
    "huggingface_hub",
    "httpx",
    "httpx2",
    "numpy",
    "rich",
    "safetensors",
    "yaml",
    "tenacity",
    "filelock",
}
PROBE = """
import atexit, sys
atexit.register(lambda: print("imported:", *sorted(sys.modules), file=sys.stderr))
from cli.main import main
main()
"""
EACH = """
import json, sys
from click.testing import CliRunner
from cli.main import COMMANDS, loradex
after = {}
for name in COMMANDS:
    assert CliRunner().invoke(loradex, [name, "--help"]).exit_code == 0, name
    after[name] = sorted({module.split(".")[0] for module in sys.modules})
print(json.dumps(after))
"""


def modules_imported(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout
    last = done.stderr.splitlines()[-1].split()
    assert last[0] == "imported:"
    return {name.split(".")[0] for name in last[1:]}


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_the_program_itself_imports_next_to_nothing(option: str) -> None:
    assert modules_imported(option) & (MODELS | SERVER | LIBRARIES) == set()


@pytest.mark.slow
def test_no_command_imports_models_for_its_help() -> None:
    done = subprocess.run([sys.executable, "-c", EACH], cwd=ROOT, capture_output=True, text=True, check=True)
    after = json.loads(done.stdout)
    assert list(after) == list(COMMANDS)
    # One process for all: what a command imports stays, so that the first in the list is the culprit.
    assert [name for name, modules in after.items() if set(modules) & MODELS] == []
