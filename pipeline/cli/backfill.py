"""`tidemark backfill`: send the events of a file, with counts first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from pipeline.cli.context import EXIT_FAILURE
from pipeline.cli.develop import GATEWAY_TIMEOUT_S, answer_document, gateway_address
from schemas.errors import InvalidInput, Transient

if TYPE_CHECKING:
    import httpx

    from pipeline.commands.backfill import Outcome, Progress, Send

TRIES_MAX: Final = 10
WAIT_MAX_S: Final = 30.0
NOTE_INTERVAL_S: Final = 5.0
REASONS_MAX: Final = 20


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "kind", type=click.Choice(["ndjson", "csv", "parquet"]), help="By the file's name if unset.")
@click.option("--id", "ids", default="id", show_default=True, help="Columns that tell rows apart, separated by commas.")
@click.option("--type", "event_type", default="", help="The type of all rows, if no column has it.")
@click.option("--send", "is_sent", is_flag=True, help="Send the events. Without it they are only judged.")
@click.option("--again", is_flag=True, help="With --send: begin at the first row, also if rows were sent before.")
def backfill(file: Path, kind: str | None, ids: str, event_type: str, is_sent: bool, again: bool) -> None:
    """Send the usage events of FILE through the gateway: NDJSON of CloudEvents, CSV, or Parquet.

    Without --send nothing is written: the counts say what would become of the events. With --send a run that was
    stopped goes on behind the last row that has an answer (FILE.progress), and rejected events are kept in
    FILE.rejected.ndjson. Exits with 1 if events are rejected.

    \b
    tidemark backfill october.csv --type api.request --id request_id
    tidemark backfill october.csv --type api.request --id request_id --send
    """
    from pipeline.commands.backfill import Backfill, Shape, format_of, read_events

    shape = Shape(tuple(name.strip() for name in ids.split(",")), event_type)
    read_as = format_of(file, kind)
    events = read_events(file, read_as, shape)
    with _gateway_client() as client:
        job = Backfill(file, events, _sending(client, is_dry=not is_sent), f"{client.base_url} {read_as} {shape}")
        if again and is_sent:
            job.forget()
        before = job.progress()
        if is_sent and before.is_done:
            raise InvalidInput("FILE", f"all rows of {file.name} were sent; with --again they are sent again")
        if is_sent and before.rows:
            click.echo(f"goes on behind row {before.rows}, where an earlier run stopped", err=True)
        outcome = job.send(_noting()) if is_sent else job.dry_run(_noting())
    _print(outcome, file, is_sent)
    if outcome.progress.rejected:
        raise SystemExit(EXIT_FAILURE)


def _gateway_client() -> httpx.Client:
    import httpx

    url, key = gateway_address()
    headers = {"authorization": f"Bearer {key}", "content-type": "application/x-ndjson"}
    return httpx.Client(base_url=url, headers=headers, timeout=GATEWAY_TIMEOUT_S, follow_redirects=False)


def _sending(client: httpx.Client, *, is_dry: bool) -> Send:
    """Posts events, again and again while the gateway is away, too busy, or has not confirmed all of them."""
    path = "/v1/events?verify=1" + ("&dry_run=1" if is_dry else "")

    def post(events: Sequence[bytes]) -> Mapping[str, Any]:
        import httpx

        from emitter.answers import pause_s

        asked: Mapping[str, str] = {}
        for attempt in range(TRIES_MAX):
            if attempt:
                # A key that may send few events a second has to wait longer than for a gateway that is away.
                time.sleep(pause_s(attempt - 1, 1.0, WAIT_MAX_S, asked))
                asked = {}
            try:
                answer = client.post(path, content=b"\n".join(events))
                asked = answer.headers
                document = answer_document(str(client.base_url), answer)
            except httpx.HTTPError as error:
                problem = f"the gateway did not answer: {error}"
                continue
            except Transient as error:
                problem = str(error)
                continue
            if "events" in document and not document.get("unknown"):
                return document
            problem = "the log did not confirm all events"
        raise Transient(f"{problem}. Run the command again: it goes on where it stopped")

    return post


def _noting() -> Callable[[Progress], None]:
    """Writes the progress to stderr every few seconds."""
    started_s = noted_s = time.monotonic()

    def note(progress: Progress) -> None:
        nonlocal noted_s
        now_s = time.monotonic()
        if now_s - noted_s >= NOTE_INTERVAL_S:
            noted_s = now_s
            click.echo(f"{progress.rows} rows, {progress.rejected} rejected, {now_s - started_s:.0f} s", err=True)

    return note


def _print(outcome: Outcome, file: Path, is_sent: bool) -> None:
    progress = outcome.progress
    would = "" if is_sent else "would be "
    click.echo(
        f"{progress.rows} rows: {progress.accepted} {would}accepted, {progress.duplicates} arrived before, "
        f"{progress.rejected} {would}rejected; {progress.unmetered} of the accepted ones count in no meter"
    )
    for (event_type, month), events in sorted(outcome.valid.items()):
        click.echo(f"  {month}  {event_type}: {events}")
    for (reason, remedy), events in outcome.reasons.most_common(REASONS_MAX):
        click.echo(f"  {reason}: {events}. {remedy}")
    if progress.rejected and is_sent:
        click.echo(f"The rejected events are in {file.name}.rejected.ndjson; correct them there and send that file.")
    if not is_sent:
        click.echo("Usage of a closed period counts in the account's running period, unless its meter quarantines it.")
        click.echo("Nothing was written. Add --send to send the events.")
