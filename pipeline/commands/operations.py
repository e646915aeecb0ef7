"""The commands for meter sets, accounts, quarantine and reconciliation, as functions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

from aggregators.instants import format_instant_ms
from aggregators.meters import definition_change
from aggregators.partitioning import partition_of
from aggregators.periods import period_at
from pipeline.logs.control_records import append_control
from pipeline.logs.quarantine import Header
from pipeline.open import (
    Base,
    apply_meter_set,
    following,
    meter_set_in_force,
    open_base,
    open_live_view,
    open_stripe,
)
from pipeline.settings import Settings
from reconciler.causes import Verdict
from reconciler.report import Report, gauge_values, to_json
from reconciler.run import reconcile
from reconciler.table import render_table
from reconciler.views import ReconcilePolicy, Views
from schemas.control import BindingRecord, CloseRecord
from schemas.errors import InvalidInput, Transient
from schemas.log import INBOX_TOPIC, REJECTED_TOPIC, Log, Record
from schemas.periods import Binding
from sinks.clickhouse.client import open_clickhouse
from sinks.clickhouse.reader import ClickHouseReader
from sinks.clickhouse.writer import ClickHouseStore

READ_RECORDS_MAX = 1_000
_LOG = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def _opened(settings: Settings, *, create: bool = False) -> AsyncIterator[Base]:
    base = await open_base(settings, create=create)
    try:
        yield base
    finally:
        await base.log.close()


async def apply_meter_set_file(settings: Settings, path: Path) -> str:
    """Apply a meter set file. Raises `InvalidInput` if the file contradicts the meter set in force."""
    current = await meter_set_in_force(settings)
    proposed = following(current, path)
    if current is not None:
        change = definition_change(current, proposed)
        if change:
            raise InvalidInput(path.name, change)
        if proposed.version <= current.version and proposed != current:
            raise InvalidInput(f"{path.name}: version", f"must be above {current.version}, the version in force")
    async with _opened(settings, create=True) as base:
        await apply_meter_set(base, proposed)
    return f"meter set version {proposed.version} with {len(proposed.meters)} meters is in the log of every partition"


async def bind_account(settings: Settings, account: str, binding: Binding) -> str:
    """Append a binding to the account's partition; returns a message with the offset."""
    offset, partition = await _append(settings, BindingRecord(account=account, binding=binding))
    return f"{account}: bound by record {offset} of partition {partition}; `tidemark account show` prints the start"


async def _append(settings: Settings, record: BindingRecord | CloseRecord) -> tuple[int, int]:
    async with _opened(settings) as base:
        partition = partition_of(record.account, base.genesis.partitions)
        return await append_control(base.log, settings.secret_bytes(), partition, record), partition


async def show_account(settings: Settings, account: str) -> dict[str, object]:
    """The bindings, customers and periods of an account in the live view, as a JSON object."""
    view = open_live_view(settings)
    try:
        async with _opened(settings) as base:
            partition = partition_of(account, base.genesis.partitions)
            state = await view.accounts.account(partition, account)
            period = period_at(state, base.clock.now_ms())
    finally:
        await view.close()
    return {
        "account": account,
        "partition": partition,
        "current_period": {"start": format_instant_ms(period.start_ms), "end": format_instant_ms(period.end_ms)},
        "bindings": [
            {
                "effective_from": format_instant_ms(binding.effective_from_ms),
                "anchor": format_instant_ms(binding.anchor_ms),
                "interval": f"{binding.interval_count} {binding.interval}",
            }
            for binding in state.bindings
        ],
        "customers": [
            {
                "from": format_instant_ms(payer.from_ms),
                "billing": payer.billing,
                "stripe_customer": payer.stripe_customer,
            }
            for payer in state.customers
        ],
        "closed_periods": [format_instant_ms(start_ms) for start_ms in state.closed_start_ms],
        "counting_again_from": format_instant_ms(state.pending.from_ms) if state.pending else None,
    }


async def close_account_period(settings: Settings, account: str, instant_ms: int) -> str:
    """Append a close record to the account's partition; returns a message with the offset."""
    offset, _ = await _append(settings, CloseRecord(account=account, instant_ms=instant_ms))
    return f"{account}: the period that contains {format_instant_ms(instant_ms)} is closed from record {offset} on"


class QuarantineEntry(NamedTuple):
    """An event in the quarantine. (topic, partition, offset, place) is the original position and the identity."""

    topic: str
    partition: int
    offset: int
    place: int
    reason: str
    detail: str
    stream_time_ms: int
    value: bytes
    cut: bool

    def text(self) -> str:
        """The original bytes as text; invalid UTF-8 is replaced."""
        return self.value.decode("utf-8", "replace")

    def as_json(self) -> dict[str, object]:
        """The entry as a JSON object."""
        return {**self._asdict(), "value": self.text()}


