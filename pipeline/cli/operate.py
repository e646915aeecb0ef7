"""Commands for operators: meters, account, close-period, billing, doctor."""

from __future__ import annotations

import json
from asyncio import run
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from aggregators.instants import parse_instant_us, why_no_instant
from pipeline.cli.context import EXIT_FAILURE, confirm, settings
from pipeline.cli.develop import METER_SET_FILE
from schemas.billing_events import CUSTOMER_ID
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from schemas.periods import Binding

COUNT: Final = click.IntRange(1)


def instant_ms(field: str, text: str) -> int:
    """Parse an RFC 3339 option to UTC milliseconds. Raises `InvalidInput`."""
    parsed = parse_instant_us(text)
    if parsed is None:
        raise InvalidInput(field, f"{text!r} {why_no_instant(text)}; write it as 2026-11-01T00:00:00Z")
    return parsed // 1000


_YES = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group()
def meters() -> None:
    """Show, check and apply the meter set."""


@meters.command("schema")
def meters_schema() -> None:
    """Print the JSON Schema of a meter set file."""
    from schemas.meters import MeterSet

    click.echo(json.dumps(MeterSet.model_json_schema(), indent=2))


@meters.command("check")
@click.argument("file", type=METER_SET_FILE)
def meters_check(file: Path) -> None:
    """Check a meter set file and print the first error. Does not apply the file."""
    from pipeline.open import read_meter_set

    meter_set = read_meter_set(file)
    click.echo(f"{file}: version {meter_set.version}, {len(meter_set.meters)} meters, valid")


@meters.command("apply")
@click.argument("file", type=METER_SET_FILE)
@click.option("--create-at-stripe", is_flag=True, help="Also create the meters that Stripe does not have.")
@_YES
def meters_apply(file: Path, create_at_stripe: bool, yes: bool) -> None:
    """Write a meter set into the log. In each partition it applies to all later events.

    The version must be higher than the version in force, and existing meters must keep their definitions. Prints what
    changes, and asks if a meter is taken away or reported to Stripe otherwise.

    Nothing else creates meters at Stripe: the sink holds the reports of a meter that Stripe does not have. Make a price
    for each new meter at Stripe; `tidemark doctor` names meters without one.
    """
    from pipeline.commands import operations
    from pipeline.commands.operations import apply_planned_meter_set, plan_meter_set

    deployment = settings()
    plan = run(plan_meter_set(deployment, file))
    for line in plan.lines:
        click.echo(line)
    if plan.is_final:
        confirm("Apply? Usage until the next meter set is counted and reported so", yes=yes)
    click.echo(run(apply_planned_meter_set(deployment, plan)))
    if create_at_stripe:
        for line in run(operations.create_at_stripe(deployment, plan.proposed)):
            click.echo(line)


@meters.command("show")
def meters_show() -> None:
    """Print the meter set in force."""
    from pipeline.open import meter_set_in_force

    meter_set = run(meter_set_in_force(settings()))
    text = meter_set.model_dump_json(indent=2, exclude_defaults=True) if meter_set else "no meter set has been applied"
    click.echo(text)


def account_name(text: str) -> str:
    """Check an account's name. Raises `InvalidInput`."""
    from schemas.events import NAME_CHARACTERS_MAX

    if not 1 <= len(text) <= NAME_CHARACTERS_MAX:
        raise InvalidInput("NAME", f"an account's name has 1 to {NAME_CHARACTERS_MAX} characters, this has {len(text)}")
    return text


@click.group()
def account() -> None:
    """Bind accounts to billing periods and Stripe customers."""


