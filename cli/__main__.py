"""`python -m cli` is `loradex`."""

from cli.main import main

main()
