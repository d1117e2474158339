"""Fingerprints: what they do not depend on, what they estimate and how well, and what breaks them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from catalog.adapters import AdapterConfig, parse_config
from catalog.adapters.weights import Module, iterate_modules, module_norms
from catalog.errors import WeightsError
from catalog.fingerprints import exact_cosine
from catalog.fingerprints.sketches import (
    BARELY_TRAINED,
    DELTA_SIZE,
    EXPLODING,
    FINGERPRINT_VERSION,
    LEADING,
    OUTPUT_SIZE,
    Fingerprint,
    delta_sketch,
    fingerprint,
    output_sketch,
    signs,
    stable_rank,
    verdict,
)
from tests.shared_data import data, shared
from tools.bench.fingerprints import bound, generate_modules, peak_memory, write
from tools.bench.fingerprints import config as llama_config

PREFIX = "base_model.model."
# Width of the output and of the input of each module.
WIDTHS = {"model.layers.0.mlp.up_proj": (96, 64), "model.layers.1.self_attn.v_proj": (40, 72)}
SEEDS = st.integers(0, 10_000)
CASES = settings(max_examples=20, deadline=None)


def config(rank: int, **fields: Any) -> AdapterConfig:
    return parse_config(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8, **fields}).encode())


def drawn(seed: int, rank: int, widths: Mapping[str, tuple[int, int]] = WIDTHS) -> list[Module]:
    """Modules with a falling spectrum, float32."""
    generator = torch.Generator().manual_seed(seed)
    modules = []
    for name, (out_features, in_features) in widths.items():
        a = torch.randn(rank, in_features, generator=generator)
        b = torch.randn(out_features, rank, generator=generator) * 0.7 ** torch.arange(rank)
        modules.append(Module(name, a, b, 1.0))
    return modules


def tensors(modules: list[Module], prefix: str = PREFIX, adapter: str = "") -> dict[str, torch.Tensor]:
    return {
        f"{prefix}{module.name}.lora_{side}{adapter}.weight": factor.contiguous()
        for module in modules
        for side, factor in (("A", module.a), ("B", module.b))
    }


def of(stored: Mapping[str, torch.Tensor] | list[Module], read: AdapterConfig | None = None) -> Fingerprint:
    """The fingerprint of modules or tensors after a trip through a file."""
    result = tensors(stored) if isinstance(stored, list) else dict(stored)
    rank = next(len(tensor) for name, tensor in result.items() if "lora_A" in name or "embedding_A" in name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "adapter_model.safetensors")
        save_file(result, path)
        return fingerprint(path, read or config(rank))


def distance(left: NDArray[Any], right: NDArray[Any]) -> float:
    """||left - right|| / ||left||."""
    return float(np.linalg.norm(left - right) / np.linalg.norm(left))


def cosine(left: NDArray[Any], right: NDArray[Any]) -> float:
    return float(np.dot(left, right) / (np.linalg.norm(left) * np.linalg.norm(right)))


def apart(left: Fingerprint, right: Fingerprint) -> float:
    """The largest relative distance of the three vectors."""
    assert left.modules == right.modules
    return max(
        distance(left.delta, right.delta),
        distance(left.output, right.output),
        distance(left.spectrum, right.spectrum),
    )


def identical(left: Fingerprint, right: Fingerprint) -> bool:
    """Equal to the last bit, digests apart."""
    return (
        left.modules == right.modules
        and left.spectrum.tobytes() == right.spectrum.tobytes()
        and left.delta.tobytes() == right.delta.tobytes()
        and left.output.tobytes() == right.output.tobytes()
    )


# What a fingerprint is.


def test_sizes_and_types() -> None:
    result = of(drawn(0, 3))
    assert (DELTA_SIZE, OUTPUT_SIZE) == (32 * 32, 46 * 45 // 2)
    assert result.delta.shape == (DELTA_SIZE,)
    assert result.output.shape == (OUTPUT_SIZE,)
    assert result.spectrum.shape == (2, 1 + LEADING)
    assert {result.delta.dtype, result.output.dtype, result.spectrum.dtype} == {np.dtype(np.float32)}
    assert result.modules == tuple(sorted(WIDTHS))
    assert (result.version, result.scaling_pattern) == (FINGERPRINT_VERSION, "")
    assert len(result.tensor_digest) == 64


def test_the_delta_of_one_entry_is_worked_by_hand() -> None:
    """X has the one entry x at (i, j), so S = x / 32 * (signs of row i) (signs of row j)^T."""
    a, b = torch.zeros(1, 50), torch.zeros(70, 1)
    a[0, 41], b[66, 0] = 3.0, 5.0
    left, right = signs("delta", "q", "B", 70, 32)[66], signs("delta", "q", "A", 50, 32)[41]
    expected = 2 * 15 / 32 * np.outer(left, right)
    assert np.array_equal(delta_sketch([Module("q", a, b, 2.0)]).reshape(32, 32), expected)


def test_the_output_of_one_row_is_worked_by_hand() -> None:
    """X X^T / ||X||^2 has the one entry 1 at (i, i): so the products of two signs of row i stand there."""
    b = torch.zeros(70, 1)
    b[66, 0] = 5.0
    row = signs("output", "q", "B", 70, 46)[66]
    expected = [row[p] * row[q] / math.sqrt(OUTPUT_SIZE) for p in range(46) for q in range(p + 1, 46)]
    assert output_sketch([Module("q", torch.randn(1, 50), b, 2.0)]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "module", "side", "width", "digits"),
    [
        ("delta", "model.layers.0.self_attn.q_proj", "B", 32, "06a30022f296740e6d4529d7"),
        ("output", "lm_head", "B", 46, "824189227bdfb2ee83004191"),
        ("delta", "lm_head", "A", 32, "cd5cc53b"),
    ],
)
def test_signs_are_the_bits_of_shake128(kind: str, module: str, side: str, width: int, digits: str) -> None:
    """Digits by `printf 'loradex delta 1 lm_head A' | openssl dgst -shake128 -xoflen 4` and the like."""
    bits = [int(bit) for digit in digits for bit in f"{int(digit, 16):04b}"]
    result = signs(kind, module, side, 4, width).ravel()[: len(bits)]
    assert result.tolist() == [1.0 if bit else -1.0 for bit in bits]


@pytest.mark.parametrize("width", [32, 46])
def test_rows_of_signs_do_not_depend_on_how_many_there_are(width: int) -> None:
    long = signs("delta", "q", "A", 1003, width)
    for rows in (1, 7, 64, 1000):
        assert np.array_equal(signs("delta", "q", "A", rows, width), long[:rows])
    assert set(np.unique(long)) == {-1.0, 1.0}
    assert abs(float(long.mean())) < 4 / math.sqrt(long.size)


def test_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = drawn(3, 4)
    complete = delta_sketch(modules), output_sketch(modules)
    monkeypatch.setattr("catalog.fingerprints.sketches._ROWS", 16)
    assert distance(complete[0], delta_sketch(modules)) < 1e-6
    assert distance(complete[1], output_sketch(modules)) < 1e-6


@pytest.mark.slow
def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors(drawn(0, 3)), path)
    program = (
        "import sys, hashlib; from pathlib import Path; from catalog.adapters import parse_config; "
        "from catalog.fingerprints.sketches import fingerprint; "
        "found = fingerprint(Path(sys.argv[1]), parse_config(sys.argv[2].encode())); "
        "print(hashlib.sha256(found.delta.tobytes() + found.output.tobytes() + found.spectrum.tobytes())"
        ".hexdigest(), found.tensor_digest, found.scaling_pattern)"
    )
    read = config(3, alpha_pattern={"up_proj": 3})
    result = fingerprint(path, read)
    vectors = result.delta.tobytes() + result.output.tobytes() + result.spectrum.tobytes()
    expected = [hashlib.sha256(vectors).hexdigest(), result.tensor_digest, result.scaling_pattern]
    # The seed of this process is another.
    arguments = (sys.executable, "-c", program, str(path), json.dumps(read.raw))
    environment = os.environ | {"PYTHONHASHSEED": "4711"}
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout
    assert printed.split() == expected


# What it does not depend on.


@CASES
@given(seed=SEEDS, rank=st.integers(1, 12), digits=st.floats(0, 4))
def test_case_63_any_invertible_change_of_factors_gives_the_same(seed: int, rank: int, digits: float) -> None:
    """B G and G^-1 A, up to what float32 files keep of a G of condition 10^digits."""
    modules = drawn(seed, rank)
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64)).Q for _ in "LR"
    )
    stretch = torch.logspace(0, -digits, rank, dtype=torch.float64)
    turned = [
        module._replace(
            a=((right / stretch) @ left.T @ module.a.double()).float(),
            b=(module.b.double() @ (left * stretch) @ right.T).float(),
        )
        for module in modules
    ]
    assert apart(of(modules), of(turned)) < 2e-6 + 1e-6 * 10**digits


@CASES
@given(seed=SEEDS, order=st.permutations(range(6)))
def test_the_order_of_ranks_does_not_count(seed: int, order: list[int]) -> None:
    modules = drawn(seed, 6)
    moved = [module._replace(a=module.a[order], b=module.b[:, order]) for module in modules]
    assert apart(of(modules), of(moved)) < 2e-6


@CASES
@given(seed=SEEDS, dtype=st.sampled_from([(torch.float16, 1e-3), (torch.bfloat16, 8e-3)]))
def test_case_64_a_cast_moves_it_by_rounding_alone(seed: int, dtype: tuple[torch.dtype, float]) -> None:
    """Rounding errors of a type, and a cosine far above what tells adapters apart."""
    modules = drawn(seed, 4)
    cast = [module._replace(a=module.a.to(dtype[0]), b=module.b.to(dtype[0])) for module in modules]
    before, after = of(modules), of(cast)
    assert 0 < apart(before, after) < dtype[1]
    assert cosine(before.delta, after.delta) > 1 - 2e-5
    assert cosine(before.output, after.output) > 1 - 2e-5
    assert before.tensor_digest != after.tensor_digest


@CASES
@given(seed=SEEDS, alpha=st.floats(1e-3, 1e3), rslora=st.booleans())
def test_alpha_alone_changes_no_bit(seed: int, alpha: float, rslora: bool) -> None:
    stored = tensors(drawn(seed, 3))
    assert identical(of(stored), of(stored, config(3, lora_alpha=alpha, use_rslora=rslora)))


@CASES
@given(seed=SEEDS, alpha=st.floats(1e-3, 1e3))
def test_one_pattern_of_scalings_gives_one_fingerprint(seed: int, alpha: float) -> None:
    stored = tensors(drawn(seed, 3))
    left, right = (
        of(stored, config(3, lora_alpha=scale, alpha_pattern={"v_proj": scale / 3})) for scale in (1.0, alpha)
    )
    assert identical(left, right)
    assert left.scaling_pattern == right.scaling_pattern != ""
    plain = of(stored)
    assert distance(plain.delta, left.delta) > 0.01
    assert np.array_equal(plain.output, left.output)


@CASES
@given(seed=SEEDS, extra=st.integers(1, 12), zero=st.sampled_from("AB"))
def test_ranks_that_do_nothing_do_not_count(seed: int, extra: int, zero: str) -> None:
    modules = drawn(seed, 5)
    padded = []
    for module in modules:
        rows = (
            torch.zeros(extra, module.a.shape[1])
            if zero == "A"
            else module.a.new_ones(extra, 1) * module.a[0]
        )
        columns = torch.zeros(len(module.b), extra) if zero == "B" else torch.ones(len(module.b), extra)
        padded.append(module._replace(a=torch.cat([module.a, rows]), b=torch.cat([module.b, columns], 1)))
    assert apart(of(modules), of(padded)) < 2e-6


def in_order(folder: Path, stored: Mapping[str, torch.Tensor], names: list[str], **metadata: str) -> Path:
    """A safetensors file with its tensors in this order, which the library would change."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    content = b""
    for name in names:
        raw = stored[name].numpy().tobytes()
        offsets = [len(content), len(content) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(stored[name].shape), "data_offsets": offsets}
        content += raw
    head = json.dumps(header).encode()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + content)
    return path


