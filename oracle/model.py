"""Usage counted naively: dicts, exact for ever, no window, no flush, no state to recover.

Written from the design (invariants I1 to I9 and section 6) alone. Times are int milliseconds UTC (`*_ms`) or
microseconds (`*_us`), quantities ints of minor units. Reasons are the texts of `schemas.reasons.Reason`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from oracle.rules import (
    CONTROL_HEADER,
    HOUR_MS,
    MINUTE_MS,
    Binding,
    Contribution,
    Event,
    RejectedError,
    binding_of,
    canonical,
    contributions,
    decode,
    event_of,
    partition_of,
    period_containing,
    policy_of,
    require_home,
    require_in_time,
    time_us_of,
)

Period = tuple[int, int]
TotalKey = tuple[str, str, Period]
CellKey = tuple[str, str, Period, int, str, int]
COUNTERS = ("received", "counted", "duplicate", "unmetered", "late", "rejected", "parked")


class Place(NamedTuple):
    """Where an event stands in the log; a record that is rejected as one stands at index 0."""

    partition: int
    offset: int
    event_index: int


class Verdict(NamedTuple):
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


class _Parked(NamedTuple):
    """An event older than the window, until its verdict; what it gives is settled where it arrived."""

    event: Event
    fed: list[Contribution]


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

    `catalog` is the JSON form of `schemas.meters.Catalog`, absent fields taking its defaults; it holds on every
    partition until `set_catalog`. Control records are told by plain calls, in log order with `feed`; each takes the
    record's append time where it is known, since every record moves log time. `log_id` and `secret` are kept for
    callers that write control records with them; signatures are not checked here.
    """

    def __init__(
        self, catalog: Mapping[str, Any], *, partitions: int = 1, log_id: str = "oracle", secret: bytes = b""
    ) -> None:
        self.partitions = partitions
        self.log_id = log_id
        self.secret = secret
        self.log_times: dict[int, int] = {}
        self.counters: dict[int, dict[str, int]] = {p: dict.fromkeys(COUNTERS, 0) for p in range(partitions)}
        self.verdicts: dict[Place, Verdict] = {}
        self.totals: dict[TotalKey, int] = {}
        self.cells: dict[CellKey, int] = {}
        self.duplicates: list[Duplicate] = []
        self.conflicts: set[tuple[str, str]] = set()
        self.kept_out: set[Place] = set()
        """Parked events whose verdict found their period closed: they count nowhere and keep their identity."""
        self.order_sensitive: set[tuple[str, str]] = set()
        """Identities whose arrivals differ so that the totals depend on which came first."""
        self._catalogs: dict[int, Mapping[str, Any]] = dict.fromkeys(range(partitions), catalog)
        self._bindings: dict[str, list[Binding]] = defaultdict(list)
        self._closed: dict[str, set[int]] = defaultdict(set)
        self._ends: dict[tuple[str, int], int] = {}
        self._winners: dict[tuple[str, str], _Winner] = {}
        self._parked: dict[Place, _Parked] = {}
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
            self._conclude(Place(partition, offset, 0), Verdict("rejected", "forged_control"))
            return
        try:
            events = decode(value)
        except RejectedError as rejected:
            self._conclude(Place(partition, offset, 0), Verdict("rejected", rejected.reason))
            return
        for index, body in enumerate(events):
            self.take(Place(partition, offset, index), body)

    def tick(self, partition: int, timestamp_ms: int) -> None:
        """A tick record: log time moves on, nothing else."""
        self._advance(partition, timestamp_ms)

    def set_catalog(self, partition: int, catalog: Mapping[str, Any], timestamp_ms: int | None = None) -> None:
        """A catalog record: in force on this partition from here on."""
        self._advance(partition, timestamp_ms)
        self._catalogs[partition] = catalog

    def bind(self, partition: int, account: str, binding: Mapping[str, Any], timestamp_ms: int | None = None) -> None:
        """An account record. The past is not cut again: a binding holds, at the earliest, from the first whole minute
        that no event can have reached yet (log time and the future limit), nor before the period that takes carried
        usage, which lies ahead where the running one is closed. It replaces bindings that would start with it or
        later, but not what makes that period begin where it does.
        """
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        log_ms = self.log_times.get(partition, 0)
        reached_ms = log_ms + policy_of(self._catalogs[partition], "future_ms")
        carrying_ms = self._carrying_period(account, log_ms)[0]
        newest = binding_of(binding, max((reached_ms // MINUTE_MS + 1) * MINUTE_MS, carrying_ms))
        until_ms = max(newest.effective_from_ms, carrying_ms + 1)
        kept = [known for known in self._bindings[account] if known.effective_from_ms < until_ms]
        self._bindings[account] = [*kept, newest]

    def bind_from_the_start(self, account: str, known: Sequence[Mapping[str, Any]]) -> None:
        """Bindings that are in force before the first event."""
        self._bindings[account] = sorted(binding_of(fields) for fields in known)

    def close(self, partition: int, account: str, instant_ms: int, timestamp_ms: int | None = None) -> None:
        """A close record: the account's period that contains `instant_ms` is closed for whatever comes after."""
        self._require_home(partition, account)
        self._advance(partition, timestamp_ms)
        self._closed[account].add(self.period(account, instant_ms)[0])

    def period(self, account: str, instant_ms: int) -> Period:
        """The account's period containing the instant, by the bindings known so far."""
        return period_containing(self._bindings.get(account, ()), instant_ms)

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
                case "latest" if self._latest[cell] >= ranks.get(key, self._latest[cell]):
                    merged[key], ranks[key] = value, self._latest[cell]
        return merged

    def _require_home(self, partition: int, account: str) -> None:
        if partition != partition_of(account, self.partitions):
            raise ValueError(f"{account} is not of partition {partition}: its control records go to its own only")

    def _advance(self, partition: int, timestamp_ms: int | None) -> None:
        if timestamp_ms is not None:
            self.log_times[partition] = max(self.log_times.get(partition, timestamp_ms), timestamp_ms)

    def _conclude(self, place: Place, verdict: Verdict) -> None:
        self.verdicts[place] = verdict
        self.counters[place.partition]["received"] += 1
        self.counters[place.partition][verdict.outcome] += 1

    def take(self, place: Place, body: object) -> None:
        """Judge one decoded event at its place; log time is as the last call left it."""
        log_ms = self.log_times[place.partition]
        catalog = self._catalogs[place.partition]
        account, identifier = _names(body)
        try:
            event = event_of(body, policy_of(catalog, "event_bytes_max"))
            require_home(event.account, place.partition, self.partitions)
            require_in_time(event, log_ms, policy_of(catalog, "future_ms"))
            fed = contributions(event, catalog)
        except RejectedError as rejected:
            self._conclude(place, Verdict("rejected", rejected.reason, account, identifier))
            return
        # An event may come ahead of its time, and its repetition a window after that.
        known_ms = max(0, policy_of(catalog, "window_ms") - policy_of(catalog, "future_ms"))
        if event.time_us < (log_ms - known_ms) * 1000:
            self._park(place, event, fed)
            return
        period = self._counting_period(event, fed, log_ms, policy_of(catalog, "grace_ms")) if fed else None
        identity = (account, identifier)
        if fed and period is None and identity not in self._winners:
            self._conclude(place, Verdict("late", "period_closed", account, identifier))
            return
        ordered = any(contribution.aggregation == "latest" for contribution in fed)
        arrival = _Winner(event, period, event.time_us if ordered else None)
        if self._is_repeated(place, arrival):
            return
        if period is not None:
            self._count_all(place, event, fed, period, log_ms)
        self._conclude(place, Verdict("counted" if fed else "unmetered", None, account, identifier))

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
        self._conclude(place, Verdict("duplicate", None, *identity))
        return True

    def _park(self, place: Place, event: Event, fed: list[Contribution]) -> None:
        """An event older than the window has its identity from here on, and counts where its verdict stands.

        A repeat is a duplicate at once. The pipeline may have to park it first; with its verdict it says the same.
        """
        if not self._is_repeated(place, _Winner(event, None, event.time_us)):
            self._parked[place] = _Parked(event, fed)
            self._conclude(place, Verdict("parked", None, event.account, event.id))

    def resolve(self, place: Place, offset: int, event_index: int = 0, timestamp_ms: int | None = None) -> None:
        """A verdict on the event at `place` stands at (offset, event_index) of its partition.

        What it says is worked out here. It holds for what is parked; for anything else, and a second time, it changes
        nothing. Meters that were taken away since the event arrived get nothing.
        """
        self._advance(place.partition, timestamp_ms)
        parked = self._parked.pop(place, None)
        if parked is None:
            return
        event, fed = parked
        log_ms, catalog = self.log_times[place.partition], self._catalogs[place.partition]
        outcome, reason = "unmetered", None
        if fed:
            period = self._counting_period(event, fed, log_ms, policy_of(catalog, "grace_ms"))
            known = {meter["slug"] for meter in catalog["meters"]}
            left = [contribution for contribution in fed if contribution.meter in known]
            if period is None:
                outcome, reason = "late", "period_closed"
                self.kept_out.add(place)
            elif left:
                outcome = "counted"
                self._count_all(Place(place.partition, offset, event_index), event, left, period, log_ms)
        self.verdicts[place] = Verdict(outcome, reason, event.account, event.id)
        self.counters[place.partition]["parked"] -= 1
        self.counters[place.partition][outcome] += 1

    def _count_all(self, place: Place, event: Event, fed: Sequence[Contribution], period: Period, log_ms: int) -> None:
        # A period is known by its start: a binding may cut its end while it runs.
        named = (period[0], self._ends.setdefault((event.account, period[0]), period[1]))
        for contribution in fed:
            self._count(place, event, contribution, named, log_ms)

    def _counting_period(self, event: Event, fed: Sequence[Contribution], log_ms: int, grace_ms: int) -> Period | None:
        """The period the event counts in; None where it is closed and one of its meters says quarantine."""
        closed = self._closed.get(event.account, set())
        period = self.period(event.account, event.time_us // 1000)
        if period[0] not in closed and log_ms < period[1] + grace_ms:
            return period
        if any(contribution.quarantine for contribution in fed):
            return None
        return self._carrying_period(event.account, log_ms)

    def _carrying_period(self, account: str, log_ms: int) -> Period:
        """The first period from log time on that no record closed."""
        period = self.period(account, log_ms)
        while period[0] in self._closed.get(account, ()):
            period = self.period(account, period[1])
        return period

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


def from_producer_files(
    paths: Iterable[Path | str],
    catalog: Mapping[str, Any],
    bindings: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Oracle:
    """Recount from what producers wrote down before sending: one JSON line `{"sent_at": …, "events": […]}` a request.

    `sent_at` (int milliseconds, or RFC 3339) stands in for log time; lines are taken in its order, whatever file
    they are in, so that totals do not depend on the order of files or lines. Where it would matter which of an
    identity's arrivals the log took first, the identity is in `order_sensitive`. A parked event has its verdict at
    once. Totals and `by_dimension` may be
    compared with a pipeline's; cells may not, since arrival buckets are the log's own. `bindings` are in force from
    the start. A last line that a killed producer left half-written is ignored; any other bad line raises ValueError.
    """
    oracle = Oracle(catalog)
    for account, known in (bindings or {}).items():
        oracle.bind_from_the_start(account, known)
    lines: list[tuple[int, str, list[Any]]] = []
    for path in paths:
        for raw in Path(path).read_bytes().splitlines(keepends=True):
            try:
                (line,) = decode(raw)
                sent_at, events = line["sent_at"], line["events"]
                sent_ms = sent_at if isinstance(sent_at, int) else time_us_of(sent_at) // 1000
            except (RejectedError, ValueError, KeyError, TypeError) as error:
                if raw.endswith(b"\n"):
                    raise ValueError(f"{path}: not a producer's line: {raw[:200]!r}") from error
                continue
            lines.append((sent_ms, str(path), events))
    for offset, (sent_ms, _, events) in enumerate(sorted(lines, key=lambda line: line[:2])):
        oracle.tick(0, sent_ms)
        for index, body in enumerate(events):
            oracle.take(Place(0, offset, index), body)
            oracle.resolve(Place(0, offset, index), offset, index)
    return oracle
