"""The vector of a query without the libraries that made the vectors of the cards, which take seconds to
import.

A BERT encoder with mean pooling, as the default one is, is a tokenizer and six layers. Cards are still
embedded by sentence-transformers; the first time that it is loaded, `record_encoder` compares both on a
text and writes into the folder of indexes that the files can be read this way, with the encoder's name.
Files that changed since, and other kinds of models, are left to sentence-transformers.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalog.errors import LoradexError
from catalog.files import DAMAGES, lock_cache, look_of, read_facts, write_facts
from catalog.index.encoder import Embedder, SentenceEncoder, folder_of, load_embedder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_FILES = (
    *("model.safetensors", "tokenizer.json", "config.json", "modules.json"),
    *("sentence_bert_config.json", "1_Pooling/config.json"),
)
_LIBRARY = "sentence-transformers"
_MODULES = ("Transformer", "Pooling", "Normalize")
_PROBE = "An adapter that answers questions of a bank's customers, 24 hours a day."
_NEAR = 1e-5


@dataclass(frozen=True)
class QueryEncoder:
    """An encoder whose queries are worked out here; texts of cards load sentence-transformers."""

    name: str
    size: int
    model: str
    folder: Path
    looks: tuple[tuple[int, ...], ...]

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts of cards, by sentence-transformers."""
        return self._full.encode(texts)

    @functools.cached_property
    def _full(self) -> SentenceEncoder:
        return load_embedder(self.model)

    def encode_query(self, text: str) -> NDArray[np.float32]:
        """The vector of one text, (size,); equal to that of `encode` within 1e-6."""
        return _load_bert(self.folder, self.looks).encode(text)


def find_encoder(folder: Path, model: str) -> QueryEncoder | None:
    """The encoder that was recorded for a model in a folder, None where its files cannot be read here."""
    source = folder_of(model)
    if source is None:
        return None
    try:
        facts = read_facts(folder / "encoder")
        looks = _looks(source)
        if [facts["model"], facts["looks"], facts["version"]] != [model, looks, version(_LIBRARY)]:
            return None
        name, size = str(facts["name"]), int(facts["size"])
    except DAMAGES:
        return None
    return QueryEncoder(name, size, model, source, tuple(map(tuple, looks)))


def record_encoder(folder: Path, model: str, embedder: Embedder) -> None:
    """Writes that the queries of an encoder can be worked out here, if they can; the disk's errors are
    logged.
    """
    import numpy as np

    source = folder_of(model)
    if source is None or not isinstance(embedder, SentenceEncoder):
        return
    try:
        looks = _looks(source)
        query = _load_bert(source, tuple(map(tuple, looks))).encode(_PROBE)
    except (*DAMAGES, LoradexError) as error:
        log.info("The encoder %s is loaded in full each time: %s", model, error)
        return
    if not np.allclose(query, embedder.encode([_PROBE])[0], rtol=0, atol=_NEAR):
        log.info("The encoder %s is loaded in full each time: it makes other vectors.", model)
        return
    facts = {
        "model": model,
        "looks": looks,
        "version": version(_LIBRARY),
        "name": embedder.name,
        "size": embedder.size,
    }
    with lock_cache(folder / "encoder") as locked:
        if locked:
            write_facts(folder / "encoder", facts)


def _looks(source: Path) -> list[list[int]]:
    """The size, dates and inode of each file of a model; raises OSError, and ValueError for one that just
    changed.
    """
    looks = [look_of(source / name) for name in _FILES]
    if None in looks:
        raise ValueError("its files have just changed")
    return [look for look in looks if look is not None]


@functools.lru_cache(maxsize=1)
def _load_bert(source: Path, _looks: tuple[tuple[int, ...], ...]) -> _Bert:
    """The model in a folder, kept as long as its files do not change."""
    return _Bert(source)


