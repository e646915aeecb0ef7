"""The rollup: records of `usage.events` → one atomic commit of marks, totals, cells, outbox and fence.

One flush, and what a crash leaves after each step:
1. scan, plan, read at the fence: nothing was written.
2. append what is not counted to `usage.rejected`: entries that will be written again under the same position.
3. commit: all of it and the new fence, or nothing. Reading starts at the fence (I2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from aggregators.decode import raw_events
from aggregators.expiry import NEVER_MS, expire, looks_max, with_expired
from aggregators.fold import fold
from aggregators.marks import unchanged_until_ms
from aggregators.plan import place, plan
from aggregators.recut import recut_changes, recut_of, replaced_reports
from aggregators.scan import AccountControl, Arrival, LogState, Quarantined, Scan, scan
from aggregators.signing import fingerprint, hash_key
from pipeline.deployment import find_genesis
from pipeline.processors.cache import StateCache
from pipeline.processors.checkpoints import Checkpoints
from pipeline.processors.quarantine import quarantine
from pipeline.processors.start import check_fresh, check_position
from pipeline.processors.witness import Witness
from schemas.clock import Clock
from schemas.errors import Fenced, OperatorNeeded, Transient
from schemas.log import EVENTS_TOPIC, Log, Record, index_of, offset_of
from schemas.meters import Policy
from schemas.periods import AccountState
from schemas.reasons import Reason
from schemas.rollup import Changes, Counters, DueTotal, Fence, Parked, ReadRequest, RollupStore, View

ROLLUP_GROUP: Final = "tidemark-rollup"
COMMIT_ATTEMPTS_MAX: Final = 6
REMEDY: Final = (
    "Restore the store's append-only file or a replica that has the fence, or build it again from the log with "
    "`tidemark rebuild redis` (if that was never used, `tidemark worker --replay-from-start` does it too)."
)


class RollupSettings(NamedTuple):
    """Limits of one flush. `replay_from_start` allows a partition without state to be folded from offset 0 again."""

    flush_events_max: int = 20_000
    cache_entries_max: int = 500_000
    replay_from_start: bool = False


class RollupProcessor:
    """Holds the fence of each partition it was given; see `schemas.processing.Processor`."""

    def __init__(
        self,
        log: Log,
        store: RollupStore,
        clock: Clock,
        secret: bytes,
        settings: RollupSettings | None = None,
        witness: Witness | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._log = log
        self._store = store
        self._clock = clock
        self._secret = secret
        self._hash_key = hash_key(secret)
        self._settings = settings or RollupSettings()
        self._witness = witness
        self._checkpoints = checkpoints
        self._replay_until: dict[int, int] = {}
        self._fences: dict[int, Fence] = {}
        self._caches: dict[int, StateCache] = {}

    @property
    def topic(self) -> str:
        """`usage.events`."""
        return EVENTS_TOPIC

    @property
    def fences(self) -> Mapping[int, Fence]:
        """The fence of each owned partition, as last committed."""
        return self._fences

    def owned(self) -> set[int]:
        """The partitions this process folds at the moment."""
        return set(self._fences)

    async def start_offset(self, partition: int) -> int:
        """The fence's next offset, after checking that log, store and secret belong together."""
        committed = await self._log.committed(ROLLUP_GROUP, EVENTS_TOPIC, partition)
        fence = await self._store.load_fence(partition) or await self._first_fence(partition, committed)
        if fence.secret_fingerprint != fingerprint(self._secret):
            raise OperatorNeeded(
                f"partition {partition}: the marks were keyed by another TIDEMARK_SECRET; set the secret this "
                "deployment was made with, or duplicates would be counted"
            )
        bounds = await self._log.bounds(EVENTS_TOPIC, partition)
        genesis = await find_genesis(self._log, self._secret, partition, fence.log_id)
        # Where retention has taken the log's start, the ticks behind it name the log; there may be none just now.
        if (genesis is None and bounds.first == 0) or (genesis is not None and genesis.log_id != fence.log_id):
            raise OperatorNeeded(
                f"partition {partition}: the store belongs to log {fence.log_id}, this log is "
                f"{genesis.log_id if genesis else 'without genesis'}. Point TIDEMARK_REDIS_URL or "
                "TIDEMARK_LOG_URL at the pair that belongs together."
            )
        await check_position(self._log, EVENTS_TOPIC, partition, fence.next_offset, REMEDY)
        self._fences[partition] = fence
        self._caches[partition] = StateCache(self._settings.cache_entries_max)
        self._replay_until[partition] = self._witness.delivered(partition) if self._witness else 0
        return fence.next_offset

    async def _first_fence(self, partition: int, committed: int | None) -> Fence:
        """No fence is legal only where nothing was ever counted (§6)."""
        if not self._settings.replay_from_start:
            await check_fresh(self._log, ROLLUP_GROUP, EVENTS_TOPIC, partition, committed, REMEDY)
        bounds = await self._log.bounds(EVENTS_TOPIC, partition)
        genesis = await find_genesis(self._log, self._secret, partition)
        if bounds.first > 0 or genesis is None:
            raise OperatorNeeded(f"{EVENTS_TOPIC}-{partition} has no genesis record at its start. {REMEDY}")
        fence = Fence(
            log_id=genesis.log_id,
            partitions=genesis.partitions,
            livemode=genesis.livemode,
            stripe_account=genesis.stripe_account,
            generation=1,
            next_offset=0,
            log_time_ms=0,
            secret_fingerprint=fingerprint(self._secret),
            catalog=None,
            counters=Counters(),
            slices=(),
        )
        await self._store.create_fence(partition, fence)
        return fence

    async def step(self, partition: int, records: Sequence[Record]) -> None:
        """Fold the records in one or more flushes; returns when all are committed."""
        left = [record for record in records if record.offset >= self._fences[partition].next_offset]
        if left and self._witness:
            self._witness.note_delivery(partition, left[-1].next_offset)
        while left:
            again = [record for record in left if record.offset < self._replay_until[partition]]
            before = self._fences[partition].counters.received
            await self._flush(partition, again or left)
            fence = self._fences[partition]
            if again and self._witness:
                self._witness.note_replay(partition, fence.counters.received - before)
            left = [record for record in left if record.offset >= fence.next_offset]
            if self._checkpoints:
                await self._checkpoints.after_flush(partition, fence)

    async def _flush(self, partition: int, records: Sequence[Record]) -> None:
        fence, cache = self._fences[partition], self._caches[partition]
        policy = fence.catalog.policy if fence.catalog else Policy()
        first_ms = max(fence.log_time_ms, records[0].timestamp_ms)
        scanned = scan(
            partition,
            LogState(fence.log_id, fence.partitions, fence.log_time_ms, fence.catalog),
            self._secret,
            records,
            before_ms=unchanged_until_ms(fence.slices, first_ms, policy.window_ms),
            events_max=self._settings.flush_events_max,
        )
        if (step := recut_of(scanned)) is not None:
            await self._recut(partition, fence, scanned, step)
            return
        due = await self._due(partition, fence, scanned)
        states = await self._account_states(partition, fence, scanned.accounts | {each.key.account for each in due})
        parked = await self._parked(partition, fence, scanned.judged)
        raws = _Raws(records)
        placement = place(scanned, states, parked, raws)
        planned = plan(scanned, placement, fence, self._hash_key)
        expired = expire(scanned, due, states)
        request = planned.request._replace(totals=[*planned.request.totals, *expired.retired])
        view = cache.completed(request, await self._store.read(partition, fence, cache.missing(request)))
        folded = fold(fence, planned, view)
        changes = with_expired(folded.changes, expired, view)
        kept_out = [_late(arrival, raws) for arrival in folded.late]
        kept_out += [_refused(arrival) for arrival in folded.refused]
        await quarantine(self._log, EVENTS_TOPIC, partition, [*scanned.quarantined, *kept_out])
        await self._commit(partition, fence, changes)
        self._fences[partition] = changes.fence
        if due:
            cache.due_ms = expired.next_due_ms
        cache.apply(changes)

    async def _recut(self, partition: int, fence: Fence, scanned: Scan, step: AccountControl) -> None:
        """A flush of one record, which puts an account's usage into other periods."""
        policy = fence.catalog.policy if fence.catalog else Policy()
        account = step.control.account
        request = ReadRequest(accounts=[account], reports=replaced_reports(step, policy))
        view = await self._store.read(partition, fence, request)
        changes = recut_changes(fence, scanned, step, view.accounts[account], dict(view.reports))
        await self._commit(partition, fence, changes)
        self._fences[partition] = changes.fence
        self._caches[partition] = StateCache(self._settings.cache_entries_max)

    async def _due(self, partition: int, fence: Fence, scanned: Scan) -> Sequence[DueTotal]:
        """The totals that these records may have to let go; hardly ever any, and then one more read."""
        cache = self._caches[partition]
        if scanned.state.log_time_ms < cache.due_ms:
            return ()
        due = (await self._store.read(partition, fence, ReadRequest(due_max=looks_max(scanned) + 1))).due
        if not due:
            cache.due_ms = NEVER_MS
        return due

    async def _account_states(self, partition: int, fence: Fence, accounts: set[str]) -> Mapping[str, AccountState]:
        cache = self._caches[partition]
        unknown = sorted(account for account in accounts if account not in cache.accounts)
        if unknown:
            view: View = await self._store.read(partition, fence, ReadRequest(accounts=unknown))
            # The cache forgets everything where it is full: what this flush needs is taken out before.
            states = {account: cache.accounts[account] for account in accounts if account in cache.accounts}
            cache.remember_accounts(view.accounts)
            return {**states, **view.accounts}
        return cache.accounts

    async def _parked(self, partition: int, fence: Fence, positions: Sequence[int]) -> Mapping[int, Parked]:
        if not positions:
            return {}
        return (await self._store.read(partition, fence, ReadRequest(parked=positions))).parked

    async def _commit(self, partition: int, fence: Fence, changes: Changes) -> None:
        """Commit; after a lost answer look at the fence to learn whether it was applied. Bounded, then `Transient`."""
        for attempt in range(COMMIT_ATTEMPTS_MAX):
            try:
                await self._store.commit(partition, fence, changes)
            except Transient as error:
                if attempt + 1 == COMMIT_ATTEMPTS_MAX:
                    raise
                await self._clock.sleep(error.retry_after_s * 2**attempt / 10)
                stored = await self._stored_fence(partition)
                if stored == changes.fence:
                    return
                if stored is not None and stored != fence:
                    raise Fenced(f"partition {partition}: another process committed while this one waited") from error
            else:
                return

    async def _stored_fence(self, partition: int) -> Fence | None:
        try:
            return await self._store.load_fence(partition)
        except Transient:
            return None

    async def revoked(self, partition: int) -> None:
        """Forget the partition's fence and cache."""
        self._fences.pop(partition, None)
        self._caches.pop(partition, None)

    async def idle(self, partition: int) -> None:
        """Nothing to do: log time moves by ticks, in the log."""


class _Raws:
    """The text of arrivals as it came; takes each record apart once."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._values = {record.offset: record.value or b"" for record in records}
        self._parts: dict[int, Sequence[bytes]] = {}

    def __call__(self, arrival: Arrival) -> bytes:
        offset = offset_of(arrival.position)
        if offset not in self._parts:
            self._parts[offset] = raw_events(self._values[offset])
        return self._parts[offset][index_of(arrival.position)]


def _late(arrival: Arrival, raws: _Raws) -> Quarantined:
    detail = f"{arrival.account}: its period is closed and a meter says quarantine"
    if arrival.parked is not None:
        return _quarantined(arrival.parked, Reason.PERIOD_CLOSED, detail)
    return Quarantined(arrival.position, arrival.log_time_ms, Reason.PERIOD_CLOSED, detail, raws(arrival))


def _refused(arrival: Arrival) -> Quarantined:
    assert arrival.parked is not None, "only parked events need room"  # noqa: S101 - an invariant, not input
    detail = f"{arrival.account}: policy.parked_max events of this partition wait for their verdict already"
    return _quarantined(arrival.parked, Reason.TOO_MANY_PARKED, detail)


def _quarantined(parked: Parked, reason: Reason, detail: str) -> Quarantined:
    return Quarantined(parked.position, parked.log_time_ms, reason, detail, parked.raw.encode())
