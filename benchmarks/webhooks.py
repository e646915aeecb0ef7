"""`python -m benchmarks.webhooks`: how many deliveries of Stripe the gateway takes, and how many events the mirror.

The gateway's answer is compared with a bare ASGI application that appends the body to the same log. The mirror, with
PostgreSQL and the Stripe simulator in other processes, is compared with a loop that only fetches the same objects.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx
import uvloop

from aggregators.billing_events import read_event
from aggregators.binding_timeline import timeline
from pipeline.clock import SystemClock
from pipeline.http.api_keys import KeyFile
from pipeline.http.app import GatewayDependencies, create_gateway
from pipeline.local.postgres import LocalPostgres
from pipeline.local.processes import LocalProcess, free_port, python
from pipeline.logs.fake import FakeLog
from pipeline.logs.open import open_log
from pipeline.settings import Settings
from pipeline.webhooks.appending import append_events
from pipeline.webhooks.processor import BillingEventProcessor
from schemas.billing_events import Via
from schemas.control import Genesis
from schemas.log import BILLING_EVENTS_TOPIC, Log
from schemas.meters import MeterSet
from sinks.sql.store import PostgresSideTables
from sinks.stripe.objects import StripeClientObjects

SECRET: Final = "whsec_benchmark"  # noqa: S105 - of nobody
KEY: Final = "sk_test_benchmark"
AT_ONCE: Final = 64
FETCHES_AT_ONCE: Final = 8
READ_RECORDS: Final = 200
Asgi = Callable[[dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


def now_s() -> int:
    """The machine's time."""
    return SystemClock().now_ms() // 1000


def delivery(number: int) -> bytes:
    """A signed event of about 2 kB, as Stripe's are."""
    thing = {"object": "subscription", "id": f"sub_{number}", "customer": f"cus_{number % 500}", "notes": "x" * 1_700}
    event = {
        "object": "event", "id": f"evt_{number}", "type": "customer.subscription.updated", "livemode": False,
        "created": now_s(), "data": {"object": thing},
    }  # fmt: skip
    return json.dumps(event).encode()


def request(body: bytes) -> tuple[dict[str, Any], Callable[[], Awaitable[Any]]]:
    """The ASGI scope of a delivery, and its body."""
    stamp = str(now_s())
    signature = hmac.new(SECRET.encode(), f"{stamp}.".encode() + body, sha256).hexdigest()
    headers = [(b"stripe-signature", f"t={stamp},v1={signature}".encode()), (b"content-type", b"application/json")]
    path = "/v1/stripe/webhook"
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": headers, "http_version": "1.1", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return scope, receive


async def rate(app: Asgi, deliveries: int) -> float:
    """Deliveries a second, `AT_ONCE` at a time. Raises `AssertionError` for another answer than 200."""
    waiting = iter([request(delivery(number)) for number in range(deliveries)])

    async def sender() -> None:
        for scope, receive in waiting:
            answers: list[Any] = []

            async def send(message: Any, answers: list[Any] = answers) -> None:
                answers.append(message)

            await app(scope, receive, send)
            assert answers[0]["status"] == 200, answers

    began_s = time.perf_counter()
    await asyncio.gather(*(sender() for _ in range(AT_ONCE)))
    return deliveries / (time.perf_counter() - began_s)


