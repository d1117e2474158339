"""The command beside an export for lm-evaluation-harness, run by the harness itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from catalog.pools.recipes import recipes
from merging.live import calm
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.test_harness import CHOICES
from tests.merging.tiny import save_base, tiny_base
from tests.unit.test_pools import member, pool

pytest.importorskip("lm_eval", reason="the extra harness is not installed")


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """The program `lm_eval` with the words given, in this process and the test's folder.

    Of tasks it knows those of `--include_path`: its own are 14,000 files, which take ten seconds to read.
    """
    import datasets
    from lm_eval import __main__ as program
    from lm_eval.tasks._index import TaskIndex

    build = TaskIndex.build
    monkeypatch.setattr(
        TaskIndex, "build", staticmethod(lambda paths, **options: build(paths[1:], **options))
    )
    # Its messages would go to the streams of this test in later ones too.
    monkeypatch.setattr(program, "setup_logging", lambda: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # it sets this itself
    monkeypatch.chdir(tmp_path)

    def run(words: list[str]) -> None:
        monkeypatch.setattr("sys.argv", words)
        program.cli_evaluate()

    return run


@pytest.mark.filterwarnings("ignore")
def test_the_printed_command_evaluates_the_adapter(
    tmp_path: Path, lm_eval: Callable[[list[str]], None]
) -> None:
    """With a task of our own in place of the one named, and a folder that is hard to quote."""
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
    words = shlex.split(command)
    assert words[0] == "lm_eval"
    lm_eval([*words, "--include_path", "tasks", "--device", "cpu"])
    (file,) = (tmp_path / "results" / row.folder_name).rglob("results_*.json")
    document = json.loads(file.read_text())
    assert document["results"]["mine"]["acc,none"] in {n / 6 for n in range(7)}
    assert document["config"]["model_args"]["peft"] == f"adapters/{row.folder_name}"
