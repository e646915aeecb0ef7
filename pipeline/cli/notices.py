"""Commands about notices, for operators."""

from __future__ import annotations

import json
from asyncio import run
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import settings

if TYPE_CHECKING:
    from schemas.notices import Delivery

STATES = ("waiting", "sent", "obsolete", "unaddressed", "dead")


@click.group()
def notices() -> None:
    """What accounts were warned about, and whether the warning arrived."""


@notices.command("list")
@click.option("--state", type=click.Choice(STATES), default=None, help="Deliveries in one state; all if unset.")
@click.option("--account", default="", help="Deliveries of one account; of all if unset.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=20, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def notices_list(state: str | None, account: str, limit: int, as_json: bool) -> None:
    """List deliveries of notices, the newest first."""
    from pipeline.commands.notices import listed
    from pipeline.http.notices import notice_answer
    from schemas.notices import DeliveryState

    found = run(listed(settings(), None if state is None else DeliveryState(state), account, limit))
    if as_json:
        click.echo(json.dumps([notice_answer(each).model_dump(mode="json") for each in found]))
        return
    for each in found:
        click.echo(_line(each))
    if not found:
        click.echo("no notices")


@notices.command("retry")
@click.argument("notice_id", default="")
@click.option("--all-dead", is_flag=True, help="Every dead notice.")
def notices_retry(notice_id: str, all_dead: bool) -> None:
    """Have a dead notice sent again, NOTICE_ID of the list, or --all-dead."""
    from pipeline.commands.notices import retry
    from schemas.errors import InvalidInput

    if bool(notice_id) == all_dead:
        raise InvalidInput("NOTICE_ID", "give one id of `tidemark notices list --state dead`, or --all-dead")
    count = run(retry(settings(), notice_id))
    if notice_id and not count:
        raise InvalidInput("NOTICE_ID", f"no delivery of {notice_id[:100]!r} is dead")
    click.echo(f"{count} {'delivery waits' if count == 1 else 'deliveries wait'} to be sent again")


def _line(delivery: Delivery) -> str:
    from aggregators.instants import format_instant_ms
    from aggregators.notices import printable

    notice = delivery.notice
    made, detail = format_instant_ms(notice.made_ms), f": {delivery.detail}" if delivery.detail else ""
    about = f"{notice.account} {notice.kind} {notice.subject}" + (f" {notice.percent} %" if notice.percent else "")
    return printable(f"{made} {notice.id} {delivery.channel} {delivery.state} {about}{detail}")
