"""Studies carried out: right numbers, nothing done twice, nothing lost, nothing dropped."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

pytest.importorskip("peft")

from catalog.errors import EvaluationError, MergeError, NotFoundError, StorageError, UsageError
from loradex import StudyRequest
from merging.evaluation import likelihoods, measure
from merging.live import LiveStack
from merging.members import load_member
from merging.model import RECYCLING_PAPER, draw, encode, load_base, read_task
from studies.file import read_study
from studies.record import FACTS, RESULTS, read_record
from studies.run import machine, results, run
from studies.steps import KINDS, Job, train
from studies.store import LOG, Step, in_order, pending_steps
from tests.merging.adapters import merge
from tests.merging.tiny import save_base, tiny_base
from tests.studies.grids import keys, make_study, rows_of
from tests.studies.small import TEXT, make_world

# PEFT 0.21 asks a model of transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study carried out without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    outcome = run(*make_study(world, out))
    assert (outcome.failed, outcome.missing) == (0, 0)
    return out


def test_a_study_asks_by_its_protocol_and_says_so(world: Path, tmp_path: Path) -> None:
    text = (
        f"study: tiny\ntitle: Tiny\nbase: {world.parent / 'base'}\nprotocol: recycling-paper\n"
        "tasks: {from: tasks, names: [thirds], train: 4, valid: 2, test: 6}\nadapters: {from: adapters}\n"
        "pools: {best: {by: measured, k: 2}}\nmethods:\n  base: {use: base}\n"
        "  new: {use: train, rank: 2, steps: 1, batch: 2, learning_rate: 1e-2}\n"
        "  recycling: {use: adapt, method: recycling, with: new, steps: 1}\n"
    )
    path = world.parent / "paper.yaml"
    path.write_text(text)
    file, study_grid = make_study(path, tmp_path / "out")
    assert run(file, study_grid).done == 3
    facts = json.loads((tmp_path / "out" / FACTS).read_text())
    assert facts["study"]["protocol"] == "recycling-paper"
    assert facts["tasks"]["thirds"]["metric"] == "exact_match_stripped"
    base, task = load_base(str(world.parent / "base")), read_task(world.parent / "tasks" / "thirds")
    expected = measure(base, task, draw(task, "test", 6), protocol=RECYCLING_PAPER).document()
    rows = {row["method"]: row for row in results(study_grid)}
    assert {name: rows["base"][name] for name in ("value", "loss", "n")} == expected
    (record,) = (tmp_path / "out" / "steps").glob("*/adapter/train.json")
    assert json.loads(record.read_text())["protocol"] == "recycling-paper"
    path.write_text(text.replace("protocol: recycling-paper", "protocol: mine"))
    with pytest.raises(UsageError, match=r"line 4: protocol: mine is not a protocol"):
        read_study(str(path))
    # The project's own protocol leaves no trace, so that records stay the same.
    usual = read_study(str(world)).study.model_dump(mode="json", by_alias=True)
    assert "protocol" not in usual


def test_every_cell_has_its_line_in_the_order_of_the_grid(whole: Path) -> None:
    rows = rows_of(whole)
    # 11 labels, two tasks, two seeds.
    assert len(rows) == 44
    assert [row["seed"] for row in rows] == [0] * 22 + [1] * 22
    assert [row["task"] for row in rows[:22]] == ["halves"] * 11 + ["thirds"] * 11
    assert {row["status"] for row in rows} == {"done"}
    assert all(0 <= row["value"] <= 1 and row["n"] == 6 and row["error"] is None for row in rows)


def test_scores_are_those_of_the_library_asked_directly(world: Path, whole: Path, tmp_path: Path) -> None:
    rows = {(r["task"], r["seed"], r["method"], r["pool"], str(r["settings"])): r for r in rows_of(whole)}
    base = load_base(str(world.parent / "base"))
    task = read_task(world.parent / "tasks" / "thirds")
    questions = draw(task, "test", 6)
    alone = measure(base, task, questions)
    for seed in (0, 1):
        row = rows["thirds", seed, "base", None, "{}"]
        assert (row["value"], row["loss"]) == (alone.value, alone.loss)
    row = rows["thirds", 1, "average", "chance", "{}"]
    members = [load_member(world.parent / "adapters" / name) for name in row["detail"]["members"]]
    assert len(members) == 2
    assert "a0" not in row["detail"]["members"], "an adapter of the task itself is in no pool"
    merge(members, "average", tmp_path / "merged", seed=1, dtype="float32")
    live = LiveStack(base.model, [load_member(tmp_path / "merged")])
    with live.dense(live.scales_of([1.0])):
        result = measure(base, task, questions)
    assert (row["value"], row["loss"]) == (result.value, result.loss)


def test_an_ensemble_is_the_mean_of_probabilities(world: Path, whole: Path) -> None:
    row = next(r for r in rows_of(whole) if (r["task"], r["seed"], r["method"]) == ("halves", 0, "both"))
    base, task = load_base(str(world.parent / "base")), read_task(world.parent / "tasks" / "halves")
    prompts = encode(base.tokenizer, task, draw(task, "test", 6), base.limit)
    parts = []
    for name in row["detail"]["members"]:
        live = LiveStack(base.model, [load_member(world.parent / "adapters" / name)])
        with live.attach():
            live.set_scales(live.scales_of([1.0]))
            parts.append([[math.exp(v) for v in values] for values in likelihoods(base, prompts)])
    hits = 0
    for number, prompt in enumerate(prompts):
        first, second = (item[number] for item in parts)
        share = [a / sum(first) + b / sum(second) for a, b in zip(first, second, strict=True)]
        hits += share.index(max(share)) == prompt.right
    assert row["value"] == hits / 6


def test_what_cells_share_is_made_once(world: Path, tmp_path: Path) -> None:
    steps = list(in_order(make_study(world, tmp_path / "out")[1].steps))
    kinds = [step.kind for step in steps]
    # Two rates, two tasks, two seeds: the method with one rate trains nothing of its own.
    assert kinds.count("train") == 8
    assert kinds.count("gradient") == 4
    # The base does not depend on the seed.
    assert sum(step.kind == "score" and not step.inputs for step in steps) == 2
    place = {step.key: number for number, step in enumerate(steps)}
    assert all(place[item.key] < place[step.key] for step in steps for item in step.inputs.values())


@pytest.fixture(scope="module")
def killed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The results of a study whose process was killed twice, and what `tests.studies.small` wrote."""
    out = tmp_path_factory.mktemp("killed") / "out"
    words = [sys.executable, "-W", "ignore", "-m", "tests.studies.small", str(world), str(out), "9", "40"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out, done.stdout.splitlines()


def test_keys_are_the_same_in_every_process(
    world: Path, killed: tuple[Path, list[str]], tmp_path: Path
) -> None:
    assert killed[1][0] == str(sorted(keys(world, tmp_path / "out").values()))


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("title: A tiny study", "title: Another", set()),
        ("seeds: [0, 1]", "seeds: [0]", set()),
        ("learning_rate: 1e-2}", "learning_rate: 2e-2}", {"one rate"}),
        ("rank: [1, 2]", "rank: [1]", set()),
        ("control: random-each", "control: random-directions", {"average | noise", "recycling | noise"}),
        (
            "{by: gradient, k: 2, samples: 3}",
            "{by: gradient, k: 1, samples: 3}",
            {
                "LEGO | best, rank=1",
                "LEGO | best, rank=2",
                "average | best",
                "both | best",
                "recycling | best",
            },
        ),
    ],
)
def test_a_changed_line_changes_what_depends_on_it_alone(
    world: Path, tmp_path: Path, old: str, new: str, changed: set[str]
) -> None:
    text = world.read_text()
    assert text.count(old) == 1
    other = world.with_name("other.yaml")
    other.write_text(text.replace(old, new))
    before, after = keys(world, tmp_path), keys(other, tmp_path)
    assert {cell[2] for cell in before.keys() & after.keys() if before[cell] != after[cell]} == changed


