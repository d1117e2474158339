"""Which items of a task were answered right: hashes of items, and bitmaps and margins as bytes and as text.

An item's hash is the sha256 of the canonical JSON of its input, target and choices (sorted keys, no white
space, UTF-8), `items_sha` the sha256 of the hashes' bytes in order. A bitmap has one bit an item, 1 for a
right answer, the first item in the highest bit of the first byte, and zeros after the last. A margin is a
little-endian float16: the log-likelihood of the best other choice minus that of the right one, negative for a
right answer. As text all three are base64 (RFC 4648, section 4).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from catalog.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Bools: TypeAlias = "NDArray[np.bool_]"

# The largest number of items of a list: its hashes take 3.2 MB.
MOST_ITEMS = 100_000
HASH_BYTES = 32
_MARGIN = "<f2"
_MARGIN_BYTES = 2
_MOST_MARGIN = 65504.0
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
# A value in a file may be rounded to six digits.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Right and wrong answers to a list of items, as bytes.

    `items_sha` identifies the list, and `hashes` are those of its items in order, empty where they are not
    known; `margins` are empty where no choices were scored. `check` says whether they fit a score.
    """

    items_sha: str
    bitmap: bytes
    margins: bytes = b""
    hashes: bytes = b""

    def check(self, value: float, n: int | None) -> None:
        """Raises UsageError unless this is a record of `n` items of which the share `value` is right."""
        import numpy as np

        if not _SHA256.fullmatch(self.items_sha):
            raise UsageError("its items_sha is not a sha256 of 64 hexadecimal digits.")
        if n is None or n > MOST_ITEMS:
            raise UsageError(f"outcomes of items require a number of samples from 1 to {MOST_ITEMS:,}.")
        right = unpack_bitmap(self.bitmap, n)
        share = float(right.mean())
        if not abs(share - value) <= _ROUNDING:
            count = int(right.sum())
            raise UsageError(
                f"its value is {value}, but {count} of its {n} outcomes are right ({share:.6g})."
            )
        if self.margins:
            margins = unpack_margins(self.margins, n)
            if not np.isfinite(margins).all() or (margins[right] > 0).any() or (margins[~right] < 0).any():
                raise UsageError("its margins contradict its outcomes; they are negative for right answers.")
        if self.hashes and (len(self.hashes) != HASH_BYTES * n or list_sha(self.hashes) != self.items_sha):
            raise UsageError(f"the hashes of its items are not {n} whose sha256 is its items_sha.")


def item_hash(text: str, target: str, choices: Sequence[str]) -> bytes:
    """The sha256 of an item: 32 bytes."""
    item = {"choices": list(choices), "input": text, "target": target}
    canonical = json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


def list_sha(hashes: bytes) -> str:
    """The `items_sha` of a list of items from their hashes (32 bytes each, in order)."""
    return hashlib.sha256(hashes).hexdigest()


def pack_bitmap(right: Sequence[bool] | Bools) -> bytes:
    """Right and wrong as a bitmap of ceil(n / 8) bytes."""
    import numpy as np

    return np.packbits(np.asarray(right, dtype=np.bool_)).tobytes()


def unpack_bitmap(bitmap: bytes, n: int) -> Bools:
    """Right and wrong of n items, (n,); raises UsageError for a bitmap of another length or with bits after
    the last item.
    """
    import numpy as np

    bits = np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8))
    if len(bitmap) != -(-n // 8) or bits[n:].any():
        raise UsageError(f"its outcomes are not a bitmap of {n} items.")
    return bits[:n].astype(np.bool_)


def pack_margins(margins: Sequence[float]) -> bytes:
    """Margins as float16, those beyond its range as its largest values."""
    import numpy as np

    return (
        np.clip(np.asarray(margins, dtype=np.float64), -_MOST_MARGIN, _MOST_MARGIN).astype(_MARGIN).tobytes()
    )


def unpack_margins(margins: bytes, n: int) -> NDArray[np.float64]:
    """The margins of n items, (n,) in nats; raises UsageError for bytes of another length."""
    import numpy as np

    if len(margins) != _MARGIN_BYTES * n:
        raise UsageError(f"its margins are not {n} numbers of 16 bits.")
    return np.frombuffer(margins, dtype=_MARGIN).astype(np.float64)


def to_text(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def from_text(text: object, name: str, most: int) -> bytes:
    """The bytes of a base64 text of at most `most` bytes; raises UsageError for anything else.

    Strict: no white space, no missing padding, no bits after the last byte, so that bytes have one text.
    """
    problem = f"its {name} is not base64 of at most {most:,} bytes."
    if not isinstance(text, str) or len(text) > 4 * (-(-most // 3)):
        raise UsageError(problem)
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise UsageError(problem) from error
    if len(data) > most or to_text(data) != text:
        raise UsageError(problem)
    return data


def read_outcomes(items_sha: object, outcomes: object, margins: object, n: object) -> Outcomes:
    """The outcomes that a document holds as text ("" where it has none of them) for a score of n samples.

    Raises UsageError for texts that are not strict base64 of the size that n items need.
    """
    if not isinstance(n, int) or not 1 <= n <= MOST_ITEMS:
        raise UsageError(f"outcomes of items require a number of samples from 1 to {MOST_ITEMS:,}.")
    if not isinstance(items_sha, str):
        raise UsageError("its items_sha is not a sha256 of 64 hexadecimal digits.")
    bitmap = from_text(outcomes, "outcomes", -(-n // 8))
    return Outcomes(items_sha, bitmap, from_text(margins, "margins", _MARGIN_BYTES * n))
