"""Commands that correct events, for operators."""

from __future__ import annotations

import json
import secrets
from asyncio import run
from typing import TYPE_CHECKING, Any, Final

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import COUNT, account_name, user

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.http.corrections import CorrectedAnswer, Treatment
    from schemas.corrections import Settlement

TREATMENTS: Final = ("next_period", "credit_note", "write_off")


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer of POST /v1/corrections."),
        click.option("--dry-run", is_flag=True, help="Print what would change. Writes nothing."),
        click.option(
            "--closed-period", "treatment", type=click.Choice(TREATMENTS), default=TREATMENTS[0], show_default=True,
            help="What becomes of it if the event's period is closed.",
        ),
        click.option("--by", help="Who; the user of this machine if unset."),
        click.option("--name", "correction", help="The correction's name, which counts once; a new one if unset."),
        click.option("--reason", required=True, help="Why; the record keeps it."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("correct")
def correct() -> None:
    """Void an event or amend its data. The totals follow, and nothing is deleted."""


@correct.command("void")
@click.argument("name", metavar="ACCOUNT")
@click.argument("event")
@_options
def correct_void(name: str, event: str, **options: Any) -> None:
    """Let EVENT of ACCOUNT no longer count.

    Repeat a command that failed with the same --name: the correction counts once.
    """
    _correct(name, event, None, **options)


@correct.command("amend")
@click.argument("name", metavar="ACCOUNT")
@click.argument("event")
@click.argument("data")
@_options
def correct_amend(name: str, event: str, data: str, **options: Any) -> None:
    """Let EVENT of ACCOUNT count as if it had the JSON object DATA. Its type, time and account stay.

    Repeat a command that failed with the same --name: the correction counts once.
    """
    _correct(name, event, data.encode(), **options)


@correct.command("list")
@click.argument("name", metavar="ACCOUNT")
@click.option("--limit", type=COUNT, default=50, show_default=True, help="Number of newest corrections.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def correct_list(name: str, limit: int, as_json: bool) -> None:
    """List the corrections of ACCOUNT, newest first, and what their adjustments told so far."""
    from pipeline.commands.corrections import list_corrections
    from pipeline.http.corrections import listed_answer

    for row in run(list_corrections(settings(), account_name(name), limit)):
        answer = listed_answer(row)
        if as_json:
            click.echo(answer.model_dump_json())
            continue
        settled = "" if answer.counts else f", settled outside as {answer.closed_period}"
        click.echo(f"{answer.correction}  {answer.at}  {answer.kind} {answer.event} by {answer.by}{settled}")
        click.echo(f"    {answer.reason}")
        _print(answer.told)


def _correct(
    name: str,
    event: str,
    data: bytes | None,
    *,
    reason: str,
    correction: str | None,
    by: str | None,
    treatment: Treatment,
    dry_run: bool,
    as_json: bool,
) -> None:
    from pipeline.commands import corrections as commands
    from pipeline.http.corrections import correction_record, planned_answer

    given = correction or f"cor_{secrets.token_hex(8)}"
    wish = correction_record(account_name(name), given, event, data, by or user(), reason, treatment)
    planned, settled = run(commands.correct(settings(), wish, dry_run=dry_run))
    answer = planned_answer(planned, settled, is_dry_run=dry_run)
    if as_json:
        click.echo(answer.model_dump_json())
        return
    period = f"{'closed' if answer.is_closed else 'open'} period from {answer.period_start} to {answer.period_end}"
    click.echo(f"{answer.correction}: {answer.kind} {answer.event} of the {period}")
    _print(answer.changes)
    for slug in answer.measured_again:
        click.echo(f"    {slug} is measured again without the event")
    for each in settled:
        click.echo(f"    {settlement_text(each)}")
    if not answer.counts:
        click.echo(f"    no total changes: settle it outside as {answer.closed_period}")
    click.echo({"looked": "Nothing was written.", "written": "written; the totals follow in some seconds",
                "known": "the log had this correction already"}[answer.state])  # fmt: skip


def settlement_text(settled: Settlement) -> str:
    """A settlement as a sentence."""
    from aggregators.instants import format_instant_ms
    from portal.words import number_text, signed_money
    from schemas.upgrades import Money

    start, end = map(format_instant_ms, settled.span)
    if settled.unknown:
        return f"{settled.meter} from {start} to {end}: the amount is not known: {settled.unknown}"

    def money(minor: int) -> str:
        return signed_money(Money(minor, settled.currency, settled.exponent))

    billed = f"{number_text(settled.billed)} {settled.meter} from {start} to {end}"
    parts = [f"{settled.invoice} bills {billed} for {money(settled.billed_minor)}"]
    if settled.settled_minor:
        parts.append(f"earlier corrections settled {money(settled.settled_minor)}")
    parts.append(f"{number_text(settled.corrected)} cost {money(settled.corrected_minor)}")
    if settled.discount_minor:
        parts.append(f"discounts change by {money(settled.discount_minor)}")
    return f"{', '.join(parts)}: {money(settled.difference_minor)} before taxes"


def _print(changes: list[CorrectedAnswer]) -> None:
    for each in changes:
        dimensions = f" {json.dumps(each.dimensions, ensure_ascii=False)}" if each.dimensions else ""
        click.echo(f"    {each.meter}{dimensions} {each.quantity}")
