"""Commands that list the quarantine and send its events again, for operators."""

from __future__ import annotations

import json
import re
import time
from asyncio import run
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import click

from aggregators.instants import format_instant_ms
from pipeline.cli.context import confirm, settings
from pipeline.cli.operate import COUNT, instant_ms, user
from schemas.errors import InvalidInput

if TYPE_CHECKING:
    from pipeline.logs.redriving import Preview
    from pipeline.settings import Settings
    from schemas.redrives import Redrive, Selection

# As `quarantine list` prints it: topic-partition@offset.place.
POSITION: Final = re.compile(r".+-[0-9]+@[0-9]+\.[0-9]+")
SHOWN_MAX: Final = 10
NOTE_INTERVAL_S: Final = 2.0
_REASON: Final = click.option("--reason", help="Only entries with this reason, such as wrong_partition.")


@click.group()
def quarantine() -> None:
    """List events that were not counted, and send them again."""


@quarantine.command("list")
@_REASON
@click.option("--limit", type=COUNT, default=50, show_default=True, help="Number of newest entries.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def quarantine_list(reason: str | None, limit: int, as_json: bool) -> None:
    """Print quarantined events: position, reason and remedy."""
    from pipeline.commands.quarantine import quarantined
    from schemas.reasons import REMEDIES, Reason

    _check_reason(reason)
    for entry in run(quarantined(settings(), reason, limit)):
        if as_json:
            click.echo(json.dumps(entry.as_json()))
        else:
            known = entry.reason in set(Reason)
            click.echo(
                f"{entry.position}  "
                f"{format_instant_ms(entry.stream_time_ms)}  {entry.reason}: {entry.detail}\n"
                f"    {entry.text()[:160]}\n    → {REMEDIES[Reason(entry.reason)] if known else 'see the reason'}"
            )


@quarantine.command("redrive")
@click.argument("positions", nargs=-1)
@_REASON
@click.option("--meter", help="Only events of the type that this meter reads.")
@click.option("--since", help="Only events that were rejected at this instant or later.")
@click.option("--dry-run", is_flag=True, help="Print what would become of the events. Sends nothing.")
@click.option("--why", default="the cause was corrected", show_default=True, help="Why; the audit keeps it.")
@click.option("--by", help="Who; the user of this machine if unset. The audit keeps it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def quarantine_redrive(
    positions: tuple[str, ...],
    reason: str | None,
    meter: str | None,
    since: str | None,
    dry_run: bool,
    why: str,
    by: str | None,
    yes: bool,
) -> None:
    """Send quarantined events again through usage.inbox. Each event is counted at most once.

    Judges the events by the meters in force first, and sends those that pass, in order. The others stay where they are.
    Without --reason, leaves out the events whose reason no redrive helps. If the command ends early, the same command
    goes on. POSITIONS are those that `quarantine list` prints: these events are sent as they are.
    """
    from pipeline.commands import quarantine as commands
    from schemas.redrives import Selection

    _check_reason(reason)
    deployment = settings()
    if positions:
        if reason or meter or since or dry_run:
            raise InvalidInput("POSITIONS", "stand alone: leave out --reason, --meter, --since and --dry-run")
        _send(deployment, positions, yes=yes)
        return
    selection = Selection(reason or "", meter or "", instant_ms("--since", since) if since else 0)
    running = None if dry_run else run(commands.running(deployment, selection))
    if running is not None:
        click.echo(f"going on with {running.id}, which {running.by} began at {format_instant_ms(running.begun_ms)}")
    else:
        found = run(commands.previewed(deployment, selection))
        _print(found, selection)
        if dry_run or not found.counts.sent:
            click.echo("Nothing was sent." if dry_run else "nothing to redrive")
            return
    actor = by or user()
    confirm("Send the events that pass?", yes=yes)
    done = run(commands.redrive(deployment, selection, actor, why, _noting()))
    left = f"; {done.counts.failing} would be rejected again and stay" if done.counts.failing else ""
    click.echo(f"{done.id}: {done.counts.sent} events sent to usage.inbox{left}")


def _send(deployment: Settings, positions: tuple[str, ...], *, yes: bool) -> None:
    from pipeline.commands.quarantine import entries_at, send

    for position in positions:
        if not POSITION.fullmatch(position):
            raise InvalidInput("POSITIONS", f"{position!r} is no position, such as usage.events-0@17.0")
    entries = [entry for entry in run(entries_at(deployment, positions)) if not entry.cut]
    if missing := sorted(set(positions) - {entry.position for entry in entries}):
        raise InvalidInput("POSITIONS", f"{missing[0]} is not among the entries that are whole")
    confirm(f"Send {len(entries)} events again?", yes=yes)
    click.echo(f"{run(send(deployment, entries))} events sent to usage.inbox")


def _check_reason(reason: str | None) -> None:
    """Raise `InvalidInput` for a reason that no entry can have."""
    from schemas.reasons import Reason

    if reason is not None and reason not in set(Reason):
        raise InvalidInput("--reason", f"{reason!r} is no reason; the reasons are {', '.join(sorted(Reason))}")


def _noting() -> Callable[[Redrive], None]:
    """Writes the progress to stderr every few seconds."""
    noted_s = time.monotonic()

    def note(redrive: Redrive) -> None:
        nonlocal noted_s
        now_s = time.monotonic()
        if now_s - noted_s >= NOTE_INTERVAL_S:
            noted_s = now_s
            total = sum(redrive.ends)
            click.echo(f"{redrive.counts.sent} sent, entry {sum(redrive.positions)} of {total}", err=True)

    return note


def _print(found: Preview, selection: Selection) -> None:
    from schemas.reasons import REMEDIES, Reason

    counts = found.counts
    selected = counts.sent + counts.failing + counts.cut + counts.repeated
    click.echo(f"{counts.looked} entries, {selected} of them selected: {counts.sent} would pass now")
    for cause, number in found.passing.most_common():
        click.echo(f"  {number} were {cause}")
    for account, number in found.accounts.most_common(SHOWN_MAX):
        click.echo(f"  {number} of {account or 'further accounts'}")
    if len(found.accounts) > SHOWN_MAX:
        click.echo(f"  and {len(found.accounts) - SHOWN_MAX} accounts more")
    if counts.repeated:
        click.echo(f"{counts.repeated} more entries are of the same events, which count once")
    if found.arrived:
        click.echo(f"{found.arrived} arrived again meanwhile, and do not count once more")
    if found.old:
        click.echo(f"{found.old} are older than the dedup window: the archive decides whether they arrived before")
    if found.unmetered:
        click.echo(f"{found.unmetered} count in no meter, and their ids are used up: add a meter first if they should")
    for (cause, now), number in found.failing.most_common():
        was = "" if cause == now else f", before {cause}"
        click.echo(f"{number} would be rejected again as {now}{was}: {found.details[now]}")
        click.echo(f"    → {REMEDIES[Reason(now)]}")
    if counts.cut:
        click.echo(f"{counts.cut} were cut, and are sent by their producer only")
    if not selection.cause and counts.looked > selected:
        click.echo(f"{counts.looked - selected} are left out: no redrive helps them, or they were not selected")
