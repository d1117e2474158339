"""A Ray cluster, to which work is sent: one that is named, or one of this machine."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tenacity import Retrying, stop_after_attempt

from catalog.errors import UsageError
from catalog.extras import require_extra

# Ray gives its own processes half a minute to start, which a busy machine exceeds.
_ATTEMPTS = 3


@contextmanager
def connect_ray(address: str | None, cores: int | None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` until the end of the block.

    Without an address a cluster of this machine is started with `cores` cores, by default all, and ends with
    the block. SIGTERM stays handled as before, and Ray prints nothing. Raises UsageError without the extra,
    where no cluster answers or starts, and in a process that is connected to one already, which stays
    connected.
    """
    require_extra("ray", "Work on several processes")
    import ray

    if ray.is_initialized():
        raise UsageError(
            "This process is connected to Ray already; call `ray.shutdown()` first, or use another process."
        )
    try:
        with _keep_handler():
            if address:
                ray.init(address=address, log_to_driver=False, configure_logging=False)
            else:
                for attempt in Retrying(stop=stop_after_attempt(_ATTEMPTS), reraise=True):
                    with attempt:
                        _start_cluster(ray, cores)
    # Ray raises whatever it likes, also plain Exception.
    except Exception as error:
        place = f"No Ray cluster found at {address}" if address else "Ray did not start on this machine"
        raise UsageError(f"{place}: {error}") from error
    try:
        with _silence(ray):
            yield ray
    finally:
        ray.shutdown()


@contextmanager
def _keep_handler() -> Iterator[None]:
    """Sets the handler of SIGTERM again that Ray replaces, by one that ends the process at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _silence(ray: Any) -> Iterator[None]:
    """Keeps Ray from printing on standard output, where results are written, that workers died."""
    # No option of Ray turns this off.
    printing = ray._private.worker
    before = printing._worker_logs_enabled
    printing._worker_logs_enabled = False
    try:
        yield
    finally:
        printing._worker_logs_enabled = before


def _start_cluster(ray: Any, cores: int | None) -> None:
    try:
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    except BaseException:
        ray.shutdown()
        raise
