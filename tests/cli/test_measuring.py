"""`select --by gradient` and `--by racing`: a base model is asked which adapters fit a task."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from catalog.adapters import parse_config
from catalog.fingerprints import fingerprint
from merging.learning import direction, exact_scores
from merging.members import load_member
from merging.model import first_examples, read_task
from merging.model.base import kept_name
from tests.hubs import card, make_repo
from tests.localhub import FaultHub
from tests.merging.test_evaluate import ROWS, tiny_adapter
from tests.merging.tiny import NAME, save_base, tiny_base, write_task

Program = Callable[..., Result]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
OWNERS = ("ann/one", "bob/two", "cat/three", "dan/four")


@pytest.fixture
def place(tmp_path: Path, data: Path, run: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A crawled Hub of four adapters of the kept base, and a task."""
    save_base(tiny_base(), data / "bases" / kept_name(NAME))
    write_task(tmp_path / "tasks" / "parity", ROWS)
    for number, name in enumerate(OWNERS):
        folder = tmp_path / "adapters" / name.replace("/", "--")
        tiny_adapter(folder, number, size=0.2)
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "README.md"}
        files["README.md"] = card(f"Made by {name}.\n", base_model=NAME, license="mit").encode()
        make_repo(tmp_path / "hub", name, files, {})
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        crawled = run("-q", "crawl", "--any-base", "--weights", "keep")
        assert crawled.exit_code == 0, crawled.output
        yield tmp_path


def test_by_gradient_is_the_cosine_of_two_sketches(
    run: Program, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--by", "gradient", "--base", NAME, "--task", "parity", "--tasks", str(place / "tasks")]
    result = run("select", "slope", *words, "--samples", "12", "-k", "4", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    task = read_task(place / "tasks" / "parity")
    requested, other_items = direction(tiny_base(), task, first_examples(task, 12))
    assert len(other_items) == 0
    assert document["chosen"]["kind"] == "output"
    expected = {}
    for name in OWNERS:
        folder = place / "adapters" / name.replace("/", "--")
        config = parse_config((folder / "adapter_config.json").read_bytes())
        sketch = fingerprint(folder / "adapter_model.safetensors", config).output
        expected[name] = float(requested @ sketch / np.linalg.norm(requested) / np.linalg.norm(sketch))
    assert {member["repository"]: member["score"] for member in document["members"]} == pytest.approx(
        expected, abs=1e-4
    )
    scores = [member["score"] for member in document["members"]]
    assert scores == sorted(scores, reverse=True)
    assert document["chosen"]["task"] == "parity"
    assert document["chosen"]["task_digest"] == task.digest
    assert document["chosen"]["samples"] == 12
    # What was computed is kept: the second selection takes no pass of the model.
    monkeypatch.setattr("merging.learning.gradients.backward", None)
    again = run("select", "slope", *words, "--samples", "12", "-k", "4", "--replace", "--json")
    assert json.loads(again.stdout)["digest"] == document["digest"]


def test_by_racing_keeps_to_its_budget_and_says_what_it_measured(
    run: Program, place: Path, data: Path
) -> None:
    words = ["--by", "racing", "--base", NAME, "--task", str(place / "tasks" / "parity"), "-k", "2"]
    result = run("select", "race", *words, "--budget", "60", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert len(document["members"]) == 2
    assert document["chosen"]["budget"] == 60
    assert all("measured" in member["why"] or "sample" in member["why"] for member in document["members"])
    assert not list(data.glob(".measured-*"))
    again = run("select", "race", *words, "--budget", "60", "--replace", "--json")
    assert json.loads(again.stdout)["digest"] == document["digest"]


def test_kept_files_are_not_needed(run: Program, place: Path, data: Path) -> None:
    shutil.rmtree(data / "blobs")
    words = ["--by", "racing", "--base", NAME, "--task", str(place / "tasks" / "parity"), "-k", "1"]
    assert run("select", "race", *words, "--budget", "40", "--json").exit_code == 0


def test_a_model_must_be_named(run: Program, place: Path) -> None:
    for by in ("gradient", "racing"):
        task = str(place / "tasks" / "parity")
        result = run("select", "one", "--by", by, "--task", task, "--budget", "40")
        assert result.exit_code != 0
        assert "give it by --base" in result.stderr
    result = run("select", "one", "--by", "gradient", "--base", NAME, "--task", "nowhere")
    assert "Task nowhere not found" in result.stderr


def test_exact_orders_the_best_by_their_weights(run: Program, place: Path) -> None:
    write_task(place / "tasks" / "other", [(text[::-1], answer) for text, answer in ROWS], group="strange")
    words = [
        "--by",
        "gradient",
        "--base",
        NAME,
        "--task",
        "parity",
        "--tasks",
        str(place / "tasks"),
        "--exact",
    ]
    result = run("select", "slope", *words, "--samples", "12", "-k", "4", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    tasks = [read_task(place / "tasks" / name) for name in ("parity", "other")]
    members = [load_member(place / "adapters" / name.replace("/", "--"), name=name) for name in OWNERS]
    samples = [first_examples(task, 12) for task in tasks]
    assert document["chosen"]["beside"] == [f"other {tasks[1].digest}"]
    scores = exact_scores(tiny_base(), tasks[0], samples[0], members, [(tasks[1], samples[1])])
    expected = dict(zip(OWNERS, scores, strict=True))
    assert {member["repository"]: member["score"] for member in document["members"]} == pytest.approx(
        expected, abs=1e-4
    )
    assert [member["repository"] for member in document["members"]] == sorted(
        OWNERS, key=lambda name: -expected[name]
    )


@pytest.mark.parametrize("way", [("gradient", "--samples", "9"), ("racing", "--budget", "20")])
def test_long_examples_and_dates_stand_in_the_manifest(
    run: Program, place: Path, way: tuple[str, ...]
) -> None:
    write_task(place / "tasks" / "long", [*ROWS[:8], ("z" * 600, "yes")])
    words = ["--by", *way, "--base", NAME, "--task", str(place / "tasks" / "long"), "-k", "2", "--dry-run"]
    assert "--too-long skip" in run("select", "one", *words).stderr
    result = run("select", "one", *words, "--too-long", "skip", "--json")
    if way[0] == "gradient":
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["chosen"]["left_out"] == 1
        assert "date" not in json.loads(result.stdout)["chosen"]
    assert "longer than the model reads, left out: 1" in result.stderr
