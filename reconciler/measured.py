"""Compares what the samples of measured meters say with the archived adjustments, and these with `usage_hourly` (S15).

What arrived after the measurer's last pass may not be told yet, and what arrived after a period was closed may never
be told (I9). So a piece differs only if it must hold the same without what arrived then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, NamedTuple

from aggregators.quantities import decimal_text
from reconciler.boundaries import CALENDAR_MONTHS, periods_over
from reconciler.causes import Cause, Pair, direction
from reconciler.compare import Range
from reconciler.history import AccountHistory, History, history_of
from reconciler.hourly_cells import settled
from reconciler.measured_pieces import Piece, held, last_ms
from reconciler.report import Findings, Row, instant_text
from reconciler.views import ARCHIVE_POLLS, PartitionStates, ReconcilePolicy, Views, attempted
from schemas.analytics import ArchivePosition, ControlRow
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS, Clock
from schemas.control import ControlKind, CorrectionRecord
from schemas.log import EVENTS_TOPIC, POSITION_MAX, position
from schemas.measured_recount import MeasuredPage, MeasuredRecount, RecountedSample
from schemas.measures import MeasuredSpan, MeasuredTo
from schemas.meters import LatePolicy, Meter
from schemas.periods import Billing, Period

ACCOUNTS_AT_ONCE: Final = 100
# A pass of the measurer takes place every five minutes, and what it tells is in the log soon after.
PASS_MS: Final = 10 * MINUTE_MS
# The measurer looks again at an account whose periods have moved until the rollup knows of it.
MOVED_MS: Final = HOUR_MS
BEHIND_MS: Final = HOUR_MS
# Without a range, periods that ended longer ago than this are not compared: nothing in them changes any more.
BACK_MS: Final = 100 * DAY_MS
_FOR_EVER_MS: Final = 1 << 62
NOT_MEASURED: Final = "the worker has not measured this partition yet: start `tidemark worker`"
BEHIND: Final = "the worker has told the hours until {} only; the later ones are not compared"
ARCHIVE_BEHIND: Final = "the archive has not passed what the worker has told"
OTHER_LOG: Final = "the worker has measured log {}, the archive is of log {}; the next pass measures this one"
ARRIVED: Final = "samples, corrections or bindings came after the worker's last pass, and change {} hours"
TOO_MANY: Final = "the account has more than {:,} samples and adjustments, and is not compared"
RELAYED: Final = "usage_hourly has other sums than the archived adjustments in {} hours, the first one at {}"
TOLD: Final = (
    "the adjustments of {} hours are not what the samples say, the first one at {}: {}, must be {}. Start the worker "
    "again: it tells what lacks"
)


class _Now(NamedTuple):
    """A partition of the archive below a position, and how far it was measured. `moved_ms` says when the bindings of
    accounts last changed; `closed_ms` has the stream times of close records by position. What counts before
    `settled_ms` is in `usage_hourly`."""

    partition: int
    before: int
    stream_time_ms: int
    measured: MeasuredTo
    history: History
    corrections: Mapping[str, Sequence[tuple[int, CorrectionRecord]]]
    moved_ms: Mapping[str, int]
    closed_ms: Mapping[int, int]
    settled_ms: int

    def voided(self, account: str, before_ms: int) -> set[str]:
        """The events of an account that count no more, by the corrections that arrived before an instant. The first
        record of a correction's name counts, and the last correction of an event decides."""
        first: dict[str, CorrectionRecord] = {}
        for arrived_ms, record in self.corrections.get(account, ()):
            if arrived_ms < before_ms:
                first.setdefault(record.correction, record)
        kinds = {record.event: record.kind for record in first.values() if record.counts}
        return {event for event, kind in kinds.items() if kind == "void"}

    def is_moving(self, account: str) -> bool:
        """Whether the periods of an account may be others than the measurer knew."""
        known = self.history.accounts.get(account)
        waits = known is not None and known.waiting is not None
        return waits or self.moved_ms.get(account, 0) > self.measured.as_of_ms - MOVED_MS

    def told_before_ms(self, meter: Meter, account: str, period: Period) -> int:
        """What arrived before this instant is told of a period, if the measurer runs."""
        known, as_of_ms = self.history.accounts.get(account, AccountHistory()), self.measured.as_of_ms
        if meter.late is not LatePolicy.QUARANTINE and not _has_other_payers(known, period.start_ms):
            return as_of_ms
        ends_ms = [period.end_ms + grace_ms for _, grace_ms in self.history.graces]
        ends_ms += [self.closed_ms[at] for start_ms, at in known.closings if start_ms == period.start_ms]
        if min(ends_ms) > self.stream_time_ms:
            return as_of_ms
        delay_ms = as_of_ms - self.measured.until_ms
        return min(as_of_ms, min(ends_ms) - delay_ms - PASS_MS)


