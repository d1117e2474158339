"""A snapshot goes to a data set of the Hub by the Hub's own client, and comes back at one commit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

import loradex
from catalog.errors import CatalogError, HubAccessError, HubError, IntegrityError, UsageError
from catalog.files import digest_of
from catalog.fingerprints import FINGERPRINT_VERSION
from catalog.snapshots import MANIFEST
from cli.main import loradex as program
from tests.hubs import lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.bodies import Corrupt
from tests.localhub.faults import Fault
from tests.localhub.uploads import UploadHub

NAME = "zoo/adapters"
SAMPLE_HUB = Path(__file__).parents[2] / "data" / "sample_hub"
# The Hub's client gives its HTTP library bytes in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def exported(sample_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of the sample Hub."""
    folder = tmp_path_factory.mktemp("exported") / "snapshot"
    loradex.open(sample_data).export_snapshot(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """A Hub that takes uploads, without Xet."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    (tmp_path / "hub").mkdir()
    with UploadHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_mine")
        yield hub


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): digest_of(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".gitattributes"
    }


def test_a_snapshot_is_described_then_uploaded_privately_and_imported(
    hub: UploadHub, exported: Path, tmp_path: Path
) -> None:
    plan = loradex.push_snapshot(NAME, exported)
    assert (plan.new, plan.private, plan.commit, hub.visibility) == (True, True, None, {})
    assert plan.files == len(files(exported))
    assert plan.bytes == sum(path.stat().st_size for path in exported.rglob("*") if path.is_file())
    result = loradex.push_snapshot(NAME, exported, upload=True)
    assert replace(result, commit=None) == plan
    assert hub.visibility == {NAME: "private"}
    assert files(hub.root / "datasets" / NAME) == files(exported)
    catalog = loradex.open(tmp_path / "data")
    counts = catalog.import_snapshot(NAME)
    assert counts.source == f"{NAME}@{result.commit}"
    assert counts.adapters_added == plan.tables["adapters"]
    assert list((tmp_path / "data").glob("*/manifest.json")) == []


def test_files_of_an_earlier_snapshot_are_removed_and_other_files_stay(
    hub: UploadHub, exported: Path
) -> None:
    hub.add(NAME, "private")
    place = hub.root / "datasets" / NAME
    for path in ("adapters/train-00007.parquet", "mine/train-00000.parquet", "mine.txt"):
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_text("x")
    result = loradex.push_snapshot(NAME, exported, upload=True)
    assert not result.new
    assert set(files(place)) == {*files(exported), "mine/train-00000.parquet", "mine.txt"}


def test_a_public_data_set_is_written_with_public_alone(hub: UploadHub, exported: Path) -> None:
    hub.add(NAME, "public")
    with pytest.raises(UsageError, match="is public; use `public`"):
        loradex.push_snapshot(NAME, exported, upload=True)
    assert hub.commits == []
    assert not loradex.push_snapshot(NAME, exported, public=True, upload=True).private
    loradex.push_snapshot("zoo/other", exported, public=True, upload=True)
    assert hub.visibility == {NAME: "public", "zoo/other": "public"}


def test_a_private_data_set_stays_private(hub: UploadHub, exported: Path) -> None:
    hub.add(NAME, "private")
    assert loradex.push_snapshot(NAME, exported, public=True, upload=True).private
    assert hub.visibility == {NAME: "private"}


def test_one_that_somebody_makes_meanwhile_is_not_written(
    hub: UploadHub, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, "public")
    monkeypatch.setattr("loradex.snapshots._is_private", lambda *_: None)
    with pytest.raises(HubError):
        loradex.push_snapshot(NAME, exported, upload=True)
    assert hub.commits == []


def test_what_only_this_account_may_read_is_not_published(
    hub: UploadHub, sample_data: Path, tmp_path: Path
) -> None:
    catalog = loradex.open(sample_data)
    catalog.export_snapshot(tmp_path / "all", with_private=True)
    with pytest.raises(UsageError, match="with_private"):
        loradex.push_snapshot(NAME, tmp_path / "all", public=True, upload=True)
    assert loradex.push_snapshot(NAME, tmp_path / "all").private


def test_an_upload_that_the_storage_refuses_is_one_sentence(hub: UploadHub, exported: Path) -> None:
    hub.refuses_objects = True
    with pytest.raises(
        HubError, match=r"^The upload failed: Error while uploading '.*' to the Hub: 403 .*\.$"
    ):
        loradex.push_snapshot(NAME, exported, upload=True)
    assert hub.commits == []


@pytest.mark.parametrize("name", ["mysnapshot", "me/my/snapshot", "me/", "/snapshot", "me/.."])
def test_a_name_that_no_data_set_has_makes_none(hub: UploadHub, exported: Path, name: str) -> None:
    with pytest.raises(UsageError, match="write owner/name"):
        loradex.push_snapshot(name, exported, upload=True)
    assert (hub.visibility, hub.commits) == ({}, [])


def test_an_upload_needs_a_token(hub: UploadHub, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="set HF_TOKEN"):
        loradex.push_snapshot(NAME, exported, upload=True)
    assert hub.visibility == {}


def test_the_command_asks_for_yes(hub: UploadHub, exported: Path) -> None:
    words = ("snapshot", "push", NAME, str(exported))
    result = CliRunner().invoke(program, words, catch_exceptions=False)
    assert "new, private" in result.stdout
    assert "left out" in result.stdout
    assert "--yes" in result.stderr
    assert hub.visibility == {}
    document = json.loads(CliRunner().invoke(program, [*words, "--yes", "--json"]).stdout)
    assert len(document["commit"]) == 40
    hub.visibility[NAME] = "public"
    result = CliRunner().invoke(program, [*words, "--yes"])
    assert (result.exit_code, "use --public" in result.stderr) == (2, True)


@pytest.fixture
def served(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultHub]:
    """`loradex hub serve` of a data set."""
    shutil.copytree(exported, tmp_path / "hub" / "datasets" / NAME)
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.parametrize(
    "form", ["{name}", "{name}@main", "{name}@{commit}", "hf://datasets/{name}@{commit}"]
)
def test_a_data_set_is_imported_at_one_commit(
    served: FaultHub, exported: Path, tmp_path: Path, form: str
) -> None:
    commit = huggingface_hub.HfApi(served.url).dataset_info(NAME).sha
    served.clear()
    catalog = loradex.open(tmp_path / "data")
    counts = catalog.import_snapshot(form.format(name=NAME, commit=commit))
    assert counts.source == f"{NAME}@{commit}"
    assert served.count("api") == 2
    assert served.count("resolver") == sum(path.endswith("parquet") for path in files(exported)) + 1
    assert {request.path.split("/")[5] for request in served.log if request.kind == "resolver"} == {commit}
    assert catalog.status().adapters == loradex.open(tmp_path / "data").status().adapters > 0


def _manifest(served: FaultHub) -> Path:
    return served.root / "datasets" / NAME / MANIFEST


def _set_path(document: dict[str, object], path: str) -> None:
    document["tables"]["files"]["files"][0]["path"] = path  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("../../x", "of another name"),
        ("files/README.md", "of another name"),
        ("files/train-00000.parquet\n", "of another name"),
        ("adapters/train-00000.parquet", "of another name"),
        ("files/train-00001.parquet", "no such file"),
    ],
)
def test_only_files_that_a_snapshot_has_are_fetched(
    served: FaultHub, tmp_path: Path, path: str, words: str
) -> None:
    document = json.loads(_manifest(served).read_text())
    _set_path(document, path)
    _manifest(served).write_text(json.dumps(document))
    with pytest.raises((CatalogError, HubAccessError), match=words):
        loradex.open(tmp_path / "data").import_snapshot(NAME)
    assert not any(request.path.rpartition("/")[2] == "x" for request in served.log)


def test_a_file_of_other_bytes_or_a_size_that_no_disk_has_changes_nothing(
    served: FaultHub, tmp_path: Path
) -> None:
    catalog = loradex.open(tmp_path / "data")
    served.faults.append(Fault("adapters/train-00000", Corrupt(40)))
    with pytest.raises(IntegrityError):
        catalog.import_snapshot(NAME)
    served.faults.clear()
    document = json.loads(_manifest(served).read_text())
    for file in (file for entry in document["tables"].values() for file in entry["files"]):
        file["bytes"] = 60_000_000_000_000 // 1000
    _manifest(served).write_text(json.dumps(document))
    served.clear()
    with pytest.raises(loradex.LoradexError, match="make room"):
        catalog.import_snapshot(NAME)
    assert served.count("resolver") == 1
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing", "neither a folder nor a data set"),
        ("hf://models/zoo/adapters", "neither a folder nor a data set"),
        ("zoo/adapters@main@main", "neither a folder nor a data set"),
        ("./backups", "give the folder of a snapshot, or write owner/name"),
        ("~/backups", "neither a folder nor a data set"),
        ("/nowhere/backups", "neither a folder nor a data set"),
        ("zoo/none", "private, or does not exist"),
        ("zoo/adapters@" + "0" * 40, "no longer has this commit"),
        ("zoo/empty", "is not a snapshot"),
        (".", "give the folder of a snapshot"),
    ],
)
def test_what_is_no_snapshot_is_one_sentence(
    served: FaultHub, tmp_path: Path, source: str, words: str
) -> None:
    (served.root / "datasets" / "zoo" / "empty").mkdir()
    with pytest.raises(loradex.LoradexError, match=words):
        loradex.open(tmp_path / "data").import_snapshot(source)
    assert not (tmp_path / "data" / "catalog.db").exists()


def test_a_folder_that_is_not_there_is_fetched_from_nobody(
    served: FaultHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo").mkdir()
    monkeypatch.chdir(tmp_path)
    catalog = loradex.open(tmp_path / "data")
    told = "no folder zoo/adapters.*write hf://datasets/zoo/adapters or zoo/adapters@commit"
    with pytest.raises(UsageError, match=told):
        catalog.import_snapshot("zoo/adapters")
    with pytest.raises(UsageError, match="'someone/adapters' is neither a folder nor"):
        catalog.import_snapshot(Path("someone/adapters"))
    assert served.log == []
    assert catalog.import_snapshot("hf://datasets/zoo/adapters").adapters_added > 0
    assert catalog.import_snapshot("zoo/adapters@main").adapters_added == 0


def test_data_sets_are_served_and_no_crawl_lists_them(served: FaultHub, exported: Path) -> None:
    from crawler.localhub import omissions
    from crawler.localhub.folder import HubFolder

    api = huggingface_hub.HfApi(served.url)
    assert list(api.list_models()) == []
    assert omissions(HubFolder(served.root)) == []
    path = huggingface_hub.hf_hub_download(
        NAME, "adapters/train-00000.parquet", repo_type="dataset", endpoint=served.url
    )
    assert digest_of(Path(path)) == digest_of(exported / "adapters" / "train-00000.parquet")
    with pytest.raises(huggingface_hub.errors.RepositoryNotFoundError):
        api.model_info(NAME)


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultHub]:
    """The sample Hub, of which the snapshot is."""
    with FaultHub(SAMPLE_HUB) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def test_every_adapter_of_a_snapshot_is_as_on_the_hub(on_hub: FaultHub, exported: Path) -> None:
    check = loradex.verify_snapshot(exported, sample=1000, weights=True)
    assert check.ok
    assert {row.state for row in check.adapters} == {"same"}
    measured = [row for row in check.adapters if row.detail == "weights measured"]
    assert len(measured) > len(check.adapters) / 2
    assert on_hub.count("api") == len(check.adapters) == check.tables["adapters"]


@pytest.mark.parametrize("values", [(np.nan,), (np.inf,), (np.inf, -np.inf, np.nan, 3e38)])
def test_adapters_whose_values_are_not_finite_are_as_on_the_hub(
    values: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = lora_tensors()
    for value, tensor in zip(values, tensors.values(), strict=False):
        tensor.flat[0] = value
    files = {**lora_files("org/base"), "adapter_model.safetensors": safetensors_bytes(tensors)}
    make_repo(tmp_path / "hub", "o/broken", files)
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        catalog = loradex.open(tmp_path / "data")
        catalog.crawl(any_base=True, weights="stream")
        catalog.export_snapshot(tmp_path / "snapshot")
        check = loradex.verify_snapshot(tmp_path / "snapshot", sample=1, weights=True)
    assert [(row.state, row.detail) for row in check.adapters] == [("same", "weights measured")]


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ([np.nan, 1, np.inf], [np.nan, 1.0001, np.inf], True),
        ([np.nan, 1, np.inf], [np.nan, 1.1, np.inf], False),
        ([np.nan, 1], [1, 1], False),
        ([1, 1], [np.nan, 1], False),
        ([np.inf, 1], [-np.inf, 1], False),
        ([np.inf, 1], [np.nan, 1], False),
        ([3e38, 3e38], [3e38, 3e38], True),
        ([1, 2], [1, 2, 3], False),
    ],
)
def test_fingerprints_are_near_where_values_that_are_not_finite_are_equal(
    one: list[float], other: list[float], near: bool
) -> None:
    from loradex.snapshots import _is_near

    assert _is_near(np.array(one, "<f4").tobytes(), np.array(other, "<f4").tobytes()) is near


def test_fingerprints_of_another_version_are_not_compared(
    on_hub: FaultHub, exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _rewrite(folder, "fingerprints", lambda row: row.update(version=FINGERPRINT_VERSION + 1))
    check = loradex.verify_snapshot(folder, sample=5, weights=True)
    told = "tensors compared; its fingerprint is of another version"
    assert {row.state for row in check.adapters} == {"same"}
    assert told in {row.detail for row in check.adapters} <= {told, ""}


def test_of_several_versions_of_a_fingerprint_that_of_this_program_is_compared(
    on_hub: FaultHub, exported: Path, tmp_path: Path
) -> None:
    def add_versions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        later = FINGERPRINT_VERSION + 1
        return [made for row in rows for made in (row, {**row, "version": later, "output": [1.0]})]

    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _rewrite_all(folder, "fingerprints", add_versions)
    check = loradex.verify_snapshot(folder, sample=5, weights=True)
    assert "weights measured" in {row.detail for row in check.adapters} <= {"weights measured", ""}


def test_a_sample_costs_a_request_each_and_none_without_one(on_hub: FaultHub, exported: Path) -> None:
    rows = loradex.verify_snapshot(exported, sample=3, seed=1).adapters
    assert (len(rows), on_hub.count("api"), on_hub.count("resolver")) == (3, 3, 0)
    assert loradex.verify_snapshot(exported, sample=3, seed=1).adapters == rows
    assert loradex.verify_snapshot(exported, sample=3, seed=2).adapters != rows
    on_hub.clear()
    assert loradex.verify_snapshot(exported).adapters == []
    assert on_hub.log == []


def _rewrite(folder: Path, table: str, change: Callable[[dict[str, Any]], object]) -> None:
    """The rows of a table after a change of each, with a manifest that says so."""

    def changed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            change(row)
        return rows

    _rewrite_all(folder, table, changed)


def _rewrite_all(
    folder: Path, table: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> None:
    path = folder / table / "train-00000.parquet"
    old = parquet.read_table(path)
    rows = change(old.to_pylist())
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=old.schema), path)
    document = json.loads((folder / MANIFEST).read_text())
    document["tables"][table]["rows"] = len(rows)
    document["tables"][table]["files"][0] |= {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    (folder / MANIFEST).write_text(json.dumps(document))


def _other_size(row: dict[str, Any]) -> None:
    file = json.loads(row["file"])
    if file["name"] == "adapter_config.json":
        row["file"] = json.dumps(file | {"size": file["size"] + 1})


def _other_digest(row: dict[str, Any]) -> None:
    file = json.loads(row["file"])
    row["file"] = json.dumps(file | {"digest": "0" * len(file["digest"])})


def _other_vector(row: dict[str, Any]) -> None:
    row["output"] = row["output"][::-1]


@pytest.mark.parametrize(
    ("table", "change", "detail"),
    [
        ("files", _other_size, "adapter_config.json"),
        ("files", _other_digest, "README.md"),
        ("weights", lambda row: row.update(tensor_digest="0" * 64), "the digest of its tensors"),
        ("fingerprints", _other_vector, "its fingerprint"),
    ],
)
def test_a_snapshot_that_says_another_thing_than_the_hub_differs(
    on_hub: FaultHub,
    exported: Path,
    tmp_path: Path,
    table: str,
    change: Callable[[dict[str, Any]], object],
    detail: str,
) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _rewrite(folder, table, change)
    words = ("snapshot", "verify", str(folder), "--sample", "5", "--weights")
    result = CliRunner().invoke(program, words, catch_exceptions=False)
    assert result.exit_code == 1
    assert any(line.startswith("differs") and detail in line for line in result.stdout.splitlines())


def test_an_adapter_that_is_gone_is_no_fault_of_the_snapshot(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub").mkdir()
    with FaultHub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        check = loradex.verify_snapshot(exported, sample=4)
    assert [(row.state, row.detail) for row in check.adapters] == [("gone", "private_or_missing")] * 4
    assert check.ok


def test_rows_that_an_import_refuses_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "snapshot")
    _rewrite(folder, "documents", lambda row: row.update(content=b"x"))
    result = CliRunner().invoke(program, ("snapshot", "verify", str(folder)))
    assert (result.exit_code, "other bytes than its digest" in result.stderr) == (1, True)
