"""The page in a real browser: a few long tests, since each page that opens costs half a second.

The fixture `open_page` adds to each that nothing was logged, no policy violated and nothing asked elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from starlette.staticfiles import StaticFiles

import loradex
from crawler.localhub import LocalServer
from loradex.page import create_app, export_page
from loradex.page.documents import MOST_COPIES
from loradex.page.server import Site
from tests.page.conftest import SCRIPT, hostile_name
from tests.page.filters import FILE
from tools.page_pictures import AXE, load_axe

pytestmark = pytest.mark.slow
OpenPage = Callable[..., Any]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
VIEWS = {
    "list": "?p=list",
    "adapter": "?p=adapter&a=ann/one",
    "map": "?p=map",
    "compare": "?p=compare&a=ann/one&a=bob/three",
    "pools": "?p=pools",
    "pool": "?p=pool&n=both",
    "scores": "?p=scores",
    "task": "?p=scores&task=anli",
    "groups": "?p=groups",
    "crawls": "?p=crawls",
    "crawl": "?p=crawl&id=1",
}
GO = "(to) => { history.pushState(null, '', to); dispatchEvent(new PopStateEvent('popstate')); }"
# What filter.js makes of every case of filters.json: null where it agrees with the Python parser.
AGREE = """async ({fields, rows, cases}) => {
  const {parse, compile, toText, fold, FilterError} = await import('./filter.js');
  const values = (field, row) => {
    if (field.many) return row[field.key];
    const value = row[field.key] ?? field.absent;
    return value === null ? [] : [field.kind === 'flag' ? Boolean(value) : value];
  };
  const column = (key, field) => ({test: (holds) => (at) =>
    (field ? values(field, rows[at]) : [].concat(rows[at][key])).some(holds)});
  return cases.map((expected) => {
    try {
      const query = parse(expected.text, fields);
      const passes = compile(query, column, (word) => (at) => fold(rows[at].card).includes(word));
      const matches = [...rows.keys()].filter(passes);
      const agrees = JSON.stringify(matches) === JSON.stringify(expected.matches);
      return agrees && toText(query) === expected.canonical ? null : [expected.text, matches, toText(query)];
    } catch (error) {
      if (!(error instanceof FilterError)) throw error;
      return error.message === expected.error ? null : [expected.text, error.message];
    }
  }).filter(Boolean);
}"""


def names(page: Any) -> list[str]:
    return list(page.locator(".window .c-adapter").all_inner_texts())


def count(page: Any, expected: int) -> None:
    page.wait_for_function("(n) => document.querySelector('.list')?.dataset.count == n", arg=expected)


def query(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def test_the_filter_is_the_parser_of_the_program(open_page: OpenPage) -> None:
    page = open_page()
    assert page.evaluate(AGREE, json.loads(FILE.read_text())) == []


def test_the_list_filters_searches_sorts_and_remembers(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    count(page, 5)
    page.fill("#where", "owner:ann | owner:bob")
    count(page, 4)
    assert query(page)["where"] == ["owner:ann | owner:bob"]
    page.fill("#where", "owner:ann OR")
    page.wait_for_selector("#problem:not(:empty)")
    assert "A term is missing" in page.inner_text("#problem")
    assert page.get_attribute("#where", "aria-invalid") == "true"
    page.fill("#where", "")
    count(page, 5)
    # Facets include, leave out, and count what is left.
    page.locator("details[data-name=license] button.facet", has_text="mit").click()
    count(page, 2)
    assert page.input_value("#where") == "license:mit"
    page.locator("details[data-name=license] button.facet", has_text="cc-by-nc-4.0").click()
    count(page, 3)
    assert page.input_value("#where") == "license:mit,cc-by-nc-4.0"
    page.locator("details[data-name=use] button[aria-label='without commercial']").click()
    count(page, 1)
    assert names(page) == ["bob/three"]
    assert "$ loradex adapters --where 'license:mit,cc-by-nc-4.0 -use:commercial'" in page.inner_text(".rows")
    # A reload and Back restore the state.
    page.reload()
    count(page, 1)
    page.fill("#where", "owner:ann,bob")
    count(page, 4)
    page.locator(".head button", has_text="downloads").click()
    page.wait_for_function("() => document.querySelector('.window .c-adapter').innerText === 'bob/four'")
    assert names(page) == ["bob/four", "bob/three", "ann/two", "ann/one"]
    page.locator(".window a", has_text="ann/two").click()
    page.wait_for_selector(".view.adapter")
    page.go_back()
    count(page, 4)
    assert names(page)[0] == "bob/four"
    # Words of cards, by the server.
    page.fill("#where", "customers")
    count(page, 4)
    page.fill("#where", "")
    count(page, 5)
    page.fill("#question", "bank customers")
    count(page, 4)
    assert "loradex search 'bank customers' --words" in page.inner_text(".rows")


def test_better_hits_that_the_filter_leaves_out_hide_none(
    open_page: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loradex.page.server._MOST_HITS", 1)
    page = open_page("?p=list&q=bank+customers")
    count(page, 1)
    # Their order is that of the search.
    assert page.locator(".head [aria-sort=ascending], .head [aria-sort=descending]").count() == 0
    for name in ("ann/one", "ann/two", "bob/three", "bob/four"):
        page.fill("#where", f"adapter:{name}")
        page.wait_for_function(
            "(name) => document.querySelector('.window .c-adapter')?.innerText === name", arg=name
        )


def test_a_view_that_takes_long_is_there_before_it_is_complete(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    count(page, 5)
    held: list[Any] = []
    page.route("**/groups.json", lambda route: held.append(route))
    page.locator("nav a", has_text="Duplicates").click()
    page.wait_for_selector(".groups[aria-busy] .note:text-is('Comparing…')")
    assert page.locator(".list").count() == 0
    # Another view may be opened meanwhile, and stays.
    page.locator("nav a", has_text="Pools").click()
    page.wait_for_selector(".view.pools")
    page.locator("nav a", has_text="Duplicates").click()
    page.wait_for_selector(".groups[aria-busy]")
    for route in held:
        route.continue_()
    page.wait_for_selector(".view.groups:not([aria-busy]) h2")
    assert page.locator("main > div").count() == 1


def test_many_groups_are_listed_when_asked_for(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    group = {"level": "file", "cosine": None, "exact": True, "note": "", "size": 2}
    family = {"why": "3 names of one series", "size": 2, "members": ["ann/one", "ann/two"]}
    groups = {
        "duplicates": [group | {"members": [f"a/{n}", f"b/{n}"]} for n in range(250)],
        "families": [family | {"family": "ann/#"}],
    }
    page.route("**/groups.json", lambda route: route.fulfill(json=groups))
    page.evaluate(GO, "?p=groups")
    page.wait_for_selector(".view.groups")
    assert page.locator("h2").all_inner_texts() == [
        "250 groups of the same or nearly the same weights",
        "1 family",
    ]
    shown = page.locator("section:first-of-type details")
    more = page.locator("section:first-of-type button", has_text="more")
    counts = []
    while more.count():
        counts.append((shown.count(), more.inner_text()))
        more.click()
    assert counts == [(20, "show 200 of 230 more"), (220, "show 30 of 30 more")]
    assert shown.count() == 250


def test_an_address_of_what_is_not_there_is_said(open_page: OpenPage, browser: Any, served: str) -> None:
    page = open_page()
    for address in ("?p=crawl&id=99", "?p=other", "?p=pool&n=%21", "?p=scores&task=none"):
        page.evaluate(GO, address)
        page.wait_for_selector(".view .error")
        page.evaluate(GO, "?p=pools")
        page.wait_for_selector(".view.pools")
    # A browser logs that an answer was 404, which the fixture would refuse.
    other = browser.new_page()
    heads: list[str] = []
    other.on("request", lambda request: heads.append(request.url) if "head.json" in request.url else None)
    other.goto(f"{served}/?p=adapter&a=no/changed")
    other.wait_for_selector(".view .error")
    assert other.inner_text(".view .error") == "no/changed is not in this catalog."
    assert len(heads) == 1
    other.close()


def test_a_search_that_takes_long_says_so(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    count(page, 5)
    held: list[Any] = []
    page.route("**/api/search*", lambda route: held.append(route))
    page.fill("#question", "bank customers")
    page.wait_for_selector(".list .note:text-is('Searching…')")
    for route in held:
        route.continue_()
    count(page, 4)
    assert page.locator(".list .note", has_text="Searching").count() == 0


def test_of_a_long_pool_the_members_are_listed_once(
    open_page: OpenPage, alike_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(alike_data, tmp_path / "data")
    catalog = loradex.open(tmp_path / "data")
    catalog.select("long", by="named", k=None, adapters=[f"eve/run-{at}" for at in range(12)])
    with LocalServer(lambda: create_app(Site(catalog))) as server:
        page = open_page("?p=pool&n=long", site=server.url)
        text = page.locator("section", has_text="How they were chosen").first.inner_text()
        assert "and 9 more" in text
        assert "eve/run-11" not in text
        # A pool that was named has no scores.
        assert page.locator("thead th").all_inner_texts()[:2] == ["adapter", "rank"]


@pytest.fixture(scope="module")
def alike(alike_data: Path) -> Iterator[str]:
    """The address of the page of a catalog with duplicates and a family."""
    with LocalServer(lambda: create_app(Site(loradex.open(alike_data)))) as server:
        yield server.url


@pytest.fixture(scope="module")
def alike_export(alike_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its export."""
    folder = tmp_path_factory.mktemp("alike") / "site"
    export_page(loradex.open(alike_data), folder)
    with LocalServer(lambda: StaticFiles(directory=folder, html=True)) as server:
        yield server.url


