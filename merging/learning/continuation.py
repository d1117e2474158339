"""An adapter trained on by PEFT's own layers: of DoRA the factors and magnitudes, which nothing scales."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import CONFIG_NAME, engine_problems
from catalog.errors import EvaluationError, MergeError
from merging.learning.adaptive import AdaptiveMethod
from merging.learning.combination import ADAPT_RECORD
from merging.learning.course import Course, Objective, Recipe, mean_of, run
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
            self._write_tensors(folder, kind)
            write_json(folder / ADAPT_RECORD, dict(self.record) | {"combined": combined})
            misread = engine_problems(folder)
        return MergeReport(out, self.record, modules, misread=misread)

    def _write_tensors(self, folder: Path, dtype: str) -> None:
        try:
            with tensor_writer(weights_path(folder), dtype, sorted(self.tensors)) as writer:
                for name in sorted(self.tensors):
                    writer.write(name, self.tensors[name])
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
    report_step: Callable[[int], None],
) -> tuple[dict[str, Tensor], Course, float]:
    """The tensors of the state with the best validation loss, the start included, the course, and the loss
    before.

    AdamW without weight decay on factors and magnitudes, in float32 or wider. The base model is unchanged.
    Raises the errors of `apply_with_peft` and of `merging.learning.course.run`.
    """
    import torch

    with apply_with_peft(base.model, member) as adapter:
        trained = {name: item.requires_grad_(True) for name, item in adapter.parameters().items()}
        best = {name: item.detach().to("cpu", copy=True) for name, item in trained.items()}

        def better() -> None:
            for name, item in trained.items():
                best[name].copy_(item.detach())

        before = mean_of(base, valid, objective)
        course = run(
            base,
            torch.optim.AdamW([*trained.values()], lr=rate, betas=(0.9, 0.999), weight_decay=0.0),
            rate,
            recipe,
            train,
            valid,
            objective=objective,
            best=before if math.isfinite(before) else math.inf,
            better=better,
            report_step=report_step,
        )
    return best, course, before
