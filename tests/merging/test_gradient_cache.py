"""Gradients that were computed before are read from a cache, bit for bit, and never from a wrong one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from catalog.errors import EvaluationError
from merging.learning import direction, gradient_cache, gradients
from merging.learning.gradient_cache import ROW_SIZE, GradientCache, weights_mark
from merging.model import LoadedBase, Task, examples, read_task
from tests.merging.test_scoring import some_prompts
from tests.merging.tiny import tiny_base, write_task

ROWS = (("a", "yes"), ("bb", "no"), ("ccc", "yes"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of prompts of each gradient that is computed."""
    counts: list[int] = []
    compute = gradients.task_gradient

    def counting(base: LoadedBase, prompts: Any, **options: Any) -> Any:
        counts.append(len(prompts))
        return compute(base, prompts, **options)

    monkeypatch.setattr(gradients, "task_gradient", counting)
    return counts


@pytest.fixture
def tasks(tmp_path: Path) -> list[Task]:
    """Nine tasks with words of their own."""
    rows = [[(f"{text}{number}", answer) for text, answer in ROWS] for number in range(9)]
    return [read_task(write_task(tmp_path / "tasks" / f"t{n}", words)) for n, words in enumerate(rows)]


def ask_direction(base: LoadedBase, tasks: list[Task], cache: Path | None, **options: Any) -> bytes:
    """The bytes of the first task's direction and of those of the others."""
    sets = [(task, examples(task, "train")) for task in tasks]
    vector, others = direction(base, *sets[0], sets[1:], cache=cache, **options)
    assert vector.flags.c_contiguous
    assert others.flags.c_contiguous
    return vector.tobytes() + others.tobytes()


def test_the_second_selection_takes_no_pass_and_one_for_another_task_takes_its_own(
    tmp_path: Path, tasks: list[Task], passes: list[int]
) -> None:
    base, cache = tiny_base(), tmp_path / "gradients"
    plain = ask_direction(base, tasks[:8], None)
    passes.clear()
    assert ask_direction(base, tasks[:8], cache) == plain
    assert len(passes) == 8
    assert ask_direction(tiny_base(), tasks[:8], cache) == plain
    assert len(passes) == 8
    # The other kind comes from the same pass.
    assert ask_direction(base, tasks[:8], cache, kind="delta") == ask_direction(
        base, tasks[:8], None, kind="delta"
    )
    del passes[8:]
    other = ask_direction(base, [tasks[8], *tasks[:7]], cache)
    assert len(passes) == 9
    assert other == ask_direction(base, [tasks[8], *tasks[:7]], None)


