"""Logs of steps from elsewhere: what is not one is said with its line, and nothing ends in a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.errors import StorageError
from studies.log import read_log
from studies.store import LOG, RESULT, TIME, Place, Step

KEY = "0" * 32
SCORE = {"value": 0.5, "loss": 1.0, "n": 2}
SOUND: dict[str, dict[str, Any]] = {
    "score": {"score": SCORE},
    "merge": {"adapter": f"{KEY}/adapter", "detail": {}},
    "pool": {"members": [{"name": "a"}, {"adapter": f"{KEY}/members/b"}], "detail": {}},
    "single": {"name": "a", "detail": {}},
    "measured": {"base": SCORE, "scores": {"a": SCORE}},
    "gradient": {"scores": {"a": 0.1}},
    "train": {"adapter": f"{KEY}/adapter", "detail": {"valid_loss": 1.0, "learning_rate": 1e-3}},
    "cards": {"cards": 2, "learning_rate": [1e-4], "rank": [8]},
    "a later kind": {"anything": 1},
}


def line(kind: str = "score", **more: Any) -> dict[str, Any]:
    return {"step": KEY, "kind": kind, "seconds": 1.0, "result": SOUND.get(kind, {}), **more}


def place(folder: Path) -> Place:
    return Place(folder, "base", None, "cpu", 1, {}, {})


def test_sound_lines_are_read_and_a_last_one_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / LOG
    lines = [line(kind, step=f"{n:032x}") for n, kind in enumerate(SOUND)]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    log.write_text(text)
    assert [row["kind"] for row in read_log(log).values()] == list(SOUND)
    assert read_log(log)[f"{0:032x}"]["result"] == SOUND["score"]
    for cut in range(1, len(json.dumps(lines[-1]))):
        log.write_bytes(text.encode()[: -1 - cut])
        assert len(read_log(log)) == len(lines) - 1
    log.write_text(text[:-1])
    assert len(read_log(log)) == len(lines), "whole, without its line end"
    log.write_text(text + text)
    assert len(read_log(log)) == len(lines), "the same line twice"
    log.write_text("")
    assert read_log(log) == {}


@pytest.mark.parametrize(
    ("document", "what"),
    [
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "it is not an object"),
        ("{}", "step is missing"),
        (line(step="../up"), "step is not a key"),
        (line() | {"kind": []}, "kind is not a name"),
        (line(seconds="long"), "seconds is not a number"),
        (line(seconds=-1), "seconds is not a number"),
        (line(seconds=True), "seconds is not a number"),
        (line(result=[1]), "its result is not an object"),
        (line(result={}), "its result lacks score"),
        (line(result={"score": 0.5}), "score of its result is not valid"),
        (line(result={"score": {"value": 0.5, "loss": 1.0}}), "score of its result is not valid"),
        (line(result={"score": {"value": "x", "loss": 1.0, "n": 1}}), "score of its result is not valid"),
        (line(result={"score": SCORE | {"value": None}}), "score of its result is not valid"),
        (line(result={"score": SCORE | {"value": 5.0}}), "score of its result is not valid"),
        (line(result={"score": SCORE | {"loss": 1e300}}), "score of its result is not valid"),
        (line(result={"score": SCORE | {"n": 0}}), "score of its result is not valid"),
        (line(result={"score": SCORE | {"n": True}}), "score of its result is not valid"),
        (line(result={"score": SCORE, "detail": {"energy": math.nan}}), "it is not JSON"),
        (line("a later kind", result={"anything": math.inf}), "it is not JSON"),
        (line(result={"score": SCORE, "detail": {"name": "\ud800"}}), "it is not JSON"),
        (line(result={"score": SCORE, "detail": {"energy": 10**400}}), "it is not JSON"),
        (line(seconds=1e300), "seconds is not a number"),
        (line(result={"score": SCORE | {"value": 0.6}}), "an earlier line has another result of it"),
        (line(result={"score": SCORE, "detail": []}), "detail of its result is not valid"),
        (line("merge", result={"adapter": "../../else"}), "adapter of its result is not valid"),
        (line("merge", result={"adapter": f"{KEY}/../../else"}), "adapter of its result is not valid"),
        (line("merge", result={"adapter": "/etc"}), "adapter of its result is not valid"),
        (line("pool", result={"members": [], "detail": {}}), "members of its result is not valid"),
        (line("pool", result={"members": ["a"], "detail": {}}), "members of its result is not valid"),
        (
            line("train", result={"adapter": f"{KEY}/a", "detail": {}}),
            "detail of its result lacks valid_loss",
        ),
        (line("measured", result={"base": SCORE, "scores": {"a": 1}}), "scores of its result is not valid"),
        (line("gradient", result={"scores": {"a": SCORE}}), "scores of its result is not valid"),
        (line("single", result={"detail": {}}), "its result names no adapter"),
        (line("measured", result={"base": SCORE, "scores": [1]}), "scores of its result is not valid"),
    ],
)
def test_a_line_that_is_no_step_is_said_with_its_number(document: Any, what: str, tmp_path: Path) -> None:
    text = document if isinstance(document, str) else json.dumps(document)
    log = tmp_path / LOG
    log.write_text(f"{json.dumps(line())}\n{text}\n{json.dumps(line())}\n")
    with pytest.raises(StorageError, match=f"{LOG} line 2 is not the result of a step: {what}") as error:
        read_log(log)
    assert str(error.value).endswith("; remove that line.")
    with pytest.raises(StorageError, match="line 2"):
        place(tmp_path).result(Step("score", {}))


def test_bytes_that_are_no_text_are_said_with_their_line(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"\xff\xfe\x00\n")
    with pytest.raises(StorageError, match="line 1 is not the result of a step: it is not JSON"):
        read_log(tmp_path / LOG)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["score", "detail", "members", "adapter", "scores", "base", "cards", "learning_rate"]),
    st.sampled_from(list(SOUND)),
)
def test_no_result_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, value: Any, name: str, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    document = line(kind, result={**SOUND[kind], name: value})
    (folder / LOG).write_text(f"{json.dumps(document)}\n")
    try:
        (row,) = read_log(folder / LOG).values()
    except StorageError:
        return
    place(folder).absent_makers(row["result"])


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        (RESULT, "[]", "is not the record of a step"),
        (RESULT, '{"score": 1}', "score of its result is not valid"),
        (RESULT, "{", "cannot be read"),
        (
            RESULT,
            '{"score": {"value": 0.5, "loss": 1.0, "n": 2}, "detail": {"energy": NaN}}',
            "cannot be read",
        ),
        (RESULT, "[" * 100_000, "cannot be read"),
        (TIME, "{}", "does not say how long"),
    ],
)
def test_a_step_in_the_folder_is_checked_as_those_of_a_log_are(
    name: str, text: str, what: str, tmp_path: Path
) -> None:
    step = Step("score", {})
    folder = tmp_path / "steps" / step.key
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    with pytest.raises(StorageError, match=what):
        place(tmp_path).seconds(step) if name == TIME else place(tmp_path).result(step)


@pytest.mark.parametrize(
    ("kind", "params", "result", "what"),
    [
        ("pool", {}, {"members": [{"name": "a"}, {"name": "b"}], "detail": {}}, "names b, which is not an"),
        ("single", {}, {"name": "b", "detail": {}}, "names b, which is not an adapter of the study"),
        ("gradient", {"adapters": [{"name": "a"}, {"name": "b"}]}, {"scores": {"a": 0.1}}, "the score of b"),
        ("measured", {"adapters": [{"name": "a"}]}, {"base": SCORE, "scores": {}}, "lacks the score of a"),
    ],
)
def test_a_result_of_other_adapters_is_refused(
    kind: str, params: dict[str, Any], result: dict[str, Any], what: str, tmp_path: Path
) -> None:
    step = Step(kind, params)
    (tmp_path / LOG).write_text(f"{json.dumps(line(kind, step=step.key, result=result))}\n")
    at = Place(tmp_path, "base", None, "cpu", 1, {}, {"a": tmp_path})
    with pytest.raises(StorageError, match=what):
        at.result(step)
