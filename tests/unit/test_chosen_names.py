"""Names of adapters that are not shown are found in a text however they are written there."""

from __future__ import annotations

import pytest

from catalog.search.listing import ChosenNames

NAMES = ChosenNames(
    repositories=frozenset({"ann/one", "ann/with"}),
    others=frozenset({"owner/secret", "my-org/deep.er:some folder", "ann/with:kept apart"}),
)


@pytest.mark.parametrize(
    "text",
    [
        "owner/secret",
        "OWNER/Secret",
        "like owner/secret.",
        "...owner/secret...",
        "(owner/secret)",
        "https://huggingface.co/owner/secret",
        "https://huggingface.co//owner//secret/resolve/main/README.md",
        "hf.co/owner/secret?x=1",
        "hf://owner/secret@main",
        "owner/secret:sub",
        "owner/secret@0123456",
        "one\nowner/secret\ttwo",
        "owner%2Fsecret",
        "ann/one,owner/secret",
        "ann/one/owner/secret",
        "my-org/deep.er",
        "adapter:ann/with:Kept Apart",
    ],
)
def test_another_name_is_found(text: str) -> None:
    assert NAMES.names_others(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann/one",
        "ann/with",
        "owner",
        "secret/owner",
        "owner/secrets",
        "co-owner/secret",
        "kept apart",
        "a / b",
    ],
)
def test_what_is_no_other_name_may_be_told(text: str) -> None:
    assert not NAMES.names_others(text)
