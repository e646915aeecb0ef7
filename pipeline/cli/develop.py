"""Commands for application developers: dev, emit, usage, key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from pipeline.cli.context import EXIT_FAILURE, EXIT_INPUT, data_dir, running, settings
from pipeline.local import DEV_FILE
from schemas.errors import InvalidInput, Refused, Transient

# Longer than the gateway's own limits, so that its answer is seen.
GATEWAY_TIMEOUT_S = 30.0


@click.command()
@click.option("--kafka", is_flag=True, help="Start a real Apache Kafka broker instead of the embedded log.")
@click.option("--port", default=8080, show_default=True, help="The gateway's port; 0 takes a free one.")
@click.option("--clickhouse-port", default=8123, show_default=True, help="Read-only ClickHouse port; 0: a free one.")
@click.option("--meters", "meter_set_path", type=click.Path(path_type=Path), help="A meter set file of your own.")
@click.option("--workers", default=1, show_default=True, help="Worker processes (more than one needs --kafka).")
def dev(kafka: bool, port: int, clickhouse_port: int, meter_set_path: Path | None, workers: int) -> None:
    """Run everything on this machine until ctrl-C. Data stays in .tidemark/.

    Starts the log, Valkey, the ClickHouse engine, a Stripe simulator and all roles, without Docker. Prints an API key
    and all addresses.
    """
    if workers > 1 and not kafka:
        raise InvalidInput("--workers", "the embedded log has one reader per group; add --kafka")
    asyncio.run(_dev(kafka, port, clickhouse_port, meter_set_path, workers))


async def _dev(kafka: bool, port: int, clickhouse_port: int, meter_set_path: Path | None, workers: int) -> None:
    from pipeline.http.serving import stop_event
    from pipeline.local.dev import Dev, DevOptions, write_private

    folder = data_dir() / "kafka-shape" if kafka else data_dir()
    options = DevOptions(folder, kafka, port, clickhouse_port, meter_set=meter_set_path, workers=workers)
    stop = stop_event()
    instance = Dev(options, lambda message: click.echo(f"  {message}"))
    try:
        await instance.start()
        write_private(data_dir() / DEV_FILE, json.loads((folder / DEV_FILE).read_text()))
        click.echo(_welcome(instance))
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, instance.supervisor.failure}, return_when=asyncio.FIRST_COMPLETED)
        if instance.supervisor.failure.done():
            instance.supervisor.failure.result()
        click.echo("Stopping; the data stays in " + str(folder))
    finally:
        (data_dir() / DEV_FILE).unlink(missing_ok=True)
        await instance.stop()


def _welcome(instance: Any) -> str:
    return f"""
Tidemark is running.
  Gateway             {instance.gateway_url}
  API key (admin)     {instance.api_key}
  ClickHouse (SQL)    {instance.clickhouse_read_only_url}  read-only; any ClickHouse client, or curl
  Stripe simulator    {instance.stripe_url}
  Log                 {instance.environment["TIDEMARK_LOG_URL"]}
  Data and logs       {instance.data_dir}

In another terminal:
  export TIDEMARK_API_KEY={instance.api_key}
  tidemark emit api.request --account acme --data '{{"method":"GET","region":"eu"}}'
  tidemark usage --account acme
