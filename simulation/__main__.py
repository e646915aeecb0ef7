"""`python -m simulation`: prove the counts under faults."""

from __future__ import annotations

import random
import time

import click

from pipeline.cli import main
from schemas.errors import InvalidInput
from simulation.faults import Fault
from simulation.report import Coverage, failure_text, replay_command
from simulation.run import run_all, shrunk

STEPS = 40


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--seed", type=click.IntRange(0), help="The first seed; later runs take the next seeds. Random if unset.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Number of batches per run.")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Number of runs.")
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Number of runs at the same time."
)
@click.option(
    "--only",
    multiple=True,
    help="Allow only this fault, with the name from the output of a failing run.",
)
@click.option("--shrink/--no-shrink", default=True, show_default=True, help="Search for fewer faults that still fail.")
def simulate(seed: int | None, steps: int, runs: int, processes: int, only: tuple[str, ...], *, shrink: bool) -> None:
    """Run the whole pipeline under crashes, lost answers, rebalances and losses, and compare all views.

    The real processors run on fakes of the log, Redis, ClickHouse and Stripe with a simulated clock. The seed decides
    the whole run. After the faults the deployment must come to rest, and every view must equal the oracle's count of
    the log. Exits 1 at the first failing run.
    """
    for name in only:
        if name != "none" and name.partition("@")[0].upper() not in Fault.__members__:
            raise InvalidInput("--only", f"{name!r} is no fault: copy the name from the output of a failing run")
    first = random.SystemRandom().randrange(1 << 32) if seed is None else seed
    click.echo(f"{runs} runs of {steps} steps from seed {first}")
    coverage, began_s = Coverage(), time.monotonic()
    for number, outcome in enumerate(run_all(range(first, first + runs), steps, only or None, processes)):
        if outcome.failures:
            click.echo(f"Seed {outcome.seed} fails, with {len(outcome.struck)} faults:")
            click.echo(failure_text(outcome))
            kept = shrunk(outcome.seed, steps, outcome) if shrink and not only else list(only or outcome.struck)
            click.echo("Show it again with:\n  " + replay_command(outcome.seed, steps, kept))
            raise SystemExit(1)
        coverage.add(outcome.counts)
        if runs == 1:
            click.echo(f"digest {outcome.digest}, {outcome.calls:,} calls, {len(outcome.struck)} faults struck")
        elif (number + 1) % 100 == 0:
            rate = (number + 1) / (time.monotonic() - began_s) * 60
            click.echo(f"  {number + 1:,} runs, {rate:,.0f} a minute, no difference so far")
    click.echo(coverage.text())
    click.echo(f"{runs} runs, {time.monotonic() - began_s:.0f} s: every view held what the oracle counts.")


if __name__ == "__main__":
    main(simulate)