def test_case_62_the_order_in_the_file_and_its_metadata_do_not_count(tmp_path: Path) -> None:
    stored = tensors(drawn(2, 3))
    forward = fingerprint(in_order(tmp_path, stored, sorted(stored)), config(3))
    backward = fingerprint(in_order(tmp_path, stored, sorted(stored)[::-1], trainer="other"), config(3))
    assert identical(forward, backward)
    assert forward.tensor_digest == backward.tensor_digest


def test_case_62_one_bit_of_the_weights_counts(tmp_path: Path) -> None:
    stored = tensors(drawn(2, 3))
    path = in_order(tmp_path, stored, sorted(stored))
    before, content = fingerprint(path, config(3)), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    after = fingerprint(path, config(3))
    assert before.tensor_digest != after.tensor_digest
    assert not identical(before, after)


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "module.base_model.model.", "_orig_mod."])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_prefixes_and_adapter_names_do_not_count(prefix: str, adapter: str) -> None:
    """Case 60."""
    modules = drawn(4, 2)
    plain, by_name = of(modules), of(tensors(modules, prefix, adapter))
    assert identical(plain, by_name)
    assert plain.tensor_digest == by_name.tensor_digest


def test_the_name_of_a_module_counts() -> None:
    """The same weights one layer further are another update."""
    modules = drawn(4, 2)
    moved = [module._replace(name=module.name.replace(".0.", ".7.")) for module in modules]
    assert distance(of(modules).delta, of(moved).delta) > 0.1


