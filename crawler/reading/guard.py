"""The guard around every parser of bytes that somebody uploaded.

A parser names what it cannot read by itself. Where one fails in a way that nobody thought of, the fault costs
the file that it was reading, and neither the repository nor the crawl: it becomes an `UnreadableError`, which
its caller turns into a counted reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from catalog.errors import LoradexError, UnreadableError

log = logging.getLogger(__name__)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever a parser raises, but for the program's own errors, into an UnreadableError.

    Only parsing belongs inside: what the network, the disk or the database refuse is no fault of the bytes,
    nor is a want of memory, which passes as it is. The traceback is logged for whoever asks for more to be
    said.

    Args:
        what: The name of what is read, for the message.
    """
    try:
        yield
    except (LoradexError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        log.info("%s cannot be read", what, exc_info=error)
        fault = type(error).__name__
        raise UnreadableError(f"{what} cannot be read: the parser ends with {fault}", fault=fault) from error
