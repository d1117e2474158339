"""Steps of a study, each named by what it depends on, and the folder that keeps what they found.

A step's key is the sha256 of its kind, the version of that kind, its parameters and the keys of its inputs.
A step that is done is a folder with result.json; it appears complete or not at all, so that a killed run
goes on where it was, and a changed line of the study makes anew only what depends on it. A log has the result
of each without its files: a run that has only the log makes anew the files that it still needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import ConfigError, DivergedError, LoradexError, StorageError
from catalog.files import clean_text, load_json, remove_abandoned
from merging.members import storage, write_json
from studies.log import is_key, is_number, read_log, result_problem

if TYPE_CHECKING:
    from merging.model import BaseDtype

STEPS = "steps"
RESULT, STEP, TIME = "result.json", "step.json", "time.json"
_MOST_BYTES = 512 * 1024 * 1024
# One line for each step that is done: what a run elsewhere needs to go on without the files of the steps.
LOG = "steps.jsonl"
# The version of a kind, 1 where it is not named; it counts up when the same step would find something else.
VERSIONS: Mapping[str, int] = {}


@dataclass(frozen=True, eq=False)
class Step:
    """One piece of work: `params` is what JSON can say, `inputs` are the steps whose results it reads."""

    kind: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Step] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """32 hexadecimal digits; the same in every process."""
        inputs = {name: step.key for name, step in self.inputs.items()}
        content = [self.kind, VERSIONS.get(self.kind, 1), self.params, inputs]
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class StudyOutcome:
    """What a run of a study has done: how many cells are done, failed or missing, and the first errors."""

    folder: Path
    done: int
    failed: int
    missing: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a study's work lies, and where it finds what its file names; the same on every machine.

    `tasks` and `adapters` are folders by name, `source` is where model cards are.
    """

    folder: Path
    base: str
    bases: Path | None
    device: str
    threads: int
    tasks: Mapping[str, Path]
    adapters: Mapping[str, Path]
    source: Path = Path()
    dtype: BaseDtype | None = None

    @property
    def steps(self) -> Path:
        """The folder of the steps that are done."""
        return self.folder / STEPS

    def result(self, step: Step) -> dict[str, Any] | None:
        """What a step found, by its folder or the log; None where it is not done.

        Raises StorageError for what is not the result of such a step.
        """
        file = self.steps / step.key / RESULT
        result = _read(file)
        if result is None and (line := self.log.get(step.key)):
            file, result = self.folder / LOG, dict(line["result"])
        if result is not None and (
            problem := result_problem(result, step.kind) or self._unknown(step, result)
        ):
            raise StorageError(
                f"{file} has no result of step {step.key} ({step.kind}): {problem}; remove it and run the "
                "study again."
            )
        return result

    def _unknown(self, step: Step, result: Mapping[str, Any]) -> str | None:
        """An adapter that a result names and the study does not have, or of which it lacks the score."""
        members = [*result.get("members", ()), *([result] if step.kind == "single" else [])]
        names = [member["name"] for member in members if "name" in member]
        if missing := [name for name in names if name not in self.adapters]:
            return f"it names {missing[0]}, which is not an adapter of the study"
        if step.kind in ("measured", "gradient"):
            names = [adapter["name"] for adapter in step.params.get("adapters", ())]
            if missing := [name for name in names if name not in result["scores"]]:
                return f"it lacks the score of {missing[0]}"
        return None

    @property
    def log(self) -> Mapping[str, Mapping[str, Any]]:
        """The lines of the log by the keys of their steps; raises StorageError if it is damaged."""
        file = self.folder / LOG
        try:
            return _read_log(file, file.stat().st_mtime_ns)
        except FileNotFoundError:
            return {}

    def absent_makers(self, result: Mapping[str, Any]) -> set[str]:
        """The keys of the steps that made files which a result names and which are not here."""
        parts = [result, *result.get("members", ())]
        paths = [part["adapter"] for part in parts if "adapter" in part]
        return {path.partition("/")[0] for path in paths if not (self.steps / path).exists()}

    def is_done(self, step: Step) -> bool:
        """Whether a step's result is known, and the files that it made are here."""
        result = self.result(step)
        return result is not None and step.key not in self.absent_makers(result)

    def error(self, step: Step) -> str | None:
        """Why a step failed when it was last tried, None where it did not."""
        document = _read(self._failure_file(step), "error")
        return None if document is None else str(document["error"])

    def seconds(self, step: Step) -> float:
        """How long a step took, here or where the log is from; 0 where it is not done."""
        here = self.seconds_here(step)
        if here is not None:
            return here
        line = self.log.get(step.key)
        return float(line["seconds"]) if line else 0.0

    def seconds_here(self, step: Step) -> float | None:
        """How long a step took that was done in this folder; None for one that was not."""
        file = self.steps / step.key / TIME
        document = _read(file)
        if document is None:
            return None
        if not is_number(document.get("seconds")):
            raise StorageError(f"{file} does not say how long the step took; remove its folder.")
        return float(document["seconds"])

    def has_diverged(self, step: Step) -> bool:
        """Whether a step failed because its training diverged, as it would again."""
        return bool((_read(self._failure_file(step)) or {}).get("diverged"))

    def fail(self, step: Step, error: LoradexError) -> None:
        """Keeps why a step failed."""
        with storage(self.folder):
            self._failure_file(step).parent.mkdir(parents=True, exist_ok=True)
            document = {
                "error": clean_text(str(error)),
                "kind": step.kind,
                "diverged": isinstance(error, DivergedError),
            }
            write_json(self._failure_file(step), document)

    def forget_failures(self) -> None:
        """Lets failed steps be tried again, and clears what a killed run left half-done."""
        with storage(self.folder):
            for file in self._failures.glob("*.json"):
                if is_key(file.stem):
                    file.unlink()
            self.steps.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.steps)

    def _failure_file(self, step: Step) -> Path:
        return self._failures / f"{step.key}.json"

    @property
    def _failures(self) -> Path:
        return self.folder / "failed"


