"""Without an extra of the installation, what needs it says so in one sentence, and nothing else is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from catalog.extras import EXTRAS

ROOT = Path(__file__).parents[2]
ADAPTER = str(ROOT / "data" / "sample_hub" / "zoo" / "banking77")
TASK = str(ROOT / "data" / "tasks" / "banking77")
# Each row: the extra, a command that needs it, the exit code. `studies` checks its extra when first imported.
COMMANDS = [
    ("eval", ["evaluate", "--base", "none", "--task", TASK, "--adapter", ADAPTER], 2),
    ("harness", ["evaluate", "--base", "none", "--task", "harness:none", "--adapter", ADAPTER], 2),
    ("plot", ["inspect-merge", ADAPTER, ADAPTER, "--plot", "out.svg"], 2),
    ("postgres", ["--catalog", "postgresql://localhost/none", "status"], 1),
    ("study", ["study", "list"], 2),
    ("ray", ["study", "run", "small", "-o", "out", "--ray"], 2),
    ("ray", ["crawl", "worker", "--ray", "2"], 2),
    ("serve", ["hub", "serve", "."], 2),
    ("serve", ["demo"], 2),
    ("table", ["adapters", "--parquet", "out.parquet"], 2),
]
# One process for all: the modules of an extra are hidden for its command and are there again afterwards.
PROBE = """
import json, sys
from click.testing import CliRunner
from catalog.extras import EXTRAS
from cli.main import loradex
results = []
for extra, arguments, _ in json.loads(sys.argv[1]):
    hidden = {name: sys.modules.get(name) for name in EXTRAS[extra]}
    sys.modules.update(dict.fromkeys(hidden))
    result = CliRunner().invoke(loradex, arguments)
    results.append([result.exit_code, result.stderr])
    for name, module in hidden.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
print(json.dumps(results))
"""


@pytest.mark.slow
def test_a_missing_extra_is_one_sentence_with_the_line_that_installs_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(COMMANDS)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    for (extra, arguments, code), (exit_code, stderr) in zip(COMMANDS, json.loads(done.stdout), strict=True):
        *progress, sentence = stderr.splitlines()
        assert sentence.startswith("Error: "), (arguments, stderr)
        assert sentence.endswith(
            f" requires the extra {extra} ({EXTRAS[extra][0]} is not installed): "
            f"pip install 'loradex[{extra}]'."
        )
        assert len(progress) <= 1, (arguments, stderr)
        assert exit_code == code, arguments
    assert list(tmp_path.iterdir()) == []
    # The metrics of generated text are asked for where a score is made: tests/merging/test_metrics.py.
    assert {extra for extra, _, _ in COMMANDS} == set(EXTRAS) - {"metrics"}


@pytest.mark.parametrize("extra", list(EXTRAS))
def test_the_modules_of_an_extra_are_those_that_it_installs(extra: str) -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = metadata["optional-dependencies"][extra]
    names = {re.split(r"[\[<>=]", line)[0].lower() for line in requirements} - {"loradex"}
    distributions = packages_distributions()
    installed = {distributions[module][0].lower().replace("_", "-") for module in EXTRAS[extra]}
    assert installed == {name.replace("_", "-") for name in names}
    core = {re.split(r"[\[<>=]", line)[0].lower() for line in metadata["dependencies"]}
    assert names & core == set()
