"""An update of an embedding that is the output head too is not folded: the base's class says what is tied."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.edges.rows import copy_row, row
from tests.shared_data import shared


@shared
def test_a_base_tied_by_its_class_is_refused_before_anything_is_written(run: Program, tmp_path: Path) -> None:
    place = row("19-tied-base")
    words = (
        "merge",
        str(place / "embedding-lora"),
        "--method",
        "sum",
        "--apply-to",
        str(place / "base-gpt2"),
    )
    refused = run(*words, "-o", str(tmp_path / "out"))
    assert refused.exit_code == 1
    document = " ".join(refused.stderr.split())
    assert "transformer.wte of the base shares its weights with lm_head (tied embeddings)" in document
    assert "--without wte" in document
    assert not list(tmp_path.glob("out*"))
    # What stands beside the embedding can be folded.
    done = run(*words, "--without", "wte", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output


@shared
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_untied_base_answers_as_the_adapter_over_it(run: Program, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import GPT2LMHeadModel

    place = copy_row("19-tied-base", tmp_path / "row")
    base = place / "base-gpt2"
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tensors = load_file(base / "model.safetensors")
    head = {"lm_head.weight": tensors[next(n for n in tensors if n.endswith("wte.weight"))].clone()}
    save_file({**tensors, **head}, base / "model.safetensors", {"format": "pt"})
    adapter = place / "embedding-lora"
    words = ("merge", str(adapter), "--method", "sum", "--dtype", "float32", "--apply-to", str(base))
    done = run(*words, "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    tokens = torch.arange(1, 17)[None]
    with torch.no_grad():
        folded = GPT2LMHeadModel.from_pretrained(tmp_path / "out")(tokens).logits
        plain = GPT2LMHeadModel.from_pretrained(base)(tokens).logits
        neighbour = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), str(adapter))(
            tokens
        ).logits
    assert float((folded - neighbour).norm() / (neighbour - plain).norm()) < 1e-4
    shutil.rmtree(tmp_path / "out")
