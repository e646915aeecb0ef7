"""Commands about trials, second subscriptions, and invoices that cannot become final, for operators."""

from __future__ import annotations

import json
from asyncio import run
from typing import Final

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import account_name, billing, user

_LIMIT = click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="How many.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_REMEDIES: Final = {
    "found": "it is being canceled",
    "refund_proposed": "it is canceled: refund it, or leave the credit",
    "foreign": "cancel one of the two at Stripe",
    "settled": "settled",
}


@click.group()
def trials() -> None:
    """Trials of plans."""


@trials.command("list")
@click.option("--account", "name", default="", help="Of one account; of all if unset.")
@_LIMIT
@_JSON
def trials_list(name: str, limit: int, as_json: bool) -> None:
    """List trials, the newest first."""
    from aggregators.instants import format_instant_ms
    from aggregators.notices import printable
    from pipeline.commands.bought import trials as found_trials

    found = run(found_trials(settings(), account_name(name) if name else "", limit))
    if as_json:
        click.echo(json.dumps([{**each._asdict(), "terms": each.terms._asdict()} for each in found]))
        return
    for each in found:
        said = f"{each.id} {each.account} {each.terms.plan} {each.state} since {format_instant_ms(each.made_ms)}"
        if each.ends_ms is not None:
            said += f", ends {format_instant_ms(each.ends_ms)}"
        click.echo(printable(said + (", repeated card" if each.is_flagged else "")))
    if not found:
        click.echo("no trials")


@billing.command("duplicates")
@click.option("--all", "with_settled", is_flag=True, help="Those that are settled too.")
@_LIMIT
@_JSON
def billing_duplicates(with_settled: bool, limit: int, as_json: bool) -> None:
    """List second subscriptions of accounts, the newest first, with what a person should do."""
    from aggregators.notices import printable
    from aggregators.upgrade_words import money_text
    from pipeline.commands.bought import duplicates
    from schemas.upgrades import Money

    found = run(duplicates(settings(), limit, with_settled=with_settled))
    if as_json:
        click.echo(json.dumps([each._asdict() for each in found]))
        return
    for each in found:
        said = f"{each.subscription} of {each.account} beside {each.kept}: {each.state}, {_REMEDIES[each.state.value]}"
        if each.amount_minor:
            paid = money_text(Money(each.amount_minor, each.currency, each.exponent))
            said += f"; {paid} was paid by {each.invoice}"
        click.echo(printable(said))
    if not found:
        click.echo("no second subscriptions")


@billing.command("settle")
@click.argument("subscription")
@click.option("--by", default=None, help="Who decided; the user of this machine if unset.")
@click.option("--reason", required=True, help="What was decided, for the audit.")
def billing_settle(subscription: str, by: str | None, reason: str) -> None:
    """Note what was decided about the second SUBSCRIPTION of the list. The same again changes nothing."""
    from pipeline.commands.bought import settle

    settled = run(settle(settings(), subscription, by or user(), reason))
    click.echo(f"{settled.subscription} of {settled.account} is settled: {settled.reason}")


@billing.command("unfinalized")
@_LIMIT
@_JSON
def billing_unfinalized(limit: int, as_json: bool) -> None:
    """List drafts that Stripe cannot make final, the oldest first: nobody is asked to pay them."""
    from aggregators.instants import format_instant_ms
    from aggregators.notices import printable
    from pipeline.commands.bought import unfinalized

    found = run(unfinalized(settings(), limit))
    if as_json:
        click.echo(json.dumps([each._asdict() for each in found]))
        return
    for each in found:
        whose = each.account or each.customer
        said = f"{each.invoice} of {whose} since {format_instant_ms(each.created_ms)}: {each.error}"
        if each.error == "customer_tax_location_invalid":
            said += "; have the address entered by `tidemark change portal`, then finalize the invoice at Stripe"
        click.echo(printable(said))
    if not found:
        click.echo("no invoice is stuck")
