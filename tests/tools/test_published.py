"""What is made of the published tables: worked by hand on a small folder, to the digit on the real one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from catalog.errors import NotFoundError, UsageError
from catalog.scores import holm
from studies.report.judging import BETTER, LITTLE_BETTER
from studies.report.page import Figure, TableSection, Text
from tests.shared_data import data, shared
from tools.published import PARTS, Row, digests, sections
from tools.published.claims import PAPER, judge
from tools.published.quoted import QUOTED, Quoted, find_figure, make_row

QV = ["q_proj", "v_proj"]
ALL = [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FILES = {
    "pool_ids.txt": "o/a\no/b\np/12345678-1234-1234-1234-123456789abc\n",
    "adapter_info.json": json.dumps(
        {
            "o/a": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": QV, "eos_token": None},
            "o/b": {"r": 8, "lora_alpha": 8, "lora_dropout": 0, "target_modules": ALL, "eos_token": "</s>"},
            "p/12345678-1234-1234-1234-123456789abc": {},
        }
    ),
    # n/x and n/y do nothing.
    "scores_100_samples.csv": (
        "adapter,anli,cola,mnli,rte,sst\no/a,0.6,0.1,0.2,0.5,0.9\no/b,0.4,0.3,0.6,0.7,0.5\n"
        "p/12345678-1234-1234-1234-123456789abc,0.2,0.9,0.4,0.3,0.7\n"
        "n/x,0.5,0.5,0.5,0.5,0.5\nn/y,0.5,0.5,0.5,0.5,0.5\n"
    ),
    "scores_test_a.csv": (
        "adapter,anli,rte\no/a,0.7,0.3\no/b,0.5,0.8\n"
        "p/12345678-1234-1234-1234-123456789abc,0.3,0.4\nn/x,0.5,0.6\nn/y,0.5,0.6\n"
    ),
    # sst under the name of its configuration; other is no merged task.
    "zero_shot_performance.csv": "task,zero_shot\nanli,0.5\nrte,0.6\nmain,0.25\nother,0.1\n",
    "merged_performance_eval_experts_summary.csv": (
        "task,performance_agg,performance_agg_wo_target,performance_tsv,performance_tsv_wo_target,"
        "performance_ties,performance_ties_wo_target\n"
        "anli,0.7,0.6,0.5,0.5,0.4,0.4\nrte,0.8,0.7,0.6,0.6,0.5,0.6\nsst,0.35,0.45,0.25,0.3,0.2,0.2\n"
        "yor,,,,,,\n"
    ),
    "lora_baseline_10_results.csv": "task,test_accuracy\nanli,0.6\nrte,0.5\nsst,0.5\n",
    "tasks.yaml": (
        "anli:\n  path: [facebook/anli]\n  instruction: Entailed?\nrte:\n  instruction: Does it follow?\n"
        "sst:\n  path: [owner/sst, main]\n  instruction: Good or bad?\n"
    ),
}


def write_folder(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """The rows of every part of the small folder, to be read."""
    place = write_folder(tmp_path_factory.mktemp("tables"))
    return {name: part(place) for name, part in PARTS.items()}


@cache
def recycling_rows(part: str) -> tuple[Row, ...]:
    """The rows of a part of the paper's tables, to be read."""
    return tuple(PARTS[part](data("recycling_paper")))


def found(rows: Sequence[Row], name: str, column: str = "value") -> Row:
    return next(row for row in rows if (row["row"], row["column"]) == (name, column))


def value(rows: Sequence[Row], name: str, column: str = "value") -> float:
    document = found(rows, name, column)["value"]
    assert document is not None
    return document


def test_the_pool_is_counted(small_parts: dict[str, list[Row]]) -> None:
    rows = small_parts["pool"]
    expected = {
        "adapters": 3,
        "with a known configuration": 2,
        "owners": 2,
        "owners of adapters with a known configuration": 1,
        "owner o": 2,
        "a UUID in the name": 1,
        "named by a UUID, configuration known": 0,
        "rank 8": 1,
        "rank 16": 1,
        "rank, mean": 12,
        "alpha / rank 2": 1,
        "alpha / rank 1": 1,
        "targets q, v": 1,
        "targets all 7 linear": 1,
        # 32 layers: q and v are 4096 in with 4096 and 1024 out; all seven add up to 81,920 widths a layer.
        "parameters, 10⁹": (16 * (8192 + 5120) * 32 + 8 * 81_920 * 32) / 1e9,
        "ranks of 30 at random, mean of the sum": 24,
        "adapters scored on test": 5,
        "adapters scored on test, not in the pool": 2,
        "no-op adapters": 2,
        "no-op adapters in the pool": 0,
    }
    assert {name: value(rows, name) for name in expected} == pytest.approx(expected)
    assert all(row["low"] is None and row["tasks"] is None for row in rows)


