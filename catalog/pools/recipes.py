"""What lies beside the adapters of an exported pool: a recipe for an engine, and the command that runs it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from catalog.adapters import Engine, engine_facts, rank_option, read_folder
from catalog.errors import ConfigError, NotFoundError, PoolError, WeightsError
from catalog.pools.manifest import Manifest, Member

ADAPTERS = "adapters"
README = "README.md"
GGUF_NAME = "adapter.gguf"
# Names of a base model that are safe in a command and in prose: an id, or a path.
_PLAIN_NAME = re.compile(r"[\w./:+ -]+", re.ASCII)
# What a name of a model in Ollama may not contain.
_NOT_IN_OLLAMA = re.compile(r"[^a-z0-9._-]")
# Values that lm-eval does not split, nor take for JSON.
_PLAIN_ARGUMENT = re.compile(r"[\w./:-]+", re.ASCII)
_TASK = "hellaswag"
# Adapters that vLLM and SGLang keep in one batch.
_BATCH = 8


def recipes(
    manifest: Manifest, form: str, folder: Path | None, engines: Sequence[Engine] | None = None
) -> dict[str, str]:
    """The text files of a form by name; `folder` is the export, None where it has no weights.

    `engines` have the options of the commands, by default as the program's own rules have them.
    """
    if form == "ids":
        return {"ids.txt": "".join(f"{member.reference}\n" for member in manifest.members)}
    files: dict[str, str] = {}
    if form == "mergekit":
        files["mergekit.yaml"] = _mergekit(manifest, local=folder is not None)
    elif form == "vllm":
        files["vllm.txt"] = "".join(f"{line}\n" for line in _vllm_modules(manifest, folder))
    if form in _COMMANDS:
        files[README] = "\n".join([*_readme(manifest, form, folder, engines)]) + "\n"
    return files


def check_recipe(manifest: Manifest, form: str) -> None:
    """Raises PoolError unless a recipe of this form can be written for the pool."""
    if form in _COMMANDS:
        _base(manifest)
        if not manifest.members:
            raise PoolError(f"{manifest.name} has no members; a recipe for an engine requires some.")


def _readme(
    manifest: Manifest, form: str, folder: Path | None, engines: Sequence[Engine] | None
) -> Iterator[str]:
    title, lines, remark = _COMMANDS[form]
    ready = _with_files(manifest, form, folder)
    # llama-server takes files with commas between them, and has no sign for a comma in a name.
    members = [m for m in ready if form != "gguf" or "," not in _path(m, folder)]
    yield f"# {manifest.name} for {title}\n"
    yield (
        f"{len(members)} adapters of {_base(manifest)}. Run the commands in this folder. {remark}".rstrip()
        + "\n"
    )
    if left_out := [member for member in manifest.members if member not in ready]:
        yield f"Without a GGUF file, and not in the commands: {_folders(left_out)}.\n"
    if left_out := [member for member in ready if member not in members]:
        yield f"With a comma in the name, and not in the commands: {_folders(left_out)}.\n"
    if folder is None and form != "mergekit":
        yield "The members at their commits:\n"
        yield from _block([_download(member) for member in members])
    for commands in lines(manifest, members, folder, engines):
        yield from _block(commands)


def _folders(members: Sequence[Member]) -> str:
    return ", ".join(shlex.quote(member.folder_name) for member in members)


def _block(lines: Sequence[str]) -> Iterator[str]:
    """A block of code, whose fence is longer than any run of the same sign in it."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (fence, *lines, f"{fence}\n")


def _with_files(manifest: Manifest, form: str, folder: Path | None) -> Sequence[Member]:
    """The members with the files that a form needs: for GGUF those that have such a file."""
    if form not in ("gguf", "ollama") or folder is None:
        return manifest.members
    return [m for m in manifest.members if (folder / _path(m, folder) / GGUF_NAME).is_file()]


def _download(member: Member) -> str:
    target = shlex.quote(f"{ADAPTERS}/{member.folder_name}")
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
    if not _PLAIN_NAME.fullmatch(base):
        raise PoolError(
            f"The base model {base[:60]!r} has a name that a command could misread; use another form."
        )
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


def _vllm(
    manifest: Manifest, members: Sequence[Member], folder: Path | None, engines: Sequence[Engine] | None
) -> Iterator[list[str]]:
    option = rank_option(engines, "vllm", _rank(manifest, folder))
    head = f"vllm serve {shlex.quote(_base(manifest))} --enable-lora {option}".rstrip()
    count = len(members)
    yield [
        f"{head} \\",
        f"  --max-loras {min(count, _BATCH)} --max-cpu-loras {count} --lora-modules \\",
        *_names_and_paths(members, folder, {}, "name", "path"),
    ]


def _sglang(
    manifest: Manifest, members: Sequence[Member], folder: Path | None, _engines: Sequence[Engine] | None
) -> Iterator[list[str]]:
    batch = min(len(members), _BATCH)
    yield [
        f"python -m sglang.launch_server --model-path {shlex.quote(_base(manifest))} --enable-lora \\",
        f"  --max-loras-per-batch {batch} --lora-strict-loading --lora-paths \\",
        *_names_and_paths(members, folder, {"pinned": False}, "lora_name", "lora_path"),
    ]


