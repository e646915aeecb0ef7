"""Commands about what accounts may do, for operators and developers."""

from __future__ import annotations

import json
from asyncio import run
from decimal import Decimal
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import EXIT_FAILURE, EXIT_NO, settings
from pipeline.cli.operate import account, account_name, instant_ms, user
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.http.models import MoneyAnswer
    from schemas.entitlements import Override

_OPERATIONS = ("set", "add", "at_least", "at_most")


@click.command("check")
@click.argument("name", metavar="ACCOUNT")
@click.argument("feature")
@click.option("--quantity", default="1", show_default=True, help="How much more.")
@click.option("--used", default=None, help="Of seats: how many are taken.")
@click.option("--hold", "seconds", type=click.IntRange(1), help="Hold the quantity for so many seconds, up to 3600.")
@click.option("--key", default="", help="With --hold, a name of the request: the same name gets the same hold.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of POST /v1/access/check.")
def check(
    name: str, feature: str, quantity: str, used: str | None, seconds: int | None, key: str, as_json: bool
) -> None:
    """Ask whether ACCOUNT may use more of FEATURE, and why. Exit code 4 if it may not."""
    from pipeline.access.holds import HoldRequest
    from pipeline.commands import access
    from pipeline.http.access import access_answer

    checked = account_name(name)
    taken = None if used is None else _quantity("--used", used)
    wanted = None if seconds is None else HoldRequest(seconds, key)
    found, now_ms = run(access.check(settings(), checked, feature, _quantity("--quantity", quantity), taken, wanted))
    answer = access_answer(checked, found, None if wanted is None else now_ms)
    if as_json:
        click.echo(answer.model_dump_json(exclude_unset=True))
    else:
        click.echo(f"{'yes' if answer.allowed else 'no'}: {answer.reason}")
        if answer.limit:
            held = "" if answer.held == "0" else f", {answer.held} held"
            click.echo(f"{answer.used} of {answer.limit} used{held}, {answer.remaining} left")
        if answer.overage and answer.overage.so_far and (answer.overage.quantity or answer.overage.cap):
            cap = f" of at most {_money(answer.overage.cap)}" if answer.overage.cap else ""
            click.echo(f"{answer.overage.quantity} beyond what is included: {_money(answer.overage.so_far)}{cap}")
        if answer.hold:
            click.echo(f"{answer.hold.id} holds {answer.hold.quantity} until {answer.hold.expires_at}")
        for give in answer.gives:
            # The id of what a person granted says already what it is.
            source = give.id if give.id.startswith(give.source) else f"{give.source} {give.id}"
            click.echo(f"{source}: {give.does} {give.value}")
        if answer.upgrade:
            click.echo(answer.upgrade.words)
    if not answer.allowed:
        raise SystemExit(EXIT_FAILURE if answer.fallback else EXIT_NO)


def _money(amount: MoneyAnswer) -> str:
    from aggregators.upgrade_words import money_text
    from schemas.upgrades import Money

    return money_text(Money(amount.minor, amount.currency, amount.exponent))


@click.group("hold")
def hold() -> None:
    """Say what became of a quantity that `tidemark check --hold` took."""


