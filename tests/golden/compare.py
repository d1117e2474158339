"""Where records differ: byte for byte on a machine that computes as the recording one did, else in outline.

Floating point differs in its last digits between processors and versions of libraries, and so does every
digest of weights. There the keys, the heads of tables, the names of files and the exit codes are compared.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

ERRORS = "errors.json"
MACHINE = "machine.json"
_PACKAGES = ("faiss-cpu", "numpy", "peft", "safetensors", "sentence-transformers", "torch", "transformers")
_MOST_LINES = 12


def machine() -> dict[str, str]:
    """The versions that numbers depend on, and a digest of how this processor computes."""
    import numpy as np
    import torch

    random = np.random.default_rng(0)
    matrix = torch.from_numpy(random.standard_normal((96, 80), dtype=np.float32))
    results = [
        (matrix @ matrix.T).numpy(),
        torch.softmax(matrix, 0).numpy(),
        torch.linalg.svdvals(matrix).numpy(),
        np.linalg.svd(matrix.double().numpy(), compute_uv=False),
        np.exp(matrix.numpy()) @ matrix.numpy().T,
        np.array([row @ row for row in matrix.double().numpy()]),
    ]
    digest = hashlib.sha256(b"".join(result.tobytes() for result in results)).hexdigest()
    return {"arithmetic": digest} | {name: version(name) for name in _PACKAGES}


def differences(recorded: Path, current: Path) -> list[str]:
    """One text a record that differs, empty where none does."""
    exact = (recorded / MACHINE).read_text() == (current / MACHINE).read_text()
    names = sorted({path.name for folder in (recorded, current) for path in folder.iterdir()} - {MACHINE})
    reports = []
    for name in names:
        before, after = (_read(folder / name) for folder in (recorded, current))
        if not exact:
            before, after = outline(before), outline(after)
        if before != after:
            lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
            output = [line[:300] for line in lines][2 : 2 + _MOST_LINES]
            reports.append("\n".join([name, *output]))
    return reports


def outline(text: str) -> str:
    """Exit codes, names of files, heads of tables and the set of keys."""
    keys = set(re.findall(r'"([^"\n]+)":', text))
    lines = []
    for line in text.splitlines():
        if line.startswith("keys: "):
            keys |= set(line.removeprefix("keys: ").split(", "))
        elif line.startswith(("$ ", "exit code ")):
            lines.append(line)
        elif line.startswith("== "):
            lines.append(re.sub(r"[0-9a-f]{8,}( \d+$)?", "HEX", line))
        elif line.startswith("sha256 "):
            lines.append("sha256")
        elif lines and lines[-1].startswith("exit code ") and line[:1].isalpha():
            lines.append(line)
    return "\n".join([*sorted(lines), *sorted(keys)]) + "\n"


def _read(path: Path) -> str:
    """A record; of errors what is not wording."""
    if not path.exists():
        return "not there\n"
    text = path.read_text()
    if path.name != ERRORS:
        return text
    rows: list[dict[str, Any]] = json.loads(text)
    return json.dumps([row | {"text": any(row["text"])} for row in rows], indent=1)
