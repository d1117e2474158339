"""The page on this machine: documents, answers that need a server, and saving of pools, tags and notes."""

from __future__ import annotations

import gzip
import secrets
import socket
import threading
import webbrowser
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib.resources import files
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeGuard

from catalog.adapters import USES
from catalog.database import reading
from catalog.errors import LoradexError, NotFoundError, UsageError
from catalog.extras import require_extra
from catalog.files import BlobStore
from catalog.search import NeighbourSearch
from loradex.arguments import check_arguments, check_choice
from loradex.catalog import Catalog
from loradex.comparison import compare_subjects, exactness_notes, find_stored_subject, subject_notes
from loradex.page.documents import MOST_NEWS, Documents, encode_hits
from loradex.page.encoding import encode_json
from loradex.progress import ProgressEvent, ProgressOption, reporting

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": f"{POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
    "bin": "application/octet-stream",
}
_FOR_EVER = "public, max-age=31536000, immutable"
# Documents below this size are not compressed.
_SMALL = 1000
_MOST_BODY = 1_000_000
# Rows of an answer.
_MOST_HITS, _MOST_NEAR = 100, 20
# Adapters that one request writes about.
_MOST_ADAPTERS = 1000
# States of the catalog whose documents are still delivered to pages that were opened before a change.
_MOST_STATES = 3
# Compressed documents that are kept of one state, in bytes.
_MOST_BYTES = 200_000_000
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class _Body:
    """The bytes of a document, compressed once where that saves something."""

    content: bytes
    is_compressed: bool

    @classmethod
    def of(cls, content: bytes) -> _Body:
        if len(content) < _SMALL:
            return cls(content, False)
        return cls(gzip.compress(content, 6, mtime=0), True)