def in_order(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps and all that they need, each once, inputs first."""
    keys: set[str] = set()
    waiting = [(step, False) for step in list(steps)[::-1]]
    while waiting:
        step, inputs_done = waiting.pop()
        if step.key in keys:
            continue
        if inputs_done:
            keys.add(step.key)
            yield step
        else:
            waiting.append((step, True))
            waiting.extend((input_step, False) for input_step in list(step.inputs.values())[::-1])


def pending_steps(place: Place, steps: Iterable[Step]) -> list[Step]:
    """The steps that are to be carried out for these, inputs first: those without a result, and those whose
    files others of them need and which are not here."""
    pending: dict[str, Step] = {}

    def require(step: Step, files: bool) -> None:
        result = place.result(step)
        absent = place.absent_makers(result) if result and files else set()
        if step.key in pending or (result is not None and not absent):
            return
        anew = result is None or step.key in absent
        for input_step in step.inputs.values() if anew else in_order(step.inputs.values()):
            if anew or input_step.key in absent:
                require(input_step, True)
        if anew:
            pending[step.key] = step

    for step in steps:
        require(step, False)
    return list(pending.values())


@lru_cache(maxsize=2)
def _read_log(path: Path, _changed: int) -> Mapping[str, Mapping[str, Any]]:
    return read_log(path)


def _read(path: Path, *names: str) -> dict[str, Any] | None:
    """The object in a JSON file of a step, None where there is no file; raises StorageError for another file,
    and for one without the names."""
    try:
        document = load_json(path.read_bytes(), max_bytes=_MOST_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ConfigError) as error:
        raise StorageError(
            f"{path} cannot be read: {error}; remove its folder and run the study again."
        ) from error
    if not isinstance(document, dict) or not all(name in document for name in names):
        raise StorageError(f"{path} is not the record of a step; remove its folder and run the study again.")
    return document
