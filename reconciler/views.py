"""The views that are compared, the limits of one reconciliation, and the state of the archive at a checkpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from aggregators.mrr import AmountOf
from reconciler.causes import Cause, Pair
from reconciler.history import history_of
from reconciler.recount import PartitionState
from reconciler.report import ROWS_MAX, Findings, Row
from schemas.analytics import ArchivePosition, HourlyStore, UsageReader
from schemas.bills import Bills
from schemas.clock import MINUTE_MS, Clock
from schemas.credits import Credits
from schemas.entitlement_recount import EntitlementRecount
from schemas.errors import InvalidInput, OperatorNeeded, Refused, Transient
from schemas.invoices import StripeInvoices
from schemas.live_view import LiveView
from schemas.log import Log, position
from schemas.measured_recount import MeasuredRecount
from schemas.reports import StripeMeters, StripeRejections
from schemas.revenue import RevenueStores
from schemas.rollup import Checkpoint
from schemas.side_tables import SideTables

ARCHIVE_POLLS: Final = 40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Views:
    """The views to compare. `stripe` is None if no reporting is configured. `rejections` reads what Stripe rejected
    after answering 200; if it is None, a shortage at Stripe is reported as such a rejection. Without `invoices`, as
    without a key, nothing is said about bills and the mirror. `bills` knows what was written off, `recount` computes
    entitlements a second time, `revenue` has what revenue is computed from, and `amounts` what items cost, None before
    the first catalog. `credits` is the ledger of credits. `measured` reads the samples of measured meters. `no_tables`
    says why the side tables cannot be read, "" if the deployment has none."""

    live: LiveView
    reader: UsageReader
    hourly: HourlyStore
    log: Log
    stripe: StripeMeters | None = None
    rejections: StripeRejections | None = None
    invoices: StripeInvoices | None = None
    tables: SideTables | None = None
    bills: Bills | None = None
    no_tables: str = ""
    recount: EntitlementRecount | None = None
    revenue: RevenueStores | None = None
    amounts: Callable[[], Awaitable[AmountOf | None]] | None = None
    credits: Credits | None = None
    measured: MeasuredRecount | None = None


@dataclass(frozen=True, slots=True)
class ReconcilePolicy:
    """Limits of one reconciliation.

    `partitions_at_once`: partitions compared, and kept in memory, at one time. `totals_per_read`: totals read from
    Redis in one transaction. `archive_wait_s`: how long to wait until the archive reaches a checkpoint. `reports_max`:
    entries of `billing.reports` per partition; over the limit, intents are unchecked. `stripe_*`: reads of Stripe in
    all, at one time and per second (Stripe allows 25/s and at least 10 000 a month). `stripe_settle_ms`: how long an
    accepted meter event may take to show in Stripe's summaries. `measured_rows_max`: samples and adjustments in
    memory at one time; accounts are read together up to the limit, and one over the limit is unchecked.
    """

    partitions_at_once: int = 4
    totals_per_read: int = 500
    archive_wait_s: float = 10.0
    reports_max: int = 5_000_000
    stripe_reads_max: int = 5_000
    stripe_concurrency_max: int = 4
    stripe_reads_per_s: float = 15.0
    stripe_settle_ms: int = 15 * MINUTE_MS
    rows_max: int = ROWS_MAX
    measured_rows_max: int = 500_000


class Behind(NamedTuple):
    """Why a position cannot be recounted yet."""

    detail: str


class PartitionStates:
    """Makes the states of checkpoints that the archive has reached. Waits for the archive for a limited time."""

    def __init__(self, reader: UsageReader, clock: Clock, archive_wait_s: float) -> None:
        self._reader = reader
        self._clock = clock
        self._archive_wait_s = archive_wait_s
        self._last: dict[int, PartitionState] = {}

    async def at(self, partition: int, checkpoint: Checkpoint) -> PartitionState | Behind:
        """The state at a checkpoint, or how far the archive is behind the checkpoint. Blocks for `archive_wait_s` at
        most. Raises `OperatorNeeded` if the archive belongs to another log."""
        last = self._last.get(partition)
        if last is not None and last.checkpoint.next_offset == checkpoint.next_offset:
            return last
        reached = await self._wait(partition, checkpoint)
        if checkpoint.next_offset and (reached is None or reached.next_offset < checkpoint.next_offset):
            return Behind(_behind(reached, checkpoint))
        rows = await self._reader.controls(partition, position(checkpoint.next_offset))
        state = PartitionState(partition, checkpoint, history_of(rows, checkpoint.stream_time_ms))
        self._last[partition] = state
        return state

    async def archived(self, partition: int, checkpoint: Checkpoint) -> ArchivePosition | None:
        """How far the archive is now. Raises `OperatorNeeded` if the archive belongs to another log."""
        reached = (await self._reader.archive_positions()).get(partition)
        if reached is not None and reached.log_id != checkpoint.log_id:
            raise OperatorNeeded(
                f"partition {partition}: Redis belongs to log {checkpoint.log_id}, the archive to {reached.log_id}; "
                "point TIDEMARK_REDIS_URL and TIDEMARK_CLICKHOUSE_URL at the pair that belongs together"
            )
        return reached

    async def _wait(self, partition: int, checkpoint: Checkpoint) -> ArchivePosition | None:
        reached = await self.archived(partition, checkpoint)
        for _ in range(ARCHIVE_POLLS):
            if reached is not None and reached.next_offset >= checkpoint.next_offset:
                break
            await self._clock.sleep(self._archive_wait_s / ARCHIVE_POLLS)
            reached = await self.archived(partition, checkpoint)
        return reached


def same_log(state: PartitionState, checkpoint: Checkpoint | None) -> Checkpoint:
    """The checkpoint of a later read. Raises `OperatorNeeded` if it does not continue the checkpoint of the state."""
    if (
        checkpoint is None
        or checkpoint.log_id != state.checkpoint.log_id
        or checkpoint.next_offset < state.checkpoint.next_offset
    ):
        raise OperatorNeeded(
            f"partition {state.partition}: Redis was emptied, restored or rebuilt while it was read; run again"
        )
    return checkpoint


def _behind(reached: ArchivePosition | None, checkpoint: Checkpoint) -> str:
    if reached is None:
        return "nothing of this partition is archived yet: start `tidemark archive`"
    offsets = checkpoint.next_offset - reached.next_offset
    late_ms = max(0, checkpoint.stream_time_ms - reached.stream_time_ms)
    return f"the archive is {offsets} records and {late_ms / 1000:.1f} s behind the rollup"


async def attempted(findings: Findings, pair: Pair, partition: int | None, work: Awaitable[T]) -> T | None:
    """The result of a comparison. If a view does not answer, refuses, or holds what cannot be read, adds an `unchecked`
    row and returns None. So one bad row does not end the comparison of the other partitions and views."""
    try:
        return await work
    except ValueError as error:
        # Parsing a text, a number or JSON that a store should not hold raises a kind of ValueError.
        detail = f"a stored value cannot be read: {(str(error).splitlines() or [''])[0][:200]}"
        findings.add(Row(pair, Cause.UNCHECKED, partition, detail=detail))
        return None
    except (Transient, OperatorNeeded, Refused, InvalidInput) as error:
        findings.add(Row(pair, Cause.UNCHECKED, partition, detail=str(error)))
        return None
