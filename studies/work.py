"""One step carried out: its folder appears with its result, or why it failed is kept."""

from __future__ import annotations

import time

from catalog.errors import EvaluationError, LoradexError, StorageError
from merging.members import new_folder, storage, write_json
from studies.steps import KINDS, Job
from studies.store import RESULT, STEP, TIME, Place, Step

# Kinds that go on without those of their inputs that diverged. What failed for another reason may succeed the
# next time, and a choice without it would stay.
_TOLERANT = frozenset({"pick"})


def carry_out(place: Place, step: Step) -> str | None:
    """Does a step unless it is done; None, or why it failed. Other errors than the program's own pass."""
    if place.result(step) is not None:
        return None
    inputs = {name: place.result(input_step) for name, input_step in step.inputs.items()}
    try:
        for name, input_result in inputs.items():
            tolerable = step.kind in _TOLERANT and place.has_diverged(step.inputs[name])
            if input_result is None and not tolerable:
                # The first cause, however many steps lie between.
                raise EvaluationError(place.error(step.inputs[name]) or "What it needs was not made.")
        began = time.perf_counter()
        with new_folder(place.steps / step.key, overwrite=True, record=RESULT) as out:
            results = {
                name: input_result for name, input_result in inputs.items() if input_result is not None
            }
            result = KINDS[step.kind](Job(place, step.key, step.params, results, out))
            with storage(out):
                write_json(out / STEP, {"kind": step.kind, "params": step.params})
                write_json(out / TIME, {"seconds": round(time.perf_counter() - began, 3)})
                write_json(out / RESULT, result)
    except StorageError:
        raise
    except LoradexError as error:
        place.fail(step, error)
        return str(error)
    return None
