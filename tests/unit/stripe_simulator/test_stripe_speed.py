"""The simulator starts at once and keeps up with a fast sender. In CPU seconds, because other tests run beside."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from starlette.types import ASGIApp

from stripe_simulator import Simulator, SimulatorSettings, create_app
from stripe_simulator.usage import MeterEvent
from tests.services.stripe_wire import METER, NOW_MS, NOW_S
from tests.worlds.clock import ManualClock

ROOT: Final = Path(__file__).parents[3]
EVENTS: Final = 2_000
START_CPU_S_MAX: Final = 1.0
# About 60 on an idle machine; a request that parses a body or scans a list anew is far above.
RATIO_MAX: Final = 200
USAGE_EVENTS_PER_S_MIN: Final = 20_000

_START: Final = """
import sys, time
from stripe_simulator import Simulator, create_app, parse_clock
create_app(Simulator(parse_clock("system")))
assert "stripe" not in sys.modules, "the simulator imports the SDK"
print(time.process_time())
"""


def test_it_starts_within_a_second() -> None:
    """With the whole contract, and without the SDK."""
    ended = subprocess.run([sys.executable, "-c", _START], cwd=ROOT, capture_output=True, text=True, check=True)

    assert float(ended.stdout) < START_CPU_S_MAX


def _caller(app: ASGIApp) -> Callable[[str, bytes], Awaitable[tuple[int, bytes]]]:
    async def call(path: str, body: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer sk_test_x"), (b"idempotency-key", body[-20:])]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await app(scope, receive, send)
        return sent[0]["status"], sent[1]["body"]

    return call


async def test_meter_events_cost_a_small_multiple_of_a_bare_answer() -> None:
    """API v1, one event for each request, with an Idempotency-Key, against an application that only answers."""
    simulator = Simulator(ManualClock(NOW_MS), SimulatorSettings(summary_lag_s=0))
    simulator.create_customer(False, {}, "cus_one")
    call = _caller(create_app(simulator))
    assert (await call("/v1/billing/meters", urlencode(METER).encode()))[0] == 200
    fields = {"event_name": "tokens", "payload[stripe_customer_id]": "cus_one", "payload[value]": "2.5"}
    bodies = [urlencode({**fields, "identifier": f"id-{number:09}"}).encode() for number in range(EVENTS)]
    answer = (await call("/v1/billing/meter_events", urlencode(fields).encode()))[1]

    async def bare(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": answer})

    spent = []
    # What earlier tests left is not looked through by the collector, and their threads are not measured.
    gc.freeze()
    for caller in (_caller(bare), call):
        begun = time.thread_time()
        for body in bodies:
            assert (await caller("/v1/billing/meter_events", body))[0] == 200
        spent.append(time.thread_time() - begun)
    gc.unfreeze()

    assert len(simulator.test.usage.events) == EVENTS + 1
    assert spent[1] / spent[0] < RATIO_MAX


def test_usage_keeps_up_with_a_stream() -> None:
    """Receipt, validation and sums of events over 1 000 customers."""
    clock = ManualClock(NOW_MS)
    simulator = Simulator(clock, SimulatorSettings())
    for number in range(1_000):
        simulator.create_customer(False, {}, f"cus_{number}")
    count = 20_000
    begun = time.process_time()
    for number in range(count):
        customer = f"cus_{number % 1_000}"
        simulator.test.usage.receive(
            MeterEvent(f"id-{number}", "tokens", "mtr", customer, "2.5", NOW_S - number % 86_400)
        )
    clock.advance(60_000)
    simulator.catch_up()
    spent = time.process_time() - begun

    assert {event.status for event in simulator.test.usage.events} == {"accepted"}
    assert count / spent > USAGE_EVENTS_PER_S_MIN
