"""A fold into a base against transformers and PEFT, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from catalog.errors import LoradexError, MergeError, UsageError
from merging.members import load_member
from merging.static import apply_to, refuse_misfits
from tests.hubs import adapter_config
from tests.merging.adapters import Q, adapter, deltas

C_PROJ = "transformer.h.0.attn.c_proj"
GPT2 = {"model_type": "gpt2", "n_embd": 12, "n_layer": 1, "n_head": 2}
LLAMA = {"model_type": "llama", "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL = {f"{Q}.weight": (12, 12), "model.layers.0.self_attn.v_proj.weight": (8, 12)}


def base(folder: Path, dtype: torch.dtype = torch.float32, shards: int = 1, **config: Any) -> Path:
    """A folder in the layout of transformers with the tensors that the adapters of the tests change."""
    generator = torch.Generator().manual_seed(9)
    shapes = {**SMALL, "model.layers.0.mlp.down_proj.weight": (12, 20), "model.norm.weight": (12,)}
    shapes |= {"model.layers.1.self_attn.q_proj.weight": (12, 12), "lm_head.weight": (30, 12)}
    tensors = {name: torch.randn(*shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {name: f"model-{n % shards}.safetensors" for n, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file(
            {n: t for n, t in tensors.items() if weight_map[n] == shard}, folder / shard, {"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float64, 1e-6)]
)
def test_every_changed_weight_is_the_sum_rounded_once(
    dtype: torch.dtype, error: float, shards: int, tmp_path: Path
) -> None:
    source, lora = base(tmp_path / "base", dtype, shards), adapter(tmp_path / "lora")
    document: list[tuple[int, int]] = []
    report = apply_to(source, lora, tmp_path / "out", progress=lambda done, of: document.append((done, of)))
    before, after, added = tensors_of(source), tensors_of(tmp_path / "out"), deltas(lora)
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype == dtype
        delta = added.get(name.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(after[name], tensor)
        else:
            expected = tensor.double() + delta
            assert float((after[name].double() - expected).abs().max()) <= error * float(expected.abs().max())
    assert (report.modules, len(report.shards), document[-1]) == (4, shards, (4, 4))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "tokenizer.json", "merge.json"} <= names
    assert "pytorch_model.bin" not in names


def test_ranges_of_rows_do_not_change_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, lora = base(tmp_path / "base"), adapter(tmp_path / "lora")
    apply_to(source, lora, tmp_path / "a")
    monkeypatch.setattr("merging.static.folding._CHUNK", 150)
    apply_to(source, lora, tmp_path / "b")
    item, other = (tensors_of(tmp_path / name) for name in "ab")
    for name in item:
        torch.testing.assert_close(item[name], other[name], rtol=1e-6, atol=1e-6)
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


def test_embeddings_are_stored_the_other_way_round(tmp_path: Path) -> None:
    source = tmp_path / "base"
    source.mkdir()
    table = torch.randn(9, 4)
    save_file({"model.embed_tokens.weight": table}, source / "model.safetensors")
    (source / "config.json").write_text('{"model_type": "llama", "vocab_size": 9}')
    (tmp_path / "lora").mkdir()
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    a, b = torch.randn(2, 9), torch.randn(4, 2)
    save_file({f"{stem}A": a, f"{stem}B": b}, tmp_path / "lora" / "adapter_model.safetensors")
    config = adapter_config(r=2, lora_alpha=6, target_modules=["embed_tokens"])
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    apply_to(source, tmp_path / "lora", tmp_path / "out")
    result = tensors_of(tmp_path / "out")["model.embed_tokens.weight"]
    torch.testing.assert_close(result, table + 3 * (b @ a).T, rtol=1e-5, atol=1e-5)
    (source / "config.json").write_text('{"tie_word_embeddings": true}')
    with pytest.raises(MergeError, match=r"model.embed_tokens of the base shares its weights"):
        apply_to(source, tmp_path / "lora", tmp_path / "tied")
    (source / "config.json").unlink()
    with pytest.raises(UsageError, match="is not known"):
        apply_to(source, tmp_path / "lora", tmp_path / "unknown")


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize(("config", "turned"), [(GPT2, True), (LLAMA, False)])
def test_the_base_decides_which_weights_are_turned(
    config: dict[str, Any], turned: bool, flag: bool, tmp_path: Path
) -> None:
    """PEFT goes by the layer, and corrects a fan_in_fan_out that is not the layer's; square ones fit both."""
    a, b = torch.randn(2, 12), torch.randn(12, 2)
    lora = adapter(tmp_path / "lora", modules=[C_PROJ], factors={C_PROJ: (a, b)}, fan_in_fan_out=flag, r=2)
    source = tmp_path / "base"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file({f"{C_PROJ}.weight": torch.zeros(12, 12)}, source / "model.safetensors")
    refuse_misfits(source, [load_member(lora)])
    apply_to(source, lora, tmp_path / "out")
    delta = deltas(lora)[C_PROJ].float()
    torch.testing.assert_close(tensors_of(tmp_path / "out")[f"{C_PROJ}.weight"], delta.T if turned else delta)


