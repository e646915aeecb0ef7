"""One suite for the rollup's store: the in-memory fake and a real Valkey."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from aggregators.marks import Members
from pipeline.local.valkey import LocalValkey
from schemas.clock import HOUR_MS
from schemas.errors import Fenced, OperatorNeeded
from schemas.live_view import LiveView
from schemas.measures import MeasuredTo
from schemas.periods import AccountState, Binding, Interval, PendingCut, Restatement
from schemas.rollup import (
    BucketField,
    Changes,
    Checkpoint,
    Deferred,
    Dropped,
    DueTotal,
    Duplicate,
    MarkKey,
    MarkSlice,
    RankingKey,
    ReadRequest,
    TotalKey,
    UniqueKey,
    Waiting,
)
from sinks.redis.fake import FakeLiveView
from sinks.redis.view import RedisLiveView
from tests.conformance.rollup_states import BUCKET, ODD_ACCOUNTS, changes, checkpoint, started


async def test_a_commit_is_read_back_whole(rollup_store: LiveView) -> None:
    """Marks, totals, cells, reports, distinct members, accounts and the checkpoint itself."""
    first = await started(rollup_store)
    commit = changes(5)
    await rollup_store.state.commit(0, first, commit)

    view = await rollup_store.state.read(
        0,
        commit.checkpoint,
        ReadRequest(
            marks={MarkKey(0, 5): [1, 2, -(2**63)], MarkKey(1, 5): [1]},
            totals=[TotalKey("acme", 0), TotalKey("nobody", 0)],
            cells=[*commit.cells, BucketField(BUCKET, "absent")],
            reports=list(commit.reports),
            uniques={UniqueKey("acme", "users", 0): [11, 99]},
            accounts=["acme", "nobody"],
        ),
    )
    assert view.marks == {1, -(2**63)}
    assert view.totals == {TotalKey("acme", 0): {"tokens": "7", "peak": "-3"}, TotalKey("nobody", 0): {}}
    assert (view.cells, view.reports) == (commit.cells, commit.reports)
    assert view.uniques == {UniqueKey("acme", "users", 0): {11}}
    assert view.accounts == {"acme": commit.accounts["acme"], "nobody": AccountState()}
    assert await rollup_store.state.load_checkpoint(0) == commit.checkpoint
    assert await rollup_store.state.load_checkpoint(1) is None


async def test_marks_are_found_in_the_slices_that_the_fold_reads(rollup_store: LiveView) -> None:
    """A mark stands in one set of a slice: the bucket hash names the set."""
    first = await started(rollup_store)
    commit = changes(5)
    live = MarkSlice(0, commit.checkpoint.stream_time_ms + 1, 64, 3)
    kept = msgspec.structs.replace(commit.checkpoint, slices=(live,))
    await rollup_store.state.commit(0, first, commit._replace(checkpoint=kept))
    present = [(5, 1), (64 + 5, -(2**63)), (5, 2**63 - 1)]
    absent = [(5, 2), (6, 2), (0, 7)]

    assert set(present) == await rollup_store.marks.marked(0, [*absent, *present])
    assert set() == await rollup_store.marks.marked(0, absent)
    assert set() == await rollup_store.marks.marked(0, [])
    assert set() == await rollup_store.marks.marked(1, present)


async def test_members_that_are_packed_already_are_the_same_members(rollup_store: LiveView) -> None:
    """The C core makes such members."""
    first = await started(rollup_store)
    key, packed = MarkKey(0, 5), Members([3, -(2**63)], b"$1\r\n3\r\n$20\r\n-9223372036854775808\r\n")
    await rollup_store.state.commit(0, first, Changes(checkpoint=checkpoint(5), marks={key: packed}))
    wanted = Members([4, 3], b"$1\r\n4\r\n$1\r\n3\r\n")

    found = await rollup_store.state.read(0, checkpoint(5), ReadRequest(marks={key: wanted}))
    plain = await rollup_store.state.read(0, checkpoint(5), ReadRequest(marks={key: [-(2**63), 4, 3]}))

    assert found.marks == {3}
    assert plain.marks == {3, -(2**63)}


async def test_equal_places_of_a_ranking_are_sorted_by_name_also_at_its_end(rollup_store: LiveView) -> None:
    """Redis sorts equal scores downwards. The end of a short ranking must not depend on that."""
    first = await started(rollup_store)
    scores = {"d": 9, "c": 5, "b": 5, "é": 5, "z": 5, "a": 5, "e": 1}
    ranked = changes(5, "acme", "1")._replace(rankings={RankingKey("tokens", 0): scores})
    await rollup_store.state.commit(0, first, ranked)

    answers = [await rollup_store.totals.ranking(0, RankingKey("tokens", 0), count) for count in range(9)]

    names = [[account for account, _ in answer] for answer in answers]
    assert names == [["d", "a", "b", "c", "z", "é", "e"][:count] for count in range(9)]
    assert dict(answers[8]) == scores


@pytest.mark.parametrize("account", ODD_ACCOUNTS)
async def test_accounts_of_any_characters_and_totals_beyond_doubles_are_exact(
    rollup_store: LiveView, account: str
) -> None:
    """Only the ranking index rounds beyond 2^53, and an account may contain any separator."""
    first = await started(rollup_store)
    await rollup_store.state.commit(0, first, changes(5, account, str(2**70 + 1)))

    _, totals = await rollup_store.totals.account_totals(0, [TotalKey(account, 0)])
    assert totals[TotalKey(account, 0)]["tokens"] == str(2**70 + 1)
    assert await rollup_store.totals.total_keys(0, 0, 10) == (0, [TotalKey(account, 0)])
    assert await rollup_store.totals.ranking(0, RankingKey("tokens", 0), 5) == [(account, 7)]
    (cell,) = (await rollup_store.outbox.dirty(0, 10))[1]
    assert (cell.key.field, cell.version) == (f"cell\x1f{account}", 1 << 60)
    reported = await rollup_store.reports.reports(0, BUCKET, 10)
    assert (reported[0], list(reported[1])) == (checkpoint(5), [f"report\x1f{account}"])
    assert (await rollup_store.outbox.duplicates(0, 10))[0].account == account


async def test_a_worker_with_an_old_checkpoint_changes_nothing(rollup_store: LiveView) -> None:
    """A worker that lost its partition in a rebalance: the store refuses its reads and commits (I2, S4)."""
    first = await started(rollup_store)
    await rollup_store.state.commit(0, first, changes(5))

    with pytest.raises(Fenced):
        await rollup_store.state.read(0, first, ReadRequest())
    with pytest.raises(Fenced):
        await rollup_store.state.commit(0, first, changes(6, total="999"))
    assert await rollup_store.state.load_checkpoint(0) == checkpoint(5)
    assert (await rollup_store.totals.account_totals(0, [TotalKey("acme", 0)]))[1] == {
        TotalKey("acme", 0): {"tokens": "7", "peak": "-3"}
    }


async def test_there_is_one_first_checkpoint(rollup_store: LiveView) -> None:
    """Two workers start at once on a new partition: the store refuses one of them."""
    answers = await asyncio.gather(
        rollup_store.state.create_checkpoint(0, checkpoint()),
        rollup_store.state.create_checkpoint(0, checkpoint()),
        return_exceptions=True,
    )

    assert [type(answer) for answer in answers if answer is not None] == [Fenced]


async def test_a_dirty_entry_whose_version_moved_is_kept(rollup_store: LiveView) -> None:
    """The relay wrote the older value; the newer value must still be written (S8)."""
    first = await started(rollup_store)
    await rollup_store.state.commit(0, first, changes(5))
    _, relayed = await rollup_store.outbox.dirty(0, 10)
    moved = changes(6)
    newer = moved._replace(dirty=dict.fromkeys(moved.dirty, (1 << 60) + 1))
    await rollup_store.state.commit(0, checkpoint(5), newer)

    await rollup_store.outbox.confirm_dirty(0, relayed)
    ((left,),) = [(await rollup_store.outbox.dirty(0, 10))[1]]
    assert left.version == (1 << 60) + 1

    await rollup_store.outbox.confirm_dirty(0, [left])
    await rollup_store.outbox.confirm_dirty(0, [left])
    assert (await rollup_store.outbox.dirty(0, 10))[1] == []


async def test_outbox_over_its_limit_loses_its_oldest_closed_buckets_and_reports_them(rollup_store: LiveView) -> None:
    """Whole buckets, oldest first; never the open bucket, which the fold still reads; duplicates all at once."""
    believed = await started(rollup_store)
    for number in range(4):
        bucket_ms = BUCKET + number * HOUR_MS
        cells = {BucketField(bucket_ms, f"cell {each}"): "s0:1:7" for each in range(number + 2)}
        duplicates = [Duplicate(10 * number + each, "a", "id", "t", "s", 0, "{}", 6) for each in range(3)]
        at = checkpoint(5 + number, bucket_ms)
        commit = Changes(checkpoint=at, cells=cells, dirty=dict.fromkeys(cells, 9), duplicates=duplicates)
        await rollup_store.state.commit(0, believed, commit)
        believed = at

    assert await rollup_store.drops.drop_excess(0, 14) == 0
    assert await rollup_store.drops.dropped(0) == Dropped()
    assert await rollup_store.drops.drop_excess(0, 10) == 2 + 3 + 12
    assert await rollup_store.drops.dropped(0) == Dropped({BUCKET: 2, BUCKET + HOUR_MS: 3}, 12)
    assert await rollup_store.outbox.duplicates(0, 99) == []
    _, left = await rollup_store.outbox.dirty(0, 99)
    assert {cell.key.bucket_ms for cell in left} == {BUCKET + 2 * HOUR_MS, BUCKET + 3 * HOUR_MS}
    assert await rollup_store.drops.drop_excess(0, 0) == 4
    assert len((await rollup_store.outbox.dirty(0, 99))[1]) == 5
    assert await rollup_store.drops.drop_excess(0, 0) == 0
    assert sorted((await rollup_store.drops.dropped(0)).cells) == [BUCKET, BUCKET + HOUR_MS, BUCKET + 2 * HOUR_MS]
    await rollup_store.drops.backfilled(0, Dropped({BUCKET: 2, BUCKET + HOUR_MS: 3}, 12))
    assert await rollup_store.drops.dropped(0) == Dropped({BUCKET + 2 * HOUR_MS: 4})
    view = await rollup_store.state.read(0, believed, ReadRequest(cells=[BucketField(BUCKET + 3 * HOUR_MS, "cell 0")]))
    assert len(view.cells) == 1


async def test_retired_total_is_removed_with_its_state(rollup_store: LiveView) -> None:
    """Total, distinct members, places in the rankings and due time; nothing of another account."""
    first = await started(rollup_store)
    commit = changes(5)._replace(due={TotalKey("acme", 0): 7_000})
    await rollup_store.state.commit(0, first, commit)
    other = changes(6, "bob")._replace(retired={TotalKey("acme", 0): ("tokens", "peak", "users")})
    await rollup_store.state.commit(0, checkpoint(5), other)

    uniques = {UniqueKey("acme", "users", 0): [11], UniqueKey("bob", "users", 0): [11]}
    view = await rollup_store.state.read(0, checkpoint(6), ReadRequest(uniques=uniques, due_max=9))
    assert view.uniques[UniqueKey("acme", "users", 0)] == frozenset()
    assert view.uniques[UniqueKey("bob", "users", 0)] == {11}
    assert view.due == [DueTotal(0, TotalKey("bob", 0))]
    assert await rollup_store.totals.ranking(0, RankingKey("tokens", 0), 5) == [("bob", 7)]
    assert await rollup_store.totals.total_keys(0, 0, 10) == (0, [TotalKey("bob", 0)])
    assert (await rollup_store.totals.account_totals(0, [TotalKey("acme", 0)]))[1] == {TotalKey("acme", 0): {}}


async def test_totals_are_due_in_the_order_of_their_times_and_then_of_their_names(rollup_store: LiveView) -> None:
    """Both stores agree for any account name. A total without a time is due at once; otherwise its last time counts."""
    believed = await started(rollup_store)
    for number, account in enumerate(ODD_ACCOUNTS):
        at = checkpoint(5 + number)
        await rollup_store.state.commit(
            0, believed, changes(5 + number, account)._replace(due={TotalKey(account, 0): 9_000})
        )
        believed = at
    last = changes(100, ODD_ACCOUNTS[-1])._replace(
        due={TotalKey(ODD_ACCOUNTS[0], 0): 8_000}, totals={TotalKey("new", -60_000): {"a": "1"}}
    )
    await rollup_store.state.commit(0, believed, last)

    names = sorted(ODD_ACCOUNTS[1:], key=lambda account: account.encode())
    due = [DueTotal(0, TotalKey("new", -60_000)), DueTotal(8_000, TotalKey(ODD_ACCOUNTS[0], 0))]
    due += [DueTotal(9_000, TotalKey(name, 0)) for name in names]
    assert (await rollup_store.state.read(0, checkpoint(100), ReadRequest(due_max=99))).due == due
    assert (await rollup_store.state.read(0, checkpoint(100), ReadRequest(due_max=3))).due == due[:3]


async def test_levels_are_due_in_the_order_of_totals_until_they_are_carried_over(rollup_store: LiveView) -> None:
    """The last time counts; None takes a total out, also one that never was there."""
    believed = await started(rollup_store)
    acme, bob, eve = (TotalKey(account, 0) for account in ("acme", "bob", "eve"))
    first = changes(5)._replace(levels={acme: 7_000, eve: 5_000, bob: 5_000})
    await rollup_store.state.commit(0, believed, first)
    view = await rollup_store.state.read(0, checkpoint(5), ReadRequest(levels_max=9, due_max=9))
    assert view.levels == [DueTotal(5_000, bob), DueTotal(5_000, eve), DueTotal(7_000, acme)]
    assert view.due == [DueTotal(0, acme)]

    await rollup_store.state.commit(0, checkpoint(5), changes(6)._replace(levels={acme: 4_000, bob: None, eve: 9_000}))
    await rollup_store.state.commit(0, checkpoint(6), changes(7)._replace(levels={bob: None}))
    for levels_max, left in ((1, [DueTotal(4_000, acme)]), (9, [DueTotal(4_000, acme), DueTotal(9_000, eve)])):
        view = await rollup_store.state.read(0, checkpoint(7), ReadRequest(levels_max=levels_max))
        assert view.levels == left


async def test_only_closed_and_relayed_buckets_are_dropped(rollup_store: LiveView) -> None:
    """A cell is dropped once stream time has passed its bucket and none of its values is dirty."""
    first = await started(rollup_store)
    commit = changes(5)
    await rollup_store.state.commit(0, first, commit)
    closing = Changes(checkpoint=checkpoint(6, BUCKET + HOUR_MS))

    async def cells(at: Checkpoint) -> int:
        return len((await rollup_store.state.read(0, at, ReadRequest(cells=list(commit.cells)))).cells)

    _, relayed = await rollup_store.outbox.dirty(0, 10)
    await rollup_store.outbox.drop_closed_buckets(0)
    assert await cells(commit.checkpoint) == 1
    await rollup_store.state.commit(0, commit.checkpoint, closing)
    await rollup_store.outbox.drop_closed_buckets(0)
    assert await cells(closing.checkpoint) == 1
    await rollup_store.outbox.confirm_dirty(0, relayed)
    await rollup_store.outbox.drop_closed_buckets(0)
    assert await cells(closing.checkpoint) == 0


async def test_reports_and_duplicates_are_removed_after_their_confirmation(rollup_store: LiveView) -> None:
    """Together with their buckets; a second confirmation is harmless."""
    first = await started(rollup_store)
    await rollup_store.state.commit(0, first, changes(5))
    assert await rollup_store.reports.report_buckets(0) == (checkpoint(5), [BUCKET])

    for _ in range(2):
        await rollup_store.reports.confirm_reports(0, BUCKET, (await rollup_store.reports.reports(0, BUCKET, 10))[1])
        await rollup_store.outbox.confirm_duplicates(
            0, [each.position for each in await rollup_store.outbox.duplicates(0, 10)]
        )
    assert await rollup_store.reports.report_buckets(0) == (checkpoint(5), [])
    assert await rollup_store.outbox.duplicates(0, 10) == []


@pytest.mark.parametrize("account", ODD_ACCOUNTS)
async def test_reports_of_an_account_are_read_whole(rollup_store: LiveView, account: str) -> None:
    """Whatever the accounts' names, and also of a bucket of flushes, which has a negative key."""
    first = await started(rollup_store)
    names = ["other", account, f"{account}2", f"2{account}", f"2\x1f{account}", "*"]
    fields = {
        f"{number}|m{meter}\x1f{name}": f"{meter}" for number in range(3) for meter in range(99) for name in names
    }
    for bucket_ms in (BUCKET, -BUCKET):
        reports = {BucketField(bucket_ms, field): text for field, text in fields.items()}
        commit = changes(5)._replace(reports=reports)
        first = checkpoint(5) if bucket_ms < 0 else first
        commit = commit._replace(checkpoint=checkpoint(6)) if bucket_ms < 0 else commit
        await rollup_store.state.commit(0, first, commit)

    for bucket_ms in (BUCKET, -BUCKET):
        wanted = {field: text for field, text in fields.items() if field.split("\x1f", 1)[1] == account}
        assert len(wanted) == 297
        assert await rollup_store.reports.reports_of(0, bucket_ms, account) == (checkpoint(6), wanted)
        assert await rollup_store.reports.reports_of(0, bucket_ms, "nobody") == (checkpoint(6), {})
    assert (await rollup_store.reports.report_buckets(0))[1] == [-BUCKET, BUCKET]
    assert await rollup_store.reports.reports_of(0, BUCKET + 1, account) == (checkpoint(6), {})


