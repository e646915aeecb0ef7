"""The meter events of one mode and their running sums.

Stripe answers a meter event with 200 and adds the event to the summaries later. Here the events stand in one list in
the order of receipt, and a mark moves along the list: the sums contain the events before the mark.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

from stripe_simulator.clockwork import Clockwork
from stripe_simulator.journal import Journal

IDENTIFIER_WINDOW_MS: Final = 24 * 3_600_000
DECIMAL_PLACES_MAX: Final = 12
# Sums stay finite as a double.
EXPONENT_MAX: Final = 30
MINUTE_S: Final = 60
HOUR_MINUTES: Final = 60
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?$")

ADD_UP: Final = "usage.add_up"
REPORT: Final = "usage.report"


@dataclass(slots=True)
class MeterEvent:
    """A meter event. `code` says why an event is rejected; `injected` is 1 if no client sent the event.

    `Usage` sets `received_ms`, `seq` (from 1) and `status`: accepted, rejected or canceled.
    """

    identifier: str
    event_name: str
    meter: str
    customer: str | None
    value: str | None
    timestamp_s: int
    code: str = ""
    injected: int = 0
    received_ms: int = 0
    seq: int = 0
    status: str = "accepted"


def number_of(value: str) -> Decimal | None:
    """The number that a meter event's value denotes, or None if the value is not a number."""
    return Decimal(value) if _NUMBER.match(value) else None


class UsageTiming(NamedTuple):
    """`lag_ms`: from the receipt of an event until the summaries contain the event. `window_ms`: the width of a
    validation window. `validation_delay_ms`: from the end of a window until its errors are reported."""

    lag_ms: int
    window_ms: int
    validation_delay_ms: int


