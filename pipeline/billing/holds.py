"""Which meters and customers Stripe refused, and when each is tried again."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.billing.policy import SenderPolicy
from schemas.clock import Clock


class Held(NamedTuple):
    """Why no event of a meter or customer is sent, when Stripe is asked again, and how often it refused."""

    detail: str
    retry_at_ms: int
    refusals: int = 1


class Holds:
    """The refused meters and customers of one process. Bounded by the meters and customers of pending intents."""

    def __init__(self, clock: Clock, policy: SenderPolicy) -> None:
        self._clock = clock
        self._policy = policy
        self._meters: dict[str, Held] = {}
        self._customers: dict[tuple[str, str], Held] = {}

    def clear(self) -> None:
        """Try everything again."""
        self._meters.clear()
        self._customers.clear()

    def meter(self, event_name: str) -> Held | None:
        """The hold of a meter, or None if the meter may be tried."""
        return self._waiting(self._meters.get(event_name))

    def hold_meter(self, event_name: str, detail: str) -> Held:
        """Hold a meter for a while."""
        held = self._meters[event_name] = Held(detail, self._clock.now_ms() + self._policy.hold_retry_ms)
        return held

    def release_meter(self, event_name: str) -> None:
        """Stripe takes events of the meter."""
        self._meters.pop(event_name, None)

    def customer(self, event_name: str, customer: str) -> Held | None:
        """The hold of a meter's customer, or None if one of the customer's events may be tried."""
        return self._waiting(self._customers.get((event_name, customer)))

    def hold_customer(self, event_name: str, customer: str, detail: str) -> Held:
        """Hold a meter's customer twice as long as the last time."""
        key, policy = (event_name, customer), self._policy
        refusals = self._customers[key].refusals + 1 if key in self._customers else 1
        wait_ms = min(policy.hold_retry_ms << min(refusals - 1, 30), policy.hold_retry_max_ms)
        held = self._customers[key] = Held(detail, self._clock.now_ms() + wait_ms, refusals)
        return held

    def release_customer(self, event_name: str, customer: str) -> None:
        """Stripe took an event of the customer, or the customer's event is settled otherwise."""
        self._customers.pop((event_name, customer), None)

    def _waiting(self, held: Held | None) -> Held | None:
        return held if held is not None and held.retry_at_ms > self._clock.now_ms() else None
