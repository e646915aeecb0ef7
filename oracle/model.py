"""Usage counted naively: dicts, exact for ever, no window, no flush, no state to recover.

Written from docs/invariants.md (I1 to I9, S1 to S11) alone. Times are int milliseconds UTC (`*_ms`) or
microseconds (`*_us`), quantities ints of minor units. Reasons are the texts of `schemas.reasons.Reason`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from oracle.accounts import Accounts, Policy
from oracle.rules import (
    CONTROL_HEADER,
    HOUR_MS,
    Contribution,
    Event,
    RejectedError,
    canonical,
    contributions,
    decode,
    event_of,
    partition_of,
    policy_of,
    require_home,
    require_in_time,
)

Period = tuple[int, int]
TotalKey = tuple[str, str, Period]
CellKey = tuple[str, str, Period, int, str, int]
COUNTERS = ("received", "counted", "duplicate", "unmetered", "late", "rejected", "deferred")


class Place(NamedTuple):
    """Where an event stands in the log; a record that is rejected as one stands at index 0."""

    partition: int
    offset: int
    event_index: int


class Ruling(NamedTuple):
    """What became of one event. `outcome` is one of `COUNTERS` but `received`; account and id are empty if unknown."""

    outcome: str
    reason: str | None = None
    account: str = ""
    id: str = ""


class Duplicate(NamedTuple):
    """An event whose identity was taken before it; `conflict` where its type or data differ from the first's."""

    place: Place
    account: str
    id: str
    conflict: bool


class _Deferred(NamedTuple):
    """An event older than the window, until its decision; what it gives is settled where it arrived."""

    event: Event
    fed: list[Contribution]


class _Counted(NamedTuple):
    """An event where it counts, with the grace in force there."""

    place: Place
    event: Event
    fed: Sequence[Contribution]
    log_ms: int
    grace_ms: int


class _Winner(NamedTuple):
    """What the first arrival of an identity was. `period` is the one it was counted in (None: unmetered),
    `time_us` is set where the order of event times decides, for latest."""

    event: Event
    period: Period | None
    time_us: int | None

    @property
    def payload(self) -> tuple[str, str]:
        """What a repeat must say again: type and data. Only worked out where an identity comes twice."""
        return self.event.type, canonical(self.event.data)


