"""Row 22: a GGUF file that is cut off, lies or holds another model is one sentence, and nothing is kept."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gguf
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from merging.model import load_base
from merging.model.gguf import GgufError, check_architecture
from tests.cli.conftest import Program
from tests.edges.gguf_files import BLOCKS, HEADS, INNER, ROPE_BASE, WIDTH, WORDS, shapes, write_gguf
from tests.edges.rows import row
from tests.shared_data import shared


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that can be kept."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf").read_bytes()


@shared
def test_the_row(run: Program, data: Path) -> None:
    files = sorted(row("22-cut-gguf").glob("*.gguf"))
    assert len(files) == 3
    for file in files:
        refused = run("base", "keep", "made/x", str(file))
        assert (refused.exit_code, refused.stdout) == (2, "")
        cut = f"it is truncated after {file.stat().st_size:,} bytes"
        assert refused.stderr == f"Error: {file} is not a GGUF file of a Llama or Qwen2 model: {cut}.\n"
        assert not list(data.rglob("*"))


def test_a_whole_file_is_parsed_once_and_kept(
    run: Program, data: Path, tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {name: Mock(wraps=getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, part in parts.items():
        monkeypatch.setattr(gguf, name, part)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(whole)
    result = run("base", "keep", "made/x", str(file))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (data / "bases" / "made--x" / "model.safetensors").is_file()
    assert [part.call_count for part in parts.values()] == [1, 1]
    assert all(getattr(gguf, name) is part for name, part in parts.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_kept_model_of_qwen2_is_the_one_in_the_file(
    run: Program, data: Path, tmp_path: Path, tied: bool
) -> None:
    """Its logits are those of a model with the file's tensors, biases too; its tokenizer reads merges."""
    output = {} if tied else {"output.weight": (len(WORDS), WIDTH)}
    file = write_gguf(tmp_path / "tiny.gguf", kind="qwen2", tensors=shapes("qwen2") | output)
    assert run("base", "keep", "made/x", str(file)).exit_code == 0
    kept = load_base("made/x", bases=data / "bases")
    assert type(kept.model) is Qwen2ForCausalLM
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        rope_theta=ROPE_BASE,
        tie_word_embeddings=tied,
    )
    own = Qwen2ForCausalLM(config).eval()
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    places = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for number in range(BLOCKS):
        of_block = {
            "attn_norm": "input_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "attn_output": "self_attn.o_proj",
            **{f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"},
            **{f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        }
        places |= {f"blk.{number}.{name}": f"model.layers.{number}.{new}" for name, new in of_block.items()}
    named = [(*name.rsplit(".", 1), values) for name, values in tensors.items()]
    values = {f"{places[place]}.{part}": values for place, part, values in named}
    assert own.load_state_dict(values, strict=False) == (["lm_head.weight"] if tied else [], [])
    tokens = torch.tensor([[0, 5, 2, 6, 3]])
    with torch.no_grad():
        torch.testing.assert_close(kept.model(tokens).logits, own(tokens).logits)
    assert kept.tokenizer("abcde", add_special_tokens=False)["input_ids"] == [5, 6, 4]
    assert kept.tokenizer("ab<|im_end|>c", add_special_tokens=False)["input_ids"] == [5, 7, 2]


def test_what_only_the_library_can_tell_is_one_sentence(run: Program, data: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "turned.gguf", values={"rope.dimension_count": 0})
    refused = run("base", "keep", "made/x", str(file))
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 2
    assert not list((data / "bases").iterdir())


def changed(**tensors: tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    result: dict[str, Any] = {
        **shapes(),
        **{f"{name.replace('__', '.')}.weight": shape for name, shape in tensors.items()},
    }
    return {name: shape for name, shape in result.items() if shape is not None}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "qwen3"}, "its architecture is 'qwen3', not 'llama' or 'qwen2'"),
        (
            {"kind": "qwen2", "tensors": shapes(), "values": {"attention.head_count_kv": HEADS}},
            "it does not contain the tensor blk.0.attn_q.bias",
        ),
        (
            {"tensors": shapes("qwen2"), "values": {"attention.head_count_kv": 1}},
            "it has a tensor blk.0.attn_q.bias",
        ),
        ({"kind": "qwen2", "tokenizer": "llama"}, "its tokenizer.ggml.model is 'llama', not 'gpt2'"),
        ({"tokenizer": "bert"}, "its tokenizer.ggml.model is 'bert', not 'llama' or 'gpt2'"),
        ({"kind": "qwen2", "values": {"attention.head_count_kv": 0}}, "qwen2.attention.head_count_kv"),
        ({"kind": "qwen2", "values": {"rope.scale_linear": 2}}, "are scaled (qwen2.rope.scale_linear)"),
        ({"words": None}, "it does not contain tokenizer.ggml.tokens"),
        ({"words": WORDS[:5]}, "token_embd.weight has the shape"),
        ({"values": {"block_count": 1_000_000_000}}, "too few for 1,000,000,000 blocks"),
        ({"values": {"block_count": 3}}, "it does not contain the tensor blk.2.attn_norm.weight"),
        ({"values": {"block_count": 1}}, "it has a tensor blk.1"),
        ({"values": {"block_count": 0}}, "it does not contain llama.block_count"),
        ({"values": {"feed_forward_length": 2**31}}, "not [8, 2147483648]"),
        ({"values": {"embedding_length": 16}}, "has the shape"),
        ({"values": {"attention.head_count": 3}}, "a width of 8 is not divisible by 3 heads"),
        ({"values": {"attention.head_count_kv": 0}}, "llama.attention.head_count_kv"),
        ({"tensors": changed(blk__1__ffn_up=None)}, "it does not contain the tensor blk.1.ffn_up.weight"),
        ({"tensors": changed(blk__1__attn_q=(8, 4))}, "blk.1.attn_q.weight has the shape [4, 8]"),
        ({"tensors": changed(blk__1__attn_q_norm=(8,))}, "it has a tensor blk.1.attn_q_norm.weight"),
        ({"tensors": {}}, "it claims 0 tensors"),
        ({"tensors": shapes() | {"rope_freqs.weight": (2,)}}, "its positions are scaled (rope_freqs.weight)"),
        ({"values": {"rope.scale_linear": 2}}, "its positions are scaled (llama.rope.scale_linear)"),
        # A factor without a type is a linear one.
        ({"values": {"rope.scaling.factor": 4}}, "its positions are scaled (llama.rope.scaling.factor)"),
        ({"kind": "qwen2", "texts": {"rope.scaling.type": "yarn"}}, "(qwen2.rope.scaling.type)"),
    ],
)
def test_another_model_is_told_apart(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(GgufError) as refused:
        check_architecture(write_gguf(tmp_path / "other.gguf", **options))
    assert words in str(refused.value)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("value", [0, 1])
def test_a_factor_that_scales_nothing_is_kept(kind: str, value: int, tmp_path: Path) -> None:
    values = {"rope.scaling.factor": value, "rope.scale_linear": value}
    file = write_gguf(tmp_path / "whole.gguf", kind=kind, values=values, texts={"rope.scaling.type": "none"})
    assert check_architecture(file) == kind


def put(place: int, code: str, *values: int) -> Callable[[bytes], bytes]:
    """Writes numbers at a place of the file."""

    def change(data: bytes) -> bytes:
        new = struct.pack(f"<{code}", *values)
        return data[:place] + new + data[place + len(new) :]

    return change


def put_behind(text: bytes, code: str, *values: int) -> Callable[[bytes], bytes]:
    """Writes numbers behind a text of the file."""
    return lambda data: put(data.index(text) + len(text), code, *values)(data)


EMBEDDINGS = b"token_embd.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(0, "4B", *b"GGML"), "does not begin with GGUF"),
        (put(4, "I", 1), "its version is 1"),
        (put(4, "I", 4), "its version is 4"),
        (put(4, "4B", 0, 0, 0, 3), "it is big-endian"),
        (put(8, "Q", 2**60), "it claims 1,152,921,504,606,846,976 tensors"),
        (put(16, "Q", 2**60), "values, which no model has"),
        (put(16, "Q", 60_000), "it"),
        (put(24, "Q", 2**60), "it contains a name of"),
        (put_behind(b"general.architecture", "IQ", 8, 2**40), "it is truncated"),
        (put_behind(b"general.architecture", "I", 77), "the unknown type 77"),
        (put_behind(b"tokenizer.ggml.tokens", "IIQ", 9, 8, 2**40), "claims 1,099,511,627,776 items"),
        (put_behind(b"tokenizer.ggml.tokens", "IIQ", 9, 9, 1), "items of the unknown type 9"),
        (put_behind(b"tokenizer.ggml.scores", "IIQ", 9, 12, 2**20), "it is truncated"),
        (put_behind(EMBEDDINGS, "I", 2**31), "2,147,483,648 dimensions"),
        (put_behind(EMBEDDINGS, "IQQ", 2, 8, 2**40), "it is truncated"),
        (put_behind(EMBEDDINGS, "IQQ", 2, 0, 8), "impossible shape [0, 8]"),
        (put_behind(EMBEDDINGS, "IQQI", 2, 8, 8, 99), "the unknown type 99"),
        (put_behind(EMBEDDINGS, "IQQI", 2, 8, 8, 2), "impossible shape [8, 8]"),
        (put_behind(EMBEDDINGS, "IQQIQ", 2, 8, 8, 0, 2**50), "it is truncated: it requires"),
        (lambda data: data[:-1], "it is truncated"),
        (lambda data: data.replace(b"blk.1.ffn_up", b"blk.0.ffn_up"), "is repeated"),
        (lambda data: b"", "it is truncated after 0 bytes"),
    ],
)
def test_a_header_that_lies_is_found_out(
    change: Callable[[bytes], bytes], words: str, whole: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "lies.gguf"
    file.write_bytes(change(whole))
    with pytest.raises(GgufError) as refused:
        check_architecture(file)
    assert words in str(refused.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_any_change_is_read_or_refused(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    changed = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place, byte in data.draw(
        st.dictionaries(st.integers(0, 2000), st.integers(0, 255), max_size=4)
    ).items():
        if place < len(changed):
            changed[place] = byte
    file = tmp_path / "any.gguf"
    file.write_bytes(changed)
    if changed == whole:
        check_architecture(file)
    elif len(changed) < len(whole) - 32:
        with pytest.raises(GgufError):
            check_architecture(file)
