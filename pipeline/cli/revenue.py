"""Commands about recurring revenue, for finance."""

from __future__ import annotations

import json
from asyncio import run
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import settings

if TYPE_CHECKING:
    from schemas.journal import JournalEntry

_MONTHS = click.option(
    "--months", type=click.IntRange(1, 120), default=6, show_default=True, help="So many months, this one the last."
)
_FROM = click.option("--from", "from_", help="The first day in UTC: 2027-03-01 or 2027-03. Default: six months.")
_TO = click.option("--to", help="The day behind the last one: 2027-04-01 or 2027-04. Default: this month's end.")
_BY = click.option(
    "--by", type=click.Choice(["month", "day", "whole"]), default="month", show_default=True, help="A row for each."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
_CSV = click.option("--csv", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write this CSV file.")
_SHORT = {"reactivation": "back", "expansion": "up", "contraction": "down", "involuntary_churn": "unpaid"}


@click.group()
def revenue() -> None:
    """What subscriptions bring each month, and why that changed."""


@revenue.command("mrr")
@_MONTHS
@_JSON
@_CSV
def revenue_mrr(months: int, as_json: bool, path: Path | None) -> None:
    """Print monthly recurring revenue by month and currency: what there was, what was won and lost, and what there is.

    Usage is not recurring, and is not in it. Discounts that recur are taken off, and taxes are not in it. Net retention
    is what the accounts of the month's start bring at its end, in percent; gross retention leaves out what they pay
    more.
    """
    from pipeline.commands.revenue import month_document, revenue

    found = run(revenue(settings(), months))
    rows = [month_document(each, found.exponents) for each in found.months]
    _print(rows, path, as_json=as_json)
    if not rows and not as_json:
        click.echo("no subscription with a price of the catalog was ever active")
    if found.unpriced_items:
        click.echo(f"{found.unpriced_items} items have prices of no catalog, and are left out", err=True)


@revenue.command("movements")
@_MONTHS
@click.option("--account", "name", default="", help="Only those of this account.")
@_JSON
@_CSV
def revenue_movements(months: int, name: str, as_json: bool, path: Path | None) -> None:
    """Print each change of an account's monthly recurring revenue: when, why, from what to what."""
    from pipeline.commands.revenue import MOVEMENT_COLUMNS, movement_rows, revenue

    found = run(revenue(settings(), months))
    first_ms = found.starts_ms[0]
    wanted = [each for each in found.movements if each.at_ms >= first_ms and name in ("", each.account)]
    wanted.sort(key=lambda each: (each.at_ms, each.account, each.currency))
    rows = [dict(zip(MOVEMENT_COLUMNS, row, strict=True)) for row in movement_rows(wanted, found.exponents)]
    _print(rows, path, as_json=as_json)
    if not rows and not as_json:
        click.echo("no movements")


@revenue.command("cohorts")
@_MONTHS
@_JSON
@_CSV
def revenue_cohorts(months: int, as_json: bool, path: Path | None) -> None:
    """Print the accounts by the month in which they first brought revenue, and what is left of it month by month."""
    from pipeline.commands.revenue import cohort_document, revenue

    found = run(revenue(settings(), months))
    rows = [cohort_document(each, found.exponents) for each in found.cohorts]
    if not as_json or path:
        for row in rows:
            shares = [f"{share} %" if share is not None else "-" for share in row.pop("percent")]
            first, started = row.pop("amounts")[0], row.pop("accounts")[0]
            row |= {"first": first, "accounts": started, **{f"+{number}": share for number, share in enumerate(shares)}}
    _print(rows, path, as_json=as_json)
    if not rows and not as_json:
        click.echo("no accounts")


@revenue.command("recognized")
@_FROM
@_TO
@_BY
@_JSON
@_CSV
def revenue_recognized(from_: str | None, to: str | None, by: str, as_json: bool, path: Path | None) -> None:
    """Print recognized revenue by span and currency: what days, usage and credits earned, and what was taken back.

    Without taxes and discounts. Bad debt is an expense and no part of the sum. Refunds are cash and change nothing.
    """
    from pipeline.access.revenue import By
    from pipeline.commands.recognition import recognition_in, recognized_document

    found = run(recognition_in(settings(), from_, to, By(by)))
    _print([recognized_document(each) for each in found], path, as_json=as_json)
    if not found and not as_json:
        click.echo("no final invoices")


@revenue.command("deferred")
@_FROM
@_TO
@_BY
@_JSON
@_CSV
def revenue_deferred(from_: str | None, to: str | None, by: str, as_json: bool, path: Path | None) -> None:
    """Print deferred revenue by span and currency: what is billed and not earned yet, and how that changed.

    start + billed + taken_back - recognized = end = deferred - unbilled. Unbilled is earned and on no final invoice.
    """
    from pipeline.access.revenue import By
    from pipeline.commands.recognition import deferred_document, recognition_in

    found = run(recognition_in(settings(), from_, to, By(by)))
    _print([deferred_document(each) for each in found], path, as_json=as_json)
    if not found and not as_json:
        click.echo("no final invoices")


@revenue.command("retention")
@_FROM
@_TO
@_BY
@_JSON
@_CSV
def revenue_retention(from_: str | None, to: str | None, by: str, as_json: bool, path: Path | None) -> None:
    """Print what the accounts of a span's start bring at its end, and what all accounts bring in a year then.

    Retained is what they bring, kept is each of them at most what it brought. With --by whole over a year, the
    percentages are the yearly ones.
    """
    from pipeline.access.revenue import By
    from pipeline.commands.recognition import retention_in

    rows = run(retention_in(settings(), from_, to, By(by)))
    _print(list(rows), path, as_json=as_json)
    if not rows and not as_json:
        click.echo("no subscription with a price of the catalog was ever active")


@revenue.command("journal")
@click.option("--after", type=click.IntRange(0), default=0, show_default=True, help="Only entries behind this number.")
@click.option("--account", default="", help="Only those of this account; their numbers have gaps.")
@_JSON
@_CSV
def revenue_journal(after: int, account: str, as_json: bool, path: Path | None) -> None:
    """Print the journal for the finance system: each fact about money once, under a number without gaps.

    Keep the last number, and name it with --after the next time. Amounts are whole numbers of the currency's smallest
    unit: 14900 with the exponent 2 is 149.00.
    """
    from pipeline.commands.journal import journal, write_csv

    pages = journal(settings(), after, account)
    if path:
        click.echo(f"{run(write_csv(pages, path))} entries in {path}")
    elif not run(_echo(pages, as_json=as_json)) and not as_json:
        click.echo("no entries")


@revenue.command("page")
@click.option("--expires-in-s", default=3_600, show_default=True, help="Seconds until the link ends, up to 30 days.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of POST /v1/revenue/page.")
def revenue_page(expires_in_s: int, as_json: bool) -> None:
    """Print a link to the dashboard: what was earned in each month, and why that changed.

    Whoever has the link sees the revenue of the whole business until it ends. It shows no way to change anything.
    """
    from aggregators.instants import format_instant_ms
    from pipeline.clock import SystemClock
    from pipeline.http.dashboard import dashboard_link
    from pipeline.http.page_links import PageSecrets

    found = settings()
    link = dashboard_link(found, PageSecrets(found)(), expires_in_s, SystemClock().now_ms())
    answer = {"url": link.url, "expires_at": format_instant_ms(link.expires_ms)}
    click.echo(json.dumps(answer) if as_json else link.url)


async def _echo(pages: AsyncIterator[Sequence[JournalEntry]], *, as_json: bool) -> int:
    """Print entries as they come; returns how many."""
    from aggregators.journal import entry_document, entry_words
    from aggregators.notices import printable

    count = 0
    async for page in pages:
        for entry in page:
            click.echo(json.dumps(entry_document(entry)) if as_json else printable(entry_words(entry)))
        count += len(page)
    return count


def _print(rows: list[dict[str, Any]], path: Path | None, *, as_json: bool) -> None:
    """Print rows as a table or as JSON, or write a CSV file."""
    from aggregators.notices import printable
    from pipeline.commands.csv_file import csv_file

    columns = list(dict.fromkeys(column for row in rows for column in row))
    if path:
        with csv_file(path, columns) as write:
            for row in rows:
                write("" if row.get(column) is None else row[column] for column in columns)
        click.echo(f"{len(rows)} rows in {path}")
        return
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    texts = [{column: printable(str(row.get(column, "") or "")) for column in columns} for row in rows]
    heads = {
        column: _SHORT.get(column, column.removesuffix("_percent").replace("_retention", " %")) for column in columns
    }
    widths = {column: max(len(heads[column]), *(len(text[column]) for text in texts)) for column in columns}
    for line in [heads, *texts] if rows else []:
        click.echo("  ".join(line[column].rjust(widths[column]) for column in columns).rstrip())
