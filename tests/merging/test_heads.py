"""Output heads and embeddings that members save whole: first, average, drop, against what PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import loradex
from catalog.errors import LoradexError, MergeError, UsageError
from merging.live import calm
from tests.merging.tiny import save_base, tiny_base

HEAD, EMBEDDING = "base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"
WEIGHTS = "adapter_model.safetensors"


def write_saved(folder: Path, seed: int, *layers: str) -> Path:
    """An adapter by PEFT that saves these layers whole."""
    torch.manual_seed(seed)
    with calm():
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=list(layers) or None)
        model = get_peft_model(tiny_base().model, config)
        for name, item in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                item.data = torch.randn_like(item) * 0.2
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    save_base(tiny_base(), folder / "base")
    write_saved(folder / "plain", 0)
    write_saved(folder / "one", 1, "lm_head")
    write_saved(folder / "two", 2, "lm_head", "embed_tokens")
    return folder


def merge(place: Path, out: Path, heads: str | None, *names: str, **options: object) -> loradex.MergeReport:
    folders = [place / name for name in names or ("plain", "one", "two")]
    return loradex.merge(folders, "sum", heads=heads, base=str(place / "base"), out=out, **options)  # type: ignore[arg-type]


def loaded(folder: Path) -> dict[str, Tensor]:
    """What plain PEFT makes of an adapter, as one model's weights."""
    with calm():
        model = PeftModel.from_pretrained(tiny_base().model, folder)
        return {name: item.clone() for name, item in model.merge_and_unload().state_dict().items()}


def test_the_first_head_is_that_of_the_first_member_that_saves_one(place: Path, tmp_path: Path) -> None:
    report = merge(place, tmp_path / "out", "first")
    one, two, made = (
        load_file(folder / WEIGHTS) for folder in (place / "one", place / "two", tmp_path / "out")
    )
    assert torch.equal(made[HEAD], one[HEAD])
    assert torch.equal(made[EMBEDDING], two[EMBEDDING])
    weights = loaded(tmp_path / "out")
    assert torch.equal(weights["lm_head.weight"], one[HEAD])
    assert torch.equal(weights["model.embed_tokens.weight"], two[EMBEDDING])
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["modules_to_save"] == [
        "embed_tokens",
        "lm_head",
    ]
    assert report.record["heads"]["layers"]["lm_head"] == [{"member": "one", "share": 1.0}]
    assert "lm_head is saved whole, of one" in (tmp_path / "out" / "README.md").read_text()


def test_the_mean_is_by_the_weights_of_those_that_save_one(place: Path, tmp_path: Path) -> None:
    report = merge(place, tmp_path / "out", "average", weights=[5.0, 1.0, 3.0])
    one, two = (load_file(place / name / WEIGHTS)[HEAD].double() for name in ("one", "two"))
    made = loaded(tmp_path / "out")["lm_head.weight"]
    assert torch.allclose(made.double(), 0.25 * one + 0.75 * two, atol=1e-7)
    shares = {row["member"]: row["share"] for row in report.record["heads"]["layers"]["lm_head"]}
    assert shares == {"one": 0.25, "two": 0.75}
    with pytest.raises(MergeError, match=r"save lm_head sum to 0; use `heads` first"):
        merge(place, tmp_path / "zero", "average", "one", "two", weights=[1.0, -1.0])


def test_what_is_dropped_is_named(place: Path, tmp_path: Path) -> None:
    report = merge(place, tmp_path / "out", "drop")
    assert not {HEAD, EMBEDDING} & load_file(tmp_path / "out" / WEIGHTS).keys()
    assert report.record["heads"] == {
        "choice": "drop",
        "layers": {},
        "dropped": {"one": ["lm_head"], "two": ["lm_head", "model.embed_tokens"]},
    }
    assert report.record["members"][1]["left_out"] == [HEAD]
    assert "Dropped of two" in (tmp_path / "out" / "README.md").read_text()


def test_one_adapter_is_normalised_with_its_head(place: Path, tmp_path: Path) -> None:
    loradex.normalise(place / "two", heads="first", out=tmp_path / "out")
    expected, made = loaded(place / "two"), loaded(tmp_path / "out")
    assert all(torch.allclose(made[name], expected[name], atol=1e-6) for name in expected)
    report = loradex.normalise(place / "two", heads="drop", out=tmp_path / "dropped")
    assert sorted(report.record["left_out"]) == [HEAD, EMBEDDING]


