"""Rules for engines compared with the engines' own code, as far as that runs without a GPU.

    pip download vllm sglang --no-deps -d DIR
    python -m tools.engine_check DIR [--mergekit PATH/TO/mergekit-yaml]

Adapters of a tiny Llama are made with PEFT, one for each kind of setting, and once more in the form of
`loradex normalise`. The code of the wheels in DIR loads them; modules that need a GPU or are not installed
are replaced by empty ones. A line of the table says what the code did: it ran the adapter (all factors in
place, their products as PEFT's), refused it, or made something else of it; and what the rules say. The
commands beside an exported pool go through the engines' own parsers of these options, and that of mergekit
is run. Ends with 1 where rules and code differ.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.abc
import importlib.machinery
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import loradex
from catalog.adapters import WEIGHTS_NAME, beside_the_update, load_engines, read_folder, verdict
from catalog.adapters import engine_facts as facts_of
from catalog.errors import LoradexError
from catalog.files import digest_of
from catalog.pools import FORMS, Content, Manifest, Member, PinnedFile, export

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Settings of PEFT by the name of the case; each is met by itself.
CASES: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "rank 4": {"r": 4},
    "rank 24": {"r": 24, "lora_alpha": 24},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 4}},
    "rank_pattern, alpha_pattern": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 8}},
    "alpha_pattern": {"alpha_pattern": {"v_proj": 4}},
    "q alone": {"target_modules": ["q_proj"]},
    "q and k": {"target_modules": ["q_proj", "k_proj"]},
    "v alone": {"target_modules": ["v_proj"]},
    "q and v": {"target_modules": ["q_proj", "v_proj"]},
    "gate alone": {"target_modules": ["gate_proj"]},
    "up alone": {"target_modules": ["up_proj"]},
    "one layer": {"layers_to_transform": [1]},
    "regular expression": {"target_modules": r".*\.(q_proj|v_proj)"},
    "lm_head": {"target_modules": [*ALL, "lm_head"]},
    "embed_tokens": {"target_modules": [*ALL, "embed_tokens"]},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "layer_replication": {"layer_replication": [[0, 1], [0, 2]]},
    "alora": {"alora_invocation_tokens": [1, 2]},
    "trainable tokens": {"trainable_token_indices": [1, 2]},
}
# Other names of the tensors of the plain case.
SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "names in a wrapper": lambda name: f"module.{name}",
    "names of a compiled model": lambda name: name.replace("model.model.", "model._orig_mod.model."),
}


@dataclass(frozen=True)
class Outcome:
    """What an engine's code did: "runs", "refuses" or "differs", and why."""

    kind: str
    reason: str = ""


class _Empty(type):
    """A class that has every attribute, can be called, subclassed and subscripted, and does nothing."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        return cls

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __bool__(cls) -> bool:
        return False


class _EmptyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Empty(name, (), {})
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of a package: those in `real` from its files, every other one empty."""

    def __init__(self, package: str, root: Path, real: Sequence[str]) -> None:
        self.package, self.root, self.real = package, root, real

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """The specification of a module of the package."""
        if fullname.partition(".")[0] != self.package:
            return None
        place = self.root.joinpath(*fullname.split("."))
        if fullname in self.real:
            return importlib.machinery.PathFinder.find_spec(fullname, [str(place.parent)])
        spec = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = [str(place)]
        return spec

    def create_module(self, spec: Any) -> types.ModuleType:
        """An empty module."""
        return _EmptyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs."""


@contextmanager
def package_of(wheel: Path, package: str, real: Sequence[str]) -> Iterator[Path]:
    """Inside the block the `real` modules of a wheel can be imported; the folder of its files."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.startswith(f"{package}/") and name.endswith(".py"):
                    archive.extract(name, folder)
        finder = _Finder(package, Path(folder), real)
        sys.meta_path.insert(0, finder)
        try:
            yield Path(folder)
        finally:
            sys.meta_path.remove(finder)
            for name in [name for name in sys.modules if name.partition(".")[0] == package]:
                del sys.modules[name]


