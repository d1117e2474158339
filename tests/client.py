"""One repository on a local Hub, as the tests of the client ask for it; the fixtures are in conftest.py."""

from __future__ import annotations

from crawler.hub import Hub, RemoteFile

NAME = "someone/adapter"
TOKEN = "hf_TheSecretOfThisTest"


def commit_of(hub: Hub) -> str:
    return str(hub.repository(NAME)["sha"])


def file_of(hub: Hub, path: str = "README.md") -> tuple[str, RemoteFile]:
    commit = commit_of(hub)
    return commit, next(file for file in hub.tree(NAME, commit).files if file.path == path)
