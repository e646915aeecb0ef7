"""The in-memory fake of Stripe's meters: the same answers without HTTP, on the clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Final

from aggregators.meter_events import FUTURE_MAX_MS, PAST_MAX_MS
from schemas.clock import DAY_MS, HOUR_MS, SECOND_MS, Clock
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.reports import MeterEvent, MeterSummary, Rejection, SendResult, SendStatus
from sinks.stripe.answers import NO_METER
from sinks.stripe.errors import DUPLICATE_PREFIX, Answer, classify

IDENTIFIER_WINDOW_MS = DAY_MS
VALUE_DIGITS_MAX = 15


class FakeFault(StrEnum):
    """A failure of one call. `LOST_ANSWER`: the event is stored without an answer. `NO_ANSWER`: it is not stored."""

    LOST_ANSWER = "lost_answer"
    NO_ANSWER = "no_answer"
    SERVER_ERROR = "server_error"
    SERVER_ERROR_AFTER_COMMIT = "server_error_after_commit"
    RATE_LIMITED = "rate_limited"
    CONFLICT = "conflict"
    UNAUTHORIZED = "unauthorized"
    BAD_REQUEST = "bad_request"
    NO_CUSTOMER = "no_customer"
    REJECTED = "rejected"


# The answers of faults that prevent the event from being stored.
_ANSWERS: Final[Mapping[FakeFault | None, Answer]] = {
    FakeFault.NO_ANSWER: Answer(0, "no answer"),
    FakeFault.SERVER_ERROR: Answer(500, "An unknown error occurred"),
    FakeFault.RATE_LIMITED: Answer(429, "Request rate limit exceeded", "rate_limit"),
    FakeFault.CONFLICT: Answer(409, "conflict", "too_many_concurrent_requests"),
    FakeFault.NO_CUSTOMER: Answer(400, "No such customer", "resource_missing"),
    FakeFault.BAD_REQUEST: Answer(400, "Invalid request", "parameter_invalid"),
}
FaultHook = Callable[[MeterEvent], FakeFault | None]


@dataclass(slots=True)
class HeldEvent:
    """A stored meter event. `code` is the error code of a rejected event, otherwise ""."""

    event: MeterEvent
    received_ms: int
    code: str = ""


@dataclass(slots=True)
class FakeStripe:
    """`StripeMeters`, `StripeCatalog` and `StripeRejections` in memory. Stores every event that the test sends.

    `lag_ms`: the time from receipt until summaries contain an event. `fault` gives the failure of each send,
    `read_fault` whether the read call of this name fails. `conflicts` counts overlapping sends for one meter and
    customer. `inactive` has the event names of deactivated meters, `priced` those of meters with an active price.
    `is_stream`: takes events as API v2's stream does, which judges later and drops duplicates.
    """

    clock: Clock
    livemode: bool = False
    account: str = "acct_memory"
    lag_ms: int = 0
    fault: FaultHook = field(default=lambda _event: None)
    read_fault: Callable[[str], bool] = field(default=lambda _call: False)
    events: list[HeldEvent] = field(default_factory=list)
    sends: list[MeterEvent] = field(default_factory=list)
    conflicts: int = 0
    is_stream: bool = False
    key_is_valid: bool = True
    inactive: set[str] = field(default_factory=set)
    priced: set[str] = field(default_factory=set)
    _customers: set[str] = field(default_factory=set)
    _meters: set[str] = field(default_factory=set)
    _identifiers: dict[str, int] = field(default_factory=dict)
    _running: set[tuple[str, str]] = field(default_factory=set)

    def add_customer(self, identifier: str) -> None:
        """Create a customer."""
        self._customers.add(identifier)

    def add_meter(self, event_name: str) -> None:
        """Create a meter."""
        self._meters.add(event_name)

    def inject(self, event: MeterEvent) -> None:
        """Store an event that the sink did not send, received now, also if its identifier is taken."""
        self.events.append(HeldEvent(event, self.clock.now_ms()))

    async def identity(self) -> tuple[bool, str]:
        """(livemode, account id)."""
        self._check_read("identity")
        return self.livemode, self.account

    async def find_meter(self, event_name: str) -> str:
        """The id of the meter. Raises `OperatorNeeded` if it is missing or deactivated."""
        self._check_read(f"find_meter {event_name}")
        if event_name not in self._meters:
            raise OperatorNeeded(NO_METER.format(event_name=event_name))
        if event_name in self.inactive:
            raise OperatorNeeded(f"the Stripe meter of {event_name} (mtr_{event_name}) is deactivated: reactivate it")
        return f"mtr_{event_name}"

    async def create_meter(self, event_name: str, display_name: str) -> bool:
        """Create the meter if it is missing."""
        self._check_read(f"create_meter {display_name}")
        is_missing = event_name not in self._meters
        self.add_meter(event_name)
        await self.find_meter(event_name)
        return is_missing

    async def has_price(self, event_name: str) -> bool:
        """Whether the test gave the meter a price."""
        self._check_read("has_price")
        return event_name in self.priced

    async def send(self, event: MeterEvent) -> SendResult:
        """Take one meter event as Stripe would. Yields to the event loop once, so that overlapping sends conflict."""
        self.sends.append(event)
        fault = self.fault(event)
        if not self.key_is_valid or fault is FakeFault.UNAUTHORIZED:
            return classify(Answer(401, "Invalid API Key provided"), event.identifier)
        queue = (event.event_name, event.stripe_customer)
        if queue in self._running and not self.is_stream:
            self.conflicts += 1
            return classify(Answer(409, "overlapping calls", "too_many_concurrent_requests"), event.identifier)
        self._running.add(queue)
        try:
            await asyncio.sleep(0)
            answer = _ANSWERS.get(fault) or self._take(event, fault)
        finally:
            self._running.discard(queue)
        if fault in (FakeFault.LOST_ANSWER, FakeFault.SERVER_ERROR_AFTER_COMMIT):
            status = 0 if fault is FakeFault.LOST_ANSWER else 500
            answer = Answer(status, "the answer was lost")
        return classify(answer, event.identifier) if answer.status != 200 else SendResult(SendStatus.ACCEPTED)

    async def cancel(self, event_name: str, identifier: str) -> None:
        """Take the newest event of the last 24 h with this identifier out of the sums."""
        self._check_read(f"cancel {identifier}")
        since_ms = self.clock.now_ms() - IDENTIFIER_WINDOW_MS
        for stored in reversed(self.events):
            event = stored.event
            if (event.event_name, event.identifier) == (event_name, identifier) and stored.received_ms > since_ms:
                self.events.remove(stored)
                return
        raise InvalidInput("cancel[identifier]", f"No meter event of the last 24 hours has it: {identifier}")

    async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
        """The sum of the valid events older than the lag, computed as a double as at Stripe. Yields once."""
        self._check_read("summary")
        if start_s % 60 or end_s % 60 or start_s >= end_s:
            raise InvalidInput("start_time", "must be aligned with minute boundaries")
        await asyncio.sleep(0)
        if event_name not in self._meters or stripe_customer not in self._customers:
            return MeterSummary("0", 0)
        visible_ms = self.clock.now_ms() - self.lag_ms
        total = Decimal(0)
        for stored in self.events:
            event = stored.event
            inside = start_s <= event.timestamp_s < end_s and stored.received_ms <= visible_ms
            if inside and (event.event_name, event.stripe_customer) == (event_name, stripe_customer):
                total += Decimal(event.value) if not self._judge(stored) else 0
        return MeterSummary(format(Decimal(repr(float(total))), "f"), 1)

    async def hour_summary(self, event_name: str, stripe_customer: str, hour_s: int) -> MeterSummary:
        """The sum of one UTC hour, as `summary`."""
        if hour_s * SECOND_MS % HOUR_MS:
            raise InvalidInput("start_time", "must be aligned with hour boundaries")
        return await self.summary(event_name, stripe_customer, hour_s, hour_s + HOUR_MS // SECOND_MS)

    async def rejections(self, since_ms: int) -> Sequence[Rejection]:
        """One report per rejected event."""
        self._check_read("rejections")
        visible_ms = self.clock.now_ms() - self.lag_ms
        return [
            Rejection(
                report=f"evt_{index}",
                event_name=stored.event.event_name,
                code=self._judge(stored),
                errors=1,
                identifiers=(stored.event.identifier,),
                window_start_ms=stored.received_ms,
                window_end_ms=stored.received_ms + 1,
            )
            for index, stored in enumerate(self.events)
            if since_ms <= stored.received_ms <= visible_ms and self._judge(stored)
        ]

    async def close(self) -> None:
        """Nothing to release."""

    def accepted(self) -> list[HeldEvent]:
        """The valid events, without regard to the lag."""
        return [stored for stored in self.events if not self._judge(stored)]

    def _check_read(self, call: str) -> None:
        if not self.key_is_valid:
            raise Refused("the key is invalid")
        if self.read_fault(call):
            raise Transient(f"no answer to {call}")

    def _take(self, event: MeterEvent, fault: FakeFault | None) -> Answer:
        now_ms = self.clock.now_ms()
        refusal = self._refusal(event, now_ms)
        received_ms = self._identifiers.get(event.identifier)
        is_duplicate = received_ms is not None and received_ms > now_ms - IDENTIFIER_WINDOW_MS
        if is_duplicate and self.is_stream:
            return Answer(200)
        if refusal is not None and not self.is_stream:
            return refusal
        if is_duplicate:
            return Answer(400, f"{DUPLICATE_PREFIX} {event.identifier}.")
        code = "rejected" if fault is FakeFault.REJECTED else refusal.code or "no_meter" if refusal else ""
        self._identifiers[event.identifier] = now_ms
        self.events.append(HeldEvent(event, now_ms, code))
        return Answer(200)

    def _refusal(self, event: MeterEvent, now_ms: int) -> Answer | None:
        """What is wrong with an event at first sight."""
        event_ms = event.timestamp_s * SECOND_MS
        if not now_ms - PAST_MAX_MS <= event_ms <= now_ms + FUTURE_MAX_MS:
            return Answer(400, "the timestamp is out of bounds", "timestamp_out_of_bounds")
        if len(event.value.lstrip("-").replace(".", "").lstrip("0")) > VALUE_DIGITS_MAX:
            return Answer(400, f"more than {VALUE_DIGITS_MAX} digits", "meter_event_value_too_many_digits")
        if event.event_name not in self._meters or event.event_name in self.inactive:
            return Answer(400, f"No active meter found for event name {event.event_name}.")
        return None

    def _judge(self, stored: HeldEvent) -> str:
        if stored.code:
            return stored.code
        if stored.event.stripe_customer not in self._customers:
            return "meter_event_customer_not_found"
        try:
            return "" if Decimal(stored.event.value).is_finite() else "meter_event_invalid_value"
        except InvalidOperation:
            return "meter_event_invalid_value"
