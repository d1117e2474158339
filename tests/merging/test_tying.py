"""Tied embeddings as the model's class has them, by default or because its configuration says so."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from catalog.errors import UsageError
from merging.members import modules_sharing_weights

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
}
HEAD = ("lm_head",)


def base(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "module", "others"),
    [
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, "transformer.wte", HEAD),
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, "lm_head", ("transformer.wte",)),
        (
            {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "tie_word_embeddings": False},
            "lm_head",
            (),
        ),
        ({"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}, "transformer.wpe", ()),
        ({"model_type": "llama", **SMALL}, "lm_head", ()),
        ({"model_type": "llama", "tie_word_embeddings": True, **SMALL}, "model.embed_tokens", HEAD),
        ({"model_type": "gemma2", **SMALL}, "model.embed_tokens", HEAD),
        ({"model_type": "qwen2", **SMALL}, "model.embed_tokens", ()),
        ({"model_type": "qwen2", "tie_word_embeddings": True, **SMALL}, "lm_head", ("model.embed_tokens",)),
        # Nested: the flag of the text model is the class's own default.
        (
            {
                "model_type": "gemma3",
                "text_config": SMALL,
                "architectures": ["Gemma3ForConditionalGeneration"],
            },
            "language_model.model.embed_tokens",
            HEAD,
        ),
        (
            {
                "model_type": "t5",
                "d_model": 16,
                "num_layers": 1,
                "architectures": ["T5ForConditionalGeneration"],
            },
            "shared",
            ("encoder.embed_tokens", "decoder.embed_tokens", "lm_head"),
        ),
    ],
)
def test_the_class_decides(
    config: dict[str, Any], module: str, others: tuple[str, ...], tmp_path: Path
) -> None:
    assert modules_sharing_weights(base(tmp_path, **config), module) == others


@pytest.mark.parametrize(
    ("config", "others"),
    [
        ({"tie_word_embeddings": True}, ("another layer",)),
        ({"tie_word_embeddings": False}, ()),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, ("another layer",)),
        ({"text_config": {"tie_word_embeddings": True}}, ("another layer",)),
    ],
)
def test_of_a_model_that_nobody_knows_the_flags_decide(
    config: dict[str, Any], others: tuple[str, ...], tmp_path: Path
) -> None:
    assert (
        modules_sharing_weights(base(tmp_path, model_type="of-tomorrow", **config), "model.embed_tokens")
        == others
    )


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "of-tomorrow"},
        {},
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "gpt2", "n_head": 0},
        {"model_type": ["gpt2"], "architectures": [3]},
    ],
)
def test_where_nothing_tells_it_is_one_sentence(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not known.*loradex\[eval\]"):
        modules_sharing_weights(base(tmp_path, **config), "model.embed_tokens")


def test_without_transformers_the_flags_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *remaining: Any) -> Any:
        if name == "transformers":
            raise ImportError(name)
        return real(name, *remaining)

    monkeypatch.setattr(builtins, "__import__", refuse)
    gpt2 = base(tmp_path, model_type="gpt2")
    with pytest.raises(UsageError, match="transformers does not know the model or is not installed"):
        modules_sharing_weights(gpt2, "transformer.wte")
    assert (
        modules_sharing_weights(
            base(tmp_path, model_type="gpt2", tie_word_embeddings=False), "transformer.wte"
        )
        == ()
    )
