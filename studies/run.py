"""A study carried out, and reported: every step that is not done yet, one after the other or by Ray.

Everything lies below one folder: steps/ (one folder each, kept for ever), failed/, study.json (what was run),
results.jsonl (one line a cell, the same bytes however often the run was interrupted), steps.jsonl (what each
step found: a copy of it is enough to go on elsewhere), and the report.

By Ray every step is a task of its own, sent out when its inputs are there. The machines of a cluster need
loradex and the study's folder, tasks, adapters and base at the same paths, as on a shared file system. Ray
decides what runs where; results are the same as those of one process.
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from catalog.cluster import connect_ray
from catalog.errors import EvaluationError, LoradexError, StorageError, UsageError
from catalog.extras import require_extra
from catalog.files import replace_file
from merging.members import new_folder, package_versions, storage, write_json, write_text
from studies.file import StudyFile
from studies.grid import Grid, GridCell
from studies.log import is_key
from studies.record import FACTS, RESULTS, read_record
from studies.report import grids, page
from studies.report.findings import Findings
from studies.steps import KINDS, Job
from studies.store import (
    LOG,
    RESULT,
    STEP,
    STEPS,
    TIME,
    Place,
    Step,
    StudyOutcome,
    in_order,
    pending_steps,
)

PAGE, MARKDOWN, SUMMARY, PICTURES = "report.html", "report.md", "summary.json", "pictures"
# Seconds between two writings of the results of a run at work.
_REST = 60.0
_PACKAGES = ("loradex", "torch", "transformers", "peft", "numpy")
# Kinds that go on without those of their inputs that diverged. What failed for another reason may succeed the
# next time, and a choice without it would stay.
_TOLERANT = frozenset({"pick"})
# Steps sent out for each that can run at once: with more, Ray would begin with all that needs nothing, and
# end the first cell last.
_AHEAD = 4
# Steps, inputs first, to the outcome of each as it comes: None, or why it failed.
Executor = Callable[[Place, Sequence[Step]], Iterable[tuple[Step, str | None]]]
Progress = Callable[[int, int], None]


def carry_out(place: Place, step: Step) -> str | None:
    """Does a step unless it is done; None, or why it failed. Other errors than the program's own pass."""
    if place.is_done(step):
        return None
    inputs = {name: place.result(input_step) for name, input_step in step.inputs.items()}
    try:
        for name, input_result in inputs.items():
            tolerable = step.kind in _TOLERANT and place.has_diverged(step.inputs[name])
            if input_result is None and not tolerable:
                # The first cause, however many steps lie between.
                raise EvaluationError(place.error(step.inputs[name]) or "What it needs was not made.")
        if step.kind not in _TOLERANT:
            _refuse_absent(place, step, inputs.values())
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


def _refuse_absent(place: Place, step: Step, results: Iterable[Mapping[str, Any] | None]) -> None:
    """Raises EvaluationError if files that these results name were to be made anew, and this failed."""
    absent = {key for result in results if result for key in place.absent_makers(result)}
    for maker in in_order(step.inputs.values()) if absent else ():
        if maker.key in absent and (error := place.error(maker)):
            raise EvaluationError(error)


def one_by_one(place: Place, steps: Sequence[Step]) -> Iterator[tuple[Step, str | None]]:
    """Carries out the steps in this process."""
    for step in steps:
        yield step, carry_out(place, step)


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
        cores = None if self.workers is None else self.workers * place.threads
        with connect_ray(self.address, cores) as ray:
            yield from self._sent(ray, place, steps)

    def _sent(self, ray: Any, place: Place, steps: Sequence[Step]) -> Iterator[tuple[Step, str | None]]:
        # A step waits for the references it is given, and reads its inputs' results from the folder.
        task = ray.remote(num_cpus=place.threads, num_gpus=self.gpus, max_retries=2)(_carry_out_after)
        sent: dict[str, Any] = {}
        waiting: dict[Any, Step] = {}
        most = max(1, round(_AHEAD * ray.cluster_resources().get("CPU", 1) / place.threads))
        for step in steps:
            if len(waiting) >= most:
                yield self._next(ray, waiting)
            sent[step.key] = task.remote(place, step, *_find_needs(step, sent).values())
            waiting[sent[step.key]] = step
        while waiting:
            yield self._next(ray, waiting)

    def _next(self, ray: Any, waiting: dict[Any, Step]) -> tuple[Step, str | None]:
        (finished, *_), _ = ray.wait(list(waiting))
        return waiting.pop(finished), ray.get(finished)