class Usage:
    """The usage of one mode. `has_customer` serves the validation. Its jobs are `ADD_UP` and `REPORT`."""

    def __init__(
        self,
        journal: Journal,
        clockwork: Clockwork,
        name: str,
        has_customer: Callable[[str], bool],
        timing: UsageTiming,
    ) -> None:
        self.events: list[MeterEvent] = []
        self._journal = journal
        self._clockwork = clockwork
        self._name = name
        self._has_customer = has_customer
        self._timing = timing
        self._latest: dict[str, int] = {}
        self._added = 0
        self._rejected: defaultdict[int, list[MeterEvent]] = defaultdict(list)
        # By meter and customer, hour, and minute, in multiples of 10^-12.
        self._sums: defaultdict[tuple[str, str | None], dict[int, dict[int, int]]] = defaultdict(dict)
        self._operation = f"{name}.receive"
        journal.register(self._operation, self._apply_receive)
        journal.register(f"{name}.added", self._apply_added)
        journal.register(f"{name}.cancel", self._apply_cancel)

    def latest_of(self, identifier: str) -> MeterEvent | None:
        """The event of the last 24 h that has this identifier. The identifier of a rejected event stays taken."""
        event = self.events[self._latest[identifier]] if identifier in self._latest else None
        return event if event and event.received_ms > self._clockwork.now_ms() - IDENTIFIER_WINDOW_MS else None

    def receive(self, event: MeterEvent) -> MeterEvent:
        """Store an event whose identifier is free; an empty one is replaced. Returns the stored event.

        The last change of a request: a receipt is not undone.
        """
        now_ms, code = self._clockwork.now_ms(), event.code or self._judge(event)
        identifier = event.identifier or f"{len(self.events) + 1:032x}"
        start_ms = self._window_start(now_ms)
        with self._journal.transaction():
            if code and start_ms not in self._rejected:
                end_ms = start_ms + self._timing.window_ms
                arguments = {"start_ms": start_ms, "end_ms": end_ms}
                self._clockwork.schedule(end_ms + self._timing.validation_delay_ms, REPORT, arguments)
            # One job at a time: the job schedules the next one.
            if self._added == len(self.events):
                self._clockwork.schedule(now_ms + self._timing.lag_ms, ADD_UP, {})
            self._journal.change(
                self._operation, identifier, event.event_name, event.meter, event.customer, event.value,
                event.timestamp_s, code, event.injected, now_ms,
            )  # fmt: skip
        return self.events[-1]

    def cancel(self, event: MeterEvent) -> None:
        """Take an event out of the sums. The last change of a request, as `receive`."""
        with self._journal.transaction():
            self._journal.change(f"{self._name}.cancel", event.seq - 1)

    def add_up(self) -> None:
        """The job that adds the due events to the sums."""
        end, received_until_ms = self._added, self._clockwork.now_ms() - self._timing.lag_ms
        while end < len(self.events) and self.events[end].received_ms <= received_until_ms:
            end += 1
        if end > self._added:
            self._journal.change(f"{self._name}.added", end)
        if end < len(self.events):
            self._clockwork.schedule(self.events[end].received_ms + self._timing.lag_ms, ADD_UP, {})

    def rejected(self, start_ms: int) -> list[MeterEvent]:
        """The rejected events that were received in the validation window that starts at `start_ms`."""
        return [event for event in self._rejected.get(start_ms, ()) if event.status == "rejected"]

    def total(self, meter: str, customer: str, start_s: int, end_s: int) -> int:
        """The sum, in multiples of 10^-12, of the events of the minutes that begin in `[start_s, end_s)`."""
        first, last = -(-start_s // MINUTE_S), -(-end_s // MINUTE_S)
        total = 0
        for hour, minutes in self._sums.get((meter, customer), {}).items():
            if first <= hour * HOUR_MINUTES and (hour + 1) * HOUR_MINUTES <= last:
                total += sum(minutes.values())
            elif first < (hour + 1) * HOUR_MINUTES and hour * HOUR_MINUTES < last:
                total += sum(value for minute, value in minutes.items() if first <= minute < last)
        return total

    def minutes(self, meter: str, customer: str, start_s: int, end_s: int) -> list[int]:
        """The starts of the minutes with events in `[start_s, end_s)`, in seconds."""
        sums = self._sums.get((meter, customer), {})
        starts = [minute * MINUTE_S for hour in sums.values() for minute in hour]
        return [minute_s for minute_s in starts if start_s <= minute_s < end_s]

    def _window_start(self, received_ms: int) -> int:
        return received_ms // self._timing.window_ms * self._timing.window_ms

    def _judge(self, event: MeterEvent) -> str:
        """Why the event is rejected, or "" if it is accepted."""
        if not event.customer:
            return "meter_event_no_customer_defined"
        if not self._has_customer(event.customer):
            return "meter_event_customer_not_found"
        if event.value is None:
            return "meter_event_value_not_found"
        number = number_of(event.value)
        if number is None:
            return "meter_event_invalid_value"
        if -int(number.as_tuple().exponent) > DECIMAL_PLACES_MAX or number.adjusted() > EXPONENT_MAX:
            return "meter_event_value_too_many_digits"
        return ""

    def _apply_receive(self, *fields: Any) -> None:
        event = MeterEvent(*fields)
        self._latest[event.identifier] = len(self.events)
        self.events.append(event)
        event.seq = len(self.events)
        if event.code:
            event.status = "rejected"
            self._rejected[self._window_start(event.received_ms)].append(event)

    def _apply_added(self, end: int) -> None:
        for event in self.events[self._added : end]:
            if event.status == "accepted":
                self._add(event, 1)
        self._added = end

    def _apply_cancel(self, place: int) -> None:
        event = self.events[place]
        if event.status == "accepted" and place < self._added:
            self._add(event, -1)
        event.status = "canceled"

    def _add(self, event: MeterEvent, sign: int) -> None:
        minute = event.timestamp_s // MINUTE_S
        minutes = self._sums[event.meter, event.customer].setdefault(minute // HOUR_MINUTES, {})
        minutes[minute] = minutes.get(minute, 0) + sign * int(Decimal(event.value or 0).scaleb(DECIMAL_PLACES_MAX))