async def test_report_that_has_changed_is_not_removed(rollup_store: LiveView) -> None:
    """A replica that was behind has taken over since the read: its entry was not published."""
    first = await started(rollup_store)
    await rollup_store.state.commit(0, first, changes(5))
    _, entries = await rollup_store.reports.reports(0, BUCKET, 10)

    await rollup_store.reports.confirm_reports(0, BUCKET, {field: text + "1" for field, text in entries.items()})
    assert await rollup_store.reports.reports(0, BUCKET, 10) == (checkpoint(5), entries)
    assert await rollup_store.reports.report_buckets(0) == (checkpoint(5), [BUCKET])
    await rollup_store.reports.confirm_reports(0, BUCKET, entries)
    assert await rollup_store.reports.reports(0, BUCKET, 10) == (checkpoint(5), {})
    assert await rollup_store.reports.report_buckets(0) == (checkpoint(5), [])


@pytest.mark.parametrize("account", ODD_ACCOUNTS)
async def test_accounts_that_wait_for_a_restatement_are_known_until_it_is_folded(
    rollup_store: LiveView, account: str
) -> None:
    """The replaced state is removed first, because the new state may have the same names."""
    first = await started(rollup_store)
    binding = Binding(effective_from_ms=0, interval=Interval.DAY)
    waits = AccountState(
        pending=PendingCut(position=9, from_ms=0, requested_ms=-60_000, binding=binding, later=(binding,))
    )
    await rollup_store.state.commit(0, first, changes(5, account)._replace(accounts={account: waits}))
    assert await rollup_store.accounts.restating(0, 5) == (checkpoint(5), {account: waits})
    assert await rollup_store.accounts.restating(1, 5) == (None, {})
    assert await rollup_store.accounts.restating_among(0, ["nobody", account]) == {account: waits}
    assert await rollup_store.accounts.restating_among(0, []) == {}

    after = AccountState(bindings=(binding,), restatements=(Restatement(0, BUCKET),))
    key = TotalKey(account, 0)
    cut = Changes(
        checkpoint=checkpoint(6),
        replaced={key: ("tokens", "peak", "users")},
        totals={key: {"tokens": "3"}},
        uniques={UniqueKey(account, "users", 0): [12]},
        rankings={RankingKey("tokens", 0): {account: 3}},
        due={key: 77},
        accounts={account: after},
    )
    await rollup_store.state.commit(0, checkpoint(5), cut)

    assert await rollup_store.accounts.restating(0, 5) == (checkpoint(6), {})
    assert await rollup_store.accounts.restating_among(0, [account]) == {}
    wanted = ReadRequest(
        totals=[key], uniques={UniqueKey(account, "users", 0): [11, 12]}, accounts=[account], due_max=5
    )
    view = await rollup_store.state.read(0, checkpoint(6), wanted)
    assert view.totals == {key: {"tokens": "3"}}
    assert view.uniques == {UniqueKey(account, "users", 0): {12}}
    assert (view.accounts, view.due) == ({account: after}, [DueTotal(77, key)])
    known = {account: after, "nobody": AccountState()}
    assert await rollup_store.accounts.accounts(0, [account, "nobody"]) == (checkpoint(6), known)
    assert await rollup_store.accounts.accounts(1, [account]) == (None, {account: AccountState()})
    assert await rollup_store.totals.account_total(0, key) == (checkpoint(6), after, {"tokens": "3"})
    nobody = TotalKey("nobody", 0)
    assert await rollup_store.totals.account_total(0, nobody) == (checkpoint(6), AccountState(), {})
    assert await rollup_store.totals.account_total(1, key) == (None, AccountState(), {})
    assert await rollup_store.totals.ranking(0, RankingKey("tokens", 0), 5) == [(account, 3)]