def bare(log: Log) -> Asgi:
    """An application that appends the body of each request and answers 200."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await log.append(BILLING_EVENTS_TOPIC, 0, message["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    return app


async def receiver(folder: Path, deliveries: int) -> None:
    """Measure the gateway and the bare application in turns; the better of three rounds each."""
    log = open_log(f"embedded://{folder / 'log.db'}", SystemClock(), 30.0)
    await log.start()
    (folder / "secrets").write_text(SECRET + "\n")
    settings = Settings(partitions=4, stripe_webhook_secrets=folder / "secrets")
    await log.create_topics(settings.topics())

    async def no_meter_set() -> MeterSet | None:
        return None

    dependencies = GatewayDependencies(
        log=log, genesis=Genesis(log_id="benchmark", partitions=4), settings=settings, clock=SystemClock(),
        keys=KeyFile(folder / "keys"), meter_set=no_meter_set,
    )  # fmt: skip
    gateway: Any = create_gateway(dependencies)
    rounds = [(await rate(bare(log), deliveries), await rate(gateway, deliveries)) for _ in range(3)]
    await log.close()
    least, ours = (max(values) for values in zip(*rounds, strict=True))
    verdict = "MET" if ours >= 2_000 else "MISSED"
    print(f"receiver   {ours:8.0f} deliveries/s  {least / ours:5.2f} × the time of a bare append  {verdict}: 2 000")


async def sign_ups(api: httpx.AsyncClient, customers: int) -> None:
    """Customers with a card and a subscription in the simulator."""

    async def post(where: str, **fields: str) -> str:
        answer = await api.post(where, data=fields)
        answer.raise_for_status()
        return str(answer.json()["id"])

    recurring = {"currency": "usd", "unit_amount": "900", "recurring[interval]": "month"}
    price = await post("/v1/prices", **recurring, **{"product_data[name]": "Plan"})
    for _ in range(customers):
        customer = await post("/v1/customers", email="a@example.com")
        card = await post("/v1/payment_methods/pm_card_visa/attach", customer=customer)
        default = {"invoice_settings[default_payment_method]": card}
        await post(f"/v1/customers/{customer}", **default)
        await post("/v1/subscriptions", customer=customer, **{"items[0][price]": price})


async def mirror(folder: Path, customers: int) -> None:
    """Measure the processor over the events of sign-ups, and a loop that fetches the same objects."""
    port = free_port()
    command = python("stripe_simulator", "--port", str(port))
    with (
        LocalPostgres(folder / "postgres") as postgres,
        LocalProcess("the simulator", command, folder / "log") as process,
    ):
        process.wait_line("ready")
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as api:
            await sign_ups(api, customers)
        objects, clock = StripeClientObjects(KEY, url), SystemClock()
        values = [json.dumps(event).encode() for event in await objects.events(now_s() - 3_600, now_s() + 60)]
        events = [read_event(value) for value in values]
        log, tables = FakeLog(clock), PostgresSideTables(postgres.url, timeline)
        await log.create_topics(Settings(partitions=1).topics())
        await tables.migrate("test:acct_benchmark", "benchmark")
        await append_events(
            log, [value for value, event in zip(values, events, strict=True) if event.objects], Via.LIST
        )
        processor = BillingEventProcessor(log, tables, objects, clock)
        offset, began_s = await processor.start_offset(0), time.perf_counter()
        while records := await log.read(BILLING_EVENTS_TOPIC, 0, offset, READ_RECORDS):
            await processor.step(0, records)
            offset = records[-1].next_offset
        seconds = time.perf_counter() - began_s
        fetches = sum(processor.status().fetches.values())
        names = iter([name for event in events for name in event.objects][:fetches])

        async def fetch() -> None:
            for name in names:
                await objects.fetch(name)

        began_s = time.perf_counter()
        await asyncio.gather(*(fetch() for _ in range(FETCHES_AT_ONCE)))
        least = time.perf_counter() - began_s
        await tables.close()
        await objects.close()
    ours = offset / seconds
    verdict = "MET" if ours >= 200 else "MISSED"
    print(
        f"mirror     {ours:8.0f} events/s      {seconds / least:5.2f} × the time of its {fetches} bare fetches  "
        f"{verdict}: 200"
    )


def main() -> None:
    """Print both figures with their ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.webhooks", description=main.__doc__)
    parser.add_argument("--deliveries", type=int, default=20_000)
    parser.add_argument("--customers", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(receiver(Path(name), arguments.deliveries))
        runner.run(mirror(Path(name), arguments.customers))


if __name__ == "__main__":
    main()
