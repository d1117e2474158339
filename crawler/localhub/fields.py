"""The API's JSON of one repository: its fields, its files and its tree."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

from crawler.localhub.folder import Digest, HubRepository, derive_identity

COMMIT_TITLE = "Upload folder"
BASIC = (
    "likes",
    "trendingScore",
    "private",
    "downloads",
    "tags",
    "library_name",
    "pipeline_tag",
    "createdAt",
)
FULL = (*BASIC, "author", "sha", "lastModified", "gated", "disabled", "siblings")
DETAIL = (*FULL, "cardData", "config", "model-index", "spaces", "usedStorage")


def describe(repository: HubRepository, fields: Iterable[str]) -> dict[str, Any]:
    """The JSON object of a repository: its identity and those fields that are known. Raises OSError."""
    described: dict[str, Any] = {
        "_id": repository.overrides.get("_id", repository.identity),
        "id": repository.repo_id,
        "modelId": repository.repo_id,
    }
    for name in fields:
        value = field_value(repository, name)
        if value is not None or name in repository.overrides:
            described[name] = value
    return described


def field_value(repository: HubRepository, name: str) -> Any:
    """One field: from .hub.json, else derived from the files, else None."""
    if name in repository.overrides:
        return repository.overrides[name]
    return FIELDS[name](repository) if name in FIELDS else None


def siblings(repository: HubRepository, *, blobs: bool) -> list[dict[str, Any]]:
    """The files of a repository as the detail route lists them; with `blobs` their sizes and hashes too."""
    if "siblings" in repository.overrides or not blobs:
        listed: list[dict[str, Any]] = field_value(repository, "siblings")
        return listed
    return [
        {"rfilename": path, "size": digest.size, "blobId": digest.oid}
        | ({"lfs": _lfs(digest, "sha256")} if digest.sha256 else {})
        for path, digest in repository.digests.items()
    ]


def tree(
    repository: HubRepository, folder: str, *, recursive: bool, expand: bool
) -> list[dict[str, Any]] | None:
    """Entries below `folder` ("" is the root), by path; None if the folder does not exist."""
    prefix = f"{folder}/" if folder else ""
    below = {path: digest for path, digest in repository.digests.items() if path.startswith(prefix)}
    if folder and not below:
        return None
    folders: dict[str, list[str]] = {}
    for path, digest in below.items():
        parts = path[len(prefix) :].split("/")
        for depth in range(1, len(parts)):
            folders.setdefault(prefix + "/".join(parts[:depth]), []).append(f"{path}\0{digest.etag}\n")
    entries = [file_entry(repository, path, expand=expand) for path in below]
    entries += [_folder_entry(repository, path, "".join(lines), expand) for path, lines in folders.items()]
    listed_entries = [entry for entry in entries if recursive or "/" not in entry["path"][len(prefix) :]]
    return sorted(listed_entries, key=itemgetter("path"))


def file_entry(repository: HubRepository, path: str, *, expand: bool) -> dict[str, Any]:
    """A file in the format of the tree and paths-info routes; KeyError if it does not exist."""
    digest = repository.digests[path]
    entry: dict[str, Any] = {"type": "file", "oid": digest.oid, "size": digest.size, "path": path}
    if digest.sha256:
        entry["lfs"] = _lfs(digest, "oid")
    if expand:
        entry["lastCommit"] = _last_commit(repository)
        entry["securityFileStatus"] = {"status": "unscanned", "avScan": None, "pickleImportScan": None}
    return entry


def _folder_entry(repository: HubRepository, path: str, content: str, expand: bool) -> dict[str, Any]:
    oid = hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "directory", "oid": oid, "size": 0, "path": path}
    return entry | ({"lastCommit": _last_commit(repository)} if expand else {})


def _last_commit(repository: HubRepository) -> dict[str, Any]:
    return {"id": repository.sha, "title": COMMIT_TITLE, "date": repository.last_modified}


def _lfs(digest: Digest, hash_name: str) -> dict[str, Any]:
    return {hash_name: digest.sha256, "size": digest.size, "pointerSize": digest.pointer_size}


def _base_models(repository: HubRepository) -> dict[str, Any] | None:
    derived = repository.derive
    if not derived.base_models:
        return None
    return {
        "relation": derived.relation,
        "models": [{"_id": derive_identity(base), "id": base} for base in derived.base_models],
    }


def _config(repository: HubRepository) -> dict[str, Any] | None:
    adapter = repository.adapter_config
    if adapter is None:
        return None
    fields = ("base_model_name_or_path", "task_type")
    return {"peft": {name: adapter[name] for name in fields if name in adapter}}


FIELDS: Mapping[str, Callable[[HubRepository], Any]] = {
    "author": lambda repo: repo.owner,
    "baseModels": _base_models,
    "cardData": lambda repo: repo.derive.card,
    "config": _config,
    "createdAt": lambda repo: repo.created_at,
    "disabled": lambda repo: repo.flag("disabled"),
    "downloads": lambda _: 0,
    "downloadsAllTime": lambda repo: field_value(repo, "downloads"),
    "gated": lambda repo: repo.flag("gated"),
    "lastModified": lambda repo: repo.last_modified,
    "library_name": lambda repo: repo.derive.library,
    "likes": lambda _: 0,
    "model-index": lambda repo: (repo.derive.card or {}).get("model-index"),
    "pipeline_tag": lambda repo: repo.derive.pipeline_tag,
    "private": lambda repo: repo.flag("private"),
    "sha": lambda repo: repo.sha,
    "siblings": lambda repo: [{"rfilename": path} for path in sorted(repo.files)],
    "spaces": lambda _: [],
    "tags": lambda repo: repo.tags,
    "trendingScore": lambda _: 0,
    "usedStorage": lambda repo: sum(digest.size for digest in repo.digests.values() if digest.sha256),
}
# Valid on the Hub, but unknown for a folder unless they are in .hub.json.
UNKNOWN_HERE = (
    "childrenModelCount",
    "evalResults",
    "gguf",
    "inference",
    "inferenceProviderMapping",
    "mask_token",
    "resourceGroup",
    "safetensors",
    "transformersInfo",
    "widgetData",
)
