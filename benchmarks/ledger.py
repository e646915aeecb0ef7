"""`python -m benchmarks.ledger`: how long the sink takes to start, its memory, and how fast the ledger writes.

A real PostgreSQL has the ledger of intents. The start is measured behind a number of settled reports, the memory before
a number of pending ones, which are inserted by SQL: how they came there makes no difference to the sink.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psycopg
import uvloop

from aggregators.binding_timeline import timeline
from benchmarks.machine import resident_bytes
from pipeline.billing.policy import SenderPolicy
from pipeline.billing.sender import StripeSender
from pipeline.clock import SystemClock
from pipeline.local.postgres import LocalPostgres
from pipeline.logs.fake import FakeLog
from schemas.clock import HOUR_MS
from schemas.log import REPORTS_TOPIC, Bounds, TopicSpec
from schemas.periods import Billing
from schemas.reports import Attempt, Intent, OutcomeStatus, Payer, ReportEntry, ReportOutcome
from sinks.sql.store import PostgresSideTables
from sinks.stripe.fake import FakeStripe

ACCOUNT: Final = "acct_benchmark"
START_S_MAX: Final = 10.0
GROWTH_BYTES_MAX: Final = 300 * 1024 * 1024
ENTRIES_PER_S: Final = 5_000
BATCH: Final = 500
ROUNDS: Final = 20
# The columns of the attempt, of the payer and of the outcome's time, by state.
ROWS: Final = {
    "accepted": ("'cus', %(start)s / 1000, '5', %(start)s, NULL", "'cus'", "%(start)s"),
    "pending": ("NULL, NULL, NULL, NULL, NULL", "''", "NULL"),
}
INSERT: Final = """
INSERT INTO intents SELECT
    'tm_' || number, 0, number, 0, 'acct_benchmark', 'log', 'tokens', 'tokens', 'account-' || number %% 20000,
    %(start)s, %(start)s + 2678400000, %(start)s + number %% 700 * 3600000,
    %(start)s + number %% 700 * 3600000 + 3600000, 5, 0, 0, %(state)s,
    {}, {}, %(start)s + number %% 700 * 3600000, '', '', {}, 0, 0, 0, NULL
FROM generate_series(CAST(1 AS bigint), %(rows)s) AS number
"""


class EndedLog(FakeLog):
    """A log that has been read up to `end`."""

    end = 0

    async def bounds(self, topic: str, partition: int) -> Bounds:
        """Of a log whose records nobody needs."""
        return (await super().bounds(topic, partition))._replace(next=self.end)


async def nobody(intent: Intent, instant_ms: int) -> Payer | None:  # noqa: ARG001  # a protocol
    """Every account is unmapped."""
    return Payer(Billing.UNMAPPED, "", intent.period_end_ms)


async def fill(url: str, state: str, rows: int) -> EndedLog:
    """A ledger of `rows` intents in one state, and its log."""
    clock = SystemClock()
    values = {"start": (clock.now_ms() // HOUR_MS - 720) * HOUR_MS, "state": state, "rows": rows}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("TRUNCATE intents")
        await connection.execute("DELETE FROM positions")
        await connection.execute(INSERT.format(*ROWS[state]).encode(), values)
        await connection.execute("INSERT INTO positions VALUES ('billing.reports', 0, %s)", [rows + 1])
        await connection.execute("VACUUM ANALYZE intents")
    log = EndedLog(clock)
    log.end = rows + 1
    await log.create_topics([TopicSpec(REPORTS_TOPIC, 1, -1)])
    return log


def sender_of(tables: PostgresSideTables, log: FakeLog) -> StripeSender:
    """A sink without a resolver's calls and without a network."""
    clock = SystemClock()
    stripe = FakeStripe(clock, account=ACCOUNT)
    return StripeSender(log, tables.intents, stripe, nobody, clock, random.Random(1), SenderPolicy())


async def start_s(url: str, tables: PostgresSideTables, settled: int) -> float:
    """Seconds from the assignment to the end of the first round."""
    sender = sender_of(tables, await fill(url, "accepted", settled))
    began_s = time.perf_counter()
    await sender.start_offset(0)
    await sender.idle(0)
    return time.perf_counter() - began_s


