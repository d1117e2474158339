"""Fingerprints in processes of their own.

Threads of one process hold each other up: half of the time of a fingerprint is spent under the interpreter's
lock. A process gets a path and a configuration, and returns what is stored: about 15 KB.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from catalog.adapters import AdapterConfig, FingerprintRecord
from catalog.errors import LoradexError, ProcessLostError, UnreadableError
from catalog.fingerprints.measurements import record_of
from catalog.fingerprints.sketches import fingerprint, use_one_thread

MOST_PROCESSES = 256
# A fork of this process would copy locks that other threads hold. A server without threads has imported torch
# once for all; elsewhere than on Linux, libraries of the system do not survive a fork.
_START = "forkserver" if sys.platform == "linux" else "spawn"
_PRELOAD = "catalog.fingerprints.preload"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Measurement:
    """What is stored of the values of a weights file: its fingerprint, and the digest of its tensors."""

    record: FingerprintRecord
    tensor_digest: str


def measure_file(path: Path, config: AdapterConfig) -> Measurement:
    """The measurement of a safetensors file, made in this process by one thread; raises as `fingerprint`."""
    use_one_thread()
    result = fingerprint(path, config)
    return Measurement(record_of(result), result.tensor_digest)


def measure_in_process(path: Path, config: AdapterConfig) -> Measurement:
    """The same for another process, which could not read every exception that a library raises.

    Raises UnreadableError with the class of one that is not the program's own.
    """
    try:
        return measure_file(path, config)
    except (LoradexError, MemoryError, SystemExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        fault = type(error).__name__
        raise UnreadableError(f"The parser of {path.name} ends with {fault}.", fault=fault) from None


class FingerprintPool:
    """Measures files, `processes` at a time in processes of their own; with one, in the calling thread.

    A context manager; several threads may use it. Processes start with the first file, leave interrupts to
    this process, and end with it, however it ends.
    """

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._executor: ProcessPoolExecutor | None = None
        self._waiting: set[Future[Measurement]] = set()
        self._cancelled = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for the files that are being read."""
        self.cancel()
        if self._executor is not None:
            self._executor.shutdown()

    def measure(self, path: Path, config: AdapterConfig) -> Measurement:
        """The measurement of a safetensors file; raises as `fingerprint` and `measure_in_process`.

        If a process dies, the files of all processes are measured again, one after the other, each in a
        process of its own. Raises ProcessLostError for the one whose process dies again.
        """
        if self._processes == 1:
            return measure_file(path, config)
        executor = self._running()
        try:
            return self._await(_submit(executor, path, config))
        except BrokenProcessPool:
            self._drop(executor)
        with self._alone, _start_processes(1) as alone:
            try:
                return self._await(_submit(alone, path, config))
            except BrokenProcessPool as error:
                raise ProcessLostError(
                    "The process that measured the weights died, for lack of memory perhaps; "
                    "use fewer `processes`."
                ) from error

    def cancel(self) -> None:
        """Begins no further file; threads that wait for one get ProcessLostError."""
        with self._lock:
            self._cancelled = True
            for future in self._waiting:
                future.cancel()

    def _await(self, future: Future[Measurement]) -> Measurement:
        with self._lock:
            self._waiting.add(future)
            if self._cancelled:
                future.cancel()
        try:
            return future.result()
        except CancelledError:
            raise ProcessLostError("The weights were not measured: the work was interrupted.") from None
        finally:
            with self._lock:
                self._waiting.discard(future)

    def _running(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = _start_processes(self._processes)
            return self._executor

    def _drop(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._executor is broken:
                self._executor = None
        broken.shutdown(wait=False)


def _start_processes(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context(_START)
    if _START == "forkserver":
        context.set_forkserver_preload([_PRELOAD])
    return ProcessPoolExecutor(count, mp_context=context, initializer=_set_up)


def _submit(executor: ProcessPoolExecutor, path: Path, config: AdapterConfig) -> Future[Measurement]:
    """A file given to a process; one that is started for it inherits that interrupts are blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        return executor.submit(measure_in_process, path, config)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(measure_in_process, path, config)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _set_up() -> None:
    """Makes a new process compute with one thread, leave interrupts to its parent, and end with it."""
    os.environ.update(ONE_THREAD)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent has ended, even by SIGKILL."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
