"""`python -m demo`: run an instrumented application against the whole pipeline, kill it, and prove the counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from demo.run import KILLS_MAX, run_demo
from pipeline.cli import main


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep the demo's data in this folder.")
@click.option("--events", type=click.IntRange(1), default=300_000, show_default=True, help="Minimum number of events.")
@click.option(
    "--kills",
    type=click.IntRange(1, KILLS_MAX),
    default=5,
    show_default=True,
    help="Minimum number of kill -9 of the worker.",
)
def demo(as_json: bool, keep: Path | None, events: int, kills: int) -> None:
    """Run an instrumented application against the whole pipeline, kill it, and prove the counts."""
    raise SystemExit(asyncio.run(run_demo(as_json=as_json, keep=keep, events=events, kills=kills)))


if __name__ == "__main__":
    main(demo)
