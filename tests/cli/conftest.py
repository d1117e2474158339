"""The program against a small Hub in a folder, as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import loradex
from loradex.catalog import Catalog
from loradex.catalog import open as open_catalog
from tests.hubs import card, lora_files, lora_tensors, make_repo, safetensors_bytes
from tests.localhub import FaultHub

ROOT = Path(__file__).parents[2]
# No known base model, so that small factors fit it.
TINY = "acme/tiny"
Program = Callable[..., Result]


def write_three_adapters(folder: Path) -> Path:
    """A Hub's folder: an adapter that is accepted, one that only notes speak against, one to be skipped."""
    for number, name in enumerate(("ann/one", "bob/two", "cat/three")):
        files = lora_files(TINY, lora_dropout=number / 100, use_dora=name == "cat/three")
        terms = None if name == "bob/two" else "mit"
        files["README.md"] = card(f"Made by {name}.\n", base_model=TINY, license=terms)
        files["adapter_model.safetensors"] = safetensors_bytes(lora_tensors(seed=number))
        make_repo(folder, name, files, {"downloads": number})
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Hub's folder of three adapters, see `write_three_adapters`."""
    return write_three_adapters(tmp_path / "hub")


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultHub]:
    """The folder served; HF_ENDPOINT names it."""
    with FaultHub(root) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder of `run`; it is not there yet."""
    return tmp_path / "data"


@pytest.fixture
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results go where a terminal of 80 columns would show them."""
    monkeypatch.setattr("cli.output.WIDTH_WITHOUT_TERMINAL", 80)


@pytest.fixture
def run(data: Path) -> Program:
    """Runs `loradex --data …` with the words given, in this process."""
    return lambda *words: CliRunner().invoke(loradex, ["--data", str(data), *words])


@pytest.fixture(scope="session")
def crawled_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder to copy, with the Hub of `root` crawled into it; of weights it has the headers."""
    folder = tmp_path_factory.mktemp("crawled")
    with FaultHub(write_three_adapters(folder / "hub")) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        words = ["--data", str(folder / "data"), "-q", "crawl", "--any-base", "--weights", "headers"]
        result = CliRunner().invoke(loradex, words)
    assert result.exit_code == 0, result.output
    return folder / "data"


@pytest.fixture
def crawled(crawled_data: Path, data: Path, run: Program) -> Program:
    """The program on a catalog of ann/one, bob/two and cat/three."""
    shutil.copytree(crawled_data, data)
    return run


@pytest.fixture
def start(data: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `loradex --data …` with the words given as a process of its own, its streams to be read."""

    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cli", "--data", str(data), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=dict(os.environ))

    return start


@pytest.fixture
def sample_copy(sample_data: Path, tmp_path: Path) -> Catalog:
    """A catalog of the sample Hub of one's own."""
    shutil.copytree(sample_data, tmp_path / "copy")
    return open_catalog(tmp_path / "copy")


@pytest.fixture
def sample(sample_data: Path) -> Program:
    """The program on the catalog of the sample Hub."""
    return lambda *words: CliRunner().invoke(loradex, ["--data", str(sample_data), *words])