class _Differing(NamedTuple):
    """The pieces of a period and a set of dimensions that differ, and the sums of all its pieces."""

    period: Period
    dimensions: str
    pieces: Sequence[Piece]
    expected: int
    found: int


class _Account(NamedTuple):
    """What is compared of an account: `told` by piece, `fresh` pieces of which something was told since the last pass
    began, and `relayed` (what of it must be in `usage_hourly`) and `usage`
    by hour. `ends_ms` are the ends of the last pieces of the periods."""

    name: str
    samples: Sequence[RecountedSample]
    told: Mapping[Piece, int]
    fresh: AbstractSet[Piece]
    relayed: Mapping[Piece, int]
    usage: Mapping[Piece, int]
    periods: Sequence[Period]
    ends_ms: Sequence[int]

    def period_of(self, piece: Piece) -> Period | None:
        """The period in which a piece or an hour begins, if it is compared that far."""
        number = bisect_right(self.periods, piece.start_ms, key=attrgetter("start_ms")) - 1
        return self.periods[number] if number >= 0 and piece.start_ms < self.ends_ms[number] else None

    def compared(self, expected: Mapping[Piece, int], found: Mapping[Piece, int]) -> tuple[int, list[_Differing]]:
        """The number of periods and dimensions that have the same in each piece, and those that have not."""
        sums: dict[tuple[Period, str], list[int]] = {}
        pieces: dict[tuple[Period, str], list[Piece]] = {}
        for piece in sorted({*expected, *found}, key=attrgetter("start_ms", "dimensions")):
            period = self.period_of(piece)
            if period is not None:
                key, values = (period, piece.dimensions), (expected.get(piece, 0), found.get(piece, 0))
                own = sums.setdefault(key, [0, 0])
                own[0], own[1] = own[0] + values[0], own[1] + values[1]
                if values[0] != values[1]:
                    pieces.setdefault(key, []).append(piece)
        differing = [_Differing(*key, of, sums[key][0], sums[key][1]) for key, of in pieces.items()]
        return len(sums) - len(differing), differing