@account.command("bind")
@click.argument("name")
@click.option(
    "--anchor",
    default="1970-01-01T00:00:00Z",
    show_default=True,
    help="The instant from which periods are counted, such as a subscription's billing_cycle_anchor.",
)
@click.option("--interval", type=click.Choice(["day", "week", "month", "year"]), default="month", show_default=True)
@click.option("--interval-count", default=1, show_default=True)
@click.option("--from", "from_", help="The instant of effect; the earliest possible if unset.")
@click.option("--customer", help="The Stripe customer, cus_…; unmapped if unset.")
@click.option("--free", is_flag=True, help="Never report this account to Stripe.")
@click.option("--force", is_flag=True, help="Bind an account that is linked to a customer too.")
@click.option("--dry-run", is_flag=True, help="Print what the binding will do. Does not bind.")
@_YES
def account_bind(
    name: str,
    anchor: str,
    interval: str,
    interval_count: int,
    from_: str | None,
    customer: str | None,
    free: bool,
    force: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    """Set an account's period anchor and Stripe customer from an instant on.

    Prints what the binding will do: when it takes effect, which period it ends, and who pays before and after. Asks if
    the account has a payer: then the binding takes effect after all usage, and another payer ends the running period.

    A new anchor may take effect in the past if the affected periods are open and have no payer; their usage is counted
    again. Usage that has no payer is billed to the customer from --from on, or all of it if --from is unset.

    An account that is linked to a customer is bound by the customer's subscriptions, so this command refuses it.
    """  # fmt: skip
    from pipeline.commands.accounts import append_planned, plan_binding

    checked, binding = account_name(name), binding_of(anchor, interval, interval_count, from_, customer, free=free)
    given = click.get_current_context().get_parameter_source
    if all(
        given(option) is ParameterSource.DEFAULT
        for option in ("anchor", "interval", "interval_count", "customer", "free")
    ):
        raise InvalidInput("--customer", "give --customer or --free, or a period (--anchor, --interval)")
    deployment = settings()
    plan = run(plan_binding(deployment, checked, binding, force=force))
    click.echo("\n".join(plan.lines))
    if dry_run:
        return
    if plan.is_final:
        confirm("Bind? It cannot be undone", yes=yes)
    click.echo(run(append_planned(deployment, plan)))


def binding_of(
    anchor: str, interval: str, interval_count: int, from_: str | None, customer: str | None, *, free: bool
) -> Binding:
    """The binding of the options of `account bind`. Instants of effect are cut down to the minute. Raises
    `InvalidInput` with the option."""
    from schemas.clock import MINUTE_MS
    from schemas.periods import INTERVAL_COUNT_MAX, Billing, Binding, Interval

    if free and customer is not None:
        raise InvalidInput("--free", f"contradicts --customer {customer}: give one of them")
    if customer is not None and not CUSTOMER_ID.fullmatch(customer):
        raise InvalidInput("--customer", f"{customer!r} is no Stripe customer: give its id, which begins with cus_")
    if not 1 <= interval_count <= INTERVAL_COUNT_MAX:
        raise InvalidInput("--interval-count", f"{interval_count} is not from 1 to {INTERVAL_COUNT_MAX}")
    return Binding(
        effective_from_ms=instant_ms("--from", from_) // MINUTE_MS * MINUTE_MS if from_ is not None else 0,
        anchor_ms=instant_ms("--anchor", anchor),
        interval=Interval(interval),
        interval_count=interval_count,
        billing=Billing.FREE if free else Billing.MAPPED if customer else Billing.UNMAPPED,
        stripe_customer=customer or "",
    )


@account.command("show")
@click.argument("name")
def account_show(name: str) -> None:
    """Print an account's bindings, closings, last flush and current period."""
    from pipeline.commands.accounts import show_account

    checked = account_name(name)
    click.echo(json.dumps(run(show_account(settings(), checked)), indent=2))


@account.command("flush")
@click.argument("name")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=60.0, show_default=True, help="Seconds.")
@click.option("--no-wait", is_flag=True, help="Only write the record to the log.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def account_flush(name: str, timeout_s: float, no_wait: bool, as_json: bool) -> None:
    """Report the usage of account NAME up to now, before its report interval ends.

    For use before a metered price is swapped, a subscription is cancelled at once, or an invoice is finalized: the
    reports have timestamps before the flush. Waits until they are in the log and, with a Stripe key, until the sink has
    settled them and all earlier ones. Exit code 1 if that takes longer than --timeout: run it again, which is harmless.
    """
    from pipeline.commands.accounts import flush, flush_document

    flushed, progress = run(flush(settings(), account_name(name), timeout_s, wait=not no_wait))
    document = flush_document(flushed, progress)
    if as_json:
        click.echo(json.dumps(document))
        return
    click.echo(
        f"{name}: flushed up to {document['instant']} by record {flushed.offset} of partition {flushed.partition}"
    )
    for report in document["reports"]:
        click.echo(
            f"  {report['meter']} {report['quantity']}, period from {report['period_start']}: {report['status']}"
        )
    if progress.is_published and not document["reports"]:
        click.echo("  nothing was counted since the last report")


@click.command("close-period")
@click.argument("name")
@click.argument("instant")
@_YES
def close_period(name: str, instant: str, yes: bool) -> None:
    """Close the period of account NAME that contains INSTANT before its grace ends.

    Prints the period and its usage, and asks. Later usage of the period follows the late policy of its meter: carry
    forward or quarantine. Cannot be undone. A period that has not begun cannot be closed.
    """
    from pipeline.commands.accounts import append_planned, plan_closing

    checked, at_ms = account_name(name), instant_ms("INSTANT", instant)
    deployment = settings()
    plan = run(plan_closing(deployment, checked, at_ms))
    click.echo("\n".join(plan.lines))
    confirm("Close the period? It cannot be opened again", yes=yes)
    click.echo(run(append_planned(deployment, plan)))


@click.group()
def billing() -> None:
    """Look at the side tables and fill them again; list reports that Stripe rejected, and send them again."""


@billing.command("list")
@click.option("--account", help="Only reports of this account.")
@click.option("--held", is_flag=True, help="Reports that wait instead, and why: nobody pays, no such meter, …")
@click.option("--limit", type=COUNT, default=50, show_default=True, help="Number of newest reports.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def billing_list(account: str | None, held: bool, limit: int, as_json: bool) -> None:
    """Print reports that Stripe does not bill: dead letters, and those that Stripe accepted and rejected afterwards.

    Redriven reports are left out. Stripe names only some of the reports that it rejected afterwards; `tidemark
    reconcile` finds all of them, by their sums. The command reads the ledger of intents, which the sink keeps.
    """
    from pipeline.commands.reports import failed_reports, held_reports

    for row in run((held_reports if held else failed_reports)(settings(), account, limit)):
        if as_json:
            click.echo(json.dumps(row))
        else:
            click.echo(
                f"{row['identifier']}  {row['account']}  {row['meter']}  {row['instant']}  {row['quantity']}  "
                f"{row['stripe_customer'] or 'no customer'}\n    {row['detail']}"
            )


@billing.command("redrive")
@click.argument("identifiers", nargs=-1, required=True)
@click.option("--reason", required=True, help="Why; the log keeps it.")
@click.option("--by", help="Who; the user of this machine if unset. The log keeps it.")
@_YES
def billing_redrive(identifiers: tuple[str, ...], reason: str, by: str | None, yes: bool) -> None:
    """Send reports that Stripe rejected once more, under new identifiers. Correct the cause first.

    IDENTIFIERS are those that `billing list` prints. Refuses a report that Stripe's sum contains or may contain, and
    one that Stripe accepted. Repeating the command sends nothing twice. Exit code 1 if a report was refused.
    """
    from pipeline.commands.reports import redrive_reports

    deployment = settings()
    confirm(f"Send {len(identifiers)} reports to Stripe again, as another revision? Stripe bills them", yes=yes)
    results = run(redrive_reports(deployment, identifiers, by or user(), reason))
    for result in results:
        if result.refused:
            click.echo(f"{result.identifier}: refused: {result.refused}")
        elif result.is_new:
            click.echo(f"{result.identifier}: the sink sends it as {result.successor}")
        else:
            click.echo(f"{result.identifier}: is being sent already, as {result.successor}")
    if any(result.refused for result in results):
        raise SystemExit(EXIT_FAILURE)


def user() -> str:
    """The name of this machine's user. Raises `InvalidInput` if there is none, as in a container."""
    try:
        return getuser()
    except (KeyError, OSError) as error:
        raise InvalidInput("--by", "the user of this machine has no name: say who you are") from error


@click.command()
@click.option("--json", "as_json", is_flag=True)
def doctor(as_json: bool) -> None:
    """Check each dependency and setting, and print remedies. Exits 1 if a check fails."""
    from pipeline.commands.doctor import diagnose

    findings = run(diagnose(settings()))
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.status:5}  {finding.what}: {finding.detail}")
            if finding.remedy:
                click.echo(f"       → {finding.remedy}")
    raise SystemExit(1 if any(finding.status == "wrong" for finding in findings) else 0)