class Oracle:
    """The model of all partitions of one log.

    `meter_set` is the JSON form of `schemas.meters.MeterSet`, absent fields taking its defaults; it holds on every
    partition until `set_meter_set`. Control records are told by plain calls, in log order with `feed`; each takes the
    record's append time where it is known, since every record moves stream time. Signatures are not
    checked here.
    """

    def __init__(self, meter_set: Mapping[str, Any], *, partitions: int = 1) -> None:
        self.partitions = partitions
        self.stream_times: dict[int, int] = {}
        self.counters: dict[int, dict[str, int]] = {p: dict.fromkeys(COUNTERS, 0) for p in range(partitions)}
        self.rulings: dict[Place, Ruling] = {}
        self.totals: dict[TotalKey, int] = {}
        self.cells: dict[CellKey, int] = {}
        self.duplicates: list[Duplicate] = []
        self.conflicts: set[tuple[str, str]] = set()
        self.kept_out: set[Place] = set()
        """Deferred events whose decision found their period closed: they count nowhere and keep their identity."""
        self.order_sensitive: set[tuple[str, str]] = set()
        """Identities whose arrivals differ so that the totals depend on which came first."""
        self._meter_sets: dict[int, Mapping[str, Any]] = dict.fromkeys(range(partitions), meter_set)
        self.accounts = Accounts()
        self._counted: dict[str, list[_Counted]] = defaultdict(list)
        self._ends: dict[tuple[str, int], int] = {}
        self._winners: dict[tuple[str, str], _Winner] = {}
        self._deferred: dict[Place, _Deferred] = {}
        self._distinct: dict[TotalKey, set[str]] = defaultdict(set)
        self._latest: dict[TotalKey | CellKey, tuple[int, int, int]] = {}
        self._aggregations: dict[str, str] = {}
        self._offsets: dict[int, int] = {}

    def feed(
        self, partition: int, offset: int, timestamp_ms: int, value: bytes, headers: Iterable[tuple[str, bytes]] = ()
    ) -> None:
        """Take one record as the log holds it.

        A record with the control header is taken as forged: genuine ones are told by the other methods.
        Raises ValueError where `offset` is not above the partition's last one.
        """
        if offset <= self._offsets.get(partition, -1):
            raise ValueError(f"offset {offset} of partition {partition} was fed already: feed records in order")
        self._offsets[partition] = offset
        self._advance(partition, timestamp_ms)
        if any(name == CONTROL_HEADER for name, _ in headers):
            self._conclude(Place(partition, offset, 0), Ruling("rejected", "forged_control"))
            return
        try:
            events = decode(value)
        except RejectedError as rejected:
            self._conclude(Place(partition, offset, 0), Ruling("rejected", rejected.reason))
            return
        for index, body in enumerate(events):
            self.take(Place(partition, offset, index), body)

    def tick(self, partition: int, timestamp_ms: int) -> None:
        """A tick record: stream time moves on, nothing else."""
        self._advance(partition, timestamp_ms)

    def set_meter_set(self, partition: int, meter_set: Mapping[str, Any], timestamp_ms: int | None = None) -> None:
        """A meter set record: in force on this partition from here on."""
        self._advance(partition, timestamp_ms)
        self._meter_sets[partition] = meter_set

    def bind(
        self,
        partition: int,
        account: str,
        binding: Mapping[str, Any],
        timestamp_ms: int | None = None,
        offset: int = -1,
    ) -> None:
        """A binding record, at an offset. It holds beyond everything counted so far, or, where it asks for an instant
        in the past and may cut there, from that instant once `restatement` was told; events of the account wait from
        `begin_restatement` until then as if they were older than the window."""
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        self.accounts.bind(account, binding, *self._there(partition), offset)

    def bind_from_the_start(self, account: str, known: Sequence[Mapping[str, Any]]) -> None:
        """Bindings that are in force before the first event."""
        self.accounts.from_the_start(account, known)

    def close(
        self, partition: int, account: str, instant_ms: int, timestamp_ms: int | None = None, offset: int = -1
    ) -> None:
        """A close record: the account's period that contains `instant_ms` is closed for whatever comes after."""
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        self.accounts.close(account, instant_ms, offset, len(self._counted[account]))

    def begin_restatement(
        self, partition: int, account: str, answers: int, offset: int, timestamp_ms: int | None = None
    ) -> None:
        """A record at an offset that begins the restatement asked for at offset `answers`: from here on events wait."""
        self._advance(partition, timestamp_ms)
        self.accounts.begin(account, answers, offset, *self._there(partition))

    def restatement(
        self, partition: int, account: str, offset: int, *, declined: bool = False, timestamp_ms: int | None = None
    ) -> None:
        """A restatement record on the one at `offset`, which began it: all that was counted of the account is counted
        again, each event as if the binding had stood before it. Anything else, and a second time, changes nothing."""
        self._advance(partition, timestamp_ms)
        log_ms, policy = self._there(partition)
        if not self.accounts.answer(account, offset, declined=declined, log_ms=log_ms, policy=policy):
            return
        for values in (self.totals, self.cells, self._distinct, self._latest, self._ends):
            _forget(values, account)
        counted, self._counted[account] = self._counted[account], []
        for number, each in enumerate(counted):
            at_ms = each.event.time_us // 1000
            period, _ = self.accounts.counting_period(account, at_ms, each.log_ms, each.grace_ms, number)
            self._count_all(each.place, each.event, each.fed, period, each.log_ms, each.grace_ms)

    def _there(self, partition: int) -> tuple[int, Policy]:
        """Stream time, and the policy of the meter set in force."""
        meter_set = self._meter_sets[partition]
        policy = Policy(policy_of(meter_set, "future_ms"), policy_of(meter_set, "grace_ms"))
        return self.stream_times.get(partition, 0), policy

    def period(self, account: str, instant_ms: int) -> Period:
        """The account's period containing the instant, by the bindings known so far."""
        return self.accounts.period(account, instant_ms)

    def counter_sums(self) -> dict[str, int]:
        """The counters over all partitions."""
        return {name: sum(counters[name] for counters in self.counters.values()) for name in COUNTERS}

    def by_dimension(self) -> dict[tuple[str, str, Period, str], int]:
        """(account, meter, period, dimensions) → value, over hours and arrival buckets.

        Without unique meters: which dimensions saw a value first depends on the order of arrival.
        """
        merged: dict[tuple[str, str, Period, str], int] = {}
        ranks: dict[tuple[str, str, Period, str], tuple[int, int, int]] = {}
        for cell, value in self.cells.items():
            account, meter, period, _, dimensions, _ = cell
            key = (account, meter, period, dimensions)
            match self._aggregations[meter]:
                case "count" | "sum":
                    merged[key] = merged.get(key, 0) + value
                case "max":
                    merged[key] = max(merged.get(key, value), value)
                case "min":
                    merged[key] = min(merged.get(key, value), value)
                case "latest" if self._latest[cell] >= ranks.get(key, self._latest[cell]):
                    merged[key], ranks[key] = value, self._latest[cell]
        return merged

    def _require_home(self, partition: int, account: str) -> None:
        if partition != partition_of(account, self.partitions):
            raise ValueError(f"{account} is not of partition {partition}: its control records go to its own only")

    def _advance(self, partition: int, timestamp_ms: int | None) -> None:
        if timestamp_ms is not None:
            self.stream_times[partition] = max(self.stream_times.get(partition, timestamp_ms), timestamp_ms)

    def _conclude(self, place: Place, ruling: Ruling) -> None:
        self.rulings[place] = ruling
        self.counters[place.partition]["received"] += 1
        self.counters[place.partition][ruling.outcome] += 1

    def take(self, place: Place, body: object) -> None:
        """Judge one decoded event at its place; stream time is as the last call left it."""
        log_ms = self.stream_times[place.partition]
        meter_set = self._meter_sets[place.partition]
        account, identifier = _names(body)
        try:
            event = event_of(body, policy_of(meter_set, "event_bytes_max"))
            require_home(event.account, place.partition, self.partitions)
            require_in_time(event, log_ms, policy_of(meter_set, "future_ms"))
            fed = contributions(event, meter_set)
        except RejectedError as rejected:
            self._conclude(place, Ruling("rejected", rejected.reason, account, identifier))
            return
        # An event may come ahead of its time, and its repetition a window after that.
        known_ms = max(0, policy_of(meter_set, "window_ms") - policy_of(meter_set, "future_ms"))
        if event.time_us < (log_ms - known_ms) * 1000 or (fed and self.accounts.is_waiting(event.account, log_ms)):
            self._defer(place, event, fed)
            return
        period = self._counting_period(event, fed, log_ms, policy_of(meter_set, "grace_ms")) if fed else None
        identity = (account, identifier)
        if fed and period is None and identity not in self._winners:
            self._conclude(place, Ruling("late", "period_closed", account, identifier))
            return
        ordered = any(contribution.aggregation == "latest" for contribution in fed)
        arrival = _Winner(event, period, event.time_us if ordered else None)
        if self._is_repeated(place, arrival):
            return
        if period is not None:
            self._count_all(place, event, fed, period, log_ms, policy_of(meter_set, "grace_ms"))
        self._conclude(place, Ruling("counted" if fed else "unmetered", None, account, identifier))

    def _is_repeated(self, place: Place, arrival: _Winner) -> bool:
        """Whether the identity was taken before; it is from now on."""
        identity = (arrival.event.account, arrival.event.id)
        winner = self._winners.setdefault(identity, arrival)
        if winner is arrival:
            return False
        conflict = winner.payload != arrival.payload
        self.duplicates.append(Duplicate(place, *identity, conflict))
        if conflict:
            self.conflicts.add(identity)
        if conflict or winner[1:] != arrival[1:]:
            self.order_sensitive.add(identity)
        self._conclude(place, Ruling("duplicate", None, *identity))
        return True

    def _defer(self, place: Place, event: Event, fed: list[Contribution]) -> None:
        """An event older than the window has its identity from here on, and counts where its decision stands.

        A repeat is a duplicate at once. The pipeline may have to defer it first; with its decision it says the same.
        """
        if not self._is_repeated(place, _Winner(event, None, event.time_us)):
            self._deferred[place] = _Deferred(event, fed)
            self._conclude(place, Ruling("deferred", None, event.account, event.id))

    def resolve(self, place: Place, offset: int, event_index: int = 0, timestamp_ms: int | None = None) -> None:
        """A decision on the event at `place` stands at (offset, event_index) of its partition.

        What it says is worked out here. It holds for what is deferred; for anything else, and a second time, it changes
        nothing. Meters that were taken away since the event arrived get nothing.
        """
        self._advance(place.partition, timestamp_ms)
        held = self._deferred.get(place)
        waits = held and self.accounts.is_waiting(held.event.account, self.stream_times.get(place.partition, 0))
        deferred = None if waits else self._deferred.pop(place, None)
        if deferred is None:
            return
        event, fed = deferred
        log_ms, meter_set = self.stream_times[place.partition], self._meter_sets[place.partition]
        outcome, reason = "unmetered", None
        if fed:
            period = self._counting_period(event, fed, log_ms, policy_of(meter_set, "grace_ms"))
            known = {meter["slug"] for meter in meter_set["meters"]}
            left = [contribution for contribution in fed if contribution.meter in known]
            if period is None:
                outcome, reason = "late", "period_closed"
                self.kept_out.add(place)
            elif left:
                outcome = "counted"
                at = Place(place.partition, offset, event_index)
                self._count_all(at, event, left, period, log_ms, policy_of(meter_set, "grace_ms"))
        self.rulings[place] = Ruling(outcome, reason, event.account, event.id)
        self.counters[place.partition]["deferred"] -= 1
        self.counters[place.partition][outcome] += 1

    def _count_all(
        self,
        place: Place,
        event: Event,
        fed: Sequence[Contribution],
        period: Period,
        log_ms: int,
        grace_ms: int,
    ) -> None:
        self._counted[event.account].append(_Counted(place, event, fed, log_ms, grace_ms))
        # A period is known by its start: a binding may cut its end while it runs.
        named = (period[0], self._ends.setdefault((event.account, period[0]), period[1]))
        for contribution in fed:
            self._count(place, event, contribution, named, log_ms)

    def _counting_period(self, event: Event, fed: Sequence[Contribution], log_ms: int, grace_ms: int) -> Period | None:
        """The period the event counts in; None where it is closed and one of its meters says quarantine."""
        period, late = self.accounts.counting_period(event.account, event.time_us // 1000, log_ms, grace_ms)
        return None if late and any(contribution.quarantine for contribution in fed) else period

    def _count(self, place: Place, event: Event, contribution: Contribution, period: Period, log_ms: int) -> None:
        meter, aggregation = contribution.meter, contribution.aggregation
        self._aggregations[meter] = aggregation
        total: TotalKey = (event.account, meter, period)
        hour_ms = event.time_us // 1000 // HOUR_MS * HOUR_MS
        cell: CellKey = (*total, hour_ms, contribution.dimensions, log_ms // HOUR_MS * HOUR_MS)
        if aggregation == "unique":
            first_sight = contribution.text not in self._distinct[total]
            self._distinct[total].add(contribution.text)
            self.totals[total] = len(self._distinct[total])
            self.cells[cell] = self.cells.get(cell, 0) + first_sight
            return
        amount, rank = contribution.minor, (event.time_us, place.offset, place.event_index)
        match aggregation:
            case "count" | "sum":
                self.totals[total] = self.totals.get(total, 0) + amount
                self.cells[cell] = self.cells.get(cell, 0) + amount
            case "max":
                self.totals[total] = max(self.totals.get(total, amount), amount)
                self.cells[cell] = max(self.cells.get(cell, amount), amount)
            case "min":
                self.totals[total] = min(self.totals.get(total, amount), amount)
                self.cells[cell] = min(self.cells.get(cell, amount), amount)
            case "latest":
                if rank >= self._latest.get(total, rank):
                    self._latest[total], self.totals[total] = rank, amount
                if rank >= self._latest.get(cell, rank):
                    self._latest[cell], self.cells[cell] = rank, amount
            case _:
                raise ValueError(f"{meter}: no aggregation is called {aggregation}")


def _names(body: object) -> tuple[str, str]:
    """Account and id as far as they can be read."""
    if not isinstance(body, dict):
        return "", ""
    account, identifier = body.get("subject"), body.get("id")
    return account if isinstance(account, str) else "", identifier if isinstance(identifier, str) else ""


def _forget(values: dict[Any, Any], account: str) -> None:
    for key in [key for key in values if key[0] == account]:
        del values[key]
