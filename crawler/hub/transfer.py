"""A remote file's bytes, checked against its commit's hash: whole, in part, or into the store."""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable

from catalog.errors import HubPayloadError, IntegrityError, WeightsError
from catalog.files import BlobWriter
from crawler.hub import wire
from crawler.hub.exchange import Answer
from crawler.hub.tree import RemoteFile

# Four of five headers fit; a header of all linear layers of an 8B model has 60 to 75 KB.
FIRST_PART = 131_072
_LENGTH = 8
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')


def read_whole(answer: Answer, file: RemoteFile) -> bytes:
    """All bytes of a small file; raises IntegrityError unless size and hash are the promised ones."""
    _check_form(answer, file, asked_from=None)
    data = bytearray()
    for chunk in answer.chunks:
        data += chunk
        if len(data) > file.size:
            raise IntegrityError(f"{file.path} is longer than its {file.size:,} bytes.", url=answer.url)
    if file.sha256 is not None:
        good = hashlib.sha256(data).hexdigest() == file.sha256
    else:
        # The name git gives a file: its sha1 behind a header with the length.
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        good = git.hexdigest() == file.oid
    if not good:
        raise IntegrityError(f"{file.path} does not have the hash in its commit.", url=answer.url)
    return bytes(data)


def read_part(answer: Answer, file: RemoteFile, first: int, last: int) -> bytes:
    """Bytes `first` to `last`; a server that sends the whole file is read that far and no further.

    Raises HubPayloadError for a different part than requested, IntegrityError if the file ends too early.
    """
    _check_form(answer, file, asked_from=first)
    skip = first if answer.status == 200 else 0
    data = bytearray()
    for chunk in answer.chunks:
        data += chunk
        if len(data) > skip + last - first:
            return bytes(data[skip : skip + last - first + 1])
    raise IntegrityError(f"{file.path} ends before byte {last:,}.", url=answer.url)


def read_header(file: RemoteFile, part: Callable[[int, int], bytes], limit: int) -> bytes:
    """The length and the JSON of a safetensors header: 8+n bytes, in one part where they fit, else in two.

    Raises WeightsError: truncated for a header that does not fit the file, too_large for more than `limit`
    bytes.
    """
    if file.size < _LENGTH:
        raise WeightsError("truncated", f"{file.path} has {file.size} bytes, too few for a safetensors file.")
    head = part(0, min(FIRST_PART, file.size) - 1)
    (length,) = struct.unpack_from("<Q", head)
    if _LENGTH + length > file.size:
        raise WeightsError("truncated", f"{file.path} is shorter than the header it announces.")
    if length > limit:
        raise WeightsError("too_large", f"{file.path} announces a header of {length:,} bytes.")
    if _LENGTH + length > len(head):
        head += part(len(head), _LENGTH + length - 1)
    return head[: _LENGTH + length]


class Download:
    """One file on its way into the store, over as many answers as it takes.

    `continued` means that the latest answer continues bytes of an earlier one, which may be wrong.
    """

    def __init__(self, file: RemoteFile, blob: BlobWriter) -> None:
        self._file = file
        self._blob = blob
        self.continued = False

    def ask(self) -> dict[str, str]:
        """The request headers for what is still missing; If-Range makes a changed file come whole."""
        self.continued = self._blob.offset > 0
        if not self.continued:
            return {}
        headers = {"Range": f"bytes={self._blob.offset}-"}
        if validator := _strong(self._blob.validator):
            headers["If-Range"] = validator
        return headers

    def take(self, answer: Answer) -> None:
        """Write the answer's bytes; one that begins at zero replaces earlier bytes.

        Raises HubPayloadError for a different part than requested, IntegrityError for a wrong size or hash.
        """
        _check_form(answer, self._file, asked_from=self._blob.offset or None)
        if answer.status == 200:
            self.restart()
        # The server's own name for the bytes goes back to that server as it came, and is never a path.
        self._blob.remember(_strong(answer.headers.get("etag")))
        for chunk in answer.chunks:
            self._blob.write(chunk)
        self._blob.check()

    def restart(self) -> None:
        """Discard the received bytes."""
        self.continued = False
        self._blob.restart()


def _check_form(answer: Answer, file: RemoteFile, *, asked_from: int | None) -> None:
    """Refuse an encoded body, an unrequested part, and a wrong size."""
    encoding = answer.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise HubPayloadError(f"The Hub sent {file.path} encoded, which was not requested.", url=answer.url)
    if answer.status == 206:
        first, _, size = wire.content_range(answer.headers.get("content-range", ""), url=answer.url)
        if first != asked_from:
            raise HubPayloadError(
                f"The Hub sent a different part of {file.path} than requested.", url=answer.url
            )
    else:
        length = answer.headers.get("content-length", "")
        size = int(length) if re.fullmatch(r"[0-9]{1,19}", length) else None
    if size not in (None, file.size):
        raise IntegrityError(
            f"{file.path} has {size:,} bytes, but {file.size:,} in its commit.", url=answer.url
        )


def _strong(etag: str | None) -> str | None:
    return etag if etag is not None and _STRONG_ETAG.fullmatch(etag) else None
