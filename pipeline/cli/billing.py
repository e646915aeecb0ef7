"""Commands about webhooks and side tables, for operators."""

from __future__ import annotations

import csv
import json
import secrets
from asyncio import run
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import COUNT, account, account_name, billing, instant_ms, user
from schemas.billing_events import CUSTOMER_ID
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.webhooks.linking import Wish
    from sinks.sql.backup import Backup

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def webhooks() -> None:
    """Find the events that Stripe did not deliver."""


@webhooks.command("recover")
@click.option("--since", default="72h", show_default=True, help="How far back: 90s, 30m, 72h, at most 30d.")
@_JSON
def webhooks_recover(since: str, as_json: bool) -> None:
    """Read Stripe's list of events, and take in those that never came.

    The role `mirror` does so several times an hour; this command reads an older span. Waits
    until the role has processed what came, as long as the role gets on. Safe to repeat.
    """
    from pipeline.commands.billing import recover, span_s

    walked = run(recover(settings(), span_s("--since", since)))
    if as_json:
        click.echo(json.dumps(walked._asdict()))
    else:
        click.echo(
            f"{walked.listed} events concern the side tables; {walked.appended} never came, and are taken in now"
        )


@billing.command("resync")
@click.option("--account", "name", default="", help="Only the objects of this account's customers.")
@click.option("--run", "run_name", default="", help="The name of an interrupted resync, to go on with it.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: a line after each two hundred objects, then the counts."
)
def billing_resync(name: str, run_name: str, as_json: bool) -> None:
    """Have every customer, subscription, schedule and invoice fetched again from Stripe.

    Heals every gap, also one that is older than Stripe's list of events. Afterwards the mirror equals that of a fresh
    database. Costs a call to Stripe for each object. Runs until the role `mirror` has taken in all but the last
    hundred, so that events which Stripe delivers meanwhile need not wait for all.
    """
    from pipeline.commands.billing import run_resync

    made = run_name or secrets.token_hex(4)

    def told(objects: int) -> None:
        shown = json.dumps({"run": made, "so_far": objects}) if as_json else f"resync {made}: {objects} objects so far"
        click.echo(shown, err=not as_json)

    counts = run(run_resync(settings(), made, account_name(name) if name else "", told))
    if as_json:
        click.echo(json.dumps({"run": made, "objects": counts}))
    else:
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        click.echo(f"resync {made}: {listed}; the role mirror fetches them, see tidemark billing status")


@billing.command("recompute")
@click.option("--account", "name", default="", help="Only this account.")
@_JSON
def billing_recompute(name: str, as_json: bool) -> None:
    """Have the role `mirror` compute what accounts may do again, from the mirror, the catalog and the overrides.

    Changes nothing if the entitlements are right. Safe to repeat.
    """
    from pipeline.commands.billing import recompute

    count = run(recompute(settings(), account_name(name) if name else ""))
    click.echo(json.dumps({"accounts": count}) if as_json else f"{count} accounts; the role mirror computes them now")


@billing.command("status")
@_JSON
def billing_status(as_json: bool) -> None:
    """Print how far the side tables are, and what waits for a person."""
    from pipeline.commands.billing import status

    found = run(status(settings()))
    document: dict[str, Any] = found._asdict()
    for waiting in ("held", "set_aside"):
        document[waiting] = [event._asdict() for event in document[waiting]]
    if as_json:
        click.echo(json.dumps(document))
        return
    click.echo(f"events to process: {found.lag_events}, the oldest for {found.lag_s} s")
    click.echo(f"Stripe's list of events was read up to: {found.walked_until or 'never'}")
    click.echo(f"bindings to send: {found.due_bindings}")
    click.echo("rows: " + ", ".join(f"{count} {table}" for table, count in found.rows.items()))
    waiting = ", ".join(f"{count} {hold or 'to be sent'}" for hold, count in sorted(found.pending.items()))
    click.echo(f"reports without an outcome: {waiting or 'none'}; not read yet: {found.unread_reports} records")
    if found.set_aside:
        click.echo(
            f"events set aside: {len(found.set_aside)}; an object is missing, and they are read again every hour: "
            "tidemark quarantine list says why"
        )
        for event in found.set_aside[:50]:
            click.echo(f"    {event.event_id}  {event.type}  {event.customer}")
    for problem in found.credits[:50]:
        click.echo(f"credits: {problem}")
    customers = sorted({event.customer for event in found.held})
    click.echo(f"held events: {len(found.held)} of {len(customers)} customers without an account")
    for customer in customers[:50]:
        click.echo(f"    {customer}: tidemark account link NAME --customer {customer}")


