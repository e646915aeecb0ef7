"""`python -m pipeline.cli`: the `tidemark` command without its script."""

from pipeline.cli import main

main()
