"""The readers of foreign bytes, each with inputs to begin from and the errors by which it may refuse one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog.errors import ConfigError, HubPayloadError, LoradexError, PoolError, UsageError, WeightsError
from tests.edges.gguf_files import write_gguf
from tests.hubs import adapter_config, card, lora_tensors, safetensors_bytes


@dataclass(frozen=True)
class Reader:
    """`read` takes any bytes; what it raises must be one of `refusals`, and without these it never raises.

    `pieces` are words of the format, for the mutations.
    """

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    refusals: tuple[type[Exception], ...] = ()
    pieces: tuple[bytes, ...] = field(default=(), repr=False)


_YAML_PIECES = (
    *(b"!!bool x", b"!!int x", b"!!float x", b"!!null x", b"!!timestamp x", b"!!binary x", b"!!set {a, b}"),
    *(b"!!omap [a]", b"!!pairs [a]", b"!!python/name:os.system", b"!x y", b"&a [*a]", b"*a", b"<<: *a"),
    *(b"? [a]\n: b", b"2024-13-45", b"0x", b"1:60:60", b".inf", b"|\n  x", b">-", b"- - - -", b"'", b'"\\x"'),
    *(b"%YAML 9.9", b"...", b"=", b"~", b"!!str", b"!!map []", b"!!seq {}", b"0o99", b"1_000", b"+.e3"),
)
_CARD = card("Learning rate: 3e-4, batch size 8, 3 epochs.\n", base_model="a/b", license="mit").encode()
_CARD_FULL = b"""---
base_model: [a/b]
license: other
license_name: mine
language: [en, no]
tags: [lora, peft]
datasets: {a: 1}
model-index:
- name: x
  results: [{task: {type: t}, metrics: [{type: accuracy, value: 0.5}]}]
date: 2024-05-06
gated: false
---
# Title

| learning_rate | 2e-4 |
|---|---|
| Epoch | Step | Loss |

