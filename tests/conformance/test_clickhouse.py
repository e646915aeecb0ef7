"""One suite for the analytical store's tables: the in-memory fake, and ClickHouse's engine over HTTP."""

from __future__ import annotations

from datetime import datetime

import pytest

from schemas.analytics import (
    ArchivePosition,
    ControlRow,
    DedupDecisionRow,
    DedupOutcome,
    DuplicateRow,
    MeterSpan,
    RelayPosition,
)
from schemas.clock import DAY_MS, HOUR_MS
from schemas.errors import InvalidInput
from schemas.log import POSITION_BITS
from tests.conformance.clickhouse_rows import (
    CALLS,
    MONTH,
    NOW_MS,
    OCTOBER,
    TOKENS,
    Both,
    cell,
    event,
    ms,
    request_of,
)


async def test_first_arrival_of_an_event_wins_for_any_order_and_number_of_rows(both: Both) -> None:
    """Two archives may write the same partition, late and out of order; the lowest position wins (I3)."""
    first, later = event(5, {"tokens": 1}, event_id="same"), event(9, {"tokens": 100}, event_id="same")

    await both.store.insert_events([later])
    await both.store.insert_events([first, later])
    await both.store.insert_events([later, first])

    assert await both.reader.recount_totals(request_of(TOKENS)) == {("acme", "tokens", MONTH): 1_000}


async def test_retry_with_another_time_across_a_months_end_is_the_same_event(both: Both) -> None:
    """The identity is (account, id), without the timestamp (I3)."""
    await both.store.insert_events([event(1, {"tokens": 1}, event_id="same", time_ms=ms("2026-11-30T23:59"))])
    await both.store.insert_events([event(2, {"tokens": 1}, event_id="same", time_ms=ms("2026-12-01T00:01"))])

    assert list(await both.reader.recount_totals(request_of(CALLS))) == [("acme", "calls", MONTH)]


async def test_the_same_id_of_another_account_is_another_event(both: Both) -> None:
    """An account can never suppress another account's event."""
    await both.store.insert_events([event(1, {}, event_id="same"), event(2, {}, event_id="same", account="other")])

    totals = await both.reader.recount_totals(request_of(CALLS))

    assert totals == {("acme", "calls", MONTH): 1, ("other", "calls", MONTH): 1}


async def test_event_outside_the_years_that_the_store_supports_is_refused_with_its_call(both: Both) -> None:
    """Nothing of the call is stored, so the caller can remove the event and repeat the call."""
    rows = [event(1, {}), event(2, {}, time_ms=ms("2300-01-01"))]

    with pytest.raises(InvalidInput, match="1900 to 2299"):
        await both.store.insert_events(rows)

    assert await both.reader.recount_totals(request_of(CALLS)) == {}


@pytest.mark.parametrize("time", ["1900-01-01", "1969-12-31T23:59", "2262-05-01", "2299-12-31T23:00"])
async def test_times_far_from_now_keep_their_month_and_hour(both: Both, time: str) -> None:
    """DateTime64 of microseconds covers 1900 to 2299, more than 64 bits of nanoseconds would."""
    at = datetime.fromisoformat(time)
    await both.store.insert_events([event(0, {}, time_ms=ms(time), stream_time_ms=ms(time))])

    (key,) = await both.reader.recount_cells(request_of(CALLS))

    assert key.period_start_ms == ms(at.replace(day=1, hour=0, minute=0).isoformat())
    assert key.hour_ms == key.arrival_bucket_ms == ms(at.replace(minute=0).isoformat())


async def test_nothing_is_lost_by_empty_calls_and_repeated_migrations(both: Both) -> None:
    """Set-up runs at each start; an empty flush is legal."""
    await both.store.insert_events([event(1, {})])
    await both.store.migrate()
    await both.store.insert_events([])
    await both.store.insert_hourly([])

    assert await both.reader.recount_totals(request_of(CALLS)) == {("acme", "calls", MONTH): 1}


async def test_archive_position_only_moves_forward(both: Both) -> None:
    """A slower archive of the same partition must not lower the position that the recount trusts."""
    assert await both.store.load_position(3) is None

    await both.store.save_position(ArchivePosition(3, 20, NOW_MS, "log"))
    await both.store.save_position(ArchivePosition(3, 10, NOW_MS - 1, "log"))
    await both.store.save_position(ArchivePosition(4, 1, NOW_MS, "log"))

    assert await both.store.load_position(3) == ArchivePosition(3, 20, NOW_MS, "log")
    assert {3, 4} == set(await both.reader.archive_positions())


async def test_relay_position_only_moves_forward(both: Both) -> None:
    """Two relays do no harm."""
    await both.store.save_relayed(RelayPosition(3, 20, NOW_MS))
    await both.store.save_relayed(RelayPosition(3, 10, NOW_MS - 1))

    assert await both.store.load_relayed() == {3: RelayPosition(3, 20, NOW_MS)}