def broken(folder: Path, change: str) -> Path:
    source = base(folder, shards=2)
    if change == "missing":
        save_file({"other.weight": torch.ones(2)}, source / "model-0.safetensors")
    elif change == "shape":
        shards = {name: load_file(source / name) for name in ("model-0.safetensors", "model-1.safetensors")}
        for name, tensors in shards.items():
            if f"{Q}.weight" in tensors:
                save_file({**tensors, f"{Q}.weight": torch.ones(3, 12)}, source / name)
    elif change == "quantised":
        for name in ("model-0.safetensors", "model-1.safetensors"):
            tensors = load_file(source / name)
            if f"{Q}.weight" in tensors:
                save_file({**tensors, f"{Q}.weight": torch.ones(12, 12, dtype=torch.uint8)}, source / name)
    elif change == "gone":
        (source / "model-1.safetensors").unlink()
    elif change == "escaping":
        index = {"weight_map": {"a": "../../secret.safetensors"}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
    elif change == "cut":
        data = (source / "model-1.safetensors").read_bytes()
        (source / "model-1.safetensors").write_bytes(data[:-1])
    else:
        (source / "model.safetensors.index.json").write_text("[]")
    return source


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "belongs to another model"),
        ("shape", r"has shape \[3, 12\]"),
        ("quantised", "not quantised"),
        ("gone", "fetch the complete model"),
        ("escaping", "is missing"),
        ("cut", "cannot be used"),
        ("index", "does not contain weight_map"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(change: str, words: str, tmp_path: Path) -> None:
    source, lora = broken(tmp_path / "base", change), adapter(tmp_path / "lora")
    with pytest.raises(LoradexError, match=words):
        apply_to(source, lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_another_shape_is_told_from_headers(tmp_path: Path) -> None:
    member = load_member(adapter(tmp_path / "lora"))
    with pytest.raises(MergeError, match=r"has shape \[3, 12\].*another model"):
        refuse_misfits(broken(tmp_path / "shape", "shape"), [member])
    # Names that are not found and packed values say nothing of the shape, a folder without weights neither.
    refuse_misfits(broken(tmp_path / "missing", "missing"), [member])
    refuse_misfits(broken(tmp_path / "quantised", "quantised"), [member])
    refuse_misfits(tmp_path, [member])


def test_no_base_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not contain a base model"):
        apply_to(tmp_path, adapter(tmp_path / "lora"), tmp_path / "out")


def test_values_beyond_the_data_type_are_refused(tmp_path: Path) -> None:
    factors = {Q: (torch.full((3, 12), 300.0), torch.full((12, 3), 300.0))}
    lora = adapter(tmp_path / "lora", modules=[Q], factors=factors)
    with pytest.raises(MergeError, match="not finite in F16"):
        apply_to(base(tmp_path / "base", torch.float16), lora, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_head_that_the_file_lacks_because_it_is_tied_is_named_so(tmp_path: Path) -> None:
    """A tied model is saved without its output head; that is no other model."""
    source = base(
        tmp_path / "base", tie_word_embeddings=True, hidden_size=12, num_attention_heads=2, vocab_size=30
    )
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file({**tensors, "model.embed_tokens.weight": torch.ones(30, 12)}, source / "model.safetensors")
    (tmp_path / "lora").mkdir()
    stem = "base_model.model.lm_head.lora_"
    factors = {f"{stem}A.weight": torch.ones(2, 12), f"{stem}B.weight": torch.ones(30, 2)}
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    config = adapter_config(r=2, lora_alpha=2, target_modules=["lm_head"])
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match=r"lm_head of the base shares its weights with model.embed_tokens"):
        apply_to(source, tmp_path / "lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()
