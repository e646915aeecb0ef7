"""Commands about the page and the timeline of one account."""

from __future__ import annotations

import json

import click

from pipeline.cli.context import settings
from pipeline.cli.operate import account_name


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
