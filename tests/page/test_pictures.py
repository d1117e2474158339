"""The tool that draws the views: what it notices, and that it draws each."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import loradex
from tools.page_pictures import AXE, ON_START, addresses, draw_all, main, messages_of, problems

pytestmark = pytest.mark.slow
WRONG = """<!doctype html><html lang="en"><head><title>Wrong</title>
<meta http-equiv="Content-Security-Policy" content="img-src 'none'">
</head><body style="margin: 0"><main><h1>Wrong</h1><div style="width: 1500px">wide</div>
<img src="x.png" alt="x"><script>console.error("it failed");</script>
<p style="color: #eee; background: #fff">pale</p></main></body></html>"""


def test_what_is_wrong_is_noticed(browser: Any) -> None:
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.add_init_script(f"({ON_START})([])")
    page.route("http://wrong.invalid/", lambda route: route.fulfill(body=WRONG, content_type="text/html"))
    notes = messages_of(page, expected="Content Security Policy")
    page.goto("http://wrong.invalid/")
    page.wait_for_function("window.refused.length")
    expected = ["policy: img-src", "100 pixels wider than the window"]
    if importlib.util.find_spec(AXE):
        expected.append("axe: color-contrast (1)")
    assert problems(page) == expected
    assert notes == ["console: it failed"]
    page.context.close()


def test_every_view_is_drawn(
    browser: Any,
    served: str,
    catalog: loradex.Catalog,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    views, _ = addresses(catalog)
    assert {"adapter", "map", "compare", "pool", "task", "groups", "crawl"} < set(views)
    assert draw_all(browser, served, catalog, tmp_path, ["selection", "missing"]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 8
    assert capsys.readouterr().out.count("nothing wrong") == 8


def test_a_catalog_without_adapters_has_views(tmp_path: Path) -> None:
    with loradex.open(tmp_path / "data") as catalog:
        catalog.upgrade()
        views, names = addresses(catalog)
    assert names == []
    assert {"list", "map", "missing", "crawls"} <= set(views)
    assert not {"adapter", "skipped", "compare", "pool", "task"} & set(views)


@pytest.mark.parametrize(
    ("data", "view", "sentence"),
    [("none", "map", "no catalog at"), ("page", "mop", "this catalog has no view mop; it has list, ")],
)
def test_wrong_input_is_one_sentence(
    page_data: Path, tmp_path: Path, data: str, view: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = page_data if data == "page" else tmp_path / data
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "out"), "--all", "--data", str(place), "--only", view])
    assert ended.value.code == 2
    assert f"error: {sentence}" in capsys.readouterr().err
