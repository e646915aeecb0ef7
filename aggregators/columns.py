"""Turns records into columns: per meter the targets that events change, and by how much. No object per event is kept.

Only plain events become columns here: valid ones of a known account, within the open period of that account, and with
quantities that every meter can use. All others are left out one by one, and `aggregators.exceptions` takes them. So a
maker of columns never decides why an event is rejected, late or deferred.

There are two makers: `PythonColumns`, which runs everywhere, and one in C. Both fill equal columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from aggregators.decode import Decoded, Rejected, decode
from aggregators.deferred import far_late_us
from aggregators.instants import SECONDS_US, parse_instant_us
from aggregators.judge import Rules
from aggregators.ledger import Account, Ledger, Place
from aggregators.marks import by_bucket, repeats
from aggregators.meters import CompiledMeterSet, Contribution, Failure, filter_of, slow_types
from aggregators.parallel_lists import places_of, without_places
from aggregators.quantities import POWERS, minor_of, plain_minor
from aggregators.signing import distinct_member, marks_of
from schemas.adjustments import adjusting
from schemas.clock import HOUR_MS, HOUR_US, MILLISECOND_US
from schemas.events import EventStruct
from schemas.log import Record, position
from schemas.meters import QUANTITY_MINOR_MAX, Meter, path_keys
from schemas.rollup import MarkKey, MarkSlice

Key = TypeVar("Key")
# Entries of each cache of a maker, and of the look-ups of a meter's targets; what is full is emptied.
TEXTS_MAX: Final = 65_536
KNOWN_MAX: Final = 524_288

# An event that is no column: its place in the record, and the event, or why it could not be decoded.
LeftOut = tuple[int, EventStruct | Rejected]
Leave = Callable[[int, EventStruct | Rejected], None]


class Column:
    """What the events of a segment contribute to one meter: parallel lists in the order of positions.

    `numbers` are targets of the ledger. `minors` are quantities in minor units, or distinct members (64 bits); the
    column of a `count` meter has none. Only that of a `latest` meter has `times_us`.
    """

    __slots__ = ("has_minors", "has_times", "meter", "minors", "numbers", "positions", "times_us")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        rule = meter.aggregation.rule
        self.has_minors, self.has_times = rule.takes_value, rule.ordered
        self.numbers: list[int] = []
        self.positions: list[int] = []
        self.minors: list[int] = []
        self.times_us: list[int] = []

    def append(self, number: int, at: int, minor: int, time_us: int) -> None:
        """Add the contribution of the event at a position."""
        self.numbers.append(number)
        self.positions.append(at)
        if self.has_minors:
            self.minors.append(minor)
        if self.has_times:
            self.times_us.append(time_us)

    def pop(self) -> None:
        """Take the last contribution back."""
        for values in (self.numbers, self.positions, self.minors, self.times_us):
            if values:
                values.pop()

    def taken(self) -> Column:
        """The contributions so far; this column is empty afterwards."""
        taken = Column(self.meter)
        for name in ("numbers", "positions", "minors", "times_us"):
            values = getattr(self, name)
            setattr(taken, name, values[:])
            values.clear()
        return taken

    def without(self, out: set[int]) -> Column:
        """The contributions of the events at other positions."""
        rest, places = Column(self.meter), places_of(out, self.positions)
        for name in ("numbers", "positions", "minors", "times_us"):
            setattr(rest, name, without_places(getattr(self, name), places))
        return rest


class Columns:
    """The columns of a run of records in which no control record changes anything, while they are made.

    `positions` and `digests` are parallel: the events that have a mark, in log order, and what `signing.marks_of` makes
    their marks of. `unmetered` are the positions of the events that no meter wants, at their dedup decisions if they
    were deferred. `meters` has the column of each meter in force, by slug, and `adjusted` those of the adjustments of
    `count` meters: a count has no quantities, so its adjustments are summed in a column of their own.
    """

    __slots__ = ("adjusted", "digests", "meters", "positions", "unmetered")

    def __init__(self, meters: dict[str, Column]) -> None:
        self.positions: list[int] = []
        self.digests: list[bytes] = []
        self.unmetered: list[int] = []
        self.meters = meters
        self.adjusted: dict[str, Column] = {}

    def of(self, contribution: Contribution) -> Column:
        """The column that takes a contribution."""
        meter, column = contribution.meter, self.meters[contribution.meter.slug]
        if column.has_minors or contribution.minor == 1:
            return column
        summed = self.adjusted.get(meter.slug)
        if summed is None:
            summed = self.adjusted[meter.slug] = Column(adjusting(meter) or meter)
        return summed

    def mark(self, at: int, account: Account, event_id: str) -> None:
        """Add the mark of the event at a position."""
        marker = account.marker()
        marker.update(event_id.encode())
        self.positions.append(at)
        self.digests.append(marker.digest())

    def taken(self) -> Segment:
        """The columns so far; these are empty afterwards."""
        made = chain(self.meters.values(), self.adjusted.values())
        columns = [column.taken() for column in made if column.numbers]
        buckets, members = marks_of(self.digests)
        taken = Segment(self.positions[:], buckets, members, self.unmetered[:], columns)
        self.positions.clear()
        self.digests.clear()
        self.unmetered.clear()
        return taken


class Segment(NamedTuple):
    """What a maker made of a run of records, in the order of positions. `buckets` and `members` are the marks of the
    events at `positions` (`signing.mark`); `columns` are those that have contributions. See `Columns`."""

    positions: Sequence[int]
    buckets: Sequence[int]
    members: Sequence[int]
    unmetered: Sequence[int]
    columns: Sequence[Column]


class ColumnMaker(Protocol):
    """Makes the columns of a ledger's partition under one meter set.

    The order of calls: for each record `go_to`, then `take`; at the end of a segment `taken`. Whoever takes an event
    that was left out appends to `columns` too. A maker looks at `Ledger.entered` (and empties it) and at `Ledger.epoch`
    before it uses what it has kept of accounts and targets.
    """

    columns: Columns

    def go_to(self, stream_time_ms: int, rules: Rules) -> None:
        """Go to a stream time, and to the rules there."""
        ...

    def unknown(self, records: Sequence[Record]) -> set[str]:
        """The accounts of the events of records that are not in the ledger; some may belong to another partition. Call
        this ahead of `take`, for many records at once. Finishes what `take` has put off."""
        ...

    def take(self, record: Record, leave: Leave) -> int:
        """Put the plain events of a record into the columns, and call `leave` for all others, in log order. Returns how
        many events the record has. May put off both until `finish`."""
        ...

    def finish(self) -> None:
        """Take what `take` has put off."""
        ...

    def taken(self) -> Segment:
        """Finish; then what was taken since the last call, every list in the order of positions."""
        ...

    def repeats(self, segments: Sequence[Segment], present: AbstractSet[int]) -> set[int]:
        """The positions of the marks in these segments whose members are among `present`, or came before."""
        ...

    def marks(
        self, segments: Sequence[Segment], mark_slice: MarkSlice, unmarked: AbstractSet[int] = frozenset()
    ) -> dict[MarkKey, Sequence[int]]:
        """The members of the marks in these segments by set of a slice, without those at the positions `unmarked`."""
        ...


MakerOf = Callable[[Ledger, CompiledMeterSet], ColumnMaker]


class Books:
    """The ledger of a partition, and the maker of its columns under the meter set in force."""

    def __init__(self, hash_key: bytes, maker_of: MakerOf) -> None:
        self.ledger = Ledger(hash_key)
        self._maker_of = maker_of
        self._made: tuple[CompiledMeterSet, ColumnMaker] | None = None

    def maker(self, compiled: CompiledMeterSet) -> ColumnMaker:
        """The maker of columns under a meter set; the one of before if the meter set is the same."""
        if self._made is None or self._made[0] is not compiled:
            self._made = compiled, self._maker_of(self.ledger, compiled)
        return self._made[1]


# What follows the seconds of a time.
_FRACTIONS_US: Final = {"Z": 0} | {f".{number:03d}Z": number * MILLISECOND_US for number in range(1000)}

# What a feed says of an event: it is in the columns, no meter wants it, or it is left out.
TAKEN: Final = 1
UNMETERED: Final = 0
LEFT: Final = -1
# (account, data, hour of the event time, event time in microseconds, position)
_Feed = Callable[[Account, dict[str, Any], int, int, int], int]


class PythonColumns:
    """The maker of columns in Python. See `ColumnMaker`."""

    def __init__(self, ledger: Ledger, compiled: CompiledMeterSet) -> None:
        self._ledger = ledger
        self._compiled = compiled
        policy = compiled.meter_set.policy
        self._event_bytes_max, self._grace_us = policy.event_bytes_max, policy.grace_ms * MILLISECOND_US
        self._epoch = ledger.epoch
        self._now_us = self._earliest_us = self._latest_us = 0
        self._ahead: dict[int, Decoded] = {}
        # The time at each text of a minute, such as `2026-11-21T10:00:`.
        self._minutes_us: dict[str, int] = {}
        self._feeders = {meter.slug: _Feeder(meter, ledger) for meter in compiled.meter_set.meters}
        self.columns = Columns({slug: feeder.column for slug, feeder in self._feeders.items()})
        by_type: dict[str, list[_Feeder]] = {}
        for feeder in self._feeders.values():
            by_type.setdefault(feeder.column.meter.event_type, []).append(feeder)
        self._feeds = {name: _all_of(feeders) for name, feeders in by_type.items()}
        self._feeds.update(dict.fromkeys(slow_types(compiled.meter_set), _leave))

    def go_to(self, stream_time_ms: int, rules: Rules) -> None:
        """See `ColumnMaker`."""
        self._now_us = stream_time_ms * MILLISECOND_US
        self._earliest_us = max(rules.earliest_us, far_late_us(self._compiled.meter_set.policy, stream_time_ms))
        self._latest_us = rules.latest_us

    def unknown(self, records: Sequence[Record]) -> set[str]:
        """See `ColumnMaker`."""
        accounts, unknown = self._ledger.accounts, set[str]()
        for record in records:
            decoded = self._ahead.get(record.offset)
            if decoded is None:
                decoded = self._ahead[record.offset] = decode(record.value, self._event_bytes_max)
            unknown.update(event.subject for _, event in decoded.events if event.subject not in accounts)
        return unknown

    def take(self, record: Record, leave: Leave) -> int:
        """See `ColumnMaker`."""
        decoded = self._ahead.pop(record.offset, None) or decode(record.value, self._event_bytes_max)
        self._look()
        for rejected in decoded.rejected:
            leave(rejected.place, rejected)
        earliest_us, latest_us, now_us = self._earliest_us, self._latest_us, self._now_us
        # A period that ended at this instant or earlier is closed.
        closed_us = now_us - self._grace_us
        minutes_us, seconds_us, fractions_us = self._minutes_us, SECONDS_US, _FRACTIONS_US
        accounts, feeds, columns = self._ledger.accounts, self._feeds, self.columns
        base, unmetered_append = position(record.offset), columns.unmetered.append
        digest_append, position_append = columns.digests.append, columns.positions.append
        for place, event in decoded.events:
            # None is no text, and goes the same way as any other form of a time.
            text: Any = event.time
            try:
                time_us = minutes_us[text[:17]] + seconds_us[text[17:19]] + fractions_us[text[19:]]
            except (KeyError, TypeError):
                parsed = now_us if text is None else self._time_us(text)
                if parsed is None:
                    leave(place, event)
                    continue
                time_us = parsed
            account = accounts.get(event.subject)
            if (
                account is None
                or not account.from_us <= time_us < account.until_us
                or account.until_us <= closed_us
                or not earliest_us <= time_us <= latest_us
            ):
                leave(place, event)
                continue
            at = base | place
            feed = feeds.get(event.type)
            if feed is None or (made := feed(account, event.data or {}, time_us // HOUR_US, time_us, at)) == UNMETERED:
                unmetered_append(at)
            elif made == LEFT and not self._slowly(account, event, time_us, at):
                leave(place, event)
                continue
            marker = account.marker()
            marker.update(event.id.encode())
            digest_append(marker.digest())
            position_append(at)
        return decoded.received

    def finish(self) -> None:
        """See `ColumnMaker`."""

    def taken(self) -> Segment:
        """See `ColumnMaker`."""
        return self.columns.taken()

    def repeats(self, segments: Sequence[Segment], present: AbstractSet[int]) -> set[int]:
        """See `ColumnMaker`."""
        members = set[int]().union(*(segment.members for segment in segments))
        if len(members) == sum(len(each.members) for each in segments) and members.isdisjoint(present):
            return set()
        pairs = (zip(segment.positions, segment.members, strict=True) for segment in segments)
        return repeats(chain.from_iterable(pairs), present)

    def marks(
        self, segments: Sequence[Segment], mark_slice: MarkSlice, unmarked: AbstractSet[int] = frozenset()
    ) -> dict[MarkKey, Sequence[int]]:
        """See `ColumnMaker`."""
        if not unmarked:
            pairs = (zip(segment.buckets, segment.members, strict=True) for segment in segments)
            return dict(by_bucket(mark_slice, chain.from_iterable(pairs)))
        marks = (
            (bucket, member)
            for segment in segments
            for at, bucket, member in zip(segment.positions, segment.buckets, segment.members, strict=True)
            if at not in unmarked
        )
        return dict(by_bucket(mark_slice, marks))

    def _look(self) -> None:
        ledger = self._ledger
        ledger.entered.clear()
        if self._epoch != ledger.epoch:
            self._epoch = ledger.epoch
            for feeder in self._feeders.values():
                feeder.known.clear()

    def _time_us(self, text: str) -> int | None:
        time_us = parse_instant_us(text)
        if time_us is not None and len(text) in (20, 24) and text[-1] == "Z":
            minute_us = parse_instant_us(text[:17] + "00Z")
            if minute_us is not None:
                _bounded(self._minutes_us)[text[:17]] = minute_us
        return time_us

    def _slowly(self, account: Account, event: EventStruct, time_us: int, at: int) -> bool:
        """Put an event into the columns whose form is new to its feed. Returns False if the event is not plain."""
        compiled, data = self._compiled, event.data or {}
        made = compiled.contributions(event.type, data, time_us)
        if isinstance(made, Failure) or compiled.skips(event.type, data, time_us):
            return False
        place, hour = Place(account.name, account.period, account.state.flushed_ms), time_us // HOUR_US
        for contribution in made:
            if contribution.is_sample:
                continue
            feeder = self._feeders[contribution.meter.slug]
            number = self._ledger.target(place, contribution.meter, hour * HOUR_MS, contribution.dimensions)
            if event.type == contribution.meter.event_type:
                feeder.remember(account, data, hour, number)
            self.columns.of(contribution).append(number, at, feeder.minor(contribution), time_us)
        if not made:
            self.columns.unmetered.append(at)
        return True


def _leave(_account: Account, _data: dict[str, Any], _hour: int, _time_us: int, _at: int) -> int:
    return LEFT


def _all_of(feeders: list[_Feeder]) -> _Feed:
    """The feed of an event type: what it costs is two or three look-ups and as many appends for each meter."""
    feeds = [feeder.feed() for feeder in feeders]

    def feed(account: Account, data: dict[str, Any], hour: int, time_us: int, at: int) -> int:
        taken: list[_Feeder] = []
        for feeder, one in zip(feeders, feeds, strict=True):
            made = one(account, data, hour, time_us, at)
            if made == LEFT:
                for each in taken:
                    each.column.pop()
                return LEFT
            if made == TAKEN:
                taken.append(feeder)
        return TAKEN if taken else UNMETERED

    return feed if len(feeds) > 1 else feeds[0]


class _Feeder:
    """The column of one meter, and what its feed knows: the target by account, hour and dimensions.

    Only texts and None are among the dimensions of a key. Neither equals anything else, as True equals 1.
    """

    def __init__(self, meter: Meter, ledger: Ledger) -> None:
        self.column = Column(meter)
        self.known: dict[tuple[Any, ...], int] = {}
        self._hash_key = ledger.hash_key
        self._members: dict[str, int] = {}
        paths = [path_keys(meter.dimensions[name]) for name in sorted(meter.dimensions)]
        value = path_keys(meter.value_path) if meter.value_path else ("",)
        # A deep path is read as `aggregators.meters` reads it.
        self._is_shallow = all(len(path) == 1 for path in (*paths, value))
        self._paths = tuple(path[0] for path in paths)
        self._value = value[0]

    def remember(self, account: Account, data: dict[str, Any], hour: int, number: int) -> None:
        """Keep the target of events like this one."""
        values = [data.get(path) for path in self._paths]
        if self._is_shallow and all(value is None or type(value) is str for value in values):
            _bounded(self.known, KNOWN_MAX)[account, hour, *values] = number

    def minor(self, contribution: Contribution) -> int:
        """What a contribution puts into the column."""
        return self._member(contribution.text) if contribution.text else contribution.minor

    def _member(self, text: str) -> int:
        member = self._members.get(text)
        if member is None:
            member = _bounded(self._members)[text] = distinct_member(self._hash_key, text)
        return member

    def feed(self) -> _Feed:
        """A feed that answers `LEFT` for whatever it has not met in this form."""
        meter, known, column, members = self.column.meter, self.known, self.column, self._members
        if not self._is_shallow:
            return _leave
        passes, rule, value = filter_of(meter), meter.aggregation.rule, self._value
        # Most events lack what a filter looks at.
        looked_at, passes_without = _first_keys(meter), passes is None or passes({})
        takes_value, distinct, ordered = rule.takes_value, rule.distinct, rule.ordered
        number_append, position_append = column.numbers.append, column.positions.append
        minor_append, time_append = column.minors.append, column.times_us.append
        scale, allow_negative, power = meter.scale, meter.allow_negative, POWERS[meter.scale]
        highest = QUANTITY_MINOR_MAX // power
        paths, dimensions = self._paths, len(self._paths)
        one, two = (*paths, "", "")[:2]

        def feed(account: Account, data: dict[str, Any], hour: int, time_us: int, at: int) -> int:
            if passes is not None and not (passes_without if looked_at.isdisjoint(data) else passes(data)):
                return UNMETERED
            try:
                if dimensions == 0:
                    number = known[account, hour]
                elif dimensions == 1:
                    number = known[account, hour, data.get(one)]
                elif dimensions == 2:
                    number = known[account, hour, data.get(one), data.get(two)]
                else:
                    number = known[account, hour, *map(data.get, paths)]
                if takes_value:
                    given = data.get(value)
                    if distinct:
                        minor = members[given]  # type: ignore[index]  # what is no text is no key
                    elif type(given) is int and 0 <= given <= highest:
                        minor = given * power
                    else:
                        plain = plain_minor(given, scale) if type(given) is str else None
                        exact = minor_of(given, scale, allow_negative) if plain is None else plain
                        if not isinstance(exact, int):
                            return LEFT
                        minor = exact
                    minor_append(minor)
                    if ordered:
                        time_append(time_us)
            except (KeyError, TypeError):
                # A dimension or a distinct value that is new, or that is no text.
                return LEFT
            number_append(number)
            position_append(at)
            return TAKEN

        return feed


def _first_keys(meter: Meter) -> frozenset[str]:
    return frozenset(path_keys(each.path)[0] for each in meter.filters)


def _bounded(cache: dict[Key, int], entries_max: int = TEXTS_MAX) -> dict[Key, int]:
    if len(cache) >= entries_max:
        cache.clear()
    return cache
