"""Sketches of gradients that earlier calls computed: a cache of one file for each base model.

A row is found by the tokens that the model reads, a file by everything else that a gradient depends on: the
weights, the configuration, the libraries, the device and its threads. A row is therefore what another pass
would give, bit for bit. A file that is damaged or of another base model is not read, and written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.files import DAMAGES, open_cache, read_facts, write_cache
from catalog.fingerprints import DELTA_SIZE, FINGERPRINT_VERSION, OUTPUT_SIZE
from merging.model import LoadedBase, Prompt, model_identity

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

# Incremented when the same prompts would get another gradient or another sketch of it.
VERSION = 1
ROW_SIZE = DELTA_SIZE + OUTPUT_SIZE
# Of each base model, 8 KB each; rows that were added first are left out first.
MOST_ROWS = 1024
MOST_BASES = 16
_SUFFIX = ".gradients"
_NAME = re.compile(rf"[0-9a-f]{{32}}{re.escape(_SUFFIX)}")
# Numbers of the weights that are summed at once.
_BLOCK = 1 << 20


class GradientCache:
    """The rows of a base model below a folder.

    A row is the sketch `delta` and after it `output`, (2059,) float32.
    """

    def __init__(self, folder: Path, base: LoadedBase) -> None:
        self._base = base
        self._identity = _identity(base)
        text = json.dumps(self._identity, sort_keys=True)
        self.path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{_SUFFIX}"
        self._rows = self._read()
        self._added: dict[str, NDArray[float32]] = {}

    def find(self, prompts: Sequence[Prompt]) -> NDArray[float32] | None:
        """The row of these prompts in this order, None if it is not there."""
        key = self._key(prompts)
        return self._added.get(key, self._rows.get(key))

    def add(self, prompts: Sequence[Prompt], row: NDArray[float32]) -> None:
        """Keeps a row for `find`, and for `write`."""
        self._added[self._key(prompts)] = row

    def write(self) -> None:
        """Writes the rows that were added, beside those of other processes; the disk's errors are logged.

        Writes the file of the base model below the folder, and removes the oldest of more than 16.
        """
        if not self._added:
            return

        def write_rows(new: Path) -> dict[str, object]:
            rows = dict([*{**self._read(), **self._added}.items()][-MOST_ROWS:])
            new.write_bytes(b"".join(row.astype("<f4").tobytes() for row in rows.values()))
            return {"base": self._identity, "rows": list(rows)}

        if write_cache(self.path, write_rows):
            self._rows |= self._added
            self._added = {}
            _remove_oldest(self.path.parent)

    def _read(self) -> dict[str, NDArray[float32]]:
        """The rows of the file by key, none if it is missing, damaged or of another base model."""
        import numpy as np

        if not self.path.is_file():
            return {}
        try:
            facts = read_facts(self.path)
            keys = facts["rows"]
            if facts["base"] != self._identity or not 0 < len(keys) <= MOST_ROWS:
                raise ValueError(f"{self.path} belongs to another base model")
            with open_cache(self.path, facts) as file:
                data = file.read(4 * ROW_SIZE * len(keys) + 1)
            rows = np.frombuffer(data, dtype="<f4").reshape(len(keys), ROW_SIZE)
            if not np.isfinite(rows).all():
                raise ValueError(f"{self.path} has numbers that are not finite")
            return {str(key): row for key, row in zip(keys, rows, strict=True)}
        except DAMAGES as error:
            log.info("%s is not used, and written anew: %s", self.path, error)
            return {}

    def _key(self, prompts: Sequence[Prompt]) -> str:
        """A hash of what the model reads of the prompts, and how."""
        parts = [
            [prompt.question, prompt.target, prompt.depth <= self._base.reading.tree_length]
            for prompt in prompts
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def weights_mark(model: Any) -> str:
    """A digest of all weights of a model, which any changed bit changes: 32 hexadecimal digits.

    Of each block of a tensor the sum of its bit patterns times odd numbers, modulo 2^64: the same on every
    device, and without a copy of the weights.
    """
    import torch

    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    odd: dict[torch.device, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            values = parameter.detach().reshape(-1).view(integers[parameter.element_size()])
            if values.device not in odd:
                odd[values.device] = 2 * torch.arange(_BLOCK, device=values.device) + 1
            factors = odd[values.device]
            sums = [(block.long() * factors[: len(block)]).sum() for block in values.split(_BLOCK)]
            digest.update(torch.stack(sums).cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _identity(base: LoadedBase) -> dict[str, object]:
    """Everything that a gradient depends on in addition to the prompts."""
    import torch

    return {
        "computation": [VERSION, FINGERPRINT_VERSION],
        "name": base.name,
        "revision": base.revision,
        "dtype": str(base.dtype),
        "device": base.device.type,
        # The order of sums on a CPU depends on the number of threads.
        "threads": torch.get_num_threads() if base.device.type == "cpu" else None,
        "model": model_identity(base.model),
        "weights": weights_mark(base.model),
    }


def _remove_oldest(folder: Path) -> None:
    """Removes the files of all but the 16 base models that were written last."""
    with suppress(OSError):
        files = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-MOST_BASES]:
            for suffix in (".json", _SUFFIX, ".lock"):
                path.with_suffix(suffix).unlink(missing_ok=True)
