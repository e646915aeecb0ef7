"""The operator's command `rebuild`: a view again from the log, while traffic goes on."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import run, settings
from schemas.rebuild import Progress

if TYPE_CHECKING:
    from pipeline.settings import Settings

_YES = click.option("--yes", is_flag=True, help="Do not ask.")
_ABANDON = click.option("--abandon", is_flag=True, help="Give up a rebuild that was begun, and remove what it made.")
_RECONCILE = click.option(
    "--reconcile/--no-reconcile", "reconcile_after", default=True, help="Compare all views at the end."
)


@click.group()
def rebuild() -> None:
    """Build a view again from the log, beside the live one, and swap it in."""


@rebuild.command("redis")
@click.option(
    "--from", "source", type=click.Choice(["log", "snapshot", "clickhouse"]), default="log", show_default=True
)
@_YES
@_ABANDON
@_RECONCILE
def rebuild_redis(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Fold the log into new keys and swap them in, one partition after the other.

    From the log's start; where that is gone, or with `--from snapshot`, from the newest snapshot in ClickHouse that
    the log still reaches (`--from clickhouse` means the same here). Needs room in Redis for one partition more. Workers
    go on; each is fenced once and starts again. Cut short, the same command goes on where it was. A rebuild that is
    started later stops this one. Exits as `reconcile` does.
    """
    from pipeline.commands.rebuild import abandon_live_view, rebuild_live_view

    if abandon:
        click.echo(run(abandon_live_view(settings())))
        return
    source = "snapshot" if source == "clickhouse" else source
    question = f"Build the live view again from the {source} and replace the one in Redis?"
    _rebuild(
        question, yes, reconcile_after, lambda chosen, progress: rebuild_live_view(chosen, source, progress)
    )  # fmt: skip


@rebuild.command("usage_hourly")
@click.option("--from", "source", type=click.Choice(["log", "clickhouse"]), default="log", show_default=True)
@_YES
@_ABANDON
@_RECONCILE
def rebuild_usage_hourly(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Build usage_hourly again in a table beside the live one, and exchange the two.

    From the log, and usage_duplicates with it: needs the log from offset 0, and room in Redis for the live view once
    more. From clickhouse: counts usage_events again; needs the live view to hold them against. Traffic goes on. Cut
    short, the same command goes on where it was. A rebuild that is started later stops this one. Exits as `reconcile`
    does.
    """
    from pipeline.commands.rebuild import give_up_hourly, rebuild_hourly

    if abandon:
        click.echo(run(give_up_hourly(settings())))
        return
    _rebuild(
        f"Build usage_hourly again from {source} and replace it?",
        yes,
        reconcile_after,
        lambda chosen, progress: rebuild_hourly(chosen, source, progress),
    )


@rebuild.command("archive")
@click.option("--from", "source", type=click.Choice(["log"]), default="log", show_default=True)
@_YES
@_ABANDON
@_RECONCILE
def rebuild_archive(source: str, yes: bool, abandon: bool, reconcile_after: bool) -> None:
    """Build usage_events, decisions and control_log again in tables beside the live ones, and exchange them.

    Needs the log from offset 0, room in ClickHouse for the tables once more, and Redis, where it says that it is the
    one rebuild. The archive goes on. Cut short, the same command goes on where it was. A rebuild that is started later
    stops this one. Exits as `reconcile` does.
    """
    from pipeline.commands.rebuild import give_up_archive, rebuild_archive_tables

    if abandon:
        click.echo(run(give_up_archive(settings())))
        return
    question = f"Build usage_events, decisions and control_log again from the {source} and replace them?"
    _rebuild(question, yes, reconcile_after, rebuild_archive_tables)


def _rebuild(
    question: str,
    yes: bool,
    reconcile_after: bool,
    build: Callable[[Settings, Callable[[Progress], None]], Coroutine[Any, Any, str]],
) -> None:
    """Ask, build, and compare; exits as `reconcile` does."""
    from pipeline.commands.operations import run_reconcile

    chosen = settings()
    if not yes:
        click.confirm(question, abort=True)
    click.echo(run(build(chosen, ProgressLines())), err=True)
    if reconcile_after:
        code, text = run(
            run_reconcile(
                chosen, None, None, as_json=False, stripe_reads_max=2_000, rows_max=50, pushgateway=""
            )
        )  # fmt: skip
        click.echo(text)
        raise SystemExit(code)


class ProgressLines:
    """Says on stderr how far each partition is: every twentieth of its log, and its swap."""

    def __init__(self) -> None:
        self._said: dict[int, int] = {}

    def __call__(self, at: Progress) -> None:
        """One look at one partition."""
        share = 20 * at.next_offset // max(at.end_offset, 1)
        if at.swapped or share > self._said.get(at.partition, -1):
            self._said[at.partition] = share
            what = "swapped in" if at.swapped else f"{5 * share} %"
            events = "" if at.events is None else f", {at.events} events"
            click.echo(
                f"partition {at.partition}: {what}, offset {at.next_offset} of {at.end_offset}{events}", err=True
            )
