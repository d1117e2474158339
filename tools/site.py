"""What mkdocs.yml asks for: notebooks in docs/ become pages, with the outputs that they hold."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


class NotebookPage(File):
    """A notebook that is read as Markdown."""

    def is_documentation_page(self) -> bool:
        """True, which a name that ends in .ipynb would not be."""
        return True


class PluralExamples(griffe.Extension):
    """Reads a section `Example:` of a docstring as `Examples:`, which Griffe knows."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces each notebook among the files by its page."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            notebook = json.loads(Path(config.docs_dir, file.src_uri).read_text(encoding="utf-8"))
            files.remove(file)
            files.append(NotebookPage.generated(config, file.src_uri, content=markdown(notebook)))
    return files


def markdown(notebook: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown: code as blocks, outputs as tables, pictures or text."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            parts.extend(_output(output) for output in cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    texts = {kind: value for kind, value in output.get("data", {}).items() if kind != "application/json"}
    data = {kind: "".join(value) for kind, value in texts.items()}
    if "text/html" in data:
        return f"<div markdown='0' class='output'>{data['text/html']}</div>"
    if "image/svg+xml" in data:
        return f"<div markdown='0' class='output'>{data['image/svg+xml']}</div>"
    text = data.get("text/plain", "".join(output.get("text", "")))
    return f"<pre class='output'>{html.escape(text)}</pre>"
