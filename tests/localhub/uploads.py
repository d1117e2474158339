"""A local Hub that takes data sets as the real one does without Xet: repositories, LFS objects, commits."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from crawler.localhub import HubFolder, LocalHub

REPOSITORY = "/datasets/{owner}/{name}"


class UploadHub(LocalHub):
    """A Hub of the data sets in a folder, which its owner may change; `visibility` is that of each.

    `commits` has the lines of every commit, and `uploaded` the digests of the LFS objects that were sent.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, wrap=self._accept)
        self.visibility: dict[str, str] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.uploaded: dict[str, bytes] = {}
        self.refuses_objects = False

    def add(self, name: str, visibility: str) -> None:
        """Makes an empty data set."""
        self.visibility[name] = visibility
        (self.root / "datasets" / name).mkdir(parents=True)
        (self.root / "datasets" / name / ".gitattributes").write_text("*.parquet filter=lfs\n")

    def _accept(self, app: ASGIApp) -> ASGIApp:
        return Starlette(
            routes=[
                Route("/api/repos/create", self._create, methods=["POST"]),
                Route("/api/validate-yaml", _validate, methods=["POST"]),
                Route(f"/api{REPOSITORY}", self._detail),
                Route(f"/api{REPOSITORY}/revision/{{rev}}", self._detail),
                Route(f"/api{REPOSITORY}/preupload/{{rev}}", self._preupload, methods=["POST"]),
                Route(f"/api{REPOSITORY}/commit/{{rev}}", self._commit, methods=["POST"]),
                Route(f"{REPOSITORY}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
                Route("/upload/{oid}", self._upload, methods=["PUT"]),
                Mount("/", app),
            ]
        )

    async def _create(self, request: Request) -> Response:
        body = await request.json()
        name = f"{body['organization']}/{body['name']}"
        if name in self.visibility:
            return JSONResponse({"error": "You already created this dataset repo"}, 409)
        assert body["type"] == "dataset"
        self.add(name, body["visibility"])
        return JSONResponse({"url": f"{self.url}/datasets/{name}"})

    async def _detail(self, request: Request) -> Response:
        name = _name(request)
        if name not in self.visibility:
            return Response(status_code=401, headers={"X-Error-Code": "RepoNotFound"})
        found = HubFolder(self.root / "datasets").find(name)
        assert found is not None
        private = self.visibility[name] == "private"
        return JSONResponse({"_id": "0" * 24, "id": name, "sha": found.sha, "private": private})

    async def _preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        modes = [("lfs" if file["path"].endswith(".parquet") else "regular") for file in files]
        answers = [
            {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            for file, mode in zip(files, modes, strict=True)
        ]
        return JSONResponse({"files": answers})

    async def _batch(self, request: Request) -> Response:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}}
            for one in (await request.json())["objects"]
        ]
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def _upload(self, request: Request) -> Response:
        content = await request.body()
        if self.refuses_objects or hashlib.sha256(content).hexdigest() != request.path_params["oid"]:
            return Response(status_code=403)
        self.uploaded[request.path_params["oid"]] = content
        return Response()

    async def _commit(self, request: Request) -> Response:
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        self.commits.append(lines)
        name = _name(request)
        for line in lines[1:]:
            path = self.root / "datasets" / name / line["value"]["path"]
            path.parent.mkdir(exist_ok=True)
            if line["key"] == "deletedFile":
                path.unlink()
            elif line["key"] == "file":
                path.write_bytes(base64.b64decode(line["value"]["content"]))
            else:
                path.write_bytes(self.uploaded[line["value"]["oid"]])
        found = HubFolder(self.root / "datasets").find(name)
        assert found is not None
        url = f"{self.url}/datasets/{name}/commit/{found.sha}"
        return JSONResponse({"success": True, "commitOid": found.sha, "commitUrl": url})


async def _validate(_request: Request) -> Response:
    return JSONResponse({"errors": [], "warnings": []})


def _name(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"
