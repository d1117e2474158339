"""DoRA folded with the base model at hand, against the weights that PEFT's own merge makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import loradex
from catalog.errors import LoradexError, MergeError, UsageError
from cli.main import loradex as program
from merging.live import calm
from merging.model import LoadedBase
from tests.merging.architectures import architecture
from tests.merging.test_evaluate import tiny_adapter
from tests.merging.test_peft_layers import write_dora
from tests.merging.tiny import save_base, tiny_base


def gpt2() -> LoadedBase:
    return architecture("gpt2")


def merged_by_peft(make_base: Callable[[], LoadedBase], adapter: Path) -> dict[str, Tensor]:
    """The base's weights with an adapter, in float64, by `merge_and_unload`."""
    with calm():
        model = PeftModel.from_pretrained(make_base().model.double(), adapter, autocast_adapter_dtype=False)
        for module in model.modules():
            module.double()
        return {name: item.clone() for name, item in model.merge_and_unload().state_dict().items()}


def difference(left: dict[str, Tensor], right: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    """||left - right|| / ||right - base|| over all weights."""
    names = [name for name in base if name in left and name in right]
    error = sum(float((left[n].double() - right[n].double()).square().sum()) for n in names)
    return float((error / sum(float((right[n] - base[n].double()).square().sum()) for n in names)) ** 0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with two DoRA adapters and a plain one beside it."""
    folder = tmp_path_factory.mktemp("dora")
    save_base(tiny_base(), folder / "base")
    write_dora(folder / "one", tiny_base(), 1)
    write_dora(folder / "two", tiny_base(), 2, r=2, target_modules=["q_proj", "o_proj"])
    with calm():
        tiny_adapter(folder / "plain", 3, size=0.2)
    return folder


@pytest.mark.parametrize(
    ("make_base", "options"),
    [
        (tiny_base, {"use_rslora": True, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"down": 1}}),
        (tiny_base, {"target_modules": ["q_proj", "embed_tokens"]}),
        (gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
        (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    ],
)
def test_the_whole_fold_is_the_merge_of_peft(
    tmp_path: Path, make_base: Callable[[], LoadedBase], options: dict[str, Any]
) -> None:
    """An adapter at full rank, read by PEFT as plain LoRA, gives the weights of PEFT's merge of DoRA."""
    base = save_base(make_base(), tmp_path / "base")
    write_dora(tmp_path / "dora", make_base(), **options)
    loradex.normalise(tmp_path / "dora", out=tmp_path / "folded", base=str(base), rank=10_000)
    before = {name: item.double() for name, item in make_base().model.state_dict().items()}
    expected = merged_by_peft(make_base, tmp_path / "dora")
    assert difference(merged_by_peft(make_base, tmp_path / "folded"), expected, before) < 1e-6
    assert json.loads((tmp_path / "folded" / "adapter_config.json").read_text())["use_dora"] is False


@pytest.mark.parametrize("method", ["sum", "concatenation", "ties"])
def test_added_to_the_base_a_fold_loses_nothing(place: Path, tmp_path: Path, method: str) -> None:
    """Whatever the method: TIES of one member with all its entries is that member."""
    parameters = {"density": 1.0} if method == "ties" else {}
    report = loradex.merge(
        [place / "one"], method, parameters=parameters, out=tmp_path / "model", apply_to=place / "base"
    )
    before = load_file(place / "base" / "model.safetensors")
    made, expected = (
        load_file(tmp_path / "model" / "model.safetensors"),
        merged_by_peft(tiny_base, place / "one"),
    )
    assert difference(made, expected, before) < 1e-5
    assert all(torch.equal(made[name], before[name]) for name in made if "k_proj" in name)
    record = json.loads((tmp_path / "model" / "merge.json").read_text())["merge"]
    assert record["members"][0]["folded"] == "dora"
    assert record["members"][0]["rank"] == 3
    assert report.model == report.folder == tmp_path / "model"
    assert report.energy_share == 1


def test_deltas_are_added_and_truncated_once(place: Path, tmp_path: Path) -> None:
    """Two DoRA adapters and a plain one: the SVD of the sum of W' - W, by numpy's definition."""
    folders = [place / name for name in ("one", "two", "plain")]
    weights = [0.5, -1.0, 2.0]
    before = {name: item.double() for name, item in tiny_base().model.state_dict().items()}
    sums = {name: torch.zeros_like(item) for name, item in before.items()}
    for folder, weight in zip(folders, weights, strict=True):
        for name, item in merged_by_peft(tiny_base, folder).items():
            sums[name] += weight * (item - before[name])
    report = loradex.merge(
        folders,
        "sum",
        weights=weights,
        rank=4,
        dtype="float32",
        base=str(place / "base"),
        out=tmp_path / "out",
    )
    made = merged_by_peft(tiny_base, tmp_path / "out")
    for name, module in report.modules.items():
        u, s, vh = torch.linalg.svd(sums[f"{name}.weight"])
        best = (u[:, :4] * s[:4]) @ vh[:4]
        assert torch.allclose(made[f"{name}.weight"] - before[f"{name}.weight"], best, atol=1e-5)
        assert module.energy == pytest.approx(float(s.square().sum()), rel=1e-5)
        assert module.discarded == pytest.approx(float(s[4:].square().sum()), rel=1e-4)
    share = 1 - report.record["totals"]["discarded"] / report.record["totals"]["energy"]
    assert report.energy_share == share
    again = loradex.merge(
        folders,
        "sum",
        weights=weights,
        rank=4,
        dtype="float32",
        base=str(place / "base"),
        out=tmp_path / "two",
    )
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in (report.folder, again.folder)]
    assert files[0] == files[1]


def test_one_adapter_is_folded_into_a_model(place: Path, tmp_path: Path) -> None:
    loradex.fold(place / "base", place / "two", out=tmp_path / "model")
    before, made = (
        load_file(folder / "model.safetensors") for folder in (place / "base", tmp_path / "model")
    )
    assert difference(made, merged_by_peft(tiny_base, place / "two"), before) < 1e-6


@pytest.mark.parametrize("method", ["ties", "tsv-m"])
def test_other_methods_read_deltas(place: Path, tmp_path: Path, method: str) -> None:
    folders, base = [place / "one", place / "two"], str(place / "base")
    report = loradex.merge(folders, method, rank=8, base=base, out=tmp_path / "out")
    assert report.record["totals"]["energy"] > 0
    assert set(report.modules) >= {"model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"}


def test_the_command_prints_the_energy_kept(place: Path, tmp_path: Path) -> None:
    def run(*line: str) -> tuple[int, str]:
        result = CliRunner().invoke(program, line)
        return result.exit_code, " ".join(result.output.split())

    base = ("--base", str(place / "base"))
    line = ("merge", str(place / "one"), "--method", "sum", "-o", str(tmp_path / "out"))
    assert "--base FOLDER" in run(*line)[1]
    assert "has full rank; set --rank, or --apply-to" in run(*line, *base)[1]
    normalise = ("normalise", str(place / "one"), "-o", str(tmp_path / "portable"))
    for command in (line, normalise):
        code, output = run(*command, *base, "--rank", "8")
        assert code == 0
        assert "energy kept 0." in output


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sum", {}, "full rank; set `rank`"),
        ("concatenation", {}, "keeps all ranks"),
        ("peft-linear", {}, "combines the factors of members"),
        ("lora-lego", {"rank": 2}, "combines the factors of members"),
        ("svd", {"rank": 2, "control": "random-each"}, "control"),
    ],
)
def test_what_a_fold_cannot_do_is_refused(
    place: Path, tmp_path: Path, method: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoradexError, match=message):
        loradex.merge([place / "one"], method, base=str(place / "base"), out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_bases_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    save_base(tiny_base(hidden=64), tmp_path / "wide")
    with pytest.raises(MergeError, match=r"has no module|shape"):
        loradex.normalise(place / "one", out=tmp_path / "out", base=str(tmp_path / "wide"), rank=2)
    quantised = tmp_path / "quantised"
    save_base(tiny_base(), quantised)
    tensors = load_file(quantised / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file(tensors | {name: torch.zeros(512, 1, dtype=torch.uint8)}, quantised / "model.safetensors")
    with pytest.raises(MergeError, match="stored as U8; fold into a base that is not quantised"):
        loradex.normalise(place / "one", out=tmp_path / "out", base=str(quantised), rank=2)
    with pytest.raises(UsageError, match="is not DoRA and keeps its ranks"):
        loradex.normalise(place / "plain", out=tmp_path / "out", rank=2)
    with pytest.raises(MergeError, match=r"`base=.FOLDER.`"):
        loradex.normalise(place / "one", out=tmp_path / "out")


def test_the_base_of_the_fold_is_whichever_is_a_folder(place: Path, tmp_path: Path) -> None:
    """A name beside `apply_to` is no weights; a folder is those that the members were trained on."""
    folders = [place / "one"]
    for number, base in enumerate((None, "org/name", str(place / "base"))):
        loradex.merge(folders, "sum", base=base, apply_to=place / "base", out=tmp_path / f"model{number}")
    first, *others = (load_file(tmp_path / f"model{number}" / "model.safetensors") for number in range(3))
    assert all(torch.equal(made[name], first[name]) for made in others for name in first)
    save_base(tiny_base(7), tmp_path / "tuned")
    loradex.merge(
        folders, "sum", base=str(place / "base"), apply_to=tmp_path / "tuned", out=tmp_path / "other"
    )
    base, tuned = (load_file(folder / "model.safetensors") for folder in (place / "base", tmp_path / "tuned"))
    made = load_file(tmp_path / "other" / "model.safetensors")
    assert all(torch.allclose(made[name] - tuned[name], first[name] - base[name], atol=1e-5) for name in base)


def test_dora_is_compared_by_its_deltas(place: Path, tmp_path: Path) -> None:
    before = {name: item.double() for name, item in tiny_base().model.state_dict().items()}
    folders = [place / name for name in ("one", "two", "plain")]
    updates = [
        torch.cat([(made[name] - before[name]).flatten() for name in sorted(before)])
        for made in (merged_by_peft(tiny_base, folder) for folder in folders)
    ]
    inspected = loradex.inspect(folders, base=str(place / "base"), result=folders[0])
    for i, left in enumerate(updates):
        assert inspected.norms[i] == pytest.approx(float(left.norm()), rel=1e-5)
        for j, right in enumerate(updates):
            cosine = torch.nn.functional.cosine_similarity(left, right, dim=0)
            assert inspected.cosines[i][j] == pytest.approx(float(cosine), abs=1e-5)
    assert inspected.likeness is not None
    assert inspected.likeness[0] == pytest.approx(1)
    with pytest.raises(MergeError) as refused:
        loradex.inspect(folders)
    assert '`base="FOLDER"`' in str(refused.value)


def test_the_advice_names_arguments_that_the_caller_has(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headed"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((place / "one" / "adapter_config.json").read_bytes())
    tensors = load_file(place / "one" / "adapter_model.safetensors")
    head = {"base_model.model.lm_head.weight": torch.zeros(260, 32)}
    save_file(tensors | head, folder / "adapter_model.safetensors")
    base = str(place / "base")
    with pytest.raises(MergeError) as compared:
        loradex.inspect([folder], base=base)
    assert '`without="lm_head"`' in str(compared.value)
    assert "`heads`" not in str(compared.value)
    loradex.inspect([folder], base=base, without="lm_head")
    with pytest.raises(MergeError) as merged:
        loradex.merge([folder], "sum", rank=2, base=base, out=tmp_path / "out")
    assert "`heads` first, average or drop" in str(merged.value)
    with pytest.raises(MergeError) as applied:
        loradex.merge([folder], "sum", apply_to=place / "base", out=tmp_path / "out")
    assert "`heads`" not in str(applied.value)
    with pytest.raises(MergeError) as normalised:
        loradex.normalise(folder, rank=2, base=base, out=tmp_path / "out")
    assert "`heads` first, average or drop" in str(normalised.value)


def test_members_of_weight_0_have_no_say(place: Path, tmp_path: Path) -> None:
    """Neither in the rank, nor in the data type, nor in what a method demands of its members."""
    folders, base = [place / "plain", place / "one"], str(place / "base")
    for method in ("sum", "svd", "concatenation", "peft-linear"):
        both = loradex.merge(folders, method, weights=[1, 0], base=base, out=tmp_path / f"{method}2")
        alone = loradex.merge(folders[:1], method, weights=[1], base=base, out=tmp_path / f"{method}1")
        files = [(report.folder / "adapter_model.safetensors").read_bytes() for report in (both, alone)]
        assert files[0] == files[1]
    added = loradex.merge(folders, "sum", weights=[1, 0], apply_to=place / "base", out=tmp_path / "model")
    assert (added.folder, added.model) == (tmp_path / "model-adapter", tmp_path / "model")
    with pytest.raises(UsageError, match="full rank; set `rank`"):
        loradex.merge(folders, "sum", weights=[0, 1], base=base, out=tmp_path / "out")


def test_the_cost_of_a_fold_has_the_base(place: Path) -> None:
    request = loradex.MergeRequest([place / "two"], "sum", rank=2, base=str(place / "base"))
    tensors = load_file(place / "two" / "adapter_model.safetensors").values()
    own = sum(values.numel() * values.itemsize for values in tensors)
    assert request.cost().read == own + 2 * 2 * 32 * 32 * 4
