"""The process that compares formulas: a line [answer, target] in, "true" or "false" out.

Run as a script by `merging.evaluation.metrics`, so that it can be ended at any moment. Its memory is limited.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from typing import TextIO

_MOST_BYTES = 4 << 30


def serve(lines: Iterable[str], out: TextIO) -> None:
    """Writes a line when math-verify is loaded, and one for each line read."""
    from math_verify import parse, verify

    def write(text: str) -> None:
        out.write(f"{text}\n")
        out.flush()

    write("ready")
    for line in lines:
        answer, target = json.loads(line)
        # The caller limits the time.
        left, right = (parse(text, parsing_timeout=None) for text in (target, answer))
        write(json.dumps(bool(verify(left, right, timeout_seconds=None))))


def limit_memory() -> None:
    """Limits the memory of this process, where the system can."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))


if __name__ == "__main__":
    import logging

    logging.disable(logging.CRITICAL)
    limit_memory()
    serve(sys.stdin, sys.stdout)
