"""Commands that give seats to holders and take them back, for operators."""

from __future__ import annotations

from asyncio import run
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import account_name, user

if TYPE_CHECKING:
    from schemas.seats import Seat


@click.group("seats")
def seats() -> None:
    """Who holds an account's users, locations and projects. What is paid follows."""


@seats.command("list")
@click.argument("name", metavar="ACCOUNT")
@click.option("--feature", default="", help="One feature; all if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /v1/accounts/{account}/seats.")
def seats_list(name: str, feature: str, as_json: bool) -> None:
    """List the seats of ACCOUNT that are held, and how many there may be."""
    from pipeline.changes.seating import allowed_text
    from pipeline.commands.seats import LISTED_MAX, list_seats
    from pipeline.http.seats import seats_answer

    found = run(list_seats(settings(), account_name(name), feature))
    if as_json:
        click.echo(seats_answer(name, found.standings, found.seats, found.at_ms).model_dump_json(exclude_unset=True))
        return
    for each in found.standings:
        more = ", and more can be bought" if each.can_grow else ""
        held = f"{each.holders.held} held ({each.holders.reserved} reserved)"
        click.echo(f"{each.feature}: {held}, {allowed_text(each.allowed)} allowed, quantity {each.paid}{more}")
    for seat in found.seats:
        _show(seat)
    if len(found.seats) == LISTED_MAX:
        click.echo(f"these are the oldest {LISTED_MAX}")


@seats.command("add")
@click.argument("name", metavar="ACCOUNT")
@click.argument("feature")
@click.argument("holder")
@click.option("--reserve", is_flag=True, help="Reserve the seat for an invitation, until that expires.")
@click.option("--by", default=None, help="Who asks; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def seats_add(name: str, feature: str, holder: str, reserve: bool, by: str | None, as_json: bool) -> None:
    """Give HOLDER a seat of FEATURE. A holder who has one keeps it."""
    from pipeline.changes.seating import SeatWish
    from pipeline.commands.seats import add_seat

    wish = SeatWish(account_name(name), feature, holder, reserve)
    _show(run(add_seat(settings(), wish, by or user()))[0], as_json=as_json)


@seats.command("activate")
@click.argument("name", metavar="ACCOUNT")
@click.argument("seat")
@click.option("--by", default=None, help="Who asks; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def seats_activate(name: str, seat: str, by: str | None, as_json: bool) -> None:
    """Make the reserved SEAT of ACCOUNT active. The same again changes nothing."""
    from pipeline.commands.seats import move_seat
    from schemas.seats import SeatState

    _show(run(move_seat(settings(), account_name(name), seat, SeatState.ACTIVE, by or user())), as_json=as_json)


@seats.command("release")
@click.argument("name", metavar="ACCOUNT")
@click.argument("seat")
@click.option("--by", default=None, help="Who asks; the user of this machine if unset.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def seats_release(name: str, seat: str, by: str | None, as_json: bool) -> None:
    """Release SEAT of ACCOUNT. The same again changes nothing."""
    from pipeline.commands.seats import move_seat
    from schemas.seats import SeatState

    _show(run(move_seat(settings(), account_name(name), seat, SeatState.RELEASED, by or user())), as_json=as_json)


def _show(seat: Seat, *, as_json: bool = False) -> None:
    from aggregators.instants import format_instant_ms
    from pipeline.http.seats import seat_answer

    if as_json:
        click.echo(seat_answer(seat, seat.changed_ms).model_dump_json())
        return
    until = "" if seat.expires_ms is None else f" until {format_instant_ms(seat.expires_ms)}"
    click.echo(f"{seat.id}  {seat.feature}  {seat.state.value}{until}  {seat.holder}")
