"""Layers that were saved whole are left out by name, and the rest is the LoRA that it is (row 07)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, relative_error, row
from tests.shared_data import shared


@shared
@pytest.mark.parametrize("name", ["trained-head", "saved-embeddings"])
def test_what_is_left_of_them_is_the_plain_adapter(run: Program, tmp_path: Path, name: str) -> None:
    folder, out = row("07-saved-beside"), tmp_path / "out"
    words = ("merge", str(folder / name), "--method", "average", "--dtype", "float32", "-o", str(out))
    refused = run(*words)
    assert refused.exit_code != 0
    assert "--without embed_tokens,lm_head leaves out these layers" in " ".join(refused.stderr.split())
    assert not out.exists()
    result = run(*words, "--without", "lm_head,embed_tokens")
    assert result.exit_code == 0, result.output
    assert "lm_head.weight and 1 more" in result.stdout
    assert peft_norm(out) == pytest.approx(1.6199, abs=1e-4)
    assert relative_error(out, folder / "plain") < 1e-6
