"""Commands about recurring revenue, for finance."""

from __future__ import annotations

import json
from asyncio import run
from pathlib import Path
from typing import Any

import click

from pipeline.cli.context import settings

_MONTHS = click.option(
    "--months", type=click.IntRange(1, 120), default=6, show_default=True, help="So many months, this one the last."
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

    Usage is not recurring, and is not in it. Discounts and taxes are not taken off. Net retention is what the accounts
    of the month's start bring at its end, in percent; gross retention leaves out what they pay more.
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


def _head(column: str) -> str:
    return _SHORT.get(column, column.removesuffix("_percent").replace("_retention", " %"))