def test_without_a_choice_and_for_new_tokens_they_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"`heads` first, average or drop says what becomes"):
        merge(place, tmp_path / "out", None)
    with pytest.raises(UsageError, match="`heads` is 'last'; use one of first, average, drop"):
        merge(place, tmp_path / "out", "last")
    with pytest.raises(UsageError, match="Saved layers are not added to a base"):
        merge(place, tmp_path / "out", "first", apply_to=place / "base")
    grown = write_saved(tmp_path / "grown", 3, "lm_head")
    tensors = load_file(grown / WEIGHTS)
    save_file(tensors | {HEAD: torch.zeros(264, 32)}, grown / WEIGHTS)
    with pytest.raises(MergeError, match="264 tokens, and its base has 260: rows of new tokens"):
        loradex.merge([grown], "sum", heads="first", base=str(place / "base"), out=tmp_path / "out")
    with pytest.raises(MergeError, match="grown saves lm_head with 264 tokens and one with 260"):
        loradex.merge([place / "one", grown], "sum", heads="average", base="x/unknown", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_one_saves_and_another_adapts_is_refused(place: Path, tmp_path: Path) -> None:
    """PEFT would load the saved one alone."""
    with calm():
        config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
        model = get_peft_model(tiny_base().model, config)
        model.save_pretrained(tmp_path / "adapted", save_embedding_layers=False)
    folders = [place / "one", tmp_path / "adapted"]
    with pytest.raises(MergeError, match="adapted has factors of lm_head, which one saves whole"):
        loradex.merge(folders, "sum", heads="first", base=str(place / "base"), out=tmp_path / "out")
    loradex.merge(folders, "sum", heads="drop", base=str(place / "base"), out=tmp_path / "out")


def test_stand_ins_have_no_heads(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Stand-ins have no saved heads"):
        merge(place, tmp_path / "out", "first", control="random-pooled")
    assert not (tmp_path / "out").exists()


def test_classifiers_are_refused_whatever_the_choice(place: Path, tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "classifier", 4)
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"base_model.model.score.weight": torch.zeros(2, 32)}, folder / WEIGHTS)
    for heads in (None, "first", "drop"):
        with pytest.raises(LoradexError, match=r"full_weights: score"):
            loradex.merge([folder], "sum", heads=heads, out=tmp_path / "out")


def respell(source: Path, folder: Path, old: str, new: str, shape: tuple[int, int] | None = None) -> Path:
    """The adapter with another name, and shape, of one tensor."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    tensors = load_file(source / WEIGHTS)
    values = tensors.pop(old)
    save_file(tensors | {new: values if shape is None else torch.ones(shape)}, folder / WEIGHTS)
    return folder


def test_a_head_of_another_prefix_is_placed_where_the_base_has_it(place: Path, tmp_path: Path) -> None:
    prefix = "base_model.model.language_model."
    folder = respell(place / "two", tmp_path / "moved", EMBEDDING, f"{prefix}embed_tokens.weight")
    respell(folder, tmp_path / "both", HEAD, f"{prefix}lm_head.weight")
    for write in ("merge", "normalise"):
        out, base = tmp_path / write, str(place / "base")
        if write == "merge":
            loradex.merge([tmp_path / "both"], "sum", heads="first", base=base, out=out)
        else:
            loradex.normalise(tmp_path / "both", heads="first", base=base, out=out)
        expected, made = loaded(place / "two"), loaded(out)
        assert all(torch.allclose(made[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize(
    ("tensor", "name", "shape", "message"),
    [
        (HEAD, HEAD, (260, 48), r"saves lm_head for a width of 48, and that is 32 to 260 in"),
        (
            EMBEDDING,
            EMBEDDING,
            (260, 16),
            "saves model.embed_tokens for a width of 16, and that is 260 to 32",
        ),
        (
            HEAD,
            "base_model.model.vision.lm_head.weight",
            None,
            "vision.lm_head whole, and .* has no such layer",
        ),
        (EMBEDDING, EMBEDDING, (300, 32), "300 tokens, and its base has 260"),
    ],
)
def test_saved_layers_that_do_not_fit_the_base_are_refused(
    place: Path, tmp_path: Path, tensor: str, name: str, shape: tuple[int, int] | None, message: str
) -> None:
    folder, base = respell(place / "two", tmp_path / "odd", tensor, name, shape), str(place / "base")
    with pytest.raises(MergeError, match=message):
        loradex.merge([folder], "sum", heads="first", base=base, out=tmp_path / "out")
    with pytest.raises(MergeError, match=message):
        loradex.normalise(folder, heads="first", base=base, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    loradex.merge([folder], "sum", heads="drop", base=base, out=tmp_path / "out")


def test_the_vocabulary_is_that_of_a_known_base_in_any_spelling(tmp_path: Path) -> None:
    folder = write_saved(tmp_path / "one", 1)
    factor = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = {f"{factor}A.weight": torch.ones(2, 576), f"{factor}B.weight": torch.ones(576, 2)}
    save_file(tensors | {HEAD: torch.zeros(49_160, 576)}, folder / WEIGHTS)
    for base in ("HuggingFaceTB/SmolLM2-135M-Instruct", "huggingfacetb/smollm2-135m-instruct"):
        with pytest.raises(MergeError, match="49160 tokens, and its base has 49152"):
            loradex.merge([folder], "sum", heads="first", base=base, out=tmp_path / "out")


def test_two_paths_of_a_head_need_the_base(place: Path, tmp_path: Path) -> None:
    """Of two paths one at most is in the base, which is not known here."""
    moved = respell(place / "one", tmp_path / "moved", HEAD, "base_model.model.language_model.lm_head.weight")
    with pytest.raises(MergeError, match=r"one has lm_head where moved has language_model.lm_head"):
        loradex.merge([place / "one", moved], "sum", heads="first", base="x/unknown", out=tmp_path / "out")


def test_the_cost_has_the_heads(place: Path, tmp_path: Path) -> None:
    names = [place / name for name in ("plain", "one", "two")]
    base = str(place / "base")
    first, average, dropped = (
        loradex.MergeRequest(names, "sum", heads=heads, base=base).cost()
        for heads in ("first", "average", "drop")
    )
    head = 260 * 32
    assert first.parameters - dropped.parameters == average.parameters - dropped.parameters == 2 * head
    assert (first.size - dropped.size, first.read - dropped.read) == (8 * head, 8 * head)
    assert average.read - dropped.read == 12 * head
    report = merge(place, tmp_path / "out", "first")
    stored = sum(values.numel() * 4 for values in load_file(report.folder / WEIGHTS).values())
    assert first.size == stored
