"""The gradient of a task's loss by the base model's weights, as a query to a catalog of adapters.

With L the base's mean loss on samples of a task and G_m = dL/dW_m, an adapter with the updates X_m changes
the loss by sum_m <G_m, X_m> to first order. No weight's gradient is ever formed: with x the inputs of a
layer and y its outputs, G_m = sum_t (dL/dy_t) x_t^T over the tokens t, so that

* the sketch of the catalog's `delta` fingerprint is sum_m (dy L_m)^T (x R_m) / 32, with its very signs;
  minus that, and the inner product with an adapter's `delta` estimates how much it lowers the loss;
* one step of Adam from the usual start of a LoRA, A random and B zero, goes to B = -sign(G_m A^T) up to a
  factor, which is an adapter with fingerprints;
* the inner product with an adapter s B A is exactly sum_t <s B^T dy_t, A x_t>.

Weights do not require gradients; the embeddings' output does. The base model is left unchanged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from catalog.adapters import Module
from catalog.errors import EvaluationError, UsageError
from catalog.fingerprints import DELTA_SIZE, output_sketch, signs
from merging.evaluation import TooLong, ask, losses, reading_groups, targets_only, too_large
from merging.members import MergeMember
from merging.model import (
    OWN,
    Example,
    LoadedBase,
    Prompt,
    Protocol,
    Task,
    in_pieces,
    is_linear,
    memory_limit,
    unreachable_layers,
)

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray
    from torch import Tensor

# Tokens of one tree: of every token the inputs and gradients of all layers are held at once.
WIDTH = {"cpu": 512, "cuda": 2048}
_DELTA_WIDTH = math.isqrt(DELTA_SIZE)
# Rank of the step: that of its start A, whose entries are signs.
STEP_RANK = 32

# Takes a layer's name, its inputs (tokens, in) and the gradients of its outputs (tokens, out).
Collect = Callable[[str, "Tensor", "Tensor"], None]
Kind = Literal["delta", "output"]
# A task with some of its training examples.
Samples = tuple[Task, Sequence[Example]]


@dataclass(frozen=True)
class Gradient:
    """A task's gradient over `modules`, sketched as the catalog sketches adapters.

    `delta`, (1024,) float32, is the sketch of *minus* the gradient: its inner product with an adapter's
    `delta_sketch` estimates how much that adapter lowers the loss, to first order and in nats. `output`,
    (1035,) float32, is the `output_sketch` of the adapter that one step of Adam makes of the task: A random,
    B = -sign(G A^T). `loss` is the mean over the `prompts` in nats. `exact` has what `delta` only estimates,
    of the given members.
    """

    delta: NDArray[float32]
    output: NDArray[float32]
    modules: tuple[str, ...]
    loss: float
    prompts: int
    exact: tuple[Downhill, ...] = ()


@dataclass(frozen=True, slots=True)
class Downhill:
    """The first-order decrease of the loss by an adapter: `raw` in nats, `unit` per norm of its update.

    `modules` has the parts of `raw` by module. Linear layers count, including the output head; embeddings do
    not. An adapter that is zero has 0.
    """

    raw: float
    unit: float
    modules: Mapping[str, float]


@memory_limit("The gradient of the task")
def task_gradient(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    *,
    modules: Sequence[str] | None = None,
    members: Sequence[MergeMember] = (),
    width: int | None = None,
) -> Gradient:
    """The gradient of the mean loss of the prompts, sketched; one pass forward and backward.

    `modules` are by default all linear layers except the output head, which few adapters change and whose
    gradient would only add noise. With `members` the same pass gives their exact products with it. Raises
    MergeError for members of another base model and the errors of `backward`.
    """
    names = tuple(sorted(linear_modules(base.model) if modules is None else modules))
    sketched, sums, products = set(names), _SketchSums(), _Products(base, members)

    def collect(name: str, x: Tensor, dy: Tensor) -> None:
        if name in sketched:
            sums.add(name, x, dy)
        products.add(name, x, dy)

    everything = sorted(sketched | set(products.stacks))
    loss = backward(base, prompts, collect, modules=everything, width=width)
    output = output_sketch(sums.step())
    return Gradient(sums.delta(), output, names, loss, len(prompts), products.downhill())


def direction(
    base: LoadedBase,
    task: Task,
    examples: Sequence[Example],
    backgrounds: Sequence[Samples] = (),
    *,
    kind: Kind = "output",
    too_long: TooLong = "error",
    cache: Path | None = None,
) -> tuple[NDArray[float32], NDArray[float32]]:
    """The query vector for a catalog's index of `kind`, (size,), and those of the other tasks, (n, size).

    Sizes are 1035 for "output" and 1024 for "delta". With backgrounds the catalog subtracts from an adapter's
    score its mean over them (`catalog.search.nearest.center_scores`). Gradients of both kinds are kept in the
    folder `cache`, from which later calls read them, bit for bit (`merging.learning.gradient_cache`). Raises
    the errors of `task_gradient` and `ask`.
    """
    import numpy as np

    prompt_sets = [
        ask(base, samples_task, samples, too_long).prompts
        for samples_task, samples in ((task, examples), *backgrounds)
    ]
    rows = np.stack(_sketch_rows(base, prompt_sets, cache))
    vectors = rows[:, DELTA_SIZE:] if kind == "output" else rows[:, :DELTA_SIZE]
    return np.ascontiguousarray(vectors[0]), np.ascontiguousarray(vectors[1:])


def _sketch_rows(
    base: LoadedBase, prompt_sets: Sequence[Sequence[Prompt]], folder: Path | None
) -> list[NDArray[float32]]:
    """The sketches of each gradient, `delta` before `output`; one pass for each that is not in the cache.

    What was computed before an error is kept.
    """
    import numpy as np

    from merging.learning.gradient_cache import GradientCache

    cache = None if folder is None else GradientCache(folder, base)

    def find_row(prompts: Sequence[Prompt]) -> NDArray[float32]:
        row = None if cache is None else cache.find(prompts)
        if row is None:
            gradient = task_gradient(base, prompts)
            row = np.concatenate([gradient.delta, gradient.output])
            if not np.isfinite(row).all():
                raise EvaluationError(
                    "A gradient of the base model is not finite; use a data type with a larger range."
                )
            if cache is not None:
                cache.add(prompts, row)
        return row

    try:
        return [find_row(prompts) for prompts in prompt_sets]
    finally:
        if cache is not None:
            cache.write()


def exact_scores(
    base: LoadedBase,
    task: Task,
    examples: Sequence[Example],
    members: Sequence[MergeMember],
    backgrounds: Sequence[Samples] = (),
    *,
    too_long: TooLong = "error",
    protocol: Protocol = OWN,
) -> list[float]:
    """The alignment of each member with the negative gradient, for ordering search results; larger is better.

    `Downhill.unit` of the task; with other tasks its z-score over the members less the mean of those on the
    other tasks, so that what helps everywhere (a short answer, say) does not count. One pass for each task.
    Raises the errors of `task_gradient` and `ask`.
    """
    rows = []
    for sample_task, samples in ((task, examples), *backgrounds):
        prompts = ask(base, sample_task, samples, too_long, protocol).prompts
        exact = task_gradient(base, prompts, modules=(), members=members).exact
        rows.append([member.unit for member in exact])
    return center_scores(rows)


def center_scores(rows: Sequence[Sequence[float]]) -> list[float]:
    """Scores of members on a task, the first row, relative to those on other tasks, the other rows.

    The z-score over the members less the mean of those on the other tasks; the scores unchanged if there is
    no other row.
    """
    import numpy as np

    scores = np.array(rows)
    if len(rows) < 2 or not scores.size:
        return [float(score) for score in scores[0]]
    spread = scores.std(axis=1, keepdims=True)
    away = scores - scores.mean(axis=1, keepdims=True)
    z = np.divide(away, spread, out=np.zeros_like(scores), where=spread > 0)
    return [float(score) for score in z[0] - z[1:].mean(axis=0)]


def linear_modules(model: Any) -> tuple[str, ...]:
    """The names of the linear layers of a model that adapters reach, except its output head, sorted."""
    head, unreachable = model.get_output_embeddings(), unreachable_layers(model)
    names = (
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and name not in unreachable
    )
    return tuple(sorted(names))


def backward(
    base: LoadedBase,
    prompts: Sequence[Prompt],
    collect: Collect,
    *,
    modules: Sequence[str],
    width: int | None = None,
) -> float:
    """The mean over prompts of the right answer's loss a token, in nats; `collect` gets every layer's inputs
    and gradients, tree by tree.

    Inputs and gradients are in the base's data type, float32 at least. Trees that do not fit into memory are
    halved. Raises MemoryLimitError if a prompt alone does not fit, EvaluationError if a loss is not finite,
    and UsageError without prompts or for modules that are not linear layers.
    """
    if not prompts:
        raise UsageError("A gradient requires at least one example.")
    read = targets_only(prompts)
    groups = reading_groups(base, read, width or WIDTH.get(base.device.type, WIDTH["cpu"]))
    total = 0.0

    def run_pass(group: Sequence[int]) -> tuple[float, list[tuple[str, Tensor, Tensor]]]:
        return _pass(base, [read[index] for index in group], modules)

    for _, (loss, activations) in in_pieces(groups, run_pass, lambda index: too_large(read[index])):
        if not math.isfinite(loss):
            raise EvaluationError(
                "The loss of a prompt is not finite; the weights of the base model overflow."
            )
        total += loss
        for name, x, dy in activations:
            collect(name, x, dy / len(prompts))
    return total / len(prompts)


def _pass(
    base: LoadedBase, prompts: Sequence[Prompt], modules: Sequence[str]
) -> tuple[float, list[tuple[str, Tensor, Tensor]]]:
    """The sum of the prompts' losses, and of each layer its inputs and the gradients of its outputs."""
    import torch

    with torch.enable_grad(), _record_activations(base.model, modules) as activations:
        loss = losses(base, prompts).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), activations


