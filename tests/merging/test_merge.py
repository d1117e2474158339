"""A merge from folders to a folder: what is written, that it is whole, and that it is refused in words."""

from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file

from catalog.adapters import license_of_merge
from catalog.errors import LoradexError, MergeError, StorageError, UsageError
from merging.members import digest_of, factor_names, load_member, shapes, sum_dense
from merging.methods import METHODS, ModuleWork, Update
from merging.static import merged_updates, plan
from tests.merging.adapters import ALL, SHAPES, Q, adapter, deltas, distance, merge, total

# The files that a process may open, of which it has some open itself.
OPEN = 64


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three adapters of mixed ranks, modules and scalings."""
    return [
        adapter(tmp_path / "one", seed=1, rank=3),
        adapter(tmp_path / "two", seed=2, rank=5, modules=ALL[:2], use_rslora=True),
        adapter(tmp_path / "three", seed=3, rank=2, ranks={Q: 4}, alpha_pattern={Q: 9.0}),
    ]


def test_the_sum_on_the_disk_is_the_sum_of_the_members(folders: list[Path], tmp_path: Path) -> None:
    weights = [0.7, -0.4, 1.3]
    report = merge(folders, "sum", tmp_path / "out", weights=weights)
    assert distance(deltas(tmp_path / "out"), total(weights, folders)) < 1e-6
    assert report.modules[Q].rank == 3 + 5 + 4
    assert report.modules["model.layers.1.self_attn.q_proj"].rank == 3 + 2
    assert report.energy_share == 1


def test_energy_is_told_where_it_was_measured_alone(tmp_path: Path) -> None:
    """A sum of high rank is written as it is, and its norm is nobody's concern; a zero has none to keep."""
    high = [adapter(tmp_path / f"h{n}", seed=n, rank=40) for n in range(2)]
    line = "Energy that the rank could not hold"
    for name, folders, remaining in (("high", high, None), ("low", high[:1], 1)):
        report = merge(folders, "peft-cat", tmp_path / name)
        assert (report.record["totals"]["energy"] is None) is (remaining is None)
        assert report.energy_share == remaining
        assert (line in (tmp_path / name / "README.md").read_text()) is (remaining is not None)
    cut = merge(high, "svd", tmp_path / "cut", rank=2)
    assert 0 < (cut.energy_share or 0) < 1
    assert f"{line}: {1 - (cut.energy_share or 0):.3%}." in (tmp_path / "cut" / "README.md").read_text()
    nothing = {name: (torch.ones(1, i), torch.zeros(o, 1)) for name, (i, o) in SHAPES.items()}
    zero = merge([adapter(tmp_path / "zero", rank=1, factors=nothing)], "sum", tmp_path / "none")
    assert (zero.energy_share, zero.record["totals"]["energy"]) == (None, 0.0)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_every_data_type_is_written(dtype: str, error: float, folders: list[Path], tmp_path: Path) -> None:
    merge(folders, "average", tmp_path / "out", dtype=dtype)
    assert distance(deltas(tmp_path / "out"), total([1 / 3] * 3, folders)) < error
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {f"torch.{dtype}"}  # noqa: SIM118


def test_the_data_type_is_that_of_all_members_else_float32(tmp_path: Path) -> None:
    halves = [adapter(tmp_path / f"h{n}", seed=n, dtype=torch.bfloat16) for n in range(2)]
    assert plan(halves, "average").dtype == "bfloat16"
    assert plan([*halves, adapter(tmp_path / "f", seed=3)], "average").dtype == "float32"


@pytest.mark.parametrize("rank", [1, 4])
def test_a_truncation_reports_its_energy(rank: int, folders: list[Path], tmp_path: Path) -> None:
    report = merge(folders, "svd", tmp_path / "out", rank=rank)
    expected = total([1 / 3] * 3, folders)
    result = deltas(tmp_path / "out")
    for name, module in report.modules.items():
        assert module.energy == pytest.approx(float(expected[name].square().sum()), rel=1e-5)
        loss = float((expected[name] - result[name]).square().sum())
        assert module.discarded == pytest.approx(loss, rel=1e-3, abs=1e-5)
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record == report.record
    discarded = sum(module["discarded"] for module in record["modules"].values())
    assert record["totals"]["discarded"] == pytest.approx(discarded)
    assert report.energy_share is not None
    assert 0 < report.energy_share < 1


def test_the_record_names_everything_that_made_the_result(folders: list[Path], tmp_path: Path) -> None:
    members = [load_member(folders[0], name="acme/one", source={"commit": "c0ffee"}), *folders[1:]]
    merge(members, "sum", tmp_path / "out", weights=[1, 2, 3], seed=7, pool={"name": "p", "digest": "d"})
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert [entry["name"] for entry in record["members"]] == ["acme/one", "two", "three"]
    assert [entry["weight"] for entry in record["members"]] == [1, 2, 3]
    assert record["members"][0]["source"] == {"commit": "c0ffee"}
    for entry, folder in zip(record["members"], folders, strict=True):
        assert entry["sha256"] == digest_of(folder / "adapter_model.safetensors")
    assert (record["method"], record["seed"], record["pool"]["digest"]) == ("sum", 7, "d")
    assert record["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert str(tmp_path) not in (tmp_path / "out" / "merge.json").read_text()


def test_twice_is_the_same_to_the_byte(folders: list[Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        merge(folders, "svd", tmp_path / name, rank=3, dtype="bfloat16")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "merge.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_merge_is_a_member_of_the_next(folders: list[Path], tmp_path: Path) -> None:
    merge(folders[:2], "sum", tmp_path / "first")
    merge([tmp_path / "first", folders[2]], "sum", tmp_path / "second")
    assert distance(deltas(tmp_path / "second"), total([1, 1, 1], folders)) < 1e-6


def test_the_card_has_what_the_hub_reads(folders: list[Path], tmp_path: Path) -> None:
    for folder in folders:
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    members = [load_member(folders[0], name="evil|name`<b>"), *folders[1:]]
    merge(members, "svd", tmp_path / "out", rank=2)
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert (front["license"], front["library_name"]) == ("llama3.1", "peft")
    assert front["base_model_relation"] == "adapter"
    assert "License: llama3.1, the strictest of the members and the base model (llama3.1, mit)." in text
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct --enable-lora --lora-modules merge=." in text
    assert set(front["tags"]) >= {"merge", "lora"}
    assert "| evil?name??b? | 0.333333 | 3 | mit |" in text
    (folders[0] / "README.md").unlink()
    merge(folders, "svd", tmp_path / "out", rank=2, overwrite=True)
    assert "license" not in yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])


@pytest.mark.parametrize(
    ("licenses", "merged", "words"),
    [
        ({"a": "mit", "b": "Apache-2.0"}, "apache-2.0", "the strictest"),
        ({"a": "mit", "base": "llama3.1"}, "llama3.1", "the strictest"),
        ({"a": "cc-by-nc-4.0", "b": "mit"}, "cc-by-nc-4.0", "the strictest"),
        ({"a": "cc-by-nc-4.0", "base": "llama3.1"}, None, "cc-by-nc-4.0 and llama3.1 contradict each other"),
        ({"a": "gpl-3.0", "b": "gpl-3.0"}, "gpl-3.0", "the strictest"),
        ({"a": "cc-by-nd-4.0"}, None, "does not allow sharing of derivatives"),
        ({"a": "mit", "b": None}, None, "b states none"),
        ({"a": "mit", "b": "my-own"}, None, "my-own is not known"),
        ({}, None, "none is stated"),
    ],
)
def test_the_license_of_a_merge_is_the_strictest_of_its_parts(
    licenses: dict[str, str | None], merged: str | None, words: str
) -> None:
    license_id, remark = license_of_merge(list(licenses.items()))
    assert license_id == merged
    assert words in remark


def test_a_card_links_pinned_members_and_nothing_else(folders: list[Path], tmp_path: Path) -> None:
    pinned = {"repository": "ann/one", "commit": "a" * 40, "subfolder": ""}
    hostile = {"repository": "ann/one](x)", "commit": "a" * 40, "subfolder": ""}
    members = [
        load_member(folders[0], name="one", source=pinned),
        load_member(folders[1], name="two", source=hostile),
    ]
    merge(members, "svd", tmp_path / "out", rank=2)
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| [one](https://huggingface.co/ann/one/tree/{'a' * 40}) |" in text
    assert "| two |" in text
    card = ModelCard(text)
    assert card.data.base_model_relation == "adapter"
    assert card.data.license is None


def test_members_of_weight_zero_change_nothing_not_even_the_modules(
    folders: list[Path], tmp_path: Path
) -> None:
    merge(folders, "sum", tmp_path / "out", weights=[0, 1, 0])
    assert set(deltas(tmp_path / "out")) == set(ALL[:2])
    assert distance(deltas(tmp_path / "out"), deltas(folders[1])) < 1e-6


def test_nothing_that_is_there_is_lost(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(folders, "sum", out)
    before = (out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="exists; use another"):
        merge(folders, "average", out)
    assert (out / "adapter_model.safetensors").read_bytes() == before
    merge(folders, "average", out, overwrite=True)
    assert (out / "adapter_model.safetensors").read_bytes() != before
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("words")
    with pytest.raises(UsageError, match="contains other files"):
        merge(folders, "average", mine, overwrite=True)
    assert (mine / "thesis.tex").read_text() == "words"


class FullDisk:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self.file.write(data))


@pytest.mark.parametrize("room", [0, 500, 3500])
def test_a_full_disk_leaves_nothing_behind(
    room: int, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import merging.members.writer as write

    original = write.TensorWriter
    monkeypatch.setattr(
        write, "TensorWriter", lambda file, *remaining: original(FullDisk(file, room), *remaining)
    )
    place = tmp_path / "place"
    with pytest.raises(StorageError, match="No space left"):
        merge(folders, "sum", place / "out")
    assert list(place.iterdir()) == []


def test_a_failure_while_replacing_keeps_the_old_merge(folders: list[Path], tmp_path: Path) -> None:
    merge(folders, "sum", tmp_path / "place" / "out")
    broken = adapter(
        tmp_path / "broken", modules=[Q], factors={Q: (torch.full((3, 12), torch.nan), torch.ones(12, 3))}
    )
    with pytest.raises(MergeError, match="broken"):
        merge([*folders, broken], "sum", tmp_path / "place" / "out", overwrite=True)
    assert [file.name for file in (tmp_path / "place").iterdir()] == ["out"]
    assert distance(deltas(tmp_path / "place" / "out"), total([1, 1, 1], folders)) < 1e-6


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    huge = {Q: (torch.full((3, 12), 1e4), torch.full((12, 3), 1e7))}
    folder = adapter(tmp_path / "a", modules=[Q], factors=huge)
    with pytest.raises(MergeError, match="float32"):
        merge([folder], "sum", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("avrage", {}, "did you mean average"),
        ("svd", {"parameters": {"density": 1}}, "no parameters"),
        ("svd", {"rank": 0}, "at least 1"),
        ("concatenation", {"rank": 3}, "determines the rank"),
        ("sum", {"weights": [1.0]}, "3 members require as many weights, not 1"),
        ("sum", {"weights": [0.0, 0.0, 0.0]}, "not 0"),
        ("sum", {"weights": [1.0, float("nan"), 0.0]}, "finite"),
        ("average", {"weights": [1.0, -1.0, 0.0]}, "sum, which is 0"),
        ("sum", {"dtype": "int8"}, "float32, bfloat16, float16"),
        ("sum", {"inputs": [Path("x")]}, "not accept activations"),
        ("peft-linear", {}, "equal ranks"),
        ("sum", {"device": "abacus"}, "not a device"),
        ("sum", {"device": "meta"}, "not on meta"),
        ("sum", {"device": "cuda:99"}, "device cuda:99 is not available"),
        ("ties", {"parameters": {"densty": 0.5}}, "did you mean density"),
        ("ties", {"parameters": {"density": 2}}, "density must be 0 to 1, not 2"),
        ("ties", {"parameters": {"density": True}}, "density must be 0 to 1"),
        ("ties", {"parameters": {"scale": "nan"}}, "scale must be any"),
        ("ties", {"parameters": {"election": "loud"}}, "total . frequency"),
        ("lora-lego", {"parameters": {"iterations": 2.5}}, "iterations must be 1 to 1000"),
        ("lora-lego", {"parameters": {"rescale": "maybe"}}, "rescale must be true . false"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    method: str, settings: dict[str, Any], words: str, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(LoradexError, match=words) as refused:
        merge(folders, method, tmp_path / "out", **settings)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_progress_is_told_after_each_module(folders: list[Path], tmp_path: Path) -> None:
    document: list[tuple[int, int]] = []
    merge(folders, "sum", tmp_path / "out", progress=lambda done, of: document.append((done, of)))
    assert document == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_one_module_of_each_member_is_in_memory_at_a_time(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method of a module runs before the next module is read."""
    import merging.members.stacks as stack

    requests: list[str] = []
    read = stack.read_module
    monkeypatch.setattr(
        stack, "read_module", lambda member, name, *memory: requests.append(name) or read(member, name)
    )
    questions: list[int] = []
    merge(folders, "sum", tmp_path / "out", progress=lambda done, of: questions.append(len(set(requests))))
    assert questions == [1, 2, 3, 4]


def test_the_record_says_what_was_left_out(folders: list[Path], tmp_path: Path) -> None:
    members = [load_member(folder, without=["down_proj"]) for folder in folders]
    report = merge(members, "average", tmp_path / "out")
    names = [entry.get("left_out", []) for entry in report.record["members"]]
    assert {"down_proj" in name for result in names for name in result} == {True}
    assert [len(result) for result in names] == [2, 0, 2]
    assert not any("down_proj" in name for name in report.modules)
    document = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not any("down_proj" in target for target in document["target_modules"])


@pytest.mark.parametrize("method", ["average", "sum", "concatenation", "peft-cat"])
@pytest.mark.parametrize("weights", [None, [0.5, -1.0, 2.0], [1.0, 0.0, 3.0]])
def test_what_is_joined_on_the_disk_is_what_the_method_makes(
    method: str, weights: list[float] | None, folders: list[Path], tmp_path: Path
) -> None:
    merge(folders, method, tmp_path / "out", weights=weights)
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for shape, update in merged_updates(plan(folders, method, weights=weights)):
        for name, values in zip(factor_names(shape), (update.a, update.b), strict=True):
            torch.testing.assert_close(written.pop(name), values, rtol=5e-7, atol=0)
    assert not written


def test_more_members_merge_than_files_may_be_open(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > OPEN
    members = [adapter(tmp_path / f"m{n}", seed=n, rank=1, modules=ALL[:2]) for n in range(OPEN)]
    merge(members, "concatenation", tmp_path / "expected")
    program = f"""
import resource
from pathlib import Path
from merging.members.member import Scratch
from tests.merging.adapters import merge
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, ({OPEN}, most))
folder = Path({str(tmp_path)!r})
merge([folder / f"m{{n}}" for n in range({OPEN})], "concatenation", folder / "out")
with Scratch() as scratch:
    print(scratch.limit)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, f"{OPEN // 2}\n"), ended.stderr
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.fixture
def each_method() -> list[str]:
    """Names of the methods that need no data."""
    return [name for name, row in METHODS.items() if not row.data]


def test_every_row_of_the_table_merges_and_says_what_it_is(each_method: list[str], tmp_path: Path) -> None:
    pair = [adapter(tmp_path / f"m{n}", seed=n) for n in range(2)]
    for name in each_method:
        row = METHODS[name]
        planned = plan(pair, name, seed=1)
        for shape, update in merged_updates(planned):
            assert isinstance(update, Update)
            assert update.a.shape == (update.a.shape[0], shape.in_features)
            assert update.b.shape == (shape.out_features, update.a.shape[0])
            assert 1 <= update.a.shape[0] <= planned.bound(shape)
            assert torch.isfinite(update.a).all()
            assert torch.isfinite(update.b).all()
        assert row.summary.endswith(".")
        assert row.paper.startswith("https://")
        for parameter in row.parameters:
            assert parameter.read(parameter.default) == parameter.default
            assert parameter.meaning
            assert parameter.range


def test_a_method_gets_only_members_that_have_the_module(folders: list[Path]) -> None:
    requests: dict[str, ModuleWork] = {}
    row = METHODS["sum"]
    planned = plan(folders, "sum")

    def watch(work: ModuleWork) -> Update:
        requests[work.stack.name] = work
        return row.run(work)

    from dataclasses import replace

    list(merged_updates(replace(planned, method=replace(row, run=watch))))
    assert requests[Q].names == ("one#0", "two#0", "three#0")
    assert requests["model.layers.0.mlp.down_proj"].names == ("one#0", "three#0")
    assert requests["model.layers.0.mlp.down_proj"].stack.ranks == (3, 2)


def test_parameters_are_read_from_words_as_from_values() -> None:
    row = METHODS["lora-lego"]
    assert row.options({"rescale": "false", "iterations": "20"}) == row.options(
        {"rescale": False, "iterations": 20}
    )
    assert METHODS["ties"].options({"density": "0.3"})["density"] == 0.3
    assert type(row.options({"iterations": 20.0})["iterations"]) is int


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.data])
@pytest.mark.parametrize("size", [1e-30, 1e20, 1e38])
def test_factors_of_any_size_merge_or_are_refused_in_one_sentence(
    method: str, size: float, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    folders = []
    for number in range(2):
        a, b = torch.randn(3, 14, generator=generator), torch.randn(10, 3, generator=generator)
        folders.append(
            adapter(tmp_path / f"m{number}", modules=[Q], factors={Q: (a, (b * size).clamp(-1e38, 1e38))})
        )
    options = {"rank": 2} if METHODS[method].truncates else {}
    try:
        report = merge(folders, method, tmp_path / "out", **options)
    except MergeError as error:
        if size < 1e38 or not re.search("too large|NaN or infinity", str(error)):
            raise
        return
    made = load_file(report.folder / "adapter_model.safetensors").values()
    assert all(bool(torch.isfinite(values).all()) for values in made)
    energy = report.record["totals"]["energy"]
    assert energy is None or math.isfinite(energy)
    assert energy is None or size == 1e38 or energy > 0


def test_a_dense_sum_that_overflows_is_refused(tmp_path: Path) -> None:
    folder = adapter(
        tmp_path / "m", modules=[Q], factors={Q: (torch.ones(3, 14) * 1e30, torch.ones(10, 3) * 1e30)}
    )
    member = load_member(folder)
    with pytest.raises(MergeError, match=f"The sum of the updates of {Q} is too large for float32"):
        sum_dense(shapes([member])[0], [member], [1.0])