@pytest.mark.parametrize("kind", ["alike", "alike_export"])
def test_an_adapter_has_the_copies_of_the_page_of_groups(
    open_page: OpenPage, request: pytest.FixtureRequest, kind: str
) -> None:
    page = open_page("?p=groups", site=request.getfixturevalue(kind))
    shown = [
        (group.locator("summary").inner_text(), group.locator("li").all_inner_texts())
        for group in page.locator(".view.groups details").all()
    ]
    assert [members[0] for _, members in shown] == ["ann/one", "dan/large", "eve/run-0", "dan/large"]
    assert shown[1][0] == "dan/large · 2 with the same update · weakest cosine 1.00"
    for title, members in shown:
        page.evaluate(GO, f"?p=adapter&a={members[0]}")
        page.wait_for_selector(f".adapter[data-title='{members[0]}'] #copies ul")
        # The page of groups lists 30 members, that of an adapter 30 others.
        text = page.inner_text("#copies")
        assert all(name in text for name in members[1:-1])
        assert title.partition(" · ")[2].split(" · ")[-1].partition(" ")[2] in text
    page.evaluate(GO, "?p=adapter&a=eve/run-0")
    page.wait_for_selector(".adapter[data-title='eve/run-0'] #copies .note:text-is('and 9 more')")
    assert page.locator("#copies li a").count() == MOST_COPIES
    page.evaluate(GO, "?p=adapter&a=eve/alone")
    page.wait_for_selector(
        ".adapter[data-title='eve/alone'] #copies .note:text-is('It has no duplicates here.')"
    )
    assert page.locator("#copies li").count() == 0


