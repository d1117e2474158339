"""Header texts that are not ASCII neither end a crawl nor hide why the Hub refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from catalog.errors import HubAccessError, HubError, HubPayloadError
from catalog.files import BlobStore
from crawler.hub import Hub, HubSettings, RemoteFile
from tests.edges.rows import row
from tests.fakes import RawServer, VirtualClock
from tests.shared_data import shared

Program = Callable[..., Result]
FILE = RemoteFile("adapter_model.safetensors", 10, None, "0" * 64)


def answering(data: bytes) -> Callable[[bytes], Iterator[bytes]]:
    def say(_head: bytes) -> Iterator[bytes]:
        yield data

    return say


def refusal(status: int, *headers: bytes) -> bytes:
    head = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %d X\r\nContent-Length: 2\r\nConnection: close\r\n%b\r\n{}" % (status, head)


@shared
def test_a_refusal_in_french_keeps_its_reason(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(answering((row("26-error-header") / "answer.http").read_bytes())) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        result = run("crawl", "--any-base", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["errors"] == {"refused": 1}
    assert "Traceback" not in result.stderr
    assert "The Hub refuses with HTTP 403" in result.stderr


@pytest.mark.parametrize("text", ["Accès refusé".encode(), "Accès refusé".encode("latin-1"), b"\xff\xfe\x80"])
@pytest.mark.parametrize(
    ("status", "code", "meaning"),
    [
        (403, b"GatedRepo", "gated"),
        (401, b"RepoNotFound", "private_or_missing"),
        (404, b"RevisionNotFound", "revision_gone"),
        (403, b"\xc3\xa9", "refused"),
    ],
)
def test_the_code_decides_whatever_the_message_says(
    text: bytes, status: int, code: bytes, meaning: str
) -> None:
    answer = refusal(status, b"X-Error-Code: " + code, b"X-Error-Message: " + text)
    with RawServer(answering(answer)) as server, Hub(HubSettings(server.url, attempts=1)) as hub:
        for ask in (lambda: hub.repository("a/b"), lambda: hub.tree("a/b", "main")):
            with pytest.raises(HubAccessError) as caught:
                ask()
            assert caught.value.status == meaning


ODD = (
    b"\xc3\xa9",
    b"\xe9\xff",
    "bytes ٠-٩/٣".encode(),
    b"9" * 5000,
    b'<\xff>; rel="next"',
    b"https://[\xe9/",
)
NAMES = (b"Link", b"ETag", b"RateLimit", b"RateLimit-Policy", b"Location", b"Content-Range", b"Retry-After")
FURTHER = (b"Date", b"X-Repo-Commit", b"Content-Encoding", b"Set-Cookie", b"X-Linked-Etag")


@pytest.mark.parametrize("status", [200, 206, 302, 403, 429, 503])
def test_odd_bytes_in_any_header_end_in_an_error_of_the_hub(status: int, tmp_path: Path) -> None:
    answer = b""
    blobs = BlobStore(tmp_path)
    settings = HubSettings("http://127.0.0.1:1", attempts=1, timeout=2.0, deadline=5.0)
    with RawServer(lambda _: [answer]) as server:
        with Hub(replace(settings, endpoint=server.url), clock=VirtualClock()) as hub:
            for name in (*NAMES, *FURTHER):
                for odd in ODD:
                    answer = refusal(status, name + b": " + odd)
                    with suppress(HubError):
                        hub.repository("a/b")
                    with suppress(HubError):
                        hub.download("a/b", "0" * 40, FILE, blobs)
        assert len(server.heads) >= 2 * len(ODD) * len((*NAMES, *FURTHER))


def test_a_redirect_to_a_host_that_no_resolver_takes(tmp_path: Path) -> None:
    answer = refusal(302, b"Location: https://" + b"a" * 70 + b".com/x")
    with RawServer(answering(answer)) as server, Hub(HubSettings(server.url, attempts=1)) as hub:
        blobs = BlobStore(tmp_path)
        with pytest.raises(HubPayloadError):
            hub.download("a/b", "0" * 40, FILE, blobs)
