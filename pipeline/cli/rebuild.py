"""The operator's command `rebuild`: a view again from the log, while traffic goes on."""

from __future__ import annotations

import click

from pipeline.cli.context import run, settings
from schemas.errors import InvalidInput
from schemas.rebuild import Progress


@click.group()
def rebuild() -> None:
    """Build a view again from the log, beside the live one, and swap it in."""


@rebuild.command("redis")
@click.option("--from", "source", type=click.Choice(["log"]), default="log", show_default=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--abandon", is_flag=True, help="Give up a rebuild that was begun, and remove what it made.")
@click.option("--reconcile/--no-reconcile", "reconcile_after", default=True, help="Compare all views at the end.")
def rebuild_redis(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Fold the log from its start into new keys and swap them in, one partition after the other.

    Needs the log from offset 0, and room in Redis for one partition more. Workers go on; each is fenced once and
    starts again. Cut short, the same command goes on where it was. Exits as `reconcile` does.
    """
    from pipeline.operations import run_reconcile
    from pipeline.rebuild.command import abandon_live_view, rebuild_live_view

    if source != "log":
        raise InvalidInput("--from", "the live view is made from the log only")
    chosen = settings()
    if abandon:
        given_up = run(abandon_live_view(chosen))
        click.echo("nothing was being built" if given_up is None else f"generation {given_up} is given up and removed")
        return
    if not yes:
        click.confirm("Build the live view again from the log and replace the one in Redis?", abort=True)
    generation = run(rebuild_live_view(chosen, ProgressLines()))
    click.echo(f"the live view is generation {generation}", err=True)
    if reconcile_after:
        code, text = run(
            run_reconcile(
                chosen, None, None, as_json=False, stripe_reads_max=2_000, rows_max=50, pushgateway=""
            )
        )  # fmt: skip
        click.echo(text)
        raise SystemExit(code)


class ProgressLines:
    """Says on stderr how far each partition is: every twentieth of its log, and its swap."""

    def __init__(self) -> None:
        self._said: dict[int, int] = {}

    def __call__(self, at: Progress) -> None:
        """One look at one partition."""
        share = 20 * at.next_offset // max(at.end_offset, 1)
        if at.swapped or share > self._said.get(at.partition, -1):
            self._said[at.partition] = share
            what = "swapped in" if at.swapped else f"{5 * share} %"
            click.echo(
                f"partition {at.partition}: {what}, offset {at.next_offset} of {at.end_offset}, {at.events} events",
                err=True,
            )