def test_a_merge_is_made_anew_where_its_method_gives_another_result(world: Path, tmp_path: Path) -> None:
    """The key of a merge has the method's revision beyond the first, and is what it was without one."""
    other = world.with_name("revised.yaml")
    other.write_text(world.read_text().replace("method: average", "method: della"))
    for file, revision in ((world, None), (other, 2)):
        cells = [cell for cell in make_study(file, tmp_path)[1].cells if cell.method == "average"]
        merges = [step for cell in cells for step in cell.step.inputs.values() if step.kind == "merge"]
        assert merges
        assert {step.params.get("revision") for step in merges} == {revision}


def test_methods_and_pools_of_some_seeds(world: Path, tmp_path: Path) -> None:
    text = world.read_text()
    changed = text.replace("chance: {by: random, k: 2}", "chance: {by: random, k: 2, seeds: [1]}")
    changed = changed.replace("base: {use: base}", "base: {use: base, seeds: [0]}")
    assert changed.count("seeds:") == text.count("seeds:") + 2
    path = world.with_name("some.yaml")
    path.write_text(changed)
    every, some = (make_study(item, tmp_path)[1].cells for item in (world, path))
    left = [item for item in every if item.pool != "chance" or item.seed == 1]
    left = [item for item in left if item.method != "base" or item.seed == 0]
    assert [item.step.key for item in some] == [item.step.key for item in left]
    assert len(left) < len(every)