Press ctrl-C to stop."""


def _gateway() -> tuple[str, str]:
    import os

    document = running() or {}
    url = os.environ.get("TIDEMARK_GATEWAY_URL") or document.get("gateway_url", "")
    key_text = os.environ.get("TIDEMARK_API_KEY") or document.get("api_key", "")
    if not url:
        raise InvalidInput(
            "TIDEMARK_GATEWAY_URL", "is not set and no `tidemark dev` runs here; start it, or set the URL"
        )
    if not key_text:
        raise InvalidInput("TIDEMARK_API_KEY", "is not set; `tidemark key create` prints one")
    return url, key_text


def _call(method: str, path: str, **arguments: Any) -> dict[str, Any]:
    import httpx

    url, key_text = _gateway()
    try:
        headers = {"authorization": f"Bearer {key_text}", **arguments.pop("headers", {})}
        answer = httpx.request(method, url + path, headers=headers, timeout=GATEWAY_TIMEOUT_S, **arguments)
    except httpx.HTTPError as error:
        raise Transient(f"the gateway at {url} did not answer: {error}") from error
    if answer.status_code in (401, 403):
        raise Refused(answer.json()["error"]["message"])
    document: dict[str, Any] = answer.json()
    if answer.status_code >= 400 and "error" in document:
        raise InvalidInput(document["error"].get("field", "request"), document["error"]["message"])
    return document


@click.command()
@click.argument("event_type")
@click.option("--account", required=True, help="The account of the usage.")
@click.option("--data", default="{}", help="The event's data as a JSON object.")
@click.option("--id", "event_id", help="The event id; events with the same id are counted once. A UUID if unset.")
@click.option("--time", "event_time", help="RFC 3339 time; now if unset.")
def emit(event_type: str, account: str, data: str, event_id: str | None, event_time: str | None) -> None:
    """Send one usage event through the gateway and print its answer. Exits with 2 if the event is rejected.

    \b
    tidemark emit api.request --account acme --data '{"method":"GET","region":"eu"}'
    """
    import uuid

    from aggregators.instants import format_instant_ms
    from pipeline.clock import SystemClock

    try:
        body = json.loads(data)
    except ValueError as error:
        raise InvalidInput("--data", f"is not JSON: {error}") from error
    event = {
        "specversion": "1.0",
        "id": event_id or str(uuid.uuid4()),
        "source": "tidemark-cli",
        "type": event_type,
        "subject": account,
        "time": event_time or format_instant_ms(SystemClock().now_ms()),
        "data": body,
    }
    answer = _call(
        "POST", "/v1/events", content=json.dumps(event), headers={"content-type": "application/cloudevents+json"}
    )
    click.echo(json.dumps(answer, indent=2))
    statuses = {event["status"] for event in answer["events"]}
    if statuses != {"accepted"}:
        # A rejected event must be corrected; an event that the log did not confirm may be sent again under its id.
        raise SystemExit(EXIT_INPUT if "rejected" in statuses else EXIT_FAILURE)


@click.command()
@click.option("--account", help="One account. All accounts if unset; then --meter is required.")
@click.option("--meter", help="One meter, from ClickHouse. If unset, the account's current period, from Redis.")
@click.option("--from", "from_", help="RFC 3339 instant on a whole hour (with --meter).")
@click.option("--to", help="RFC 3339 instant on a whole hour (with --meter).")
@click.option("--window", type=click.Choice(["hour", "day", "month"]), help="One row per hour, day or month.")
@click.option("--timezone", help="Time zone of the windows, such as Europe/Berlin.")
@click.option("--group-by", help="Dimensions, separated by commas.")
def usage(
    account: str | None, meter: str | None, from_: str | None, to: str | None, window: str | None,
    timezone: str | None, group_by: str | None,
) -> None:  # fmt: skip
    """Print usage from the gateway as JSON.

    \b
    tidemark usage --account acme
    tidemark usage --meter api_requests --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z --window day
    """
    if meter is None:
        if account is None:
            raise InvalidInput("--account", "give an account, or a --meter")
        click.echo(json.dumps(_call("GET", f"/v1/accounts/{quote(account, safe='')}/usage"), indent=2))
        return
    options = {
        "meter": meter, "account": account, "from": from_, "to": to, "window": window,
        "timezone": timezone, "group_by": group_by,
    }  # fmt: skip
    parameters = {name: value for name, value in options.items() if value is not None}
    click.echo(json.dumps(_call("GET", "/v1/usage", params=parameters), indent=2))


@click.group()
def key() -> None:
    """Create and revoke API keys."""


def _keys_file() -> Path:
    path = settings().api_keys
    if path is None:
        raise InvalidInput("TIDEMARK_API_KEYS", "is not set; name the file that holds the keys' hashes")
    return path


@key.command("create")
@click.option("--role", type=click.Choice(["ingest", "read", "admin"]), required=True)
@click.option("--account", default=None, help="Restrict the key to one account.")
def key_create(role: str, account: str | None) -> None:
    """Print a new API key. Only the hash of the key is stored."""
    from pipeline.clock import SystemClock
    from pipeline.http.api_keys import Role, create_key

    click.echo(create_key(_keys_file(), Role(role), SystemClock(), account)[0])


@key.command("revoke")
@click.argument("key_id")
def key_revoke(key_id: str) -> None:
    """Revoke a key by its id, the first part after tm_. Gateways notice at once."""
    from pipeline.http.api_keys import revoke_key

    click.echo(f"revoked {revoke_key(_keys_file(), key_id).id}")
