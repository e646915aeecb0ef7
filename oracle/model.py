"""A naive count of usage in dicts: exact, without dedup window, flush or recovery.

Written only from docs/invariants.md (I1 to I10, S1 to S13). Times are int milliseconds UTC (`*_ms`) or
microseconds (`*_us`), quantities are ints of minor units. Reasons are values of `schemas.reasons.Reason`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oracle.accounts import Accounts, Policy
from oracle.records import Accepted, Counted, Deferred, Duplicate, Place, Report, Ruling, Winner
from oracle.rules import (
    CONTROL_HEADER,
    HOUR_MS,
    Contribution,
    Event,
    RejectedError,
    contributions,
    decode,
    event_of,
    levels_of,
    partition_of,
    policy_of,
    require_home,
    require_in_time,
)

Period = tuple[int, int]
TotalKey = tuple[str, str, Period]
CellKey = tuple[str, str, Period, int, str, int]
_NO_RANK = (-(1 << 62), -1, -1)
COUNTERS = ("received", "counted", "duplicate", "unmetered", "late", "rejected", "deferred")


class Oracle:
    """The model of all partitions of one log.

    `meter_set` is the JSON form of `schemas.meters.MeterSet`, with defaults for missing fields. It applies to a
    partition until `set_meter_set`. The caller passes each control record with a method, in log order with `feed`, and
    passes the append time if known, because every record moves stream time. Signatures are not checked.
    """

    def __init__(self, meter_set: Mapping[str, Any], *, partitions: int = 1) -> None:
        self.partitions = partitions
        self.stream_times: dict[int, int] = {}
        self.counters: dict[int, dict[str, int]] = {p: dict.fromkeys(COUNTERS, 0) for p in range(partitions)}
        self.rulings: dict[Place, Ruling] = {}
        self.totals: dict[TotalKey, int] = {}
        self.cells: dict[CellKey, int] = {}
        self.last: dict[CellKey, Place] = {}
        """Where the last event stands, or its dedup decision, that contributed to a cell."""
        self.reports: dict[tuple[TotalKey, int], Report] = {}
        """The report entries, by the start of the report bucket, of accounts without a restatement."""
        self.duplicates: list[Duplicate] = []
        self.conflicts: set[tuple[str, str]] = set()
        self.accepted: dict[tuple[str, str], Accepted] = {}
        """The counted events, by identity."""
        self.kept_out: set[Place] = set()
        """Deferred events whose period was closed at the dedup decision: not counted, but still first arrivals."""
        self.order_sensitive: set[tuple[str, str]] = set()
        """Identities with different arrivals, for which totals depend on the order of arrival."""
        self._meter_sets: dict[int, Mapping[str, Any]] = dict.fromkeys(range(partitions), meter_set)
        self.accounts = Accounts()
        self.flushed: dict[tuple[str, int], dict[TotalKey, int]] = {}
        """The totals of an account at each of its flushes, by (account, instant), since the last restatement."""
        self._counted: dict[str, list[Counted]] = defaultdict(list)
        self._ends: dict[tuple[str, int], int] = {}
        # Up to which stream time the levels of accounts were carried over.
        self._carried_ms: dict[str, int] = {}
        self._winners: dict[tuple[str, str], Winner] = {}
        self._deferred: dict[Place, Deferred] = {}
        self._distinct: dict[TotalKey, set[str]] = defaultdict(set)
        self._latest: dict[TotalKey | CellKey, tuple[int, int, int]] = {}
        self._aggregations: dict[str, str] = {}
        self._offsets: dict[int, int] = {}

    def feed(
        self, partition: int, offset: int, timestamp_ms: int, value: bytes, headers: Iterable[tuple[str, bytes]] = ()
    ) -> None:
        """Process one record of the log.

        A record with the control header counts as forged; genuine control records have their own methods.
        Raises ValueError if `offset` is not above the partition's last offset.
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
        """Process a tick, which only moves stream time."""
        self._advance(partition, timestamp_ms)

    def set_meter_set(self, partition: int, meter_set: Mapping[str, Any], timestamp_ms: int | None = None) -> None:
        """Process a meter set record, which applies to all later records of the partition."""
        if not levels_of(self._meter_sets[partition]):
            # Until now no level was carried over.
            log_ms = self.stream_times.get(partition, 0)
            for account in self._with_usage(partition):
                if not self.accounts.is_waiting(account, log_ms):
                    self._carried_ms[account] = log_ms
        self._meter_sets[partition] = meter_set
        self._advance(partition, timestamp_ms)

    def bind(
        self,
        partition: int,
        account: str,
        binding: Mapping[str, Any],
        timestamp_ms: int | None = None,
        offset: int = -1,
        *,
        revision: int | None = None,
    ) -> None:
        """Process a binding record. Does nothing if a record of the account had this or a higher `revision`; by default
        the revision is the next one.

        A late binding that can change counted periods takes effect at its instant, after `restatement`; from
        `begin_restatement` until then, events of the account are deferred. Other bindings take effect in the future.
        """
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        if self.accounts.is_newest(account, revision):
            self.accounts.bind(account, binding, *self._there(partition), offset)

    def bind_from_the_start(self, account: str, known: Sequence[Mapping[str, Any]]) -> None:
        """Set the bindings that are in force before the first event."""
        self.accounts.from_the_start(account, known)

    def close(
        self,
        partition: int,
        account: str,
        instant_ms: int,
        timestamp_ms: int | None = None,
        offset: int = -1,
        *,
        revision: int | None = None,
    ) -> None:
        """Process a close record: close the account's period that contains `instant_ms` for later events. `revision`
        is that of `bind`."""
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        if self.accounts.is_newest(account, revision):
            self.accounts.close(account, instant_ms, offset, len(self._counted[account]))

    def flush(
        self, partition: int, account: str, timestamp_ms: int | None = None, *, revision: int | None = None
    ) -> None:
        """Process a flush record: report the account's totals so far by themselves. `revision` is that of `bind`."""
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        if not self.accounts.is_newest(account, revision):
            return
        interval_ms = policy_of(self._meter_sets[partition], "report_interval_ms")
        instant_ms = self.accounts.flush(account, self._there(partition)[0], interval_ms)
        if instant_ms is not None:
            self.flushed[account, instant_ms] = {key: value for key, value in self.totals.items() if key[0] == account}

    def begin_restatement(
        self, partition: int, account: str, answers: int, offset: int, timestamp_ms: int | None = None
    ) -> None:
        """Process the record at `offset` that begins the restatement of the binding at `answers`; defers events. No
        level is carried over at this record."""
        self._advance(partition, timestamp_ms, carry=False)
        self.accounts.begin(account, answers, offset, *self._there(partition))

    def restatement(
        self, partition: int, account: str, offset: int, *, declined: bool = False, timestamp_ms: int | None = None
    ) -> None:
        """Process the record that ends the restatement begun at `offset`.

        Counts all events of the account again as if the binding were older. Other and repeated records do nothing. No
        level of another account is carried over at this record.
        """
        self._advance(partition, timestamp_ms, carry=False)
        log_ms, policy = self._there(partition)
        if not self.accounts.answer(account, offset, declined=declined, log_ms=log_ms, policy=policy):
            return
        for values in (self.totals, self.cells, self.last, self._distinct, self._latest, self._ends, self.flushed):
            _forget(values, account)
        counted, self._counted[account] = self._counted[account], []
        for number, usage in enumerate(counted):
            time_ms = usage.event.time_us // 1000
            period, _ = self.accounts.counting_period(account, time_ms, usage.log_ms, usage.grace_ms, number)
            self._count_all(usage.place, usage.event, usage.fed, period, usage.log_ms, usage.grace_ms)
            self._carried_ms[account] = min(self._carried_ms[account], period[0])
        if counted:
            self._carry_over(partition, account)

    def _there(self, partition: int) -> tuple[int, Policy]:
        """Stream time and the policy of the meter set in force."""
        meter_set = self._meter_sets[partition]
        policy = Policy(policy_of(meter_set, "future_ms"), policy_of(meter_set, "grace_ms"))
        return self.stream_times.get(partition, 0), policy

    def period(self, account: str, instant_ms: int) -> Period:
        """The account's period that contains the instant, by the bindings processed so far."""
        return self.accounts.period(account, instant_ms)

    def counter_sums(self) -> dict[str, int]:
        """The counters over all partitions."""
        return {name: sum(counters[name] for counters in self.counters.values()) for name in COUNTERS}

    def by_dimension(self) -> dict[tuple[str, str, Period, str], int]:
        """Map (account, meter, period, dimensions) to the value over all event hours and arrival buckets.

        Omits unique meters: which dimensions see a value first depends on the order of arrival.
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

    def _advance(self, partition: int, timestamp_ms: int | None, *, carry: bool = True) -> None:
        if timestamp_ms is not None:
            self.stream_times[partition] = max(self.stream_times.get(partition, timestamp_ms), timestamp_ms)
        if carry and levels_of(self._meter_sets[partition]):
            for account in self._with_usage(partition):
                self._carry_over(partition, account)

    def _with_usage(self, partition: int) -> list[str]:
        return [name for name in self._carried_ms if partition_of(name, self.partitions) == partition]

    def _carry_over(self, partition: int, account: str) -> None:
        """Let the account's levels stand in the periods that have begun since the last call (S13)."""
        log_ms = self.stream_times.get(partition, 0)
        if not self.accounts.is_waiting(account, log_ms):
            for period, after in self.accounts.ended(account, self._carried_ms[account], log_ms):
                for meter in levels_of(self._meter_sets[partition]):
                    self._stand(partition, account, meter, period, after)
            self._carried_ms[account] = log_ms

    def _stand(self, partition: int, account: str, meter: str, period: Period, after: Period) -> None:
        """Let the level of a period stand in the next one, unless a later event changed the level there."""
        source, target = ((account, meter, self._named(account, each)) for each in (period, after))
        if source in self._latest and self._latest[source] > self._latest.get(target, _NO_RANK):
            before = self.totals.get(target, 0)
            self._latest[target], self.totals[target] = self._latest[source], self.totals[source]
            self._report(partition, target, before, self.stream_times[partition])

    def _conclude(self, place: Place, ruling: Ruling) -> None:
        self.rulings[place] = ruling
        self.counters[place.partition]["received"] += 1
        self.counters[place.partition][ruling.outcome] += 1

    def take(self, place: Place, body: object) -> None:
        """Process one decoded event at the current stream time."""
        log_ms = self.stream_times[place.partition]
        meter_set = self._meter_sets[place.partition]
        account, identifier = _names(body)
        try:
            event = event_of(body, policy_of(meter_set, "event_bytes_max"), log_ms)
            require_home(event.account, place.partition, self.partitions)
            # An adjustment is never too old.
            late_max_ms = log_ms if event.type.startswith("tidemark.") else policy_of(meter_set, "late_max_ms")
            require_in_time(event, log_ms, policy_of(meter_set, "future_ms"), late_max_ms)
            fed = contributions(event, meter_set)
        except RejectedError as rejected:
            self._conclude(place, Ruling("rejected", rejected.reason, account, identifier))
            return
        # An event may arrive before its own time, and its duplicate a dedup window after that time.
        known_ms = max(0, policy_of(meter_set, "window_ms") - policy_of(meter_set, "future_ms"))
        if event.time_us < (log_ms - known_ms) * 1000 or (fed and self.accounts.is_waiting(event.account, log_ms)):
            self._defer(place, Deferred(event, fed, meter_set))
            return
        adding = _adding(fed)
        period = self._counting_period(event, adding, log_ms, policy_of(meter_set, "grace_ms")) if adding else None
        identity = (account, identifier)
        if adding and period is None and identity not in self._winners:
            self._conclude(place, Ruling("late", "period_closed", account, identifier))
            return
        ordered = any(contribution.aggregation == "latest" for contribution in fed)
        arrival = Winner(event, period, event.time_us if ordered else None)
        if self._is_repeated(place, arrival):
            return
        if period is not None:
            self._count_all(place, event, adding, period, log_ms, policy_of(meter_set, "grace_ms"))
        if fed:
            self.accepted[identity] = Accepted(place, event, fed, meter_set)
        self._conclude(place, Ruling("counted" if fed else "unmetered", None, account, identifier))

    def _is_repeated(self, place: Place, arrival: Winner) -> bool:
        """Record the identity; return whether the event is a duplicate."""
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

    def _defer(self, place: Place, deferred: Deferred) -> None:
        """Defer an event older than the dedup window: it counts at its dedup decision.

        The oracle rules a duplicate at once. The pipeline may defer the duplicate, but decides the same.
        """
        event = deferred.event
        if not self._is_repeated(place, Winner(event, None, event.time_us)):
            self._deferred[place] = deferred
            self._conclude(place, Ruling("deferred", None, event.account, event.id))

    def resolve(self, place: Place, offset: int, event_index: int = 0, timestamp_ms: int | None = None) -> None:
        """Process the dedup decision, at (offset, event_index), on the deferred event at `place`.

        Calculates the decision. Does nothing for events that are not deferred. Meters that were retired since the
        arrival of the event do not count it.
        """
        self._advance(place.partition, timestamp_ms)
        waiting = self._deferred.get(place)
        waits = waiting and self.accounts.is_waiting(waiting.event.account, self.stream_times.get(place.partition, 0))
        deferred = None if waits else self._deferred.pop(place, None)
        if deferred is None:
            return
        event, fed, then = deferred
        log_ms, meter_set = self.stream_times[place.partition], self._meter_sets[place.partition]
        outcome, reason = "unmetered", None
        adding, grace_ms = _adding(fed), policy_of(meter_set, "grace_ms")
        period = self._counting_period(event, adding, log_ms, grace_ms) if adding else None
        known = {meter["slug"] for meter in meter_set["meters"]}
        left = [contribution for contribution in fed if contribution.meter in known]
        if adding and period is None:
            outcome, reason = "late", "period_closed"
            self.kept_out.add(place)
        elif left:
            outcome = "counted"
            self.accepted[event.account, event.id] = Accepted(place, event, left, then)
            if period is not None and _adding(left):
                decision = Place(place.partition, offset, event_index)
                self._count_all(decision, event, _adding(left), period, log_ms, grace_ms)
        self.rulings[place] = Ruling(outcome, reason, event.account, event.id)
        self.counters[place.partition]["deferred"] -= 1
        self.counters[place.partition][outcome] += 1

    def waiting(self, place: Place) -> tuple[int, Sequence[Contribution]] | None:
        """The event time in microseconds and the contributions of a deferred event; None if no event waits there."""
        deferred = self._deferred.get(place)
        return None if deferred is None else (deferred.event.time_us, deferred.fed)

    def _count_all(
        self,
        place: Place,
        event: Event,
        fed: Sequence[Contribution],
        period: Period,
        log_ms: int,
        grace_ms: int,
    ) -> None:
        self._counted[event.account].append(Counted(place, event, fed, log_ms, grace_ms))
        self._carried_ms.setdefault(event.account, log_ms)
        named = self._named(event.account, period)
        for contribution in fed:
            before = self.totals.get((event.account, contribution.meter, named))
            self._count(place, event, contribution, named, log_ms)
            self._report(place.partition, (event.account, contribution.meter, named), before or 0, log_ms)
            if contribution.meter in levels_of(self._meter_sets[place.partition]):
                # A late event: its level stands in the periods that have begun since.
                for ended, after in self.accounts.ended(event.account, period[0], log_ms):
                    self._stand(place.partition, event.account, contribution.meter, ended, after)

    def _named(self, account: str, period: Period) -> Period:
        """The name of a period in keys: the start identifies it, because a binding may move the end while it runs."""
        return period[0], self._ends.setdefault((account, period[0]), period[1])

    def _counting_period(self, event: Event, fed: Sequence[Contribution], log_ms: int, grace_ms: int) -> Period | None:
        """The period in which the event counts; None if its own is closed, and a meter has the policy quarantine or
        the usage would be carried to a period of another payer."""
        time_ms = event.time_us // 1000
        period, late = self.accounts.counting_period(event.account, time_ms, log_ms, grace_ms)
        if not late:
            return period
        kept_out = any(contribution.quarantine for contribution in fed)
        return None if kept_out or self.accounts.is_billed_to_another(event.account, time_ms, period[0]) else period

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
            if first_sight:
                self.last[cell] = place
            return
        self.last[cell] = place
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

    def _report(self, partition: int, total: TotalKey, before: int, log_ms: int) -> None:
        """Note the change of a total in its report bucket. What changes nothing opens no entry of a unique meter."""
        meter_set = self._meter_sets[partition]
        names = {meter["slug"]: meter.get("stripe_event_name") for meter in meter_set["meters"]}
        name = names.get(total[1])
        if not name or (self._aggregations[total[1]] == "unique" and self.totals[total] == before):
            return
        interval_ms = policy_of(meter_set, "report_interval_ms")
        bucket_ms = max([log_ms // interval_ms * interval_ms, *self.accounts.flushes[total[0]]])
        opened = self.reports.get((total, bucket_ms), Report(before, before, name))
        self.reports[total, bucket_ms] = opened._replace(current=self.totals[total])


def _adding(fed: Sequence[Contribution]) -> list[Contribution]:
    return [contribution for contribution in fed if not contribution.is_sample]


def _names(body: object) -> tuple[str, str]:
    """The account and the id; empty text for a value that cannot be read."""
    if not isinstance(body, dict):
        return "", ""
    account, identifier = body.get("subject"), body.get("id")
    return account if isinstance(account, str) else "", identifier if isinstance(identifier, str) else ""


def _forget(values: dict[Any, Any], account: str) -> None:
    for key in [key for key in values if key[0] == account]:
        del values[key]
