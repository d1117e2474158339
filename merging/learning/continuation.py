"""An adapter trained on by PEFT's own layers: of DoRA the factors and magnitudes, which nothing scales."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import CONFIG_NAME, Engine, engine_problems
from catalog.errors import EvaluationError, MergeError
from merging.learning.adaptive import AdaptiveMethod
from merging.learning.combination import ADAPT_RECORD
from merging.learning.course import Course, Objective, Recipe, descend
from merging.live import apply_with_peft
from merging.members import (
    MergeMember,
    new_folder,
    read_module,
    storage,
    tensor_writer,
    weights_path,
    write_json,
)
from merging.model import LoadedBase, Prompt
from merging.static import MergeReport, ModuleReport

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Continuation:
    """An adapter that was trained on, with its base model: `tensors` by their names in its file.

    `record`, `valid_before` and `valid_loss` are as in `Adaptation`.
    """

    method: AdaptiveMethod
    base: LoadedBase
    member: MergeMember
    tensors: Mapping[str, Tensor]
    valid_before: float
    valid_loss: float
    record: Mapping[str, Any]

    @contextlib.contextmanager
    def apply(self) -> Iterator[None]:
        """Inside the block the base model acts as with the trained adapter."""
        with apply_with_peft(self.base.model, self.member) as adapter:
            for name, parameter in adapter.parameters().items():
                parameter.data.copy_(self.tensors[name])
            yield

    def write(
        self,
        out: Path,
        *,
        rank: int | None = None,
        dtype: str | None = None,
        base: str | None = None,
        overwrite: bool = False,
        portable: bool = False,
        engines: Sequence[Engine] | None = None,
    ) -> MergeReport:
        """Writes the adapter with its own configuration, and adapt.json, to the folder `out`.

        `dtype` is by default that of its file; its configuration names the base model, and `portable` changes
        nothing. Raises MergeError for a `rank`, and StorageError.
        """
        if rank is not None:
            raise MergeError(f"{self.member.name} keeps its ranks; leave out `rank`.")
        first = read_module(self.member, self.member.spec.modules[0].name)[0]
        kind = dtype or str(first.dtype).removeprefix("torch.")
        modules = {module.name: ModuleReport(module.rank, None, 0.0) for module in self.member.spec.modules}
        combined: dict[str, Any] = {"rank": None, "dtype": kind, "modules": {}, "totals": {}}
        with new_folder(out, overwrite, ADAPT_RECORD) as folder, storage(out):
            shutil.copyfile(self.member.folder / CONFIG_NAME, folder / CONFIG_NAME)
            write_trained(folder, self.tensors, kind)
            write_json(folder / ADAPT_RECORD, dict(self.record) | {"combined": combined})
            misread = engine_problems(folder, engines)
        return MergeReport(out, self.record, modules, misread=misread)


def write_trained(folder: Path, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """Writes the tensors of a trained adapter to a folder; raises EvaluationError if `dtype` is too small."""
    try:
        with tensor_writer(weights_path(folder), dtype, sorted(tensors)) as writer:
            for name in sorted(tensors):
                writer.write(name, tensors[name])
    except OverflowError as error:
        raise EvaluationError(
            f"The trained weights are too large for {dtype}; store them as float32."
        ) from error


def continue_training(
    base: LoadedBase,
    member: MergeMember,
    rate: float,
    recipe: Recipe,
    train: Sequence[Prompt],
    valid: Sequence[Prompt],
    objective: Objective,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Tensor], Course, float]:
    """The tensors of the state with the best validation loss, the start included, the course, and the loss
    before.

    Factors and magnitudes are trained, in float32 or wider. The base model is unchanged.
    Raises the errors of `apply_with_peft` and of `merging.learning.course.run`.
    """
    with apply_with_peft(base.model, member) as adapter:
        trained = {name: item.requires_grad_(True) for name, item in adapter.parameters().items()}
        values = [*trained.values()]
        best, course, before = descend(base, values, rate, recipe, train, valid, objective, progress)
    return {name: item.cpu() for name, item in zip(trained, best, strict=True)}, course, before