async def test_expired_marks_are_removed(rollup_store: LiveView) -> None:
    """By stream time, in the commit; no server's clock decides what a duplicate is."""
    first = await started(rollup_store)
    await rollup_store.state.commit(0, first, changes(5))
    await rollup_store.state.commit(0, checkpoint(5), Changes(checkpoint=checkpoint(6), expired_marks=[MarkKey(0, 5)]))

    assert (
        await rollup_store.state.read(0, checkpoint(6), ReadRequest(marks={MarkKey(0, 5): [1]}))
    ).marks == frozenset()


def deferred(position: int, account: str, stream_time_ms: int = BUCKET) -> Deferred:
    """A deferred event."""
    raw = '{"id":"\\ud800 \U0001f600"}'
    contributions = (("tokens", 10**18 - 1, "", '{"region":"ü"}'), ("users", 0, "text", "{}"))
    return Deferred(position, stream_time_ms, account, "id", "type", "source", 5, raw, True, contributions)


@pytest.mark.parametrize("account", ODD_ACCOUNTS)
async def test_deferred_events_wait_in_order_until_their_decision(rollup_store: LiveView, account: str) -> None:
    """For the resolver, the fold, and usage answers of one account and of all accounts."""
    first = await started(rollup_store)
    entries = [deferred((9 << 40) + 1, account, BUCKET + 7), deferred(2, "other"), deferred(10, account, BUCKET + 5)]
    await rollup_store.state.commit(0, first, Changes(checkpoint=checkpoint(5), deferred=entries))

    in_order = [entries[1], entries[2], entries[0]]
    assert await rollup_store.deferred.deferred(0, 10) == (checkpoint(5), in_order)
    assert await rollup_store.deferred.deferred(0, 2) == (checkpoint(5), in_order[:2])
    assert await rollup_store.deferred.deferred(0, 1, {2, 10, 77}) == (checkpoint(5), [entries[0]])
    assert await rollup_store.deferred.deferred(0, 1, {10}) == (checkpoint(5), [entries[1]])
    assert await rollup_store.deferred.deferred(1, 2) == (None, [])
    assert await rollup_store.deferred.waiting(0) == (checkpoint(5), Waiting(3, BUCKET))
    assert await rollup_store.deferred.waiting(0, account) == (checkpoint(5), Waiting(2, BUCKET + 5))
    assert await rollup_store.deferred.waiting(0, "nobody") == (checkpoint(5), Waiting())
    view = await rollup_store.state.read(0, checkpoint(5), ReadRequest(deferred=[10, 11]))
    assert view.deferred == {10: entries[2]}

    for at in (5, 6):
        await rollup_store.state.commit(0, checkpoint(at), Changes(checkpoint=checkpoint(at + 1), decided=in_order[:2]))
    assert await rollup_store.deferred.deferred(0, 10) == (checkpoint(7), [entries[0]])
    assert await rollup_store.deferred.waiting(0, account) == (checkpoint(7), Waiting(1, BUCKET + 7))
    assert await rollup_store.deferred.waiting(0, "other") == (checkpoint(7), Waiting())


