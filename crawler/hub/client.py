"""The client of the Hub: listings, repositories, file lists and files, all bounded and checked.

The only module that talks to the Hub. Next pages and redirects stay on the Hub's own host, names and paths
are checked before they become part of a URL, and every file is compared with the hash in the commit's tree.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from catalog.adapters import valid_name
from catalog.errors import HubPayloadError, IntegrityError, UsageError
from catalog.files import BlobStore, unsafe_path
from crawler.hub import wire
from crawler.hub.budget import Clock, RequestBudget
from crawler.hub.exchange import Answer, Ask, Exchange, HubSettings, Usage
from crawler.hub.rows import KEPT
from crawler.hub.transfer import Download, read_header, read_part, read_whole
from crawler.hub.tree import RemoteFile, RepositoryTree, read_tree

# What a listing row and a repository's own row carry beyond the id; the Hub refuses names it does not know.
_EXPAND = [("expand", name) for name in (*KEPT, "config", "siblings")]
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The two kinds of repositories that are read, by their names in the API.
RepoKind = Literal["models", "datasets"]


@dataclass(frozen=True)
class Page:
    """One listing page: raw rows, and the URL of the next page."""

    rows: tuple[object, ...]
    next_url: str | None


class Hub:
    """One Hub for one crawl; its methods may be called from several threads.

    They raise HubUnreachableError and HubBusyError after all retries, HubPayloadError for invalid answers,
    HubAccessError for inaccessible ones, IntegrityError for wrong bytes, and WaitCancelledError once `stop`
    is set.
    """

    def __init__(
        self,
        settings: HubSettings,
        *,
        budget: RequestBudget | None = None,
        clock: Clock | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.settings = settings
        self._exchange = Exchange(settings, budget, clock, stop or threading.Event())

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._exchange.close()

    @property
    def usage(self) -> Usage:
        """The requests to the Hub so far."""
        return self._exchange.usage

    def use_budget(self, budget: RequestBudget) -> None:
        """Makes later requests wait for this budget."""
        self._exchange.budget = budget

    def listing_url(self, filters: Sequence[str], *, sort: str) -> str:
        """The first page of the models that have all these tags, newest first by `sort`; sends nothing."""
        query = [("filter", tag) for tag in filters]
        query += [("sort", sort), ("limit", str(self.settings.page_limit))]
        return f"{self.settings.endpoint}/api/models?{urlencode(query + _EXPAND)}"

    def page(self, url: str) -> Page:
        """One page of a listing; raises CursorExpiredError when the Hub no longer continues from this URL."""
        rows, next_url = self._rows(url, self.settings.list_body)
        return Page(tuple(rows), next_url)

    def repository(self, name: str) -> dict[str, object]:
        """The row of one repository, by its present or a former name; its `id` is the present one."""
        url = f"{self._api_url(name, 'models')}?{urlencode(_EXPAND)}"

        def read(answer: Answer) -> dict[str, object]:
            row = _json(answer, self.settings.list_body)
            if not isinstance(row, dict):
                raise HubPayloadError("The Hub's description of the repository is not valid.", url=answer.url)
            return row

        return self._exchange.ask(self._api(url), read)

    def dataset(self, name: str, revision: str = "main") -> dict[str, object]:
        """The row of a data set at a commit, tag or branch.

        `id` is its name now, `sha` the commit, `cardData` from the card.
        """
        url = f"{self._api_url(name, 'datasets')}/revision/{_revision(revision)}"

        def read(answer: Answer) -> dict[str, object]:
            row = _json(answer, self.settings.list_body)
            if (
                not isinstance(row, dict)
                or not _COMMIT.fullmatch(str(row.get("sha")))
                or not valid_name(str(row.setdefault("id", name)))
            ):
                raise HubPayloadError("The Hub's description of the data set is not valid.", url=answer.url)
            return row

        return self._exchange.ask(self._api(url), read)

    def tree(self, name: str, commit: str, kind: RepoKind = "models") -> RepositoryTree:
        """Every file of one commit, at any depth; invalid entries are reported in its problems."""
        start = f"{self._api_url(name, kind)}/tree/{_revision(commit)}?recursive=true&expand=false"
        url: str | None = start
        rows: list[object] = []
        urls: set[str] = set()
        problems = []
        while url is not None:
            if url in urls or len(urls) == self.settings.tree_pages:
                problems.append(f"the file list goes on after {len(urls)} pages; the rest is left out")
                break
            urls.add(url)
            page, url = self._rows(url, self.settings.tree_body)
            rows += page
        return read_tree(rows, problems)

    def small_file(self, name: str, commit: str, file: RemoteFile, kind: RepoKind = "models") -> bytes:
        """All bytes of a small file, equal to what the tree promised.

        The hash decides, so an answer without a commit is accepted; one with a different commit is not.
        """
        if file.size > self.settings.small_file:
            raise HubPayloadError(f"{file.path} has {file.size:,} bytes, too many for a small file.")
        if file.oid is None and file.sha256 is None:
            raise IntegrityError(f"{file.path} has no hash to verify it with.")

        def read(answer: Answer) -> bytes:
            _check_commit(answer, commit)
            return read_whole(answer, file)

        return self._exchange.ask(self._resolve(name, commit, file, self.settings.deadline, kind), read)

    def header(self, name: str, commit: str, file: RemoteFile) -> bytes:
        """The safetensors header with its length, 8+n bytes; raises WeightsError for one that cannot be.

        No hash covers a part of a file, so here the answer must name its commit.
        """

        def part(first: int, last: int) -> bytes:
            def read(answer: Answer) -> bytes:
                _check_commit(answer, commit, required=True)
                return read_part(answer, file, first, last)

            ask = self._resolve(name, commit, file, self.settings.deadline)
            return self._exchange.ask(replace(ask, headers=lambda: {"Range": f"bytes={first}-{last}"}), read)

        return read_header(file, part, self.settings.header)

    def download(
        self, name: str, commit: str, file: RemoteFile, blobs: BlobStore, kind: RepoKind = "models"
    ) -> Path:
        """The path of the file's bytes in the store, verified by sha256; continues an earlier download."""
        if file.sha256 is None:
            raise IntegrityError(f"{file.path} has no sha256 to store it by.")
        seconds = self.settings.deadline + self.settings.seconds_per_megabyte * file.size / 1e6
        with blobs.writer(file.sha256, file.size) as blob:
            if not blob.present:
                download = Download(file, blob)
                ask = replace(self._resolve(name, commit, file, seconds, kind), headers=download.ask)

                def take(answer: Answer) -> None:
                    _check_commit(answer, commit)
                    download.take(answer)

                try:
                    self._exchange.ask(ask, take)
                except (IntegrityError, HubPayloadError):
                    # The bytes of an earlier answer may be wrong; if it fails without them, the file is.
                    if not download.continued:
                        raise
                    download.restart()
                    self._exchange.ask(ask, take)
        return blobs.path(file.sha256)

    def _api_url(self, name: str, kind: RepoKind) -> str:
        if not valid_name(name):
            what = "a data set" if kind == "datasets" else "a repository"
            raise UsageError(f"{name[:80]!r} is not the name of {what}; write owner/name.")
        return f"{self.settings.endpoint}/api/{kind}/{quote(name)}"

    def _api(self, url: str) -> Ask:
        return Ask(url, "api", self.settings.deadline, lambda: {"Accept-Encoding": "gzip"})

    def _resolve(
        self, name: str, commit: str, file: RemoteFile, seconds: float, kind: RepoKind = "models"
    ) -> Ask:
        if not valid_name(name) or unsafe_path(file.path):
            raise UsageError("This is not a file of a repository.")
        place = f"datasets/{quote(name)}" if kind == "datasets" else quote(name)
        url = f"{self.settings.endpoint}/{place}/resolve/{_revision(commit)}/{quote(file.path)}"
        return Ask(url, "resolver", seconds)

    def _rows(self, url: str, limit: int) -> tuple[list[object], str | None]:
        if wire.origin(url) != self._exchange.origin:
            raise HubPayloadError("The page is not on the Hub's own host.", url=wire.without_query(url))

        def read(answer: Answer) -> tuple[list[object], str | None]:
            rows = wire.parse_rows(_body(answer, limit), url=answer.url)
            return rows, self._check_next(url, answer.next_url)

        return self._exchange.ask(self._api(url), read)

    def _check_next(self, url: str, next_url: str | None) -> str | None:
        """The next page's URL; raises HubPayloadError unless it is another page of the same listing."""
        if next_url is None:
            return None
        wrong = None
        if wire.origin(next_url) is None:
            wrong = "is not an absolute address"
        elif wire.origin(next_url) != self._exchange.origin:
            wrong = "is on another host"
        elif urlsplit(next_url).path != urlsplit(url).path:
            wrong = "belongs to another listing"
        elif parse_qsl(urlsplit(next_url).query) == parse_qsl(urlsplit(url).query):
            wrong = "is the page itself"
        if wrong:
            raise HubPayloadError(f"The next page of the list {wrong}.", url=wire.without_query(url))
        return next_url


def _revision(commit: str) -> str:
    """The commit or branch as one part of a URL; raises UsageError for any other text."""
    if not commit or unsafe_path(commit):
        raise UsageError(f"{commit[:80]!r} is not a commit.")
    return quote(commit, safe="")


def _json(answer: Answer, limit: int) -> object:
    return wire.parse_json(_body(answer, limit), url=answer.url)


def _body(answer: Answer, limit: int) -> bytes:
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    return wire.read_body(answer.chunks, encoding=encoding, limit=limit, url=answer.url)


def _check_commit(answer: Answer, commit: str, *, required: bool = False) -> None:
    """Raises IntegrityError for an answer of another commit; a branch may stand for any."""
    if answer.commit is None and required:
        raise IntegrityError("The Hub's answer does not name the commit of the file.", url=answer.url)
    if answer.commit is not None and _COMMIT.fullmatch(commit) and answer.commit != commit:
        raise IntegrityError("The Hub answered with a file of another commit.", url=answer.url)
