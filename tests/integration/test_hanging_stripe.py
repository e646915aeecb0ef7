"""The sender of reports while Stripe, a real process, is stopped by SIGSTOP."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx

from pipeline.local.processes import LocalProcess, python
from sinks.stripe.client import StripeClientMeters
from stripe_simulator.__main__ import READY_PREFIX
from tests.services.stripe import ROOT, TEST_KEY
from tests.worlds.sender import ACCOUNT, NOW_MS, Bench, make_intent

TIMEOUT_S = 0.5
INTENTS = 40


async def test_reports_wait_while_stripe_hangs_and_each_is_billed_once_afterwards(tmp_path: Path) -> None:
    """A step ends in a bounded time, so the sink keeps its partitions; a report that was in hand is sent again."""
    arguments = (
        "--account",
        ACCOUNT,
        "--clock",
        f"scaled:{time.time_ns() // 1_000_000}:{NOW_MS}:1",
        "--summary-lag-s",
        "0",
    )
    with LocalProcess(
        "the Stripe simulator", python("stripe_simulator", *arguments), tmp_path / "simulator.log", cwd=ROOT
    ) as simulator:
        url = simulator.wait_line(READY_PREFIX).removeprefix(READY_PREFIX)
        bench = Bench()
        bench.meters = client = StripeClientMeters(TEST_KEY, url, timeout_s=TIMEOUT_S, nonce="test")
        await client.create_meter("tokens", "tokens")
        await bench.start()
        await bench.restart()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
            for name in "abcd":
                assert (await http.post("/_simulator/customers", json={"id": f"cus_{name}"})).status_code == 200
            await bench.publish(make_intent("before", "a"))
            await bench.settle()
            await bench.publish(*(make_intent(f"during-{number}", "abcd"[number % 4]) for number in range(INTENTS)))

            assert simulator.pid is not None
            os.killpg(simulator.pid, signal.SIGSTOP)
            try:
                async with asyncio.timeout(bench.policy.round_s + 5):
                    await bench.pump(12)
            finally:
                os.killpg(simulator.pid, signal.SIGCONT)
            assert bench.sender.status().pending == INTENTS

            await bench.settle(step_ms=1_000)
            state = (await http.get("/_simulator/state")).json()
        await client.close()
    outcomes = await bench.outcomes()
    assert {outcome.status for outcome in outcomes.values()} == {"accepted"}
    assert len(outcomes) == INTENTS + 1
    identifiers = [event["identifier"] for event in state["meter_events"]]
    assert sorted(identifiers) == sorted(outcomes)
