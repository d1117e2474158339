"""The gradient is autograd's, its sketch the catalog's, and what it promises of an adapter comes true."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from catalog.adapters import Module
from catalog.errors import EvaluationError, MergeError, UsageError
from catalog.fingerprints.sketches import delta_sketch, output_sketch, signs
from merging.evaluation import losses
from merging.learning.gradients import (
    STEP_RANK,
    Kind,
    backward,
    direction,
    exact_scores,
    linear_modules,
    task_gradient,
)
from merging.live import LiveStack
from merging.members import MergeMember, load_member
from merging.model import LoadedBase, Prompt, Task, encode, examples, read_task
from tests.hubs import adapter_config
from tests.merging.adapters import deltas
from tests.merging.llama import mixed, write
from tests.merging.test_scoring import some_prompts
from tests.merging.tiny import tiny_base, write_task


def double_base(seed: int = 0) -> LoadedBase:
    """A tiny Llama that is float64 all through; its own norms round to float32."""
    base = tiny_base(seed, dtype=torch.float64)
    for parent in list(base.model.modules()):
        for name, module in list(parent.named_children()):
            if type(module).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(len(module.weight), eps=1e-6, dtype=torch.float64)
                setattr(parent, name, norm.requires_grad_(False))
    return base


BASE = double_base()
LAYERS = linear_modules(BASE.model)


def autograd(base: LoadedBase, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The gradient of the mean loss by every weight, as torch gives it, from prompts read one by one."""
    weights = {name: base.model.get_submodule(name).weight for name in LAYERS}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        loss = torch.stack([one_loss(base, prompt) for prompt in prompts]).mean()
        result = torch.autograd.grad(loss, list(weights.values()))
    finally:
        base.model.requires_grad_(False)
    return dict(zip(weights, result, strict=True))


def one_loss(base: LoadedBase, prompt: Prompt) -> Tensor:
    """The right answer's loss a token by its definition."""
    logs = base.model(torch.tensor([prompt.question + prompt.target])).logits[0].log_softmax(-1)
    start = len(prompt.question) - 1
    complete = [logs[start + at, token] for at, token in enumerate(prompt.target)]
    return -torch.stack(complete).mean()


def dense(base: LoadedBase, prompts: Sequence[Prompt], width: int | None = None) -> dict[str, Tensor]:
    """The gradient by every weight, from what `backward` hands out."""
    result: dict[str, Tensor] = {}

    def collect(name: str, x: Tensor, dy: Tensor) -> None:
        result[name] = result.get(name, torch.zeros(())) + dy.T @ x

    backward(base, prompts, collect, modules=LAYERS, width=width)
    return result


def as_update(gradient: Mapping[str, Tensor]) -> list[Module]:
    """Minus the gradient as an adapter of full rank."""
    return [Module(name, item.float(), torch.eye(len(item)), -1.0) for name, item in sorted(gradient.items())]


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 6),
    seed=st.integers(0, 10_000),
    width=st.integers(1, 80),
)
def test_the_gradient_is_that_of_autograd(count: int, seed: int, width: int) -> None:
    prompts = some_prompts(count, seed)
    expected = autograd(BASE, prompts)
    result = dense(BASE, prompts, width)
    for name, item in expected.items():
        assert float((result[name] - item).abs().max()) < 1e-9, name


def test_the_loss_is_the_mean_over_the_prompts() -> None:
    prompts = some_prompts(5, 8)
    expected = sum(float(one_loss(BASE, prompt)) for prompt in prompts) / 5
    result = task_gradient(BASE, prompts)
    assert result.loss == pytest.approx(expected, abs=1e-9)
    assert result.prompts == 5


def test_the_sketch_is_the_catalogs_of_minus_the_gradient() -> None:
    prompts = some_prompts(6, 1)
    expected = delta_sketch(as_update(autograd(BASE, prompts)))
    result = task_gradient(BASE, prompts).delta
    assert result.shape == (1024,)
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 1e-5 * np.linalg.norm(expected)


