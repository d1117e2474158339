"""What lies beside the adapters of an exported pool: a recipe for an engine, and the command that runs it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from catalog.adapters import engine_facts, load_engines, read_folder
from catalog.errors import ConfigError, NotFoundError, PoolError, WeightsError
from catalog.pools.manifest import Manifest, Member

ADAPTERS = "adapters"
README = "README.md"
GGUF_NAME = "adapter.gguf"
# Adapters that vLLM and SGLang keep in one batch.
_BATCH = 8


def recipes(manifest: Manifest, form: str, folder: Path | None) -> dict[str, str]:
    """The text files of a form by name; `folder` is the export, None where it has no weights."""
    if form == "ids":
        return {"ids.txt": "".join(f"{member.reference}\n" for member in manifest.members)}
    files: dict[str, str] = {}
    if form == "mergekit":
        files["mergekit.yaml"] = _mergekit(manifest, local=folder is not None)
    elif form == "vllm":
        files["vllm.txt"] = "".join(f"{line}\n" for line in _vllm_modules(manifest, folder))
    if form in _COMMANDS:
        files[README] = "\n".join([*_readme(manifest, form, folder)]) + "\n"
    return files


def _readme(manifest: Manifest, form: str, folder: Path | None) -> Iterator[str]:
    title, lines = _COMMANDS[form]
    yield f"# {manifest.name} for {title}\n"
    yield f"{len(manifest.members)} adapters of {_base(manifest)}. Run the commands in this folder.\n"
    if folder is None and form != "mergekit":
        yield "The members at their commits:\n\n```"
        yield from (_download(member) for member in manifest.members)
        yield "```\n"
    yield "```"
    yield from lines(manifest, folder)
    yield "```"


def _download(member: Member) -> str:
    target = f"{ADAPTERS}/{member.folder_name}"
    only = f" --include {shlex.quote(f'{member.subfolder}/*')}" if member.subfolder else ""
    return (
        f"hf download {shlex.quote(member.repository)} --revision {member.commit}{only} --local-dir {target}"
    )


def _path(member: Member, folder: Path | None) -> str:
    """The folder of a member below the export, exported or downloaded."""
    below = f"/{member.subfolder}" if folder is None and member.subfolder else ""
    return f"{ADAPTERS}/{member.folder_name}{below}"


def _base(manifest: Manifest) -> str:
    base = manifest.canonical_base()
    if base is None:
        raise PoolError("A recipe for an engine requires a pool with a single base model.")
    return base


def _rank(manifest: Manifest, folder: Path | None) -> int:
    """The largest rank of the members, by their files where these are there, else by the manifest."""
    ranks = [member.rank or 0 for member in manifest.members]
    for at, member in enumerate(manifest.members):
        try:
            adapter = read_folder(folder / _path(member, folder)) if folder is not None else None
        except (ConfigError, NotFoundError, WeightsError):
            continue
        if adapter is not None:
            ranks[at] = engine_facts(adapter.config, adapter.spec).rank or ranks[at]
    return max(ranks, default=0)


def _vllm(manifest: Manifest, folder: Path | None) -> Iterator[str]:
    option = next(
        engine.option_for(_rank(manifest, folder)) for engine in load_engines() if engine.name == "vllm"
    )
    count = len(manifest.members)
    yield f"vllm serve {shlex.quote(_base(manifest))} --enable-lora {option} \\".replace("  ", " ")
    yield f"  --max-loras {min(count, _BATCH)} --max-cpu-loras {count} --lora-modules \\"
    yield from _names_and_paths(manifest, folder)


def _sglang(manifest: Manifest, folder: Path | None) -> Iterator[str]:
    yield f"python -m sglang.launch_server --model-path {shlex.quote(_base(manifest))} --enable-lora \\"
    batch = min(len(manifest.members), _BATCH)
    yield f"  --max-loras-per-batch {batch} --lora-strict-loading --lora-paths \\"
    yield from _names_and_paths(manifest, folder)


def _names_and_paths(manifest: Manifest, folder: Path | None) -> Iterator[str]:
    last = len(manifest.members) - 1
    for at, member in enumerate(manifest.members):
        word = shlex.quote(f"{member.folder_name}={_path(member, folder)}")
        yield f"  {word}" + (" \\" if at < last else "")


def _llama_cpp(manifest: Manifest, folder: Path | None) -> Iterator[str]:
    files = ",".join(f"{_path(member, folder)}/{GGUF_NAME}" for member in manifest.members)
    yield f"# base.gguf is {_base(manifest)} in GGUF; all adapters start with scale 0 but the first"
    yield f"llama-server -m base.gguf --lora {shlex.quote(files)}"
    scales = json.dumps([{"id": at, "scale": float(at == 0)} for at in range(len(manifest.members))])
    yield f"curl http://127.0.0.1:8080/lora-adapters -d {shlex.quote(scales)}"


def _ollama(manifest: Manifest, folder: Path | None) -> Iterator[str]:
    yield f"# in each Modelfile, FROM is the name of {_base(manifest)} in Ollama, or its GGUF file"
    for member in manifest.members:
        yield f"ollama create {shlex.quote(member.folder_name.lower())} -f {_path(member, folder)}/Modelfile"


def _mergekit_commands(manifest: Manifest, folder: Path | None) -> Iterator[str]:
    yield "mergekit-yaml mergekit.yaml merged --lora-merge-cache lora-cache --copy-tokenizer"


_COMMANDS: Mapping[str, tuple[str, Callable[[Manifest, Path | None], Iterator[str]]]] = {
    "vllm": ("vLLM", _vllm),
    "sglang": ("SGLang", _sglang),
    "gguf": ("llama.cpp", _llama_cpp),
    "ollama": ("Ollama", _ollama),
    "mergekit": ("mergekit", _mergekit_commands),
}


def _mergekit(manifest: Manifest, *, local: bool) -> str:
    """A recipe of equal weights for mergekit, which reads BASE+LORA and LORA@COMMIT; JSON is YAML."""
    base = _base(manifest)
    if not local and (inside := next((m for m in manifest.members if m.subfolder), None)):
        raise PoolError(
            f"{inside.adapter} is in a subfolder, which mergekit does not load; add `weights=True`."
        )
    weight = 1 / max(len(manifest.members), 1)
    models = [
        f"  - model: {json.dumps(f'{base}+{_mergekit_place(member, local=local)}')}\n"
        f"    parameters: {{weight: {weight:.6g}}}\n"
        for member in manifest.members
    ]
    head = f"base_model: {json.dumps(base)}\nmerge_method: task_arithmetic\ndtype: bfloat16\n"
    return head + "models:\n" + "".join(models)


def _mergekit_place(member: Member, *, local: bool) -> str:
    return f"{ADAPTERS}/{member.folder_name}" if local else f"{member.repository}@{member.commit}"


def _vllm_modules(manifest: Manifest, folder: Path | None) -> Sequence[str]:
    """One JSON a line, each an argument of `vllm serve --lora-modules`."""
    base = _base(manifest)
    return [
        json.dumps({"name": member.folder_name, "path": _path(member, folder), "base_model_name": base})
        for member in manifest.members
    ]