def test_what_was_computed_before_an_error_is_kept(
    tmp_path: Path, tasks: list[Task], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute, base = gradients.task_gradient, tiny_base()

    def failing(base: LoadedBase, prompts: Any) -> Any:
        if len(passes) == 2:
            raise KeyboardInterrupt
        return compute(base, prompts)

    monkeypatch.setattr(gradients, "task_gradient", failing)
    with pytest.raises(KeyboardInterrupt):
        ask_direction(base, tasks[:4], tmp_path)
    monkeypatch.setattr(gradients, "task_gradient", compute)
    ask_direction(base, tasks[:4], tmp_path)
    assert len(passes) == 4


def one_bit_more(base: LoadedBase) -> LoadedBase:
    """The base with the last bit of one weight changed."""
    weight = base.model.model.layers[1].mlp.down_proj.weight
    weight.view(torch.int32)[3, 5] ^= 1
    return base


def windowed(base: LoadedBase) -> LoadedBase:
    base.model.config.rope_theta = 5.0
    return base


@pytest.mark.parametrize(
    "change",
    [
        one_bit_more,
        windowed,
        lambda base: replace(base, name="tests/other"),
        lambda base: replace(base, revision="abc"),
        lambda base: replace(base, model=base.model.to(torch.bfloat16)),
    ],
)
def test_another_base_shares_nothing(
    tmp_path: Path, tasks: list[Task], passes: list[int], change: Callable[[LoadedBase], LoadedBase]
) -> None:
    ask_direction(tiny_base(), tasks[:1], tmp_path)
    base = change(tiny_base())
    assert ask_direction(base, tasks[:1], tmp_path) == ask_direction(base, tasks[:1], None)
    assert len(passes) == 3


def test_other_prompts_share_nothing(tmp_path: Path, tasks: list[Task], passes: list[int]) -> None:
    base = tiny_base()
    base.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + base.tokenizer.chat_template
    for day in (1, 2):
        ask_direction(replace(base, date=date(2025, 1, day)), tasks[:1], tmp_path)
    some = examples(tasks[0], "train")
    direction(base, tasks[0], some[:2], cache=tmp_path)
    direction(base, tasks[0], some[1::-1], cache=tmp_path)
    base.reading.wrong = 3
    ask_direction(base, tasks[:1], tmp_path)
    assert passes == [3, 3, 2, 2, 3]


def test_another_version_shares_nothing(
    tmp_path: Path, tasks: list[Task], passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask_direction(tiny_base(), tasks[:1], tmp_path)
    monkeypatch.setattr(gradient_cache, "VERSION", 0)
    ask_direction(tiny_base(), tasks[:1], tmp_path)
    assert len(passes) == 2


def test_another_machine_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = GradientCache(tmp_path, tiny_base()).path
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    assert GradientCache(tmp_path, tiny_base()).path != path


def test_numbers_that_are_not_finite_are_neither_used_nor_kept(
    tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, prompts = tiny_base(), some_prompts(2, 12)
    cache = GradientCache(tmp_path, base)
    cache.add(prompts, np.full(ROW_SIZE, np.nan, dtype=np.float32))
    cache.write()
    assert cache.path.is_file()
    assert GradientCache(tmp_path, base).find(prompts) is None
    cache.path.unlink()
    gradient = SimpleNamespace(delta=np.array([1.0, np.inf]), output=np.zeros(2))
    monkeypatch.setattr(gradients, "task_gradient", lambda *_: gradient)
    with pytest.raises(EvaluationError, match="gradient of the base model is not finite"):
        ask_direction(base, tasks[:1], tmp_path)
    assert not cache.path.is_file()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def forge(path: Path) -> None:
    """Facts that state other rows, with the right sum of the bytes."""
    facts = path.with_suffix(".json")
    document = json.loads(facts.read_text())
    facts.write_text(json.dumps({**document, "rows": document["rows"] * 2}))


def borrow(path: Path) -> None:
    facts = path.with_suffix(".json")
    document = json.loads(facts.read_text())
    facts.write_text(json.dumps({**document, "base": {**document["base"], "weights": "0" * 32}}))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        forge,
        borrow,
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("[" * 100_000),
        lambda path: path.with_suffix(".json").write_text('{"rows": 1}'),
    ],
)
def test_a_damaged_or_foreign_file_is_made_again(
    tmp_path: Path, tasks: list[Task], passes: list[int], damage: Callable[[Path], None]
) -> None:
    base = tiny_base()
    plain = ask_direction(base, tasks[:2], tmp_path)
    damage(GradientCache(tmp_path, base).path)
    assert ask_direction(base, tasks[:2], tmp_path) == plain
    assert len(passes) == 4
    assert ask_direction(base, tasks[:2], tmp_path) == plain
    assert len(passes) == 4


def test_a_place_that_cannot_be_written_costs_only_time(
    tmp_path: Path, tasks: list[Task], passes: list[int]
) -> None:
    (tmp_path / "file").write_text("")
    base = tiny_base()
    assert ask_direction(base, tasks[:1], tmp_path / "file") == ask_direction(base, tasks[:1], None)


def test_the_oldest_rows_and_bases_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_cache, "MOST_ROWS", 3)
    monkeypatch.setattr(gradient_cache, "MOST_BASES", 2)
    prompts, row = some_prompts(5, 0), torch.zeros(gradient_cache.ROW_SIZE).numpy()
    paths = []
    for number in range(3):
        cache = GradientCache(tmp_path, replace(tiny_base(), name=f"tests/{number}"))
        for prompt in prompts:
            cache.add([prompt], row + number)
        cache.write()
        assert not cache._added
        os.utime(cache.path, ns=(number, number))
        paths.append(cache.path)
    (tmp_path / "mine.gradients").write_text("not a file of the cache")
    cache = GradientCache(tmp_path, replace(tiny_base(), name="tests/2"))
    assert [cache.find([prompt]) is not None for prompt in prompts] == [False, False, True, True, True]
    found = cache.find(prompts[4:])
    assert found is not None
    assert set(found.tolist()) == {2.0}
    assert [path.exists() for path in paths] == [False, True, True]
    assert (tmp_path / "mine.gradients").exists()


def test_two_writers_lose_no_row(tmp_path: Path) -> None:
    base, (one, two) = tiny_base(), some_prompts(2, 0)
    row = torch.zeros(gradient_cache.ROW_SIZE).numpy()
    first, second = GradientCache(tmp_path, base), GradientCache(tmp_path, base)
    for cache, prompt in ((first, one), (second, two)):
        cache.add([prompt], row)
        cache.write()
    third = GradientCache(tmp_path, base)
    assert third.find([one]) is not None
    assert third.find([two]) is not None
    assert third.find([one, two]) is None


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_mark_is_the_weighted_sum_of_the_bits(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_cache, "_BLOCK", 4)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).to(kind), requires_grad=False)
    model.scale = torch.nn.Parameter(torch.tensor(2.0).to(kind), requires_grad=False)
    marks = {weights_mark(model)}
    for change in ([0, 1, 2, 3, 5, 4], [4, 1, 2, 3, 0, 5], [0, 1, 2, 3, 4, 6]):
        model.weight.data = torch.tensor(change).float().reshape(2, 3).to(kind)
        marks.add(weights_mark(model))
    model.weight.data = torch.arange(6.0).reshape(3, 2).to(kind)
    marks.add(weights_mark(model))
    assert len(marks) == 5