def _find_needs(step: Step, sent: Mapping[str, Any]) -> dict[str, Any]:
    """The references of the steps sent that a step needs. An input that is not sent is done, yet the files
    that it names may be made anew by a step before it."""
    found: dict[str, Any] = {}
    for needed in step.inputs.values():
        found |= {needed.key: sent[needed.key]} if needed.key in sent else _find_needs(needed, sent)
    return found


def _carry_out_after(place: Place, step: Step, *needs: str | None) -> str | None:
    """`carry_out`, after the steps whose outcomes are `needs`."""
    return carry_out(place, step)


def run(
    file: StudyFile,
    study_grid: Grid,
    *,
    executor: Executor = one_by_one,
    progress: Progress | None = None,
) -> StudyOutcome:
    """Carries out what is not done of a study, and writes results.jsonl and study.json.

    A step that fails for a reason of the program's own errors leaves its cells failed, and the others go on.
    A killed run loses the step it was at, and a folder that has only steps.jsonl of another run goes on from
    there. Raises UsageError where another run is at work in the same folder
    or the folder holds something else, and StorageError.
    """
    place = study_grid.place
    refuse_other(place.folder)
    with _lock_folder(place.folder):
        place.forget_failures()
        steps = list(in_order(study_grid.steps))
        left = pending_steps(place, study_grid.steps)
        done = len(steps) - len(left)
        written = time.monotonic()
        rows = write(file, study_grid)
        if progress is not None:
            progress(done, len(steps))
        try:
            for _ in executor(place, left):
                done += 1
                if progress is not None:
                    progress(done, len(steps))
                if time.monotonic() - written > _REST:
                    # So that the report of a run that is not over can be read.
                    rows, written = write(file, study_grid), time.monotonic()
        finally:
            rows = write(file, study_grid)
    states = [row["status"] for row in rows]
    errors = dict.fromkeys(row["error"] for row in rows if row["status"] == "failed")
    done, failed, missing = map(states.count, ("done", "failed", "missing"))
    return StudyOutcome(place.folder, done, failed, missing, tuple(errors))


def results(study_grid: Grid) -> Iterator[dict[str, Any]]:
    """What is known of every cell, in the order of the grid, as a line of results.jsonl says it."""
    for cell in study_grid.cells:
        yield _row(study_grid.place, cell)


def write(file: StudyFile, study_grid: Grid) -> list[dict[str, Any]]:
    """Writes results.jsonl and study.json of what is known; the rows."""
    place, steps, rows = study_grid.place, list(in_order(study_grid.steps)), list(results(study_grid))
    text = "".join(
        json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    )
    finished = [place.result(step) is not None for step in steps]
    failed = sum(place.error(step) is not None for step in steps)
    facts = {
        "study": file.study.model_dump(mode="json", by_alias=True),
        "file_sha256": file.sha256,
        **study_grid.facts,
        "wild": place.result(study_grid.wild) if study_grid.wild else None,
        "versions": {name: text for name, text in package_versions(*_PACKAGES).items() if text},
        "device": place.device,
        "threads": place.threads,
        "machine": machine(place.device),
        "seconds": round(sum(place.seconds(step) for step in steps), 1),
        "steps": {"done": sum(finished), "failed": failed, "missing": len(steps) - sum(finished) - failed},
    }
    with storage(place.folder):
        with replace_file(place.folder / RESULTS) as new:
            write_text(new, text)
        with replace_file(place.folder / FACTS) as new:
            write_json(new, facts)
        _write_log(place, steps)
    return rows


