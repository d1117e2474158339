"""A catalog whose names, cards and numbers are hostile, its page served, and one browser for all tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

import loradex
from loradex.page import Documents, create_app
from loradex.page.server import Site
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub

TINY = "acme/tiny"
NAMES = ("ann/one", "ann/two", "bob/three", "bob/four", "cat/five")
SCRIPT = "<script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'>"
TEMPLATE = "{{constructor.constructor('window.harmed = 3')()}} ${window.harmed = 4}"
OVERRIDE = "\u202ekcatta\u202c \x1b[31mred\x1b[0m \x07"
CARD = f"""# A card {SCRIPT}

{TEMPLATE} {OVERRIDE}

* one `code {SCRIPT}`
* [a link](https://example.org/x) and [another](javascript:window.harmed=5)

| a | b |
|---|---|
| 1 | **2** |

```html
{SCRIPT}
```

![picture](https://example.org/picture.png) <a href="javascript:window.harmed=6">x</a>
"""


@pytest.fixture(scope="session")
def page_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of five measured adapters, one of them hostile, with a pool and scores."""
    folder = tmp_path_factory.mktemp("page")
    for seed, name in enumerate(NAMES):
        files = lora_files(TINY)
        terms = {"ann/one": "mit", "ann/two": "mit", "bob/three": "cc-by-nc-4.0"}.get(name)
        body = CARD if name == "cat/five" else f"# {name}\n\nMade for questions of bank customers."
        files["README.md"] = card(body, base_model=TINY, license=terms, datasets=[f"set/{SCRIPT}"])
        files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(layers=2, seed=seed))
        make_repo(folder / "hub", name, files, {"downloads": 10 * seed})
    data = folder / "data"
    with FaultHub(folder / "hub") as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        catalog = loradex.open(data)
        assert catalog.crawl(any_base=True, weights="keep").status == "complete"
    scores = folder / "scores.csv"
    scores.write_text("adapter,anli,fig_qa\nann/one,0.5,0.75\nbob/three,0.25,0.5\n")
    catalog.import_scores(scores, split="valid", n=40)
    catalog.select("both", by="named", adapters=["ann/two", "ann/one"])
    # The Hub admits no such names; a hostile Hub might send them all the same.
    engine = create_engine(f"sqlite:///{data / 'catalog.db'}")
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE repository SET name = :name, owner = :owner, tags = :tags WHERE name = 'cat/five'"),
            {"name": hostile_name(), "owner": "cat", "tags": '["<b>bold</b>"]'},
        )
        connection.execute(
            text("UPDATE crawl_item SET name = :name WHERE name = 'cat/five'"), {"name": hostile_name()}
        )
    engine.dispose()
    return data


def hostile_name() -> str:
    """The name of the hostile adapter."""
    return f"cat/{SCRIPT}{TEMPLATE}\u202eevil"


@pytest.fixture
def catalog(page_data: Path) -> loradex.Catalog:
    """The catalog, to be read."""
    return loradex.open(page_data)


@pytest.fixture(scope="session")
def documents(page_data: Path) -> Documents:
    """The documents of the catalog."""
    return Documents(loradex.open(page_data))


@pytest.fixture
def own_catalog(page_data: Path, tmp_path: Path) -> loradex.Catalog:
    """A copy of the catalog, to be written to."""
    shutil.copytree(page_data, tmp_path / "data")
    return loradex.open(tmp_path / "data")


@pytest.fixture(scope="session")
def served(page_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the page of a copy of the catalog."""
    from crawler.localhub import LocalServer

    data = tmp_path_factory.mktemp("served") / "data"
    shutil.copytree(page_data, data)
    with LocalServer(lambda: create_app(Site(loradex.open(data)))) as server:
        yield server.url


@pytest.fixture(scope="session")
def alike_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of adapters that are duplicates (one file, one update at another scale) and families."""
    folder = tmp_path_factory.mktemp("alike")
    seeds = {"ann/one": 0, "bob/same": 0, "cat/other": 1, "dan/large": 2, "dan/larger": 2, "eve/alone": 3}
    seeds |= {f"eve/run-{number}": 10 + number for number in range(40)}
    for name, seed in seeds.items():
        files = lora_files(TINY)
        tensors = lora_tensors(layers=1, seed=seed)
        if name == "dan/larger":
            tensors = {key: value * (3 if "lora_B" in key else 1) for key, value in tensors.items()}
        files["adapter_model.safetensors"] = safetensors_bytes(tensors)
        files["README.md"] = card(f"# {name}", base_model=TINY)
        make_repo(folder / "hub", name, files)
    with FaultHub(folder / "hub") as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        loradex.open(folder / "data").crawl(any_base=True, weights="keep")
    return folder / "data"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests; skips where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no browser: install chromium")
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, served: str) -> Iterator[Callable[..., Any]]:
    """Opens an address; the test fails for an error, a violated policy or a request to elsewhere."""
    wrong: list[str] = []
    contexts: list[Any] = []

    def open_(address: str = "", *, site: str = served, **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on(
            "console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url) if not request.url.startswith((site, "blob:")) else None
            ),
        )
        page.goto(f"{site}/{address}")
        page.wait_for_selector(".view")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []
