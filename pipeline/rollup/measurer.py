"""The measurer: turns the samples of measured meters into adjustments (S15).

It reads the samples from the archive, computes what every piece must hold, and appends what the archived adjustments
lack. It has no state of its own: a restart reads again what may still change, finds it told, and appends nothing.
Adjustments have ids that depend only on what was read, so two measurers of one partition do no harm: of two
adjustments with one id, the first counts, and the next pass looks again at accounts that were told something. A pass
begins once the archive has passed whatever the log held after the last append.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from aggregators.bindings import is_payable_in
from aggregators.deferred import far_late_us
from aggregators.instants import format_instant_ms
from aggregators.measures import (
    Difference,
    difference_id,
    differences,
    id_prefix,
    must_hold,
    reaches_back_us,
    reaches_beyond,
    read_samples,
    told_by_piece,
)
from aggregators.meters import in_force_after
from aggregators.periods import is_closed, open_period, period_at
from pipeline.logs.adjustments import append_adjustments
from schemas.adjustments import adjustment
from schemas.analytics import ArchivePosition, ArchiveStore
from schemas.clock import DAY_MS, HOUR_MS, MILLISECOND_US, MINUTE_MS
from schemas.control import ControlKind, MeterSetRecord
from schemas.events import object_of
from schemas.live_view import AccountDirectory, MeasuredInstants
from schemas.log import EVENTS_TOPIC, POSITION_MAX, Log, position
from schemas.measures import ArchivedAdjustment, ArchivedSample, MeasureArchive, MeasuredSpan, MeasuredTo
from schemas.meters import LatePolicy, Meter, MeterSet, Policy
from schemas.periods import AccountState

# A partition is measured once in every span of stream time of this length.
PASS_MS: Final = 5 * MINUTE_MS
# Accounts that one query asks of.
ACCOUNTS_MAX: Final = 100
# Samples and adjustments that are read at once. An account with more in one period is left out, and named in the log.
SAMPLES_MAX: Final = 1_000_000
# So many adjustments that the fold defers are told in one pass: Redis holds them until they are decided.
FAR_LATE_MAX: Final = 20_000
# So many are compared in the event loop: a fraction of a second.
INLINE_MAX: Final = 5_000
# How far a measurer that starts looks back beyond the oldest sample that may still come: samples, corrections and
# bindings that arrived while no measurer ran are of that time.
START_MS: Final = 35 * DAY_MS

_log: Final = logging.getLogger(__name__)


class Measured(NamedTuple):
    """What a call told, and the instant up to which all pieces are told, 0 before the first pass. `left_out` are
    accounts with too many samples, `meters` the number of measured meters then."""

    told: int = 0
    left_out: int = 0
    until_ms: int = 0
    meters: int = 0


class _Pass(NamedTuple):
    """A pass over one meter. `before` is the archive's position. `moved` are the accounts whose periods may have
    moved, and from when on. Nothing before `earliest_ms` is looked at. The fold defers adjustments from before
    `far_late_ms`. `is_part`: another pass looks at what comes after `until_ms`."""

    partition: int
    meter: Meter
    spans: Sequence[MeasuredSpan]
    before: int
    until_ms: int
    earliest_ms: int
    moved: Mapping[str, int]
    stream_time_ms: int
    policy: Policy
    is_part: bool = False

    @property
    def far_late_ms(self) -> int:
        return far_late_us(self.policy, self.stream_time_ms) // MILLISECOND_US

    def is_kept_out(self, state: AccountState, difference: Difference) -> bool:
        """Whether the fold would keep the adjustment out, because the piece's period is closed: it would come again
        with each pass."""
        period, now_ms = period_at(state, difference.key.start_ms), self.stream_time_ms
        if not is_closed(state, period, self.policy.grace_ms, now_ms):
            return False
        is_payable = is_payable_in(state, difference.key.start_ms, open_period(state, now_ms))
        return self.meter.late is LatePolicy.QUARANTINE or not is_payable

    def event(self, account: str, difference: Difference) -> dict[str, Any]:
        """The adjustment that tells a difference."""
        key, meter = difference.key, self.meter
        notes = {"from": format_instant_ms(key.start_ms), "to": format_instant_ms(difference.end_ms)}
        named = object_of(key.dimensions.encode())
        return adjustment(
            meter, account, difference_id(meter, difference), notes["from"], difference.minor, named, notes
        )


class _Page(NamedTuple):
    """What came of some accounts. `waiting` are those whose samples reach beyond the instant of the pass; `again` those
    that were told something, and from when on they were looked at."""

    told: int
    left_out: set[str]
    waiting: set[str]
    again: dict[str, int]


@dataclass(slots=True)
class _Partition:
    """How far the measurer has come. `waiting` are accounts whose samples reach beyond `until_ms`, by meter."""

    since: int = 0
    until_ms: int = 0
    # The archive must pass this offset before the next pass.
    behind: int = 0
    # How many far-late adjustments the pass may still tell, and whether it has held back others.
    room: int = 0
    is_cut: bool = False
    left_out: dict[str, set[str]] = field(default_factory=dict)
    meters: int = 0
    waiting: dict[str, set[str]] = field(default_factory=dict)
    # Accounts that the last pass told something, and from when on, by meter: another measurer may have used the same
    # ids for other quantities.
    again: dict[str, dict[str, int]] = field(default_factory=dict)
    # Accounts with a binding that the fold has not come to, or that waits for a restatement, and from when on it moves
    # periods.
    moved: dict[str, int] = field(default_factory=dict)

    @property
    def left_out_accounts(self) -> int:
        return sum(map(len, self.left_out.values()))


class Measurer:
    """Appends the adjustments of measured meters; knows no Faust."""

    def __init__(
        self,
        log: Log,
        accounts: AccountDirectory,
        archive: ArchiveStore,
        samples: MeasureArchive,
        instants: MeasuredInstants,
        delay_ms: int,
    ) -> None:
        """`delay_ms`: how long after its end a piece is told; most samples of its time have arrived by then."""
        self._instants = instants
        self._delay_ms = delay_ms
        self._log = log
        self._accounts = accounts
        self._archive = archive
        self._samples = samples
        self._partitions: dict[int, _Partition] = {}

    async def measure(self, partition: int) -> Measured:
        """Tell what one partition's pieces lack that have ended `delay_ms` before the archive's stream time.

        Raises `Transient` if a store or the log does not answer; the next call makes the same adjustments.
        """
        known = self._partitions.setdefault(partition, _Partition())
        reached = await self._archive.load_position(partition)
        if reached is None or reached.next_offset < known.behind:
            return Measured(0, known.left_out_accounts, known.until_ms, known.meters)
        until_ms, before = reached.stream_time_ms - self._delay_ms, position(reached.next_offset)
        if until_ms // PASS_MS <= known.until_ms // PASS_MS:
            return Measured(0, known.left_out_accounts, known.until_ms, known.meters)
        rebuilt = await self._archive.events_rebuilt()
        policy, in_force = await self._in_force(partition, reached)
        checkpoint, _ = await self._accounts.accounts(partition, ())
        # A start takes the periods of accounts from a fold that knows all bindings that the archive has.
        folded = known.behind if known.since else max(known.behind, reached.next_offset)
        if rebuilt is None or checkpoint is None or checkpoint.next_offset < folded:
            return Measured(0, known.left_out_accounts, known.until_ms, known.meters)
        known.room, known.is_cut = FAR_LATE_MAX, False
        # Later passes see all that has arrived since, however old.
        earliest_ms = 0 if known.since else max(0, reached.stream_time_ms - policy.late_max_ms - START_MS)
        moved = dict(known.moved)
        for account, bound_ms in (await self._samples.bound(partition, known.since, before)).items():
            moved[account] = min(bound_ms, moved.get(account, bound_ms))
        unsettled = await self._unsettled(partition, moved, before)
        told = 0
        waiting: dict[str, set[str]] = {}
        again: dict[str, dict[str, int]] = {}
        left_out: dict[str, set[str]] = {}
        for meter, spans in in_force:
            pass_ = _Pass(partition, meter, spans, before, until_ms, earliest_ms, moved, reached.stream_time_ms, policy)
            slug = meter.slug
            from_ms, waiting[slug] = await self._changed(pass_, known)
            again[slug] = {name: ms for name, ms in known.again.get(slug, {}).items() if name not in from_ms}
            left_out[slug] = known.left_out.get(slug, set()) - from_ms.keys()
            accounts = sorted(from_ms)
            for first in range(0, len(accounts), ACCOUNTS_MAX):
                page = accounts[first : first + ACCOUNTS_MAX]
                found = await self._page(pass_, {account: from_ms[account] for account in page})
                told += found.told
                left_out[slug] |= found.left_out
                waiting[slug] |= found.waiting
                again[slug] |= found.again
        if known.is_cut:
            # The next call begins this pass again.
            return Measured(told, known.left_out_accounts, known.until_ms, len(in_force))
        if await self._archive.events_rebuilt() != rebuilt:
            # A table that was just exchanged may lack samples below its position for a moment: they would be passed.
            return Measured(told, known.left_out_accounts, known.until_ms, len(in_force))
        known.since, known.until_ms, known.waiting, known.left_out = before, until_ms, waiting, left_out
        known.moved, known.again = unsettled, again
        # Noted after the appends: a flush that follows the note in the log follows the adjustments.
        await self._instants.note_measured(partition, MeasuredTo(reached.log_id, until_ms, reached.stream_time_ms))
        known.meters = len(in_force)
        return Measured(told, known.left_out_accounts, until_ms, known.meters)

    async def _changed(self, now: _Pass, known: _Partition) -> tuple[dict[str, int], set[str]]:
        """The accounts with pieces that have ended and may have changed, and the instant from which on; and accounts of
        which no such piece has ended."""
        slug, back_us = now.meter.slug, reaches_back_us(now.meter)
        earliest_ms = max(0, now.earliest_ms - back_us // MILLISECOND_US)
        sampled = await self._samples.sampled(now.partition, now.meter, now.spans, known.since, now.before)
        if now.meter.start_path is not None:
            # The archive answers with the starts of spans.
            back_us = 0
        changed = {
            account: max((time_us - back_us) // MILLISECOND_US, earliest_ms) for account, time_us in sampled.items()
        }
        for account, moved_ms in now.moved.items():
            # The first pass knows all accounts with samples.
            if account in changed or known.since:
                changed[account] = max(earliest_ms, min(moved_ms - 1, changed.get(account, moved_ms)))
        if not known.since:
            # What was corrected while no measurer ran may be older than any sample that a start looks at.
            since_ms = now.stream_time_ms - START_MS
            corrected = await self._samples.corrected(now.partition, now.meter, since_ms, now.before)
            for account in corrected.keys() & changed.keys():
                changed[account] = min(max(0, (corrected[account] - back_us) // MILLISECOND_US), changed[account])
        for account in known.waiting.get(slug, ()):
            changed[account] = min(known.until_ms, changed.get(account, known.until_ms))
        ended = await self._ended(now, changed)
        from_ms = {account: changed[account] for account in ended}
        for account, told_ms in known.again.get(slug, {}).items():
            # An account that waits is looked at when its next piece ends.
            if account in from_ms or account not in changed:
                from_ms[account] = min(told_ms, from_ms.get(account, told_ms))
        return from_ms, changed.keys() - from_ms.keys()

    async def _unsettled(self, partition: int, moved: Mapping[str, int], before: int) -> dict[str, int]:
        """Of the accounts with bindings, those whose periods may still move."""
        unsettled: dict[str, int] = {}
        accounts = sorted(moved)
        for first in range(0, len(accounts), ACCOUNTS_MAX):
            page = accounts[first : first + ACCOUNTS_MAX]
            checkpoint, states = await self._accounts.accounts(partition, page)
            is_behind = checkpoint is None or position(checkpoint.next_offset) < before
            unsettled |= {each: moved[each] for each in page if is_behind or states[each].pending is not None}
        return unsettled

    async def _ended(self, now: _Pass, from_ms: Mapping[str, int]) -> set[str]:
        """The accounts of which a piece has ended since an instant."""
        hour_ms = now.until_ms // HOUR_MS * HOUR_MS
        ended = {account for account, instant_ms in from_ms.items() if instant_ms < hour_ms}
        accounts = sorted(from_ms.keys() - ended)
        for first in range(0, len(accounts), ACCOUNTS_MAX):
            page = accounts[first : first + ACCOUNTS_MAX]
            _, states = await self._accounts.accounts(now.partition, page)
            ended.update(each for each in page if period_at(states[each], from_ms[each]).end_ms <= now.until_ms)
        return ended

    async def _in_force(
        self, partition: int, reached: ArchivePosition
    ) -> tuple[Policy, list[tuple[Meter, list[MeasuredSpan]]]]:
        """The policy in force, and the measured meters with the positions at which they were in the meter set."""
        rows = await self._archive.load_controls(partition, position(reached.next_offset), ())
        current: MeterSet | None = None
        begun: dict[str, int] = {}
        spans: dict[str, list[MeasuredSpan]] = {}
        for row in rows:
            if row.kind != ControlKind.METER_SET:
                continue
            current = in_force_after(current, MeterSetRecord.model_validate_json(row.value).meter_set)
            named = {meter.slug for meter in current.meters if meter.aggregation.rule.measured}
            for slug in begun.keys() - named:
                spans.setdefault(slug, []).append(MeasuredSpan(begun.pop(slug), row.position))
            for slug in named - begun.keys():
                begun[slug] = row.position
        for slug, start in begun.items():
            spans.setdefault(slug, []).append(MeasuredSpan(start, POSITION_MAX))
        meter_set = current or MeterSet(version=1, meters=())
        return meter_set.policy, [(meter, spans[meter.slug]) for meter in meter_set.meters if meter.slug in begun]

    async def _page(self, now: _Pass, from_ms: Mapping[str, int]) -> _Page:
        """Measure some accounts, each from the period of its own instant on."""
        accounts = list(from_ms)
        _, states = await self._accounts.accounts(now.partition, accounts)
        starts_ms = {account: period_at(states[account], from_ms[account]).start_ms for account in accounts}
        read = await self._read(now, accounts, min(starts_ms.values()))
        if read is None:
            return await self._split(now, from_ms, states)
        compare = partial(_compared, now, states, starts_ms, *read)
        is_large = sum(map(len, read)) > INLINE_MAX
        # A million samples take half a minute: in the event loop, nothing would be counted meanwhile.
        made, waiting = await asyncio.to_thread(compare) if is_large else compare()
        events: list[dict[str, Any]] = []
        again: dict[str, int] = {}
        kept_out: dict[str, int] = {}
        for account, lacking in made.items():
            may_be_told = [each for each in lacking if not now.is_kept_out(states[account], each)]
            if len(may_be_told) < len(lacking):
                kept_out[account] = sum(each.minor for each in lacking) - sum(each.minor for each in may_be_told)
            if found := [now.event(account, each) for each in may_be_told if self._fits(now, each)]:
                events += found
                again[account] = min(each.key.start_ms for each in may_be_told)
        if kept_out:
            # Samples are never late, so the quarantine has nothing of it.
            text = "%s: closed periods keep out %s minor units of %d accounts, such as %s"
            _log.warning(text, now.meter.slug, sum(kept_out.values()), len(kept_out), min(kept_out))
        if events:
            await append_adjustments(self._log, now.partition, events)
            # Also if a later page fails: what was told must be archived before the next pass.
            self._partitions[now.partition].behind = (await self._log.bounds(EVENTS_TOPIC, now.partition)).next
        return _Page(len(events), set(), waiting, again)

    async def _read(
        self, now: _Pass, accounts: Sequence[str], start_ms: int
    ) -> tuple[Sequence[ArchivedSample], Sequence[ArchivedAdjustment]] | None:
        """The samples and the adjustments of accounts from an instant on; None if there are too many."""
        meter, from_us, rows_max = now.meter, start_ms * MILLISECOND_US, SAMPLES_MAX + 1
        end_us = now.until_ms * MILLISECOND_US if now.is_part else None
        until_us = None if end_us is None else end_us + reaches_back_us(meter)
        rows = await self._samples.samples(
            now.partition, meter, now.spans, accounts, from_us, now.before, rows_max, until_us
        )
        if len(rows) > SAMPLES_MAX:
            return None
        told = await self._samples.told(
            now.partition, accounts, id_prefix(meter), now.before, from_us, end_us, rows_max
        )
        return None if len(rows) + len(told) > SAMPLES_MAX else (rows, told)

    async def _split(self, now: _Pass, from_ms: Mapping[str, int], states: Mapping[str, AccountState]) -> _Page:
        """Measure the halves of a page that is too large, or one account's first period and then its others: the
        quantities of a period do not depend on other periods. An account with too many samples in one period is looked
        at again in each pass."""
        accounts = list(from_ms)
        half = len(accounts) // 2
        first, rest = dict(list(from_ms.items())[:half]), dict(list(from_ms.items())[half:])
        first_pass = now
        if not half:
            (account,) = accounts
            end_ms = period_at(states[account], from_ms[account]).end_ms
            if end_ms >= now.until_ms:
                _log.error("%s: %s has more than %d samples in a period", now.meter.slug, account, SAMPLES_MAX)
                return _Page(0, {account}, {account}, dict(from_ms))
            first_pass, first, rest = now._replace(until_ms=end_ms, is_part=True), rest, {account: end_ms}
        one = await self._page(first_pass, first)
        two = await self._page(now, rest)
        return _Page(one.told + two.told, one.left_out | two.left_out, one.waiting | two.waiting, two.again | one.again)

    def _fits(self, now: _Pass, difference: Difference) -> bool:
        """Whether an adjustment is told in this pass; takes its room."""
        known = self._partitions[now.partition]
        if difference.key.start_ms >= now.far_late_ms:
            return True
        known.is_cut = known.is_cut or not known.room
        known.room = max(0, known.room - 1)
        return not known.is_cut


def _compared(
    now: _Pass,
    states: Mapping[str, AccountState],
    starts_ms: Mapping[str, int],
    rows: Sequence[ArchivedSample],
    told: Sequence[ArchivedAdjustment],
) -> tuple[dict[str, list[Difference]], set[str]]:
    """What the pieces of accounts lack, and the accounts that wait."""
    meter = now.meter
    decoded = {text: object_of(text.encode()) for text in {row.data for row in rows} | {row.data for row in told}}
    samples_of = {account: list[ArchivedSample]() for account in states}
    told_of = {account: list[ArchivedAdjustment]() for account in states}
    for row in rows:
        samples_of[row.account].append(row)
    for each in told:
        told_of[each.account].append(each)
    made: dict[str, list[Difference]] = {}
    waiting: set[str] = set()
    for account, state in states.items():
        samples, start_ms = read_samples(meter, samples_of[account], decoded), starts_ms[account]
        must, ends_ms = must_hold(meter, samples, state, start_ms, now.until_ms)
        # What was told of later pieces stands: with a greater delay, the instant of the pass may lie before them.
        until_ms = max(ends_ms.values(), default=start_ms)
        made[account] = differences(must, told_by_piece(meter, told_of[account], decoded), ends_ms, start_ms, until_ms)
        if reaches_beyond(meter, samples, now.until_ms):
            waiting.add(account)
    return made, waiting