def test_the_step_is_the_first_that_adam_takes_on_a_lora() -> None:
    prompts = some_prompts(6, 1)
    factors = {}
    for name in LAYERS:
        outside, inside = BASE.model.get_submodule(name).weight.shape
        a = torch.from_numpy(signs("step", name, "A", inside, STEP_RANK)).T.double()
        factors[name] = (a, torch.zeros(outside, STEP_RANK, dtype=torch.float64, requires_grad=True))

    def adapted(name: str) -> Any:
        a, b = factors[name]
        return lambda _, inputs, output: output + inputs[0] @ a.T @ b.T

    hooks = [BASE.model.get_submodule(name).register_forward_hook(adapted(name)) for name in LAYERS]
    adam = torch.optim.Adam([b for _, b in factors.values()], lr=0.5, eps=1e-20)
    try:
        torch.stack([one_loss(BASE, prompt) for prompt in prompts]).mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
    finally:
        for hook in hooks:
            hook.remove()
    trained = [Module(name, a, b.detach(), 2.0) for name, (a, b) in sorted(factors.items())]
    assert np.abs(task_gradient(BASE, prompts).output - output_sketch(trained)).max() < 1e-6


class Toy(nn.Module):
    """Logits W e_token over two tokens, W = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 2, dtype=torch.float64)
        self.layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.embedding.weight.data = torch.eye(2, dtype=torch.float64)
        self.layer.weight.data.zero_()
        self.requires_grad_(False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, logits_to_keep: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.layer(self.embedding(input_ids))[:, logits_to_keep])


def test_a_gradient_by_hand(tmp_path: Path) -> None:
    base = LoadedBase("toy", Toy(), None, 8)
    # Both tokens are as likely: dL/dy = (1/2, 1/2) - (0, 1), x = (1, 0), so G = [[1/2, 0], [-1/2, 0]].
    prompts = [Prompt((0,), ((1,), (0,)), 0)]
    requests: dict[str, Tensor] = {}
    loss = backward(base, prompts, lambda n, x, dy: requests.update({n: dy.T @ x}), modules=["layer"])
    assert loss == pytest.approx(np.log(2))
    assert requests["layer"].tolist() == [[0.5, 0.0], [-0.5, 0.0]]
    # 2 B A = [[0, 0], [2, 0]]: minus its product with G is 1, over its norm 1/2.
    member = one_module(tmp_path / "m", a=[[1.0, 0.0]], b=[[0.0], [1.0]], alpha=2)
    (exact,) = task_gradient(base, prompts, members=[member]).exact
    assert exact.raw == pytest.approx(1.0)
    assert exact.unit == pytest.approx(0.5)
    assert dict(exact.modules) == {"layer": exact.raw}


def one_module(folder: Path, a: list[list[float]], b: list[list[float]], alpha: int) -> MergeMember:
    """A member whose only module is `layer`."""
    folder.mkdir()
    factors = {"lora_A": torch.tensor(a), "lora_B": torch.tensor(b)}
    tensors = {f"base_model.model.layer.{side}.weight": item for side, item in factors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    document = adapter_config(r=len(a), lora_alpha=alpha, target_modules=["layer"])
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return load_member(folder)


def test_exact_products_are_those_with_dense_updates(tmp_path: Path) -> None:
    members = mixed(tmp_path, BASE.model)
    prompts = some_prompts(6, 2)
    gradient = dense(BASE, prompts)
    result = task_gradient(BASE, prompts, members=members, width=30)
    for member, exact in zip(members, result.exact, strict=True):
        updates = deltas(member.folder)
        assert set(exact.modules) == set(updates)
        for name, update in updates.items():
            if name != "lm_head":
                expected = -float((gradient[name] * update).sum())
                scale = float(gradient[name].norm() * update.norm())
                assert exact.modules[name] == pytest.approx(expected, abs=1e-6 * scale)
        norm = float(sum(update.square().sum() for update in updates.values())) ** 0.5
        assert exact.unit == pytest.approx(exact.raw / norm, rel=1e-5)
    # What members lie in the way changes neither sketch.
    assert result.delta.tobytes() == task_gradient(BASE, prompts, width=30).delta.tobytes()


def test_a_little_of_an_adapter_lowers_the_loss_by_as_much_as_promised(tmp_path: Path) -> None:
    members, prompts = mixed(tmp_path, BASE.model), some_prompts(6, 4)
    promised = task_gradient(BASE, prompts, members=members).exact
    live = LiveStack(BASE.model, members)
    right = [Prompt(prompt.question, (prompt.target,), 0) for prompt in prompts]

    def loss(weights: Sequence[float]) -> float:
        live.set_scales(live.scales_of(weights))
        with live.attach(), torch.no_grad():
            return float(losses(BASE, right).mean())

    step = 1e-3
    for at, item in enumerate(promised):
        up, down = ([sign * step * (at == k) for k in range(4)] for sign in (1, -1))
        assert (loss(down) - loss(up)) / (2 * step) == pytest.approx(item.raw, rel=1e-3, abs=1e-5)


def test_estimates_have_no_bias_and_the_promised_spread() -> None:
    prompts = some_prompts(6, 5)
    gradient = autograd(BASE, prompts)
    sketch = task_gradient(BASE, prompts).delta.astype(np.float64)
    length = float(sum(item.square().sum() for item in gradient.values())) ** 0.5
    draw = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(80):
        update = [
            Module(name, torch.randn(2, item.shape[1], generator=draw), b, 1.0)
            for name, item in gradient.items()
            for b in [torch.randn(len(item), 2, generator=draw)]
        ]
        exact = [(m.b.double() @ m.a.double(), gradient[m.name]) for m in update]
        inner = -sum(float((x * g).sum()) for x, g in exact)
        norm = float(sum(x.square().sum() for x, _ in exact)) ** 0.5
        errors.append((float(sketch @ delta_sketch(update)) - inner) / (length * norm))
    # The cosine's standard deviation is about 1/32.
    assert 0.8 / 32 < np.std(errors) < 1.6 / 32
    assert abs(np.mean(errors)) < 3 * np.std(errors) / len(errors) ** 0.5


def random_update(draw: torch.Generator) -> list[Module]:
    """A random adapter of rank 8 on all layers."""
    update = []
    for name in LAYERS:
        outside, inside = BASE.model.get_submodule(name).weight.shape
        a = torch.randn(8, inside, generator=draw)
        update.append(Module(name, a, torch.randn(outside, 8, generator=draw), 1.0))
    return update


def make_task(folder: Path, texts: str) -> Task:
    """A task of the two answers, in turn, to the words."""
    rows = [(word, ("yes", "no")[at % 2]) for at, word in enumerate(texts.split())]
    return read_task(write_task(folder, rows))


@pytest.mark.parametrize("kind", ["delta", "output"])
def test_a_step_down_the_slope_is_found_among_random_adapters(tmp_path: Path, kind: Kind) -> None:
    task = make_task(tmp_path / "task", "a bb ccc d")
    vector, backgrounds = direction(BASE, task, examples(task, "train"), kind=kind)
    assert backgrounds.shape == (0, len(vector))
    assert vector.dtype == backgrounds.dtype == np.float32
    draw = torch.Generator().manual_seed(1)
    updates = [random_update(draw) for _ in range(20)]
    # B = -G A^T for another random A: a step of plain descent.
    updates.append(
        [
            module._replace(a=a, b=module.a @ a.T)
            for module in as_update(dense(BASE, encode(BASE.tokenizer, task, examples(task, "train"), 512)))
            for a in [torch.randn(8, module.a.shape[1], generator=draw)]
        ]
    )
    sketch = delta_sketch if kind == "delta" else output_sketch
    result = [sketch(update) for update in updates]
    scores = [float(vector @ item / np.linalg.norm(item)) for item in result]
    assert int(np.argmax(scores)) == 20


def test_backgrounds_are_what_the_other_tasks_ask_with(tmp_path: Path) -> None:
    item, other = make_task(tmp_path / "one", "a bb ccc"), make_task(tmp_path / "other", "x yy zzz wwww")
    samples = [(task, examples(task, "train")) for task in (item, other)]
    vector, backgrounds = direction(BASE, *samples[0], backgrounds=[samples[1], samples[0]])
    assert backgrounds.shape == (2, 1035)
    assert backgrounds[0].tobytes() == direction(BASE, *samples[1])[0].tobytes()
    assert backgrounds[1].tobytes() == vector.tobytes()


def test_exact_scores_are_units_and_centred_by_hand(tmp_path: Path) -> None:
    members = mixed(tmp_path / "members", BASE.model)
    item, other = make_task(tmp_path / "one", "a bb ccc"), make_task(tmp_path / "other", "x yy zzz wwww")
    samples = [(task, examples(task, "train")) for task in (item, other)]
    units = []
    for task, some in samples:
        prompts = encode(BASE.tokenizer, task, some, BASE.limit)
        units.append([exact.unit for exact in task_gradient(BASE, prompts, members=members).exact])
    assert exact_scores(BASE, *samples[0], members) == pytest.approx(units[0])
    z = [[(value - np.mean(row)) / np.std(row) for value in row] for row in units]
    centred = [mine - theirs for mine, theirs in zip(*z, strict=True)]
    assert exact_scores(BASE, *samples[0], members, samples[1:]) == pytest.approx(centred)
    # A task centred by itself has nothing of its own.
    assert exact_scores(BASE, *samples[0], members, samples[:1]) == pytest.approx([0.0] * 4, abs=1e-12)
    assert exact_scores(BASE, *samples[0], [], samples[1:]) == []


def test_the_same_bytes_come_out_twice() -> None:
    base, prompts = tiny_base(), some_prompts(6, 6)
    first, second = task_gradient(base, prompts), task_gradient(base, prompts)
    assert first.delta.tobytes() == second.delta.tobytes()
    assert first.output.tobytes() == second.output.tobytes()


def test_a_base_in_bfloat16_points_the_same_way() -> None:
    prompts = some_prompts(6, 6)
    exact = task_gradient(tiny_base(), prompts).delta
    rounded = task_gradient(tiny_base(dtype=torch.bfloat16), prompts).delta
    assert float(exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)) > 0.99


def test_the_base_is_left_as_it_was(tmp_path: Path) -> None:
    base, prompts = tiny_base(), some_prompts(4, 7)
    before = {name: item.clone() for name, item in base.model.named_parameters()}
    task_gradient(base, prompts, members=mixed(tmp_path, base.model))
    for name, item in base.model.named_parameters():
        assert item.grad is None
        assert not item.requires_grad
        assert torch.equal(item, before[name])
    assert not any(module._forward_hooks for module in base.model.modules())


def test_the_output_head_counts_only_where_it_is_asked_for() -> None:
    assert "lm_head" not in LAYERS
    assert len(LAYERS) == 2 * 7
    prompts = some_prompts(3, 0)
    assert task_gradient(BASE, prompts, modules=["lm_head"]).delta.any()


def test_trees_that_do_not_fit_are_halved_and_nothing_counts_twice() -> None:
    prompts = some_prompts(8, 11)
    expected = task_gradient(BASE, prompts).delta
    sizes: list[int] = []

    def refuse(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        sizes.append(kwargs["input_ids"].shape[-1])
        if sizes[-1] > 20:
            raise torch.OutOfMemoryError("out of memory")

    hook = BASE.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        result = task_gradient(BASE, prompts).delta
    finally:
        hook.remove()
    assert max(sizes) > 20 > min(sizes)
    assert np.abs(result - expected).max() < 1e-6 * np.linalg.norm(expected)


def test_memory_that_runs_out_on_the_way_back_counts_nothing_twice() -> None:
    prompts = some_prompts(8, 11)
    expected = task_gradient(BASE, prompts).delta
    left = [2]

    def refuse(_: Any, __: Any, output: Tensor) -> None:
        def back(_: Tensor) -> None:
            if left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("out of memory")

        output.register_hook(back)  # type: ignore[no-untyped-call]

    # The first layer is the last on the way back: all others have been listened to by then.
    hook = BASE.model.get_submodule(LAYERS[0]).register_forward_hook(refuse)
    try:
        result = task_gradient(BASE, prompts).delta
    finally:
        hook.remove()
    assert left == [0]
    assert np.abs(result - expected).max() < 1e-6 * np.linalg.norm(expected)


def test_a_prompt_that_never_fits_is_an_error() -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = BASE.model.register_forward_pre_hook(refuse)
    try:
        with pytest.raises(EvaluationError, match=r"A prompt of \d+ tokens does not fit"):
            task_gradient(BASE, some_prompts(3, 0))
    finally:
        hook.remove()


def test_a_base_that_overflows_is_an_error() -> None:
    base = tiny_base()
    base.model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(EvaluationError, match="not finite"):
        task_gradient(base, some_prompts(3, 0))


def test_nonsense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one example"):
        task_gradient(BASE, [])
    for name in ("model.layers.9.mlp.up_proj", "model.norm"):
        with pytest.raises(UsageError, match=f"no linear layer {name}"):
            task_gradient(BASE, some_prompts(1, 0), modules=[name])
    other = tiny_base(hidden=16)
    member = write(tmp_path / "other", other.model, 0)
    with pytest.raises(MergeError):
        task_gradient(BASE, some_prompts(1, 0), members=[member])
