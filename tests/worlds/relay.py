"""Relays what a gateway's worker has counted into the fake of ClickHouse."""

from __future__ import annotations

from aggregators.codec import parse_cell_field, parse_cell_text
from schemas.analytics import HourlyRow, RelayPosition
from tests.worlds.gateway import Gateway


async def relay(gateway: Gateway) -> None:
    """Folds, and relays into the fake of ClickHouse."""
    await gateway.world.fold_all()
    store = gateway.world.store
    for partition in range(gateway.world.partitions):
        checkpoint, cells = await store.outbox.dirty(partition, 1_000)
        assert checkpoint is not None
        rows = []
        for cell in cells:
            key = parse_cell_field(cell.key.field)
            aggregation, scale, period_end_ms, value = parse_cell_text(cell.text)
            rows.append(
                HourlyRow(
                    key.account, key.meter, key.period_start_ms, period_end_ms, key.hour_ms, key.dimensions,
                    cell.key.bucket_ms, aggregation, scale, value.minor, value.time_us, value.position, partition,
                    cell.version,
                )
            )  # fmt: skip
        await gateway.clickhouse.insert_hourly(rows)
        await gateway.clickhouse.save_relayed(
            RelayPosition(partition, checkpoint.next_offset, checkpoint.stream_time_ms)
        )
