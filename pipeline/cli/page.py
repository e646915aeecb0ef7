"""Commands about the page and the timeline of one account."""

from __future__ import annotations

import json
from asyncio import run

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import COUNT, account_name, user


@click.command("page")
@click.argument("name", metavar="ACCOUNT")
@click.option("--expires-in-s", default=3_600, show_default=True, help="Seconds until the link ends, up to 30 days.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of POST /v1/accounts/{account}/page.")
def account_page(name: str, expires_in_s: int, as_json: bool) -> None:
    """Print a link to the page of ACCOUNT. Whoever has it can change the account's plan until it ends."""
    from aggregators.instants import format_instant_ms
    from pipeline.clock import SystemClock
    from pipeline.http.page_links import PageSecrets, page_link

    found, checked = settings(), account_name(name)
    link = page_link(found, PageSecrets(found)(), checked, expires_in_s, SystemClock().now_ms())
    answer = {"account": checked, "url": link.url, "expires_at": format_instant_ms(link.expires_ms)}
    click.echo(json.dumps(answer) if as_json else link.url)


@click.command("operator-page")
@click.option("--by", default=None, help="Whom the audit names; the user of this machine if unset.")
@click.option("--expires-in-s", default=28_800, show_default=True, help="Seconds until the link ends, up to 30 days.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of POST /v1/operator/page.")
def operator_page(by: str | None, expires_in_s: int, as_json: bool) -> None:
    """Print a link to the operator's page: is anything wrong now, and what to do.

    Whoever has the link sees the whole deployment until it ends, and can send refused reports again.
    """
    from aggregators.instants import format_instant_ms
    from pipeline.clock import SystemClock
    from pipeline.http.operator_links import operator_link
    from pipeline.http.page_links import PageSecrets

    found, who = settings(), by or user()
    link = operator_link(found, PageSecrets(found)(), who, expires_in_s, SystemClock().now_ms())
    answer = {"url": link.url, "expires_at": format_instant_ms(link.expires_ms), "asked_by": who}
    click.echo(json.dumps(answer) if as_json else link.url)


@click.command("acknowledge")
@click.argument("name", metavar="ACCOUNT")
@click.argument("what", metavar="ID")
@click.option("--reason", required=True, help="Why; the audit keeps it.")
@click.option("--by", default=None, help="Who; the user of this machine if unset.")
def account_acknowledge(name: str, what: str, reason: str, by: str | None) -> None:
    """Leave a thing of ACCOUNT as it is: a report that Stripe refused, a second subscription, a draft, by its ID.

    The operator's page no longer says that it is wrong. Changes nothing else, and the same again nothing.
    """
    from pipeline.commands.timeline import acknowledge

    found = run(acknowledge(settings(), account_name(name), what, by or user(), reason))
    click.echo(f"{found.what} of {found.account} is left as it is: {found.reason} ({found.actor})")


@click.command("timeline")
@click.argument("name", metavar="ACCOUNT")
@click.option("--limit", type=COUNT, default=50, show_default=True, help="Number of entries of the past.")
@click.option("--before", type=int, default=None, help="Go on with a page behind this number.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer of GET /v1/accounts/{account}/timeline.")
def account_timeline(name: str, limit: int, before: int | None, as_json: bool) -> None:
    """Print what will happen to ACCOUNT if nobody changes anything, and what happened to it; the latest first."""
    from aggregators.instants import format_instant_ms
    from pipeline.commands.timeline import timeline
    from pipeline.http.timeline import timeline_answer

    found = run(timeline(settings(), account_name(name), limit, before))
    if as_json:
        click.echo(timeline_answer(found).model_dump_json(exclude_unset=True))
        return
    for entry in found.entries:
        who = f"  ({entry.actor}, {entry.cause})" if entry.actor else ""
        mark = ">" if entry.is_future else " "
        click.echo(f"{mark} {format_instant_ms(entry.at_ms)}  {entry.text}{who}")
    if found.before is not None:
        click.echo(f"older ones: add --before {found.before}")
