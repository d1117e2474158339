"""A study by Ray: every step is a task of its own, sent out when its inputs are there.

The machines of a cluster need loradex and the study's folder, tasks, adapters and base at the same paths, as
on a shared file system. Ray decides what runs where; results are the same as those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from catalog.errors import UsageError
from catalog.extras import require_extra
from studies.store import Place, Step
from studies.work import carry_out

# Steps sent out for each that can run at once: with more, Ray would begin with all that needs nothing, and
# end the first cell last.
_AHEAD = 4


@dataclass(frozen=True)
class Ray:
    """An executor on a Ray cluster: at `address`, or one of its own on this machine with `workers` workers.

    Every step takes one core for each of its threads, and the share `gpus` of a GPU.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        require_extra("ray", "Work on several processes")

    def __call__(self, place: Place, steps: Sequence[Step]) -> Iterator[tuple[Step, str | None]]:
        """Carries out the steps, inputs first, and tells the outcome of each as it comes."""
        import ray

        cores = None if self.workers is None else self.workers * place.threads
        try:
            ray.init(
                address=self.address or "local",
                num_cpus=None if self.address else cores,
                include_dashboard=None if self.address else False,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"No Ray cluster found at {self.address}: {error}") from error
        try:
            yield from self._sent(ray, place, steps)
        finally:
            ray.shutdown()

    def _sent(self, ray: Any, place: Place, steps: Sequence[Step]) -> Iterator[tuple[Step, str | None]]:
        # A step waits for the references it is given, and reads its inputs' results from the folder.
        task = ray.remote(num_cpus=place.threads, num_gpus=self.gpus, max_retries=2)(_carry_out_after)
        sent: dict[str, Any] = {}
        waiting: dict[Any, Step] = {}
        most = max(1, round(_AHEAD * ray.cluster_resources().get("CPU", 1) / place.threads))
        for step in steps:
            if len(waiting) >= most:
                yield self._next(ray, waiting)
            needs = [sent[needed.key] for needed in step.inputs.values() if needed.key in sent]
            sent[step.key] = task.remote(place, step, *needs)
            waiting[sent[step.key]] = step
        while waiting:
            yield self._next(ray, waiting)

    def _next(self, ray: Any, waiting: dict[Any, Step]) -> tuple[Step, str | None]:
        (finished, *_), _ = ray.wait(list(waiting))
        return waiting.pop(finished), ray.get(finished)


def _carry_out_after(place: Place, step: Step, *needs: str | None) -> str | None:
    """`carry_out`, after the steps whose outcomes are `needs`."""
    return carry_out(place, step)
