"""The Hub's routes over a folder: models, data sets, trees, files. Every endpoint reads, none writes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from catalog.errors import UsageError
from crawler.localhub.fields import COMMIT_TITLE, DETAIL, describe, file_entry, siblings, tree
from crawler.localhub.folder import DATASETS, HubFile, HubFolder, HubRepository
from crawler.localhub.listing import (
    BadQueryError,
    decode_cursor,
    encode_cursor,
    is_requested,
    list_page,
    list_query,
    page_limit,
    parse_expand,
    truth,
)

logger = logging.getLogger(__name__)

MAX_BODY = 1024 * 1024  # bytes of a POST body
EXPANDED_TREE_PAGE = 50
DISABLED = "Access to this resource is disabled."
NOT_FACTS = frozenset({"_id", "id", "modelId", "files", "previous_names"})


class RefusedError(Exception):
    """An answer the Hub gives with X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})


class HubApi:
    """The endpoints over one folder; files are sent directly, without the Hub's redirects."""

    def __init__(self, folder: HubFolder) -> None:
        self._folder = folder
        self._datasets: HubFolder | None = None
        self._listed: list[HubRepository] | None = None

    def routes(self) -> list[Route]:
        routes = [Route("/api/models", self.list_models), Route("/api/whoami-v2", self.whoami)]
        for kind, place in (("models", ""), (DATASETS, f"/{DATASETS}")):
            repo = f"/api/{kind}/{{owner}}/{{name}}"
            routes += [
                Route(repo, self.detail),
                Route(f"{repo}/revision/{{rev:path}}", self.detail),
                Route(f"{repo}/tree/{{rev}}", self.tree),
                Route(f"{repo}/tree/{{rev}}/{{path:path}}", self.tree),
                Route(f"{repo}/paths-info/{{rev}}", self.paths_info, methods=["POST"]),
                Route(f"{repo}/refs", self.refs),
                Route(f"{repo}/commits/{{rev:path}}", self.commits),
                Route(f"{place}/{{owner}}/{{name}}/resolve/{{rev}}/{{path:path}}", self.resolve),
            ]
        return routes

    def list_models(self, request: Request) -> Response:
        params = _params(request)
        query = list_query(params)
        if query.after is None or self._listed is None:
            self._listed = self._folder.scan()
            page, cursor = list_page(self._listed, query)
        else:
            # The whole folder was looked at for the first page; for the next ones only their own rows are.
            page, cursor = list_page(self._listed, query)
            fresh = [self._folder.find(repository.repo_id) for repository in page]
            page = [
                repository
                for repository in fresh
                if repository is not None and is_requested(repository, query)
            ]
        rows = [_row(repository, query.fields) for repository in page]
        return _json([row for row in rows if row is not None], _next_link(request, cursor))

    def whoami(self, request: Request) -> Response:
        raise RefusedError(401, None, "Invalid credentials in Authorization header")

    def detail(self, request: Request) -> Response:
        repository = self._repository(request)
        params = _params(request)
        fields = parse_expand(params)
        more = [name for name in repository.overrides if name not in NOT_FACTS]
        described = describe(repository, fields or (*DETAIL, *more))
        if not fields and truth(params, "blobs"):
            described["siblings"] = siblings(repository, blobs=True)
        if truth(params, "securityStatus"):
            described.setdefault("securityRepoStatus", {"scansDone": False, "filesWithIssues": []})
        return _json(described)

    def tree(self, request: Request) -> Response:
        repository = self._repository(request)
        _refuse_disabled(repository)
        params = _params(request)
        folder = request.path_params.get("path", "").strip("/")
        expand = truth(params, "expand")
        entries = tree(repository, folder, recursive=truth(params, "recursive"), expand=expand)
        if entries is None:
            raise _no_entry(repository, folder)
        after = decode_cursor(params["cursor"][-1], "path")[0] if "cursor" in params else ""
        entries = [entry for entry in entries if entry["path"] > after]
        limit = page_limit(params, EXPANDED_TREE_PAGE) if expand else page_limit(params)
        last = entries[limit - 1]["path"] if len(entries) > limit else None
        cursor = encode_cursor({"path": {"$gt": last}}) if last is not None else None
        return _json(entries[:limit], _next_link(request, cursor))

    async def paths_info(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise RefusedError(413, None, "The list of paths is too long")
        paths, expand = _requested_paths(body, request.headers.get("content-type", ""))
        return await run_in_threadpool(self._paths_info, request, paths, expand)

    def _paths_info(self, request: Request, paths: Sequence[str], expand: bool) -> Response:
        repository = self._repository(request)
        folders = tree(repository, "", recursive=True, expand=expand) or []
        directories = {entry["path"]: entry for entry in folders if entry["type"] == "directory"}
        directories |= {
            path: file_entry(repository, path, expand=expand) for path in paths if path in repository.files
        }
        return _json([directories[path] for path in dict.fromkeys(paths) if path in directories])

    def refs(self, request: Request) -> Response:
        repository = self._repository(request)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.sha}
        refs: dict[str, Any] = {"branches": [main], "converts": [], "tags": []}
        return _json(refs | ({"pullRequests": []} if truth(_params(request), "include_prs") else {}))

    def commits(self, request: Request) -> Response:
        repository = self._repository(request)
        commit = {
            "id": repository.sha,
            "title": COMMIT_TITLE,
            "message": "",
            "authors": [{"user": repository.owner}],
            "date": repository.last_modified,
        }
        return _json([commit])

    def resolve(self, request: Request) -> Response:
        repository = self._repository(request)
        _refuse_disabled(repository)
        if repository.flag("gated"):
            status = 403 if "authorization" in request.headers else 401
            message = f"Access to model {repository.repo_id} is restricted. You must have access to it."
            raise RefusedError(status, "GatedRepo", message)
        path = request.path_params["path"]
        file, digest = repository.files.get(path), repository.digests.get(path)
        if file is None or digest is None:
            raise _no_entry(repository, path)
        headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{digest.etag}"', "Accept-Ranges": "bytes"}
        if digest.sha256 is not None:
            headers |= {"X-Linked-Etag": f'"{digest.sha256}"', "X-Linked-Size": str(digest.size)}
        return _file(request, file, headers)

    def _folder_of(self, path: str) -> HubFolder | None:
        """The folder that a path asks for: that of the models, or of the data sets."""
        if not path.startswith((f"/api/{DATASETS}/", f"/{DATASETS}/")):
            return self._folder
        if self._datasets is None:
            self._datasets = self._folder.datasets()
        return self._datasets

    def _repository(self, request: Request) -> HubRepository:
        """The repository a request names, at the revision it names. Raises RefusedError."""
        requested = f"{request.path_params['owner']}/{request.path_params['name']}"
        folder = self._folder_of(request.url.path)
        repository = folder.find(requested) if folder else None
        if folder and repository is None and (new := folder.new_name(requested)) is not None:
            moved = request.url.path.replace(f"/{requested}", f"/{new}", 1)
            query = f"?{request.url.query}" if request.url.query else ""
            raise RefusedError(307, None, f"Renamed to {new}", {"Location": f"{moved}{query}"})
        if repository is None or repository.flag("private"):
            status = 404 if "authorization" in request.headers else 401
            raise RefusedError(status, "RepoNotFound", "Repository not found")
        revision = request.path_params.get("rev", "main")
        if revision not in ("main", repository.sha):
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository


