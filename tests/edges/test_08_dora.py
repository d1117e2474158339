"""DoRA is refused by each command with a sentence that is true of it (row 08)."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.errors import UsageError
from merging.static import apply_to
from tests.cli.conftest import Program
from tests.edges.rows import row
from tests.merging.adapters import adapter
from tests.merging.tiny import write_task
from tests.shared_data import shared


@pytest.mark.parametrize("stored", [False, True])
def test_no_command_passes_it_off_as_plain_lora(run: Program, tmp_path: Path, stored: bool) -> None:
    """By its setting or by its magnitudes: PEFT starts from the norms of the base where none are stored."""
    import torch
    from safetensors.torch import load_file, save_file

    folder, base, out = adapter(tmp_path / "dora", use_dora=True), tmp_path / "base", tmp_path / "out"
    if stored:
        path = adapter(tmp_path / "stored") / "adapter_model.safetensors"
        magnitude = {"base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(12)}
        save_file({**load_file(path), **magnitude}, path)
        folder = path.parent
    base.mkdir()
    task = write_task(tmp_path / "task", [("a0", "no"), ("b1", "yes")])
    merge = ("merge", str(folder), "--method", "average", "-o", str(out))
    evaluate = ("evaluate", "--base", str(base), "--adapter", str(folder), "--task", str(task))
    for words, sentence in (
        (merge, "cannot be merged"),
        ((*merge, "--apply-to", str(base)), "cannot be merged or added to a base"),
        (evaluate, "cannot be evaluated"),
    ):
        result = run(*words)
        assert result.exit_code != 0
        assert f"{sentence}: DoRA rescales the base weights" in " ".join(result.stderr.split()), result.stderr
    with pytest.raises(UsageError, match="does not contain a base model in safetensors"):
        apply_to(base, folder, out)
    assert not out.exists()


@shared
def test_the_row(run: Program, tmp_path: Path) -> None:
    folders = [str(row("08-dora") / name) for name in ("plain", "dora")]
    refused = run("merge", *folders, "--method", "average", "-o", str(tmp_path / "out"))
    assert refused.exit_code == 1
    assert "dora cannot be merged: DoRA rescales the base weights" in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()