async def test_an_emptied_store_is_distinguished_from_a_moved_checkpoint(
    rollup_store: LiveView, valkey: LocalValkey
) -> None:
    """The remedies differ."""
    first = await started(rollup_store)
    if isinstance(rollup_store, FakeLiveView):
        rollup_store.server.empty()
    else:
        assert isinstance(rollup_store, RedisLiveView)
        await asyncio.to_thread(rollup_store.keyspace.server.run, [("DEL", rollup_store.keyspace.keys(0).checkpoint)])

    with pytest.raises(OperatorNeeded, match="gone"):
        await rollup_store.state.read(0, first, ReadRequest())
    with pytest.raises(OperatorNeeded, match="gone"):
        await rollup_store.state.commit(0, first, changes(5))


# Only with the real server


async def test_the_newest_note_of_what_is_measured_is_kept_for_each_partition(rollup_store: LiveView) -> None:
    """The sink, another process, waits for it."""
    assert await rollup_store.measured.measured_to(0) is None
    for instant_ms in (5, 7):
        await rollup_store.measured.note_measured(0, MeasuredTo("log", instant_ms, instant_ms + 1))
    assert await rollup_store.measured.measured_to(0) == MeasuredTo("log", 7, 8)
    assert await rollup_store.measured.measured_to(1) is None