async def test_controls_are_read_oldest_first_with_every_meter_set(both: Both) -> None:
    """A restart applies the meter sets, bindings and closings again, each under the policy of its time."""
    kinds = ["genesis", "meter_set", "tick", "binding", "meter_set", "close", "meter_set"]
    rows = [ControlRow(3, at, kind, "", NOW_MS + at, f'{{"at":{at}}}') for at, kind in enumerate(kinds)]
    await both.store.insert_controls(list(reversed(rows)))
    await both.store.insert_controls(rows)

    assert [row.position for row in await both.store.load_controls(3, 6)] == [1, 3, 4, 5]
    assert [row.position for row in await both.reader.controls(3, 6)] == [0, 1, 3, 4, 5]
    assert rows[0] == (await both.reader.controls(3, 6))[0]
    assert list(await both.reader.controls(4, 6)) == []


async def test_controls_of_some_accounts_come_with_the_meter_sets(both: Both) -> None:
    """For any account names; the records of other accounts may be many and long."""
    names = ["", "ada", "bob", "it's \\ {x:y}", "ada"]
    kinds = ["meter_set", "binding", "binding", "close", "restatement"]
    rows = [ControlRow(3, at, kinds[at], account, NOW_MS, "{}") for at, account in enumerate(names)]
    await both.store.insert_controls(rows)

    async def found(*accounts: str) -> list[int]:
        return [row.position for row in await both.store.load_controls(3, 9, accounts)]

    assert await found() == [0]
    assert await found("ada") == [0, 1, 4]
    assert await found("it's \\ {x:y}", "nobody") == [0, 3]


async def test_highest_version_of_a_cell_wins_in_any_order(both: Both) -> None:
    """Absolute values by version make relays repeatable (S6). Values beyond 64 bits are exact."""
    await both.store.insert_hourly([cell("tokens", 10**30 + 1, version=7), cell("tokens", 1, version=6)])
    await both.store.insert_hourly([cell("tokens", 2, version=5)])

    assert list((await both.reader.hourly_cells(3)).values()) == [10**30 + 1]
    assert await both.reader.hourly_cells(4) == {}


async def test_latest_generation_is_that_of_the_partitions_cells_from_a_bucket_on(both: Both) -> None:
    """The generation identifies a live view from before a rebuild; other partitions and closed hours do not matter."""
    versions = {generation: (generation << POSITION_BITS) + 5 for generation in (1, 2, 3)}
    old, new = NOW_MS // HOUR_MS * HOUR_MS - HOUR_MS, NOW_MS // HOUR_MS * HOUR_MS
    assert await both.store.generation_since(0, 0) == 0

    rows = [(0, old, 2), (0, new, 1), (1, new, 3)]
    await both.store.insert_hourly(
        [
            cell(
                "tokens",
                1,
                account=f"of-{partition}",
                bucket_ms=bucket_ms,
                version=versions[generation],
                partition=partition,
            )
            for partition, bucket_ms, generation in rows
        ]
    )

    assert [await both.store.generation_since(0, bucket_ms) for bucket_ms in (old, new, new + HOUR_MS)] == [2, 1, 0]
    assert await both.store.generation_since(1, old) == 3


async def test_period_that_a_binding_cut_keeps_one_cell_with_the_later_version(both: Both) -> None:
    """A period is identified by its start: a cell with an earlier end is the same cell."""
    whole = cell("tokens", 1_000, version=1)
    cut = whole._replace(value_minor=3_000, period_end_ms=MONTH.start_ms + 22 * DAY_MS, version=2)
    await both.store.insert_hourly([cut])
    await both.store.insert_hourly([whole])

    assert list((await both.reader.hourly_cells(3)).values()) == [3_000]


async def test_archived_events_are_identities_whose_first_arrival_is_below_the_position(both: Both) -> None:
    """Compared with the checkpoint's counters, which count each identity once however often the archive wrote it."""
    await both.store.insert_events([event(2, {}), event(4, {}), event(9, {}, event_id="again")])
    await both.store.insert_events([event(2, {}), event(3, {}, event_id="again"), event(6, {}, event_id="again")])
    await both.store.insert_events([event(1, {}, partition=4, account="elsewhere")])

    counts = [await both.reader.archived_events(3, before) for before in (0, 2, 3, 4, 5, 100)]

    assert counts == [0, 0, 1, 2, 3, 3]
    assert (await both.reader.archived_events(4, 100), await both.reader.archived_events(5, 100)) == (1, 0)


async def test_conflict_is_a_later_arrival_with_other_content(both: Both) -> None:
    """The same id with another type, source or data is a conflict: perhaps two operations have one id. A retry with
    another timestamp is none (I3)."""
    await both.store.insert_events([event(at, {"tokens": 1}, event_id=name) for at, name in enumerate("abc", start=1)])
    repeated = DuplicateRow(*event(5, {"tokens": 1}, event_id="a", time_ms=NOW_MS + 1)[:9])
    other_data = DuplicateRow(*event(6, {"tokens": 2}, event_id="b")[:9])
    other_type = DuplicateRow(*event(7, {"tokens": 1}, event_id="b", event_type="other")[:9])
    other_source = DuplicateRow(*event(9, {"tokens": 1}, event_id="c")[:9])._replace(source="another")
    unknown = DuplicateRow(*event(8, {"tokens": 1}, event_id="never archived")[:9])
    await both.store.insert_duplicates([repeated, other_data, other_type, other_source, unknown])
    await both.store.insert_duplicates([other_data])

    assert await both.reader.conflicts(10) == (
        [("acme", "b", 2, ("type", "data")), ("acme", "c", 1, ("source",))], 2,
    )  # fmt: skip


