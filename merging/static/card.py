"""The model card of a merged adapter, with the metadata by which the Hub lists it as a merge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from catalog.adapters import misreadings
from merging.members import MergeMember
from merging.methods import MergeMethod

# The characters allowed in a table of Markdown; others are removed from untrusted names.
_STRANGE = re.compile(r"[^\w .@/:+-]")


def model_card(members: Sequence[MergeMember], method: MergeMethod, record: Mapping[str, Any]) -> str:
    """The text of README.md: front matter, then base model, method, members and licenses.

    Front matter as https://huggingface.co/docs/hub/model-cards has it: `merge` among the tags. The license is
    included if all members have the same.
    """
    licenses = {member.license for member in members}
    front = {
        "base_model": record["base_model"],
        "library_name": "peft",
        "license": members[0].license if len(licenses) == 1 else None,
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
    lines += ["| member | weight | rank | licence |", "|---|---|---|---|"]
    for entry in record["members"]:
        license_id = _plain(entry["license"] or "not named")
        lines.append(f"| {_plain(entry['name'])} | {entry['weight']:.6g} | {entry['rank']} | {license_id} |")
    lines += [
        f"\nLeft out of {_plain(entry['name'])}: {_plain(', '.join(entry['left_out']))}."
        for entry in record["members"]
        if entry.get("left_out")
    ]
    if record["totals"]["energy"]:
        lines += ["", f"Energy that the rank could not hold: {_share(record['totals'])}."]
    misread_by = misreadings({module["rank"] for module in record["modules"].values()})
    lines += ["", *misread_by] if misread_by else []
    lines += ["", "merge.json beside this file has every parameter, version and digest."]
    return "\n".join(lines) + "\n"


def _share(totals: Mapping[str, Any]) -> str:
    return f"{totals['discarded'] / totals['energy']:.3%}" if totals["discarded"] else "none"


def _plain(text: str) -> str:
    return _STRANGE.sub("?", text)
