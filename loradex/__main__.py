"""The program `loradex`, also as `python -m loradex`."""

from __future__ import annotations

import sys

from loradex.packages import check_packages


def main() -> None:
    """Runs the program on the command line's arguments and exits."""
    try:
        check_packages()
    except ImportError as error:
        sys.exit(f"Error: {error}")
    from cli.main import main as run

    run()


if __name__ == "__main__":
    main()
