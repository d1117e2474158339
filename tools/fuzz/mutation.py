"""Mutations of known inputs: the same seed gives the same inputs in the same order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

LONGEST = 1 << 16
# Small pieces that readers of text and of binary headers stumble over, whatever their format.
PIECES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    "\u202e\u2028\u0085".encode(),
    b"\r",
    b"\n---\n",
    b"[" * 200,
    b"{" * 200,
    b'{"a":' * 70,
    b"9" * 5000,
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b"\\ud800",
    b"\\u0000",
    b"18446744073709551616",
    b"9223372036854775808",
    (2**63).to_bytes(8, "little"),
    (2**31).to_bytes(4, "little"),
    b"../../etc/passwd",
    b"%s%n{0}",
)


def mutations(seeds: Sequence[bytes], pieces: Sequence[bytes], seed: str) -> Iterator[bytes]:
    """Endless inputs: each seed as it is, then seeds changed in one to six places."""
    draw = random.Random(seed)
    yield from seeds
    dictionary = (*PIECES, *pieces)
    while True:
        data = draw.choice(seeds)
        for _ in range(draw.randint(1, 6)):
            data = draw.choice(_CHANGES)(data, seeds, dictionary, draw)
        yield data[:LONGEST]


Change = Callable[[bytes, Sequence[bytes], Sequence[bytes], random.Random], bytes]


def _flip(data: bytes, _seeds: Sequence[bytes], _pieces: Sequence[bytes], draw: random.Random) -> bytes:
    if not data:
        return b"\x00"
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def _byte(data: bytes, _seeds: Sequence[bytes], _pieces: Sequence[bytes], draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _insert(data: bytes, _seeds: Sequence[bytes], pieces: Sequence[bytes], draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice(pieces) + data[at:]


def _replace(data: bytes, _seeds: Sequence[bytes], pieces: Sequence[bytes], draw: random.Random) -> bytes:
    """A piece in place of one word: a value of another kind where a reader expects its own."""
    words = data.split(b" ")
    words[draw.randrange(len(words))] = draw.choice(pieces)
    return b" ".join(words)


def _value(data: bytes, _seeds: Sequence[bytes], pieces: Sequence[bytes], draw: random.Random) -> bytes:
    """A piece in place of what follows one colon, up to the next comma, brace or line end."""
    colons = [at for at, byte in enumerate(data) if byte == ord(":")]
    if not colons:
        return data
    begin = draw.choice(colons) + 1
    ends = [at for at in (data.find(mark, begin) for mark in (b",", b"}", b"\n")) if at >= 0]
    return data[:begin] + b" " + draw.choice(pieces) + data[min(ends, default=len(data)) :]


def _overwrite(data: bytes, _seeds: Sequence[bytes], pieces: Sequence[bytes], draw: random.Random) -> bytes:
    """A piece in place of as many bytes: offsets behind it stay what they were."""
    piece, at = draw.choice(pieces), draw.randint(0, len(data))
    return data[:at] + piece[: len(data) - at] + data[at + len(piece) :]


def _cut(data: bytes, _seeds: Sequence[bytes], _pieces: Sequence[bytes], draw: random.Random) -> bytes:
    return data[: draw.randint(0, len(data))]


def _delete(data: bytes, _seeds: Sequence[bytes], _pieces: Sequence[bytes], draw: random.Random) -> bytes:
    begin = draw.randint(0, len(data))
    return data[:begin] + data[begin + draw.randint(1, 32) :]


def _repeat(data: bytes, _seeds: Sequence[bytes], _pieces: Sequence[bytes], draw: random.Random) -> bytes:
    begin = draw.randint(0, len(data))
    part = data[begin : begin + draw.randint(1, 64)]
    return data[:begin] + part * draw.choice((2, 3, 300)) + data[begin:]


def _splice(data: bytes, seeds: Sequence[bytes], _pieces: Sequence[bytes], draw: random.Random) -> bytes:
    other = draw.choice(seeds)
    return data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]


_CHANGES: tuple[Change, ...] = (
    *(_flip, _byte, _insert, _replace, _value, _value),
    *(_overwrite, _overwrite, _cut, _delete, _repeat, _splice),
)