@hold.command("use")
@click.argument("hold_id", metavar="HOLD")
@click.option("--quantity", default=None, help="How much was used; all that is held if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def hold_use(hold_id: str, quantity: str | None, as_json: bool) -> None:
    """Say that HOLD was used, after the events of the usage were sent. Exit code 4 if the hold is over."""
    _end(hold_id, None if quantity is None else _quantity("--quantity", quantity), as_json=as_json)


@hold.command("release")
@click.argument("hold_id", metavar="HOLD")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def hold_release(hold_id: str, as_json: bool) -> None:
    """Give all that HOLD holds back. Exit code 4 if it was used before."""
    _end(hold_id, Decimal(0), as_json=as_json)


def _end(hold_id: str, used: Decimal | None, *, as_json: bool) -> None:
    from pipeline.commands import access
    from pipeline.http.access import hold_answer

    ended, is_done, now_ms = run(access.end_hold(settings(), hold_id, used))
    answer = hold_answer(ended, now_ms)
    if as_json:
        click.echo(answer.model_dump_json())
    else:
        of = f" {answer.used} of {answer.quantity}" if ended.used else ""
        click.echo(f"{answer.state}{of}" if is_done else f"nothing was changed: the hold is {answer.state}{of}")
    if not is_done:
        raise SystemExit(EXIT_NO)


@account.command("entitlements")
@click.argument("name")
@click.option("--at", default=None, help="When, such as 2026-11-03T14:03:00Z; now if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /v1/accounts/ACCOUNT/entitlements.")
def account_entitlements(name: str, at: str | None, as_json: bool) -> None:
    """Show what account NAME may do, or was allowed to do at an instant, and who or what made it so."""
    from pipeline.commands import access
    from pipeline.http.access import entitlements_answer

    checked = account_name(name)
    version, at_ms = run(access.entitlements(settings(), checked, None if at is None else instant_ms("--at", at)))
    if version is None:
        raise InvalidInput("NAME", "nothing was computed for this account by then: it has the default plan")
    answer = entitlements_answer(checked, version, at_ms)
    if as_json:
        click.echo(answer.model_dump_json())
        return
    click.echo(f"{answer.at}, by version {answer.version} of {answer.computed_at}: {answer.cause}")
    for feature, found in answer.features.items():
        click.echo(f"{feature}: {'denied' if found.denied else found.value}")
        for give in found.gives:
            source = give.id if give.id.startswith(give.source) else f"{give.source} {give.id}"
            who = f", by {give.by} on {give.granted_at}: {give.reason}" if give.by else ""
            until = f" until {give.ends_at}" if give.ends_at else ""
            click.echo(f"  {source}: {f'{give.does} {give.value}' if give.does != 'deny' else 'deny'}{until}{who}")


@account.command("override")
@click.argument("name")
@click.argument("feature")
@click.option("--set", "value_set", default=None, help="A number, unlimited, true, false, or the JSON of a config.")
@click.option("--add", default=None, help="So much more than the plan gives.")
@click.option("--at-least", default=None, help="A lower bound.")
@click.option("--at-most", default=None, help="An upper bound.")
@click.option("--deny", is_flag=True, help="Take the feature away.")
@click.option("--until", default=None, help="Until when, such as 2027-01-01T00:00:00Z; for ever if unset.")
@click.option("--contract", is_flag=True, help="A term of a contract: an override stands above it.")
@click.option("--new-account", "is_new", is_flag=True, help="NAME was never linked or granted anything, and is right.")
@click.option("--by", default=None, help="Who grants it; the user of this machine if unset.")
@click.option("--reason", required=True, help="Why, for the audit.")
def account_override(
    name: str,
    feature: str,
    value_set: str | None,
    add: str | None,
    at_least: str | None,
    at_most: str | None,
    deny: bool,
    until: str | None,
    contract: bool,
    is_new: bool,
    by: str | None,
    reason: str,
) -> None:
    """Grant FEATURE to account NAME beside its plan, or take it away. The same grant again changes nothing."""
    from pipeline.access.overriding import Wish
    from pipeline.commands import access
    from schemas.entitlements import Operation

    given = dict(zip(_OPERATIONS, (value_set, add, at_least, at_most), strict=True))
    chosen = [(operation, value) for operation, value in given.items() if value is not None]
    chosen += [("deny", "")] if deny else []
    if len(chosen) != 1:
        raise InvalidInput("--set", "give one of --set, --add, --at-least, --at-most and --deny")
    ((operation, value),) = chosen
    ends_ms = None if until is None else instant_ms("--until", until)
    wish = Wish(account_name(name), feature, Operation(operation), value, ends_ms, by or user(), reason, contract)
    _show(run(access.override(settings(), wish, is_new=is_new)))


@account.command("revoke")
@click.argument("name")
@click.argument("number", type=click.IntRange(1))
@click.option("--by", default=None, help="Who takes it back; the user of this machine if unset.")
@click.option("--reason", required=True, help="Why, for the audit.")
def account_revoke(name: str, number: int, by: str | None, reason: str) -> None:
    """Take back override NUMBER of account NAME. The same again changes nothing."""
    from pipeline.commands import access

    _show(run(access.revoke(settings(), account_name(name), number, by or user(), reason)))


@account.command("overrides")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def account_overrides(name: str, as_json: bool) -> None:
    """Show what people granted to account NAME, also what was taken back."""
    from pipeline.commands import access

    found = run(access.overrides(settings(), account_name(name)))
    if as_json:
        click.echo(json.dumps([_document(made) for made in found]))
        return
    for made in found:
        _show(made)
    if not found:
        click.echo("nothing was granted to this account by a person")


def _show(made: Override) -> None:
    from aggregators.instants import format_instant_ms
    from pipeline.http.access import text_of

    grant = made.grant
    until = "" if grant.ends_ms is None else f" until {format_instant_ms(grant.ends_ms)}"
    gone = ""
    if made.revoked_ms is not None:
        gone = f", taken back {format_instant_ms(made.revoked_ms)} by {made.revoked_by}: {made.revoked_reason}"
    does = grant.operation.value if grant.operation == "deny" else f"{grant.operation.value} {text_of(grant.value)}"
    made_by = f"by {made.actor} on {format_instant_ms(made.made_ms)}: {grant.reason}"
    click.echo(f"{made.number}: {grant.source}, {grant.feature} {does}{until}, {made_by}{gone}")


def _document(made: Override) -> dict[str, object]:
    from aggregators.instants import format_instant_ms
    from pipeline.http.access import text_of

    grant = made.grant
    return {
        "number": made.number,
        "id": grant.source,
        "kind": grant.kind.value,
        "feature": grant.feature,
        "does": grant.operation.value,
        "value": text_of(grant.value),
        "from": format_instant_ms(grant.starts_ms),
        "until": None if grant.ends_ms is None else format_instant_ms(grant.ends_ms),
        "by": made.actor,
        "reason": grant.reason,
        "revoked": None if made.revoked_ms is None else format_instant_ms(made.revoked_ms),
        "revoked_by": made.revoked_by or None,
        "revoked_reason": made.revoked_reason or None,
    }


def _quantity(option: str, text: str) -> Decimal:
    from pipeline.http.access import quantity_of

    return quantity_of(option, text)