class Site:
    """The page of a catalog: its documents at their newest state, and what only a server can answer.

    Args:
        catalog: The catalog.
        read_only: Whether nothing can be saved.
    """

    def __init__(self, catalog: Catalog, *, read_only: bool = False) -> None:
        self.catalog = catalog
        self.read_only = read_only
        self.token = secrets.token_urlsafe(24)
        self._states: OrderedDict[str, Documents] = OrderedDict()
        self._bodies: OrderedDict[tuple[str, str], _Body] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[tuple[str, str], threading.Lock] = {}
        # An index that another writes is not waited for, but made in memory: hence one thread at a time.
        self._indexes = threading.Lock()

    @property
    def newest(self) -> Documents:
        """The documents of the catalog as it is now."""
        with self._lock:
            newest = next(reversed(self._states.values()), None)
            if newest is None or not newest.is_current():
                newest = Documents(self.catalog)
                self._states[newest.stamp] = newest
                self._states.move_to_end(newest.stamp)
                while len(self._states) > _MOST_STATES:
                    stamp, _ = self._states.popitem(last=False)
                    self._forget(stamp)
            return newest

    def head(self) -> bytes:
        """`head.json`, with what this server can do."""
        host = {"read_only": self.read_only, "token": "" if self.read_only else self.token}
        return self.newest.head(host)

    def warm(self) -> None:
        """Makes what the first view needs, before the browser asks for it."""
        with suppress(LoradexError):
            self.body(self.newest.stamp, "list.json")
            self.head()
            self.newest.keep()

    def body(self, stamp: str, name: str) -> _Body:
        """A document of a state; raises NotFoundError where that is not known any more."""
        documents, key = self._states.get(stamp), (stamp, name)
        if documents is None:
            raise NotFoundError("The catalog has changed; load the page again.")
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            body = self._bodies.get(key)
            if body is None:
                reads_index: AbstractContextManager[Any] = nullcontext()
                if name.startswith("nearest/"):
                    reads_index = self._indexes
                with reads_index:
                    body = _Body.of(documents.document(name))
                with self._lock:
                    self._bodies[key] = body
                    while sum(len(row.content) for row in self._bodies.values()) > _MOST_BYTES:
                        self._bodies.popitem(last=False)
        with self._lock:
            self._making.pop(key, None)
        return body

    def _forget(self, stamp: str) -> None:
        for key in [key for key in self._bodies if key[0] == stamp]:
            del self._bodies[key]

    def search(self, query: Mapping[str, str]) -> bytes:
        """The hits of a text, by words or by meaning too."""
        text, where, by_meaning = query.get("q", ""), query.get("where", ""), query.get("meaning") == "1"
        rules = query.get("rules", "ours")
        with self._indexes:
            if by_meaning and self.read_only:
                return self.newest.search_stored(text, where, _MOST_HITS, rules)
            rows = self.catalog.search(text, _MOST_HITS, where=where, words_only=not by_meaning, rules=rules)
        return encode_hits(rows, rows.notes)

    def similar(self, query: Mapping[str, str]) -> bytes:
        """The exact neighbours of an adapter of the catalog."""
        settings, adapter = self.catalog.settings, query.get("a", "")
        blobs = BlobStore(settings.blobs)
        with self._indexes, reading(settings) as session:
            subject = find_stored_subject(session, adapter, blobs)
            others = NeighbourSearch(session, settings.index, blobs, (), every=True)
            rows = others.neighbours(subject, count=_MOST_NEAR, exact=True)
            hidden = others.hidden_notes(subject, rows, count=_MOST_NEAR)
            notes = [*subject_notes(adapter, subject), *hidden, *exactness_notes(rows)]
        return encode_json({"rows": rows, "notes": notes})

    def compare(self, query: Mapping[str, str]) -> bytes:
        """Two adapters of the catalog, by their weights where these are kept."""
        blobs = BlobStore(self.catalog.settings.blobs)
        with reading(self.catalog.settings) as session:
            pair = [find_stored_subject(session, query.get(name, ""), blobs) for name in ("a", "b")]
        return encode_json(compare_subjects(*pair))

    def message(self, error: Exception) -> str:
        """What an error says; on a page that is read-only, which others may read, without folders of this
        machine.
        """
        text, settings = str(error), self.catalog.settings
        if self.read_only:
            for path in (settings.rules_file, settings.data):
                for form in (path, path.absolute(), path.resolve()) if path else ():
                    # A path of one part is a name.
                    text = text.replace(str(form), form.name) if len(form.parts) > 1 else text
        return text

    def word(self, query: Mapping[str, str]) -> bytes:
        """The places in the list whose cards contain a word."""
        return self.newest.rows_with_word(query.get("w", "")[:200])

    def adapter(self, query: Mapping[str, str]) -> bytes:
        """The document of an adapter, of an older commit too."""
        return self.newest.adapter_at(query.get("a", ""))

    def save_pool(self, request: Mapping[str, Any]) -> bytes:
        """Saves the named adapters as a pool; raises UsageError for what is not a request for one."""
        name, adapters = request.get("name"), request.get("adapters")
        if not isinstance(name, str) or not isinstance(adapters, list) or not adapters:
            raise UsageError("A pool requires a name and a list of adapters.")
        pool = self.catalog.select(
            name,
            by="named",
            k=None,
            adapters=[str(adapter) for adapter in adapters],
            use=check_choice("use", str(request.get("use", "research")), USES),
            controls=request.get("controls") is True,
        )
        return encode_json(
            {"pool": pool.name, "members": len(pool), "digest": pool.digest, "notes": pool.notes}
        )

    def changes(self, query: Mapping[str, str]) -> bytes:
        """What is new, changed, gone, licensed otherwise or gated since a time."""
        rows = self.catalog.changes(query.get("since", "7d"), where=query.get("where", ""))
        return encode_json({"rows": rows[:MOST_NEWS], "beyond": max(0, len(rows) - MOST_NEWS)})

    def annotate(self, request: Mapping[str, Any]) -> bytes:
        """Writes tags, a note and hidden marks; raises UsageError for what is not a request for that."""
        adapters = request.get("adapters")
        if not _are_texts(adapters) or not 0 < len(adapters) <= _MOST_ADAPTERS:
            raise UsageError(f"A request to annotate requires 1 to {_MOST_ADAPTERS:,} adapters.")
        tags, removed = request.get("tags", []), request.get("remove_tags", [])
        note, hidden = request.get("note"), request.get("hidden")
        if not _are_texts(tags) or not _are_texts(removed) or not isinstance(note, (str, type(None))):
            raise UsageError("`tags` and `remove_tags` are lists of texts, `note` is a text.")
        if hidden is not None and not isinstance(hidden, bool):
            raise UsageError("`hidden` is true or false.")
        rows = self.catalog.annotate(adapters, tags=tags, remove_tags=removed, note=note, hidden=hidden)
        names = {"adapter": "adapter", "own_tags": "tags", "note": "note", "hidden": "hidden"}
        return encode_json(
            {"rows": [{key: getattr(row, name) for key, name in names.items()} for row in rows]}
        )