# What it estimates.


@CASES
@given(seed=SEEDS, scalings=st.tuples(*[st.integers(-30, 30)] * 2))
def test_the_sketch_of_a_sum_is_the_sum_of_the_sketches(seed: int, scalings: tuple[int, int]) -> None:
    left, right = drawn(seed, 3), drawn(seed + 1, 5)
    both = [
        Module(
            x.name,
            torch.cat([x.a, y.a]).double(),
            torch.cat([scalings[0] * x.b.double(), scalings[1] * y.b.double()], 1),
            1.0,
        )
        for x, y in zip(left, right, strict=True)
    ]
    parts = [
        delta_sketch([module._replace(scaling=scaling) for module in modules]).astype(np.float64)
        for modules, scaling in zip((left, right), scalings, strict=True)
    ]
    size = sum(float(np.linalg.norm(part)) for part in parts)
    assert float(np.linalg.norm(delta_sketch(both) - parts[0] - parts[1])) <= 1e-6 * size


def other_signs(modules: list[Module], draw: int) -> list[Module]:
    """The same update under other signs, which hang on the names."""
    return [module._replace(name=f"{module.name}/{draw}") for module in modules]


def three_of_llama(seed: int) -> list[Module]:
    """Three modules of Llama-3.1-8B's shapes."""
    kept = ("k_proj", "v_proj", "o_proj")
    return [module for module in generate_modules(seed, layers=1) if module.name.endswith(kept)]