def write_cases(root: Path) -> dict[str, Path]:
    """The folder of each case by its name; those that can be normalised twice."""
    from peft import LoraConfig, get_peft_model

    from tests.merging.llama import tiny

    tiny().config.save_pretrained(root / "base")
    folders: dict[str, Path] = {}
    for number, (name, settings) in enumerate(CASES.items()):
        words: dict[str, Any] = {
            "r": 16,
            "lora_alpha": 32,
            "target_modules": list(ALL),
            "task_type": "CAUSAL_LM",
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(number)
            model = get_peft_model(tiny(), LoraConfig(**(words | dict(settings))))
            for key, parameter in model.named_parameters():
                if "lora_B" in key or "lora_embedding_B" in key:
                    torch.nn.init.normal_(parameter, std=0.1)
            model.peft_config["default"].base_model_name_or_path = str(root / "base")
            folders[name] = root / name.replace(", ", "-").replace(" ", "-")
            model.save_pretrained(str(folders[name]), save_embedding_layers=False)
    for name, rename in SPELLINGS.items():
        folders[name] = root / name.replace(" ", "-")
        folders[name].mkdir()
        config = (folders["plain"] / "adapter_config.json").read_bytes()
        (folders[name] / "adapter_config.json").write_bytes(config)
        tensors = load_file(folders["plain"] / WEIGHTS_NAME)
        save_file({rename(key): value for key, value in tensors.items()}, folders[name] / WEIGHTS_NAME)
    for name, folder in list(folders.items()):
        try:
            report = loradex.normalise(folder, out=root / "normalised" / folder.name, base=str(root / "base"))
        except LoradexError:
            continue
        folders[f"{name}, normalised"] = report.folder
    return folders


def products(folder: Path) -> dict[str, torch.Tensor]:
    """scaling * B A of each module as PEFT has it, by the module's name in the base."""
    adapter, tensors = read_folder(folder), load_file(folder / WEIGHTS_NAME)
    wanted = {}
    for module in adapter.spec.modules:
        middle = "lora_embedding_" if module.kind == "embedding" else "lora_"
        end = "" if module.kind == "embedding" else ".weight"
        pair = [
            next(v for k, v in tensors.items() if k.endswith(f"{module.name}.{middle}{side}{end}"))
            for side in "BA"
        ]
        wanted[module.name] = module.scaling * (pair[0] @ pair[1])
    return wanted


def compared(
    wanted: Mapping[str, torch.Tensor], actual: Mapping[str, torch.Tensor], beside: Sequence[str]
) -> Outcome:
    """Whether an engine's products are PEFT's, within 1e-5 of the largest value."""
    if beside:
        return Outcome("differs", f"the products run without {', '.join(beside)}")
    if absent := sorted(set(wanted) - set(actual)):
        return Outcome("differs", f"{len(absent)} of {len(wanted)} modules are not placed")
    worst = max(
        float((wanted[name] - actual[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-12))
        for name in wanted
    )
    return Outcome("runs") if worst < 1e-5 else Outcome("differs", f"products differ by {worst:.0%}")


def beside_products(folder: Path) -> list[str]:
    """What the update of an adapter is beside scaling * B A, which neither loader adds."""
    adapter = read_folder(folder)
    return [feature.reason for feature in beside_the_update(adapter.config, adapter.spec)]


REAL_VLLM = tuple(f"vllm.lora.{name}" for name in ("peft_helper", "lora_model", "lora_weights", "utils"))


def run_vllm(folder: Path, option: str) -> Outcome:
    """`PEFTHelper`, `validate_legal` and `LoRAModel.from_local_checkpoint` of vLLM over an adapter."""
    peft_helper = importlib.import_module("vllm.lora.peft_helper")
    importlib.import_module("vllm.utils.torch_utils").PIN_MEMORY = False  # type: ignore[attr-defined]
    lora_model = importlib.import_module("vllm.lora.lora_model")
    limit = types.SimpleNamespace(max_lora_rank=int(option.rpartition(" ")[2] or 16))
    try:
        helper = peft_helper.PEFTHelper.from_local_dir(str(folder), None)
        helper.validate_legal(limit)
        model = lora_model.LoRAModel.from_local_checkpoint(
            str(folder), {*ALL, "lm_head", "embed_tokens"}, helper, lora_model_id=1, device="cpu"
        )
    except Exception as error:
        return Outcome("refuses", f"{type(error).__name__}: {error}")
    actual = {}
    for name, layer in model.loras.items():
        if layer.lora_a is None or layer.lora_b is None:
            return Outcome("differs", f"{name} has one factor")
        actual[name] = layer.scaling * (layer.lora_b @ layer.lora_a)
    return compared(products(folder), actual, beside_products(folder))


REAL_SGLANG = (
    *(f"sglang.srt.lora.{name}" for name in ("lora", "lora_config", "utils", "lora_manager")),
    *("sglang.srt.layers.utils", "sglang.srt.layers.utils.common"),
)


def run_sglang(folder: Path, option: str) -> Outcome:
    """SGLang's `LoRAConfig`, `validate_new_adapter` and `LoRAAdapter`, and the shapes that its pool takes."""
    del option
    lora = importlib.import_module("sglang.srt.lora.lora")
    utils = importlib.import_module("sglang.srt.lora.utils")
    manager = importlib.import_module("sglang.srt.lora.lora_manager").LoRAManager
    config_class = importlib.import_module("sglang.srt.lora.lora_config").LoRAConfig
    base = types.SimpleNamespace(num_hidden_layers=2)
    place = types.SimpleNamespace(lora_name="a", lora_path="a", pinned=False)
    server = types.SimpleNamespace(attn_dp_enabled=False, lora_refs={}, memory_pool=None)
    try:
        config = config_class(str(folder))
        manager.validate_new_adapter(server, config, place)
        adapter = lora.LoRAAdapter("a", config, base, None, None)
        adapter.initialize_weights_from_tensors(load_file(folder / WEIGHTS_NAME))
        targets = utils.get_normalized_target_modules(config.target_modules)
        stored = {key: value for layer in adapter.layers for key, value in layer.weights.items()}
        stored |= adapter.embedding_layers
        placed = {}
        for key, value in stored.items():
            try:
                target = utils.get_target_module_name(key, targets)
            except ValueError:
                continue
            if ".lora_A" in key:
                times = {"qkv_proj": 3, "gate_up_proj": 2}.get(target, 1)
                if value.shape[0] != times * config.r:
                    raise AssertionError(f"{key} has {value.shape[0]} rows, the buffer {times * config.r}")
            placed[key] = value
    except Exception as error:
        return Outcome("refuses", f"{type(error).__name__}: {error}")
    actual = dict(_split(placed, adapter.scaling, config.r))
    return compared(products(folder), actual, beside_products(folder))


def _split(
    placed: Mapping[str, torch.Tensor], scaling: float, rank: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """The products of SGLang's stacked factors, module by module of the tiny Llama."""
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    sizes = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "gate_proj": 48, "up_proj": 48}
    for key, a in placed.items():
        if ".lora_A" not in key and ".lora_embedding_A" not in key:
            continue
        b = placed[key.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")]
        name = key.removeprefix("base_model.model.").partition(".lora_")[0]
        stem, _, short = name.rpartition(".")
        at = 0
        for number, part in enumerate(parts.get(short, ())):
            rows = b[at : at + sizes[part]]
            yield f"{stem}.{part}", scaling * (rows @ a[number * rank : (number + 1) * rank])
            at += sizes[part]
        if short not in parts:
            yield name, scaling * (b @ a)


RUNNERS: Mapping[str, tuple[Sequence[str], Callable[[Path, str], Outcome]]] = {
    "vllm": (REAL_VLLM, run_vllm),
    "sglang": (REAL_SGLANG, run_sglang),
}


def check_engine(name: str, wheel: Path, folders: Mapping[str, Path]) -> int:
    """Prints what the code of an engine does with each case; returns how often the rules say otherwise."""
    engine = next(engine for engine in load_engines() if engine.name == name)
    real, runner = RUNNERS[name]
    wrong = 0
    say(f"\n{wheel.name} (rules of {engine.version})")
    with package_of(wheel, name, real) as root:
        for case, folder in folders.items():
            adapter = read_folder(folder)
            answer = verdict(engine, facts_of(adapter.config, adapter.spec))
            outcome = runner(folder, answer.option)
            agrees = (outcome.kind == "runs") == bool(answer.runs)
            wrong += not agrees
            rules = "runs" if answer.runs else "; ".join(answer.reasons)
            reason = " ".join(outcome.reason.split())[:100]
            say(f"{'' if agrees else '! '}{case} | {outcome.kind} {reason} | {rules}")
        for note in PARSERS[name](root, read_command(folders, name)):
            wrong += note.startswith("! ")
            say(note)
    return wrong


def parse_vllm(root: Path, command: Sequence[str]) -> Iterator[str]:
    """The ranks that vLLM's option takes, and its reading of the `--lora-modules` of an export's command."""
    engine = next(engine for engine in load_engines() if engine.name == "vllm")
    tree = ast.parse((root / "vllm" / "config" / "lora.py").read_text())
    values = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
    ranks = ast.literal_eval(ast.unparse(values["MaxLoRARanks"]).removeprefix("Literal"))
    yield f"{'' if tuple(ranks) == engine.ranks else '! '}--max-lora-rank takes {ranks}"
    source = (root / "vllm" / "engine" / "arg_utils.py").read_text()
    module = _class_alone(root / "vllm" / "entrypoints" / "common" / "cli_args.py", "LoRAParserAction")
    module["LoRAModulePath"] = lambda name, path, base_model_name=None: (name, path)
    for option in (word for word in command if word.startswith("--") and word != "--lora-modules"):
        yield f"{'' if f'{chr(34)}{option}{chr(34)}' in source else '! '}{option} is an option"
    yield from _adapters_named(command, "--lora-modules", module["LoRAParserAction"], tuple)


def parse_sglang(root: Path, command: Sequence[str]) -> Iterator[str]:
    """SGLang's reading of the `--lora-paths` of an export's command."""
    place = root / "sglang" / "srt" / "arg_groups"
    source = (place / "fields" / "lora.py").read_text()
    for option in ("enable_lora", "max_loras_per_batch", "lora_strict_loading", "lora_paths"):
        yield f"{'' if f'{option}:' in source else '! '}--{option.replace('_', '-')} is an option"
    module = _class_alone(place / "argparse_actions.py", "LoRAPathAction")

    def pair(value: Any) -> tuple[str, str]:
        if isinstance(value, dict):
            return value["lora_name"], value["lora_path"]
        name, _, path = value.partition("=")
        return name, path

    yield from _adapters_named(command, "--lora-paths", module["LoRAPathAction"], pair)


def _adapters_named(
    command: Sequence[str], option: str, action: Any, pair: Callable[[Any], tuple[str, str]]
) -> Iterator[str]:
    """Whether an engine's parser reads off a command the names and folders that were exported."""
    parser = argparse.ArgumentParser()
    parser.add_argument(option, nargs="*", action=action, dest="adapters")
    adapters = [pair(value) for value in parser.parse_known_args(list(command))[0].adapters]
    expected = [(folder_name, f"adapters/{folder_name}") for folder_name in NAMES]
    yield f"{'' if adapters == expected else '! '}{option} of the export is read as {adapters}"


def _class_alone(file: Path, name: str) -> dict[str, Any]:
    """A class of a file, run without the imports of its module."""
    tree = ast.parse(file.read_text())
    body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    future = ast.parse("from __future__ import annotations").body
    space: dict[str, Any] = {"argparse": argparse, "json": json}
    exec(compile(ast.Module([*future, *body], []), str(file), "exec"), space)  # noqa: S102
    return space


PARSERS: Mapping[str, Callable[[Path, Sequence[str]], Iterator[str]]] = {
    "vllm": parse_vllm,
    "sglang": parse_sglang,
}
# Members of the exported pool, a folder of a repository each, and their names in commands.
MEMBERS = {"plain": "", "rslora": "b=c", "q and v": "d,e+f"}
NAMES = ("ann--plain", "ann--plain--b=c", "ann--plain--d,e+f")


def export_pool(folders: Mapping[str, Path], form: str) -> Path:
    """The folder of an exported pool of some of the cases."""
    members = []
    for name, subfolder in MEMBERS.items():
        files = [folders[name] / file for file in ("adapter_config.json", WEIGHTS_NAME)]
        pinned = tuple(PinnedFile(file.name, file.stat().st_size, digest_of(file)) for file in files)
        members.append(
            Member(
                repository="ann/plain",
                hub_id="0" * 24,
                commit="c" * 40,
                subfolder=subfolder,
                files=pinned,
                rank=16,
                alpha=32.0,
                scaling=2.0,
                targets=ALL,
                parameters=1,
                norm=1.0,
                license="mit",
                score=None,
                why=name,
            )
        )
    manifest = Manifest("checked", "ann/tiny-base", tuple(members), {"by": "random", "seed": 0})
    root = folders["plain"].parent

    def fetch(member: Member, file: PinnedFile) -> Content:
        return Content(path=folders[member.why] / file.name)

    known_form = next(name for name in FORMS if name == form)
    return export(manifest, root / "pools", known_form, fetch, lambda done, total: None)


def read_command(folders: Mapping[str, Path], form: str) -> list[str]:
    """The words of the command in the README of an export."""
    text = (export_pool(folders, form) / "README.md").read_text()
    block = re.search(r"^(`{3,})\n(.*?)^\1$", text, re.MULTILINE | re.DOTALL)
    return shlex.split(block[2].replace("\\\n", " ")) if block else []


def run_mergekit(program: Path, folders: Mapping[str, Path]) -> int:
    """Runs the command beside an export; 1 unless the result is the base plus the mean of the updates."""
    from tests.localhub import FaultHub
    from tests.merging.llama import tiny
    from tests.merging.tiny import tiny_tokenizer

    place, command = export_pool(folders, "mergekit"), read_command(folders, "mergekit")
    base = tiny()
    base.save_pretrained(str(place / "ann" / "tiny-base"))
    tiny_tokenizer().save_pretrained(str(place / "ann" / "tiny-base"))
    say(f"\n{' '.join(command)}")
    # Its model card asks a Hub which of the models are there.
    (place / "hub").mkdir()
    with FaultHub(place / "hub") as hub:
        done = subprocess.run(
            [str(program), *command[1:]],
            cwd=place,
            env={**os.environ, "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        say(f"! it ended with {done.returncode}: {done.stderr[-300:]}")
        return 1
    merged = load_file(next((place / "merged").glob("*.safetensors")))
    updates = [products(folders[name]) for name in MEMBERS]
    worst = 0.0
    for key, weight in base.state_dict().items():
        name = key.removesuffix(".weight")
        mean = sum((update[name] for update in updates if name in update), torch.tensor(0.0)) / len(updates)
        if key in merged:
            expected = weight + mean
            worst = max(worst, float((merged[key].float() - expected).norm() / expected.norm()))
    # the recipe writes bfloat16, of 8 bits
    say(f"{'' if worst < 2**-7 else '! '}base + mean of the updates, relative difference {worst:.1e}")
    return int(worst >= 2**-7)


def say(line: str) -> None:
    """Writes a line."""
    sys.stdout.write(f"{line}\n")


def main() -> int:
    """Checks the wheels of a folder; 1 where code and rules differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path, help="where pip download has put the wheels")
    parser.add_argument(
        "--mergekit", type=Path, help="the program mergekit-yaml of an environment of its own"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        folders = write_cases(Path(place))
        for name in RUNNERS:
            wheels = sorted(options.folder.rglob(f"{name}-*.whl"))
            if not wheels:
                say(f"\nno wheel of {name} in {options.folder}")
            for wheel in wheels:
                wrong += check_engine(name, wheel, folders)
        if options.mergekit is not None:
            wrong += run_mergekit(options.mergekit.resolve(), folders)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
