"""The local Hub, met by the real client."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import uvicorn
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from catalog.errors import UsageError
from crawler.localhub import LocalServer, create_app, serve
from crawler.localhub.folder import Digest, HubFile, HubFolder
from tests.hubs import BASE, make_repo
from tests.localhub import FaultHub, Limits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    make_repo(folder, "ann/lora", hub={"previous_names": ["ann/old"], "downloads": 12})
    make_repo(folder, "ann/gated", hub={"gated": "manual"})
    make_repo(folder, "ann/disabled", hub={"disabled": True})
    make_repo(folder, "ann/private", hub={"private": True})
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[FaultHub]:
    with FaultHub(root) as running:
        yield running


@pytest.fixture
def api(hub: FaultHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


class RawAnswer:
    """One answer, read without any client in between."""

    def __init__(
        self, hub_url: str, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> None:
        parts = urlsplit(hub_url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        try:
            by_name = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, target, body, by_name)
            response = connection.getresponse()
            self.status, self.headers, self.body = response.status, response.headers, response.read()
        finally:
            connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def download(hub: FaultHub, cache: Path, path: str, **more: Any) -> Path:
    result = hf_hub_download("ann/lora", path, endpoint=hub.url, token=False, cache_dir=cache, **more)
    return Path(result)


def test_list_models_over_several_pages(tmp_path: Path) -> None:
    for number in range(2500):
        hub = {"_id": f"{number:024x}", "createdAt": f"2024-01-01T00:00:{number % 60:02}.000Z"}
        make_repo(tmp_path, f"ann/r{number}", {}, hub)
    with FaultHub(tmp_path) as running:
        result = list(
            HfApi(endpoint=running.url, token=False).list_models(sort="created_at", expand=["createdAt"])
        )
        assert running.count("api") == 3
    assert len({model.id for model in result}) == len(result) == 2500
    dates = [model.created_at for model in result if model.created_at is not None]
    assert dates == sorted(dates, reverse=True)


def test_list_models_filters_and_describes(api: HfApi) -> None:
    expected = ["peft", f"base_model:adapter:{BASE}"]
    result = {model.id: model for model in api.list_models(filter=expected, full=True, cardData=True)}
    assert set(result) == {"ann/lora", "ann/gated", "ann/disabled"}
    lora = result["ann/lora"]
    assert lora.downloads == 12
    assert lora.sha == api.model_info("ann/lora").sha
    assert lora.card_data is not None
    assert lora.card_data.base_model == BASE
    assert {sibling.rfilename for sibling in lora.siblings or []} >= {"adapter_config.json"}


def test_list_rows_hold_only_what_was_expanded(hub: FaultHub) -> None:
    rows = RawAnswer(hub.url, "GET", "/api/models?expand=sha&expand[]=config&limit=1").json
    assert set(rows[0]) == {"_id", "id", "modelId", "sha", "config"}
    assert rows[0]["config"] == {"peft": {"base_model_name_or_path": BASE, "task_type": "CAUSAL_LM"}}


def test_next_link_is_absolute_and_keeps_the_query(hub: FaultHub) -> None:
    answer = RawAnswer(hub.url, "GET", "/api/models?filter=peft&filter=safetensors&limit=1&expand=sha")
    link = answer.headers["Link"]
    assert link.startswith(f"<{hub.url}/api/models?filter=peft&filter=safetensors&limit=1&expand=sha&cursor=")
    assert link.endswith('>; rel="next"')


def test_a_page_shows_what_changed_since_the_first(root: Path) -> None:
    with FaultHub(root) as running:
        first = RawAnswer(running.url, "GET", "/api/models?limit=2")
        requests = {row["id"] for row in first.json}
        gone = next(name for name in ("lora", "gated", "disabled") if f"ann/{name}" not in requests)
        for file in (root / "ann" / gone).iterdir():
            file.unlink()
        (root / "ann" / gone).rmdir()
        second = urlsplit(first.headers["Link"].split(">")[0][1:])
        assert RawAnswer(running.url, "GET", f"{second.path}?{second.query}").json == []


@pytest.mark.parametrize(
    "query",
    ["cursor=x", "limit=0", "expand=secrets", "sort=name", "direction=0"],
    ids=lambda query: str(query),
)
def test_bad_queries_are_named(hub: FaultHub, query: str) -> None:
    answer = RawAnswer(hub.url, "GET", f"/api/models?{query}")
    assert answer.status == 400
    assert answer.headers["X-Error-Message"]


def test_repo_info_with_file_metadata(api: HfApi, root: Path) -> None:
    info = api.repo_info("ann/lora", files_metadata=True)
    assert info.siblings is not None
    weights = next(file for file in info.siblings if file.rfilename == "adapter_model.safetensors")
    assert weights.lfs is not None
    assert weights.size == weights.lfs.size == (root / "ann/lora/adapter_model.safetensors").stat().st_size
    assert api.model_info("ann/lora", revision=info.sha, securityStatus=True).sha == info.sha


def test_tree_paths_refs_and_commits(api: HfApi) -> None:
    tree = list(api.list_repo_tree("ann/lora", recursive=True, expand=True))
    assert [entry.path for entry in tree] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert [entry.path for entry in api.get_paths_info("ann/lora", ["README.md", "none"])] == ["README.md"]
    sha = api.model_info("ann/lora").sha
    assert api.list_repo_refs("ann/lora", include_pull_requests=True).branches[0].target_commit == sha
    assert [commit.commit_id for commit in api.list_repo_commits("ann/lora")] == [sha]


@pytest.mark.parametrize("body", [b"[]", b'{"paths": 1}', b"{", b"\xff"])
def test_a_bad_paths_body_is_refused(hub: FaultHub, body: bytes) -> None:
    target = "/api/models/ann/lora/paths-info/main"
    assert RawAnswer(hub.url, "POST", target, body, Content_Type="application/json").status == 400


def test_a_long_paths_body_is_refused(hub: FaultHub) -> None:
    assert (
        RawAnswer(hub.url, "POST", "/api/models/ann/lora/paths-info/main", b"x" * (1 << 20) + b"x").status
        == 413
    )


@pytest.mark.parametrize(("expand", "pages"), [(False, 2), (True, 25)])
def test_a_large_tree_comes_in_pages(root: Path, expand: bool, pages: int) -> None:
    make_repo(root, "ann/large", {f"checkpoint-{number}/x.json": "{}" for number in range(601)})
    with FaultHub(root) as running:
        api = HfApi(endpoint=running.url, token=False)
        tree = [entry.path for entry in api.list_repo_tree("ann/large", recursive=True, expand=expand)]
        assert running.count("api") == pages
    assert len(tree) == len(set(tree)) == 1202


def test_download_and_cache(hub: FaultHub, root: Path, tmp_path: Path) -> None:
    for path in ("adapter_config.json", "adapter_model.safetensors"):
        assert download(hub, tmp_path, path).read_bytes() == (root / "ann/lora" / path).read_bytes()
    assert not any(
        name.startswith("x-xet") for name in RawAnswer(hub.url, "GET", "/api/models/ann/lora").headers
    )


def test_snapshot_by_branch_and_by_commit(hub: FaultHub, api: HfApi, root: Path, tmp_path: Path) -> None:
    main = Path(snapshot_download("ann/lora", endpoint=hub.url, token=False, cache_dir=tmp_path / "a"))
    sha = api.model_info("ann/lora").sha
    assert main.name == sha
    assert {file.name for file in main.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    hub.clear()
    snapshot_download("ann/lora", revision=sha, endpoint=hub.url, token=False, cache_dir=tmp_path / "b")
    assert hub.count("api") == 1  # the tree alone
    assert hub.count("resolver") == 6


def test_checksums_are_those_the_client_computes(hub: FaultHub, api: HfApi, tmp_path: Path) -> None:
    snapshot_download("ann/lora", endpoint=hub.url, token=False, cache_dir=tmp_path)
    verified = api.verify_repo_checksums("ann/lora", cache_dir=tmp_path)
    assert verified.checked_count == 3
    assert not verified.mismatches


def test_case_23_renamed_repositories_answer_under_the_old_name(
    api: HfApi, hub: FaultHub, tmp_path: Path
) -> None:
    assert api.model_info("ann/old").id == "ann/lora"
    assert [entry.path for entry in api.list_repo_tree("ann/old")]
    result = hf_hub_download("ann/old", "README.md", endpoint=hub.url, token=False, cache_dir=tmp_path)
    assert Path(result).read_text().startswith("---")
    moved = RawAnswer(hub.url, "GET", "/api/models/ann/old?expand=sha")
    assert (moved.status, moved.headers["Location"]) == (307, "/api/models/ann/lora?expand=sha")


@pytest.mark.parametrize(
    ("repo_id", "path", "revision", "error"),
    [
        pytest.param("ann/gated", "README.md", None, GatedRepoError, id="case-22-gated"),
        pytest.param("ann/private", "README.md", None, RepositoryNotFoundError, id="case-22-private"),
        pytest.param("ann/nothing", "README.md", None, RepositoryNotFoundError, id="case-22-missing"),
        pytest.param("ann/lora", "README.md", "f" * 40, RevisionNotFoundError, id="case-25-revision"),
        pytest.param("ann/lora", "README.md", "refs/pr/1", RevisionNotFoundError, id="case-25-pull-request"),
        pytest.param("ann/lora", "nothing.txt", None, EntryNotFoundError, id="case-25-entry"),
    ],
)
def test_what_the_client_makes_of_refusals(
    hub: FaultHub, tmp_path: Path, repo_id: str, path: str, revision: str | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        hf_hub_download(repo_id, path, revision=revision, endpoint=hub.url, token=False, cache_dir=tmp_path)


def test_gated_and_disabled_still_show_metadata(api: HfApi) -> None:
    assert api.model_info("ann/gated").gated == "manual"
    assert list(api.list_repo_tree("ann/gated"))
    assert api.model_info("ann/disabled").disabled is True
    with pytest.raises(DisabledRepoError):
        list(api.list_repo_tree("ann/disabled"))
    with pytest.raises(DisabledRepoError):
        api.get_hf_file_metadata(
            url=hf_hub_url("ann/disabled", "README.md", endpoint=api.endpoint), token=False
        )


@pytest.mark.parametrize(
    ("target", "anonymous", "with_token"),
    [
        ("/api/models/ann/nothing", 401, 404),
        ("/api/models/ann/private", 401, 404),
        ("/ann/gated/resolve/main/README.md", 401, 403),
        ("/ann/disabled/resolve/main/README.md", 403, 403),
        ("/api/whoami-v2", 401, 401),
        ("/api/agent-harnesses", 404, 404),
        ("/api/datasets/ann/lora", 401, 404),
        ("/api/models/ann/lora/", 404, 404),
    ],
)
def test_statuses_of_refusals(hub: FaultHub, target: str, anonymous: int, with_token: int) -> None:
    assert RawAnswer(hub.url, "GET", target).status == anonymous
    assert RawAnswer(hub.url, "GET", target, Authorization="Bearer hf_x").status == with_token


@pytest.mark.parametrize(
    "path",
    [
        "../disabled/README.md",
        "../../../secret.txt",
        "..%2F..%2F..%2Fsecret.txt",
        "%2Fetc%2Fpasswd",
        "/etc/passwd",
        ".hub.json",
        ".git/config",
        "sub/../README.md",
        "README.md%00",
        "README.md/",
    ],
)
def test_no_path_leads_out(hub: FaultHub, root: Path, path: str) -> None:
    (root.parent / "secret.txt").write_text("hush")
    make_repo(root, "ann/lora", {".git/config": "hush", "sub/x": "x"})
    answer = RawAnswer(hub.url, "GET", f"/ann/lora/resolve/main/{path}")
    assert answer.status == 404
    assert b"hush" not in answer.body


@pytest.mark.parametrize("repo_id", ["../hub", "..%2F..", ".git/x", "ann/..", "ann/.cache", "ann/%2e%2e"])
def test_no_repository_leads_out(hub: FaultHub, repo_id: str) -> None:
    assert RawAnswer(hub.url, "GET", f"/api/models/{repo_id}").status in (401, 404)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "POST"])
def test_nothing_can_be_written(hub: FaultHub, method: str) -> None:
    assert RawAnswer(hub.url, method, "/ann/lora/resolve/main/README.md", b"x").status == 405


WEIGHTS = "/ann/lora/resolve/main/adapter_model.safetensors"


@pytest.mark.parametrize(
    ("asked", "status", "part", "content_range"),
    [
        ("bytes=0-99", 206, slice(0, 100), "bytes 0-99/{size}"),
        ("bytes=8-", 206, slice(8, None), "bytes 8-{last}/{size}"),
        ("bytes=-4", 206, slice(-4, None), None),
        ("bytes=0-100000000", 206, slice(None), "bytes 0-{last}/{size}"),
        ("bytes=100000000-", 416, slice(0, 0), "bytes */{size}"),
    ],
)
def test_ranges(
    hub: FaultHub, root: Path, asked: str, status: int, part: slice, content_range: str | None
) -> None:
    content = (root / "ann/lora/adapter_model.safetensors").read_bytes()
    answer = RawAnswer(hub.url, "GET", WEIGHTS, Range=asked)
    assert (answer.status, answer.body) == (status, content[part])
    if content_range is not None:
        expected = content_range.format(size=len(content), last=len(content) - 1)
        assert answer.headers["Content-Range"] == expected


def test_headers_of_files(hub: FaultHub, api: HfApi) -> None:
    files = {file.rfilename: file for file in api.model_info("ann/lora", files_metadata=True).siblings or []}
    sha = api.model_info("ann/lora").sha
    lfs, small = files["adapter_model.safetensors"], files["README.md"]
    assert lfs.lfs is not None
    head = RawAnswer(hub.url, "HEAD", WEIGHTS)
    assert head.body == b""
    assert head.headers["X-Repo-Commit"] == sha
    assert head.headers["ETag"] == head.headers["X-Linked-Etag"] == f'"{lfs.lfs.sha256}"'
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == str(lfs.size)
    assert head.headers["Accept-Ranges"] == "bytes"
    plain = RawAnswer(hub.url, "HEAD", "/ann/lora/resolve/main/README.md")
    assert plain.headers["ETag"] == f'"{small.blob_id}"'
    assert plain.headers["X-Linked-Etag"] is None


def test_conditional_requests(hub: FaultHub) -> None:
    etag = RawAnswer(hub.url, "HEAD", WEIGHTS).headers["ETag"]
    for names in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = RawAnswer(hub.url, "GET", WEIGHTS, If_None_Match=names)
        assert (answer.status, answer.body) == (304, b"")
    assert RawAnswer(hub.url, "GET", WEIGHTS, If_None_Match='"other"').status == 200
    assert RawAnswer(hub.url, "GET", WEIGHTS, Range="bytes=0-9", If_Range=etag).status == 206
    assert RawAnswer(hub.url, "GET", WEIGHTS, Range="bytes=0-9", If_Range='"other"').status == 200


def test_safetensors_header_by_range(api: HfApi) -> None:
    header = api.parse_safetensors_file_metadata("ann/lora", "adapter_model.safetensors")
    assert len(header.tensors) == 4
    assert header.metadata == {"format": "pt"}


def test_names_that_need_quoting(root: Path, tmp_path: Path) -> None:
    name = "sub dir/ä#?%41.txt"
    make_repo(root, "ann/lora", {name: "here"})
    with FaultHub(root, cdn=True, redirect_small=True) as running:
        assert download(running, tmp_path, name).read_text() == "here"
        assert RawAnswer(
            running.url, "GET", f"/api/models/ann/lora/tree/main/{quote('sub dir', safe='')}"
        ).json


def test_case_44_lfs_bodies_come_from_another_origin(root: Path, tmp_path: Path) -> None:
    with FaultHub(root, cdn=True) as running:
        head = RawAnswer(running.url, "HEAD", WEIGHTS)
        assert head.status == 302
        assert head.headers["Location"].startswith(f"{running.cdn_url}/cdn/")
        running.clear()
        path = hf_hub_download(
            "ann/lora",
            "adapter_model.safetensors",
            endpoint=running.url,
            token="hf_secret",
            cache_dir=tmp_path,
        )
        assert Path(path).read_bytes() == (root / "ann/lora/adapter_model.safetensors").read_bytes()
        bodies = [request for request in running.log if request.kind == "cdn"]
        assert [request.status for request in bodies] == [200]
        assert "authorization" not in bodies[0].headers
        assert any("authorization" in request.headers for request in running.log)
        assert RawAnswer(running.cdn_url or "", "GET", "/cdn/ann/lora/" + "0" * 64 + "/x").status == 404


def test_small_files_through_resolve_cache(root: Path, tmp_path: Path) -> None:
    with FaultHub(root, redirect_small=True) as running:
        head = RawAnswer(running.url, "HEAD", "/ann/lora/resolve/main/README.md?download=true")
        assert head.status == 307
        assert head.headers["Location"].startswith("/api/resolve-cache/models/ann/lora/")
        assert "download=true&etag=" in head.headers["Location"]
        assert (
            download(running, tmp_path, "README.md").read_bytes()
            == (root / "ann/lora/README.md").read_bytes()
        )
        assert download(running, tmp_path, "adapter_model.safetensors").is_file()
        cached = head.headers["Location"]
        assert RawAnswer(running.url, "GET", cached.replace("ann/lora", "ann/gated")).status == 404
        assert RawAnswer(running.url, "GET", cached.replace("README.md", "none")).status == 404


def test_a_folder_edited_while_it_is_served(api: HfApi, root: Path) -> None:
    before = api.model_info("ann/lora")
    (root / "ann/lora/notes.txt").write_text("new")
    make_repo(root, "bob/later")
    after = api.model_info("ann/lora")
    assert after.sha != before.sha
    assert "bob/later" in {model.id for model in api.list_models()}
    with pytest.raises(RevisionNotFoundError):
        api.model_info("ann/lora", revision=before.sha)


def test_a_bad_override_is_a_server_error_that_names_the_file(root: Path, hub: FaultHub) -> None:
    (root / "ann/lora/.hub.json").write_text("{")
    answer = RawAnswer(hub.url, "GET", "/api/models/ann/lora")
    assert answer.status == 500
    assert "ann/lora/.hub.json" in answer.headers["X-Error-Message"]


def test_the_log_and_its_counts(hub: FaultHub) -> None:
    for target in ("/api/models?limit=1", "/ann/lora/resolve/main/none", "/nothing"):
        RawAnswer(hub.url, "GET", target, X_Mark="here")
    first = hub.log[0]
    assert (first.method, first.path, first.query, first.status) == ("GET", "/api/models", "limit=1", 200)
    assert first.headers["x-mark"] == "here"
    assert [(request.kind, request.status) for request in hub.log[1:]] == [("resolver", 404), ("other", 404)]
    assert (hub.count("api"), hub.count("resolver"), hub.count("cdn")) == (1, 1, 0)
    hub.clear()
    assert hub.log == []


def test_limits_on_a_clock(root: Path) -> None:
    now = [0.0]
    limits = Limits(api=2, resolver=1, window=300, clock=lambda: now[0])
    with FaultHub(root, limits=limits) as running:

        def ask(target: str) -> tuple[int, str | None]:
            answer = RawAnswer(running.url, "GET", target)
            return answer.status, answer.headers["RateLimit"]

        assert ask("/api/models") == (200, '"api";r=1;t=300')
        now[0] = 100
        assert ask("/api/models/ann/nothing") == (401, '"api";r=0;t=200')
        assert ask("/api/models") == (429, '"api";r=0;t=200')
        assert ask("/ann/lora/resolve/main/README.md") == (200, '"resolvers";r=0;t=200')
        assert ask("/nothing") == (404, None)
        now[0] = 650
        assert ask("/api/models") == (200, '"api";r=1;t=250')
        policy = RawAnswer(running.url, "GET", "/api/models").headers["RateLimit-Policy"]
        assert policy == '"fixed window";"api";q=2;w=300'


def test_the_client_sees_429(root: Path) -> None:
    with FaultHub(root, limits=Limits(api=1)) as running:
        api = HfApi(endpoint=running.url, token=False)
        api.model_info("ann/lora")
        with pytest.raises(HfHubHTTPError) as caught:
            api.model_info("ann/lora")
        assert caught.value.response.status_code == 429


def test_the_port_is_free_again_afterwards(root: Path) -> None:
    with FaultHub(root) as running:
        url, port = running.url, urlsplit(running.url).port
        RawAnswer(url, "GET", "/api/models")
    with pytest.raises(ConnectionRefusedError):
        RawAnswer(url, "GET", "/api/models")
    with FaultHub(root, port=port or 0) as again:
        assert again.url == url
        assert RawAnswer(url, "GET", "/api/models").status == 200


def test_no_folder_and_no_port_are_one_clear_sentence(root: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        create_app(root / "nothing")
    with pytest.raises(UsageError, match="is not a folder"), FaultHub(root / "nothing"):
        pass
    with socket.create_server(("127.0.0.1", 0)) as selected:
        port = selected.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} .*choose another"):
            serve(root, "127.0.0.1", port)
    with pytest.raises(UsageError, match="70000 is not a port"):
        serve(root, "127.0.0.1", 70_000)


SERVE = """
import sys
import threading
from pathlib import Path
from crawler.localhub.folder import Digest, HubFile, HubFolder
from crawler.localhub import serve
serve(Path(sys.argv[1]), "127.0.0.1", 0, lambda url: print(url, flush=True))
"""


def test_serve_until_interrupted(root: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert RawAnswer(url, "GET", "/api/models/ann/lora").json["id"] == "ann/lora"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(hub: FaultHub, hub_env: dict[str, str]) -> Run:
    def run_(*command: str) -> subprocess.CompletedProcess[str]:
        env = hub_env | {"HF_ENDPOINT": hub.url}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)

    return run_


@pytest.mark.slow
def test_the_hf_command(run: Run, root: Path, tmp_path: Path) -> None:
    hf = str(Path(sys.executable).with_name("hf"))
    done = run(hf, "download", "ann/lora", "--local-dir", str(tmp_path / "here"))
    assert done.returncode == 0, done.stderr
    weights = (tmp_path / "here/adapter_model.safetensors").read_bytes()
    assert weights == (root / "ann/lora/adapter_model.safetensors").read_bytes()
    assert run(hf, "download", "ann/nothing").returncode != 0


PEFT = """
import sys
import threading
from peft import PeftConfig
from peft.utils import load_peft_weights
print(PeftConfig.from_pretrained("ann/lora").r, len(load_peft_weights("ann/lora", device="cpu")))
"""


@pytest.mark.slow
def test_peft_loads_from_it(run: Run) -> None:
    done = run(sys.executable, "-c", PEFT)
    assert done.stdout.split() == ["4", "4"], done.stderr


def test_a_file_that_cannot_be_read_harms_its_own_repository_alone(
    hub: FaultHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repo(root, "bob/good")
    digest = HubFolder.digest

    def refuse(folder: HubFolder, file: HubFile) -> Digest:
        if "/ann/" in file.disk:
            raise PermissionError(13, "Permission denied", file.disk)
        return digest(folder, file)

    monkeypatch.setattr(HubFolder, "digest", refuse)
    answer = RawAnswer(hub.url, "GET", "/ann/lora/resolve/main/README.md")
    assert (answer.status, str(root) in answer.body.decode()) == (500, False)
    rows = RawAnswer(hub.url, "GET", "/api/models?expand=sha").json
    assert [row["id"] for row in rows] == ["bob/good"]


def test_a_server_stops_when_it_is_told_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait until uvicorn looks whether it is to stop, as it does ten times a second."""

    async def look(_server: uvicorn.Server, _count: int) -> bool:
        return False

    def serve() -> None:
        with FaultHub(root):
            pass

    monkeypatch.setattr(uvicorn.Server, "on_tick", look)
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_an_answer_begun_before_the_server_stops_is_sent_and_one_that_never_comes_is_cancelled() -> None:
    begun, cancelled = {"/slow": threading.Event(), "/never": threading.Event()}, threading.Event()
    stop = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun[scope["path"]].set()
        try:
            while scope["path"] == "/never" or not stop.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"whole"})

    answers: dict[str, bytes] = {}

    def ask(address: str, path: str) -> None:
        with closing(http.client.HTTPConnection(address)) as connection:
            connection.request("GET", path)
            answers[path] = connection.getresponse().read()

    with LocalServer(lambda: app) as server:
        address = urlsplit(server.url).netloc
        threads = [threading.Thread(target=ask, args=(address, path)) for path in begun]
        for thread, event in zip(threads, begun.values(), strict=True):
            thread.start()
            assert event.wait(30)
        stop.set()
    for thread in threads:
        thread.join()
    assert answers == {"/slow": b"whole", "/never": b"Internal Server Error"}
    assert cancelled.is_set()