def test_adapters_alone_by_hand(small_parts: dict[str, list[Row]]) -> None:
    rows = small_parts["alone"]
    scores = {
        "base model": 0.55,
        "new LoRA of 10 samples": 0.55,
        "adapter at random": 0.5,
        "30 best of the 100 samples, mean": 0.5,
        # o/a on anli, o/b on rte.
        "best of the 100 samples": 0.75,
        "best of the test itself": 0.75,
    }
    assert {name: value(rows, name, "score") for name in scores} == pytest.approx(scores)
    best = found(rows, "best of the 100 samples", "less base")
    assert (best["value"], best["low"], best["high"], best["tasks"]) == pytest.approx((0.2, 0.2, 0.2, 2))
    new = found(rows, "best of the 100 samples", "less new LoRA")
    # .1 and .3: an error of .1, and t of one degree of freedom is 12.7062.
    assert (new["value"], new["low"], new["high"]) == pytest.approx((0.2, -1.07062, 1.47062))
    assert new["by_task"] == pytest.approx({"anli": 0.1, "rte": 0.3})
    # anli: the same order and distances; rte: .08 / sqrt(.08 * .14), and ranks 2 3 1 against 1 3 2.
    pearson = (1 + 0.08 / (0.08 * 0.14) ** 0.5) / 2
    assert value(rows, "correlation of 100 samples and test, median task") == pytest.approx(pearson)
    assert value(rows, "rank correlation of 100 samples and test, median task") == pytest.approx(0.75)
    assert value(rows, "share of the pool above the base, median task") == pytest.approx(1 / 3)
    assert value(rows, "pool adapter's mean over tasks, mean") == pytest.approx(0.5)
    assert value(rows, "adapters above the base on average") == 1


def test_merges_are_paired_with_base_and_new_lora(small_parts: dict[str, list[Row]]) -> None:
    rows = small_parts["merged"]
    average, own = "simple average", "simple average, own LoRA among them"
    assert value(rows, average, "score") == pytest.approx(1.75 / 3)
    # .1 .1 .2 against .5 .6 .25, 0 .2 -.05 against .6 .5 .5.
    less = found(rows, average, "less zero-shot")
    # Gains .1 .1 .2: an error of 1/30, and t of two degrees of freedom is 4.302653.
    ends = 0.4 / 3 - 4.302653 / 30, 0.4 / 3 + 4.302653 / 30
    assert (less["value"], less["low"], less["high"], less["tasks"]) == pytest.approx((0.4 / 3, *ends, 3))
    less = found(rows, average, "less new LoRA")
    # 0 .2 -.05: a variance of .0175.
    half = 4.302653 * (0.0175 / 3) ** 0.5
    assert (less["value"], less["low"], less["high"]) == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    assert less["by_task"] == pytest.approx({"anli": 0.0, "rte": 0.2, "sst": -0.05})
    assert value(rows, own, "less the same without it") == pytest.approx(0.1 / 3)
    assert value(rows, average, "score, zero-shot by name") == pytest.approx(0.65)
    assert found(rows, average, "score, zero-shot by name")["tasks"] == 2
    assert value(rows, "zero-shot, every row of its file", "score") == pytest.approx(1.45 / 4)


@pytest.mark.slow
def test_relevance_is_what_the_best_gain_alone(small_parts: dict[str, list[Row]]) -> None:
    rows = small_parts["relevance"]
    alone = {"anli": -0.1, "rte": 0.0, "sst": 0.2}
    assert {name: value(rows, name, "gain alone") for name in alone} == pytest.approx(alone)
    # Gains .1 .1 .2: ranks 1.5 1.5 3 against 1 2 3.
    assert value(rows, "simple average", "rank correlation") == pytest.approx(1.5 / 3**0.5)
    assert value(rows, "simple average", "gain, more relevant half") == pytest.approx(0.2)
    assert value(rows, "simple average", "gain, less relevant half") == pytest.approx(0.1)


def test_the_leaderboard_as_rows(small_parts: dict[str, list[Row]]) -> None:
    rows = small_parts["leaderboard"]
    # One adapter gains on each task; at random it stands at any of three places.
    assert value(rows, "random", "nDCG@30") == pytest.approx((1 + 1 / 1.584962500721156 + 0.5) / 3)
    assert value(rows, "oracle", "nDCG@30") == pytest.approx(1)
    assert value(rows, "all x 100: raw", "top-1") == pytest.approx(0.75)
    assert value(rows, "all x 100: raw", "top-1 less random") == pytest.approx(0.25)
    # Whole tenths were measured on ten samples: three adapters of ten.
    assert value(rows, "all x 100: raw", "samples") == 30


