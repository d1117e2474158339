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
# What begins a formula in a text.
_SIGNS = ("$", "\\[", "\\(", "\\boxed")


def serve(lines: Iterable[str], out: TextIO) -> None:
    """Writes a line when math-verify is loaded, and one for each line read."""
    from math_verify import parse, verify

    def write(text: str) -> None:
        out.write(f"{text}\n")
        out.flush()

    write("ready")
    for line in lines:
        answer, target = json.loads(line)
        # The caller limits the time. A text without the signs of a formula may be one all the same.
        left, right = (
            parse(as_formula(text), parsing_timeout=None) or parse(text, parsing_timeout=None)
            for text in (target, answer)
        )
        write(json.dumps(bool(verify(left, right, timeout_seconds=None))))


def as_formula(text: str) -> str:
    """The text as LaTeX between dollars, unless it has such signs itself."""
    return text if any(sign in text for sign in _SIGNS) else f"${text}$"


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
