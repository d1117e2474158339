"""The text encoder of a catalog, whose new cards are embedded before it is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from catalog.index import Embedder, find_encoder, load_embedder, record_encoder
from catalog.search import embed_new_cards

if TYPE_CHECKING:
    from catalog.database import Session
    from loradex.progress import ProgressStep


def embed_catalog(
    session: Session, index: Path, model: str, step: ProgressStep, notes: list[str]
) -> Embedder:
    """The encoder, after it embedded the cards that are new; adds to `notes` what it could not.

    Raises EncoderError where it cannot be loaded. Writes the vectors, and the index of words in its folder.
    """
    embedder: Embedder | None = find_encoder(index, model)
    if embedder is None:
        embedder = load_embedder(model)
        record_encoder(index, model, embedder)
    if left := embed_new_cards(session, index, embedder, step.working):
        notes.append(f"The catalog takes no vectors: {left:,} cards go by words alone.")
    return embedder