@billing.command("audit")
@click.argument("name")
@click.option("--limit", type=COUNT, default=1_000, show_default=True, help="Number of oldest rows.")
@_JSON
def billing_audit(name: str, limit: int, as_json: bool) -> None:
    """Print what changed about account NAME, who or which event changed it, and why."""
    from aggregators.instants import format_instant_ms
    from pipeline.commands.billing import audit

    for row in run(audit(settings(), account_name(name), limit)):
        if as_json:
            click.echo(json.dumps(row._asdict()))
        else:
            click.echo(
                f"{row.seq}  {format_instant_ms(row.at_ms)}  {row.actor}  {row.entity} {row.entity_id}  {row.cause}"
            )
            click.echo(f"    {row.before or '-'} → {row.after or '-'}  {row.reason}")


@billing.command("bills")
@click.option("--account", "name", default="", help="Only the bills of this account's customers.")
@click.option("--customer", default="", help="Only the bills of this Stripe customer, cus_….")
@click.option("--unbilled", is_flag=True, help="Only usage that is not billed, or not yet.")
@click.option("--limit", type=COUNT, default=50, show_default=True, help="Number of latest bills.")
@_JSON
def billing_bills(name: str, customer: str, unbilled: bool, limit: int, as_json: bool) -> None:
    """Print what each invoice bills of the usage that was reported to Stripe, and what is missing on it.

    A bill is open while its period runs, then a draft until its deadline. A finalized invoice is confirmed if it bills
    all usage, by itself or by invoice items on later invoices.
    """
    from pipeline.commands.bills import list_bills

    if name and customer:
        raise InvalidInput("--customer", "contradicts --account: give one of them")
    found = run(list_bills(settings(), account_name(name) if name else "", customer, limit, unbilled=unbilled))
    for row in found:
        click.echo(json.dumps(row) if as_json else _bill_text(row))
    if not found and not as_json:
        click.echo("all usage is billed" if unbilled else "no bills")


def _bill_text(row: dict[str, Any]) -> str:
    """A bill for a person: what and when, the quantities, and what is still to come."""
    first = f"{row['start'][:10]} to {row['end'][:10]}  {row['customer']}  {row['meter']}  {row['state']}"
    if row["state"] == "not sold":
        return f"{first}\n    reported {row['reported']}: {row['reason']}"
    if row["deadline"]:
        first += f", finalized {row['deadline']}"
    lines = [first]
    if row["invoice"]:
        lines.append(
            f"    reported {row['reported']}; on {row['invoice']} {row['billed_by_invoice']}; on invoice items "
            f"{row['billed_by_items']}; unbilled {row['unbilled']}"
        )
    else:
        lines.append(f"    reported {row['reported']} so far")
    lines += [
        f"    invoice item {item['item'] or '(not at Stripe)'}: {item['quantity']}, {item['state']}"
        for item in row["items"]
    ]
    return "\n".join([*lines, *([f"    {row['reason']}"] if row["reason"] else [])])


_FILE = click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))


@billing.command("backup")
@_FILE
@_JSON
def billing_backup(path: Path, as_json: bool) -> None:
    """Copy the side tables into the new file FILE, all of one instant. No role waits for the copy.

    The file has people's addresses: only its owner can read the file. A command that is killed leaves no FILE.
    """
    from pipeline.commands.backups import run_backup

    _told("copied to", path, run_backup(settings(), path), as_json=as_json)


@billing.command("restore")
@_FILE
@_JSON
def billing_restore(path: Path, as_json: bool) -> None:
    """Bring the backup FILE into the empty database at TIDEMARK_SQL_URL, and check it: every row, and that nobody
    changed the audit.

    All is restored or nothing is. Stop `mirror` and `sink` first, and start them afterwards:
    they go on from the instant of the backup. The tables are migrated to this version.
    """
    from pipeline.commands.backups import run_restore

    _told("restored from", path, run(run_restore(settings(), path)), as_json=as_json)