def test_an_adapter_does_not_wait_for_its_copies(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    count(page, 5)
    held: list[Any] = []
    page.route("**/copies/*.json", lambda route: held.append(route))
    for name in ("ann/one", "ann/two"):
        page.evaluate(GO, f"?p=adapter&a={name}")
        page.wait_for_selector(f".view.adapter[data-title='{name}'] #nearest table")
        assert page.inner_text("#copies .note") == "Comparing…"
        assert page.locator("svg.heat").count() == 1
    # The answer for a view that was left is not waited for.
    with page.expect_event("requestfailed", lambda request: "copies" in request.url):
        page.evaluate(GO, "?p=pools")
    page.wait_for_selector(".view.pools")


def test_the_map_shows_what_is_under_the_pointer(open_page: OpenPage) -> None:
    page = open_page("?p=map")
    page.wait_for_function("() => document.querySelector('.map')?.dataset.inView === '5'")
    place = page.evaluate("document.querySelector('.map').screenOf('bob/four')")
    box = page.locator(".plane canvas").first.bounding_box()
    x, y = box["x"] + place[0], box["y"] + place[1]
    page.mouse.move(x, y)
    page.wait_for_selector(".tip:not(.hidden)")
    assert "bob/four" in page.inner_text(".tip")
    page.wait_for_function("() => document.querySelector('.tip').innerText.includes('nearest: ')")
    page.mouse.move(x + 60, y + 60)
    page.mouse.wheel(0, -400)
    page.wait_for_function("() => location.search.includes('view=')")
    zoomed = page.evaluate("document.querySelector('.map').screenOf('bob/four')")
    assert zoomed != place
    page.focus(".plane canvas")
    page.keyboard.press("0")
    page.wait_for_function("() => !location.search.includes('view=')")
    page.keyboard.down("Shift")
    page.mouse.move(box["x"] + 1, box["y"] + 1)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_function("() => document.getElementById('foot').innerText.includes('5 selected')")
    page.fill("#where", "owner:bob")
    page.wait_for_function("() => document.querySelector('.map').dataset.inView === '2'")
    page.select_option("#colour", "rank")
    page.wait_for_selector(".legend .scale")
    assert query(page)["colour"] == ["rank"]
    page.wait_for_function("() => document.querySelector('.map')?.dataset.inView === '2'")
    place = page.evaluate("document.querySelector('.map').screenOf('bob/four')")
    box = page.locator(".plane canvas").first.bounding_box()
    page.mouse.click(box["x"] + place[0], box["y"] + place[1])
    page.wait_for_selector(".view.adapter")
    assert query(page)["a"] == ["bob/four"]


def test_marked_adapters_are_compared_and_become_a_pool(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    for name in ("ann/one", "bob/three"):
        page.locator(f".window input[aria-label='mark {name}']").check()
    page.locator("#foot a", has_text="compare").click()
    page.wait_for_selector(".matrix .exact")
    assert page.locator(".compare .differs th", has_text="license").count() == 1
    assert page.locator(".matrix td").nth(1).inner_text() == "1.00"
    assert page.locator(".norms svg.heat").count() == 2
    page.locator("#foot a", has_text="make a pool").click()
    page.fill("#pool-name", "of the page")
    page.locator("button[type=submit]").click()
    assert page.evaluate("document.querySelector('#pool-name:invalid') !== null")
    page.fill("#pool-name", "from-page")
    assert "--by named --adapter ann/one --adapter bob/three" in page.inner_text(".panel .command")
    page.locator("button[type=submit]").click()
    page.wait_for_selector(".view.pool")
    assert "2 members of acme/tiny" in page.inner_text(".view.pool")
    assert page.evaluate("document.getElementById('foot').childElementCount") == 0
    page.locator("nav a", has_text="Pools").click()
    page.wait_for_selector(".view.pools")
    assert page.locator("td a", has_text="from-page").count() == 1


def test_what_the_user_writes_is_shown_at_once(open_page: OpenPage) -> None:
    page = open_page("?p=adapter&a=ann/two")
    page.fill(".own input", SCRIPT)
    page.keyboard.press("Enter")
    page.wait_for_selector(".own .badge")
    page.fill(".own textarea", "a note\u202e <b>")
    page.click(".own button:has-text('save the note')")
    page.wait_for_selector(".own button:has-text('remove it')")
    assert page.input_value(".own textarea") == "a note\u202e <b>"
    page.locator("nav a", has_text="Adapters").click()
    count(page, 5)
    page.locator("details[data-name=own] summary").click()
    page.locator("details[data-name=own] button", has_text="with a note").first.click()
    count(page, 1)
    assert page.input_value("#where") == "note:*"
    page.fill("#where", "")
    count(page, 5)
    # A selection is hidden; the list leaves it out and says so.
    page.locator(".window input[aria-label='mark ann/two']").check()
    page.locator(".window input[aria-label='mark bob/four']").check()
    page.click("#foot button:has-text('tag, note, hide')")
    page.click("#foot .own button:text-is('hide')")
    count(page, 3)
    page.locator(".count a", has_text="2 hidden by you are left out").click()
    count(page, 2)
    assert query(page)["where"] == ["hidden:yes"]
    # So do neighbours, and the map.
    page.evaluate(GO, "?p=adapter&a=ann/one")
    page.wait_for_selector("#nearest table")
    assert page.locator("#nearest tbody tr").count() == 2
    assert "2 of the nearest hidden by you are left out" in page.inner_text("#nearest")
    page.evaluate(GO, "?p=map")
    page.wait_for_function("() => document.querySelector('.map')?.dataset.inView === '3'")
    assert "2 hidden by you are left out" in page.inner_text(".inview")
    # So do pools and scores.
    page.evaluate(GO, "?p=pool&n=both")
    page.wait_for_selector(".view.pool table")
    assert page.locator(".view.pool tbody tr").count() == 1
    assert "1 hidden by you is left out" in page.inner_text(".view.pool")
    page.evaluate(GO, "?p=adapter&a=bob/three")
    page.click(".view .own button:text-is('hide')")
    page.wait_for_selector(".view .own button:text-is('show in lists')")
    for view, rows in (("scores", ".heatmap .subject[role=rowheader]"), ("scores&task=anli", "tbody tr")):
        page.evaluate(GO, f"?p={view}")
        page.wait_for_selector(f".view.scores {rows}")
        assert "bob/three" not in page.inner_text(".view.scores")
        assert "1 hidden by you is left out" in page.inner_text(".view.scores")
    page.evaluate(GO, "?p=adapter&a=bob/three")
    page.click(".view .own button:text-is('show in lists')")
    page.wait_for_selector(".view .own button:text-is('hide')")
    # The page that is opened again has it from the catalog.
    page.goto(page.url.partition("?")[0] + "?p=list&where=owner:bob")
    count(page, 1)
    assert "1 hidden by you is left out" in page.inner_text(".count")
    page.fill("#where", f'mytag:"{SCRIPT}" hidden:yes')
    count(page, 1)
    page.fill("#where", "hidden:yes")
    count(page, 2)
    for button in ("show", "remove notes"):
        if not page.locator("#foot .own").count():
            page.click("#foot button:has-text('tag, note, hide')")
        page.click(f"#foot .own button:text-is('{button}')")
        count(page, 0)
    page.goto(page.url.partition("?")[0] + "?p=adapter&a=ann/two")
    page.click(".own button[aria-label^='remove the tag']")
    page.wait_for_selector(".own .badge", state="detached")
    assert page.input_value(".own textarea") == ""
    page.goto(page.url.partition("?")[0] + "?p=crawls")
    page.wait_for_selector("text=counts for the newest crawl of its listing")
    page.fill("#changes #where", "owner:ann")
    page.keyboard.press("Enter")
    page.wait_for_function("() => location.search.includes('where=owner')")
    page.wait_for_function("() => document.querySelectorAll('#changes li').length === 2")
    assert page.evaluate("window.harmed ?? 0") == 0


def test_a_cosine_that_rounds_to_nothing_has_no_sign(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    script = "(values) => import('./dom.js').then(({ cosine }) => values.map(cosine))"
    assert page.evaluate(script, [-0.004, 0.004, -0.006, 1, None]) == ["0.00", "0.00", "-0.01", "1.00", "–"]


def test_numbers_of_a_table_stand_to_the_right(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    script = """(rows) => import('./dom.js').then(({ fill, h, score, table }) => {
      const kinds = (node) => [...node.querySelectorAll('tbody tr:first-child td')].map((td) => td.className);
      const cells = rows.map(([text, n, value, day]) => [text, n, h('span', null, score(value)), day]);
      const box = fill(h('div'), table(['a', 'b', 'c', 'd'], cells, 'x'));
      return [kinds(box), cells.map((row) => row[2].textContent)];
    })"""
    rows = [["one", "1,234", 0.7, "2026-01-02"], ["2", "", 12.3456, "2026-01-03"]]
    assert page.evaluate(script, rows) == [["", "number", "number", ""], ["0.700", "12.35"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_every_shade(open_page: OpenPage, scheme: str) -> None:
    page = open_page("?p=list", color_scheme=scheme)
    script = "import('./charts.js').then((m) => Array.from({length: 257}, (_, i) => m.shade(i / 256))"
    inks = page.evaluate(f"{script}.map((colour) => [colour, m.inkOn(colour)]))")
    assert len({ink for _, ink in inks}) == 2

    def luminance(colour: list[int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour, ink in inks:
        bright, dark = sorted((luminance(colour), {"#000": 0.0, "#fff": 1.0}[ink]), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, colour


def test_singular_values_beyond_the_rank_are_not_drawn(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    script = """(values) => import('./charts.js').then(({ spectra }) => {
      const chart = spectra({ modules: ['l.0.q_proj', 'l.1.q_proj'], norms: [1, 1], values });
      const points = chart.querySelector('polyline').getAttribute('points').split(' ').length;
      return [points, chart.querySelectorAll('text')[1].textContent];
    })"""
    assert page.evaluate(script, [[2, 1, 0, 0], [3, 1, 1, 0]]) == [3, "σ3"]


def test_names_and_cards_run_nothing(open_page: OpenPage) -> None:
    page = open_page("?p=list")
    count(page, 5)
    shown = next(text for text in names(page) if text.startswith("cat/"))
    assert "<script>" in shown
    assert "\\u202eevil" in shown
    page.locator(".window a", has_text="cat/").click()
    page.wait_for_selector(".card h3")
    card = page.locator(".card")
    assert "{{constructor" in card.inner_text()
    assert "\\u202ekcatta" in card.inner_text()
    assert [link.get_attribute("href") for link in card.locator("a").all()] == ["https://example.org/x"]
    assert card.locator("a").get_attribute("rel") == "noreferrer nofollow noopener"
    assert card.locator("table td strong").inner_text() == "2"
    assert card.locator("script, img, iframe, object, style").count() == 0
    for view in ("map", "groups", "crawl&id=1", f"compare&a=ann/one&a={hostile_name()}"):
        page.evaluate(GO, f"?p={quote(view, safe='&=')}")
        page.wait_for_selector(f".view.{view.partition('&')[0]}")
    assert page.evaluate("window.harmed ?? 0") == 0
    assert page.locator("main script, main img").count() == 0


@pytest.mark.parametrize(
    ("settings", "rules"),
    [({}, None), (PHONE | {"color_scheme": "dark"}, ["color-contrast", "scrollable-region-focusable"])],
    ids=["desk", "phone"],
)
def test_every_view_can_be_used_by_everybody(
    open_page: OpenPage, settings: dict[str, Any], rules: list[str] | None
) -> None:
    """No finding of axe-core, and no view is wider than the window."""
    pytest.importorskip(AXE, reason="pip install axe-playwright-python")
    page = open_page(**settings)
    load_axe(page)
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
    violations: dict[str, list[str]] = {}
    wide = []
    for view, address in VIEWS.items():
        page.evaluate(GO, address)
        page.wait_for_function("(search) => location.search === search && document.title", arg=address)
        page.wait_for_selector(f".view.{'scores' if view == 'task' else view}")
        result = page.evaluate("(options) => axe.run(document, options)", options)
        if result["violations"]:
            violations[view] = [
                f"{row['id']}: {row['nodes'][0]['html'][:200]}" for row in result["violations"]
            ]
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(view)
    assert violations == {}
    assert wide == []


@pytest.fixture
def exported(page_data: Path, tmp_path: Path) -> Iterator[str]:
    """The address of an export, served by nothing but files, below a folder."""
    export_page(loradex.open(page_data), tmp_path / "site" / "below")
    with LocalServer(lambda: StaticFiles(directory=tmp_path / "site", html=True)) as server:
        yield f"{server.url}/below"


def test_an_export_needs_no_server(open_page: OpenPage, exported: str) -> None:
    page = open_page("?p=list", site=exported)
    count(page, 5)
    page.fill("#where", "bank")
    count(page, 0)
    assert "no search of cards" in page.inner_text(".list")
    page.fill("#where", "use:commercial")
    count(page, 2)
    page.fill("#where", "")
    page.fill("#question", "ANN")
    count(page, 2)
    page.locator(".window a", has_text="ann/one").click()
    page.wait_for_selector("#nearest table")
    assert page.locator("#nearest tbody tr").count() == 4
    assert "Made for questions" in page.inner_text(".card")
    for view in ("map", "compare&a=ann/one&a=bob/three", "scores&task=anli", "pool&n=both"):
        page.goto(f"{exported}/?p={view}")
        page.wait_for_selector(f".view.{view.partition('&')[0]}")
    page.goto(f"{exported}/?p=map")
    page.wait_for_function("() => document.querySelector('.map')?.dataset.inView === '5'")
    page.goto(f"{exported}/?p=pools&new=1")
    assert "mark adapters first" in page.inner_text(".panel").lower()
