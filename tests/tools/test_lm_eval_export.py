"""The command beside an export for lm-evaluation-harness, run by the harness itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.pools.recipes import recipes
from merging.live import calm
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.test_harness import CHOICES
from tests.merging.tiny import save_base, tiny_base
from tests.unit.test_pools import member, pool

pytest.importorskip("lm_eval", reason="the extra harness is not installed")


def test_the_printed_command_evaluates_the_adapter(tmp_path: Path) -> None:
    """Offline, with a task of our own in place of the one named, and a folder that is hard to quote."""
    save_base(tiny_base(), tmp_path / "acme" / "base")
    row = member(subfolder="a=b, {c}")
    with calm():
        tiny_adapter(tmp_path / "adapters" / row.folder_name, 3, size=0.2)
    rows = [{"input": f"item {n}", "target": "yes" if n % 3 else "no"} for n in range(6)]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in rows))
    task = CHOICES.replace("NAME", "mine").replace("FILE", str(tmp_path / "tasks" / "rows.jsonl"))
    (tmp_path / "tasks" / "mine.yaml").write_text(task)
    readme = recipes(pool(row), "lm-eval", tmp_path)["README.md"]
    command = readme.split("```\n")[1].replace("\\\n", " ").replace("hellaswag", "mine")
    words = [sys.executable, "-m", *shlex.split(command), "--include_path", "tasks", "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        words, cwd=tmp_path, env=os.environ | offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "results" / row.folder_name).rglob("results_*.json")
    document = json.loads(file.read_text())
    assert document["results"]["mine"]["acc,none"] in {n / 6 for n in range(7)}
    assert document["config"]["model_args"]["peft"] == f"adapters/{row.folder_name}"