def _names_and_paths(
    members: Sequence[Member], folder: Path | None, more: dict[str, Any], *keys: str
) -> Iterator[str]:
    """NAME=PATH of each member, or the same as JSON under these keys where a sign of the name would be read
    as one between two words.
    """
    for at, member in enumerate(members, 1):
        values = (member.folder_name, _path(member, folder))
        is_plain = not any(sign in value for value in values for sign in "=,")
        text = "=".join(values) if is_plain else json.dumps(dict(zip(keys, values, strict=True)) | more)
        word = shlex.quote(text)
        yield f"  {word}" + (" \\" if at < len(members) else "")


def _llama_cpp(
    _manifest: Manifest, members: Sequence[Member], folder: Path | None, _engines: Sequence[Engine] | None
) -> Iterator[list[str]]:
    if members:
        files = ",".join(f"{_path(member, folder)}/{GGUF_NAME}" for member in members)
        yield [f"llama-server -m base.gguf --lora {shlex.quote(files)}"]
        scales = json.dumps([{"id": at, "scale": float(at == 0)} for at in range(len(members))])
        yield [f"curl http://127.0.0.1:8080/lora-adapters -d {shlex.quote(scales)}"]


def _ollama(
    _manifest: Manifest, members: Sequence[Member], folder: Path | None, _engines: Sequence[Engine] | None
) -> Iterator[list[str]]:
    if members:
        names = [_NOT_IN_OLLAMA.sub("-", member.folder_name.lower()) for member in members]
        yield [
            f"ollama create {name if names.count(name) == 1 else f'{name}-{at}'} "
            f"-f {shlex.quote(f'{_path(member, folder)}/Modelfile')}"
            for at, (name, member) in enumerate(zip(names, members, strict=True), 1)
        ]


def _lm_eval(
    manifest: Manifest, members: Sequence[Member], folder: Path | None, _engines: Sequence[Engine] | None
) -> Iterator[list[str]]:
    """A run for each member, and none for the base: one process has one adapter."""
    base = _base(manifest)
    for member in members:
        values = {"pretrained": base, "peft": _path(member, folder)}
        is_plain = all(_PLAIN_ARGUMENT.fullmatch(value) for value in values.values())
        pairs = ",".join(f"{key}={value}" for key, value in values.items())
        arguments = shlex.quote(pairs if is_plain else json.dumps(values))
        yield [
            f"lm_eval run --model hf --model_args {arguments} \\",
            f"  --tasks {_TASK} --output_path {shlex.quote(f'results/{member.folder_name}')}",
        ]


def _mergekit_commands(
    _manifest: Manifest,
    _members: Sequence[Member],
    _folder: Path | None,
    _engines: Sequence[Engine] | None,
) -> Iterator[list[str]]:
    yield ["mergekit-yaml mergekit.yaml merged --lora-merge-cache lora-cache --copy-tokenizer"]


_Commands = Callable[[Manifest, Sequence[Member], Path | None, Sequence[Engine] | None], Iterator[list[str]]]
# The engine of a form, its commands, and what to know of them.
_COMMANDS: Mapping[str, tuple[str, _Commands, str]] = {
    "vllm": ("vLLM", _vllm, ""),
    "sglang": ("SGLang", _sglang, ""),
    "gguf": (
        "llama.cpp",
        _llama_cpp,
        "`base.gguf` is the base model. All adapters start at scale 1; the second command chooses one.",
    ),
    "ollama": (
        "Ollama",
        _ollama,
        "Set FROM of each Modelfile to the base model's name in Ollama, or its GGUF file.",
    ),
    "lm-eval": (
        "lm-evaluation-harness",
        _lm_eval,
        f"`{_TASK}` stands for the tasks: `lm_eval ls tasks` lists them, `--include_path DIR` adds your own.",
    ),
    "mergekit": ("mergekit", _mergekit_commands, ""),
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
        f"  - model: {json.dumps(_mergekit_model(base, member, local=local))}\n"
        f"    parameters: {{weight: {weight:.6g}}}\n"
        for member in manifest.members
    ]
    head = (
        f"base_model: {json.dumps(_mergekit_model(base))}\nmerge_method: task_arithmetic\ndtype: bfloat16\n"
    )
    return head + "models:\n" + "".join(models)


def _mergekit_model(base: str, member: Member | None = None, *, local: bool = True) -> str | dict[str, Any]:
    """BASE+LORA, or its parts where one of them has a sign of this notation."""
    if member is None:
        return base if not set(base) & set("+@") else {"model": {"path": base}}
    place = f"{ADAPTERS}/{member.folder_name}" if local else member.repository
    if not set(base + place) & set("+@"):
        return f"{base}+{place}" if local else f"{base}+{place}@{member.commit}"
    pinned = {} if local else {"revision": member.commit}
    return {"model": {"path": base}, "lora": {"path": place, **pinned}}


def _vllm_modules(manifest: Manifest, folder: Path | None) -> Sequence[str]:
    """One JSON a line, each an argument of `vllm serve --lora-modules`."""
    base = _base(manifest)
    return [
        json.dumps({"name": member.folder_name, "path": _path(member, folder), "base_model_name": base})
        for member in manifest.members
    ]