@pytest.mark.slow
def test_parts_are_the_same_twice_and_plain_json(folder: Path, small_parts: dict[str, list[Row]]) -> None:
    for name, part in PARTS.items():
        texts = (
            json.dumps(rows, allow_nan=False, sort_keys=True) for rows in (small_parts[name], part(folder))
        )
        first, second = texts
        assert first == second, name
        assert all(row["part"] == name for row in json.loads(first))


@pytest.mark.slow
def test_the_report_is_made_of_the_rows_that_are_there(small_parts: dict[str, list[Row]]) -> None:
    rows = [row for part in small_parts.values() for row in part]
    read = json.loads(json.dumps(rows))
    result = sections(read)
    assert result == sections(read), "pictures included"
    assert [type(section) for section in result].count(Figure) == 3
    assert all(
        len(row) == len(item.columns)
        for item in result
        if isinstance(item, TableSection)
        for row in item.rows
    )
    assert all(item.svg.startswith("<svg") for item in result if isinstance(item, Figure))
    titles = [section.title for section in result]
    without = [section.title for section in sections([row for row in rows if row["part"] != "relevance"])]
    assert [title for title in titles if title not in without] == [
        "Do merges gain where relevant adapters are?",
        "Gain of the simple average by the relevance of the pool",
    ]
    assert sections([]) == []


def first_claim(*gaps: float) -> Row:
    """The row of the first claim of the paper, of these differences."""
    claim = PAPER[0]
    by_task = {f"t{n}": gap for n, gap in enumerate(gaps)}
    return make_row(*claim.key, float(np.mean(gaps)), tasks=len(gaps), by_task=by_task)


@pytest.mark.parametrize(
    ("gaps", "way", "numbers", "mark"),
    [
        # An error of .001 beside a mean of .05, Holm's 14 claims included.
        ([0.048, 0.052] * 4, "is above", "+0.050 [+0.048, +0.052]", "contradicted"),
        ([-0.048, -0.052] * 4, "is below", "−0.050 [−0.052, −0.048]", "confirmed"),
        ([-0.1, 0.12] * 4, "cannot be told from", "+0.010 [−0.088, +0.108]", "open"),
        ([-0.01, 0.012] * 4, "is about the same as", "+0.001 [−0.009, +0.011]", "confirmed"),
        ([0.009, 0.011] * 4, "is above, by less than the margin,", "+0.010 [+0.009, +0.011]", "open"),
        # Alone this would be better: p .015, by Holm .21.
        ([0.0, 0.1] * 4, "cannot be told from", "+0.050 [+0.005, +0.095]", "open"),
        ([0.05, 0.06], "is of too few tasks to be told from", "+0.055 [−0.009, +0.119]", "open"),
    ],
)
def test_what_is_said_follows_the_test_over_the_family(
    gaps: list[float], way: str, numbers: str, mark: str
) -> None:
    made = sections([first_claim(*gaps)])
    text = next(section for section in made if isinstance(section, Text))
    message = f"The simple average of 30 adapters {way} a new LoRA of 10 samples: {numbers} over "
    assert any(message in paragraph for paragraph in text.paragraphs)
    table = next(section for section in made if isinstance(section, TableSection))
    first, *others = table.rows
    assert first[1] == mark
    assert [row[2] for row in others] == ["nothing to compare"] * (len(PAPER) - 1)


def test_claims_are_judged_as_those_of_studies_are() -> None:
    rng = np.random.default_rng(0)
    gaps = {claim.key: dict(enumerate(rng.normal(0.02, 0.03, size=23))) for claim in PAPER}
    ps = [ttest_1samp(list(values.values()), 0).pvalue for values in gaps.values()]
    judged = judge(PAPER, {key: {str(n): gap for n, gap in values.items()} for key, values in gaps.items()})
    assert [row.judgement.holm_p for row in judged] == pytest.approx(holm(ps))
    for row in judged:
        assert (row.judgement.word in (BETTER, LITTLE_BETTER)) == (
            row.judgement.holm_p is not None and row.judgement.holm_p <= 0.05
        )


def test_a_word_that_falls_without_a_task_rests_on_it() -> None:
    gaps = [0.05, 0.04, -0.03, 0.06, 0.02, 0.05, 0.01, 0.03]
    (judged,) = judge(PAPER[:1], {PAPER[0].key: {f"t{n}": gap for n, gap in enumerate(gaps)}})
    expected = []
    for n in range(8):
        rest = gaps[:n] + gaps[n + 1 :]
        if ttest_1samp(rest, 0).pvalue > 0.05:
            expected.append(f"t{n}")
    assert judged.judgement.word == BETTER
    assert judged.judgement.rests_on == tuple(expected)
    assert 0 < len(expected) < 8


