"""Commands that show credits, grant them and take them back, for operators."""

from __future__ import annotations

import json
from asyncio import run
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import COUNT, account_name, instant_ms, user

if TYPE_CHECKING:
    from schemas.credits import CreditGrant

_BY = click.option("--by", default=None, help="Who asks; the user of this machine if unset.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_REASON = click.option("--reason", required=True, help="Why; the audit keeps the reason.")


@click.group("credits")
def credits_() -> None:
    """What an account has paid for, or was given, before Stripe bills its usage."""


@credits_.command("balance")
@click.argument("name", metavar="ACCOUNT")
@_JSON
def credits_balance(name: str, as_json: bool) -> None:
    """Show the credits of ACCOUNT by pool, and the grants that can be drawn."""
    from aggregators.instants import format_instant_ms
    from pipeline.access.credits import balance_document
    from pipeline.commands.credits import show_balance

    found = run(show_balance(settings(), account_name(name)))
    if as_json:
        click.echo(json.dumps(balance_document(found)))
        return
    if found.complete_up_to_ms is None:
        click.echo("the active catalog has no pool of credits in mode ledger")
        return
    for pool in found.pools:
        owed = f", {pool.owed} owed" if pool.owed else ""
        parts = f"{pool.remaining} in grants, {pool.undrawn} not drawn yet, {pool.held} held"
        click.echo(f"{pool.pool}: {pool.left} left ({parts}{owed})")
        for grant in pool.grants:
            _show(grant)
    click.echo(f"with the usage up to {format_instant_ms(found.complete_up_to_ms)}")


@credits_.command("ledger")
@click.argument("name", metavar="ACCOUNT")
@click.option("--limit", type=COUNT, default=100, show_default=True, help="How many rows; the newest.")
@_JSON
def credits_ledger(name: str, limit: int, as_json: bool) -> None:
    """List what granted, drew and returned the credits of ACCOUNT. The newest row is the last one."""
    from aggregators.instants import format_instant_ms
    from pipeline.access.credits import entry_document
    from pipeline.commands.credits import list_entries

    found = run(list_entries(settings(), account_name(name), limit))
    if as_json:
        click.echo(json.dumps([entry_document(entry) for entry in found]))
        return
    for entry in found:
        usage = f"  {entry.meter}" if entry.meter else ""
        what = f"{entry.kind.value:6}  {entry.credits:+}  {entry.grant}  {entry.source_key}{usage}"
        click.echo(f"{entry.number}  {format_instant_ms(entry.at_ms)}  {what}")


@credits_.command("grant")
@click.argument("name", metavar="ACCOUNT")
@click.argument("pool")
@click.argument("amount", type=COUNT)
@click.option("--key", required=True, help="Names the grant: the same key again changes nothing.")
@_REASON
@click.option(
    "--category", type=click.Choice(["promotional", "paid"]), default="promotional", show_default=True,
    help="Whether the credits cost something.",
)  # fmt: skip
@click.option("--priority", type=click.IntRange(0, 1_000), default=50, show_default=True, help="The lowest is first.")
@click.option("--from", "from_", default=None, help="From when on usage draws, RFC 3339; now if unset.")
@click.option("--until", default=None, help="The end, RFC 3339; never if unset.")
@_BY
@_JSON
def credits_grant(
    name: str,
    pool: str,
    amount: int,
    key: str,
    reason: str,
    category: str,
    priority: int,
    from_: str | None,
    until: str | None,
    by: str | None,
    as_json: bool,
) -> None:
    """Give ACCOUNT so many credits of POOL."""
    from pipeline.commands.credits import GrantWish, make_grant
    from schemas.credits import Category

    effective_ms = None if from_ is None else instant_ms("--from", from_)
    expires_ms = None if until is None else instant_ms("--until", until)
    wish = GrantWish(
        account_name(name), pool, amount, key, reason, Category(category), priority, effective_ms, expires_ms
    )  # fmt: skip
    _show(run(make_grant(settings(), wish, by or user())).grant, as_json=as_json)


@credits_.command("void")
@click.argument("name", metavar="ACCOUNT")
@click.argument("grant")
@_REASON
@click.option("--owes", is_flag=True, help="The account owes what it has used of the grant; the next grants pay that.")
@_BY
@_JSON
def credits_void(name: str, grant: str, reason: str, owes: bool, by: str | None, as_json: bool) -> None:
    """Take back what is left of GRANT of ACCOUNT. The same again changes nothing."""
    from pipeline.commands.credits import void_grant

    found = run(void_grant(settings(), account_name(name), grant, reason, by or user(), owes=owes))
    _show(found, as_json=as_json)


def _show(grant: CreditGrant, *, as_json: bool = False) -> None:
    from aggregators.instants import format_instant_ms
    from pipeline.access.credits import grant_document

    if as_json:
        click.echo(json.dumps(grant_document(grant)))
        return
    until = "" if grant.expires_ms is None else f" until {format_instant_ms(grant.expires_ms)}"
    void = "" if grant.voided_ms is None else ", void"
    left = f"{grant.remaining} of {grant.credits} left{until}{void}"
    click.echo(f"{grant.id}  {grant.pool}  {grant.category.value}  {left}  {grant.source_key}")
