"""What PEFT loads is what is said: names of tensors and configurations that PEFT does not take as they are.

Rows 02 (wrapped names), 03 (dead prefixes), 11 (names that transformers moved) and 13 (configurations that
PEFT refuses) of the table; siblings are made here by PEFT on a tiny Llama and rewritten.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from catalog.adapters import CONFIG_NAME, WEIGHTS_NAME, load_problems, make_loadable
from catalog.pools import EXPORT_RECORD, read_manifest, read_record
from tests.cli.conftest import Program
from tests.edges.rows import peft_norm, row
from tests.hubs import make_repo
from tests.localhub import FaultHub
from tests.shared_data import shared

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
NORM = 1.6199
CONFIGS = ("bias-null", "dropout-null", "byte-order-mark")
WRAPPED = ("fsdp-wrapped", "orig-mod-inside", "extra-model")
PREFIX = "base_model.model."
TARGETS = ["q_proj", "v_proj", "down_proj"]

# What programs make of PEFT's names.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "no-prefix": lambda name: name.removeprefix(PREFIX),
    "layers-only": lambda name: name.removeprefix(f"{PREFIX}model."),
    "model-lost": lambda name: name.replace("model.model.model.", "model.model."),
    "model-twice": lambda name: name.replace(PREFIX, f"{PREFIX}model."),
    "prefix-twice": lambda name: f"{PREFIX}{name}",
    "module-outside": lambda name: f"module.{name}",
    "module-inside": lambda name: name.replace(PREFIX, f"{PREFIX}module."),
    "orig-mod-outside": lambda name: f"_orig_mod.{name}",
    "orig-mod-inside": lambda name: name.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "fsdp": lambda name: name.replace(".mlp", "._fsdp_wrapped_module.mlp").replace(
        ".self", "._fsdp_wrapped_module.self"
    ),
    "fsdp-factor": lambda name: name.replace(".weight", "._fsdp_wrapped_module.weight"),
    "checkpoint": lambda name: name.replace("0.", "0._checkpoint_wrapped_module.").replace(
        "1.", "1._orig_mod."
    ),
    "outside": lambda name: f"language_model.{name}",
    "lower-case": lambda name: name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"),
    "down-up": lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "adapter-name": lambda name: name.replace(".weight", ".tuned.weight"),
}


def tiny() -> LlamaForCausalLM:
    """The same small model each time."""
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**size, num_attention_heads=4, num_key_value_heads=2))


def peft_update(folder: Path) -> dict[str, torch.Tensor]:
    """What plain PEFT adds to the weights of the tiny model."""
    before = tiny().state_dict()
    after = PeftModel.from_pretrained(tiny(), str(folder)).merge_and_unload().state_dict()
    return {name: after[name].double() - value.double() for name, value in before.items()}


def norm(update: dict[str, torch.Tensor]) -> float:
    return sum(float(value.square().sum()) for value in update.values()) ** 0.5


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny model, saved by PEFT."""
    folder = tmp_path_factory.mktemp("plain")
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = get_peft_model(tiny(), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(std=0.2)
    model.peft_config["default"].base_model_name_or_path = "made/tiny"
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def respell(plain: Path, to: Path, spell: Callable[[str], str], **over: Any) -> Path:
    """The adapter with other names of tensors, and fields of the configuration."""
    to.mkdir(parents=True)
    tensors = load_file(plain / WEIGHTS_NAME)
    save_file({spell(name): value for name, value in tensors.items()}, to / WEIGHTS_NAME, {"format": "pt"})
    config = json.loads((plain / CONFIG_NAME).read_bytes())
    (to / CONFIG_NAME).write_text(json.dumps(config | over, indent=2, sort_keys=True))
    return to


def crawled(run: Program, folders: dict[str, Path], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serves adapters as made/NAME and crawls them, weights kept."""
    for name, folder in folders.items():
        make_repo(root, f"made/{name}", {file.name: file.read_bytes() for file in folder.iterdir()})
    with FaultHub(root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        result = run("crawl", "--any-base", "--weights", "keep")
    assert result.exit_code == 0, result.output


def ok(run: Program, *words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def export_all(run: Program, tmp_path: Path, *words: str) -> dict[str, Path]:
    """All adapters of the catalog as a pool, exported: folder by name."""
    ok(run, "select", "all", "--by", "random", "-k", str(len(ok(run, "adapters"))))
    [folder] = ok(run, "pool", "export", "all", "--weights", "--to", str(tmp_path / "out"), *words)["folders"]
    return {place.name: place for place in (Path(folder) / "adapters").iterdir()}


def test_every_spelling_is_the_plain_adapter(
    run: Program, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"plain": plain}
    for name, spell in SPELLINGS.items():
        folders[name] = respell(plain, tmp_path / "made" / name, spell)
        assert norm(peft_update(folders[name])) == 0.0, name
    crawled(run, folders, tmp_path / "hub", monkeypatch)
    rows = ok(run, "adapters")
    assert {row["verdict"] for row in rows} == {"accepted"}
    expected = norm(peft_update(plain))
    assert [row["norm"] for row in rows] == pytest.approx([expected] * len(folders), rel=1e-5)
    for name in SPELLINGS:
        reasons = ok(run, "show", f"made/{name}")["details"]
        first = next(iter(load_file(folders[name] / WEIGHTS_NAME)))
        assert "12 tensors" in reasons["key_spelling"]
        assert first.split(".")[0] in reasons["key_spelling"]
    groups = ok(run, "duplicates")
    assert len(groups) == 1
    assert len(groups[0]["members"]) == len(folders)
    places = export_all(run, tmp_path)
    assert len(places) == len(folders)
    for place in places.values():
        assert norm(peft_update(place)) == pytest.approx(expected, rel=1e-5), place
        written, source = load_file(place / WEIGHTS_NAME), load_file(plain / WEIGHTS_NAME)
        assert written.keys() == source.keys()
        assert all(torch.equal(written[key], source[key]) for key in source)


def test_numbers_of_a_folder_say_what_peft_makes_of_it(run: Program, tmp_path: Path, plain: Path) -> None:
    wrapped = respell(plain, tmp_path / "wrapped", SPELLINGS["fsdp"])
    result = run("fingerprint", str(wrapped), str(plain), "--json")
    document = json.loads(result.stdout)
    assert [len(item["load_problems"]) for item in document] == [1, 0]
    assert document[0]["norm"] == pytest.approx(document[1]["norm"], rel=1e-6)
    assert "wrapped: PEFT finds none of its 12 factors" in " ".join(result.stderr.split())


def test_a_merge_of_plain_and_wrapped_is_that_of_the_plain_one(
    run: Program, tmp_path: Path, plain: Path
) -> None:
    wrapped = respell(plain, tmp_path / "wrapped", SPELLINGS["fsdp"])
    words = ("--method", "average", "--dtype", "float32", "-o", str(tmp_path / "out"))
    assert run("merge", str(plain), str(wrapped), *words).exit_code == 0
    got, expected = peft_update(tmp_path / "out"), peft_update(plain)
    gap = norm({name: got[name] - expected[name] for name in expected})
    assert gap < 1e-6 * norm(expected)


def insert_prefix(name: str) -> str:
    """A name as of a model of vision and text, on a base of text alone: only the base can tell."""
    return name.replace("model.model.layers", "model.model.language_model.layers")


def test_a_loaded_model_decides_what_names_mean(tmp_path: Path, plain: Path) -> None:
    from merging.live import LiveStack
    from merging.members import load_member

    tokens = torch.arange(12)[None]
    expected = PeftModel.from_pretrained(tiny(), str(plain)).eval()(tokens).logits
    for number, spell in enumerate((insert_prefix, SPELLINGS["layers-only"], SPELLINGS["fsdp"])):
        folder = respell(plain, tmp_path / str(number), spell)
        with LiveStack(tiny().eval(), [load_member(folder)]).attach() as live, torch.no_grad():
            assert torch.allclose(live.model(tokens).logits, expected, atol=1e-5)


def test_a_base_in_a_folder_decides_what_names_mean(run: Program, tmp_path: Path, plain: Path) -> None:
    base, model = tmp_path / "base", tmp_path / "model"
    tiny().save_pretrained(base)
    folder = respell(plain, tmp_path / "inserted", insert_prefix)
    words = ("--method", "sum", "--mixed-ranks", "--dtype", "float32", "--base", str(base))
    result = run("merge", str(folder), *words, "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert set(load_file(tmp_path / "out" / WEIGHTS_NAME)) == set(load_file(plain / WEIGHTS_NAME))
    assert norm(peft_update(tmp_path / "out")) == pytest.approx(norm(peft_update(plain)), rel=1e-6)
    result = run("merge", str(folder), *words[:-2], "-o", str(model), "--apply-to", str(base))
    assert result.exit_code == 0, result.output
    folded, expected = load_file(model / "model.safetensors"), peft_update(plain)
    gaps = {
        name: folded[name].double() - tiny().state_dict()[name].double() - expected[name] for name in folded
    }
    assert norm(gaps) < 1e-5 * norm(expected)
    odd = respell(plain, tmp_path / "odd", lambda name: name.replace("q_proj", "query"))
    result = run("merge", str(odd), *words, "-o", str(tmp_path / "never"))
    assert result.exit_code != 0
    assert "has no module model.layers.0.self_attn.query" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("over", "mends"),
    [
        pytest.param({"bias": None}, True, id="bias"),
        pytest.param({"lora_dropout": None}, True, id="dropout"),
        pytest.param({"rank_pattern": None, "alpha_pattern": None}, True, id="patterns"),
        pytest.param({"target_modules": None}, True, id="targets-null"),
        pytest.param({"target_modules": ["q_proj"]}, True, id="targets-too-few"),
        pytest.param({"target_modules": r".*self_attn\.(q|v)_proj"}, True, id="targets-pattern"),
        pytest.param({"layers_to_transform": [0]}, True, id="layers"),
        pytest.param({"exclude_modules": ["v_proj"]}, True, id="excluded"),
        pytest.param(
            {"target_modules": ["module.q_proj", "x.v_proj", "down_proj"]}, True, id="targets-wrapped"
        ),
        pytest.param({"task_type": "ANY"}, False, id="task"),
        pytest.param({"init_lora_weights": "mine"}, False, id="init"),
    ],
)
def test_configurations_are_mended_or_named(
    tmp_path: Path, plain: Path, over: dict[str, Any], mends: bool
) -> None:
    folder = respell(plain, tmp_path / "adapter", lambda name: name, **over)
    assert load_problems(folder)
    weights = (folder / WEIGHTS_NAME).read_bytes()
    make_loadable(folder)
    assert (folder / WEIGHTS_NAME).read_bytes() == weights
    if mends:
        assert load_problems(folder) == ()
        assert norm(peft_update(folder)) == pytest.approx(norm(peft_update(plain)), rel=1e-6)
    else:
        assert any(str(*over.values()) in problem for problem in load_problems(folder))


@pytest.mark.parametrize("targets", [TARGETS, "all-linear", r".*\.(q|v|down)_proj", r"(?=x)y"])
def test_what_peft_loads_stays_byte_for_byte(tmp_path: Path, plain: Path, targets: Any) -> None:
    folder = respell(plain, tmp_path / "adapter", lambda name: name, target_modules=targets)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    make_loadable(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert load_problems(folder) == ()


def test_a_byte_order_mark_goes_and_nothing_else(tmp_path: Path, plain: Path) -> None:
    folder = respell(plain, tmp_path / "adapter", lambda name: name)
    text = (folder / CONFIG_NAME).read_bytes()
    (folder / CONFIG_NAME).write_bytes(b"\xef\xbb\xbf" + text)
    assert any("byte order mark" in problem for problem in load_problems(folder))
    make_loadable(folder)
    assert (folder / CONFIG_NAME).read_bytes() == text


def test_two_tensors_are_never_given_one_name(tmp_path: Path, plain: Path) -> None:
    folder = tmp_path / "twice"
    folder.mkdir()
    tensors = load_file(plain / WEIGHTS_NAME)
    save_file(
        tensors | {f"module.{name}": value + 1 for name, value in tensors.items()}, folder / WEIGHTS_NAME
    )
    shutil.copy(plain / CONFIG_NAME, folder)
    before = (folder / WEIGHTS_NAME).read_bytes()
    make_loadable(folder)
    assert (folder / WEIGHTS_NAME).read_bytes() == before


def test_an_export_has_both_digests_and_is_verified_by_both(
    run: Program, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = respell(plain, tmp_path / "wrapped", SPELLINGS["fsdp"], bias=None)
    crawled(run, {"plain": plain, "wrapped": wrapped}, tmp_path / "hub", monkeypatch)
    first, again = export_all(run, tmp_path), export_all(run, tmp_path)
    assert first == again
    folder = next(iter(first.values())).parents[1]
    manifest, record = read_manifest(folder), read_record(folder)
    assert record is not None
    assert (record.pool, record.as_is) == (manifest.digest, False)
    changed = sorted(path for path, file in record.files.items() if file.source != file.written)
    assert [Path(path).name for path in changed] == [CONFIG_NAME, WEIGHTS_NAME]
    assert {file.sha256 for member in manifest.members for file in member.files} == {
        file.source for file in record.files.values()
    }
    assert ok(run, "pool", "verify", str(folder)) == {"ok": True, "problems": [], "digest": manifest.digest}
    merged = ok(run, "merge", str(folder), "--method", "average", "-o", str(tmp_path / "merged"))
    sources = {
        file.sha256 for member in manifest.members for file in member.files if file.name == WEIGHTS_NAME
    }
    assert {member["sha256"] for member in merged["members"]} == sources

    weights = folder / next(path for path in changed if path.endswith(WEIGHTS_NAME))
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = run("pool", "verify", str(folder), "--json")
    assert result.exit_code == 1
    assert [member["kind"] for member in json.loads(result.stdout)["problems"]] == ["changed"]
    # Without its record an export is compared with the manifest alone, as before there were any.
    (folder / EXPORT_RECORD).unlink()
    result = run("pool", "verify", str(folder), "--json")
    assert [member["kind"] for member in json.loads(result.stdout)["problems"]] == ["changed", "changed"]
    (folder / EXPORT_RECORD).write_text("{}")
    assert run("pool", "verify", str(folder)).exit_code != 0


@pytest.mark.parametrize("words", [("--as-is",), ("--format", "hub"), ("--format", "hub", "--as-is")])
def test_as_it_is_no_byte_changes_and_the_members_are_named(
    run: Program, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    wrapped = respell(plain, tmp_path / "wrapped", SPELLINGS["orig-mod-outside"])
    crawled(run, {"plain": plain, "wrapped": wrapped}, tmp_path / "hub", monkeypatch)
    ok(run, "select", "all", "--by", "random", "-k", "2")
    result = run("pool", "export", "all", "--weights", "--to", str(tmp_path / "out"), "--json", *words)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert [(problem["member"], problem["kind"]) for problem in document["problems"]] == [
        ("made/wrapped", "peft")
    ]
    assert "not loaded by PEFT: made/wrapped: PEFT finds none of its 12 factors" in " ".join(
        result.stderr.split()
    )
    [folder] = map(Path, document["folders"])
    held = {file.read_bytes() for file in folder.rglob(WEIGHTS_NAME)}
    assert held == {(problem / WEIGHTS_NAME).read_bytes() for problem in (plain, wrapped)}
    assert (folder / EXPORT_RECORD).exists() is ("hub" not in words)
    actual = ok(run, "pool", "verify", str(folder))
    assert actual["ok"]
    assert [problem["kind"] for problem in actual["problems"]] == ([] if "hub" in words else ["peft"])


def test_modules_that_the_base_lacks_are_a_reason(
    run: Program, tmp_path: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    odd = respell(plain, tmp_path / "odd", lambda name: name.replace("self_attn", "attention"), **names)
    crawled(run, {"odd": odd}, tmp_path / "hub", monkeypatch)
    assert "model.layers.0.attention.q_proj" in ok(run, "show", "made/odd")["details"]["no_such_module"]
    result = run("merge", str(odd), "--method", "average", "-o", str(tmp_path / "out"))
    assert result.exit_code != 0
    assert "has no module model.layers.0" in " ".join(result.stderr.split())


@shared
def test_wrapped_and_dead_names_of_the_table(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*(f"02-wrapped-names/{name}" for name in ("plain", *WRAPPED)), "03-dead-prefix/orig-mod-outside"]
    names += ["03-dead-prefix/module-outside", *(f"13-config-peft-refuses/{n}" for n in CONFIGS)]
    folders = {Path(name).name: row(name) for name in names}
    crawled(run, folders, tmp_path / "hub", monkeypatch)
    rows = ok(run, "adapters")
    assert {item["verdict"] for item in rows} == {"accepted"}
    assert [item["norm"] for item in rows] == pytest.approx([NORM] * len(folders), abs=1e-4)
    assert [len(group["members"]) for group in ok(run, "duplicates")] == [len(folders)]
    places = export_all(run, tmp_path)
    assert len(places) == len(folders)
    for place in places.values():
        assert peft_norm(place) == pytest.approx(NORM, abs=1e-4)


@shared
@pytest.mark.parametrize("name", [*WRAPPED, "small-known-base"])
def test_a_merge_with_wrapped_names_of_the_table(run: Program, tmp_path: Path, name: str) -> None:
    members = [row(f"02-wrapped-names/{name}")] + [row("02-wrapped-names/plain")] * (name in WRAPPED)
    words = ("--method", "average", "--dtype", "float32", "-o", str(tmp_path / "out"))
    result = run("merge", *map(str, members), *words)
    assert result.exit_code == 0, result.output
    if name in WRAPPED:
        assert peft_norm(tmp_path / "out") == pytest.approx(NORM, abs=1e-4)
    else:
        assert peft_norm(tmp_path / "out") == pytest.approx(
            ok(run, "fingerprint", str(members[0]))[0]["norm"], rel=1e-5
        )


@shared
def test_names_that_transformers_moved_are_the_same_modules(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (row(f"11-renamed-vision-text/{name}") for name in ("old-names", "new-names"))
    crawled(run, {"old": old, "new": new}, tmp_path / "hub", monkeypatch)
    assert [len(group["members"]) for group in ok(run, "duplicates")] == [2]
    words = ("--method", "average", "--dtype", "float32", "-o", str(tmp_path / "out"))
    assert run("merge", str(old), str(new), *words).exit_code == 0
    assert ok(run, "fingerprint", str(tmp_path / "out"))[0]["norm"] == pytest.approx(NORM, abs=1e-4)
    written = set(load_file(tmp_path / "out" / WEIGHTS_NAME))
    assert written == set(load_file(new / WEIGHTS_NAME))
    # Two of old names keep them: PEFT reads these where the base has new ones.
    assert run("merge", str(old), *words, "--overwrite").exit_code == 0
    assert set(load_file(tmp_path / "out" / WEIGHTS_NAME)) == set(load_file(old / WEIGHTS_NAME))


@shared
def test_an_export_says_which_engines_misread_its_members(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("rank-8-all", "rslora-16")
    crawled(run, {name: row(f"16-ranks-of-a-merge/{name}") for name in names}, tmp_path / "hub", monkeypatch)
    ok(run, "select", "all", "--by", "random", "-k", "2")
    result = run("pool", "export", "all", "--weights", "--to", str(tmp_path / "out"), "--json")
    documents = json.loads(result.stdout)["misread"]
    assert {member for document in documents for member in document["members"]} == {"made/rslora-16"}
    assert [document["detail"].partition(" ")[0] for document in documents] == [
        *("SGLang", "llama.cpp", "LMDeploy")
    ]
    assert f"made/rslora-16. {documents[0]['detail']}" in " ".join(result.stderr.split())