@dataclass(frozen=True, slots=True)
class MeasuredComparison:
    """Compares one partition, meter and page of accounts after the other. Memory grows with the samples of one page, up
    to `measured_rows_max`."""

    views: Views
    policy: ReconcilePolicy
    states: PartitionStates
    clock: Clock
    findings: Findings
    limits: Range

    async def run(self, partitions: Iterable[int]) -> None:
        """Compare all measured meters that are in the meter set now."""
        recount = self.views.measured
        if recount is None:
            return
        for partition in partitions:
            await attempted(self.findings, Pair.MEASURED, partition, self._partition(recount, partition))

    async def _partition(self, recount: MeasuredRecount, partition: int) -> None:
        # The note is read first: what was told before it is below the end of the log.
        measured = await self.views.live.measured.measured_to(partition)
        end = (await self.views.log.bounds(EVENTS_TOPIC, partition)).next
        rows = await self.views.reader.controls(partition, position(end))
        if not _meters(history_of(rows, 0)):
            return
        if measured is None:
            self._open(partition, Cause.IN_FLIGHT, NOT_MEASURED)
            return
        reached = await self._archived(partition, end)
        if reached is None:
            self._open(partition, Cause.IN_FLIGHT, ARCHIVE_BEHIND)
            return
        if reached.log_id != measured.log_id:
            self._open(partition, Cause.UNCHECKED, OTHER_LOG.format(measured.log_id, reached.log_id))
            return
        if reached.stream_time_ms - measured.until_ms > BEHIND_MS:
            self._open(partition, Cause.IN_FLIGHT, BEHIND.format(instant_text(measured.until_ms)))
        rows = await self.views.reader.controls(partition, position(reached.next_offset))
        now = _now(partition, reached, measured, rows, await self._settled_ms(partition, reached))
        for meter, spans in _meters(now.history):
            after = ""
            while accounts := await recount.measured_accounts(partition, meter, after, ACCOUNTS_AT_ONCE):
                after = accounts[-1]
                await self._page(recount, now, MeasuredPage(partition, meter, spans, accounts, 0, now.before))

    async def _settled_ms(self, partition: int, reached: ArchivePosition) -> int:
        checkpoint = await self.views.live.state.load_checkpoint(partition)
        if checkpoint is None:
            return 0
        before_ms = (await settled(self.views, self.states, partition, checkpoint)).before_ms
        return min(before_ms, reached.stream_time_ms - reached.stream_time_ms % HOUR_MS)

    def _open(self, partition: int, cause: Cause, detail: str, account: str = "", meter: str = "") -> None:
        self.findings.add(Row(Pair.MEASURED, cause, partition, account, meter, detail=detail))

    async def _archived(self, partition: int, end: int) -> ArchivePosition | None:
        """How far the archive is, once it has passed the end; None if that takes too long."""
        for number in range(ARCHIVE_POLLS + 1):
            reached = (await self.views.reader.archive_positions()).get(partition)
            if reached is not None and reached.next_offset >= end:
                return reached
            if number < ARCHIVE_POLLS:
                await self.clock.sleep(self.policy.archive_wait_s / ARCHIVE_POLLS)
        return None

    async def _page(self, recount: MeasuredRecount, now: _Now, page: MeasuredPage) -> None:
        """Compare some accounts; half of them at a time if they have too many rows."""
        meter, rows_max = page.meter, self.policy.measured_rows_max
        periods = {account: of for account in page.accounts if (of := self._periods(now, account))}
        accounts = list(periods)
        if not accounts:
            return
        page = page._replace(accounts=accounts, from_ms=min(of[0].start_ms for of in periods.values()))
        samples = await recount.samples_of(page, rows_max + 1)
        left = rows_max + 1 - len(samples)
        adjusted = await recount.adjusted(page, left) if left > 0 else ()
        if len(samples) + len(adjusted) > rows_max:
            del samples, adjusted
            if len(accounts) == 1:
                self._open(now.partition, Cause.UNCHECKED, TOO_MANY.format(rows_max), accounts[0], meter.slug)
                return
            half = len(accounts) // 2
            await self._page(recount, now, page._replace(accounts=accounts[:half]))
            await self._page(recount, now, page._replace(accounts=accounts[half:]))
            return
        usage = await recount.usage_by_hour(page, now.settled_ms)
        samples_of = {account: list[RecountedSample]() for account in accounts}
        for sample in samples:
            samples_of[sample.account].append(sample)
        told, relayed, hours = ({account: Counter[Piece]() for account in accounts} for _ in range(3))
        fresh = {account: set[Piece]() for account in accounts}
        for row in adjusted:
            if row.stream_time_ms is None or row.stream_time_ms >= now.measured.as_of_ms:
                fresh[row.account].add(Piece(row.dimensions, row.time_ms))
            told[row.account][Piece(row.dimensions, row.time_ms)] += row.minor
            if row.stream_time_ms is not None and row.stream_time_ms < now.settled_ms:
                relayed[row.account][Piece(row.dimensions, row.time_ms - row.time_ms % HOUR_MS)] += row.minor
        for key, minor in usage.items():
            hours[key.account][Piece(key.dimensions, key.hour_ms)] = minor
        for name in accounts:
            ends_ms = [last_ms(period, now.measured.until_ms) for period in periods[name]]
            account = _Account(
                name, samples_of[name], told[name], fresh[name], relayed[name], hours[name], periods[name], ends_ms
            )
            self._told(now, meter, account)
            self._relayed(now, meter, account)

    def _periods(self, now: _Now, account: str) -> list[Period]:
        """The periods of an account that are compared."""
        known, until_ms = now.history.accounts.get(account), now.measured.until_ms
        from_ms = until_ms - BACK_MS if self.limits.from_ms is None else min(self.limits.from_ms, until_ms)
        every = periods_over(known.cut if known else (CALENDAR_MONTHS,), from_ms, until_ms)
        return [period for period in every if self.limits.overlaps(period)]

    def _told(self, now: _Now, meter: Meter, account: _Account) -> None:
        """Compare what the samples say with the adjustments, piece by piece. A row is about all pieces of a period."""
        must = _must(now, meter, account, _FOR_EVER_MS)
        equal, differing = account.compared(must, account.told)
        self.findings.equal(Pair.MEASURED, equal)
        earlier: dict[int, Mapping[Piece, int]] = {}
        for each in differing:
            before_ms = now.told_before_ms(meter, account.name, each.period)
            if before_ms not in earlier:
                earlier[before_ms] = _must(now, meter, account, before_ms)
            wrong = [
                piece
                for piece in each.pieces
                # Of two workers that tell one piece, the first counts; the next pass tells the rest.
                if piece not in account.fresh
                and _end_ms(piece, each.period) <= before_ms
                and must.get(piece, 0) == earlier[before_ms].get(piece, 0)
            ]
            if now.is_moving(account.name) or (not wrong and before_ms == now.measured.as_of_ms):
                self._row(now, meter, account, each, Cause.IN_FLIGHT, ARRIVED.format(len(each.pieces)))
            elif wrong:
                has, should = account.told.get(wrong[0], 0), must.get(wrong[0], 0)
                texts = decimal_text(has, meter.scale), decimal_text(should, meter.scale)
                detail = TOLD.format(len(wrong), instant_text(wrong[0].start_ms), *texts)
                self._row(now, meter, account, each, direction(should, has), detail)
            else:
                # What comes too late for a closed period is told to nobody (I9).
                self.findings.equal(Pair.MEASURED, 1)

    def _relayed(self, now: _Now, meter: Meter, account: _Account) -> None:
        """Compare the adjustments with `usage_hourly`, hour by hour. Late usage counts in a later period, so an hour is
        shown in the period in which it lies."""
        equal, differing = account.compared(account.relayed, account.usage)
        self.findings.equal(Pair.MEASURED, equal)
        for each in differing:
            first = each.pieces[0]
            cause = direction(account.relayed.get(first, 0), account.usage.get(first, 0))
            cause = Cause.IN_FLIGHT if now.is_moving(account.name) else cause
            detail = RELAYED.format(len(each.pieces), instant_text(first.start_ms))
            self._row(now, meter, account, each, cause, detail)

    def _row(self, now: _Now, meter: Meter, account: _Account, of: _Differing, cause: Cause, detail: str) -> None:
        """Add a row with the sums of a period up to the measured instant."""
        expected, found = (decimal_text(minor, meter.scale) for minor in (of.expected, of.found))
        row = Row(
            Pair.MEASURED, cause, now.partition, account.name, meter.slug, of.period,
            dimensions="" if of.dimensions == "{}" else of.dimensions, expected=expected, found=found, detail=detail,
        )  # fmt: skip
        self.findings.add(row)


