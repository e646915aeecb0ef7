"""Commands that change the plan of an account, for operators."""

from __future__ import annotations

from asyncio import run
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import EXIT_FAILURE, settings
from pipeline.cli.operate import account_name, user
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from schemas.plan_changes import Operation, Quote


@click.group("change")
def change() -> None:
    """Quote a change of an account's plan, and carry it out."""


@change.command("preview")
@click.argument("name", metavar="ACCOUNT")
@click.argument("plan", default="")
@click.option("--interval", type=click.Choice(["day", "week", "month", "year"]), help="As now if unset.")
@click.option("--currency", default="", help="As now if unset.")
@click.option("--quantity", "quantities", multiple=True, metavar="FEATURE=NUMBER", help="How many to pay; repeatable.")
@click.option("--used", multiple=True, metavar="FEATURE=NUMBER", help="How many are in use; repeatable.")
@click.option("--trial", is_flag=True, help="Begin with the trial of PLAN.")
@click.option("--cancel", is_flag=True, help="End with what is paid, instead of a PLAN.")
@click.option("--cancel-now", is_flag=True, help="End now, with a credit for what is left.")
@click.option("--by", default=None, help="Who asks; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of POST /v1/accounts/{account}/quotes.")
def change_preview(
    name: str,
    plan: str,
    interval: str | None,
    currency: str,
    quantities: tuple[str, ...],
    used: tuple[str, ...],
    trial: bool,
    cancel: bool,
    cancel_now: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """Say what a change of ACCOUNT to PLAN costs, in words and cents. Changes nothing."""
    from decimal import Decimal

    from pipeline.commands import plan_changes
    from schemas.periods import Interval
    from schemas.plan_changes import ChangeKind, ChangeRequest

    if sum((bool(plan), cancel, cancel_now)) != 1:
        raise InvalidInput("PLAN", "give a plan, --cancel or --cancel-now")
    if trial and not plan:
        raise InvalidInput("--trial", "names the trial of a PLAN")
    bought = ChangeKind.TRIAL if trial else ChangeKind.PLAN
    kind = ChangeKind.CANCEL if cancel else ChangeKind.CANCEL_NOW if cancel_now else bought
    request = ChangeRequest(
        kind,
        plan,
        None if interval is None else Interval(interval),
        currency,
        _numbers("--quantity", quantities),
        {feature: Decimal(number) for feature, number in _numbers("--used", used).items()},
        by_operator=True,
    )
    quote = run(plan_changes.preview(settings(), account_name(name), request, by or user()))
    _show(quote, None, as_json=as_json)


@change.command("accept")
@click.argument("name", metavar="ACCOUNT")
@click.argument("quote")
@click.option("--by", default=None, help="Who accepts; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def change_accept(name: str, quote: str, by: str | None, as_json: bool) -> None:
    """Carry QUOTE of ACCOUNT out. Repeat the command if Stripe did not answer: nothing happens twice."""
    from pipeline.commands import plan_changes

    found = run(plan_changes.accept_quote(settings(), account_name(name), quote, by or user()))
    _show(*found, as_json=as_json)


@change.command("undo")
@click.argument("name", metavar="ACCOUNT")
@click.option("--by", default=None, help="Who takes it back; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def change_undo(name: str, by: str | None, as_json: bool) -> None:
    """Take a pending change of ACCOUNT back, or its coming end."""
    from pipeline.commands import plan_changes

    _show(*run(plan_changes.undo(settings(), account_name(name), by or user())), as_json=as_json)


@change.command("checkout")
@click.argument("name", metavar="ACCOUNT")
@click.argument("plan")
@click.option("--return-url", required=True, help="Where the customer comes back to, paid or not.")
@click.option("--interval", type=click.Choice(["day", "week", "month", "year"]), help="A month if unset and sold.")
@click.option("--currency", default="", help="The catalog's first one if unset.")
@click.option("--quantity", "quantities", multiple=True, metavar="FEATURE=NUMBER", help="How many to pay; repeatable.")
@click.option("--trial", is_flag=True, help="Begin with the trial of PLAN.")
@click.option("--by", default=None, help="Who asks; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def change_checkout(
    name: str,
    plan: str,
    return_url: str,
    interval: str | None,
    currency: str,
    quantities: tuple[str, ...],
    trial: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """Make a page of Stripe on which ACCOUNT, which has no subscription, buys PLAN. An older open page is ended."""
    from pipeline.commands import plan_changes
    from schemas.periods import Interval
    from schemas.plan_changes import ChangeKind, ChangeRequest

    request = ChangeRequest(
        ChangeKind.TRIAL if trial else ChangeKind.PLAN,
        plan,
        None if interval is None else Interval(interval),
        currency,
        _numbers("--quantity", quantities),
        by_operator=True,
        by_page=True,
    )
    found = run(plan_changes.checkout(settings(), account_name(name), request, by or user(), return_url))
    _show(*found, as_json=as_json)


@change.command("portal")
@click.argument("name", metavar="ACCOUNT")
@click.option("--return-url", required=True, help="Where the customer comes back to.")
@click.option("--only-card", is_flag=True, help="Only the page that replaces the card.")
def change_portal(name: str, return_url: str, only_card: bool) -> None:
    """Print a page of Stripe on which ACCOUNT replaces its card, and finds invoices. It is good for minutes."""
    from pipeline.commands import plan_changes

    click.echo(run(plan_changes.portal(settings(), account_name(name), return_url, only_card=only_card)))


def _numbers(option: str, given: tuple[str, ...]) -> dict[str, int]:
    found = {}
    for text in given:
        feature, _, number = text.partition("=")
        if not (feature and number.isascii() and number.isdigit() and len(number) <= 15):
            raise InvalidInput(option, f"{text[:100]!r} is not FEATURE=NUMBER, such as locations=2")
        found[feature] = int(number)
    return found


def _show(quote: Quote, operation: Operation | None, *, as_json: bool) -> None:
    from aggregators.instants import format_instant_ms
    from aggregators.upgrade_words import money_text
    from pipeline.http.changes import quote_answer
    from schemas.plan_changes import OperationState

    if as_json:
        click.echo(quote_answer(quote, operation).model_dump_json(by_alias=True))
    else:
        click.echo(quote.words)
        for line in quote.lines:
            sign = "-" if line.amount_minor < 0 else ""
            click.echo(f"  {sign}{money_text(quote.total._replace(minor=line.amount_minor))}  {line.text}")
        if operation is None:
            until = format_instant_ms(quote.expires_ms)
            click.echo(f"until {until}: tidemark change accept {quote.account} {quote.id}")
        else:
            click.echo(f"{operation.state.value}{f': {operation.detail}' if operation.detail else ''}")
            if operation.url:
                click.echo(f"the customer pays at {operation.url}")
            if quote.is_differing and quote.charged_minor is not None:
                charged = money_text(quote.total._replace(minor=quote.charged_minor))
                click.echo(f"invoice {quote.invoice} is {charged} and not {money_text(quote.total)}")
    if operation is not None and operation.state is not OperationState.DONE:
        raise SystemExit(EXIT_FAILURE)
