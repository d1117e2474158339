"""`loradex.merge`, `inspect`, `fold` and `methods`: one call each, without catalog, database and network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import loradex
from catalog.errors import MergeError, NoCatalogError, UsageError
from catalog.settings import Settings
from tests.merging.adapters import adapter, deltas
from tests.merging.test_fold import base, tensors_of

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sqlalchemy", "alembic", "huggingface_hub"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
from loradex.__main__ import main
main()
"""


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [adapter(tmp_path / f"m{number}", seed=number) for number in range(2)]


def run_blocked(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED, *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "words", [["methods", "--json"], ["merge", "m0", "m1", "--method", "sum", "-o", "out", "--mixed-ranks"]]
)
def test_methods_and_merges_of_folders_need_no_database_and_no_hub(
    words: list[str], pair: list[Path], tmp_path: Path
) -> None:
    done = run_blocked(tmp_path, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "merge.json").exists() == (words[0] == "merge")


def test_what_needs_the_database_fails_where_it_is_blocked(tmp_path: Path) -> None:
    assert "is blocked" in run_blocked(tmp_path, "status").stderr


def test_a_merge_returns_what_it_has_written(pair: list[Path], tmp_path: Path) -> None:
    events: list[loradex.ProgressEvent] = []
    report = loradex.merge(pair, "average", rank=2, out=tmp_path / "out", progress=events.append)
    assert report.folder == tmp_path / "out"
    assert report.record == json.loads((report.folder / "merge.json").read_text())
    assert {module.rank for module in report.modules.values()} == {2}
    assert report.energy_share is not None
    assert 0 < report.energy_share < 1
    assert {event.step for event in events} == {"merging"}
    counted = [(event.done, event.total) for event in events if event.total]
    assert counted[-1] == (len(report.modules),) * 2


def test_one_folder_is_a_merge_of_one(pair: list[Path], tmp_path: Path) -> None:
    report = loradex.merge(pair[0], "sum", out=str(tmp_path / "out"))
    assert [member["name"] for member in report.record["members"]] == ["m0"]


def test_silent_by_default_and_notes_are_returned(
    pair: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = loradex.merge(pair, "sum", without=["lm_haed"], out=tmp_path / "out", mixed_ranks=True)
    assert report.notes == ("No member holds anything of lm_haed, which `without` names.",)
    assert loradex.inspect(pair, without="lm_haed").notes == report.notes
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_merge_that_cannot_be_is_refused_and_writes_nothing(pair: list[Path], tmp_path: Path) -> None:
    other = adapter(tmp_path / "other", seed=3, base_model_name_or_path="other/base")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(MergeError, match="other"):
        loradex.merge([*pair, other], "sum", out=tmp_path / "out")
    with pytest.raises(UsageError, match="Unknown merge method 'tise'; did you mean ties"):
        loradex.merge(pair, "tise", out=tmp_path / "out")
    with pytest.raises(UsageError, match="absent is not a folder of an adapter; a pool is found by name in"):
        loradex.merge("absent", "sum", out=tmp_path / "out")
    with pytest.raises(NoCatalogError):
        loradex.merge("absent", "sum", out=tmp_path / "out", catalog=Settings.make(data=tmp_path / "data"))
    with pytest.raises(UsageError, match="'chance' is no"):
        loradex.merge(pair, "sum", out=tmp_path / "out", control="chance")
    assert sorted(tmp_path.iterdir()) == before


def test_a_request_is_priced_and_run(pair: list[Path], tmp_path: Path) -> None:
    request = loradex.MergeRequest(pair, "sum")
    cost = request.cost()
    assert (cost.members, list(tmp_path.glob("out*"))) == (2, [])
    report = request.run(tmp_path / "out")
    assert cost.rank == report.record["form"]["rank"] == 8


def test_a_control_is_merged_in_place_of_the_members(pair: list[Path], tmp_path: Path) -> None:
    report = loradex.merge(pair, "sum", control="random-each", seed=5, out=tmp_path / "out")
    assert len(list((tmp_path / "out-members").iterdir())) == 2
    assert all("random-each" in member["name"] for member in report.record["members"])


def test_an_adapter_is_added_to_a_base(pair: list[Path], tmp_path: Path) -> None:
    source = base(tmp_path / "base")
    folded = loradex.fold(source, pair[0], out=tmp_path / "model")
    report = loradex.merge(pair[0], "sum", apply_to=str(source), out=tmp_path / "full")
    assert (report.folder, report.model) == (tmp_path / "full-adapter", tmp_path / "full")
    before, after, merged = map(tensors_of, (source, folded.folder, tmp_path / "full"))
    for name, delta in deltas(pair[0]).items():
        expected = before[f"{name}.weight"].double() + delta
        for model in (after, merged):
            assert torch.allclose(model[f"{name}.weight"].double(), expected, atol=1e-6)


def test_members_are_compared(pair: list[Path]) -> None:
    inspection = loradex.inspect([*pair, pair[0]])
    assert inspection.cosines[0][2] == pytest.approx(1)
    assert abs(inspection.cosines[0][1]) < 0.5
    assert inspection.rank_for(1.0) >= inspection.rank_for(0.5) > 0


def test_methods_are_rows_with_their_parameters() -> None:
    rows = {row.method: row for row in loradex.methods()}
    assert len(rows) == len(loradex.methods())
    assert rows["sum"].exact
    assert [parameter.default for parameter in rows["ties"].parameters if parameter.name == "density"] == [
        0.2
    ]