async def growth_bytes(url: str, tables: PostgresSideTables, pending: int) -> int:
    """By how much the process grows while it works on pending intents that nobody pays for."""
    sender = sender_of(tables, await fill(url, "pending", pending))
    before = resident_bytes(os.getpid())
    await sender.start_offset(0)
    for _ in range(ROUNDS):
        await sender.idle(0)
    return resident_bytes(os.getpid()) - before


async def entries_per_s(url: str, tables: PostgresSideTables, intents: int) -> dict[str, float]:
    """Entries that `apply` writes in a second: a bucket's intents, then their attempts, then their outcomes."""
    await fill(url, "accepted", 100_000)
    start_ms = SystemClock().now_ms() // HOUR_MS * HOUR_MS
    made = [
        Intent(
            identifier=f"tm_{number * 2_654_435_761 % 2**40:040x}", livemode=False, stripe_account=ACCOUNT,
            log_id="log", meter="tokens", event_name="tokens", account=f"account-{number % 20_000}",
            period_start_ms=start_ms, period_end_ms=start_ms + 720 * HOUR_MS, bucket_start_ms=start_ms,
            bucket_end_ms=start_ms + HOUR_MS, delta_minor=number + 1, scale=0,
        )
        for number in range(intents)
    ]  # fmt: skip
    attempts = [
        Attempt(
            identifier=intent.identifier, stripe_customer=f"cus_{intent.account}", timestamp_s=start_ms // 1000,
            value=str(intent.delta_minor), attempted_at_ms=start_ms,
        )
        for intent in made
    ]  # fmt: skip
    outcomes = [
        ReportOutcome(
            identifier=each.identifier, status=OutcomeStatus.ACCEPTED, stripe_customer=each.stripe_customer,
            settled_at_ms=start_ms,
        )
        for each in attempts
    ]  # fmt: skip
    position = await tables.intents.position(0) or 0
    rates = {}
    kinds: dict[str, Sequence[ReportEntry]] = {"intents": made, "attempts": attempts, "outcomes": outcomes}
    for kind, entries in kinds.items():
        began_s = time.perf_counter()
        for start in range(0, intents, BATCH):
            batch = list(enumerate(entries[start : start + BATCH], position))
            await tables.intents.apply(0, position, position + len(batch), batch)
            position += len(batch)
        rates[kind] = intents / (time.perf_counter() - began_s)
    return rates


async def measure(folder: Path, settled: Sequence[int], pending: int, intents: int) -> None:
    """Print all figures."""
    with LocalPostgres(folder / "postgres") as postgres:
        tables = PostgresSideTables(postgres.url, timeline, timeout_s=600)
        await tables.migrate("test:acct_benchmark", "benchmark")
        grown = await growth_bytes(postgres.url, tables, pending)
        verdict = f"{_met(grown <= GROWTH_BYTES_MAX)}: {GROWTH_BYTES_MAX >> 20} MB"
        print(f"memory   {grown / 2**20:10.1f} MB with {pending} pending  {verdict}")
        for rows in settled:
            seconds = await start_s(postgres.url, tables, rows)
            print(
                f"start    {seconds:10.3f} s behind {rows} settled  {_met(seconds <= START_S_MAX)}: {START_S_MAX:g} s"
            )
        for kind, rate in (await entries_per_s(postgres.url, tables, intents)).items():
            print(f"apply    {rate:10.0f} {kind}/s  {_met(rate >= ENTRIES_PER_S)}: {ENTRIES_PER_S} entries/s")
        await tables.close()


def _met(is_met: bool) -> str:
    return "MET" if is_met else "MISSED"


def main() -> None:
    """Print the sink's start, its memory and the ledger's speed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=main.__doc__)
    parser.add_argument("--settled", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--pending", type=int, default=1_000_000)
    parser.add_argument("--intents", type=int, default=60_000)
    arguments = parser.parse_args()
    # Each held report is a line.
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(Path(name), arguments.settled, arguments.pending, arguments.intents))


if __name__ == "__main__":
    main()
