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
    kind = ChangeKind.CANCEL if cancel else ChangeKind.CANCEL_NOW if cancel_now else ChangeKind.PLAN
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
            if quote.is_differing and quote.charged_minor is not None:
                charged = money_text(quote.total._replace(minor=quote.charged_minor))
                click.echo(f"invoice {quote.invoice} is {charged} and not {money_text(quote.total)}")
    if operation is not None and operation.state is not OperationState.DONE:
        raise SystemExit(EXIT_FAILURE)
