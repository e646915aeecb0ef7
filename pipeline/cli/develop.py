"""Commands for application developers: dev, stripe-simulator, emit, usage, periods, top, key."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

import click

from emitter.transport import exposes_key
from pipeline.cli.context import EXIT_FAILURE, EXIT_INPUT, NO_DEV, data_dir, running
from pipeline.local import DEV_FILE
from schemas.errors import InvalidInput, Refused, Transient

if TYPE_CHECKING:
    import httpx

    from pipeline.local.dev import DevOptions

PORT: Final = click.IntRange(0, 65_535)
METER_SET_FILE: Final = click.Path(dir_okay=False, readable=True, path_type=Path)
# Longer than the gateway's own limits, so that its answer is seen.
GATEWAY_TIMEOUT_S: Final = 30.0
# The customers of the example business to whose pages `dev` links, and for how long.
EXAMPLE_CUSTOMERS: Final = {"bakery": "no plan yet", "museum": "a plan with seats"}
EXAMPLE_LINK_S: Final = 86_400


@click.command()
@click.option("--kafka", is_flag=True, help="Start a real Apache Kafka broker instead of the embedded log.")
@click.option("--port", type=PORT, default=8080, show_default=True, help="The gateway's port; 0 takes a free one.")
@click.option(
    "--clickhouse-port", type=PORT, default=8123, show_default=True, help="Read-only ClickHouse port; 0: a free one."
)
@click.option("--meters", "meter_set_path", type=METER_SET_FILE, help="Begin with your own catalog or meter set file.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Worker processes (more than one needs --kafka).",
)
@click.option(
    "--example/--no-example",
    default=True,
    help="Whether the first start makes an example business: accounts on plans. Never with --meters.",
)
def dev(kafka: bool, port: int, clickhouse_port: int, meter_set_path: Path | None, workers: int, example: bool) -> None:
    """Run everything on this machine until ctrl-C. Data stays in .tidemark/.

    Starts the log, Valkey, PostgreSQL, the ClickHouse engine, a Stripe simulator and all roles, without Docker. Prints
    an API key and all addresses. The first start also makes an example business in the simulator: 34 accounts on
    the plans of the catalog that ships.

    A catalog of your own starts with --meters FILE in a folder where no `dev` ran: a meter never changes.
    """
    if workers > 1 and not kafka:
        raise InvalidInput("--workers", "the embedded log has one reader per group; add --kafka")
    if meter_set_path is not None:
        from pipeline.open import read_meter_set

        # Before anything starts.
        read_meter_set(meter_set_path)
    from pipeline.local.dev import locked_folder

    with locked_folder(data_dir(), "TIDEMARK_DATA_DIR"):
        for option, wanted in (("--port", port), ("--clickhouse-port", clickhouse_port)):
            _check_free(option, wanted)
        from pipeline.local.dev import DevOptions

        folder = data_dir() / "kafka-shape" if kafka else data_dir()
        options = DevOptions(folder, kafka, port, clickhouse_port, meter_set=meter_set_path, workers=workers)
        options.example = example and meter_set_path is None
        asyncio.run(_dev(options))


@click.command("stripe-simulator", context_settings={"ignore_unknown_options": True}, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def stripe_simulator(arguments: tuple[str, ...]) -> None:
    """Run only the Stripe simulator until ctrl-C, with pages for a browser; see --help.

    Prints the address of the API and of the pages.
    """
    from stripe_simulator.__main__ import main

    main.main(arguments, "tidemark stripe-simulator", standalone_mode=False)


def _check_free(option: str, port: int) -> None:
    """Refuse a port that another process has, before anything starts. 0 is always free."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            message = f"port {port} cannot be used: {error.strerror}; stop the other process, or take 0 for a free port"
            raise InvalidInput(option, message) from error


async def _dev(options: DevOptions) -> None:
    from pipeline.http.serving import stop_event
    from pipeline.local.dev import Dev, write_private

    folder = options.data_dir
    stop = stop_event()
    instance = Dev(options, lambda message: click.echo(f"  {message}"))
    try:
        await instance.start()
        write_private(data_dir() / DEV_FILE, json.loads((folder / DEV_FILE).read_text()))
        click.echo(_welcome(instance))
        example = asyncio.create_task(instance.make_example())
        stopped: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait({stopped, instance.supervisor.failure}, return_when=asyncio.FIRST_COMPLETED)
        if instance.supervisor.failure.done():
            instance.supervisor.failure.result()
        example.cancel()
        click.echo("Stopping; the data stays in " + str(folder))
    finally:
        (data_dir() / DEV_FILE).unlink(missing_ok=True)
        await instance.stop()


def command_as_started() -> str:
    """The command by which this process was started, without its arguments, for a shell in the same folder."""
    started = Path(sys.argv[0])
    if started.name != "tidemark":
        return f"{shlex.quote(sys.executable)} -m pipeline.cli"
    known = shutil.which("tidemark")
    return "tidemark" if known is not None and Path(known).samefile(started) else shlex.quote(str(started))