DRAWS = 160


def sketches(modules: list[Module], sketch: Any = delta_sketch) -> NDArray[np.float64]:
    """(DRAWS, size): the sketch under many draws of signs."""
    return np.array([sketch(other_signs(modules, draw)) for draw in range(DRAWS)], dtype=np.float64)


@pytest.mark.slow
def test_squared_norms_are_unbiased_and_vary_as_the_formula_says() -> None:
    modules = three_of_llama(0)
    square, variance = bound(modules)
    ratios = (sketches(modules) ** 2).sum(1) / square
    sd = math.sqrt(variance)
    assert abs(ratios.mean() - 1) < 4 * sd / math.sqrt(DRAWS)
    # Four standard errors of a measured standard deviation are 4 / sqrt(2 * 160) = 0.22.
    assert 0.78 < ratios.std() / sd < 1.22


@pytest.mark.slow
def test_a_single_direction_is_the_worst_case_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(1, 512, generator=generator), torch.randn(512, 1, generator=generator)
    square, variance = bound([Module("q", a, b, 1.0)])
    assert variance == pytest.approx(2 / 32**2 + (4 / 32 + 2 / 32**2))
    ratios = (sketches([Module("q", a, b, 1.0)]) ** 2).sum(1) / square
    assert abs(ratios.mean() - 1) < 4 * math.sqrt(variance / DRAWS)
    assert 0.6 < ratios.std() / math.sqrt(variance) < 1.4


