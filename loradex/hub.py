"""A Hub in a folder: for tests, for trying things out, and for clusters without internet."""

from __future__ import annotations

from pathlib import Path

from loradex.arguments import check_arguments
from loradex.progress import ProgressEvent, ProgressOption, reporting


@check_arguments
def serve_hub(
    folder: str | Path, *, host: str = "127.0.0.1", port: int = 8000, progress: ProgressOption = True
) -> None:
    """Serves repositories on disk over the Hub's protocol until it is interrupted.

    huggingface_hub, transformers, peft and loradex use it when HF_ENDPOINT names it.

    Args:
        folder: The folder of OWNER/NAME/… folders; data sets lie at datasets/OWNER/NAME/….
        host: The address to listen on.
        port: The port; 0 takes any free one.
        progress: See `loradex.progress`; the notes name the address, and what is not served with the reason.

    Raises:
        UsageError: The extra "serve" is not installed.
    """
    from crawler.localhub import HubFolder, omissions, serve

    omitted = omissions(HubFolder(Path(folder)))
    with reporting(progress) as report:

        def announce(url: str) -> None:
            notes = [f"serving {folder} at {url}", f"export HF_ENDPOINT={url}"]
            notes += [f"left out: {omission.path}: {omission.reason}" for omission in omitted]
            for note in notes:
                report(ProgressEvent("serving", note=note))

        serve(Path(folder), host, port, announce)
