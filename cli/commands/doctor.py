"""`loradex doctor`: what this machine can do with a base model."""

from __future__ import annotations

from typing import Any

import click

import loradex
from cli.app import App, pass_app
from cli.options import Command, base_device_option, dtype_option, option
from cli.output import label_lines, output_options
from loradex.models import BaseDtype

TEXTS = (
    ("load_seconds", "load", "{:,.1f} s"),
    ("read_tokens_per_second", "reading", "{:,.0f} tokens a second"),
    ("tree_speedup", "trees", "{:.2f} times as fast as each text alone"),
    ("tree_difference", "trees differ by", "{:.2g} nats a token"),
    ("generated_tokens_per_second", "generation", "{:,.0f} tokens a second"),
    ("adapter_bytes", "an adapter, rank 16", "{:,} bytes"),
    ("adapters_resident", "adapters that fit", "{:,}"),
    ("largest_batch", "largest batch", "{:,} rows of 128 tokens"),
    ("step_seconds", "training step", "{:.2f} s (rank 16, 8 examples)"),
)


@click.command(cls=Command)
@option("--base", metavar="ID|DIR", help="A base model.  [default: a tiny one of random weights]")
@base_device_option
@dtype_option
@output_options(lists=False)
@pass_app
def doctor(app: App, /, base: str | None, device: str, dtype: BaseDtype | None) -> None:
    """Measure what this machine can do with a base model, and say what to set.

    The JSON document is for bug reports: it names no folder and no user.
    """
    with app.output.show_progress() as progress:
        report = loradex.doctor(base, device=device, dtype=dtype, catalog=app.settings, progress=progress)
    app.output.document(report.document(), _render)


def _render(result: dict[str, Any]) -> str:
    measures, model = result["measures"], result["model"]
    facts = {name.replace("_", " "): _text(value) for name, value in result["machine"].items()}
    size = f"{model['name']}, {model['dtype']}, {model['bytes']:,} bytes" if model else ""
    return label_lines(
        [
            ("versions", ", ".join(f"{name} {number}" for name, number in result["versions"].items())),
            *facts.items(),
            ("base", size),
            *((label, form.format(measures[name])) for name, label, form in TEXTS if name in measures),
            *((f"not measured: {name}", reason) for name, reason in result["skipped"].items()),
            ("use", ", ".join(f"{name} {value}" for name, value in result["advice"].items())),
        ]
    )


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