async def test_conflicts_are_read_up_to_a_limit_and_all_are_counted(both: Both) -> None:
    """A producer that reuses its event numbers each day makes a conflict of every event."""
    names = ["a", "b", "c", "d"]
    await both.store.insert_events([event(at, {"tokens": 1}, event_id=name) for at, name in enumerate(names)])
    again = [event(10 + at, {"tokens": 2}, event_id=name) for at, name in enumerate(names)]
    await both.store.insert_duplicates([DuplicateRow(*each[:9]) for each in again])

    answers = [await both.reader.conflicts(rows_max) for rows_max in (3, 4, 5)]

    rows = [("acme", name, 1, ("data",)) for name in names]
    assert answers == [(rows[:3], 4), (rows, 4), (rows, 4)]


async def test_deferred_event_counts_at_its_first_decision_and_nowhere_before(both: Both) -> None:
    """The first decision in the log wins; an event without a decision does not count."""
    october_ms, day_before_ms = ms("2026-10-05"), NOW_MS - DAY_MS
    await both.store.insert_events(
        [
            event(at, {"tokens": at}, time_ms=october_ms, stream_time_ms=day_before_ms)._replace(deferred=True)
            for at in (2, 3, 4, 5)
        ]
        + [event(9, {"tokens": 1})]
    )
    await both.store.insert_dedup_decisions(
        [
            DedupDecisionRow(3, 2, "acme", 60, NOW_MS, DedupOutcome.DUPLICATE),
            DedupDecisionRow(3, 2, "acme", 50, NOW_MS, DedupOutcome.COUNTED),
            DedupDecisionRow(3, 4, "acme", 51, NOW_MS, DedupOutcome.LATE),
            DedupDecisionRow(3, 5, "acme", 52, NOW_MS, DedupOutcome.DUPLICATE),
            DedupDecisionRow(3, 9, "acme", 53, NOW_MS, DedupOutcome.DUPLICATE),
            DedupDecisionRow(4, 3, "acme", 50, NOW_MS, DedupOutcome.COUNTED),
            DedupDecisionRow(3, 3, "another", 50, NOW_MS, DedupOutcome.COUNTED),
        ]
    )
    await both.store.insert_dedup_decisions([DedupDecisionRow(3, 2, "acme", 70, NOW_MS, DedupOutcome.LATE)])

    assert [await both.reader.archived_events(3, before) for before in (9, 10, 50, 51, 100)] == [0, 1, 1, 2, 2]
    totals = await both.reader.recount_totals(request_of(TOKENS, graces=((0, 60 * DAY_MS),)))
    assert totals == {("acme", "tokens", OCTOBER): 2_000, ("acme", "tokens", MONTH): 1_000}
    carried = await both.reader.recount_totals(request_of(TOKENS))
    assert carried == {("acme", "tokens", MONTH): 3_000}
    before = await both.reader.recount_totals(request_of(TOKENS), NOW_MS)
    assert before == {}
    (cell_of_decision, _) = sorted(await both.reader.recount_cells(request_of(TOKENS)))
    assert cell_of_decision.hour_ms == ms("2026-10-05")
    assert cell_of_decision.arrival_bucket_ms == ms("2026-11-21T10:00")


async def test_deferred_event_contributes_to_meters_in_force_at_its_arrival_and_at_its_decision(both: Both) -> None:
    """A later meter has not judged the event; a removed meter no longer wants it."""
    await both.store.insert_events([event(10, {}, time_ms=ms("2026-10-05"))._replace(deferred=True)])
    await both.store.insert_dedup_decisions([DedupDecisionRow(3, 10, "acme", 20, NOW_MS, DedupOutcome.COUNTED)])
    request = request_of(CALLS)

    async def counted(*spans: tuple[int, int]) -> bool:
        meters = [MeterSpan(CALLS, *span) for span in spans]
        return bool(await both.reader.recount_totals(request._replace(meters=meters)))

    assert await counted((5, 25))
    assert await counted((5, 15), (17, 25))
    assert not await counted((15, 25))
    assert not await counted((5, 15))


async def test_first_positions_are_those_of_the_first_arrivals(both: Both) -> None:
    """The resolver uses these positions. Identities are compared whole; an unknown identity is absent."""
    odd = 'it\'s "odd"\\ \x00 ü'
    await both.store.insert_events([event(9, {}, event_id=odd), event(7, {}, event_id=odd), event(8, {}, event_id="b")])
    await both.store.insert_events([event(3, {}, event_id=odd, account="other")])

    positions = await both.store.first_positions([("acme", odd), ("acme", "b"), ("other", odd), ("other", "b")])

    assert positions == {("acme", odd): 7, ("acme", "b"): 8, ("other", odd): 3}
