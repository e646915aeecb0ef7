"""Commands about failed payments, for operators."""

from __future__ import annotations

import json
from asyncio import run
from typing import TYPE_CHECKING, Final

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import account_name, user

if TYPE_CHECKING:
    from schemas.dunning import ListedCase, Recovery

# What a person should do at Stripe about a subscription that was paid and is not billed.
_BILLS_NOTHING: Final = {"unpaid": "finalize and collect its drafts, or delete them", "paused": "resume it"}


@click.group()
def dunning() -> None:
    """Subscriptions whose payments failed, and what becomes of them."""


@dunning.command("list")
@click.option("--state", type=click.Choice(["open", "closed"]), default=None, help="All cases if unset.")
@click.option("--account", "name", default="", help="Cases of one account; of all if unset.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="How many cases.")
@click.option("--months", type=click.IntRange(0, 60), default=6, show_default=True, help="Recovery of so many months.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def dunning_list(state: str | None, name: str, limit: int, months: int, as_json: bool) -> None:
    """List cases, the newest first, and how many cases and how much money recovered, by month."""
    from pipeline.commands.dunning import listed
    from pipeline.http.dunning import case_answer

    is_open = None if state is None else state == "open"
    found = run(listed(settings(), account_name(name) if name else "", is_open, limit, months))
    if as_json:
        cases = [case_answer(each).model_dump(mode="json") for each in found.cases]
        click.echo(json.dumps({"cases": cases, "recoveries": [_document(each) for each in found.recoveries]}))
        return
    for each in found.cases:
        click.echo(_line(each))
    if not found.cases:
        click.echo("no cases")
    for recovery in found.recoveries:
        click.echo(_month(recovery))


@dunning.command("write-off")
@click.argument("case")
@click.option("--by", default=None, help="Who writes it off; the user of this machine if unset.")
@click.option("--reason", required=True, help="Why, for the audit.")
def dunning_write_off(case: str, by: str | None, reason: str) -> None:
    """Close CASE of the list: nobody is asked for its money any more. The same again changes nothing."""
    from pipeline.commands.dunning import write_off

    closed = run(write_off(settings(), case, by or user(), reason))
    click.echo(
        f"{closed.id} of {closed.account} is written off; its invoices are still open at Stripe: void them there"
    )


def _line(listed: ListedCase) -> str:
    from aggregators.instants import format_instant_ms
    from aggregators.notices import printable
    from aggregators.upgrade_words import money_text
    from schemas.dunning import DunningOutcome
    from schemas.upgrades import Money

    case = listed.case
    since = format_instant_ms(case.opened_ms)
    minor = case.amount_minor if case.closed_ms is not None else listed.open_minor
    amount = money_text(Money(minor, case.currency, case.exponent))
    said = f"{case.id} {case.account} {case.subscription} {case.outcome or case.state} {amount} since {since}"
    if case.closed_ms is None and case.downgrade_ms is not None:
        said += f", downgrade {format_instant_ms(case.downgrade_ms)}"
    if case.outcome is DunningOutcome.CHURNED and listed.invoices:
        # A proration would credit a time that nobody paid.
        said += f": cancel the subscription at Stripe without proration, then void {', '.join(listed.invoices)}"
        said += " or mark them uncollectible"
    if listed.unbilled:
        said += f": {listed.unbilled} at Stripe, which bills nothing: {_BILLS_NOTHING[listed.unbilled]} there"
        if case.downgrade_ms is not None:
            said += f"; otherwise the plan ends {format_instant_ms(case.downgrade_ms)}"
    return printable(said)


def _month(found: Recovery) -> str:
    from aggregators.upgrade_words import money_text
    from schemas.upgrades import Money

    recovered, opened = (
        money_text(Money(minor, found.currency, found.exponent))
        for minor in (found.recovered_minor, found.opened_minor)
    )
    percent = 100 * found.recovered // found.opened
    running = f", {found.running} still open" if found.running else ""
    return (
        f"{_name(found)} {found.currency}: {found.recovered} of {found.opened} recovered within 30 days ({percent} %), "
        f"{recovered} of {opened}{running}"
    )


def _document(found: Recovery) -> dict[str, object]:
    values = found._asdict()
    del values["opened_from_ms"]
    return {"month": _name(found), **values}


def _name(found: Recovery) -> str:
    from aggregators.instants import format_instant_ms

    return format_instant_ms(found.opened_from_ms)[:7]
