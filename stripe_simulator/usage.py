"""The meter events of one mode, their validation after the answer, and running sums.

Stripe answers a meter event with 200, validates it later and adds it to the summaries later still. Here the events
stand in one list in the order of receipt; two marks move along it, one for the validation and one for the sums.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
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
HOUR_S: Final = 3_600
_NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?$")
WINDOW_S: Final = {"hour": HOUR_S, "day": 24 * HOUR_S}

VALIDATE: Final = "usage.validate"
ADD_UP: Final = "usage.add_up"
REPORT: Final = "usage.report"


@dataclass(slots=True)
class MeterEvent:
    """A meter event. `code` says why an event is or will be rejected; `injected` is 1 if no client sent the event.

    `Usage` sets `received_ms`, `seq` (from 1) and `status`: received, accepted, rejected or canceled.
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
    status: str = "received"


@dataclass(slots=True)
class Cell:
    """What the events of a span add up to. Values are multiples of 10^-12.

    `last` is the event with the latest timestamp, `newest` the one that was received last: (order, timestamp, value).
    """

    total: int = 0
    count: int = 0
    last: tuple[int, int, int] = (-1, 0, 0)
    newest: tuple[int, int, int] = (-1, 0, 0)

    def add(self, other: Cell) -> None:
        """Add the events of another cell."""
        self.total += other.total
        self.count += other.count
        self.last = max(self.last, other.last, key=lambda entry: (entry[1], entry[0]) if entry[0] >= 0 else (-1, -1))
        self.newest = max(self.newest, other.newest)


class _Hour:
    """The sums of one hour, whole and by minute."""

    __slots__ = ("minutes", "whole")

    def __init__(self) -> None:
        self.whole = Cell()
        self.minutes: dict[int, Cell] = {}


def number_of(value: str) -> Decimal | None:
    """The number that a meter event's value denotes, or None if the value is not a number."""
    return Decimal(value) if _NUMBER.match(value) else None


class UsageTiming(NamedTuple):
    """`lag_ms`: from the receipt of an event until the summaries contain the event. `window_ms`: the width of a
    validation window. `validation_delay_ms`: from the end of a window until its errors are reported."""

    lag_ms: int
    window_ms: int
    validation_delay_ms: int

    @property
    def patience_ms(self) -> int:
        """From the receipt of an event until its validation."""
        return min(self.lag_ms, self.validation_delay_ms)


