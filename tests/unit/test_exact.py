"""Exact cosines of adapters against the dense product."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalog.adapters import ScalingRule
from catalog.adapters.config import AdapterConfig, parse_config
from catalog.adapters.names import factor_key
from catalog.errors import ConfigError, WeightsError
from catalog.fingerprints import Cosine, exact_cosine
from tests.shared_data import data, shared

Pair = tuple[torch.Tensor, torch.Tensor]


def config(**fields: Any) -> AdapterConfig:
    return parse_config(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **fields}).encode())


def saved(path: Path, pairs: Mapping[str, Pair]) -> Path:
    tensors = {}
    for module, (a, b) in pairs.items():
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = a.clone(), b.clone()
    save_file(tensors, path)
    return path


def random(seed: int, names: str = "kqv", rank: int = 4) -> dict[str, Pair]:
    """Modules that map 30 features to 20, of a slowly falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    falling = 0.7 ** torch.arange(rank)
    return {
        name: (
            torch.randn(rank, 30, generator=generator),
            torch.randn(20, rank, generator=generator) * falling,
        )
        for name in names
    }


def dense(pairs: Mapping[str, Pair], read: AdapterConfig) -> dict[str, torch.Tensor]:
    rules = ScalingRule(read)
    return {name: rules.scaling(name) * (b.double() @ a.double()) for name, (a, b) in pairs.items()}


def by_the_book(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> Cosine:
    """The same three numbers from dense updates."""

    def outputs(update: dict[str, torch.Tensor]) -> torch.Tensor:
        grams = [
            update[name] @ update[name].T / float(update[name].norm()) ** 2 if name in update else None
            for name in sorted({*left, *right})
        ]
        return torch.cat([torch.zeros(400) if g is None else g.flatten() for g in grams]).double()

    def whole(update: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat(
            [update.get(n, torch.zeros(20, 30)).flatten() for n in sorted({*left, *right})]
        ).double()

    def cosine(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(x @ y / (x.norm() * y.norm()))

    return Cosine(
        cosine(whole(left), whole(right)),
        cosine(outputs(left), outputs(right)),
        float(whole(left).norm() / whole(right).norm()),
    )


def close(result: Cosine, expected: Cosine, tolerance: float = 1e-12) -> None:
    assert result.delta == pytest.approx(expected.delta, abs=tolerance)
    assert result.output == pytest.approx(expected.output, abs=tolerance)
    assert result.norm_ratio == pytest.approx(expected.norm_ratio, rel=tolerance)


def test_a_case_worked_by_hand(tmp_path: Path) -> None:
    """X = [[2, 0], [0, 0]] and Y = [[3, 4], [0, 0]]: <X, Y> = 6, norms 2 and 5, one row."""
    left = saved(tmp_path / "left", {"q": (torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [0.0]]))})
    right = saved(tmp_path / "right", {"q": (torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]]))})
    result = exact_cosine(left, config(r=1, lora_alpha=1), right, config(r=1, lora_alpha=3))
    close(result, Cosine(delta=6 / 10, output=1.0, norm_ratio=2 / 15))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ranks", [(4, 4), (2, 7)])
def test_equal_to_the_dense_product(seed: int, ranks: tuple[int, int], tmp_path: Path) -> None:
    left, right = random(seed, rank=ranks[0]), random(100 + seed, rank=ranks[1])
    # Something in common, or there is little to see.
    right = {name: (a.clone(), b.clone()) for name, (a, b) in right.items()}
    for name, (a, b) in left.items():
        right[name][0][0], right[name][1][:, 0] = a[0], b[:, 0] * 2
    configs = config(alpha_pattern={"k": 3}), config(use_rslora=True, rank_pattern={"v": 9})
    expected = by_the_book(dense(left, configs[0]), dense(right, configs[1]))
    assert expected.delta > 0.2
    result = exact_cosine(
        saved(tmp_path / "left", left), configs[0], saved(tmp_path / "right", right), configs[1]
    )
    close(result, expected)
    back = exact_cosine(tmp_path / "right", configs[1], tmp_path / "left", configs[0])
    close(back, Cosine(result.delta, result.output, 1 / result.norm_ratio))


def test_modules_of_one_side_count_in_the_norms_alone(tmp_path: Path) -> None:
    left, right = random(0, "kqv"), {**random(1, "uqvw"), "q": random(0, "kqv")["q"]}
    expected = by_the_book(dense(left, config()), dense(right, config()))
    assert 0.05 < expected.delta < 0.9
    close(
        exact_cosine(saved(tmp_path / "left", left), config(), saved(tmp_path / "right", right), config()),
        expected,
    )


def test_nothing_in_common(tmp_path: Path) -> None:
    left, right = saved(tmp_path / "left", random(0, "q")), saved(tmp_path / "right", random(0, "v"))
    result = exact_cosine(left, config(), right, config())
    assert (result.delta, result.output) == (0.0, 0.0)
    assert result.norm_ratio > 0