def test_a_changed_adapter_changes_the_pools(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "study.yaml"
    weights = tmp_path / "copy" / "adapters" / "a3" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    before, after = keys(world, tmp_path), keys(path, tmp_path)
    same = {cell[2] for cell in before if before[cell] == after[cell]}
    assert same == {"base", "new LoRA", "one rate"}


def test_a_second_run_does_nothing(world: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "steps").glob("*/*")}
    text = (whole / RESULTS).read_bytes()
    document: list[tuple[int, int]] = []
    run(*make_study(world, whole), progress=lambda done, total: document.append((done, total)))
    assert document == [(document[0][1], document[0][1])]
    assert {path: path.stat().st_mtime_ns for path in (whole / "steps").glob("*/*")} == before
    assert (whole / RESULTS).read_bytes() == text


def test_a_merge_is_made_on_the_threads_of_the_study(world: Path, whole: Path, tmp_path: Path) -> None:
    import torch

    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / LOG).unlink()
    for step in (out / "steps").iterdir():
        if json.loads((step / "step.json").read_text())["kind"] == "merge":
            shutil.rmtree(step)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert run(*make_study(world, out)).missing == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert (out / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()


def test_the_folders_of_a_study_are_absolute(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = make_study(world, Path("out"))[1].place
    folders = [place.folder, place.source, *place.tasks.values(), *place.adapters.values()]
    assert all(folder.is_absolute() for folder in folders)
    assert place.folder == tmp_path / "out"


def test_a_machine_without_an_accelerator_is_told_all_the_same() -> None:
    assert "cores" in machine("cuda")


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    world: Path, whole: Path, killed: tuple[Path, list[str]]
) -> None:
    out, lines = killed
    assert lines[1:] == ["-9 9", "-9 40"]
    outcome = run(*make_study(world, out))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert (out / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
    assert not list((out / "steps").glob(".*"))


def test_a_fresh_folder_with_the_log_of_a_run_does_nothing_again(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(whole / LOG, out)
    outcome = run(*make_study(world, out))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert not list((out / "steps").iterdir())
    assert (out / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
    lines = [json.loads(line) for line in (whole / LOG).read_text().splitlines()]
    for row in lines:
        if "score" in row["result"]:
            row["result"]["score"] |= {"status": "failed", "task": "another"}
    (out / LOG).write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert [row for row in results(make_study(world, out)[1]) if row["status"] != "done"] == []
    shutil.copy(whole / LOG, out)
    assert (out / LOG).read_bytes() == (whole / LOG).read_bytes()


def test_a_log_without_a_cell_goes_on_with_the_files_that_it_needs_alone(
    world: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    _, study_grid = make_study(world, out)
    # An adaptive merge beside the best of two trainings, of which one is made again.
    cell = next(cell for cell in study_grid.cells if "target" in cell.step.inputs)
    pick = cell.step.inputs["target"]
    lines = [json.loads(line) for line in (whole / LOG).read_text().splitlines()]
    chosen = next(line for line in lines if line["step"] == pick.key)["result"]["adapter"].split("/")[0]
    (out / LOG).write_text("".join(json.dumps(row) + "\n" for row in lines if row["step"] != cell.step.key))
    assert pick.kind == "pick"
    assert [step.key for step in pending_steps(study_grid.place, study_grid.steps)] == [chosen, cell.step.key]
    outcome = run(*make_study(world, out))
    assert (outcome.failed, outcome.missing) == (0, 0)
    assert {path.name for path in (out / "steps").iterdir()} == {chosen, cell.step.key}
    assert (out / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
    (out / LOG).write_text("{}\n")
    with pytest.raises(StorageError, match="line 1 is not the result of a step"):
        run(*make_study(world, out))


def test_an_interrupted_run_leaves_results_that_can_be_read(world: Path, tmp_path: Path) -> None:
    def progress(done: int, _total: int) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    file, grid = make_study(world, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(file, grid, progress=progress)
    facts, rows = read_record(tmp_path / "out")
    assert facts["steps"]["done"] == 5
    states = {row["status"] for row in rows}
    assert states == {"done", "missing"}
    assert all(row["value"] is None for row in rows if row["status"] == "missing")


def test_a_cell_that_fails_is_kept_as_failed_and_tried_again(world: Path, tmp_path: Path) -> None:
    text = TEXT.format(base=world.parent / "base")
    # Rates that overflow: with both the sweep fails, and with it what needs the new LoRA.
    path = world.with_name("failing.yaml")
    path.write_text(text.replace("[1e-3, 1e-2]", "[1e30, 1e35]").replace("seeds: [0, 1]", "seeds: [0]"))
    out = tmp_path / "out"
    outcome = run(*make_study(path, out))
    rows = rows_of(out)
    failed = {(row["method"], row["pool"]) for row in rows if row["status"] == "failed"}
    assert failed == {("new LoRA", None), ("recycling", "best"), ("recycling", "noise")}
    assert (outcome.done, outcome.failed, outcome.missing) == (16, 6, 0)
    assert outcome.errors == ("The loss became infinite with every learning rate; choose lower ones.",)
    assert all(row["error"] == outcome.errors[0] for row in rows if row["status"] == "failed")
    path.write_text(text.replace("seeds: [0, 1]", "seeds: [0]"))
    assert run(*make_study(path, out)).failed == 0


def test_a_training_that_failed_for_once_leaves_no_choice_without_it(
    world: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(job: Job) -> dict[str, Any]:
        if job.params["learning_rate"] == 1e-2:
            raise EvaluationError("The memory is full.")
        return train(job)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setitem(KINDS, "train", broken)
        outcome = run(*make_study(world, out))
    assert outcome.errors == ("The memory is full.",)
    assert {row["method"] for row in rows_of(out) if row["status"] == "failed"} == {
        *("new LoRA", "one rate", "recycling")
    }
    assert run(*make_study(world, out)).failed == 0
    assert (out / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()


def test_runs_keep_out_of_each_others_way(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "steps").mkdir()
    with FileLock(out / ".lock"), pytest.raises(UsageError, match="Another run is at work"):
        run(*make_study(world, out))
    with pytest.raises(UsageError, match="is a file"):
        run(*make_study(world, world))
    (tmp_path / "odd" / "steps").mkdir(parents=True)
    (tmp_path / "odd" / ".lock").mkdir()
    with pytest.raises(StorageError, match="odd cannot be written"):
        run(*make_study(world, tmp_path / "odd"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        run(*make_study(world, other))
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_folder_of_other_steps_is_refused_and_nothing_in_it_is_removed(world: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    files = [other / "steps" / name for name in ("1.txt", ".git/config")] + [other / "failed" / "mine.json"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    file, study_grid = make_study(world, other)
    with pytest.raises(UsageError, match="contains other files"):
        run(file, study_grid)
    with pytest.raises(UsageError, match="contains other files"):
        StudyRequest(world, other).plan()
    study_grid.place.fail(study_grid.steps[0], EvaluationError("No\x00."))
    assert study_grid.place.error(study_grid.steps[0]) == "No\ufffd."
    study_grid.place.forget_failures()
    assert study_grid.place.error(study_grid.steps[0]) is None
    assert [path.read_text() for path in files] == ["mine"] * 3


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="run_study"):
        read_record(tmp_path)


def test_a_name_that_is_not_there(world: Path, tmp_path: Path) -> None:
    other = world.with_name("absent.yaml")
    other.write_text(world.read_text().replace("names: [halves, thirds]", "names: [halves, quarters]"))
    with pytest.raises(NotFoundError, match="quarters"):
        make_study(other, tmp_path)
    text = world.read_text().replace("names: [halves, thirds], ", "")
    other.write_text(text.replace("base: {use: base}", "base: {use: base, tasks: [quarters]}"))
    with pytest.raises(UsageError, match="base is asked on quarters, which is not a task of the study"):
        make_study(other, tmp_path)
    other.write_text(world.read_text().replace("{from: adapters}", "{from: adapters, names: [a0, a9]}"))
    with pytest.raises(NotFoundError, match="no adapter a9"):
        make_study(other, tmp_path)


def test_a_folder_whose_name_is_no_text_is_refused(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world.parent, tmp_path / "copy")
    try:
        (tmp_path / "copy" / "adapters" / "a3").rename(tmp_path / "copy" / "adapters" / "a\udcff")
    except OSError:
        pytest.skip("the disk has names of UTF-8 alone")
    with pytest.raises(UsageError, match="has a name that is not UTF-8; rename it"):
        make_study(tmp_path / "copy" / "study.yaml", tmp_path)


def test_adapters_of_an_exported_pool_and_among_some(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "study.yaml"
    (tmp_path / "copy" / "pool").mkdir()
    (tmp_path / "copy" / "adapters").rename(tmp_path / "copy" / "pool" / "adapters")
    text = path.read_text().replace("{from: adapters}", "{from: pool}")
    path.write_text(text)
    assert keys(path, tmp_path) == keys(world, tmp_path)
    path.write_text(text.replace("chance: {by: random, k: 2}", "chance: {by: random, k: 2, among: [a1, a2]}"))
    run(*make_study(path, tmp_path / "out"))
    rows = [row for row in rows_of(tmp_path / "out") if row["pool"] == "chance"]
    assert {name for row in rows for name in row["detail"]["members"]} == {"a1", "a2"}
    path.write_text(text.replace("chance: {by: random, k: 2}", "chance: {by: random, k: 2, among: [a1, a7]}"))
    with pytest.raises(UsageError, match="a7, which is not one of the adapters"):
        make_study(path, tmp_path / "out")


def test_an_adapter_of_another_base_is_refused_before_anything_runs(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world.parent, tmp_path / "copy")
    path = tmp_path / "copy" / "study.yaml"
    save_base(tiny_base(hidden=64), tmp_path / "wider")
    path.write_text(path.read_text().replace(f"base: {world.parent / 'base'}", f"base: {tmp_path / 'wider'}"))
    with pytest.raises(MergeError, match=r"a0 requires .* belongs to another model"):
        make_study(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_results_of_nothing_are_missing(world: Path, tmp_path: Path) -> None:
    result = list(results(make_study(world, tmp_path / "out")[1]))
    assert {row["status"] for row in result} == {"missing"}
    assert machine("cpu")


def test_a_step_is_known_by_all_that_it_depends_on() -> None:
    first = Step("gradient", {"samples": 3})
    assert Step("gradient", {"samples": 3}).key == first.key
    assert len({first.key, Step("gradient", {"samples": 4}).key, Step("measured", {"samples": 3}).key}) == 3
    assert Step("pool", {}, {"own": first}).key != Step("pool", {}, {"other": first}).key


@pytest.mark.slow
def test_two_processes_of_ray_find_what_one_process_finds(world: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "out"
    words = ["study", "run", str(world), "-o", str(out), "--ray", "--workers", "2", "--json"]
    program = [sys.executable, "-W", "ignore", "-m", "cli", "--data", str(tmp_path / "data"), *words]
    result = subprocess.run(program, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["done"] == 44
    assert (out / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
