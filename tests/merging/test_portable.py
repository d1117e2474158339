"""The form that every engine reads: ranks, groups of modules, and the same update number by number."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import loradex
from catalog.adapters import BaseModules, modules_of_model
from catalog.errors import MergeError, UsageError
from merging.members import PortableForm, Shape, portable_form, portable_rank
from tests.merging.adapters import adapter, deltas, distance
from tests.merging.llama import QKV, TARGETS, tiny, tokens, write

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.mark.parametrize(
    ("rank", "portable"),
    [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (33, 64), (129, 256), (257, 320), (321, 512), (513, 528)],
)
def test_the_smallest_rank_that_every_engine_reads(rank: int, portable: int) -> None:
    assert portable_rank(rank) == portable


def shape(name: str, inside: int = 4, outside: int = 4) -> Shape:
    return Shape(name, "linear", inside, outside, (2,), (1.0,))


def base(layers: int = 2, **extra: tuple[int, int]) -> BaseModules:
    names = [f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    names += [f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    shapes: dict[str, Any] = {f"model.layers.{n}.{name}": (4, 4) for n in range(layers) for name in names}
    return BaseModules(shapes | {"model.embed_tokens": (None, 4), "lm_head": (4, None)} | extra)


def test_groups_are_completed_in_every_layer() -> None:
    union = [shape("model.layers.1.self_attn.q_proj"), shape("model.layers.1.mlp.up_proj")]
    form = portable_form(union, {"a": 2}, base())
    names = [f"self_attn.{name}" for name in QKV] + ["mlp.gate_proj", "mlp.up_proj"]
    expected = {f"model.layers.{n}.{name}" for n in (0, 1) for name in names}
    assert {zero.name for zero in form.zeros} == expected - {member.name for member in union}
    assert form.targets == ("gate_proj", "k_proj", "q_proj", "up_proj", "v_proj")


@pytest.mark.parametrize(
    "union",
    [
        [shape("model.layers.0.self_attn.o_proj"), shape("model.layers.1.self_attn.o_proj")],
        [shape("lm_head")],
        [shape("model.embed_tokens")],
    ],
)
def test_what_belongs_to_no_group_stays_alone(union: list[Shape]) -> None:
    assert portable_form(union, {"a": 2}, base()).zeros == ()


def test_an_unknown_or_another_base_adds_no_module() -> None:
    union = [shape("model.layers.1.self_attn.q_proj")]
    assert portable_form(union, {"a": 2}, None).zeros == ()
    assert portable_form([shape("model.layers.9.self_attn.q_proj")], {"a": 2}, base()).zeros == ()
    assert portable_form([shape("model.layers.1.self_attn.q_proj", 6)], {"a": 2}, base()).zeros == ()


def test_modules_of_another_tower_are_neither_filled_nor_targeted() -> None:
    towers = base(**{"vision.layers.0.self_attn.q_proj": (4, 4)})
    form = portable_form([shape("model.layers.0.self_attn.q_proj")], {"a": 2}, towers)
    assert not any(zero.name.startswith("vision") for zero in form.zeros)
    assert form.targets is None


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        (TARGETS, {"use_rslora": True}),
        (("q_proj",), {"lora_alpha": 5}),
        (("v_proj", "up_proj"), {"alpha_pattern": {"v_proj": 24}}),
        (("lm_head", "q_proj"), {}),
        (("embed_tokens", "o_proj"), {}),
    ],
)
def test_peft_applies_a_normalised_adapter_as_it_applied_the_adapter(
    tmp_path: Path, targets: tuple[str, ...], settings: dict[str, Any]
) -> None:
    model = tiny()
    model.config.save_pretrained(tmp_path / "base")
    ranks = {"model.layers.1.self_attn.q_proj": 3} if "q_proj" in targets else {}
    member = write(tmp_path / "source", model, 1, targets=targets, ranks=ranks, **settings)
    report = loradex.normalise(member.folder, out=tmp_path / "out", base=str(tmp_path / "base"))
    before = logits(member.folder)
    after = logits(report.folder)
    assert (before - logits(None)).abs().max() > 1e-3
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    lost = {"tgi", "lorax", "tensorrt-llm"} if {"lm_head", "embed_tokens"} & set(targets) else set()
    assert {row.engine for row in loradex.runs_in(report.folder) if not row.runs} <= {"ollama"} | lost
    assert report.record["form"]["rank"] == 8


def logits(folder: Path | None) -> torch.Tensor:
    model = tiny()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        return torch.as_tensor(model(tokens()).logits)


def test_a_scaling_of_a_power_of_two_is_exact_in_a_short_type(
    tmp_path: Path,
) -> None:
    exact = adapter(tmp_path / "exact", rank=8, dtype=torch.bfloat16, lora_alpha=16)
    rounded = adapter(tmp_path / "rounded", rank=8, dtype=torch.bfloat16, lora_alpha=12)
    report = loradex.normalise(exact, out=tmp_path / "a")
    assert (report.record["dtype"], report.notes) == ("bfloat16", ())
    assert distance(deltas(tmp_path / "a"), deltas(exact)) == 0
    assert "rounded into bfloat16" in " ".join(loradex.normalise(rounded, out=tmp_path / "b").notes)
    wide = loradex.normalise(rounded, out=tmp_path / "c", dtype="float32")
    assert not wide.notes
    assert distance(deltas(tmp_path / "c"), deltas(rounded)) < 1e-7


def test_values_that_a_short_type_does_not_hold_are_said_whatever_the_scaling(tmp_path: Path) -> None:
    """A power of two rounds, too, where half of the smallest values of float16 is none of its values."""
    name = "model.layers.0.self_attn.q_proj"
    a, b = torch.ones(2, 12), torch.ones(12, 2)
    b[0, 0] = 2.0**-24
    halved = adapter(
        tmp_path / "h", rank=2, modules=[name], factors={name: (a, b)}, dtype=torch.float16, lora_alpha=1
    )
    assert "Values of 1 of 1 modules are rounded into float16" in " ".join(
        loradex.normalise(halved, out=tmp_path / "a").notes
    )
    assert not loradex.normalise(halved, out=tmp_path / "b", dtype="float32").notes


def test_factors_that_are_not_finite_are_refused_in_a_sentence_of_their_own(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    broken = adapter(
        tmp_path / "nan",
        rank=2,
        modules=[name],
        factors={name: (torch.full((2, 12), math.nan), torch.ones(12, 2))},
    )
    with pytest.raises(MergeError, match=f"{name} contain NaN or infinity"):
        loradex.normalise(broken, out=tmp_path / "out")
    large = adapter(
        tmp_path / "large",
        rank=2,
        modules=[name],
        factors={name: (torch.ones(2, 12), torch.full((12, 2), 6e4))},
        lora_alpha=8,
    )
    with pytest.raises(MergeError, match="too large for float16; write float32"):
        loradex.normalise(large, out=tmp_path / "out", dtype="float16")


def test_an_adapter_of_another_base_is_not_said_to_be_merged(tmp_path: Path) -> None:
    tiny().config.save_pretrained(tmp_path / "base")
    name = "model.layers.0.self_attn.query"
    factors = {name: (torch.ones(3, 32), torch.ones(32, 3))}
    other = adapter(tmp_path / "a", modules=[name], factors=factors)
    with pytest.raises(MergeError, match=r"a is not an adapter of .*, which has no module"):
        loradex.normalise(other, out=tmp_path / "out", base=str(tmp_path / "base"))


def test_names_of_a_wrapper_are_written_as_peft_writes_them(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    save_file(wrapped, folder / "adapter_model.safetensors")
    assert not any(row.runs for row in loradex.runs_in(folder))
    report = loradex.normalise(folder, out=tmp_path / "out")
    assert "names of tensors as PEFT writes them" in report.record["changes"]
    assert {row.engine for row in loradex.runs_in(tmp_path / "out") if row.runs} >= {"peft", "llama.cpp"}


def test_a_card_is_kept_and_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "a")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# mine\n")
    out = tmp_path / "out"
    report = loradex.normalise(folder, out=out)
    assert (out / "README.md").read_text() == (folder / "README.md").read_text()
    assert report.record["license"] == "mit"
    with pytest.raises(UsageError, match="exists"):
        loradex.normalise(folder, out=out)
    first = (out / "adapter_model.safetensors").read_bytes()
    loradex.normalise(folder, out=out, overwrite=True)
    assert (out / "adapter_model.safetensors").read_bytes() == first


def test_what_is_more_than_factors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="cannot be normalised: DoRA"):
        loradex.normalise(adapter(tmp_path / "a", use_dora=True), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_merge_says_where_filling_up_makes_it_much_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=3) for n in range(2)]
    assert not loradex.merge(folders, "sum", out=tmp_path / "small").notes
    monkeypatch.setattr("merging.members.portable._LEAST", 1)
    report = loradex.merge(folders, "sum", out=tmp_path / "out")
    assert report.record["form"] == {"rank": 8, "zero_modules": 0}
    assert "times as large" in " ".join(report.notes)
    compact = loradex.merge(folders, "sum", out=tmp_path / "compact", mixed_ranks=True)
    assert not compact.notes
    assert json.loads((tmp_path / "compact" / "adapter_config.json").read_text())["r"] == 6


def test_the_cost_of_a_merge_is_that_of_the_form(tmp_path: Path) -> None:
    folders = [adapter(tmp_path / f"m{n}", seed=n, rank=3) for n in range(2)]
    request = loradex.MergeRequest(folders, "sum")
    price = request.cost()
    written = request.run(tmp_path / "out").folder / "adapter_model.safetensors"
    assert (price.rank, price.parameters) == (8, sum(t.numel() for t in load_file(written).values()))


def test_modules_of_a_model_are_those_that_the_form_may_fill() -> None:
    model = tiny()
    union = [shape("model.layers.0.self_attn.q_proj", 32, 32)]
    form = portable_form(union, {"q": 2}, modules_of_model(model))
    assert len(form.zeros) == 5


def test_a_module_above_the_rank_of_the_form_is_never_cut() -> None:
    with pytest.raises(ValueError, match="rank 9 does not fit"):
        PortableForm(8).pad(torch.ones(9, 4), torch.ones(4, 9))


def test_a_merge_with_modules_of_zeros_is_inspected(tmp_path: Path) -> None:
    model = tiny()
    model.config.save_pretrained(tmp_path / "base")
    folders = [write(tmp_path / f"m{n}", model, n, targets=("q_proj",)).folder for n in range(2)]
    base = str(tmp_path / "base")
    merged = loradex.merge(folders, "average", base=base, out=tmp_path / "out", mixed_ranks=False).folder
    alone = loradex.inspect(folders, base=base)
    inspected = loradex.inspect(folders, result=merged, base=base)
    for row, expected in zip(inspected.cosines, alone.cosines, strict=True):
        assert row == pytest.approx(expected)
    assert inspected.energy_by_rank == pytest.approx(alone.energy_by_rank)
