"""How a user names one adapter: `owner/name`, optionally `@commit` and `:subfolder`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from catalog.errors import UsageError

_FORM = re.compile(r"(?P<name>[^@:\s]+)(?:@(?P<commit>[0-9a-fA-F]{4,40}))?(?::(?P<subfolder>[^\x00-\x1f]+))?")


@dataclass(frozen=True)
class AdapterReference:
    """A repository's name, a commit or its beginning, and a folder; None for the current and the main one."""

    name: str
    commit: str | None = None
    subfolder: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterReference:
        """The reference that a user typed; `:.` is the root. Raises UsageError."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"{text!r} does not name an adapter; write owner/name, owner/name@commit or "
                "owner/name:folder."
            )
        commit, subfolder = match["commit"], match["subfolder"]
        if subfolder is not None:
            subfolder = subfolder.strip("/")
            subfolder = "" if subfolder == "." else subfolder
        return cls(match["name"], commit.lower() if commit else None, subfolder)

    def __str__(self) -> str:
        commit = f"@{self.commit}" if self.commit else ""
        return (
            f"{self.name}{commit}:{self.subfolder or '.'}"
            if self.subfolder is not None
            else f"{self.name}{commit}"
        )


def adapter_name(name: str, subfolder: str) -> str:
    """The short name of an adapter at its current commit: its repository's, and its folder below the root."""
    return f"{name}:{subfolder}" if subfolder else name
