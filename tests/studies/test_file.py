"""A study's file: what it may say, and how it is told where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.errors import NotFoundError, UsageError
from studies.design import Study, Train, all_labels, points, settle_method
from studies.file import built_in, read_study
from tests.studies.grids import check_refusal

GOOD = """\
study: one
title: One
base: some/base
tasks: {from: here, names: [a, b], train: 8, valid: 2}
adapters: {from: there}
pools:
  near: {by: gradient, k: 3}
methods:
  base: {use: base}
  new: {use: train, learning_rate: 1e-3, over: {rank: [4, 8]}}
  tuned: {use: train, learning_rates: [1e-3, 2e-3]}
  sum:
    use: merge
    method: ties
    parameters: {density: 0.3}
  learned: {use: adapt, method: recycling, with: tuned}
report:
  against: tuned
  claims:
    - claim: better
      compare: learned | near
      with: tuned
"""


def read(tmp_path: Path, text: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    content = read_study(str(path)).study
    assert isinstance(content, Study)
    return content


def test_a_good_file_says_what_it_says(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    new = study.methods["new"]
    assert isinstance(new, Train)
    # A number without a dot, as YAML 1.2 reads it and YAML 1.1 does not.
    assert new.learning_rate == 1e-3
    assert list(all_labels(study)) == [
        "base", "new, rank=4", "new, rank=8", "tuned", "sum | near", "learned | near",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("title: One", "titel: One", 2, "did you mean title"),
        ("title: One\n", "", 1, "title: this is missing"),
        ("train: 8", "train: 0", 4, "greater than or equal to 1, not 0"),
        ("by: gradient, k: 3", "by: gradient", 7, "give the number of members"),
        ("by: gradient", "by: gradiant", 7, "'gradient', 'measured'"),
        ("  base: {use: base}", "  base: {use: bass}", 9, "one of base, train"),
        ("learning_rate: 1e-3, over", "learning_rat: 1e-3, over", 10, "did you mean learning_rate"),
        ("rank: [4, 8]", "rank: [4, 0]", 10, "rank of new"),
        ("rank: [4, 8]", "depth: [4, 0]", 10, "depth of new"),
        ("[1e-3, 2e-3]", "[1e-3, -2e-3]", 11, "greater than 0"),
        ("method: ties", "method: tise", 14, "did you mean"),
        ("{density: 0.3}", "{desnity: 0.3}", 15, "did you mean density"),
        ("{density: 0.3}", "{density: 3}", 15, "density must be"),
        ("method: recycling", "method: recyclign", 16, "did you mean recycling"),
        ("with: tuned}", "with: base}", 16, "there is new, tuned"),
        ("with: tuned}", "with: new}", 16, "several settings"),
        ("[1e-3, 2e-3]}", "[1e-3, 2e-3], variant: dora}", 16, "tuned trains dora, which no merge holds"),
        ("against: tuned", "against: tune", 18, "did you mean tuned"),
        ("compare: learned | near", "compare: learned | far", 21, "'learned | far' is unknown"),
        ("  near: {by: gradient, k: 3}", "  near: {by: gradient, k: 3}\n  near: {by: all}", 8, "is repeated"),
        ("study: one", "study: [one", 2, "not valid YAML"),
        ("study: one", "? [a, b]\n: 1\nstudy: one", 1, "a name must be a word"),
        ("with: tuned}", "with: tuned, pools: []}", 16, "learned needs a pool"),
        ("adapters: {from: there}\n", "", 6, "give their folder by adapters"),
        ("with: tuned}", "with: tuned, pools: [nar]}", 16, "did you mean near"),
        ("with: tuned}", "with: tuned, seeds: [0, 7]}", 16, "the study has no seed 7"),
        ("gradient, k: 3}", "gradient, k: 3, seeds: [4]}", 7, "the study has no seed 4"),
        ("gradient, k: 3}", "gradient, k: 3, seeds: []}", 7, "at least 1 item"),
        ("gradient, k: 3}", "gradient, k: 3, among: []}", 7, "at least 1 item"),
        ("gradient, k: 3}", f"gradient, k: {10**30}}}", 7, "less than or equal to 2147483647"),
        ("names: [a, b]", "names: []", 4, "tasks.names: it should have at least 1 item"),
        ("names: [a, b]", "names: a", 4, "tasks.names: it should be a list, not 'a'"),
        ("names: [a, b]", "names: [a, b, a]", 4, "'a' is given twice"),
        ("{from: there}", "{from: there, names: [x, x]}", 5, "'x' is given twice"),
        ("base: some/base", "base: ''", 3, "base: it should have at least 1 character"),
        ("base: some/base", 'base: "a\\0b"', 3, "a character that no file holds"),
        ("title: One", 'title: "\\ud800"', 2, "a character that no file holds"),
        ("train: 8", f"train: {'x' * 5000}", 4, f"not '{'x' * 58}…."),
        ("{use: base}", "{use: base, tasks: []}", 9, "methods.base.tasks: it should have at least 1 item"),
        ("  base: {", '  "b\\x85c": {', 9, "a name has 1 to 60 characters"),
        ("  base: {", '  "b\\u2028c": {', 9, "a name has 1 to 60 characters"),
        ("  base: {", '  "b\\x07c": {', 9, "a name has 1 to 60 characters"),
        ("rank: [4, 8]", "rank: [4, 4]", 10, "two settings are called 'new, rank=4'"),
        ("rank: [4, 8]", "dropout: [0.1234567, 0.1234568]", 10, "are called 'new, dropout=0.123457'"),
        ("rank: [4, 8]", f"rank: [{10**30}]", 10, "rank of new"),
        ("method: ties", "method: ties\n    weight: .nan", 15, "weight: it should be"),
        ("method: ties", "method: ties\n    weight: 1e300", 15, "weight: it should be"),
        ("method: ties", "method: ties\n    pools: [near, near]", 15, "this pool is given twice"),
        (", with: tuned}", ", over: {with: [nothing]}}", 16, "with must name a method that trains"),
        (", with: tuned}", ", over: {with: [base]}}", 16, "with must name a method that trains"),
        ("with: tuned}", "with: tuned, over: {method: [recyclign]}}", 16, "did you mean recycling"),
        ("with: tuned}", "with: tuned, over: {method: [target-continued]}}", 16, "a method of its own"),
        ("compare: learned | near", "compare: tuned", 22, "compares a row with itself"),
        ("      with: tuned\n", "      with: tuned\n      margn: 0.1\n", 23, "did you mean margin"),
        ("pools:\n", "seeds: [-1, 10000000000000000000]\npools:\n", 6, "seeds.1: it should be less than"),
        ("pools:\n", "sets: {siez: 7}\npools:\n", 6, "did you mean size"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert GOOD.count(old) == 1
    check_refusal(tmp_path, GOOD.replace(old, new), line, words)


def test_a_grid_without_an_end_is_refused_before_it_is_gone_through(tmp_path: Path) -> None:
    values = ", ".join(map(str, range(1, 60)))
    over = ", ".join(f"{name}: [{values}]" for name in ("rank", "steps", "batch", "alpha", "learning_rate"))
    with pytest.raises(UsageError, match="line 10: the study has more than 100,000 cells a task"):
        read(tmp_path, GOOD.replace("learning_rate: 1e-3, over: {rank: [4, 8]}", f"over: {{{over}}}"))
    seeds = ", ".join(map(str, range(19_000)))
    with pytest.raises(UsageError, match="the study has more than 100,000 cells a task"):
        read(tmp_path, GOOD.replace("pools:", f"seeds: [{seeds}]\npools:", 1))


def test_a_method_and_its_pool_need_a_seed_in_common(tmp_path: Path) -> None:
    text = GOOD.replace("k: 3}", "k: 3, seeds: [0]}").replace("with: tuned}", "with: tuned, seeds: [1]}")
    with pytest.raises(UsageError, match="line 17: learned and the pool near have no seed in common"):
        read(tmp_path, text.replace("adapters:", "seeds: [0, 1]\nadapters:"))


@pytest.mark.parametrize("told", ["", "methods:", "methods: {}", "methods: [base]", "methods: {a: base}"])
def test_methods_that_are_none_are_one_sentence(tmp_path: Path, told: str) -> None:
    with pytest.raises(UsageError, match=r"study\.yaml line \d+: methods") as document:
        read(tmp_path, GOOD[: GOOD.index("methods:")] + told + "\n")
    assert "\n" not in str(document.value)


def test_files_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"one of .*recycling"):
        read_study(str(tmp_path / "nothing.yaml"))
    with pytest.raises(UsageError, match="is not a study"):
        read(tmp_path, "- a\n- b\n")
    with pytest.raises(UsageError, match="is not a study"):
        read(tmp_path, "")
    with pytest.raises(UsageError, match="not valid YAML"):
        read(tmp_path, "study: !!python/object/apply:os.system [true]\n")


def test_every_study_that_comes_with_the_program_can_be_read() -> None:
    assert {"recycling", "recycling-paper", "lego", "learning_rate", "small"} <= set(built_in())
    for name in built_in():
        assert read_study(name).study.study.replace("-", "_") == name.replace("-", "_")


def test_a_grid_of_settings_goes_through_all_points() -> None:
    assert list(points({"a": [1, 2], "b": ["x", "y"]})) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip
    assert list(points({})) == [{}]


def test_a_point_of_a_merge_sets_its_parameters(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD.replace("parameters: {density: 0.3}", "over: {density: [0.1], rank: [7]}"))
    result = settle_method(study.methods["sum"], {"density": 0.1, "rank": 7})
    assert (result.model_dump()["parameters"], result.model_dump()["rank"]) == ({"density": 0.1}, 7)


def test_a_study_is_read_to_its_limit_whatever_size_is_stated(tmp_path: Path) -> None:
    endless = tmp_path / "endless.yaml"
    endless.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(UsageError, match="too large for a study"):
        read_study(str(endless))
