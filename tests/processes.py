"""Functions in processes of their own, forked by a server that has imported the crawler and torch.

For what is done to a process: it is killed, interrupted, or one of several. What the start of the program is
about, its imports and its streams, needs an interpreter of its own.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.crawl_process", "torch"])


def start_process(
    function: Callable[..., object], *arguments: Any, output: Path | str = os.devnull
) -> BaseProcess:
    """Calls a function of a module in this environment; what it prints on both streams is added to a file."""
    process = _CONTEXT.Process(target=_call, args=(function, arguments, str(output), dict(os.environ)))
    process.start()
    return process


def wait_for(process: BaseProcess) -> int | None:
    """The exit code of a process when it has ended, or minus the number of the signal that ended it."""
    process.join()
    code = process.exitcode
    process.close()
    return code


def send_signal(process: BaseProcess, number: int) -> None:
    """Sends a signal to a running process."""
    assert process.pid is not None
    os.kill(process.pid, number)


def _call(
    function: Callable[..., object], arguments: tuple[Any, ...], output: str, environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    function(*arguments)
