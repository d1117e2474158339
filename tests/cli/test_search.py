"""Search where there is no text encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalog.errors import EncoderError
from catalog.index import encoder as embed
from tests.cli.conftest import Program


@pytest.fixture
def without_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is not installed, and the Hub is not reached."""

    def absent(*_: object, **__: object) -> None:
        raise ImportError("No module named 'sentence_transformers'")

    monkeypatch.setattr(embed, "_load_model", absent)


@pytest.mark.usefixtures("without_encoder")
def test_without_the_encoder_words_alone_decide_and_stderr_says_so(crawled: Program) -> None:
    result, by_words = crawled("search", "bob", "--json"), crawled("search", "bob", "--json", "--words")
    assert result.exit_code == by_words.exit_code == 0
    assert result.stdout == by_words.stdout
    assert [row["adapter"] for row in json.loads(result.stdout)] == ["bob/two"]
    assert result.stderr.startswith(
        "searching by words alone: The text encoder sentence-transformers/all-MiniLM"
    )
    assert "No module named" in result.stderr
    assert (result.stderr.count("\n"), by_words.stderr) == (1, "")


@pytest.mark.usefixtures("without_encoder")
def test_meaning_alone_needs_the_encoder(crawled: Program) -> None:
    refused = crawled("search", "bob", "--weights", "0,1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "cannot be loaded" in refused.stderr
    refused = crawled("search", "bob", "--weights", "0,1", "--words")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "words must count" in refused.stderr


@pytest.mark.usefixtures("without_encoder")
def test_a_pool_is_never_chosen_by_words_instead(crawled: Program, tmp_path: Path) -> None:
    with pytest.raises(EncoderError):
        embed.load_embedder()
    refused = crawled("select", "mine", "--by", "text", "--query", "bob", "-k", "1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "cannot be loaded" in refused.stderr


def test_a_name_that_is_none_is_an_error(crawled: Program) -> None:
    assert crawled("search", "bob", "--model", "no name").exit_code == 2
