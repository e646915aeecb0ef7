"""The whole simulator: both modes of one account, the clock, faults and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from stripe_simulator import deliveries
from stripe_simulator.admission import Limits
from stripe_simulator.clock import Clock
from stripe_simulator.faults import FaultPlan
from stripe_simulator.journal import Journal
from stripe_simulator.mode import Mode
from stripe_simulator.registry import INDEXED, JOBS, SUBSCRIBERS
from stripe_simulator.resources import customers
from stripe_simulator.settings import SimulatorSettings
from stripe_simulator.store import Object

TICK_S: Final = 0.02
DELIVERIES_AT_ONCE: Final = 8
_DEFAULTS: Final = SimulatorSettings()

# What is wrong with a route's response, in words; empty if nothing is.
Check = Callable[[str, Any], list[str]]


class Simulator:
    """State, clock, faults. Used by one event loop; `close()` releases the file.

    `state` is the journal from which the state is restored. Raises `ValueError` if the file is not a journal.
    A response that `check` objects to becomes a 500; `checked` are the routes of the checked responses. `violations`
    are defects of the simulator: its exceptions and the objections.
    """

    def __init__(
        self,
        clock: Clock,
        settings: SimulatorSettings = _DEFAULTS,
        state: Path | None = None,
        check: Check | None = None,
    ) -> None:
        self.settings = settings
        self.check = check
        self.checked: set[str] = set()
        self.violations: list[str] = []
        self.clock = clock
        # The simulator's time in milliseconds.
        self.now_ms = clock.now_ms
        self.journal = Journal(state)
        self.faults = FaultPlan(settings.seed)
        subscribers = (deliveries.publish, *SUBSCRIBERS)
        self.test, self.live = (
            Mode(settings, clock, self.journal, livemode, JOBS, INDEXED, subscribers, self.faults)
            for livemode in (False, True)
        )
        self.limits = Limits(settings.rate_per_s, settings.meter_event_rate_per_s)
        self.journal.open()
        for mode in (self.test, self.live):
            deliveries.requeue(mode)

    def close(self) -> None:
        """Close the state. Safe to call twice."""
        self.journal.close()

    def mode(self, livemode: bool) -> Mode:
        """The live or the test mode."""
        return self.live if livemode else self.test

    def catch_up(self) -> None:
        """Run all due jobs of the real clock."""
        self.test.clockwork.catch_up()
        self.live.clockwork.catch_up()

    async def run_jobs(self) -> None:
        """Run due jobs and send webhooks until cancelled. Every request runs due jobs too."""
        async with asyncio.TaskGroup() as tasks:
            for mode in (self.test, self.live):
                for _ in range(DELIVERIES_AT_ONCE):
                    tasks.create_task(deliveries.work(mode))
            while True:
                self.catch_up()
                await asyncio.sleep(TICK_S)

    async def delivered(self) -> None:
        """Wait until every delivery that is due now was attempted. `run_jobs` must be running."""
        self.catch_up()
        await self.test.outbox.join()
        await self.live.outbox.join()

    def create_customer(self, livemode: bool, fields: dict[str, Any], identifier: str = "") -> Object:
        """Add a customer and return its body in Stripe's form."""
        with self.journal.transaction():
            return customers.new(self.mode(livemode), fields, identifier)
