"""Stops the events of a meter that Stripe refuses one after the other for the same reason.

Such a burst is a fault of configuration that this version does not know, not a fault of each event. Without a breaker,
every report of the meter would become a dead letter.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from pipeline.billing.policy import SenderPolicy
from schemas.clock import Clock

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Breaker:
    """The last refusals of a meter: their common cause and the customers, and whether the breaker is open.

    `probe`: the identifier of the one event that may be sent although the breaker is open.
    """

    cause: str
    customers: set[str] = field(default_factory=set)
    detail: str = ""
    retry_at_ms: int | None = None
    probe: str = ""
    refusals: int = 0


class Breakers:
    """One breaker for each meter with refused events.

    A breaker opens when Stripe refuses events of `breaker_customers` customers in a row for the same cause. From time
    to time one event is let through (half-open): if Stripe takes it, the breaker closes; otherwise the wait doubles.
    Bounded by the meters, with a few customers each. A restart closes all breakers.
    """

    def __init__(self, clock: Clock, policy: SenderPolicy) -> None:
        self._clock = clock
        self._policy = policy
        self._breakers: dict[str, _Breaker] = {}

    @property
    def open(self) -> int:
        """The number of open breakers."""
        return sum(breaker.retry_at_ms is not None for breaker in self._breakers.values())

    def clear(self) -> None:
        """Close all breakers."""
        self._breakers.clear()

    def wait_ms(self, event_name: str, identifier: str) -> int:
        """How long the event must wait; 0 if it may be sent. Admits one event when the wait of the meter has ended."""
        breaker = self._breakers.get(event_name)
        if breaker is None or breaker.retry_at_ms is None or breaker.probe == identifier:
            return 0
        wait_ms = breaker.retry_at_ms - self._clock.now_ms()
        if wait_ms > 0:
            return wait_ms
        # The admission ends with the next wait, because the event may be settled or held for another reason.
        self._wait(breaker)
        breaker.probe = identifier
        return 0

    def detail(self, event_name: str) -> str:
        """Why events of the meter wait."""
        breaker = self._breakers.get(event_name)
        return breaker.detail if breaker else ""

    def refused(self, event_name: str, customer: str, cause: str, detail: str) -> bool:
        """Note that Stripe refused an event for good. Whether the breaker is open: then the event is no dead letter."""
        breaker = self._breakers.get(event_name)
        if breaker is None or breaker.cause != cause:
            breaker = self._breakers[event_name] = _Breaker(cause)
        if breaker.retry_at_ms is None:
            breaker.customers.add(customer)
        if breaker.retry_at_ms is None and len(breaker.customers) < self._policy.breaker_customers:
            return False
        if breaker.retry_at_ms is None:
            _LOG.error(
                "Stripe refuses the reports of %s one after the other, so all of the meter wait, and one is tried from "
                "time to time; correct the cause: %s",
                event_name,
                detail,
            )
            self._wait(breaker)
        elif breaker.probe:
            breaker.refusals, breaker.probe = breaker.refusals + 1, ""
            self._wait(breaker)
        breaker.detail = f"Stripe refuses the meter's reports alike: {detail}"
        return True

    def taken(self, event_name: str) -> None:
        """Note that Stripe took an event of the meter."""
        breaker = self._breakers.pop(event_name, None)
        if breaker is not None and breaker.retry_at_ms is not None:
            _LOG.warning("Stripe takes the reports of %s again", event_name)

    def _wait(self, breaker: _Breaker) -> None:
        policy = self._policy
        wait_ms = min(policy.hold_retry_ms << min(breaker.refusals, 30), policy.hold_retry_max_ms)
        breaker.retry_at_ms = self._clock.now_ms() + wait_ms
