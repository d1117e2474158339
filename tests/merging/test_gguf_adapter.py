"""GGUF adapters: read back tensor by tensor, and run by llama.cpp itself beside PEFT."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import loradex
from catalog.errors import LoradexError, MergeError, UsageError
from merging.members import shapes
from merging.static import gguf_base, gguf_layout, write_gguf
from tests.merging.llama import TARGETS, tiny, write

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
PROMPT = (5, 9, 20, 33, 7)
WORDS = 64
Probabilities = Callable[[Path | None], torch.Tensor]


def model() -> Any:
    return tiny(vocab_size=WORDS, hidden_size=64, intermediate_size=96)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model: its config.json, and its weights as a GGUF file."""
    folder = tmp_path_factory.mktemp("base")
    llama = model()
    llama.config.save_pretrained(folder)
    writer = gguf.GGUFWriter(folder / "base.gguf", "llama")
    config, heads = llama.config, {"attn_q": 4, "attn_k": 2}
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads["attn_q"])
    writer.add_head_count_kv(heads["attn_k"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // 4)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(WORDS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(WORDS - 3))])
    writer.add_token_scores([0.0] * WORDS)
    writer.add_token_types([2, 3, 3, *[6] * (WORDS - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, value in llama.state_dict().items():
        name = names.get_name(key, try_suffixes=(".weight",))
        assert name is not None
        rows = heads.get(name.removesuffix(".weight").rpartition(".")[2])
        if rows:
            out, inside = value.shape
            value = value.reshape(rows, 2, out // rows // 2, inside).swapaxes(1, 2).reshape(out, inside)
        writer.add_tensor(name, value.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.fixture
def llama_cpp(base: Path) -> Probabilities:
    """log p of every word after the prompt, by llama.cpp with an adapter or without."""
    engine = pytest.importorskip("xllamacpp", reason="xllamacpp is not installed")

    def ask(adapter: Path | None) -> torch.Tensor:
        parameters = engine.CommonParams()
        parameters.model.path = str(base / "base.gguf")
        parameters.n_ctx, parameters.n_gpu_layers = 128, 0
        parameters.cpuparams.n_threads, parameters.warmup = 1, False
        parameters.cache_type_k = parameters.cache_type_v = engine.ggml_type.GGML_TYPE_F32
        parameters.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if adapter is not None:
            entry = engine.CommonAdapterLoraInfo()
            entry.path, entry.scale = str(adapter), 1.0
            parameters.lora_adapters = [entry]
        request = {"prompt": list(PROMPT), "n_predict": 1, "temperature": 0, "n_probs": WORDS}
        answer = engine.Server(parameters).handle_completions(request)
        (first, *_) = answer["choices"][0]["logprobs"]["content"]
        values = {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}
        return torch.tensor([values[word] for word in range(WORDS)], dtype=torch.float64)

    return ask


def peft(folder: Path | None) -> torch.Tensor:
    llama = model() if folder is None else PeftModel.from_pretrained(model(), folder)
    with torch.no_grad():
        return torch.as_tensor(llama(torch.tensor([PROMPT])).logits[0, -1].double().log_softmax(-1))


def rms(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).square().mean().sqrt())


@pytest.mark.parametrize(
    ("targets", "settings"),
    [
        (TARGETS, {"lora_alpha": 7}),
        (("q_proj",), {"use_rslora": True}),
        (("k_proj", "down_proj"), {"alpha_pattern": {"k_proj": 20}}),
        (("lm_head", "v_proj"), {}),
        (("embed_tokens", "o_proj"), {}),
    ],
)
def test_llama_cpp_applies_the_file_as_peft_applies_the_folder(
    base: Path, llama_cpp: Probabilities, tmp_path: Path, targets: tuple[str, ...], settings: dict[str, Any]
) -> None:
    ranks = {"model.layers.1.self_attn.q_proj": 3} if "q_proj" in targets else {}
    member = write(tmp_path / "a", model(), 3, targets=targets, ranks=ranks, size=0.1, **settings)
    rank = write_gguf(member, tmp_path / "a.gguf", base=str(base))
    floor = rms(llama_cpp(None), peft(None))
    assert rank == 8
    assert floor < 1e-3
    assert rms(peft(member.folder), peft(None)) > 50 * floor
    assert rms(llama_cpp(tmp_path / "a.gguf"), peft(member.folder)) < 2 * floor + 1e-4


def test_a_merge_of_unlike_members_is_the_same_in_llama_cpp(
    base: Path, llama_cpp: Probabilities, tmp_path: Path
) -> None:
    folders = [
        write(tmp_path / f"m{rank}", model(), rank, rank=rank, targets=targets, size=0.1).folder
        for rank, targets in ((2, TARGETS), (5, ("q_proj", "v_proj")), (8, ("down_proj",)))
    ]
    floor = rms(llama_cpp(None), peft(None))
    for mixed in (True, False):
        out = tmp_path / f"mixed-{mixed}"
        merged = loradex.merge(folders, "sum", out=out, mixed_ranks=mixed, base=str(base), form="gguf")
        assert merged.gguf == out / "adapter.gguf"
        assert rms(llama_cpp(merged.gguf), peft(merged.folder)) < 2 * floor + 1e-4
        assert "ADAPTER ./adapter.gguf" in (out / "Modelfile").read_text()


def test_the_keys_of_the_file(base: Path, tmp_path: Path) -> None:
    member = write(tmp_path / "a", model(), 1, targets=("v_proj",), lora_alpha=3)
    write_gguf(member, tmp_path / "a.gguf", base=str(base), dtype="float16")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    keys = {name: field.contents() for name, field in reader.fields.items()}
    assert (keys["general.type"], keys["general.architecture"]) == ("adapter", "llama")
    assert (keys["adapter.type"], keys["adapter.lora.alpha"]) == ("lora", 8.0)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert set(tensors) == {f"blk.{layer}.attn_v.weight.lora_{side}" for layer in (0, 1) for side in "ab"}
    assert tensors["blk.0.attn_v.weight.lora_a"].shape == (8, 64)
    assert tensors["blk.0.attn_v.weight.lora_b"].shape == (32, 8)
    assert not tensors["blk.0.attn_v.weight.lora_a"][4:].any()


def test_the_base_is_found_by_its_name_in_the_table() -> None:
    found = gguf_base("meta-llama/Llama-3.1-8B-Instruct")
    assert (found.model_type, found.heads, found.key_value_heads, found.layers) == ("llama", 32, 8, 32)
    assert gguf_base("HuggingFaceTB/SmolLM2-135M-Instruct").heads == 9
    assert gguf_base("Qwen/Qwen3-8B").model_type == "qwen3"


@pytest.mark.parametrize("config", [{"model_type": "mamba"}, {"model_type": "llama"}, [], {"model_type": 3}])
def test_a_base_that_is_not_known_is_one_sentence(tmp_path: Path, config: object) -> None:
    with pytest.raises(UsageError, match="give the folder of the base"):
        gguf_base("someone/unknown")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"is not the configuration of a decoder|not for 3"):
        gguf_base(str(tmp_path))


def test_an_architecture_that_llama_cpp_converts_itself_is_named(tmp_path: Path) -> None:
    config = {"model_type": "falcon", "num_attention_heads": 4, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"not for falcon; use convert_lora_to_gguf.py"):
        gguf_base(str(tmp_path))


def test_values_that_the_type_cannot_hold_are_refused(base: Path, tmp_path: Path) -> None:
    member = write(tmp_path / "a", model(), 1, targets=("v_proj",), lora_alpha=4_000_000, size=100.0)
    with pytest.raises(MergeError, match="is not finite in float16"):
        write_gguf(member, tmp_path / "a.gguf", base=str(base), dtype="float16")
    assert math.isclose(write_gguf(member, tmp_path / "b.gguf", base=str(base)), 8)


def test_a_merge_that_a_gguf_file_cannot_hold_leaves_nothing(base: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", model(), 1).folder
    with pytest.raises(UsageError, match="heads and layers of acme/unknown are not known"):
        loradex.merge([folder], "sum", out=tmp_path / "out", form="gguf", base="acme/unknown")
    with pytest.raises(UsageError, match="`form` is 'onnx'"):
        loradex.merge([folder], "sum", out=tmp_path / "out", form="onnx")
    assert not (tmp_path / "out").exists()
    llama = model()
    llama.save_pretrained(tmp_path / "base")
    report = loradex.merge(
        [folder], "sum", out=tmp_path / "out", form="gguf", apply_to=tmp_path / "base", rank=8
    )
    assert report.gguf is None
    assert f"python convert_hf_to_gguf.py {tmp_path / 'out'} --outfile" in report.notes[-1]


def test_a_head_that_is_the_embedding_is_refused(base: Path, tmp_path: Path) -> None:
    tied = tiny(vocab_size=WORDS, hidden_size=64, intermediate_size=96, tie_word_embeddings=True)
    tied.config.save_pretrained(tmp_path / "tied")
    member = write(tmp_path / "a", tied, 1, targets=("v_proj", "lm_head"))
    embedding = write(tmp_path / "e", tied, 1, targets=("v_proj", "embed_tokens"))
    for layer, adapter in (("lm_head", member), ("embed_tokens", embedding)):
        with pytest.raises(MergeError, match=f"are one, and llama.cpp does not load factors of .*{layer}"):
            write_gguf(adapter, tmp_path / "a.gguf", base=str(tmp_path / "tied"))
    with pytest.raises(UsageError, match="give the folder of the base model"):
        write_gguf(member, tmp_path / "a.gguf", base="HuggingFaceTB/SmolLM2-135M-Instruct")
    assert not (tmp_path / "a.gguf").exists()
    write_gguf(member, tmp_path / "a.gguf", base=str(base))


def test_what_a_gguf_file_cannot_hold_is_refused_before_the_merge(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read of the members' weights, and the price of such a merge is not stated either."""
    tied = tiny(vocab_size=WORDS, hidden_size=64, intermediate_size=96, tie_word_embeddings=True)
    tied.config.save_pretrained(tmp_path / "tied")
    head = write(tmp_path / "head", tied, 1, targets=("v_proj", "lm_head")).folder
    odd = write(tmp_path / "odd", model(), 1, targets=("v_proj",)).folder
    tensors = load_file(odd / "adapter_model.safetensors")
    renamed = {name.replace("v_proj", "unheard_of"): values.clone() for name, values in tensors.items()}
    save_file(tensors | renamed, odd / "adapter_model.safetensors")

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the merge began")

    monkeypatch.setattr("merging.static.merger.join_factors", read)
    monkeypatch.setattr("merging.static.merger.read_stack", read)
    cases = [
        (head, str(tmp_path / "tied"), "the embedding of its base model are one"),
        (head, "HuggingFaceTB/SmolLM2-135M-Instruct", "give the folder of the base|is not an adapter of"),
        (odd, str(base), "has no module model.layers.0.self_attn.unheard_of"),
    ]
    for folder, of, message in cases:
        request = loradex.MergeRequest([folder], "sum", form="gguf", base=of)
        with pytest.raises(LoradexError, match=message):
            request.run(tmp_path / "out")
        with pytest.raises(LoradexError, match=message):
            request.cost()


def test_modules_are_checked_by_their_shapes_alone(tmp_path: Path, base: Path) -> None:
    member = write(tmp_path / "a", model(), 1, targets=("q_proj", "v_proj"))
    union = shapes([member])
    layout = gguf_layout(union, str(base), "a")
    assert layout.names["model.layers.1.self_attn.q_proj"] == "blk.1.attn_q"
    assert [layout.heads[f"model.layers.1.self_attn.{short}"] for short in ("q_proj", "v_proj")] == [4, 0]
    with pytest.raises(MergeError, match=r"llama.cpp has no name for model.layers.9.self_attn.other"):
        gguf_layout([replace(union[0], name="model.layers.9.self_attn.other")], str(base), "a")
    with pytest.raises(
        MergeError, match=r"60 rows of model.layers.0.self_attn.q_proj are not those of 4 heads"
    ):
        gguf_layout([replace(union[0], out_features=60)], str(base), "a")


def test_a_base_is_known_in_any_spelling(tmp_path: Path) -> None:
    """As for the merge itself."""
    member = wide_member(tmp_path / "a")
    for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "huggingfacetb/smollm2-135m-instruct"):
        loradex.merge([member], "sum", base=name, form="gguf", out=tmp_path / "out", overwrite=True)
        assert (tmp_path / "out" / "adapter.gguf").is_file()


def wide_member(folder: Path) -> Path:
    """Factors of one module of SmolLM2-135M."""
    write(folder, model(), 1, targets=("v_proj",))
    factor = "base_model.model.model.layers.0.self_attn.v_proj.lora_"
    tensors = {f"{factor}A.weight": torch.ones(4, 576), f"{factor}B.weight": torch.ones(192, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
