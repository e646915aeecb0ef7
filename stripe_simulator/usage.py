"""The meter events of one mode, their validation after the answer, and running sums.

Stripe answers a meter event with 200, validates it later and adds it to the summaries later still. Here the events
stand in one list in the order of receipt; two marks move along it, one for the validation and one for the sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final, NamedTuple

from stripe_simulator.clockwork import Clockwork
from stripe_simulator.journal import Journal

IDENTIFIER_WINDOW_MS: Final = 24 * 3_600_000
DECIMAL_PLACES_MAX: Final = 12
# Sums stay finite as a double.
EXPONENT_MAX: Final = 30
MINUTE_S: Final = 60
HOUR_S: Final = 3_600
WINDOW_S: Final = {"hour": HOUR_S, "day": 24 * HOUR_S}

VALIDATE: Final = "usage.validate"
ADD_UP: Final = "usage.add_up"
REPORT: Final = "usage.report"


@dataclass(slots=True)
class MeterEvent:
    """A received meter event. `status` is received, accepted or rejected; `code` says why an event is rejected."""

    seq: int
    identifier: str
    event_name: str
    meter: str
    customer: str | None
    value: str | None
    timestamp_s: int
    received_ms: int
    code: str = ""
    injected: int = 0
    status: str = "received"

    def row(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return asdict(self)


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


def parts_of(value: str) -> Decimal | None:
    """The number that a meter event's value denotes, or None if it is not a finite number."""
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


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

    def is_taken(self, identifier: str, now_ms: int) -> bool:
        """Whether an event of the last 24 h has this identifier. The identifier of a rejected event stays taken."""
        place = self._latest.get(identifier)
        return place is not None and self.events[place].received_ms > now_ms - IDENTIFIER_WINDOW_MS

    def latest_of(self, identifier: str) -> MeterEvent | None:
        """The latest event with this identifier."""
        place = self._latest.get(identifier)
        return None if place is None else self.events[place]

    def receive(
        self,
        identifier: str,
        event_name: str,
        meter: str,
        customer: str | None,
        value: str | None,
        timestamp_s: int,
        *,
        code: str = "",
        injected: bool = False,
    ) -> MeterEvent:
        """Add an event whose identifier is free. With a `code` the validation rejects the event.

        The last change of a request: a receipt is not undone.
        """
        with self._journal.transaction():
            self._journal.change(
                self._operation, identifier, event_name, meter, customer, value, timestamp_s,
                self._clockwork.now_ms(), code, int(injected),
            )  # fmt: skip
            # One job at a time for each mark: the job schedules the next one.
            before = len(self.events) - 1
            if self._validated == before and self._timing.patience_ms < self._timing.lag_ms:
                self._schedule(VALIDATE)
            if self._added == before:
                self._schedule(ADD_UP)
        return self.events[before]

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
        known = self._rejected.keys() if not codes else set(self._rejected)
        if end > self._validated:
            self._journal.change(f"{self._name}.validated", end, codes)
        for start_ms in sorted(self._rejected.keys() - known) if codes else ():
            due_ms = start_ms + self._timing.window_ms + self._timing.validation_delay_ms
            self._clockwork.schedule(
                due_ms, REPORT, {"start_ms": start_ms, "end_ms": start_ms + self._timing.window_ms}
            )
        end = self._due(self._added, now_ms - self._timing.lag_ms)
        if end > self._added:
            self._journal.change(f"{self._name}.added", end)
        if (self._validated if kind == VALIDATE else self._added) < len(self.events):
            self._schedule(kind)

    def rejected(self, start_ms: int) -> list[MeterEvent]:
        """The rejected events that were received in the validation window that starts at `start_ms`."""
        return self._rejected.get(start_ms, [])

    def cells(self, meter: str, customer: str, start_s: int, end_s: int) -> Iterable[tuple[int, Cell]]:
        """(start of an hour, sums) over `[start_s, end_s)`, whose ends are whole minutes, in order of time."""
        hours = self._hours.get((meter, customer), {})
        first = start_s // HOUR_S
        spanned: Iterable[int] = range(first, -(-end_s // HOUR_S))
        if -(-end_s // HOUR_S) - first > len(hours):
            spanned = sorted(hour for hour in hours if first <= hour < -(-end_s // HOUR_S))
        for hour in spanned:
            if hour not in hours:
                continue
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
        number = parts_of(event.value)
        if number is None:
            return "meter_event_invalid_value"
        exponent = number.as_tuple().exponent
        if isinstance(exponent, int) and (-exponent > DECIMAL_PLACES_MAX or number.adjusted() > EXPONENT_MAX):
            return "meter_event_value_too_many_digits"
        return ""

    def _apply_receive(
        self,
        identifier: str,
        event_name: str,
        meter: str,
        customer: str | None,
        value: str | None,
        timestamp_s: int,
        received_ms: int,
        code: str,
        injected: int,
    ) -> None:
        place = len(self.events)
        self.events.append(
            MeterEvent(
                place + 1, identifier, event_name, meter, customer, value, timestamp_s, received_ms, code, injected
            )
        )
        self._latest[identifier] = place

    def _apply_validated(self, end: int, codes: dict[str, str]) -> None:
        for place in range(self._validated, end):
            event = self.events[place]
            event.code = codes.get(str(place), "")
            event.status = "rejected" if event.code else "accepted"
            if event.code:
                self._rejected.setdefault(
                    event.received_ms // self._timing.window_ms * self._timing.window_ms, []
                ).append(event)
        self._validated = end

    def _apply_added(self, end: int) -> None:
        for place in range(self._added, end):
            event = self.events[place]
            if event.status != "accepted" or event.customer is None or event.value is None:
                continue
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
        self._added = end
