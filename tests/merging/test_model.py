"""A base model comes from a folder, from a kept conversion, or not at all and with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from catalog.errors import MemoryLimitError, NotFoundError, UsageError
from merging.model import base as base_module
from merging.model.base import checkpoint, first_look, keep_base, kept_name, load_base
from tests.merging.tiny import save_base, tiny_base


def test_a_saved_model_gives_the_same_logits(tmp_path: Path) -> None:
    base = tiny_base(3)
    folder = save_base(base, tmp_path / "bases" / kept_name("owner/tiny"))
    tokens = torch.tensor([[1, 2, 3, 4]])
    bases = tmp_path / "bases"
    for name, remaining in ((str(folder), None), (str(folder), bases), ("owner/tiny", bases)):
        again = load_base(name, bases=remaining)
        assert again.name == name
        assert (again.limit, again.dtype, str(again.device)) == (512, torch.float32, "cpu")
        assert torch.equal(again.model(tokens).logits, base.model(tokens).logits)
        assert not any(parameter.requires_grad for parameter in again.model.parameters())


def test_another_data_type_is_taken(tmp_path: Path) -> None:
    folder = save_base(tiny_base(), tmp_path / "tiny")
    assert load_base(str(folder), dtype="bfloat16").dtype == torch.bfloat16


def test_a_model_is_spread_over_the_devices_that_there_are(tmp_path: Path) -> None:
    base = load_base(str(save_base(tiny_base(), tmp_path / "tiny")), device="auto")
    assert base.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not base.quantised


def test_weights_are_read_straight_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[dict[str, Any]] = []

    def read(_name: str, _place: str, _revision: str | None, chosen: dict[str, Any]) -> Any:
        options.append(chosen)
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(base_module, "_load", read)
    monkeypatch.setattr(base_module, "_find_device", lambda _: torch.device("cuda", 0))
    for device, placement in (("cuda:0", {"": torch.device("cuda", 0)}), ("auto", "auto")):
        with pytest.raises(MemoryLimitError, match="does not fit into memory"):
            load_base("owner/large", device=device)
        assert options[-1] == {"dtype": torch.bfloat16, "device_map": placement}
    monkeypatch.setattr(base_module, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="requires the extra quantise"):
        load_base("owner/large", device="cuda", dtype="8bit")


def test_a_data_type_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    folder = str(save_base(tiny_base(), tmp_path / "tiny"))
    with pytest.raises(UsageError, match="4bit requires a CUDA device"):
        load_base(folder, dtype="4bit")
    with pytest.raises(UsageError, match="must be one of bfloat16, float16, float32, 8bit, 4bit, not int8"):
        load_base(folder, dtype="int8")


def test_what_is_no_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_base(tiny_base(), tmp_path / "tiny")
    with pytest.raises(UsageError, match="device gpu9 is not available"):
        load_base(str(folder), device="gpu9")
    with pytest.raises(UsageError, match="GGUF file; convert it once"):
        load_base("model.gguf")
    (folder / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="cannot be loaded"):
        load_base(str(folder))


@pytest.mark.parametrize("load", [load_base, first_look])
@pytest.mark.parametrize("name", ["nope", "no/base", "no base"])
def test_a_base_that_is_nowhere_is_one_sentence_without_pauses(
    load: Callable[[str], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", Mock(side_effect=AssertionError("a request is repeated")))
    sentence = (
        f"^The base model {name} is neither a folder with config.json nor found on the Hub; check [^\\n]+$"
    )
    with pytest.raises(NotFoundError, match=sentence):
        load(name)


@pytest.mark.parametrize("name", ["a/b/c", "", "../x", "a/", "..", "a\\b"])
def test_a_name_that_is_no_id_makes_no_folder(name: str) -> None:
    with pytest.raises(UsageError, match="neither a folder with a model nor an id"):
        kept_name(name)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint("owner/name", tmp_path) is None
    assert checkpoint("owner/name", None) is None


def test_a_file_that_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not one")
    with pytest.raises(UsageError, match="not a GGUF file of a Llama or Qwen2 model"):
        keep_base("owner/name", tmp_path / "x.gguf", tmp_path / "bases")
    assert not (tmp_path / "bases").exists()
    with pytest.raises(NotFoundError, match="does not exist; give a GGUF"):
        keep_base("owner/name", tmp_path / "y.gguf", tmp_path / "bases")
