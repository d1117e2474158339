"""The extras of the installation, and the sentence for one that is missing."""

from __future__ import annotations

from importlib.util import find_spec

from catalog.errors import LoradexError, UsageError

# The modules that show that an extra of pyproject.toml is installed.
EXTRAS = {
    "eval": ("cma", "gguf", "peft", "transformers"),
    "harness": ("lm_eval",),
    "metrics": ("math_verify", "rouge_score", "sacrebleu"),
    "plot": ("matplotlib", "sklearn", "threadpoolctl"),
    "postgres": ("psycopg",),
    "ray": ("ray",),
    "serve": ("starlette", "uvicorn"),
    "table": ("pyarrow",),
    "study": ("jinja2", "pydantic", "scipy"),
}


def require_extra(extra: str, purpose: str, error: type[LoradexError] = UsageError) -> None:
    """Returns if the modules of an extra are installed; imports none of them.

    Raises `error` for the first missing one, with the purpose ("A picture") and the installation command.
    """
    for module in EXTRAS[extra]:
        try:
            installed = find_spec(module) is not None
        except ImportError:
            installed = False
        if not installed:
            raise error(
                f"{purpose} requires the extra {extra} ({module} is not installed): pip install "
                f"'loradex[{extra}]'."
            )
