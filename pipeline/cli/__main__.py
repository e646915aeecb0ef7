"""`python -m pipeline.cli`, for processes that start others of us."""

from pipeline.cli import main

main()
