"""A folder as the Hub's API would describe it, without a server."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import UsageError
from crawler.localhub.fields import describe, tree
from crawler.localhub.folder import HubFolder, HubRepository, is_name
from crawler.localhub.listing import BadQueryError, list_page, list_query
from crawler.localhub.tags import derive, front_matter
from tests.hubs import BASE, adapter_config, card, lora_files, make_repo


def read(root: Path, repo_id: str) -> HubRepository:
    result = HubFolder(root).find(repo_id)
    assert result is not None
    return result


def test_facts_are_the_same_from_start_to_start(tmp_path: Path) -> None:
    make_repo(tmp_path, "ann/lora")
    first, second = read(tmp_path, "ann/lora"), read(tmp_path, "ann/lora")
    fields = ("sha", "createdAt", "lastModified", "tags", "siblings", "usedStorage")
    assert describe(first, fields) == describe(second, fields)
    assert first.identity == hashlib.sha256(b"ann/lora").hexdigest()[:24]
    assert len(first.sha) == 40
    assert first.created_at == first.last_modified == "2023-11-14T22:13:20.000Z"


def test_digests_are_those_of_git_and_of_lfs(tmp_path: Path) -> None:
    folder = make_repo(tmp_path, "ann/lora")
    digests = read(tmp_path, "ann/lora").digests
    weights = (folder / "adapter_model.safetensors").read_bytes()
    by_git = subprocess.run(
        ["git", "hash-object", "--no-filters", "README.md"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert digests["README.md"].oid == by_git.stdout.strip()
    assert digests["README.md"].sha256 is None
    lfs = digests["adapter_model.safetensors"]
    assert lfs.sha256 == hashlib.sha256(weights).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{lfs.sha256}\nsize {len(weights)}\n"
    assert lfs.pointer_size == len(pointer)
    assert lfs.oid == hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()


@pytest.mark.parametrize(
    ("path", "size", "is_lfs"),
    [
        ("adapter_model.safetensors", 1, True),
        ("adapter_model.bin", 1, True),
        ("sub/model.gguf", 1, True),
        ("checkpoint.pt", 1, True),
        ("tokenizer.json", 1, True),
        ("sub/tokenizer.json", 1, True),
        ("my_tokenizer.json", 1, False),
        ("adapter_config.json", 1, False),
        ("log.txt", 10 * 1024 * 1024 - 1, False),
        ("log.txt", 10 * 1024 * 1024, True),
    ],
)
def test_lfs_rule(tmp_path: Path, path: str, size: int, is_lfs: bool) -> None:
    folder = make_repo(tmp_path, "ann/lora", {path: b""})
    os.truncate(folder / path, size)
    assert read(tmp_path, "ann/lora").files[path].is_lfs is is_lfs


def test_stated_lfs_facts_need_no_reading(tmp_path: Path) -> None:
    stated = {"huge.safetensors": {"size": 10**12, "sha256": "ab" * 32}}
    folder = make_repo(tmp_path, "ann/lora", {"huge.safetensors": b""}, {"files": stated})
    os.truncate(folder / "huge.safetensors", 10**12)  # sparse: reading it would take half an hour
    digest = read(tmp_path, "ann/lora").digests["huge.safetensors"]
    assert (digest.size, digest.sha256) == (10**12, "ab" * 32)


def test_a_changed_file_changes_the_facts_and_only_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_repo(tmp_path, "ann/lora")
    hub = HubFolder(tmp_path)
    before = hub.find("ann/lora")
    assert before is not None
    first_sha = before.sha
    assert hub.find("ann/lora") is before
    (folder / "README.md").write_text(card(tags=["new"]))
    opened: list[str] = []
    read_digest = hub.digest

    def count(file: Any) -> Any:
        key = (file.disk, file.size, file.mtime_ns)
        if key not in hub._digests:
            opened.append(file.path)
        return read_digest(file)

    monkeypatch.setattr(hub, "digest", count)
    after = hub.find("ann/lora")
    assert after is not None
    assert after.sha != first_sha
    assert "new" in after.tags
    assert opened == ["README.md"]


def test_a_file_rewritten_within_a_clock_tick_is_seen(tmp_path: Path) -> None:
    folder = make_repo(tmp_path, "ann/lora", {"a.txt": "one"}, mtime=None)
    hub = HubFolder(tmp_path)
    first = hub.find("ann/lora")
    assert first is not None
    sha, when = first.sha, (folder / "a.txt").stat()
    (folder / "a.txt").write_text("two")
    os.utime(folder / "a.txt", ns=(when.st_atime_ns, when.st_mtime_ns))
    second = hub.find("ann/lora")
    assert second is not None
    assert second.sha != sha


def test_overrides_win_and_are_passed_through(tmp_path: Path) -> None:
    hub = {
        "_id": "f" * 24,
        "sha": "0" * 40,
        "createdAt": "2020-01-01T00:00:00.000Z",
        "downloads": "many",
        "gated": "manual",
        "tags": ["only"],
        "likes": None,
    }
    make_repo(tmp_path, "ann/lora", hub=hub)
    row = describe(read(tmp_path, "ann/lora"), ["sha", "createdAt", "downloads", "gated", "tags", "likes"])
    assert row == hub | {"id": "ann/lora", "modelId": "ann/lora"}


@pytest.mark.parametrize("content", ["{", "[1]", "", "\ud800"])
def test_a_bad_override_hides_the_repository_rather_than_opening_it(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_repo(tmp_path, "ann/lora")
    make_repo(tmp_path, "ann/good")
    (folder / ".hub.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    hub = HubFolder(tmp_path)
    assert [repo.repo_id for repo in hub.scan()] == ["ann/good"]
    assert "ann/lora/.hub.json" in caplog.text
    with pytest.raises(UsageError, match=r"ann/lora/\.hub\.json"):
        hub.find("ann/lora")


def test_hidden_files_and_links_that_leave_are_no_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    root = tmp_path / "hub"
    files = {"a.txt": "a", ".git/config": "x", ".cache/y": "y", "sub/.cache/z": "z", "sub/b.txt": "b"}
    folder = make_repo(root, "ann/lora", files, {})
    (folder / "out.txt").symlink_to(secret)
    (folder / "in.txt").symlink_to("a.txt")
    (folder / "override.txt").symlink_to(".hub.json")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to("nowhere")
    (root / "ann" / "linked").symlink_to(tmp_path)
    assert sorted(read(root, "ann/lora").files) == ["a.txt", "in.txt", "sub/b.txt"]
    assert HubFolder(root).find("ann/linked") is None
    assert [repo.repo_id for repo in HubFolder(root).scan()] == ["ann/lora"]


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("Llama-3.1_x", True),
        ("a" * 96, True),
        ("a" * 97, False),
        ("", False),
        (".git", False),
        ("..", False),
        ("a..b", False),
        ("a--b", False),
        ("a.git", False),
        ("a b", False),
        ("é", False),
    ],
)
def test_names(name: str, possible: bool) -> None:
    assert is_name(name) is possible


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        HubFolder(tmp_path / "nowhere")


CONFIG = adapter_config()
FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("readme", "adapter", "paths", "expected"),
    [
        pytest.param(
            card(
                license="mit",
                datasets=["squad"],
                language="en",
                tags=["lora"],
                pipeline_tag="text-generation",
            ),
            CONFIG,
            FILES,
            [
                "peft",
                "safetensors",
                "lora",
                "en",
                "dataset:squad",
                "license:mit",
                "text-generation",
                f"base_model:{BASE}",
                f"base_model:adapter:{BASE}",
                "region:us",
            ],
            id="a card by PEFT",
        ),
        pytest.param(
            "",
            CONFIG,
            FILES,
            ["peft", "safetensors", f"base_model:{BASE}", f"base_model:adapter:{BASE}", "region:us"],
            id="no card: base from the configuration",
        ),
        pytest.param(
            card(library_name=None, tags=["unsloth", "transformers"]),
            CONFIG,
            FILES,
            [
                "transformers",
                "safetensors",
                "unsloth",
                f"base_model:{BASE}",
                f"base_model:finetune:{BASE}",
                "region:us",
            ],
            id="Unsloth: the Hub says finetune",
        ),
        pytest.param(
            card(library_name="transformers", base_model_relation="adapter"),
            CONFIG,
            FILES,
            ["transformers", "safetensors", f"base_model:{BASE}", f"base_model:adapter:{BASE}", "region:us"],
            id="a stated relation wins",
        ),
        pytest.param(
            card(library_name=None, base_model=None),
            adapter_config(base_model_name_or_path="/home/ann/llama"),
            FILES,
            ["peft", "safetensors", "region:us"],
            id="a local path is no base",
        ),
        pytest.param("", None, ("config.json",), ["transformers", "region:us"], id="a full model"),
        pytest.param(
            card("See https://arxiv.org/abs/2602.12323", base_model=["a/x", "b/y"], library_name=None),
            None,
            (),
            [
                "arxiv:2602.12323",
                "base_model:a/x",
                "base_model:b/y",
                "base_model:merge:a/x",
                "base_model:merge:b/y",
                "region:us",
            ],
            id="a merge with a paper",
        ),
        pytest.param(
            card(base_model=7, tags={"a": 1}, license=3), None, (), ["peft", "region:us"], id="wrong types"
        ),
    ],
)
def test_tags_as_the_hub_derives_them(
    readme: str, adapter: dict[str, Any] | None, paths: tuple[str, ...], expected: list[str]
) -> None:
    assert list(derive(readme, adapter, paths).tags) == expected


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a: 1\nb: [x, 2.5, null]", {"a": 1, "b": ["x", 2.5, None]}, id="plain"),
        pytest.param(
            "d: 2024-01-02\nt: 2024-01-02 03:04:05", {"d": "2024-01-02", "t": "2024-01-02T03:04:05"}, id="d"
        ),
        pytest.param("1: x\nno: y", {"1": "x", "False": "y"}, id="keys that are no strings"),
        pytest.param("x: .nan\ny: .inf", {"x": "nan", "y": "inf"}, id="case-71-not finite"),
        pytest.param("x: " + "9" * 400, {"x": "9" * 400}, id="case-71-long integer"),
        pytest.param("x: " + "9" * 5000, {"x": "9" * 5000}, id="case-71-endless integer"),
        pytest.param("- a\n- b", None, id="case-73-list"),
        pytest.param("a: [", None, id="case-73-broken"),
        pytest.param("a: !!python/object/apply:os.system [id]", None, id="case-73-python"),
        pytest.param("d: 2024-99-99", None, id="case-73-impossible date"),
        pytest.param(BOMB, None, id="case-73-alias bomb"),
        pytest.param("a: " + "[" * 50_000, None, id="case-73-deep"),
        pytest.param("", None, id="empty"),
    ],
)
def test_front_matter_is_plain_json_or_nothing(text: str, expected: dict[str, Any] | None) -> None:
    result = front_matter(f"---\n{text}\n---\n# body\n")
    assert result == expected
    json.dumps(result)


@pytest.mark.parametrize("readme", ["", "# only a body", "---\na: 1\n", "text\n---\na: 1\n---\n"])
def test_no_front_matter(readme: str) -> None:
    assert front_matter(readme) is None


def listing(root: Path, **params: list[str]) -> list[str]:
    """The ids of all pages, each page asked for with the cursor of the one before."""
    repositories, ids = HubFolder(root).scan(), []
    while True:
        page, cursor = list_page(repositories, list_query(params))
        ids += [repository.repo_id for repository in page]
        if cursor is None:
            return ids
        params["cursor"] = [cursor]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for number, (name, downloads) in enumerate([("ann/a", 5), ("bob/b", 7), ("ann/c", 5)]):
        hub = {
            "downloads": downloads,
            "createdAt": f"2024-01-0{number + 1}T00:00:00.000Z",
            "_id": f"{number}" * 24,
        }
        make_repo(tmp_path, name, lora_files() if name != "bob/b" else {"config.json": "{}"}, hub)
    make_repo(tmp_path, "ann/private", {}, {"private": True})
    return tmp_path


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, ["ann/a", "bob/b", "ann/c"]),
        ({"sort": ["createdAt"]}, ["ann/c", "bob/b", "ann/a"]),
        ({"sort": ["createdAt"], "direction": ["1"]}, ["ann/a", "bob/b", "ann/c"]),
        ({"sort": ["downloads"]}, ["bob/b", "ann/a", "ann/c"]),
        ({"sort": ["downloads"], "direction": ["1"]}, ["ann/a", "ann/c", "bob/b"]),
        ({"author": ["ann"]}, ["ann/a", "ann/c"]),
        ({"search": ["BOB"]}, ["bob/b"]),
        ({"filter": ["peft"]}, ["ann/a", "ann/c"]),
        ({"filter": ["peft", f"base_model:adapter:{BASE}"]}, ["ann/a", "ann/c"]),
        ({"filter": ["peft", "transformers"]}, []),
    ],
)
@pytest.mark.parametrize("limit", ["1", "2", "1000"])
def test_pages_in_order(three: Path, params: dict[str, list[str]], expected: list[str], limit: str) -> None:
    assert listing(three, **params, limit=[limit]) == expected


@pytest.mark.parametrize(
    "params",
    [
        {"cursor": ["x"]},
        {"cursor": ["W10="]},
        {"cursor": ["eyJkb3dubG9hZHMiOjEsIl9pZCI6eyIkZ3QiOiJhIn19"], "sort": ["createdAt"]},
        {"limit": ["0"]},
        {"limit": ["-1"]},
        {"limit": ["9" * 5000]},
        {"sort": ["name"]},
        {"direction": ["up"]},
        {"expand": ["secrets"]},
        {"expand[]": ["secrets"]},
    ],
)
def test_bad_queries(params: dict[str, list[str]]) -> None:
    with pytest.raises(BadQueryError):
        list_query(params)


def test_counters_of_any_type_can_be_sorted(tmp_path: Path) -> None:
    for number, downloads in enumerate(["many", None, 3, float("nan"), True, [1]]):
        make_repo(tmp_path, f"ann/r{number}", {}, {"downloads": downloads})
    assert listing(tmp_path, sort=["downloads"], limit=["2"])[0] == "ann/r2"
    assert len(set(listing(tmp_path, sort=["downloads"], limit=["2"]))) == 6


def test_tree_of_folders(tmp_path: Path) -> None:
    make_repo(tmp_path, "ann/lora", {"a.txt": "a", "s/b.txt": "b", "s/t/c.txt": "c", "st/d.txt": "d"})
    repository = read(tmp_path, "ann/lora")

    def paths(folder: str, recursive: bool) -> list[tuple[str, str]]:
        entries = tree(repository, folder, recursive=recursive, expand=False)
        assert entries is not None
        return [(entry["type"][0], entry["path"]) for entry in entries]

    assert paths("", False) == [("f", "a.txt"), ("d", "s"), ("d", "st")]
    assert paths("s", False) == [("f", "s/b.txt"), ("d", "s/t")]
    assert paths("s", True) == [("f", "s/b.txt"), ("d", "s/t"), ("f", "s/t/c.txt")]
    assert tree(repository, "nowhere", recursive=True, expand=False) is None
    assert tree(repository, "a.txt", recursive=True, expand=False) is None