@contextlib.contextmanager
def _record_activations(model: Any, modules: Sequence[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """Within the block a pass backward adds (name, inputs, gradients of the outputs) of the layers."""
    import torch

    activations: list[tuple[str, Tensor, Tensor]] = []

    def listen(name: str) -> Callable[..., None]:
        def forward(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()

            def arrived(dy: Tensor) -> None:
                kind = torch.promote_types(x.dtype, torch.float32)
                activations.append((name, x.flatten(0, -2).to(kind), dy.detach().flatten(0, -2).to(kind)))

            output.register_hook(arrived)  # type: ignore[no-untyped-call]

        return forward

    with contextlib.ExitStack() as stack:
        # No parameter requires gradients: without this no layer would get any.
        start = model.get_input_embeddings().register_forward_hook(_asking)
        stack.callback(start.remove)
        for name in modules:
            stack.callback(_linear(model, name).register_forward_hook(listen(name)).remove)
        yield activations


def _asking(_: Any, __: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.detach().requires_grad_()


def _linear(model: Any, name: str) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if not is_linear(module):
        raise UsageError(f"The base model has no linear layer {name}; use names of its linear layers.")
    return module


class _Products:
    """Sums over tokens of <B^T dy, A x> for every rank of every member, by module."""

    def __init__(self, base: LoadedBase, members: Sequence[MergeMember]) -> None:
        from merging.live import layer
        from merging.members import read_stack, shapes

        linear = [shape for shape in shapes(members) if shape.kind == "linear"]
        for shape in linear:
            layer(base.model, shape, members)
        self._members = len(members)
        self.stacks = {shape.name: read_stack(shape, members, str(base.device)) for shape in linear}
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor, dy: Tensor) -> None:
        """Adds a module's tokens to the sums; does nothing if no member has the module."""
        stack = self.stacks.get(name)
        if stack is not None:
            products = ((x @ stack.a.T.to(x.dtype)) * (dy @ stack.b.to(x.dtype))).sum(0).double()
            self._sums[name] = self._sums[name] + products if name in self._sums else products

    def downhill(self) -> tuple[Downhill, ...]:
        """Of every member minus its products with the gradient."""
        from catalog.adapters import gram, product_norm

        parts: list[dict[str, float]] = [{} for _ in range(self._members)]
        squares = [0.0] * self._members
        for name, stack in self.stacks.items():
            for at, place in enumerate(stack.ranges()):
                if place.start < place.stop:
                    parts[at][name] = -float(self._sums[name][place].sum())
                    norm = product_norm(gram(stack.a[place].T), gram(stack.b[:, place]))
                    squares[at] += (norm or 0.0) ** 2
        raw = [math.fsum(part.values()) for part in parts]
        return tuple(
            Downhill(total, total / math.sqrt(square) if square else 0.0, part)
            for total, square, part in zip(raw, squares, parts, strict=True)
        )


class _SketchSums:
    """Sums over tokens from which the sketches are made; the signs are drawn once a module."""

    def __init__(self) -> None:
        self._signs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._delta: Any = 0.0
        self._halves: dict[str, Tensor] = {}

    def add(self, name: str, x: Tensor, dy: Tensor) -> None:
        """Adds a module's tokens to the sums."""
        left, right, start = self._draw_signs(name, x, dy)
        self._delta = self._delta + ((dy @ left).T @ (x @ right)).double() / _DELTA_WIDTH
        half = dy.T @ (x @ start)
        self._halves[name] = self._halves[name] + half if name in self._halves else half

    def delta(self) -> NDArray[float32]:
        """The sketch of minus the gradient, row by row as `catalog.fingerprints.sketches.delta_sketch`."""
        import numpy as np

        if not self._halves:
            return np.zeros(DELTA_SIZE, dtype=np.float32)
        delta: NDArray[float32] = -self._delta.cpu().numpy().astype(np.float32).ravel()
        return delta

    def step(self) -> list[Module]:
        """A and, as B, minus the signs of G A^T, sorted by module."""
        return [
            Module(name, self._signs[name][2].T, -half.sign(), 1.0)
            for name, half in sorted(self._halves.items())
        ]

    def _draw_signs(self, name: str, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        if name not in self._signs:
            left = signs("delta", name, "B", dy.shape[-1], _DELTA_WIDTH)
            right = signs("delta", name, "A", x.shape[-1], _DELTA_WIDTH)
            start = signs("step", name, "A", x.shape[-1], STEP_RANK)
            sign_tensors = [torch.from_numpy(array).to(x) for array in (left, right, start)]
            self._signs[name] = (sign_tensors[0], sign_tensors[1], sign_tensors[2])
        return self._signs[name]