def _now(
    partition: int, reached: ArchivePosition, measured: MeasuredTo, rows: Sequence[ControlRow], settled_ms: int
) -> _Now:
    corrections: dict[str, list[tuple[int, CorrectionRecord]]] = {}
    for row in rows:
        if row.kind == ControlKind.CORRECTION:
            record = CorrectionRecord.model_validate_json(row.value)
            corrections.setdefault(record.account, []).append((row.stream_time_ms, record))
    return _Now(
        partition,
        position(reached.next_offset),
        reached.stream_time_ms,
        measured,
        history_of(rows, reached.stream_time_ms),
        corrections,
        {row.account: row.stream_time_ms for row in rows if row.kind in (ControlKind.BINDING, ControlKind.RESTATEMENT)},
        {row.position: row.stream_time_ms for row in rows if row.kind == ControlKind.CLOSE},
        settled_ms,
    )


def _meters(history: History) -> list[tuple[Meter, list[MeasuredSpan]]]:
    """The measured meters of the meter set now, with the positions at which they were in force."""
    spans: dict[str, list[MeasuredSpan]] = {}
    for span in history.meters:
        if span.meter.aggregation.rule.measured:
            own = spans.setdefault(span.meter.slug, [])
            own.append(MeasuredSpan(span.from_position, span.before_position))
    return [(history.definitions[slug], own) for slug, own in spans.items() if own[-1].before_position == POSITION_MAX]


def _must(now: _Now, meter: Meter, account: _Account, before_ms: int) -> dict[Piece, int]:
    """What the pieces must hold by what arrived before an instant."""
    voided = now.voided(account.name, before_ms)
    samples = (each for each in account.samples if each.stream_time_ms < before_ms and each.id not in voided)
    return held(meter, samples, account.periods, now.measured.until_ms)


def _has_other_payers(known: AccountHistory, start_ms: int) -> bool:
    """Whether others may pay later than at an instant: then a closed period keeps out what comes late."""
    payer = known.customer_at(start_ms)
    if payer is None or payer.billing is Billing.UNMAPPED:
        return False
    who = (payer.billing, payer.stripe_customer)
    return any((each.binding.billing, each.binding.stripe_customer) != who for each in known.namings)


def _end_ms(piece: Piece, period: Period) -> int:
    return min(piece.start_ms - piece.start_ms % HOUR_MS + HOUR_MS, period.end_ms)