def _are_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def create_app(site: Site, hosts: tuple[str, ...] = _LOOPBACK) -> ASGIApp:
    """The application of a page, which answers requests to these hosts alone.

    Args:
        site: The page.
        hosts: Names that the `Host` of a request may have, see `is_known_host`.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    static = static_files()

    def document(request: Request) -> Response:
        name = request.path_params["name"]
        body = site.body(request.path_params["stamp"], name)
        return _respond(request, body, name, _FOR_EVER)

    def head(request: Request) -> Response:
        return _respond(request, _Body.of(site.head()), "head.json", "no-store")

    def asset(request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        if name not in static:
            raise NotFoundError(f"The page has no file {name[:80]!r}.")
        return _respond(request, _Body.of(static[name]), name, "no-cache")

    def failed(_request: Request, error: Exception) -> Response:
        from starlette.responses import Response

        code = 404 if isinstance(error, NotFoundError) else 400 if isinstance(error, UsageError) else 409
        return Response(encode_json({"error": site.message(error)}), code, media_type=TYPES["json"])

    answers = {"search": site.search, "similar": site.similar, "compare": site.compare}
    answers |= {"word": site.word, "adapter": site.adapter, "changes": site.changes}
    writers = {"pools": site.save_pool, "notes": site.annotate}
    app = Starlette(
        routes=[
            Route("/", asset),
            Route("/head.json", head),
            Route("/d/{stamp}/{name:path}", document),
            *(Route(f"/api/{name}", _answer(make)) for name, make in answers.items()),
            *(Route(f"/api/{name}", _saver(site, save), methods=["POST"]) for name, save in writers.items()),
            Route("/{name}", asset),
        ],
        exception_handlers={LoradexError: failed, Exception: _crashed},
    )
    # Outside of all of Starlette, which answers for a crash outside of its own middleware.
    return _Guard(app, hosts)


def _answer(make: Callable[[Mapping[str, str]], bytes]) -> Callable[[Request], Response]:
    def respond(request: Request) -> Response:
        if any("\0" in value for value in request.query_params.values()):
            raise UsageError("A text of a request cannot have the character NUL.")
        return _respond(request, _Body.of(make(request.query_params)), "answer.json", "no-store")

    return respond


def _saver(
    site: Site, save: Callable[[Mapping[str, Any]], bytes]
) -> Callable[[Request], Awaitable[Response]]:
    async def respond(request: Request) -> Response:
        return await _save(request, site, save)

    return respond


async def _save(request: Request, site: Site, save: Callable[[Mapping[str, Any]], bytes]) -> Response:
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response

    refusal = _refusal_to_save(request, site)
    if refusal:
        return Response(encode_json({"error": refusal}), 403, media_type=TYPES["json"])
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _MOST_BODY:
            raise UsageError("A request to save may have at most 1 MB.")
    result = await run_in_threadpool(save, _read_object(content))
    return Response(result, media_type=TYPES["json"], headers={"cache-control": "no-store"})


def _crashed(_request: Request, _error: Exception) -> Response:
    from starlette.responses import Response

    text = "The server made an error; what it printed says which."
    return Response(encode_json({"error": text}), 500, media_type=TYPES["json"])


class _Guard:
    """Lets in requests to known hosts alone, and adds the headers of security to every answer."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        if not is_known_host(headers.get(b"host", b"").decode("latin-1"), self._hosts):
            from starlette.responses import PlainTextResponse

            text = "This page answers under its own address alone.\n"
            await PlainTextResponse(text, 400)(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)


