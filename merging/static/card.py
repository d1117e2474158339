"""The model card of a merged adapter, with the metadata by which the Hub lists it as a merge."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from catalog.adapters import license_of_base, license_of_merge
from merging.methods import MergeMethod

# The characters allowed in a table of Markdown; others are removed from untrusted names.
_STRANGE = re.compile(r"[^\w .@/:+-]")
# The same in a sentence.
_UNUSUAL = re.compile(r"[^\w .,;()@/:+-]")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_card(method: MergeMethod, record: Mapping[str, Any], misread: Sequence[str], vllm: str) -> str:
    """The text of README.md: front matter, how the merge was made, of what, its license, and how to load it.

    Front matter as https://huggingface.co/docs/hub/model-cards has it: `merge` among the tags, the base model
    that this is an adapter of. The license is the strictest of members and base; where two contradict each
    other, or a member states none, the card says so and the front matter has none. `vllm` is the option
    that vLLM needs for the weights file.
    """
    base = record["base_model"]
    stated = [(entry["name"], entry["license"]) for entry in record["members"]]
    of_base = license_of_base(base) if base else None
    license_id, remark = license_of_merge([*stated, *([(base, of_base)] if of_base else [])])
    if license_id and not of_base:
        license_id, remark = None, f"{license_id} by the members; that of the base model is not known here."
    front = {
        "base_model": base,
        "base_model_relation": "adapter" if base else None,
        "library_name": "peft",
        "license": license_id,
        "tags": ["lora", "merge"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items() if value), "---", ""]
    lines += [
        "# A merge of LoRA adapters",
        "",
        f"Method: [{method.name}]({method.paper}). {method.summary}",
        "",
    ]
    lines += [f"* {name} = {value}" for name, value in record["parameters"].items()]
    lines += [f"* seed = {record['seed']}", ""] if record["parameters"] else []
    lines += [*_member_table(record), "", f"License: {_UNUSUAL.sub('?', remark)}"]
    lines += _heads(record["heads"]) if record.get("heads") else []
    if record["totals"]["energy"]:
        lines += ["", f"Energy that the rank could not hold: {_share(record['totals'])}."]
    lines += ["", *misread] if misread else []
    lines += _loading(base, vllm) if base else []
    lines += ["", "merge.json beside this file has every parameter, version and digest."]
    return "\n".join(lines) + "\n"


def _member_table(record: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| member | weight | rank | license |", "|---|---|---|---|")
    for entry in record["members"]:
        license_id = _plain(entry["license"] or "not named")
        yield f"| {_link(entry)} | {entry['weight']:.6g} | {entry['rank']} | {license_id} |"
    for entry in record["members"]:
        if entry.get("left_out"):
            yield f"\nLeft out of {_plain(entry['name'])}: {_plain(', '.join(entry['left_out']))}."


def _heads(record: Mapping[str, Any]) -> Iterator[str]:
    """What the merge holds of the output heads and embeddings that its members saved whole."""
    for layer, shares in record["layers"].items():
        members = ", ".join(f"{_plain(row['member'])} ({row['share']:.6g})" for row in shares)
        yield from ("", f"{_plain(layer)} is saved whole, of {members}.")
    for member, layers in record.get("dropped", {}).items():
        yield from ("", f"Dropped of {_plain(member)}: its own {_plain(', '.join(layers))}.")


def _link(entry: Mapping[str, Any]) -> str:
    """The name of a member, as a link to its commit on the Hub where that is pinned."""
    name, source = _plain(entry["name"]), entry.get("source") or {}
    repository, commit = str(source.get("repository")), str(source.get("commit"))
    if _REPOSITORY.fullmatch(repository) and _COMMIT.fullmatch(commit):
        return f"[{name}](https://huggingface.co/{repository}/tree/{commit})"
    return name


def _loading(base: str, vllm: str) -> Iterator[str]:
    """Code that loads the adapter, from the folder of this card."""
    model = _plain(base)
    yield from ("", "## Use", "", "```python", "from peft import PeftModel")
    yield from ("from transformers import AutoModelForCausalLM", "")
    yield f'model = AutoModelForCausalLM.from_pretrained("{model}")'
    yield from (
        'model = PeftModel.from_pretrained(model, ".")  # the folder of this card, or its id on the Hub',
        "```",
    )
    command = f"vllm serve {model} --enable-lora {vllm} --lora-modules merge=."
    yield from ("", "```", " ".join(command.split()), "hf upload OWNER/NAME .", "```")


def _share(totals: Mapping[str, Any]) -> str:
    return f"{totals['discarded'] / totals['energy']:.3%}" if totals["discarded"] else "none"


def _plain(text: str) -> str:
    return _STRANGE.sub("?", text)
