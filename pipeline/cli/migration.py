"""Commands that move customers from a flat price to a price for usage."""

from __future__ import annotations

import json
from asyncio import run
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import EXIT_FAILURE, settings
from pipeline.cli.operate import instant_ms, user
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from aggregators.migration_report import Report
    from pipeline.changes.migrating import Stores
    from schemas.catalog import PlanId
    from schemas.flat_to_metered import Who

_BY = click.option("--by", help="Who; the user of this machine if unset. The audit keeps it.")
_REASON = click.option("--reason", required=True, help="Why; the audit keeps it.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
_WAVE = click.option("--wave", type=click.IntRange(1, 4), required=True, help="1, 2, 3 or 4: 1, 10, 100, all others.")


@click.group("migration")
def migration() -> None:
    """Move customers from a flat price to a price for usage, in waves that halt at the first difference."""


@migration.command("plan")
@click.argument("name")
@click.option("--from", "source", required=True, metavar="PLAN@VERSION", help="The plan with the flat price.")
@click.option("--shadow", required=True, metavar="PLAN@VERSION", help="The plan with prices of 0 for the same usage.")
@click.option("--to", "target", required=True, metavar="PLAN@VERSION", help="The plan with the price for usage.")
@click.option(
    "--notice-days",
    type=click.IntRange(0, 365),
    default=30,
    show_default=True,
    help="How long before the first metered period a customer must have been told.",
)
@click.option(
    "--wave-after",
    type=click.Choice(["scheduled", "promoted", "settled"]),
    default="settled",
    show_default=True,
    help="How far the wave before must be when a wave is approved.",
)
@_BY
@_REASON
@_JSON
def migration_plan(
    name: str, source: str, shadow: str, target: str, notice_days: int, wave_after: str, by: str | None, reason: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Plan the migration NAME: who takes part, in which wave, and what each one would have paid for the last period.

    Changes nothing at Stripe. Repeat the command to add subscriptions that are new.
    """
    from pipeline.changes.promoting import begin
    from schemas.flat_to_metered import Migration, WaveRule

    plans = _plan_id("--from", source), _plan_id("--shadow", shadow), _plan_id("--to", target)
    who = by or user()

    async def planned(stores: Stores) -> None:
        now_ms = stores.parts.clock.now_ms()
        wanted = Migration(name, *plans, notice_days, WaveRule(wave_after), now_ms, who, reason)
        _, left = await begin(stores, wanted)
        for subscription, hindrance in left.items():
            click.echo(f"left out: {subscription}: {hindrance}", err=True)

    _finish(run(_with(name, planned)), as_json=as_json)


@migration.command("shadow")
@click.argument("name")
@_BY
@_REASON
@_JSON
def migration_shadow(name: str, by: str | None, reason: str, as_json: bool) -> None:
    """Give every planned subscription of NAME prices of 0 for its usage. The customers pay as before."""
    from pipeline.changes.promoting import shadow

    who, told = _who(by, reason), _told(as_json=as_json)
    _finish(run(_with(name, lambda stores: shadow(stores, name, who, told))), as_json=as_json)


@migration.command("compare")
@click.argument("name")
@click.option("--by", help="Who; the user of this machine if unset. The audit keeps it.")
@click.option("--reason", default="the figures of the day", show_default=True, help="Why; the audit keeps it.")
@click.option("--without-preview", is_flag=True, help="Our rating of the new price stands for Stripe's.")
@_JSON
def migration_compare(name: str, by: str | None, reason: str, without_preview: bool, as_json: bool) -> None:
    """Compare what NAME's subscriptions were billed with what was counted. Exits 1 at a difference, which halts all.

    Run it at the end of each period, before the invoices and after they are final.
    """
    from pipeline.changes.comparing import compare

    who, told = _who(by, reason), _told(as_json=as_json)
    found = run(_with(name, lambda stores: compare(stores, name, who, told, previews=not without_preview)))
    _finish(found, as_json=as_json)
    raise SystemExit(EXIT_FAILURE if found.migration.halted else 0)


@migration.command("approve")
@click.argument("name")
@_WAVE
@click.option(
    "--accept-month-without-cash",
    "accepted",
    multiple=True,
    metavar="CURRENCY=AMOUNT",
    help="What the wave's flat prices bill in a month, as `status` shows it; repeatable.",
)
@click.option("--notified", required=True, metavar="INSTANT", help="When the customers were told both figures.")
@_BY
@_REASON
@_JSON
def migration_approve(
    name: str, wave: int, accepted: tuple[str, ...], notified: str, by: str | None, reason: str, as_json: bool
) -> None:
    """Approve a wave of NAME. In its first month of usage nothing is charged: say that amount."""
    from pipeline.changes.promoting import approve
    from pipeline.commands.migration import accepted_minor

    who, notified_ms = _who(by, reason), instant_ms("--notified", notified)

    async def approved(stores: Stores) -> None:
        await approve(stores, name, wave, await accepted_minor(stores, accepted), notified_ms, who)

    _finish(run(_with(name, approved)), as_json=as_json)


@migration.command("promote")
@click.argument("name")
@_WAVE
@_BY
@_REASON
@_JSON
def migration_promote(name: str, wave: int, by: str | None, reason: str, as_json: bool) -> None:
    """Have the prices of an approved wave of NAME changed at the end of what each customer has paid."""
    from pipeline.changes.promoting import promote

    who, told = _who(by, reason), _told(as_json=as_json)
    _finish(run(_with(name, lambda stores: promote(stores, name, wave, who, told))), as_json=as_json)


@migration.command("revert")
@click.argument("name")
@click.option("--account", "accounts", multiple=True, help="An account that goes back; repeatable.")
@click.option("--all", "is_all", is_flag=True, help="All accounts go back.")
@_BY
@_REASON
@_JSON
def migration_revert(
    name: str, accounts: tuple[str, ...], is_all: bool, by: str | None, reason: str, as_json: bool
) -> None:
    """Take accounts of NAME back to the flat price: at once, or after a promotion from their next period on."""
    from pipeline.changes.promoting import revert

    if bool(accounts) == is_all:
        raise InvalidInput("--account", "name the accounts, or say --all")
    who, told = _who(by, reason), _told(as_json=as_json)
    _finish(run(_with(name, lambda stores: revert(stores, name, accounts, who, told))), as_json=as_json)


@migration.command("resume")
@click.argument("name")
@_BY
@_REASON
@_JSON
def migration_resume(name: str, by: str | None, reason: str, as_json: bool) -> None:
    """Let the waves of NAME go on after a halt, when nothing differs any more."""
    from pipeline.changes.comparing import resume

    who = _who(by, reason)
    _finish(run(_with(name, lambda stores: resume(stores, name, who))), as_json=as_json)


@migration.command("status")
@click.argument("name", default="")
@click.option("--csv", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write every subscription here.")
@_JSON
def migration_status(name: str, path: Path | None, as_json: bool) -> None:
    """Say how far NAME is, what differs, who pays more or less, and which month brings no cash. Changes nothing.

    Without NAME, list all migrations.
    """
    from pipeline.commands.migration import listed, write_csv

    if not name:
        for each in run(listed(settings())):
            state = f"HALTED: {each.halted}" if each.halted else "not halted"
            click.echo(f"{each.name}  {each.source} → {each.target}  {state}")
        return
    found = run(_with(name))
    if path is not None:
        write_csv(found, path)
    _finish(found, as_json=as_json)


async def _with(name: str, body: Callable[[Stores], Awaitable[object]] | None = None) -> Report:
    """Do something with the stores, and make the report."""
    from pipeline.commands.migration import opened, report

    async with opened(settings()) as stores:
        if body is not None:
            await body(stores)
        return await report(stores, name)


def _finish(found: Report, *, as_json: bool) -> None:
    from pipeline.commands.migration import document, lines

    click.echo(json.dumps(document(found)) if as_json else "\n".join(lines(found)))


def _told(*, as_json: bool) -> Callable[[str], Any]:
    return (lambda _: None) if as_json else click.echo


def _who(by: str | None, reason: str) -> Who:
    from schemas.flat_to_metered import Who

    return Who(by or user(), reason)


def _plan_id(option: str, text: str) -> PlanId:
    from schemas.catalog import PlanId

    name, _, version = text.rpartition("@")
    if not name or not version.isdecimal():
        raise InvalidInput(option, f"{text[:100]!r} is no version of a plan, such as basic@1")
    return PlanId(name, int(version))