def quarantine_entry(record: Record) -> QuarantineEntry:
    """Read a record of `usage.rejected`.

    Events that the gateway refused were in no other topic; their position is the position in `usage.rejected`.
    """
    headers = {name: value.decode("utf-8", "replace") for name, value in record.headers}
    placed = Header.OFFSET in headers
    return QuarantineEntry(
        headers.get(Header.TOPIC, "") if placed else headers.get(Header.SOURCE, REJECTED_TOPIC),
        int(headers[Header.PARTITION]) if placed else record.partition,
        int(headers[Header.OFFSET]) if placed else record.offset,
        int(headers.get(Header.INDEX, 0)),
        headers.get(Header.REASON, ""),
        headers.get(Header.DETAIL, ""),
        int(headers.get(Header.STREAM_TIME_MS, record.timestamp_ms)),
        record.value or b"",
        Header.CUT_AT_BYTES in headers,
    )


async def quarantined(settings: Settings, reason: str | None, limit: int) -> list[QuarantineEntry]:
    """The newest `limit` entries, oldest first, without repetitions of a position. Keeps `limit` entries per partition
    in memory."""
    newest: list[QuarantineEntry] = []
    async with _opened(settings) as base:
        for partition in range(await base.log.partition_count(REJECTED_TOPIC)):
            newest += await _newest(base.log, partition, reason, limit)
    return sorted(newest, key=lambda entry: (entry.stream_time_ms, entry[:4]))[-limit:]


async def _newest(log: Log, partition: int, reason: str | None, limit: int) -> Iterable[QuarantineEntry]:
    bounds = await log.bounds(REJECTED_TOPIC, partition)
    entries: dict[tuple[str, int, int, int], QuarantineEntry] = {}
    offset = bounds.first
    while offset < bounds.next and (records := await log.read(REJECTED_TOPIC, partition, offset, READ_RECORDS_MAX)):
        offset = records[-1].next_offset
        for entry in map(quarantine_entry, records):
            if reason in (None, entry.reason):
                entries[entry[:4]] = entry
        while len(entries) > limit:
            del entries[next(iter(entries))]
    return entries.values()


async def redrive(settings: Settings, entries: Sequence[QuarantineEntry]) -> int:
    """Append entries to `usage.inbox`; returns their number. Repetition is safe: an event is counted once."""
    async with _opened(settings) as base:
        count = await base.log.partition_count(INBOX_TOPIC)
        for entry in entries:
            await base.log.append(INBOX_TOPIC, entry.partition % count, entry.value)
    return len(entries)


async def reconcile_deployment(
    settings: Settings,
    from_ms: int | None,
    to_ms: int | None,
    *,
    stripe_reads_max: int,
    archive_wait_s: float = ReconcilePolicy().archive_wait_s,
) -> Report:
    """Open the stores of the settings, reconcile them and close them."""
    view = open_live_view(settings)
    clickhouse = open_clickhouse(settings.clickhouse_url)
    meters = open_stripe(settings)
    try:
        async with _opened(settings) as base:
            views = Views(
                live=view,
                reader=ClickHouseReader(clickhouse),
                hourly=ClickHouseStore(clickhouse),
                log=base.log,
                stripe=meters,
                rejections=meters,
            )
            policy = ReconcilePolicy(stripe_reads_max=stripe_reads_max, archive_wait_s=archive_wait_s)
            return await reconcile(views, base.clock, from_ms=from_ms, to_ms=to_ms, policy=policy)
    finally:
        await clickhouse.close()
        await view.close()
        if meters is not None:
            await meters.close()


async def run_reconcile(
    settings: Settings,
    from_ms: int | None = None,
    to_ms: int | None = None,
    *,
    as_json: bool = False,
    stripe_reads_max: int = 2_000,
    rows_max: int = 50,
    pushgateway: str = "",
) -> tuple[int, str]:
    """Reconcile and return (exit code, report): 1 on drift, 0 otherwise.

    Pushes the gauges to the Prometheus push gateway at the address `pushgateway` if it is not empty. If the push fails,
    the report is still returned, with exit code 1, and the reason is logged.
    """
    report = await reconcile_deployment(settings, from_ms, to_ms, stripe_reads_max=stripe_reads_max)
    code = 1 if report.verdict is Verdict.DRIFT else 0
    if pushgateway:
        try:
            push_gauges(report, pushgateway)
        except Transient as error:
            code = 1
            _LOG.error("the report is not pushed: %s", error)
    return code, to_json(report) if as_json else render_table(report, rows_max=rows_max)


def push_gauges(report: Report, address: str) -> None:
    """Push the report's gauges to a Prometheus push gateway. Raises `Transient` if the gateway does not answer."""
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for key, value in gauge_values(report).items():
        names = [name for name, _ in key.labels]
        if key.name not in gauges:
            gauges[key.name] = Gauge(key.name, "See docs/reconciliation.md.", names, registry=registry)
        (gauges[key.name].labels(*(text for _, text in key.labels)) if names else gauges[key.name]).set(value)
    try:
        push_to_gateway(address, job="tidemark_reconcile", registry=registry)
    except (OSError, ValueError, HTTPException) as error:
        raise Transient(f"the push gateway at {address[:100]!a} did not answer: {error}") from error
