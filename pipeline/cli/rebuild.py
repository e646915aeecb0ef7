"""The operator's command `rebuild`. Workers and the archive keep running."""

from __future__ import annotations

from asyncio import run
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import confirm, role_settings
from schemas.rebuild import Progress

if TYPE_CHECKING:
    from pipeline.settings import Settings

_YES = click.option("--yes", is_flag=True, help="Do not ask.")
_ABANDON = click.option("--abandon", is_flag=True, help="Give up an unfinished rebuild and remove its data.")
_RECONCILE = click.option("--reconcile/--no-reconcile", "reconcile_after", default=True, help="Reconcile at the end.")


@click.group()
def rebuild() -> None:
    """Build a view again in a shadow copy and swap the copy in."""


@rebuild.command("redis")
@click.option(
    "--from", "source", type=click.Choice(["log", "snapshot", "clickhouse"]), default="log", show_default=True
)
@_YES
@_ABANDON
@_RECONCILE
def rebuild_redis(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Fold the log into new keys and swap the keys in, one partition after the other.

    Reads the log from its start. If the start is gone, or with `--from snapshot` (or `clickhouse`), begins at the
    newest snapshot in ClickHouse that the log still reaches. Redis needs memory for one more partition. Workers keep
    running; each is fenced once and restarts. If interrupted, the same command continues. A later rebuild stops this
    one. Exits as `reconcile` does.
    """
    from pipeline.commands.rebuild import abandon_live_view, rebuild_live_view

    question = f"Build the live view again from {source} and replace the one in Redis?"
    build = partial(rebuild_live_view, source=source)
    _rebuild(question, build, abandon_live_view, yes=yes, abandon=abandon, reconcile_after=reconcile_after)


@rebuild.command("usage_hourly")
@click.option("--from", "source", type=click.Choice(["log", "clickhouse"]), default="log", show_default=True)
@_YES
@_ABANDON
@_RECONCILE
def rebuild_usage_hourly(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Build usage_hourly again in a staging table and exchange the two tables.

    From the log, also builds usage_duplicates: needs the log from offset 0, and memory in Redis for a second live view.
    From clickhouse, recounts usage_events and compares the result with the live view. All roles keep running. If
    interrupted, the same command continues. A later rebuild stops this one. Exits as `reconcile` does.
    """
    from pipeline.commands.rebuild import give_up_hourly, rebuild_hourly

    question = f"Build usage_hourly again from {source} and replace it?"
    build = partial(rebuild_hourly, source=source)
    _rebuild(question, build, give_up_hourly, yes=yes, abandon=abandon, reconcile_after=reconcile_after)


@rebuild.command("archive")
@click.option("--from", "source", type=click.Choice(["log"]), default="log", show_default=True)
@_YES
@_ABANDON
@_RECONCILE
def rebuild_archive(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Build usage_events, decisions and control_log again in staging tables and exchange the tables.

    Needs the log from offset 0, disk space in ClickHouse for a second set of tables, and Redis for the claim. The
    archive keeps running. If interrupted, the same command continues. A later rebuild stops this one. Exits as
    `reconcile` does.
    """
    from pipeline.commands.rebuild import give_up_archive, rebuild_archive_tables

    question = f"Build usage_events, decisions and control_log again from the {source} and replace them?"
    build = rebuild_archive_tables
    _rebuild(question, build, give_up_archive, yes=yes, abandon=abandon, reconcile_after=reconcile_after)


def _rebuild(
    question: str,
    build: Callable[[Settings, Callable[[Progress], None]], Coroutine[Any, Any, str]],
    give_up: Callable[[Settings], Coroutine[Any, Any, str]],
    *,
    yes: bool,
    abandon: bool,
    reconcile_after: bool,
) -> None:
    """Give a rebuild up, or ask, build and reconcile. Exits as `reconcile` does."""
    from pipeline.commands.reconciliation import run_reconcile

    deployment = role_settings()
    if abandon:
        click.echo(run(give_up(deployment)))
        return
    confirm(question, yes=yes)
    click.echo(run(build(deployment, ProgressLines())), err=True)
    if reconcile_after:
        code, text = run(run_reconcile(deployment))
        click.echo(text)
        raise SystemExit(code)


class ProgressLines:
    """Prints a line to stderr after each 5 % of a partition's log, and after the swap of a partition."""

    def __init__(self) -> None:
        self._printed: dict[int, int] = {}

    def __call__(self, now: Progress) -> None:
        """Print a line if the partition has reached the next 5 % or is swapped."""
        share = 20 * now.next_offset // max(now.end_offset, 1)
        if now.swapped or share > self._printed.get(now.partition, -1):
            self._printed[now.partition] = share
            step = "swapped in" if now.swapped else f"{5 * share} %"
            events = "" if now.events is None else f", {now.events} events"
            offsets = f"offset {now.next_offset} of {now.end_offset}"
            click.echo(f"partition {now.partition}: {step}, {offsets}{events}", err=True)
