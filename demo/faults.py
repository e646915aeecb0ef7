"""Two deliberate faults that the reconciler must name."""

from __future__ import annotations

import httpx

from pipeline.settings import Settings
from sinks.clickhouse.client import open_clickhouse, quoted_text

_COLUMNS = "account, id, type, source, time, data, partition, position, stream_time, deferred"


async def lose_event(settings: Settings) -> tuple[str, str]:
    """Remove one archived event from ClickHouse; returns its (account, id)."""
    clickhouse = open_clickhouse(settings.clickhouse_url)
    try:
        rows = await clickhouse.rows(
            "SELECT account, id, _partition_id FROM usage_events WHERE type = 'llm.completion' "
            "ORDER BY account DESC, id LIMIT 1"
        )
        account, event_id, part_of_table = (str(field) for field in rows[0])
        part = quoted_text(part_of_table)
        lost = f"account = {quoted_text(account)} AND id = {quoted_text(event_id)}"
        # A mutation would take ten seconds in the embedded engine.
        await clickhouse.command("CREATE TABLE without_one AS usage_events")
        await clickhouse.command(
            f"INSERT INTO without_one ({_COLUMNS}) "  # noqa: S608  every value went through quoted_text
            f"SELECT {_COLUMNS} FROM usage_events WHERE _partition_id = {part} AND NOT ({lost})"
        )
        await clickhouse.command(f"ALTER TABLE usage_events REPLACE PARTITION ID {part} FROM without_one")
        await clickhouse.command("DROP TABLE without_one")
    finally:
        await clickhouse.close()
    return account, event_id


async def send_twice(stripe_url: str) -> str:
    """Make Stripe count an accepted meter event twice, as if it had forgotten the identifier; returns the customer."""
    async with httpx.AsyncClient(base_url=stripe_url, timeout=60) as client:
        state = (await client.get("/_simulator/state")).json()
        event = next(
            sent for sent in state["meter_events"] if sent["status"] == "accepted" and float(sent["value"]) > 0
        )
        answer = await client.post("/_simulator/meter_events", json={"identifier": event["identifier"]})
        answer.raise_for_status()
    return str(event["customer"])