def _welcome(instance: Any) -> str:
    command, folder = command_as_started(), os.environ.get("TIDEMARK_DATA_DIR")
    data_dir_line = f"\n  export TIDEMARK_DATA_DIR={shlex.quote(str(Path(folder).absolute()))}" if folder else ""
    hints = "\n  ".join(next_commands(instance.options, command))
    return f"""
Tidemark is running.
  Gateway             {instance.gateway_url}
  API key (admin)     {instance.api_key}
  ClickHouse (SQL)    {instance.clickhouse_read_only_url}  read-only; any ClickHouse client, or curl
  Stripe simulator    {instance.stripe_url}/_simulator/{_page_lines(instance)}
  Log                 {instance.environment["TIDEMARK_LOG_URL"]}
  Notices             {instance.environment["TIDEMARK_MAIL_URL"]}
  Data and logs       {instance.data_dir}

In another terminal:
  cd {shlex.quote(str(Path.cwd()))}{data_dir_line}
  export TIDEMARK_API_KEY={instance.api_key}
  {hints}
Press ctrl-C to stop."""


def _page_lines(instance: Any) -> str:
    """The links to the pages of two customers of the example business, and to its revenue."""
    if not instance.options.example:
        return ""
    from pipeline.clock import SystemClock
    from pipeline.http.dashboard import dashboard_link
    from pipeline.http.operator_links import operator_link
    from pipeline.http.page_links import PageSecrets, page_link

    found, now_ms = instance.settings(), SystemClock().now_ms()
    secrets = PageSecrets(found)()
    lines = []
    for account, words in EXAMPLE_CUSTOMERS.items():
        link = page_link(found, secrets, account, EXAMPLE_LINK_S, now_ms)
        lines.append(f"\n  Customer's page     {link.url}  {account}: {words}")
    operator = operator_link(found, secrets, "tidemark dev", EXAMPLE_LINK_S, now_ms)
    lines.append(f"\n  Operator's page     {operator.url}  is anything wrong now, and why an invoice says what it says")
    finance = dashboard_link(found, secrets, EXAMPLE_LINK_S, now_ms)
    lines.append(f"\n  Revenue             {finance.url}  what the business earns, and why that changed")
    return "".join(lines)


def next_commands(options: DevOptions, command: str) -> list[str]:
    """What to type next: with meters or without plans, other commands have an answer."""
    usage = f"{command} usage --account acme"
    emit = f"""{command} emit api.request --account acme --data '{{"method":"GET","region":"eu"}}'"""
    if options.meter_set is not None:
        file = shlex.quote(str(options.meter_set))
        plan = f"{command} catalog plan {file}"
        return [f"{command} meters show", plan, usage]
    if not options.example:
        return [emit, usage, f"{command} catalog example > catalog.yaml"]
    return [emit, usage, f"{command} check cafe members --used 4"]


def gateway_address() -> tuple[str, str]:
    """The gateway's URL and an API key. Raises `InvalidInput`."""
    document = running() or {}
    url = os.environ.get("TIDEMARK_GATEWAY_URL") or document.get("gateway_url", "")
    key_text = os.environ.get("TIDEMARK_API_KEY") or document.get("api_key", "")
    if not url:
        raise InvalidInput("TIDEMARK_GATEWAY_URL", f"{NO_DEV}; start it, or set the URL")
    if not key_text:
        raise InvalidInput("TIDEMARK_API_KEY", "is not set; `tidemark key create` prints one")
    try:
        is_exposed = exposes_key(url)
    except ValueError as error:
        raise InvalidInput("TIDEMARK_GATEWAY_URL", f"cannot call {url}: {error}") from error
    if is_exposed:
        click.echo(
            f"tidemark: {url} is not encrypted: everybody on the way can read the API key. Use https://", err=True
        )
    return url, key_text


def _call(method: str, path: str, **arguments: Any) -> dict[str, Any]:
    import httpx

    url, key_text = gateway_address()
    try:
        headers = {"authorization": f"Bearer {key_text}", **arguments.pop("headers", {})}
        # A redirect is not followed: it would send the key to another address, perhaps unencrypted.
        answer = httpx.request(
            method, url + path, headers=headers, timeout=GATEWAY_TIMEOUT_S, follow_redirects=False, **arguments
        )
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidInput("TIDEMARK_GATEWAY_URL", f"cannot call {url}: {error}") from error
    except UnicodeEncodeError as error:
        raise InvalidInput("TIDEMARK_API_KEY", "must be ASCII, as `tidemark key create` prints it") from error
    except httpx.LocalProtocolError as error:
        raise InvalidInput("TIDEMARK_API_KEY", "must be one line, as `tidemark key create` prints it") from error
    except httpx.HTTPError as error:
        raise Transient(f"the gateway at {url} did not answer: {error}") from error
    return answer_document(url, answer)


