"""The uses of an adapter in a pool that license ids, as the Hub writes them, allow.

Short judgements for selections and warnings, not legal advice: each row lists what a license forbids.
Sources: the license texts, through the ids of https://huggingface.co/docs/hub/repositories-licenses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

# The uses of a pool in ascending order: merge privately, publish the merge, use it commercially.
Use = Literal["research", "publish", "commercial"]
USES: tuple[Use, ...] = ("research", "publish", "commercial")

_PERMISSIVE = (
    *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "unlicense"),
    *("wtfpl", "zlib", "artistic-2.0", "mpl-2.0", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0"),
    *("afl-3.0", "ecl-2.0", "pddl", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0"),
)
_OPEN = (
    *_PERMISSIVE,
    *("openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigscience-bloom-rail-1.0", "odc-by"),
    "cdla-permissive-2.0",
)
# Community licenses of base models allow commercial use below a number of users, under further conditions.
_COMMUNITY = (
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "qwen", "tongyi-qianwen"),
    *("deepseek", "falcon-llm-license"),
)
_NO_SALE = (
    *(
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
    ),
    *("qwen-research", "fair-noncommercial-research-license", "apple-amlr"),
)
# Licenses that bind what is made of a work to no license, those with the most duties first.
_FREE = (
    *("cdla-permissive-2.0", "odc-by", "ecl-2.0", "apache-2.0", "artistic-2.0", "afl-3.0", "cc-by-4.0"),
    *("cc-by-3.0", "cc-by-2.5", "cc-by-2.0", "bsd-3-clause-clear", "bsd-3-clause", "bsd-2-clause", "bsd"),
    *("mit", "isc", "zlib", "pddl", "unlicense", "cc0-1.0", "wtfpl"),
)
# Licenses of base models that an adapter's license must not extend.
_RESTRICTED = frozenset(
    {*_COMMUNITY, "bigscience-bloom-rail-1.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"}
    | {"cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "qwen-research"}
)
_NO_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")

# What each license forbids; merging makes a derivative, which "no derivatives" keeps from being shared.
WITHHELD: dict[str, frozenset[Use]] = {
    **dict.fromkeys((*_OPEN, *_COMMUNITY), frozenset[Use]()),
    **dict.fromkeys(_NO_SALE, frozenset[Use]({"commercial"})),
    **dict.fromkeys(_NO_DERIVATIVES, frozenset[Use]({"publish", "commercial"})),
}


def objection(license: str | None, use: Use) -> str | None:  # noqa: A002 - the field's word
    """Why this license does not allow that use, as the end of a sentence; None if it does.

    Without a license no one may redistribute anything; the terms of an id that is not in the table are
    unknown.
    """
    name = None if license is None else folded_license(license)
    if name is None or name in {"unknown", "none", "unlicensed"}:
        return None if use == "research" else "states no license, so nothing may be passed on"
    withheld = WITHHELD.get(name)
    if withheld is None:
        return (
            None
            if use == "research"
            else f"has the license {license}, which is not known; read its terms first"
        )
    if use in withheld:
        what = "sharing of derivatives" if name in _NO_DERIVATIVES else "commercial use"
        return f"has the license {license}, which does not allow {what}"
    return None


def license_of_merge(licenses: Sequence[tuple[str, str | None]]) -> tuple[str | None, str]:
    """The license id of what is made of parts with these licenses, and a sentence that says why.

    `licenses` are pairs of a part's name and its license id, None where it states none. The strictest
    applies: permissive, then share-alike, community and no sale. There is no id where a part states none or
    an unknown one, forbids derivatives, or two licenses besides the permissive ones differ.
    """
    ids = [(name, None if text is None else folded_license(text)) for name, text in licenses]
    silent = [name for name, license_id in ids if license_id in {None, "unknown", "none", "unlicensed"}]
    if silent:
        return None, f"{silent[0]} states none, so that the merge may not be passed on."
    stated = sorted({license_id for _, license_id in ids if license_id})
    for license_id in stated:
        if license_id not in WITHHELD:
            return None, f"{license_id} is not known; read its terms first."
        if license_id in _NO_DERIVATIVES:
            return (
                None,
                f"{license_id} does not allow sharing of derivatives, so that the merge stays private.",
            )
    binding = [license_id for license_id in stated if license_id not in _FREE]
    if len(binding) > 1:
        both = " and ".join(binding)
        return None, f"{both} contradict each other; ask the authors before passing the merge on."
    strictest = binding[0] if binding else min(stated, key=_FREE.index, default=None)
    if strictest is None:
        return None, "none is stated."
    return strictest, f"{strictest}, the strictest of the members and the base model ({', '.join(stated)})."


def grants_more(license: str, of_base: str) -> bool:  # noqa: A002 - the field's word
    """Whether an adapter's license, in lower case, grants what the license of its base model does not."""
    return of_base in _RESTRICTED and license != of_base and license in _RESTRICTED.union(_PERMISSIVE)


def allowed_uses(license: str | None) -> list[Use]:  # noqa: A002 - the field's word
    """The uses that nothing in this license speaks against."""
    return [use for use in USES if objection(license, use) is None]


def folded_license(license: str) -> str:  # noqa: A002 - the field's word
    """The id with A to Z in lower case, as databases fold it; an id with other letters is in no table."""
    return license.lower() if license.isascii() else license