def test_signs_stay_below_the_bound_where_an_update_is_sparse() -> None:
    """One entry alone is met by products of signs: its norm is exact."""
    a, b = torch.zeros(1, 50), torch.zeros(70, 1)
    a[0, 3], b[5, 0] = 1.0, 1.0
    for draw in range(5):
        assert np.linalg.norm(delta_sketch(other_signs([Module("q", a, b, 1.0)], draw))) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_cosines_are_unbiased_and_those_of_strangers_have_a_sd_of_one_in_32(share: float) -> None:
    left, other = three_of_llama(0), three_of_llama(1)
    right = [
        x._replace(a=torch.cat([x.a, y.a]), b=torch.cat([share * x.b, math.sqrt(1 - share**2) * y.b], 1))
        for x, y in zip(left, other, strict=True)
    ]
    inner = sum(float(((x.b.T @ y.b) * (x.a @ y.a.T)).sum()) * 4 for x, y in zip(left, right, strict=True))
    size = math.sqrt(bound(left)[0] * bound(right)[0])
    assert inner / size == pytest.approx(share, abs=0.01)
    ones, other_items = sketches(left), sketches(right)
    estimates = (ones * other_items).sum(1) / size
    assert abs(estimates.mean() - inner / size) < 4 * estimates.std() / math.sqrt(DRAWS)
    if share == 0.0:
        cosines = estimates * size / (np.linalg.norm(ones, axis=1) * np.linalg.norm(other_items, axis=1))
        assert 0.78 < cosines.std() * 32 < 1.25


@pytest.mark.slow
def test_the_output_sketch_estimates_what_the_exact_cosine_computes(tmp_path: Path) -> None:
    """Twins by construction: B is shared in part, A is not."""
    left, other = three_of_llama(0), three_of_llama(1)
    right = [y._replace(b=0.8 * x.b + 0.4 * y.b) for x, y in zip(left, other, strict=True)]
    for name, modules in (("left", left), ("right", right)):
        write(tmp_path / name, modules, "float32")
    result = exact_cosine(tmp_path / "left", llama_config(), tmp_path / "right", llama_config())
    assert abs(result.delta) < 0.02 < 0.5 < result.output
    ones, other_items = sketches(left, output_sketch), sketches(right, output_sketch)
    estimates = (ones * other_items).sum(1)
    lengths = [float(np.mean((kind**2).sum(1))) for kind in (ones, other_items)]
    error = estimates.std() / math.sqrt(DRAWS) / math.sqrt(math.prod(lengths))
    assert estimates.mean() / math.sqrt(math.prod(lengths)) == pytest.approx(result.output, abs=5 * error)


def test_the_output_is_free_of_every_scale_and_blind_to_the_input() -> None:
    modules = drawn(0, 3)
    scaled = [module._replace(a=module.a * 7, scaling=-0.1) for module in modules]
    assert distance(output_sketch(modules), output_sketch(scaled)) < 1e-6
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).Q
    turned = [modules[0]._replace(a=modules[0].a @ turn)]
    assert distance(output_sketch(modules[:1]), output_sketch(turned)) < 1e-5
    assert distance(delta_sketch(modules[:1]), delta_sketch(turned)) > 0.5


# Singular values.