def test_case_63_rotated_factors_are_the_same_adapter(tmp_path: Path) -> None:
    left = random(5)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1))).Q
    right = {name: (turn @ a, b @ turn.T) for name, (a, b) in left.items()}
    result = exact_cosine(
        saved(tmp_path / "left", left), config(), saved(tmp_path / "right", right), config()
    )
    close(result, Cosine(1.0, 1.0, 1.0), 1e-6)


def test_the_ratio_of_norms_tells_a_moved_alpha_and_the_cosine_its_sign(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", random(3))
    close(exact_cosine(path, config(lora_alpha=32), path, config()), Cosine(1.0, 1.0, 4.0))
    close(exact_cosine(path, config(lora_alpha=-8), path, config()), Cosine(-1.0, 1.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_case_64_a_cast_is_told_from_another_adapter(dtype: torch.dtype, tmp_path: Path) -> None:
    """Above the threshold of 1 - 1e-4 that stands for the same weights."""
    left = random(7)
    cast = {name: (a.to(dtype), b.to(dtype)) for name, (a, b) in left.items()}
    result = exact_cosine(saved(tmp_path / "left", left), config(), saved(tmp_path / "right", cast), config())
    assert 1 - 1e-5 < result.delta < 1
    assert 1 - 1e-5 < result.output < 1


ZERO = (torch.ones(4, 30), torch.zeros(20, 4))


def test_zero_has_the_cosine_zero_and_never_nan(tmp_path: Path) -> None:
    """Case 56."""
    zero, some = saved(tmp_path / "zero", {"q": ZERO}), saved(tmp_path / "some", random(0, "q"))
    assert exact_cosine(zero, config(), some, config()) == Cosine(0.0, 0.0, 0.0)
    assert exact_cosine(some, config(), zero, config()) == Cosine(0.0, 0.0, math.inf)
    assert exact_cosine(zero, config(), zero, config()) == Cosine(0.0, 0.0, 1.0)
    assert exact_cosine(some, config(lora_alpha=0), some, config()) == Cosine(0.0, 0.0, 0.0)
    empty = saved(tmp_path / "empty", {})
    assert exact_cosine(empty, config(), empty, config()) == Cosine(0.0, 0.0, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_module_that_is_not_finite_counts_as_absent(bad: float, tmp_path: Path) -> None:
    """Case 55."""
    left, right = random(0), random(0)
    right["k"][0][0, 0] = bad
    expected = by_the_book(dense(left, config()), dense({n: right[n] for n in "qv"}, config()))
    close(
        exact_cosine(saved(tmp_path / "left", left), config(), saved(tmp_path / "right", right), config()),
        expected,
    )


def test_the_largest_numbers_do_not_overflow(tmp_path: Path) -> None:
    pair = {"q": (torch.full((4, 30), 3e38), torch.full((20, 4), 1e-3))}
    path = saved(tmp_path / "x", pair)
    close(exact_cosine(path, config(), path, config()), Cosine(1.0, 1.0, 1.0))


def test_another_base_is_named(tmp_path: Path) -> None:
    """Case 59."""
    left = saved(tmp_path / "left", random(0))
    other = random(0) | {"q": (torch.ones(4, 31), torch.ones(20, 4))}
    with pytest.raises(
        WeightsError, match=r"q has the shape \(20, 30\) in one adapter and \(20, 31\)"
    ) as refused:
        exact_cosine(left, config(), saved(tmp_path / "right", other), config())
    assert refused.value.kind == "base_mismatch"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x", random(0))
    with pytest.raises(ConfigError):
        exact_cosine(path, config(), path, parse_config(b'{"peft_type": "IA3"}'))
    with pytest.raises(WeightsError) as refused:
        exact_cosine(path, config(), tmp_path / "nothing", config())
    assert refused.value.kind == "unreadable"


@shared
@pytest.mark.slow
def test_two_runs_on_one_task_of_the_zoo_against_the_dense_product() -> None:
    updates, arguments = [], []
    for name in ("sst2", "sst2--seed100"):
        folder = data("zoo") / name
        path, read = folder / "adapter_model.safetensors", folder / "adapter_config.json"
        arguments += [path, parse_config(read.read_bytes())]
        factors: dict[str, dict[str, torch.Tensor]] = {}
        for tensor_name, tensor in load_file(path).items():
            key = factor_key(tensor_name)
            assert key is not None
            factors.setdefault(key.module, {})[key.side] = tensor
        updates.append(dense({name: (pair["A"], pair["B"]) for name, pair in factors.items()}, arguments[-1]))
    left, right = updates
    delta = sum(float((left[name] * right[name]).sum()) for name in left)
    norms = [math.hypot(*(float(part.norm()) for part in update.values())) for update in updates]
    grams = [{n: x @ x.T / float(x.norm()) ** 2 for n, x in update.items()} for update in updates]
    output = sum(float((grams[0][name] * grams[1][name]).sum()) for name in left)
    lengths = [math.hypot(*(float(part.norm()) for part in gram.values())) for gram in grams]
    result = exact_cosine(*arguments)
    expected = Cosine(delta / math.prod(norms), output / math.prod(lengths), norms[0] / norms[1])
    close(result, expected, 1e-10)
    assert result.output > 2 * result.delta > 0.2
