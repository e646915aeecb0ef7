"""The command reconcile: compare, keep, show, and repair."""

from __future__ import annotations

from asyncio import run
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import instant_ms
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.audit.repair import RepairStep


@click.command()
@click.option("--from", "from_", help="Only periods that end after this instant.")
@click.option("--to", help="Only periods that begin before this instant.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--stripe-reads-max",
    type=click.IntRange(0),
    default=2_000,
    show_default=True,
    help="Maximum number of reads from Stripe.",
)
@click.option(
    "--rows", type=click.IntRange(0), default=50, show_default=True, help="Maximum number of differences to print."
)
@click.option("--pushgateway", default="", help="Also push the gauges to this Prometheus push gateway.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Also write the report as a page.")
@click.option("--record/--no-record", default=True, help="Keep the run and its rows in ClickHouse.", show_default=True)
@click.option(
    "--repair", is_flag=True, help="Plan the repair of what differs at Stripe. Changes nothing without --yes."
)
@click.option("--yes", is_flag=True, help="Do the steps of the plan.")
@click.option("--actor", default="", help="With --yes: who repairs. It is kept.")
@click.option("--reason", default="", help="With --yes: why. It is kept.")
def reconcile(
    from_: str | None,
    to: str | None,
    as_json: bool,
    stripe_reads_max: int,
    rows: int,
    pushgateway: str,
    html: Path | None,
    record: bool,
    repair: bool,
    yes: bool,
    actor: str,
    reason: str,
) -> None:
    """Recount usage_events and compare it with Redis, usage_hourly, the intents, Stripe's sums and Stripe's invoices.
    What measured meters count is compared with their samples.

    Exits 0 if all compared values are equal, 1 on drift. Values that could not be read are `unchecked`. What an earlier
    run has confirmed at Stripe is not read again soon; without a record, everything is read.

    --repair prints a plan: which reports to send again, which meter events to cancel, what the sink bills by itself,
    and what a person must do. With --yes, --actor and --reason, the first two are done. Repeating does nothing twice.
    """
    from pipeline.commands.reconciliation import run_reconcile, run_repair

    from_ms = instant_ms("--from", from_) if from_ is not None else None
    to_ms = instant_ms("--to", to) if to is not None else None
    if from_ms is not None and to_ms is not None and to_ms <= from_ms:
        raise InvalidInput("--to", f"{to} is not after --from {from_}: no period lies between them")
    if yes and not repair:
        raise InvalidInput("--yes", "is for --repair")
    if repair and yes and not (actor.strip() and reason.strip()):
        raise InvalidInput("--reason", "say who repairs (--actor) and why (--reason): both are kept")
    if repair:

        def decide(steps: Sequence[RepairStep]) -> tuple[str, str] | None:
            for number, step in enumerate(steps, 1):
                click.echo(f"{number}. {step.kind}: {step.text}")
            if not steps:
                click.echo("nothing to repair")
            elif not yes:
                click.echo("Nothing was changed. To do the steps redrive and cancel: --yes --actor NAME --reason TEXT")
            return (actor, reason) if yes else None

        code, lines = run(run_repair(settings(), from_ms, to_ms, stripe_reads_max, decide))
        for line in lines:
            click.echo(line)
        raise SystemExit(code)
    code, text = run(
        run_reconcile(
            settings(),
            from_ms,
            to_ms,
            as_json=as_json,
            stripe_reads_max=stripe_reads_max,
            rows_max=rows,
            pushgateway=pushgateway,
            record=record,
            html=html,
        )
    )
    click.echo(text)
    raise SystemExit(code)