def values(a: torch.Tensor, b: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The row of the spectrum, and the same by LAPACK's SVD of the product."""
    (row,) = of([Module("q", a, b, 1.0)]).spectrum
    dense = b.double().numpy() @ a.double().numpy()
    result = np.linalg.svd(dense, compute_uv=False)[:LEADING]
    return row, np.concatenate([[np.linalg.norm(dense)], result, np.zeros(LEADING - len(result))])


@pytest.mark.parametrize("rank", [1, 3, 7, 8, 40])
def test_singular_values_are_those_of_the_product(rank: int) -> None:
    (module,) = drawn(rank, rank, {"q": (60, 50)})
    row, expected = values(module.a, module.b)
    assert row == pytest.approx(expected, rel=1e-6, abs=1e-7 * expected[0])
    assert (row[1 + rank :] == 0).all() or rank >= LEADING


@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3])
def test_small_singular_values_are_right_where_factors_are_ill_conditioned(step: float) -> None:
    """Columns of B that all but agree, so that squares would lose them; values down to 1e-10 of the first."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    b = torch.cumsum(parts * step ** torch.arange(6), 1).float()
    a = torch.randn(6, 50, generator=generator)
    row, expected = values(a, b)
    remaining = expected > 1e-10 * expected[0]
    assert remaining.sum() >= 4
    assert row[remaining] == pytest.approx(expected[remaining], rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 50), (60, 4), (2, 3)])
def test_a_rank_above_the_widths_is_no_hindrance(shape: tuple[int, int]) -> None:
    """As for a router of four experts at rank 16."""
    (module,) = drawn(0, 16, {"q": shape})
    row, expected = values(module.a, module.b)
    assert row == pytest.approx(expected, rel=1e-6, abs=1e-6 * expected[0])


def test_stable_rank() -> None:
    (module,) = drawn(0, 1, {"q": (60, 50)})
    (row,) = of([module]).spectrum
    assert stable_rank(row) == pytest.approx(1.0, rel=1e-6)
    eye = Module("q", torch.eye(5, 50), torch.eye(60, 5), 1.0)
    assert stable_rank(of([eye]).spectrum[0]) == pytest.approx(5.0, rel=1e-6)
    assert stable_rank(np.zeros(8, dtype=np.float32)) == 0.0
    assert math.isnan(stable_rank(np.full(8, np.nan, dtype=np.float32)))


# What breaks it.


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["a", "b"])
def test_a_module_that_is_not_finite_has_a_nan_row_and_is_left_out(bad: float, side: str) -> None:
    """Case 55."""
    good, broken = drawn(0, 3)
    factor = getattr(broken, side).clone()
    factor[1, 1] = bad
    result, alone = of([good, broken._replace(**{side: factor})]), of([good])
    rows = dict(zip(result.modules, result.spectrum, strict=True))
    assert np.isnan(rows[broken.name]).all()
    assert np.array_equal(rows[good.name], alone.spectrum[0])
    assert np.array_equal(result.delta, alone.delta)
    assert np.array_equal(result.output, alone.output)
    assert result.norms == {good.name: pytest.approx(float(alone.spectrum[0, 0])), broken.name: None}


def test_numbers_at_the_ends_of_float32() -> None:
    """Case 55: subnormal factors count, huge ones do not overflow where their product is in range."""
    (module,) = drawn(0, 2, {"q": (60, 50)})
    plain = of([module])
    for big, small in ((2.0**120, 2.0**-120), (2.0**-133, 2.0**120)):
        # The second A is of numbers below 2^-126, which have fewer digits.
        scaled = of([module._replace(a=module.a * big, b=module.b * small)])
        factor = np.float32(big * small)
        assert distance(plain.delta * factor, scaled.delta) < 1e-3
        assert distance(plain.output, scaled.output) < 1e-3
    beyond = of([module._replace(a=module.a * 2.0**100, b=module.b * 2.0**100)])
    assert np.isnan(beyond.spectrum).all()
    assert not beyond.delta.any()


def test_sums_beyond_float32_are_taken_in_float64() -> None:
    """Sixty-four numbers of 2^127, and a B so small that the product is in range."""
    plain = [Module("q", torch.ones(1, 64), torch.ones(50, 1), 1.0)]
    huge = [Module("q", torch.full((1, 64), 2.0**127), torch.full((50, 1), 2.0**-120), 1.0)]
    assert distance(delta_sketch(plain) * 2**7, delta_sketch(huge)) < 1e-6
    assert distance(output_sketch(plain), output_sketch(huge)) < 1e-6


def test_an_absurd_update_has_no_delta_that_would_spoil_comparisons() -> None:
    modules = drawn(0, 2)
    for size in (1e10, 1e30):
        result = of([module._replace(b=module.b * size) for module in modules])
        assert np.isfinite(result.spectrum).all()
        assert np.isfinite(np.dot(result.delta, result.delta))
        assert bool(result.delta.any()) is (size < 1e15)
        assert distance(of(modules).output, result.output) < 1e-5
        assert verdict(result.norms, config(2)) == "exploding"


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_zero_product_is_zero_everywhere(side: str) -> None:
    """Case 56."""
    modules = [module._replace(**{side: torch.zeros_like(getattr(module, side))}) for module in drawn(0, 3)]
    result = of(modules)
    assert not result.delta.any()
    assert not result.output.any()
    assert not result.spectrum.any()


def test_alpha_zero_leaves_no_delta() -> None:
    result = of(drawn(0, 3), config(3, lora_alpha=0))
    assert not result.delta.any()
    assert result.scaling_pattern != ""


def test_negative_alpha_turns_the_delta_and_is_a_pattern_of_its_own() -> None:
    plain, turned = of(drawn(0, 3)), of(drawn(0, 3), config(3, lora_alpha=-8))
    assert np.array_equal(plain.delta, -turned.delta)
    assert np.array_equal(plain.output, turned.output)
    assert turned.scaling_pattern != ""


def test_an_adapter_without_modules_has_an_empty_fingerprint() -> None:
    """Cases 54 and 58: no tensors, halves, ranks that disagree, factors without elements."""
    stored = {
        "q.lora_A.weight": torch.ones(2, 3),
        "k.lora_B.weight": torch.ones(3, 2),
        "v.lora_A.weight": torch.ones(2, 3),
        "v.lora_B.weight": torch.ones(3, 4),
        "o.lora_A.weight": torch.ones(2, 0),
        "o.lora_B.weight": torch.ones(3, 2),
    }
    for result in (of(stored), of({"q.lora_A.weight": torch.ones(2)})):
        assert result.modules == ()
        assert result.spectrum.shape == (0, 1 + LEADING)
        assert not result.delta.any()
        assert not result.output.any()
        assert result.norms == {}


def test_types_may_be_mixed_and_what_is_no_number_is_left_out() -> None:
    """Case 57."""
    modules = drawn(0, 2)
    stored = tensors(modules)
    names = sorted(stored)
    mixed = {
        names[0]: stored[names[0]].to(torch.float16),
        names[1]: stored[names[1]].to(torch.bfloat16),
        names[2]: stored[names[2]].double(),
        names[3]: stored[names[3]].to(torch.float8_e5m2),
        "q.lora_A.weight": torch.ones(2, 3, dtype=torch.int8),
        "q.lora_B.weight": torch.ones(3, 2, dtype=torch.int8),
    }
    result = of(mixed)
    assert result.modules == tuple(sorted(WIDTHS))
    assert cosine(result.delta, of(modules).delta) > 0.99


def test_embeddings_and_the_head_are_modules_and_other_tensors_count_in_the_digest_alone() -> None:
    """Case 61."""
    stored = {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.randn(2, 300),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.randn(16, 2),
        "base_model.model.lm_head.lora_A.weight": torch.randn(2, 16),
        "base_model.model.lm_head.lora_B.weight": torch.randn(300, 2),
    }
    result = of(stored)
    assert result.modules == ("lm_head", "model.embed_tokens")
    assert (result.spectrum[:, 0] > 0).all()
    more = of(
        stored
        | {
            "base_model.model.lm_head.weight": torch.randn(300, 16),
            "base_model.model.lm_head.lora_magnitude_vector": torch.randn(300),
        }
    )
    assert identical(result, more)
    assert result.tensor_digest != more.tensor_digest


def lying(change: Mapping[str, Any]) -> bytes:
    entry = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]} | change
    head = json.dumps({"q.lora_A.weight": entry}).encode()
    return len(head).to_bytes(8, "little") + head + bytes(4)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(lying({"dtype": "F99"}), "header_invalid", id="case-51-unknown-type"),
        pytest.param(lying({"shape": [2, 2]}), "header_invalid", id="case-51-shape-and-bytes-disagree"),
        pytest.param(lying({"data_offsets": [4, 8]}), "header_invalid", id="case-51-hole"),
        pytest.param(lying({"shape": [2**33, 2**33]}), "header_invalid", id="case-51-overflow"),
        pytest.param(bytes(8), "header_invalid", id="case-52-length-0"),
        pytest.param((2**63).to_bytes(8, "little") + b"{}", "header_too_large", id="case-52-length-2-63"),
        pytest.param(bytes(40), "header_invalid", id="case-53-40-bytes"),
        pytest.param(b"\x28" + bytes(47), "header_invalid", id="case-53-48-bytes"),
        pytest.param(b"", "empty_file", id="case-53-empty"),
        pytest.param(lying({})[:-1], "size_mismatch", id="cut"),
        pytest.param(lying({}) + b"x", "size_mismatch", id="padded"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(content: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError) as refused:
        fingerprint(path, config(1))
    assert refused.value.kind == kind


# One word.


@pytest.mark.parametrize(
    ("norms", "fields", "expected"),
    [
        ({}, {}, "empty"),
        ({"q": None, "v": 1.0}, {}, "non_finite"),
        ({"q": None, "v": 1e9}, {}, "non_finite"),
        ({"q": 0.0, "v": 0.0}, {}, "zero_update"),
        ({"q": 1.0, "v": 1.0}, {"lora_alpha": 0}, "zero_update"),
        ({"q": EXPLODING / 2, "v": 0.0}, {}, "healthy"),
        ({"q": EXPLODING / 2 * 1.01, "v": 0.0}, {}, "exploding"),
        ({"q": EXPLODING / 2}, {"lora_alpha": -17}, "exploding"),
        ({"q": BARELY_TRAINED / 2 * 1.01}, {}, "healthy"),
        ({"q": BARELY_TRAINED / 2 * 0.99}, {}, "barely_trained"),
        ({"q": BARELY_TRAINED / 2 * 0.99}, {"lora_alpha": 9}, "healthy"),
        # The same in each of many modules is the same.
        ({str(n): BARELY_TRAINED / 2 * 1.01 for n in range(224)}, {}, "healthy"),
        ({str(n): BARELY_TRAINED / 2 * 0.99 for n in range(224)}, {}, "barely_trained"),
    ],
)
def test_the_verdict(norms: dict[str, float | None], fields: dict[str, Any], expected: str) -> None:
    """At rank 4 and alpha 8, a scaling of 2."""
    assert verdict(norms, config(4, **fields)) == expected


def test_the_norms_of_a_fingerprint_give_the_same_verdict(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_file(tensors(drawn(0, 3)), path)
    result, norms = fingerprint(path, config(3)).norms, module_norms(path)
    assert result == {name: pytest.approx(norm, rel=1e-6) for name, norm in norms.items()}
    assert verdict(result, config(3)) == verdict(norms, config(3)) == "healthy"


# Whole adapters.


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_below_400_megabytes_for_a_whole_adapter_of_llama(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.safetensors"
    write(path, generate_modules(0))
    assert path.stat().st_size > 83e6
    before, after = peak_memory(path, llama_config())
    assert before > 50e6
    assert 0 < after - before < 400e6


@shared
@pytest.mark.slow
def test_twins_of_the_zoo_find_each_other() -> None:
    """Two runs on one task from other seeds, by sketch, and the sketch beside the exact cosine."""
    names = ("banking77", "banking77--seed104", "snips", "snips--seed101", "comve", "hyperbaton")
    arguments = {}
    for name in names:
        folder = data("zoo") / name
        read = parse_config((folder / "adapter_config.json").read_bytes())
        arguments[name] = (folder / "adapter_model.safetensors", read)
    result = {name: fingerprint(*arguments[name]) for name in names}
    for item, other in (names[:2], names[2:4]):
        near = sorted(names, key=lambda name: -cosine(result[item].output, result[name].output))
        assert near[:2] == [item, other]
        exact = exact_cosine(*arguments[item], *arguments[other])
        # Five of the standard deviations of the cosine of strangers: 1 / 32 and 1 / 1035^1/2.
        assert cosine(result[item].delta, result[other].delta) == pytest.approx(exact.delta, abs=5 / 32)
        assert cosine(result[item].output, result[other].output) == pytest.approx(exact.output, abs=5 / 32)
        assert {verdict(result[name].norms, arguments[name][1]) for name in (item, other)} == {"healthy"}
        modules = list(iterate_modules(*arguments[item]))
        scaling = modules[0].scaling
        assert distance(delta_sketch(modules), result[item].delta * np.float32(scaling)) < 1e-6
