"""`loradex tag`, `note`, `hide`, `annotations`: what a user writes stays, and leaves out what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import loradex
from catalog.adapters import AdapterNotes, adapter_name, valid_name
from catalog.errors import UsageError
from catalog.files import unsafe_path
from loradex.annotations import read_annotations, write_annotations
from tests.cli.conftest import Program

HEAD = '{"format": "loradex-annotations/1", "annotations":'
ROW = {"adapter", "hub_id", "subfolder", "tags", "note", "hidden"}


def document(run: Program, *words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def names(run: Program, *words: str) -> list[str]:
    return [row["adapter"] for row in document(run, *words)]


def test_tags_and_notes_are_fields_of_lists_and_filters(crawled: Program) -> None:
    row = document(crawled, "tag", "ann/one", "seed run", "candidate", "seed run")
    assert (set(row), row["tags"]) == (ROW, ["candidate", "seed run"])
    assert document(crawled, "tag", "ann/one")["tags"] == ["candidate", "seed run"]
    assert document(crawled, "note", "bob/two", "  ask the\nauthor ")["note"] == "ask the\nauthor"
    assert names(crawled, "adapters", "--where", 'mytag:"seed run"') == ["ann/one"]
    assert names(crawled, "adapters", "--where", "-mytag:*") == ["bob/two", "cat/three"]
    assert names(crawled, "adapters", "--where", "note:*") == ["bob/two"]
    shown = document(crawled, "show", "ann/one")
    assert [shown[name] for name in ("own_tags", "note", "hidden")] == [
        ["candidate", "seed run"],
        None,
        False,
    ]
    assert "candidate" not in shown["tags"]
    assert document(crawled, "tag", "ann/one", "candidate", "--remove")["tags"] == ["seed run"]
    assert document(crawled, "tag", "ann/one", "--remove")["tags"] == []
    assert document(crawled, "note", "bob/two", "--remove")["note"] is None
    assert names(crawled, "annotations", "list") == []


def test_hidden_adapters_are_left_out_and_counted(crawled: Program) -> None:
    assert [row["hidden"] for row in document(crawled, "hide", "ann/one", "bob/two")] == [True, True]
    for words, of in ((("adapters",), ""), (("search", "--words", "one two three"), " of the search")):
        note = f"2 hidden adapters are left out{of}; the filter hidden:yes lists them."
        result = crawled(*words, "--json")
        assert [row["adapter"] for row in json.loads(result.stdout)] == ["cat/three"], words
        assert note in result.stderr, words
    one = crawled("adapters", "--where", "owner:ann").stderr
    assert "1 hidden adapter is left out; the filter hidden:yes lists it." in one
    result = crawled("adapters", "--where", "hidden:yes", "--json")
    assert ([row["adapter"] for row in json.loads(result.stdout)], result.stderr) == (
        ["ann/one", "bob/two"],
        "",
    )
    assert len(names(crawled, "adapters", "--where", "hidden:yes,no")) == 3
    document(crawled, "hide", "--undo", "ann/one")
    assert names(crawled, "adapters") == ["ann/one", "cat/three"]
    # A typing error hides nothing.
    assert crawled("hide", "cat/three", "no/body").exit_code == 1
    assert names(crawled, "adapters") == ["ann/one", "cat/three"]


def test_hidden_adapters_are_not_selected_or_compared(sample_copy: loradex.Catalog) -> None:
    catalog = sample_copy
    nearest = catalog.similar("zoo/banking77", k=1)[0].adapter
    before = catalog.select("before", by="random", k=None)
    catalog.hide(nearest)
    assert catalog.similar("zoo/banking77", k=1)[0].adapter != nearest
    pool = catalog.select("after", by="random", k=None)
    assert len(pool.members) == len(before.members) - 1
    assert pool.left_out["hidden by you"] == 1
    assert any("1 hidden by you" in note for note in pool.notes)
    few = catalog.select("few", by="random", k=3)
    assert any(note.startswith("1 hidden adapter is left out") for note in few.notes)
    assert nearest not in {row.adapter for row in pool.members}
    chosen = catalog.select("hidden", by="random", k=None, where="hidden:yes")
    assert [row.adapter for row in chosen.members] == [nearest]
    note = "1 hidden adapter is left out of the comparison; the filter hidden:yes lists it."
    assert (catalog.duplicates().notes, catalog.families().notes) == ((note,), (note,))
    with pytest.raises(UsageError, match="is not among the adapters"):
        catalog.select("named", by="named", adapters=[nearest])


def test_neighbours_count_the_hidden_ones_among_them(sample_copy: loradex.Catalog) -> None:
    catalog, of = sample_copy, "zoo/banking77"
    near = [row.adapter for row in catalog.similar(of, k=100, verdict="any")]
    other = next(row.adapter for row in catalog.adapters(where="-verdict:skipped") if row.adapter not in near)
    assert catalog.similar(of, k=3, verdict="any").notes == ()
    # Of those that are hidden, one is of another base model, one too far, and one the adapter itself.
    for name in (other, near[-1], of, near[1]):
        catalog.hide(name)
    rows = catalog.similar(of, k=3, verdict="any")
    assert [row.adapter for row in rows] == [near[0], near[2], near[3]]
    assert rows.notes == (
        "1 of the 3 nearest is hidden by you and left out; the filter hidden:yes lists it.",
    )
    rows = catalog.similar(of, k=100, verdict="any")
    assert len(rows) == len(near) - 2
    among = f"2 of the {len(near)} nearest are hidden by you and left out"
    assert rows.notes == (f"{among}; the filter hidden:yes lists them.",)
    # The filter of the sentence lists them.
    shown = catalog.similar(of, k=100, where="hidden:yes", verdict="any")
    assert ([row.adapter for row in shown], shown.notes) == ([near[1], near[-1]], ())
    both = catalog.similar(of, k=100, where="hidden:yes,no", verdict="any")
    assert [row.adapter for row in both] == near
    owner = near[1].partition("/")[0]
    assert "nearest" in " ".join(catalog.similar(of, k=100, where=f"owner:{owner}", verdict="any").notes)


def test_a_crawl_leaves_them_alone_and_export_brings_them_back(
    crawled: Program, tmp_path: Path, data: Path
) -> None:
    crawled("tag", "ann/one", "mine")
    crawled("note", "ann/one", "kept")
    crawled("hide", "bob/two")
    file = tmp_path / "own.json"
    assert crawled("annotations", "export", str(file)).exit_code == 0
    first = file.read_bytes()
    catalog = loradex.open(data)
    catalog.tag("ann/one", remove=True)
    catalog.note("ann/one", "another")
    catalog.hide("bob/two", undo=True)
    result = crawled("annotations", "import", str(file), "--json")
    assert json.loads(result.stdout) == {"changed": 2, "same": 0, "kept_notes": ["ann/one"]}
    assert "1 notes of your own stay (ann/one); --replace replaces them" in result.stderr
    assert document(crawled, "annotations", "import", str(file), "--replace")["changed"] == 1
    crawled("annotations", "export", str(file))
    assert file.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tag", "ann/one", " "), "is not a tag"),
        (("tag", "ann/one", "a\nb"), "is not a tag"),
        (("tag", "ann/one", "x" * 101), "is not a tag"),
        (("note", "ann/one", ""), "A note has 1 to 10,000 characters"),
        (("note", "ann/one", "x", "--remove"), "not both"),
    ],
)
def test_what_is_no_tag_or_note_is_refused(crawled: Program, words: tuple[str, ...], sentence: str) -> None:
    result = crawled(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert names(crawled, "annotations", "list") == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[]", "its format is not"),
        ('{"format": "loradex-annotations/1"}', "has no list"),
        (
            f'{HEAD} [{{"adapter": "a/b"}}]}}',
            "annotation 1: it needs",
        ),
        (
            f'{HEAD} [{{"adapter": "a/b", "hub_id": "1", "subfolder": "", "tags": ["\\u0007"]}}]}}',
            "annotation 1: '\\x07' is not a tag",
        ),
        ("{", "is not a file of annotations"),
    ],
)
def test_an_invalid_file_changes_nothing(
    crawled: Program, tmp_path: Path, content: str, sentence: str
) -> None:
    file = tmp_path / "own.json"
    file.write_text(content)
    result = crawled("annotations", "import", str(file))
    assert result.exit_code == 2
    assert sentence in result.stderr.replace("\\\\", "\\")
    assert names(crawled, "annotations", "list") == []


def test_the_longest_names_of_a_crawl_return(tmp_path: Path) -> None:
    name, folder = f"{'o' * 96}/{'n' * 96}", "/".join(["d" * 204] * 5)
    assert valid_name(name)
    assert unsafe_path(folder) is None
    assert unsafe_path(folder + "d") == "is too long"
    row = AdapterNotes(adapter_name(name, folder), "h" * 64, folder, ("tag",), "note", hidden=True)
    write_annotations([row], tmp_path / "notes.json")
    assert read_annotations(tmp_path / "notes.json") == [row]