def _told(done: str, path: Path, backup: Backup, *, as_json: bool) -> None:
    from aggregators.instants import format_instant_ms

    rows = {name: table.rows for name, table in backup.tables.items()}
    at = format_instant_ms(backup.at_ms)
    if as_json:
        click.echo(json.dumps({"at": at, "migration": backup.migration, "rows": rows}))
    else:
        click.echo(f"{sum(rows.values())} rows of {len(rows)} tables {done} {path}, as of {at}")


# The options that say what the fields of a link are.
_LINK_OPTIONS: Final = {"starts_ms": "--from", "customer": "--customer", "account": "NAME"}


@account.command("link")
@click.argument("name")
@click.option("--customer", required=True, help="The Stripe customer, cus_….")
@click.option(
    "--from",
    "from_",
    help="The instant of effect, now or later; any for the first link, which has all earlier usage if unset.",
)
@click.option("--by", default=None, help="Who links; the user of this machine if unset.")
@click.option("--reason", default="", help="Why, for the audit.")
def account_link(name: str, customer: str, from_: str | None, by: str | None, reason: str) -> None:
    """Link account NAME to a Stripe customer: from then on the customer's subscriptions say who pays, and when.

    The role mirror must run: it fetches the customer's subscriptions first. Events of the customer that were held are
    processed. The same link again changes nothing.
    """
    _link([_wish(name, customer, from_ or "", by or user(), reason)])


@account.command("link-all")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--by", default=None, help="Who links; the user of this machine if unset.")
@click.option("--reason", default="", help="Why, for the audit.")
def account_link_all(path: Path, by: str | None, reason: str) -> None:
    """Link the accounts of a CSV file PATH: in each line an account, its Stripe customer, and the instant from which
    the link holds, which may be empty as in `account link`."""
    wishes: list[Wish] = []
    actor = by or user()
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if row:
                    wishes.append(_wish_of(number, row, actor, reason))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput("PATH", f"{str(path)!a} cannot be read as CSV in UTF-8: {error}") from error
    _link(wishes)


def _wish_of(number: int, row: Sequence[str], by: str, reason: str) -> Wish:
    """The link of a line of the file."""
    if len(row) not in (2, 3):
        raise InvalidInput(f"line {number}", "write ACCOUNT,CUSTOMER or ACCOUNT,CUSTOMER,FROM")
    try:
        return _wish(row[0], row[1], row[2] if row[2:] else "", by, reason)
    except InvalidInput as error:
        raise InvalidInput(f"line {number}", str(error)) from error


def _wish(name: str, customer: str, from_: str, by: str, reason: str) -> Wish:
    from pipeline.webhooks.linking import Wish
    from schemas.clock import MINUTE_MS

    from_ms = instant_ms("--from", from_) // MINUTE_MS * MINUTE_MS if from_ else None
    checked = account_name(name)
    if not CUSTOMER_ID.fullmatch(customer):
        raise InvalidInput("--customer", f"{customer!r} is no Stripe customer: give its id, which begins with cus_")
    return Wish(checked, customer, from_ms, by, reason)


def _link(wishes: Sequence[Wish]) -> None:
    from aggregators.instants import format_instant_ms
    from pipeline.commands.billing import link

    try:
        linked = run(link(settings(), wishes))
    except InvalidInput as error:
        raise InvalidInput(_LINK_OPTIONS.get(error.field, error.field), error.message) from error
    for made in linked:
        click.echo(
            f"{made.link.account}: linked to {made.link.customer} from {format_instant_ms(made.link.starts_ms)} on"
        )
        if made.released:
            click.echo(f"{made.released} held events of {made.link.customer} are processed now")


@account.command("unlink")
@click.argument("name")
@click.option("--by", default=None, help="Who ends the link; the user of this machine if unset.")
@click.option("--reason", required=True, help="Why, for the audit.")
def account_unlink(name: str, by: str | None, reason: str) -> None:
    """End the link of account NAME to its Stripe customer from now on, because it was wrong.

    The account is unmapped then: its reports are held until another link or binding. Usage before now stays with the
    payer before. Links that were to begin later are taken back.
    """
    from aggregators.instants import format_instant_ms
    from pipeline.commands.billing import unlink

    checked = account_name(name)
    ended = run(unlink(settings(), checked, by or user(), reason))
    click.echo(f"{checked}: linked to no customer from {format_instant_ms(ended.starts_ms)} on; its reports are held")