- num_train_epochs: 3.0
```python
x = 1
```
<!-- [More Information Needed] -->
"""
_CONFIG = json.dumps(
    adapter_config(rank_pattern={"q_proj": 8}, alpha_pattern={r"^model\.layers.0": 16})
).encode()
_ROW = json.dumps(
    {
        "_id": "65f0c0ffee65f0c0ffee65f0",
        "id": "ann/one",
        "sha": "a" * 40,
        "createdAt": "2024-05-06T07:08:09.000Z",
        "lastModified": "2024-05-06T07:08:09.000Z",
        "gated": False,
        "disabled": False,
        "private": False,
        "downloads": 3,
        "likes": 1,
        "tags": ["peft", "base_model:adapter:a/b", "license:mit"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "siblings": [{"rfilename": "adapter_config.json"}],
        "config": {"peft": {"base_model_name_or_path": "a/b"}},
    }
).encode()
_TREE = json.dumps(
    [
        {"type": "file", "path": "adapter_config.json", "oid": "b" * 40, "size": 700},
        {
            "type": "file",
            "path": "checkpoint-10/adapter_model.safetensors",
            "oid": "c" * 40,
            "size": 134,
            "lfs": {"oid": "d" * 64, "size": 4000, "pointerSize": 134},
        },
        {"type": "directory", "path": "checkpoint-10", "oid": "e" * 40},
    ]
).encode()
_WEIGHTS = safetensors_bytes(lora_tensors(r=2), {"format": "pt"})
_HEADER = _WEIGHTS[: 8 + int.from_bytes(_WEIGHTS[:8], "little")]
_WRAPPED = safetensors_bytes(
    {
        f"module.{name}".replace("self_attn", "_orig_mod.self_attn"): value
        for name, value in lora_tensors(r=2).items()
    }
)
_KEY_PIECES = (
    *(
        b"module.",
        b"_orig_mod.",
        b"base_model.model.",
        b"model.",
        b"language_model.",
        b"._fsdp_wrapped_module",
    ),
    *(b"lora_A", b"lora_b", b"lora.down", b".weight", b".default", b"layers.0.", b"lm_head"),
)
_RECORD = (
    json.dumps(
        {
            "as_is": False,
            "files": [{"path": "adapters/a/x", "size": 1, "source": "a" * 64, "written": "b" * 64}],
            "format": "loradex-export/1",
            "pool": "c" * 64,
        },
        indent=2,
        sort_keys=True,
    ).encode()
    + b"\n"
)
_SCORES = json.dumps(
    {"scores": [{"adapter": "a/b", "task": "t", "split": "test", "metric": "accuracy", "value": 0.5, "n": 9}]}
).encode()
_EXAMPLES = b'{"input": "a", "target": "b"}\n{"input": "c", "target": "d"}\n'
_CSV = b"adapter,task_a,task_b\na/b,0.5,0.25\nc/d,0.125,1\n"
_FILTERS = (
    b"rank:8..64 target:q_proj license:apache-2.0 -owner:someone created:2024-08..",
    b'(health:healthy | norm:1.5..1e3) -"two words" name:a* use:research base:*',
)
_FILTER_PIECES = (
    *(
        b"rank=4",
        b"rank>4",
        b"rank:..",
        b"rank:1..x",
        b"created:9999-99",
        b"-(",
        b"|",
        b"OR",
        b")",
        b'"',
        b"\\",
    ),
    *(b"license:", b":mit", b"downloads:1e400", b"norm:nan", b"norm:1kk", b"*", b"name:*a", b"-health:*"),
)
_NAMES = (
    b"meta-llama/Llama-3.1-8B-Instruct",
    b"unsloth/meta-llama-3.1-8b-instruct-bnb-4bit",
    b"/root/.cache/modelscope/hub/LLM-Research/Meta-Llama-3___1-8B-Instruct",
    b"/kaggle/input/llama-3.1/transformers/8b-instruct/2",
    b"https://huggingface.co/meta-llama/Llama-3.1-8B/tree/main",
    b"C:\\models\\models--meta-llama--Llama-3.1-8B\\snapshots\\0123456789abcdef",
)
_NAME_PIECES = (
    b"/",
    b"\\",
    b"--",
    b"..",
    b"@main",
    b"-FP8",
    b"-awq-int4",
    b"?x=1",
    b"#a",
    b"None",
    b".git",
    b":",
)
_PATTERNS = (
    rb"^model\.layers\.(1|2[0-9])\..*(q|v)_proj$",
    rb"(?:a|b)*c{2,5}[^\d\w]+?",
    rb".*\.layers\.\d+\.mlp",
)
_PATTERN_PIECES = (
    b"(a*)*",
    b"a{1,99999}",
    b"(?=a)",
    b"(?P<n>a)",
    b"\\1",
    b"[",
    b"[^]",
    b"(?i)",
    b"\\Z",
    b"\\b",
    b"**",
)


def readers() -> dict[str, Reader]:
    """Every reader by name."""
    from catalog.adapters import BaseTable, initial_spellings, parse_config
    from catalog.adapters.patterns import Budget, Pattern
    from catalog.files import load_json
    from catalog.pools import parse_manifest
    from catalog.query import parse
    from crawler.reading import parse_card

    table = BaseTable(initial_spellings())
    return {
        "card": Reader(parse_card, (_CARD, _CARD_FULL), pieces=_YAML_PIECES),
        "config": Reader(parse_config, (_CONFIG, b'{"peft_type": "IA3"}'), (ConfigError,)),
        "json": Reader(load_json, (_CONFIG, _ROW, b'[1, -2.5e3, "\\u00e9", null]'), (ConfigError,)),
        "listing row": Reader(_listing_row, (_ROW,)),
        "listing page": Reader(_listing_page, (b"[" + _ROW + b", " + _ROW + b"]", b"[]"), (HubPayloadError,)),
        "file list": Reader(_file_list, (_TREE,)),
        "weights header": Reader(_header, (_HEADER, _WEIGHTS), (WeightsError,)),
        "weights": Reader(_values, (_WEIGHTS,), (WeightsError, ConfigError)),
        "config for PEFT": Reader(_config_for_peft, (_CONFIG, b"\xef\xbb\xbf" + _CONFIG)),
        "names for PEFT": Reader(_names_for_peft, (_WEIGHTS, _WRAPPED), pieces=_KEY_PIECES),
        "export.json": Reader(_file(_record, "export.json"), (_RECORD,), (PoolError,)),
        "pool.json": Reader(parse_manifest, (_pool(),), (PoolError,)),
        "study": Reader(_file(_study, "study.yaml"), _studies(), (LoradexError,), _YAML_PIECES),
        "scores.json": Reader(_file(_scores, "scores.json"), (_SCORES,), (UsageError,)),
        "scores.csv": Reader(
            _file(_scores, "scores.csv"), (_CSV,), (UsageError,), (b'"', b",,", b"nan", b"1e-400")
        ),
        "task": Reader(
            _task, (b'{"input": "a", "target": "b"}\n{"input": "c", "target": "d"}\n',), (LoradexError,)
        ),
        "GGUF": Reader(_file(_gguf, "model.gguf"), (_gguf_seed(),), (LoradexError,)),
        "filter": Reader(_text(parse), _FILTERS, (UsageError,), _FILTER_PIECES),
        "base name": Reader(_text(table.identify), _NAMES, pieces=_NAME_PIECES),
        "pattern": Reader(
            _text(lambda text: Pattern(text).matches_suffix("model.layers.11.self_attn.q_proj", Budget())),
            _PATTERNS,
            (ConfigError,),
            _PATTERN_PIECES,
        ),
    }


def _config_for_peft(data: bytes) -> object:
    return _for_peft(data, _WRAPPED)


def _names_for_peft(data: bytes) -> object:
    return _for_peft(_CONFIG, data)


def _for_peft(config: bytes, weights: bytes) -> object:
    """An adapter made loadable twice: the second time finds nothing to do."""
    from catalog.adapters import load_problems, make_loadable

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adapter_config.json").write_bytes(config)
        (folder / "adapter_model.safetensors").write_bytes(weights)
        make_loadable(folder)
        if make_loadable(folder):
            raise AssertionError("a folder that was made loadable was written anew")
        return load_problems(folder)


def _record(path: Path) -> object:
    from catalog.pools import read_record

    return read_record(path.parent)


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def _file(read: Callable[[Path], object], name: str) -> Callable[[bytes], object]:
    """A reader of bytes from one of a file of that name."""

    def read_bytes(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return read_bytes


def _load_answer(data: bytes) -> Any:
    """What the client makes of an answer of the Hub; a protocol error is a refusal of its own."""
    from catalog.errors import HubPayloadError
    from crawler.hub.wire import parse_json

    try:
        return parse_json(data, url="http://127.0.0.1/api/models")
    except HubPayloadError:
        return None


def _listing_page(data: bytes) -> object:
    from crawler.hub import parse_row
    from crawler.hub.wire import parse_rows

    return [parse_row(row) for row in parse_rows(data, url="http://hub")]


def _listing_row(data: bytes) -> object:
    from crawler.hub import parse_row, reduce_row

    row = _load_answer(data)
    return parse_row(row), reduce_row(row)


def _file_list(data: bytes) -> object:
    from crawler.hub import adapter_folders
    from crawler.hub.tree import read_tree

    rows = _load_answer(data)
    return adapter_folders(read_tree(rows if isinstance(rows, list) else [rows]).files)


def _header(data: bytes) -> object:
    from catalog.adapters import header_length, header_modules, lora_modules, parse_config, parse_header

    header = parse_header(data[: 8 + header_length(data[:8])], len(data))
    return lora_modules(header, parse_config(_CONFIG)), header_modules(header)


def _values(data: bytes) -> object:
    from catalog.adapters import parse_config
    from catalog.fingerprints import fingerprint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter_model.safetensors"
        path.write_bytes(data)
        return fingerprint(path, parse_config(json.dumps(adapter_config(r=2)).encode()), "cpu")


def _study(path: Path) -> object:
    from studies.file import read_study

    return read_study(str(path))


def _scores(path: Path) -> object:
    from catalog.scores import read_scores

    return read_scores(path, source="s", split="test", metric="accuracy", n=None)


def _gguf(path: Path) -> object:
    from merging.model import keep_base

    return keep_base("made/tiny", path, path.parent / "bases")


def _task(data: bytes) -> object:
    from merging.model import examples, read_task

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        head, _, tail = data.partition(b"\n")
        settings = {"name": "t", "instruction": "Answer.", "metric": "exact_match"}
        (folder / "task.json").write_bytes(
            json.dumps(settings).encode() if head.startswith(b'{"input') else head
        )
        (folder / "train.jsonl").write_bytes(data)
        (folder / "valid.jsonl").write_bytes(tail)
        (folder / "test.jsonl").write_bytes(data)
        task = read_task(folder)
        return [examples(task, split) for split in ("train", "valid", "test")]


def _studies() -> tuple[bytes, ...]:
    """The studies that come with the program."""
    from importlib.resources import files

    from studies.file import built_in

    return tuple(files("studies").joinpath(f"{name}.yaml").read_bytes() for name in built_in())


def _pool() -> bytes:
    from catalog.pools import Manifest, Member, PinnedFile

    pinned = PinnedFile("adapter_model.safetensors", 12, "a" * 64)
    return Manifest("mine", "a/b", (Member("ann/one", "65f0", "b" * 40, "", (pinned,)),)).canonical()


def _gguf_seed() -> bytes:
    """A small Llama model as a GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        return write_gguf(Path(folder) / "tiny.gguf").read_bytes()