def is_known_host(header: str, hosts: tuple[str, ...]) -> bool:
    """Whether the `Host` of a request is one of these; "*" stands for any address that is not a name.

    A page of another site can make its own name mean this machine, but not an address (DNS rebinding).
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    name = name.strip("[]").lower()
    if name in hosts:
        return True
    if "*" not in hosts:
        return False
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def static_files() -> dict[str, bytes]:
    """The files of the page by name: HTML, style and scripts, the same in an export."""
    folder = files("loradex.page") / "static"
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in TYPES
    }


def _refusal_to_save(request: Request, site: Site) -> str:
    """Why a request may not save; empty where it may."""
    if site.read_only:
        return "This page is read-only."
    origin = request.headers.get("origin", "")
    if origin != f"{request.url.scheme}://{request.headers.get('host', '')}":
        return "Only the page itself saves."
    if not request.headers.get("content-type", "").startswith("application/json"):
        return "A request to save is JSON."
    token = request.headers.get("x-loradex-token", "")
    if not secrets.compare_digest(token.encode(), site.token.encode()):
        return "The server was started again; load the page again."
    return ""


def _read_object(content: bytes) -> dict[str, Any]:
    from catalog.files import load_json

    try:
        value = load_json(content)
    except (LoradexError, ValueError) as error:
        raise UsageError(f"The request is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UsageError("The request is not a JSON object.")
    return value


def _respond(request: Request, body: _Body, name: str, caching: str) -> Response:
    from starlette.responses import Response

    headers = {"cache-control": caching, "vary": "accept-encoding"}
    content = body.content
    if body.is_compressed:
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
        else:
            content = gzip.decompress(content)
    headers["content-type"] = TYPES.get(name.rpartition(".")[2], TYPES["bin"])
    return Response(content, headers=headers)


@check_arguments
def serve_page(
    catalog: Catalog,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    read_only: bool = False,
    browser: bool = True,
    progress: ProgressOption = True,
) -> None:
    """Serves the page of a catalog until it is interrupted.

    Args:
        catalog: The catalog.
        host: The address to listen on. Under another one than this machine's own nothing can be saved, and
            everybody who reaches it reads the catalog.
        port: The port; 0 takes any free one.
        read_only: Whether pools, tags, notes and hidden marks cannot be saved.
        browser: Whether to open the page in the browser.
        progress: See `loradex.progress`; a note has the address.

    Raises:
        UsageError: The extra "serve" is not installed, or the address cannot be used.
        NoCatalogError: There is no catalog yet.
    """
    require_extra("serve", "The page")
    from crawler.localhub import serve_app

    catalog.check()
    is_local = host in _LOOPBACK
    site = Site(catalog, read_only=read_only or not is_local)
    hosts = _LOOPBACK if is_local else ("*", *_LOOPBACK, host.lower(), socket.gethostname().lower())
    with reporting(progress) as report:

        def announce(url: str) -> None:
            threading.Thread(target=site.warm, daemon=True).start()
            report(ProgressEvent("serving", note=f"serving the page at {url}"))
            if not is_local:
                text = "everybody who reaches this address reads the catalog; nothing can be saved"
                report(ProgressEvent("serving", note=text))
            if browser:
                webbrowser.open(url)

        serve_app(create_app(site, hosts), host, port, announce)