def answer_document(url: str, answer: httpx.Response) -> dict[str, Any]:
    """The gateway's answer. Raises the error that it contains, and `Transient` if it is not an answer of a gateway."""
    status = answer.status_code
    if 300 <= status < 400:
        target = answer.headers.get("location", "another address")
        raise InvalidInput(
            "TIDEMARK_GATEWAY_URL", f"{url} redirects to {target}: set the address of the gateway itself"
        )
    try:
        document: Any = answer.json()
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Transient(f"{url} answers {status} without JSON: is it the gateway, and is a proxy before it well?")
    error = document.get("error")
    if status < 400 or not isinstance(error, dict):
        if status in (401, 403):
            raise Refused(f"{url} answers {status}: correct TIDEMARK_API_KEY")
        return document
    message = str(error.get("message", status))
    if status in (401, 403):
        raise Refused(message)
    if status == 429 or status >= 500:
        raise Transient(message)
    field = str(error.get("field") or "request")
    raise InvalidInput(field, message.removeprefix(f"{field}: "))


def _print_answer(path: str, options: Mapping[str, str | int | None]) -> None:
    """Print the answer to a question with the options that are set. An error names the option."""
    parameters = {name: str(value) for name, value in options.items() if value is not None}
    try:
        # A path cannot carry every account: HTTP clients change `.` and `..`.
        answer = _call("GET", f"{path}?{urlencode(parameters, quote_via=quote, safe='')}")
    except InvalidInput as error:
        if error.field not in options:
            raise
        # The gateway lists its parameters, which are no options.
        message = error.message.partition("; the parameters are")[0]
        raise InvalidInput(f"--{error.field.replace('_', '-')}", message) from error
    click.echo(json.dumps(answer, indent=2))


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
    except RecursionError as error:
        raise InvalidInput("--data", "is nested too deeply") from error
    except ValueError as error:
        raise InvalidInput("--data", f"is not JSON: {error}") from error
    event = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()) if event_id is None else event_id,
        "source": "tidemark-cli",
        "type": event_type,
        "subject": account,
        "time": format_instant_ms(SystemClock().now_ms()) if event_time is None else event_time,
        "data": body,
    }
    answer = _call(
        "POST", "/v1/events", content=json.dumps(event), headers={"content-type": "application/cloudevents+json"}
    )
    click.echo(json.dumps(answer, indent=2))
    statuses = {event["status"] for event in answer.get("events", [])}
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
@click.option("--limit", type=click.IntRange(1), help="Rows of a page (with --meter). All rows if unset.")
@click.option("--cursor", help="Print the page after the one with this next_cursor (with --meter).")
def usage(
    account: str | None, meter: str | None, from_: str | None, to: str | None, window: str | None,
    timezone: str | None, group_by: str | None, limit: int | None, cursor: str | None,
) -> None:  # fmt: skip
    """Print usage from the gateway as JSON.

    \b
    tidemark usage --account acme
    tidemark usage --meter api_requests --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z --window day
    """
    options: dict[str, str | int | None] = {
        "meter": meter, "account": account, "from": from_, "to": to, "window": window,
        "timezone": timezone, "group_by": group_by, "limit": limit, "cursor": cursor,
    }  # fmt: skip
    if meter is not None:
        _print_answer("/v1/usage", options)
        return
    if account is None:
        raise InvalidInput("--account", "give an account, or a --meter")
    for name, value in options.items():
        if name != "account" and value is not None:
            option = f"--{name.replace('_', '-')}"
            raise InvalidInput(option, "needs a --meter; without one, the answer is the current period")
    _print_answer("/v1/usage/current", {"account": account})


@click.command()
@click.option("--account", required=True, help="The account.")
@click.option("--meter", required=True, help="The meter's slug.")
@click.option("--from", "from_", required=True, help="RFC 3339 instant: periods that end after it.")
@click.option("--to", required=True, help="RFC 3339 instant: periods that begin before it.")
def periods(account: str, meter: str, from_: str, to: str) -> None:
    """Print what each billing period of an account counted of a meter, and what was carried in, as JSON.

    \b
    tidemark periods --account acme --meter tokens --from 2026-01-01T00:00:00Z --to 2027-01-01T00:00:00Z
    """
    _print_answer("/v1/usage/periods", {"meter": meter, "account": account, "from": from_, "to": to})


@click.command()
@click.option("--meter", required=True, help="The meter's slug.")
@click.option("--period", help="RFC 3339 start of the period. The current calendar month of UTC if unset.")
@click.option("--limit", type=click.IntRange(1, 1_000), default=10, show_default=True, help="How many accounts.")
def top(meter: str, period: str | None, limit: int) -> None:
    """Print the accounts with the greatest usage of a meter as JSON, live from Redis.

    Compares the accounts whose billing period starts at the same instant.

    \b
    tidemark top --meter tokens --limit 3
    """
    _print_answer("/v1/usage/top", {"meter": meter, "limit": limit, "period": period})
