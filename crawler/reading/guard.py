"""The guard around every parser of uploaded bytes.

A parser reports invalid input itself. An unexpected error loses only the file that was being read, not the
repository or the crawl: it becomes an `UnreadableError`, which its caller turns into a counted reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from catalog.errors import LoradexError, UnreadableError

log = logging.getLogger(__name__)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Translates all exceptions of a parser, except the program's own errors, into an UnreadableError.

    Only parsing belongs inside: errors of the network, the disk or the database are not caused by the bytes,
    nor is a lack of memory, which propagates. The traceback is logged at a verbose level.

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