class Usage:
    """The usage of one mode. `customer_exists` serves the validation. Its jobs are `VALIDATE`, `ADD_UP`, `REPORT`."""

    def __init__(
        self,
        journal: Journal,
        clockwork: Clockwork,
        name: str,
        customer_exists: Callable[[str], bool],
        timing: UsageTiming,
    ) -> None:
        self.events: list[MeterEvent] = []
        self._journal = journal
        self._clockwork = clockwork
        self._name = name
        self._customer_exists = customer_exists
        self._timing = timing
        self._latest: dict[str, int] = {}
        self._validated = 0
        self._added = 0
        self._rejected: dict[int, list[MeterEvent]] = {}
        self._hours: defaultdict[tuple[str, str], dict[int, _Hour]] = defaultdict(dict)
        self._operation = f"{name}.receive"
        journal.register(self._operation, self._apply_receive)
        journal.register(f"{name}.validated", self._apply_validated)
        journal.register(f"{name}.added", self._apply_added)
        journal.register(f"{name}.cancel", self._apply_cancel)

    def is_taken(self, identifier: str, now_ms: int) -> bool:
        """Whether an event of the last 24 h has this identifier. The identifier of a rejected event stays taken."""
        place = self._latest.get(identifier)
        return place is not None and self.events[place].received_ms > now_ms - IDENTIFIER_WINDOW_MS

    def latest_of(self, identifier: str) -> MeterEvent | None:
        """The latest event with this identifier."""
        place = self._latest.get(identifier)
        return None if place is None else self.events[place]

    def receive(self, event: MeterEvent) -> MeterEvent:
        """Add an event whose identifier is free. The last change of a request: a receipt is not undone."""
        with self._journal.transaction():
            self._journal.change(
                self._operation, event.identifier, event.event_name, event.meter, event.customer, event.value,
                event.timestamp_s, event.code, event.injected, self._clockwork.now_ms(),
            )  # fmt: skip
            # One job at a time for each mark: the job schedules the next one.
            before = len(self.events) - 1
            if self._validated == before and self._timing.patience_ms < self._timing.lag_ms:
                self._schedule(VALIDATE)
            if self._added == before:
                self._schedule(ADD_UP)
        return self.events[before]

    def cancel(self, event: MeterEvent) -> None:
        """Take an event out of the sums. The last change of a request, as `receive`."""
        with self._journal.transaction():
            self._journal.change(f"{self._name}.cancel", event.seq - 1)

    def set_lag(self, lag_ms: int) -> None:
        """Change the lag of the summaries for all events that the summaries do not contain yet."""
        self._timing = self._timing._replace(lag_ms=lag_ms)
        if self._added < len(self.events):
            self._schedule(VALIDATE)
            self._schedule(ADD_UP)

    def settle(self, kind: str) -> None:
        """A job: validate the due events, then add the due events to the sums."""
        now_ms = self._clockwork.now_ms()
        end = self._due(self._validated, now_ms - self._timing.patience_ms)
        codes = {str(place): code for place in range(self._validated, end) if (code := self._judge(self.events[place]))}
        reported = set(self._rejected) if codes else set()
        if end > self._validated:
            self._journal.change(f"{self._name}.validated", end, codes)
        for start_ms in sorted(self._rejected.keys() - reported) if codes else ():
            end_ms = start_ms + self._timing.window_ms
            arguments = {"start_ms": start_ms, "end_ms": end_ms}
            self._clockwork.schedule(end_ms + self._timing.validation_delay_ms, REPORT, arguments)
        end = self._due(self._added, now_ms - self._timing.lag_ms)
        if end > self._added:
            self._journal.change(f"{self._name}.added", end)
        self._schedule(kind)

    def rejected(self, start_ms: int) -> list[MeterEvent]:
        """The rejected events that were received in the validation window that starts at `start_ms`."""
        return self._rejected.get(start_ms, [])

    def cells(self, meter: str, customer: str, start_s: int, end_s: int) -> Iterable[tuple[int, Cell]]:
        """(start of an hour, sums) over `[start_s, end_s)`, whose ends are whole minutes, in order of time."""
        hours = self._hours.get((meter, customer), {})
        first, last = start_s // HOUR_S, (end_s - 1) // HOUR_S
        for hour in sorted(hour for hour in hours if first <= hour <= last):
            if start_s <= hour * HOUR_S and (hour + 1) * HOUR_S <= end_s:
                yield hour * HOUR_S, hours[hour].whole
                continue
            cell = Cell()
            for minute, part in hours[hour].minutes.items():
                if start_s <= minute * MINUTE_S < end_s:
                    cell.add(part)
            if cell.count:
                yield hour * HOUR_S, cell

    def _due(self, place: int, received_until_ms: int) -> int:
        while place < len(self.events) and self.events[place].received_ms <= received_until_ms:
            place += 1
        return place

    def _schedule(self, kind: str) -> None:
        place = self._validated if kind == VALIDATE else self._added
        if place < len(self.events):
            wait_ms = self._timing.patience_ms if kind == VALIDATE else self._timing.lag_ms
            self._clockwork.schedule(self.events[place].received_ms + wait_ms, kind, {})

    def _judge(self, event: MeterEvent) -> str:
        """Why the event is rejected, or "" if it is accepted."""
        if event.code:
            return event.code
        if not event.customer:
            return "meter_event_no_customer_defined"
        if not self._customer_exists(event.customer):
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
        event.seq = len(self.events) + 1
        self._latest[event.identifier] = len(self.events)
        self.events.append(event)

    def _apply_validated(self, end: int, codes: dict[str, str]) -> None:
        for place in range(self._validated, end):
            event = self.events[place]
            if event.status == "canceled":
                continue
            event.code = codes.get(str(place), "")
            event.status = "rejected" if event.code else "accepted"
            if event.code:
                start_ms = event.received_ms // self._timing.window_ms * self._timing.window_ms
                self._rejected.setdefault(start_ms, []).append(event)
        self._validated = end

    def _apply_added(self, end: int) -> None:
        for place in range(self._added, end):
            self._add(place)
        self._added = end

    def _add(self, place: int) -> None:
        event = self.events[place]
        if event.status != "accepted" or event.customer is None or event.value is None:
            return
        hours = self._hours[event.meter, event.customer]
        hour = hours.get(event.timestamp_s // HOUR_S)
        if hour is None:
            hour = hours[event.timestamp_s // HOUR_S] = _Hour()
        value = int(Decimal(event.value).scaleb(DECIMAL_PLACES_MAX))
        entry = (place, event.timestamp_s, value)
        cell = Cell(value, 1, entry, entry)
        hour.whole.add(cell)
        minute = hour.minutes.get(event.timestamp_s // MINUTE_S)
        if minute is None:
            hour.minutes[event.timestamp_s // MINUTE_S] = cell
        else:
            minute.add(cell)

    def _apply_cancel(self, place: int) -> None:
        """A cell keeps only its last value, so the customer's events are added up again."""
        event = self.events[place]
        event.status = "canceled"
        self._hours.pop((event.meter, event.customer or ""), None)
        for number, other in enumerate(self.events[: self._added]):
            if (other.meter, other.customer) == (event.meter, event.customer):
                self._add(number)
