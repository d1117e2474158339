"""Which results of a crawl are written together."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future

import pytest

from crawler.crawl import items
from crawler.crawl.items import ItemTask


def _window(*names: str, done: int) -> deque[ItemTask]:
    window = deque(ItemTask(position, name, name) for position, name in enumerate(names))
    for task in list(window)[:done]:
        task.result.set_result(None)  # type: ignore[arg-type]
    return window


def _names(batch: list[ItemTask]) -> str:
    return "".join(task.name for task in batch)


def test_results_that_come_soon_are_written_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "WRITE_DELAY", 60.0)
    window = _window("a", "b", "c", done=1)
    late: list[Future[object]] = [task.result for task in list(window)[1:]]  # type: ignore[misc]
    timers = [threading.Timer(0.02 * place, future.set_result, [None]) for place, future in enumerate(late)]
    for timer in timers:
        timer.start()
    assert _names(items._ready(window, 8)) == "abc"
    assert not window


def test_a_result_that_does_not_come_soon_is_left_with_all_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "WRITE_DELAY", 0.0)
    window = _window("a", "b", "c", "d", done=2)
    window[3].result.set_result(None)  # type: ignore[arg-type]
    assert (_names(items._ready(window, 8)), _names(list(window))) == ("ab", "cd")


@pytest.mark.parametrize(("names", "most", "first"), [("abcd", 3, "abc"), ("abab", 8, "ab"), ("aa", 8, "a")])
def test_no_more_than_allowed_and_no_name_twice_are_written_together(
    names: str, most: int, first: str
) -> None:
    window = _window(*names, done=len(names))
    assert _names(items._ready(window, most)) == first
    assert _names(list(window)) == names[len(first) :]