def error_response(_request: Request, error: Exception) -> Response:
    """The Hub's answer to what an endpoint raised; `localhub` says which exceptions come here."""
    status, code, headers = 500, None, {}
    message = str(error)
    if isinstance(error, RefusedError):
        status, code, headers = error.status, error.code, error.headers
    elif isinstance(error, HTTPException):
        status, message, headers = error.status_code, error.detail, dict(error.headers or {})
    elif isinstance(error, BadQueryError):
        status = 400
    elif isinstance(error, FileNotFoundError):
        status, code, message = 404, "EntryNotFound", "Entry not found"
    elif not isinstance(error, UsageError):
        message = "A file of this repository cannot be read"
    printable = "".join(letter if " " <= letter <= "~" else "?" for letter in message).strip()
    headers |= {"X-Error-Message": printable} | ({"X-Error-Code": code} if code else {})
    return _json({"error": message}, headers, status)


def _refuse_disabled(repository: HubRepository) -> None:
    if repository.flag("disabled"):
        raise RefusedError(403, None, DISABLED)


def _no_entry(repository: HubRepository, path: str) -> RefusedError:
    return RefusedError(404, "EntryNotFound", f"{path} does not exist", {"X-Repo-Commit": repository.sha})


def _row(repository: HubRepository, fields: Sequence[str]) -> dict[str, Any] | None:
    """A list row, or None with a warning if a file vanished or cannot be read."""
    try:
        return describe(repository, fields)
    except OSError as error:
        logger.warning("%s is left out of a list: %s", repository.repo_id, error)
        return None


def _file(request: Request, file: HubFile, headers: dict[str, str]) -> Response:
    """The bytes of a file, whole or a range of them, or 304. Raises OSError."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if headers["ETag"] in tags or "*" in tags:
        return Response(status_code=304, headers=headers)
    status = os.stat(file.disk)  # noqa: PTH116 (FileResponse takes the result)
    return FileResponse(file.disk, headers=headers, stat_result=status)


def _json(value: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Response:
    # ASCII, because file names and cards may hold lone surrogates, which UTF-8 cannot encode.
    return Response(json.dumps(value).encode("ascii"), status, headers, "application/json")


def _params(request: Request) -> dict[str, list[str]]:
    return parse_qs(request.url.query, keep_blank_values=True)


def _next_link(request: Request, cursor: str | None) -> dict[str, str]:
    if cursor is None:
        return {}
    params = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    url = request.url.replace(query=urlencode([*params, ("cursor", cursor)]))
    return {"Link": f'<{url}>; rel="next"'}


def _requested_paths(body: bytes, content_type: str) -> tuple[list[str], bool]:
    """The paths and the expand flag of a paths-info body, a form or JSON. Raises BadQueryError."""
    try:
        if content_type.startswith("application/json"):
            document = json.loads(body)
        else:
            form = parse_qs(body.decode("utf-8"))
            document = {"paths": form.get("paths", []), "expand": truth(form, "expand")}
        return [str(path) for path in document["paths"]], bool(document.get("expand", False))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise BadQueryError("The body must name paths") from None
