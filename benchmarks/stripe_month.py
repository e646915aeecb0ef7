"""`python -m benchmarks.stripe_month [--subscriptions N]`: a month of subscriptions in the Stripe simulator.

Each subscription has three items. Its renewal is drafted, finalized and paid, and its events are delivered to an
endpoint that answers 200 in another process. The simulator has one core. The preparation is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import uvloop

from benchmarks.machine import resident_bytes
from stripe_simulator import Simulator, SimulatorSettings
from stripe_simulator.__main__ import GARBAGE
from stripe_simulator.mode import Call, Mode
from stripe_simulator.resources import (
    customers,
    payment_methods,
    prices,
    subscriptions,
    test_clocks,
    webhook_endpoints,
)

START_S: Final = 1_798_761_600  # 2027-01-01
END_S: Final = START_S + 31 * 86_400 + 2 * 3_600
PRICES: Final = (4_900, 1_000, 300)


class _Clock:
    """A clock that stands still: nothing is due but what the test clock brings."""

    def now_ms(self) -> int:
        """The start."""
        return START_S * 1_000


class _Endpoint(asyncio.Protocol):
    """The sink: it answers 200 to each request and reads nothing but lengths."""

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


async def serve_endpoint() -> None:
    """Serve the sink and print its port."""
    server = await asyncio.get_running_loop().create_server(_Endpoint, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextlib.asynccontextmanager
async def _sink() -> AsyncIterator[str]:
    command = [sys.executable, "-m", "benchmarks.stripe_month", "--endpoint"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220  # once, before the run
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/"
        finally:
            process.kill()


def prepare(mode: Mode, count: int) -> str:
    """Create `count` customers with a card and a subscription each, on one test clock. Returns the clock."""

    def call(run: Any, path: str, *ids: str, **params: Any) -> Any:
        with mode.journal.transaction():
            return run(mode, Call(path, params, ids))

    clock: str = call(test_clocks.create, "/v1/test_helpers/test_clocks", frozen_time=START_S)["id"]
    items = []
    for amount in PRICES:
        product, recurring = {"name": f"Plan {amount}"}, {"interval": "month"}
        price = {"currency": "usd", "unit_amount": amount, "recurring": recurring, "product_data": product}
        items.append({"price": call(prices.create, "/v1/prices", **price)["id"]})
    for _ in range(count):
        customer = call(customers.create, "/v1/customers", test_clock=clock)["id"]
        card = call(payment_methods.attach, "/v1/payment_methods", "pm_card_visa", customer=customer)["id"]
        settings = {"default_payment_method": card}
        call(customers.update, "/v1/customers", customer, invoice_settings=settings)
        call(subscriptions.create, "/v1/subscriptions", customer=customer, items=[dict(item) for item in items])
    return clock


async def run(count: int) -> dict[str, float]:
    """One measurement: seconds of both phases, renewals, deliveries and the memory."""
    simulator = Simulator(_Clock(), SimulatorSettings())
    mode = simulator.test
    began = time.perf_counter()
    clock = prepare(mode, count)
    figures = {"prepared_s": time.perf_counter() - began, "prepared_bytes": float(resident_bytes(os.getpid()))}
    async with _sink() as url:
        with mode.journal.transaction():
            endpoint = {"url": url, "enabled_events": ["*"]}
            webhook_endpoints.create(mode, Call("/v1/webhook_endpoints", endpoint))
        jobs = asyncio.create_task(simulator.run_jobs())
        began, began_cpu = time.perf_counter(), time.process_time()
        mode.clockwork.run(clock, END_S * 1_000)
        figures["renewed_s"] = time.perf_counter() - began
        figures["renewed_cpu_s"] = time.process_time() - began_cpu
        await simulator.delivered()
        figures["total_s"] = time.perf_counter() - began
        figures["cpu_s"] = time.process_time() - began_cpu
        jobs.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await jobs
    renewals = [body for body in mode.store.newest("invoice") if body["billing_reason"] == "subscription_cycle"]
    deliveries = list(mode.store.newest("simulator.delivery"))
    assert len(renewals) == count
    assert {(body["status"], body["amount_paid"]) for body in renewals} == {("paid", sum(PRICES))}
    assert {delivery["status"] for delivery in deliveries} == {"succeeded"}
    return {**figures, "deliveries": len(deliveries), "bytes": float(resident_bytes(os.getpid()))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subscriptions", type=int, default=20_000)
    parser.add_argument("--endpoint", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.endpoint:
        uvloop.run(serve_endpoint())
        return
    # As `python -m stripe_simulator` does: objects are JSON without cycles, and there are millions of them.
    gc.set_threshold(*GARBAGE)
    count = arguments.subscriptions
    figures = uvloop.run(run(count))
    print(
        f"{count} subscriptions with {len(PRICES)} items, one month: {figures['cpu_s']:.1f} s on one core "
        f"({figures['renewed_cpu_s']:.1f} s until paid, the rest for {figures['deliveries']:.0f} deliveries), "
        f"{figures['total_s']:.1f} s elapsed, "
        f"{figures['bytes'] / 2**20:.0f} MB resident ({figures['prepared_bytes'] / 2**20:.0f} MB before the month; "
        f"prepared in {figures['prepared_s']:.1f} s)"
    )


if __name__ == "__main__":
    main()