def test_a_figure_agrees_when_it_is_the_number_rounded() -> None:
    assert Quoted("0.577").agrees(0.5765023)
    assert not Quoted("0.577").agrees(0.5764)
    assert Quoted("0.500").agrees(0.50023)
    assert Quoted("35357").agrees(35357.0)


def test_digests_name_what_is_read_and_what_is_missing(folder: Path) -> None:
    assert sorted(digests(folder)) == sorted(FILES)
    before = digests(folder)
    (folder / "tasks.yaml").write_text(FILES["tasks.yaml"] + "# more\n")
    after = digests(folder)
    assert [name for name in after if after[name] != before[name]] == ["tasks.yaml"]
    (folder / "scores_test_a.csv").unlink()
    (folder / "pool_ids.txt").unlink()
    with pytest.raises(NotFoundError, match=r"lacks scores_test\*.csv, pool_ids.txt; name the folder"):
        digests(folder)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("pool", "pool_ids.txt"),
        ("pool", "adapter_info.json"),
        ("pool", "scores_100_samples.csv"),
        ("alone", "scores_test_a.csv"),
        ("alone", "zero_shot_performance.csv"),
        ("alone", "lora_baseline_10_results.csv"),
        ("merged", "tasks.yaml"),
        ("merged", "merged_performance_eval_experts_summary.csv"),
    ],
)
def test_a_part_without_its_file_says_so_in_a_sentence(part: str, name: str, folder: Path) -> None:
    (folder / name).unlink()
    output = name.replace("_a.csv", r"\*.csv")
    with pytest.raises(NotFoundError, match=f" lacks {output}; name the folder of the published tables.$"):
        PARTS[part](folder)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is no JSON"), ("[]", "no configurations"), ("{}", "no adapter's")]
)
def test_configurations_that_are_none(text: str, words: str, folder: Path) -> None:
    (folder / "adapter_info.json").write_text(text)
    with pytest.raises(UsageError, match=words):
        PARTS["pool"](folder)


def test_tables_without_a_judged_task(folder: Path) -> None:
    (folder / "scores_test_a.csv").write_text("adapter,unmeasured\no/a,0.5\n")
    with pytest.raises(UsageError, match="no task that was both measured and judged"):
        PARTS["alone"](folder)


@shared
@pytest.mark.parametrize(("part", "figures"), [("pool", 65), ("merged", 16), ("headline", 1)])
def test_figures_in_print_come_out_to_the_digit(part: str, figures: int) -> None:
    checked: list[tuple[str, str, float, Quoted]] = []
    for row in recycling_rows(part):
        one = find_figure(row)
        if one and one.complete and row["value"] is not None:
            checked.append((row["row"], row["column"], row["value"], one))
    assert len(checked) == figures
    wrong = [document for document in checked if not document[3].agrees(document[2])]
    # The figure in print is a mean of draws; 30 times the mean rank is 1,110.7.
    expected = ["ranks of 30 at random, mean of the sum"] if part == "pool" else []
    assert [document[0] for document in wrong] == expected
    assert all(document[3].why for document in wrong)


@shared
@pytest.mark.slow
def test_every_figure_in_print_stands_beside_a_number() -> None:
    rows = {
        (row["part"], row["row"], row["column"])
        for part in ("pool", "merged", "alone", "headline")
        for row in recycling_rows(part)
    }
    assert {key for key in QUOTED if key[0] != "leaderboard"} <= rows


@shared
def test_the_merges_have_intervals_over_their_tasks() -> None:
    rows = recycling_rows("merged")
    document: dict[str, Any] = {
        "simple average": ("less zero-shot", 61, 1),
        "TSV": ("less zero-shot", 61, 1),
        "TIES": ("less zero-shot", 61, -1),
        "simple average, own LoRA among them": ("less the same without it", 62, 1),
        "TSV, own LoRA among them": ("less the same without it", 62, 0),
    }
    for name, (column, tasks, sign) in document.items():
        row = found(rows, name, column)
        assert row["tasks"] == tasks
        assert row["low"] is not None
        assert row["high"] is not None
        assert (row["low"] > 0) - (row["high"] < 0) == sign, name


@shared
@pytest.mark.slow
def test_the_page_holds_the_tables_of_the_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results" / "published.md").read_text(encoding="utf-8")
    parts = ("alone", "merged", "relevance")
    rows = [row for part in parts for row in recycling_rows(part)]
    # Claims are of all parts together.
    tables = [
        section
        for section in sections(rows)
        if isinstance(section, TableSection) and not section.title.startswith("Claims ")
    ]
    lines = [
        "| " + " | ".join(cell or " " for cell in row) + " |" for section in tables for row in section.rows
    ]
    assert len(lines) == 29
    written = [" ".join(line.split()) for line in page.splitlines()]
    assert [line for line in lines if " ".join(line.split()) not in written] == []
