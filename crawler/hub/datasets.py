"""Data set repositories: a folder becomes one by the Hub's own client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi

from catalog.errors import HubError
from crawler.hub.exchange import HubSettings
from crawler.hub.refusal import translate_errors


def upload_dataset(
    settings: HubSettings,
    name: str,
    folder: Path,
    files: Sequence[str],
    *,
    new: bool,
    private: bool,
    delete: Sequence[str],
    message: str,
) -> str:
    """Writes files of a folder into a data set repository, which is made if it is `new`; returns the commit.

    Files that are there, fit a pattern of `delete` and are not among these are removed. Raises HubError.
    """
    api = HfApi(settings.endpoint, settings.token or False)
    address = f"{settings.endpoint}/datasets/{name}"
    with _translate_failures(address), translate_errors(address):
        if new:
            # Made by somebody else meanwhile, it may be public: that is an error.
            api.create_repo(name, repo_type="dataset", private=private, exist_ok=False)
        commit = api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=list(files),
            delete_patterns=list(delete),
            commit_message=message,
        )
    return commit.oid


@contextmanager
def _translate_failures(address: str) -> Iterator[None]:
    """Inside the block, what the client raises for its own reasons becomes a HubError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        causes = [str(one).strip().partition("\n")[0] for one in (error, error.__cause__) if one]
        why = ": ".join(text.rstrip(".") for text in causes)
        raise HubError(f"The upload failed: {why}.", url=address) from error