class _Bert:
    """A BERT model with mean pooling over its tokens, for one text at a time, in float32.

    Raises ValueError, KeyError and OSError for a folder that holds another kind of model.
    """

    def __init__(self, source: Path) -> None:
        from safetensors import safe_open
        from tokenizers import Tokenizer

        def read(name: str) -> Any:
            return json.loads((source / name).read_bytes())

        config, pooling = read("config.json"), read("1_Pooling/config.json")
        modules = tuple(module["type"].rpartition(".")[2] for module in read("modules.json"))
        modes = {name for name, value in pooling.items() if name.startswith("pooling_mode") and value is True}
        kind = (config["model_type"], config["hidden_act"], config.get("position_embedding_type", "absolute"))
        if (kind, modules[:2], modes) != (
            ("bert", "gelu", "absolute"),
            _MODULES[:2],
            {"pooling_mode_mean_tokens"},
        ) or modules[2:] not in ((), _MODULES[2:]):
            raise ValueError("it is not a BERT model with mean pooling")
        self._heads, self._layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
        self._epsilon = float(config["layer_norm_eps"])
        self._tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        self._tokenizer.enable_truncation(int(read("sentence_bert_config.json")["max_seq_length"]))
        self._tokenizer.no_padding()
        with safe_open(source / "model.safetensors", framework="np") as file:
            words = "embeddings.word_embeddings.weight"
            self._weights = {name: file.get_tensor(name) for name in file.keys() if name != words}  # noqa: SIM118
        self._words, self._source = words, source

    def encode(self, text: str) -> NDArray[np.float32]:
        """The vector of a text, (size,), of length 1."""
        import numpy as np

        hidden = self._embed(self._tokenizer.encode(text).ids)
        for layer in range(self._layers):
            hidden = self._apply_layer(hidden, f"encoder.layer.{layer}")
        mean = hidden.mean(axis=0)
        unit: NDArray[np.float32] = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
        return unit

    def _embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The rows of words, positions and the first type, (tokens, width)."""
        import numpy as np
        from safetensors import safe_open

        with safe_open(self._source / "model.safetensors", framework="np") as file:
            rows = file.get_slice(self._words)
            words = np.concatenate([rows[id_ : id_ + 1] for id_ in ids])
        positions = self._weights["embeddings.position_embeddings.weight"][: len(ids)]
        types = self._weights["embeddings.token_type_embeddings.weight"][0]
        return self._normalise(words + positions + types, "embeddings.LayerNorm")

    def _apply_layer(self, hidden: NDArray[np.float32], layer: str) -> NDArray[np.float32]:
        """Self-attention, then two linear maps with a GELU between, each added to what it reads."""
        import numpy as np

        query, key, value = (
            self._split(self._map(hidden, f"{layer}.attention.self.{name}"))
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.float32(math.sqrt(query.shape[2]))
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        context = (scores / scores.sum(axis=2, keepdims=True)) @ value
        joined = context.transpose(1, 0, 2).reshape(hidden.shape)
        attended = self._map(joined, f"{layer}.attention.output.dense")
        hidden = self._normalise(attended + hidden, f"{layer}.attention.output.LayerNorm")
        inner = _gelu(self._map(hidden, f"{layer}.intermediate.dense"))
        outer = self._map(inner, f"{layer}.output.dense")
        return self._normalise(outer + hidden, f"{layer}.output.LayerNorm")

    def _split(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(tokens, width) as (heads, tokens, width of a head)."""
        return rows.reshape(len(rows), self._heads, -1).transpose(1, 0, 2)

    def _map(self, rows: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        mapped: NDArray[np.float32] = rows @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return mapped

    def _normalise(self, rows: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        import numpy as np

        away = rows - rows.mean(axis=1, keepdims=True)
        spread = np.sqrt(np.square(away).mean(axis=1, keepdims=True) + np.float32(self._epsilon))
        scaled: NDArray[np.float32] = away / spread * self._weights[f"{name}.weight"]
        scaled += self._weights[f"{name}.bias"]
        return scaled


def _gelu(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """x Φ(x) (Hendrycks and Gimpel, 2016), with the error function itself."""
    import numpy as np

    erf = np.frompyfunc(math.erf, 1, 1)
    share = erf(values / math.sqrt(2)).astype(np.float32)
    half: NDArray[np.float32] = values * np.float32(0.5) * (1 + share)
    return half
