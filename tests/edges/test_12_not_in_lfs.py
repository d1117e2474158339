"""Weights that the Hub keeps in git itself: verified by git's hash, on record under their sha256."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.edges.rows import peft_norm, relative_error, row
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub
from tests.localhub.faults import EditJson, Fault
from tests.shared_data import shared

Program = Callable[..., Result]
WEIGHTS = "adapter_model.safetensors"
TINY = "acme/tiny"


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def outside_lfs(root: Path, name: str, promised: str | None = None) -> Fault:
    """The tree of this repository gives its weights as git does, or under the hash `promised`."""

    def edit(rows: Any) -> None:
        for entry in rows:
            if entry["path"] == WEIGHTS:
                del entry["lfs"]
                entry["oid"] = promised or git_hash((root / name / WEIGHTS).read_bytes())

    return Fault(f"GET /api/models/{name}/tree/", EditJson(edit))


def ok(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def weights_requests(hub: FaultHub, name: str) -> int:
    return sum(
        requests.path.startswith(f"/{name}/resolve/") and WEIGHTS in requests.path for requests in hub.log
    )


@shared
@pytest.mark.parametrize("policy", ["stream", "keep"])
def test_it_is_measured_chosen_exported_and_merged(
    policy: str, tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, root = row("12-not-in-lfs") / "adapter", tmp_path / "rows"
    shutil.copytree(folder, root / "maker/small")
    with FaultHub(root, faults=[outside_lfs(root, "maker/small")]) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        report = ok(run("crawl", "--any-base", "--weights", policy, "--json"))
        assert (report["status"], report["accepted"], report["unmeasured"]) == ("complete", 1, 0)
        result = ok(run("show", "maker/small", "--json"))
        assert result["norm"] == pytest.approx(1.7604, abs=5e-5)
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        assert result["weights"]["digest"] == digest
        ok(run("select", "one", "--by", "random", "-k", "1", "--json"))
        to = ("--to", str(tmp_path / "out"), "--weights", "--json")
        [exported] = ok(run("pool", "export", "one", *to))["folders"]
        assert ok(run("pool", "verify", exported, "--json"))["ok"]
        paths = [path for path in (tmp_path / "data/blobs").glob("??/*") if len(path.name) == 62]
        assert [path.parent.name + path.name for path in paths] == [digest]
    [member] = (Path(exported) / "adapters").iterdir()
    assert peft_norm(member) == pytest.approx(1.7604, abs=5e-5)
    words = (str(member), "--method", "average", "-o", str(tmp_path / "merged"), "--dtype", "float32")
    assert run("merge", *words).exit_code == 0
    assert relative_error(tmp_path / "merged", folder) < 1e-6


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[tuple[FaultHub, Path]]:
    """Two repositories with the same weights, those of ann/git outside LFS."""
    root = tmp_path / "copies"
    files = lora_files(TINY)
    files[WEIGHTS] = safetensors_bytes(lora_tensors(seed=3))
    for name in ("ann/git", "bob/lfs"):
        make_repo(root, name, files | {"README.md": card(f"By {name}.\n", base_model=TINY, license="mit")})
    with FaultHub(root, faults=[outside_lfs(root, "ann/git")]) as hub:
        yield hub, root


def test_it_is_the_same_file_as_its_copy_in_lfs(
    copies: tuple[FaultHub, Path], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, root = copies
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    crawl = ("crawl", "--any-base", "--weights", "keep", "--json")
    assert ok(run(*crawl))["unmeasured"] == 0
    [group] = ok(run("duplicates", "--json"))
    assert {"ann/git", "bob/lfs"} <= set(str(group).replace("'", " ").split())
    similar = ok(run("similar", "ann/git", "--exact", "--json"))
    assert similar[0]["adapter"] == "bob/lfs"
    # Nothing new, nothing asked; a new card does not fetch the weights again either.
    hub.clear()
    assert ok(run(*crawl))["unchanged"] == 2
    assert weights_requests(hub, "ann/git") == 0
    make_repo(root, "ann/git", {"README.md": card("Another.\n", base_model=TINY)}, mtime=1_700_000_100)
    report = ok(run(*crawl, "--full"))
    assert (report["changed"], report["unmeasured"]) == (1, 0)
    assert weights_requests(hub, "ann/git") == 0


def test_what_an_earlier_crawl_left_unmeasured_is_measured_by_the_next_that_reads(
    copies: tuple[FaultHub, Path], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = copies
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert ok(run("crawl", "--any-base", "--weights", "headers", "--json"))["unmeasured"] == 2
    assert ok(run("crawl", "--any-base", "--weights", "stream", "--json"))["unmeasured"] == 0
    result = ok(run("show", "ann/git", "--json"))
    assert (result["health"], len(result["weights"]["digest"])) == ("healthy", 64)
    # What is known stays known where the weights are not read.
    assert ok(run("crawl", "--any-base", "--weights", "headers", "--full", "--json"))["unmeasured"] == 0


def test_other_bytes_than_git_promises_are_refused(
    copies: tuple[FaultHub, Path], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, root = copies
    hub.faults[:] = [outside_lfs(root, "ann/git", "0" * 40)]
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    report = ok(run("crawl", "--any-base", "--weights", "keep", "--json"))
    assert (report["accepted"], report["reasons"]["integrity"]) == (1, 1)


# -- the largest weights file that is read -------------------------------------------------------------------


def test_too_large_weights_are_a_counted_reason_until_the_cap_is_raised(
    copies: tuple[FaultHub, Path], run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, _ = copies
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    crawl = ("crawl", "--any-base", "--weights", "keep", "--json")
    hub.clear()
    report = ok(run(*crawl, "--max-weights", "500B"))
    assert (report["status"], report["skipped"], report["reasons"]["too_large"]) == ("complete", 2, 2)
    complete = [
        requests for requests in hub.log if WEIGHTS in requests.path and "range" not in requests.headers
    ]
    assert complete == []
    result = ok(run("show", "ann/git", "--json"))
    assert "--max-weights is 500" in result["details"]["too_large"]
    assert (result["rank"], result["modules"]) == (4, 2)
    report = ok(run(*crawl))
    assert (report["accepted"], report["unmeasured"], report["reasons"]) == (2, 0, {})
    # What is measured stays so under a lower one: nothing has to be fetched for it.
    report = ok(run(*crawl, "--max-weights", "500B", "--full"))
    assert (report["status"], report["accepted"], report["reasons"]) == ("complete", 2, {})


@pytest.mark.parametrize("text", ["", "x", "-1", "5XB", "1e9", "GB", "4 i", "0"])
def test_a_size_that_is_none(text: str, run: Program) -> None:
    result = run("crawl", "--max-weights", text)
    assert result.exit_code == 2
    assert "--max-weights" in result.stderr