def _write_log(place: Place, steps: Sequence[Step]) -> None:
    """The log of the steps that are done, in the order of the grid, then its lines of other grids."""
    lines = {key: dict(line) for key, line in place.log.items()}
    done = {step.key: result for step in steps if (result := place.result(step)) is not None}
    ordered = {
        step.key: {"kind": step.kind, "seconds": place.seconds(step), "result": done[step.key]}
        for step in steps
        if step.key in done
    }
    documents = ({"step": key, **line} for key, line in (ordered | (lines | ordered)).items())
    text = "".join(
        json.dumps(row, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for row in documents
    )
    with replace_file(place.folder / LOG) as new:
        write_text(new, text)


def report(folder: Path, *, into: Path | None = None) -> dict[str, Any]:
    """Writes report.html, report.md, summary.json and pictures/ into a study's folder, or into another.

    The places of page and Markdown, and the sentences that the numbers allow. Reads only study.json and
    results.jsonl. Raises NotFoundError, UsageError and StorageError.
    """
    facts, rows = read_record(folder)
    title, question = facts["study"]["title"], facts["study"].get("question", "")
    findings = Findings(facts, rows)
    page_sections = grids.sections(findings)
    into = into or folder
    with storage(into):
        (into / PICTURES).mkdir(parents=True, exist_ok=True)
        for name, picture in page.picture_files(page_sections).items():
            write_text(into / PICTURES / name, picture)
        write_text(into / PAGE, page.html(title, page_sections, question))
        write_text(into / MARKDOWN, page.markdown(title, page_sections, PICTURES, question))
        write_json(into / SUMMARY, findings.summary())
    says = next((section.paragraphs for section in page_sections if isinstance(section, page.Text)), ())
    return {"page": str(into / PAGE), "markdown": str(into / MARKDOWN), "says": list(says)}


def machine(device: str) -> str:
    """Processor, cores and accelerator of this machine, in words, where others may do the work."""
    import os

    text = f"{platform.machine()}, {os.cpu_count()} cores"
    if device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            return text
        return f"{text}, {torch.cuda.get_device_name(torch.device(device))}"
    return text


def _row(place: Place, cell: GridCell) -> dict[str, Any]:
    """A cell's line; the detail of a cell that is not done is what is known of it."""
    result = place.result(cell.step)
    detail: dict[str, Any] = {}
    for step in cell.about:
        detail |= (place.result(step) or {}).get("detail", {})
    score = result["score"] if result else {"value": None, "loss": None, "n": None}
    error = None if result else place.error(cell.step)
    return {
        **score,
        "cell": cell.step.key[:16],
        "task": cell.task,
        "group": cell.group,
        "seed": cell.seed,
        "method": cell.method,
        "pool": cell.pool,
        "settings": dict(cell.settings),
        "status": "done" if result else "failed" if error else "missing",
        "error": error,
        "detail": detail,
    }


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Inside the block no other run works in the folder."""
    with contextlib.ExitStack() as stack:
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout as error:
                raise UsageError(
                    f"Another run is at work in {folder}; wait for it, or use another folder."
                ) from error
        yield


def refuse_other(folder: Path) -> None:
    """Raises UsageError where the folder of a study is a file, or holds something else."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file; use a folder for the study.")
    steps = folder / STEPS
    names = [path.name for path in steps.iterdir()] if steps.is_dir() else []
    own = (folder / LOG).is_file() or (
        steps.is_dir() and all(is_key(name) or name.startswith(".loradex-") for name in names)
    )
    if folder.is_dir() and any(folder.iterdir()) and not own:
        raise UsageError(f"{folder} contains other files; use another folder for the study.")
