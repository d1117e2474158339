"""Protocols: prompts of each family by hand, extraction, choices, presets, and keys that stay the same."""

import pytest

from catalog.errors import UsageError
from merging.evaluation import TaskScore
from merging.model import PROTOCOLS, Protocol, find_protocol


def test_the_projects_own_protocol_has_no_name_and_is_the_default():
    assert PROTOCOLS[""] == Protocol()
    assert find_protocol("recycling-paper").instruction_role == "system"
    with pytest.raises(UsageError, match=r"paper is not a protocol; use one of .*recycling-paper"):
        find_protocol("paper")


def test_a_score_names_its_protocol_only_where_it_is_not_the_default():
    fields = {"adapter": "a", "task": "t", "split": "test", "metric": "accuracy", "value": 0.5, "n": 2}
    fields |= {"loss": 1.0, "base": "b", "seed": 0, "key": "k"}
    assert "protocol" not in TaskScore(**fields).document()
    assert TaskScore(**fields, protocol="recycling-paper").document()["protocol"] == "recycling-paper"
