"""A second generation beside the live one, and the swap: the same tests for the in-memory fake and a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from pipeline.local.valkey import LocalValkey
from schemas.errors import Fenced, OperatorNeeded
from schemas.live_view import LiveView
from schemas.periods import AccountState, Billing, Customer
from schemas.rollup import Changes, Checkpoint, Dropped, ReadRequest, TotalKey
from sinks.redis import keyspace
from sinks.redis.client import Command, Connection
from sinks.redis.fake import FakeLiveView
from sinks.redis.view import RedisLiveView
from tests.conformance.rollup_states import checkpoint

ACME = TotalKey("acme", 0)


@pytest.fixture
def store(rollup_store: LiveView) -> LiveView:
    """An empty store: the fake, then the real server."""
    assert isinstance(rollup_store, FakeLiveView | RedisLiveView)
    return rollup_store


def at(next_offset: int, generation: int) -> Checkpoint:
    return msgspec.structs.replace(checkpoint(next_offset), generation=generation)


def counted(next_offset: int, generation: int, tokens: int) -> Changes:
    return Changes(checkpoint=at(next_offset, generation), totals={ACME: {"tokens": str(tokens)}})


async def both(store: LiveView) -> tuple[Checkpoint, Checkpoint]:
    """Partition 0 live at generation 1 with 7 tokens, rebuilt at generation 2 with 9; returns the checkpoints."""
    await store.state.create_checkpoint(0, at(0, 1))
    await store.state.commit(0, at(0, 1), counted(5, 1, 7))
    assert await store.rebuilds.begin_rebuild(2) == 2
    built = store.built(2)
    await built.state.create_checkpoint(0, at(0, 2))
    await built.state.commit(0, at(0, 2), counted(6, 2, 9))
    await built.close()
    return at(5, 1), at(6, 2)


async def tokens(store: LiveView) -> tuple[Checkpoint | None, str]:
    checkpoint, totals = await store.totals.account_totals(0, [ACME])
    return checkpoint, totals[ACME]["tokens"]


async def test_shadow_copy_is_invisible_until_it_is_swapped_in(store: LiveView) -> None:
    live, rebuilt = await both(store)
    assert await tokens(store) == (live, "7")
    assert not await store.generations.is_live(0, 2)

    assert await store.generations.swap(0, live, rebuilt)

    assert await tokens(store) == (rebuilt, "9")
    assert await store.state.load_checkpoint(0) == rebuilt
    assert await store.generations.is_live(0, 2)
    assert not await store.generations.is_live(1, 2)


async def test_accounts_and_their_checkpoint_are_of_one_generation(store: LiveView) -> None:
    """A binding of the new view with the checkpoint of the old view would be wrong."""
    live, _ = await both(store)
    bound = AccountState(customers=(Customer(0, Billing.MAPPED, "cus_1"),))
    rebuilt = msgspec.structs.replace(at(7, 2), stream_time_ms=live.stream_time_ms + 1)
    built = store.built(2)
    await built.state.commit(0, at(6, 2), Changes(checkpoint=rebuilt, accounts={"acme": bound}))
    await built.close()
    assert await store.accounts.accounts(0, ["acme"]) == (live, {"acme": AccountState()})

    assert await store.generations.swap(0, live, rebuilt)

    assert await store.accounts.accounts(0, ["acme"]) == (rebuilt, {"acme": bound})


async def test_worker_of_the_old_generation_is_fenced_at_read_and_commit(store: LiveView) -> None:
    live, rebuilt = await both(store)
    await store.state.read(0, live, ReadRequest())
    await store.generations.swap(0, live, rebuilt)

    with pytest.raises(Fenced):
        await store.state.commit(0, live, counted(7, 1, 1_000))
    with pytest.raises(Fenced):
        await store.state.read(0, live, ReadRequest())
    assert await tokens(store) == (rebuilt, "9")


async def test_swap_is_refused_if_either_checkpoint_has_moved(store: LiveView) -> None:
    live, rebuilt = await both(store)
    await store.state.commit(0, live, counted(6, 1, 8))

    assert not await store.generations.swap(0, live, rebuilt)
    assert not await store.generations.swap(0, at(6, 1), at(5, 2))
    assert not await store.generations.swap(0, None, rebuilt)
    assert await tokens(store) == (at(6, 1), "8")
    assert await store.generations.swap(0, at(6, 1), rebuilt)


async def test_second_swap_of_the_same_generation_leaves_its_checkpoint(store: LiveView) -> None:
    """Two rebuilds at once: the slower one must not take the new live checkpoint for the old one."""
    live, rebuilt = await both(store)
    await store.generations.swap(0, live, rebuilt)

    assert await store.generations.swap(0, live, rebuilt)
    assert await store.generations.swap(0, rebuilt, rebuilt)
    assert await tokens(store) == (rebuilt, "9")


async def test_lost_view_is_replaced_by_the_shadow_copy(store: LiveView) -> None:
    await store.rebuilds.begin_rebuild(2)
    await store.built(2).state.create_checkpoint(0, at(0, 2))

    assert await store.generations.swap(0, None, at(0, 2))
    assert await store.state.load_checkpoint(0) == at(0, 2)
    with pytest.raises(Fenced):
        await store.state.create_checkpoint(0, at(0, 1))


async def test_sweep_removes_all_generations_but_the_live_and_the_unfinished_one(store: LiveView) -> None:
    live, rebuilt = await both(store)
    assert await store.generations.sweep(0) == 0
    await store.generations.swap(0, live, rebuilt)
    await store.generations.sweep(0)
    assert await tokens(store) == (rebuilt, "9")

    await store.rebuilds.end_rebuild(2)
    assert await store.rebuilds.begin_rebuild(3) == 3
    assert await store.rebuilds.begin_rebuild(4) == 3
    await store.built(3).state.create_checkpoint(0, at(0, 3))
    await store.generations.sweep(0)
    assert await store.built(3).state.load_checkpoint(0) is not None
    await store.rebuilds.end_rebuild(4)
    assert await store.rebuilds.rebuilding() == 3
    await store.rebuilds.end_rebuild(3)
    assert await store.generations.sweep(0) > 0
    assert await store.built(3).state.load_checkpoint(0) is None
    assert await tokens(store) == (rebuilt, "9")


async def test_restore_does_nothing_once_there_is_a_checkpoint(store: LiveView) -> None:
    """The process that wrote the checkpoint has counted on what was restored."""
    built = store.built(2)
    await built.copies.begin_restore(0, "one")
    await built.state.create_checkpoint(0, at(3, 2))

    with pytest.raises(Fenced):
        await built.copies.take_in(0, "one", [])
    with pytest.raises(Fenced):
        await built.copies.end_restore(0, "one", at(0, 2))
    assert await built.state.load_checkpoint(0) == at(3, 2)
    await built.close()


def command(store: LiveView) -> LiveView:
    """Another process's store on the same server."""
    if isinstance(store, FakeLiveView):
        return store.another()
    assert isinstance(store, RedisLiveView)
    return RedisLiveView(store.keyspace.url, namespace=store.keyspace.namespace, threads_max=2)


STEPS: dict[str, Callable[[LiveView, Checkpoint, Checkpoint], Awaitable[object]]] = {
    "look": lambda store, _, __: store.rebuilds.check_claim(),
    "begin": lambda store, _, __: store.rebuilds.begin_rebuild(2),
    "end": lambda store, _, __: store.rebuilds.end_rebuild(2),
    "swap": lambda store, live, made: store.generations.swap(0, live, made),
    "sweep": lambda store, _, __: store.generations.sweep(0),
    "forget": lambda store, _, __: store.generations.forget(0),
    "backfilled": lambda store, _, __: store.drops.backfilled(0, Dropped({}, 1)),
    "read": lambda store, _, made: store.built(2).state.read(0, made, ReadRequest()),
    "commit": lambda store, _, made: store.built(2).state.commit(0, made, counted(9, 2, 1_000)),
    "first checkpoint": lambda store, _, __: store.built(2).state.create_checkpoint(1, at(0, 2)),
    "restore": lambda store, _, __: store.built(2).copies.begin_restore(1, "one"),
}


@pytest.mark.parametrize("step", STEPS)
async def test_later_claim_stops_every_change_of_the_earlier_command(store: LiveView, step: str) -> None:
    """The earlier command may be at any step; the later command makes the change."""
    live, rebuilt = await both(store)
    first, last = command(store), command(store)
    await first.rebuilds.claim_rebuild("first")
    await first.rebuilds.check_claim()
    await last.rebuilds.claim_rebuild("last")

    with pytest.raises(Fenced, match="another rebuild command was started after this one"):
        await STEPS[step](first, live, rebuilt)
    assert await tokens(store) == (live, "7")
    assert await store.rebuilds.rebuilding() == 2
    assert await tokens(store.built(2)) == (rebuilt, "9")
    assert await store.built(2).state.load_checkpoint(1) is None

    await STEPS[step](last, live, rebuilt)
    for each in (first, last):
        await each.close()


async def test_abandoned_generation_is_not_swapped_in(store: LiveView) -> None:
    """Its keys are being removed, or belong to a later attempt."""
    live, rebuilt = await both(store)
    await store.rebuilds.end_rebuild(2)

    with pytest.raises(Fenced, match="given up or finished"):
        await store.generations.swap(0, live, rebuilt)
    assert await tokens(store) == (live, "7")


# Only with the real server


@pytest.mark.parametrize("step", range(0, 28, 3))
async def test_interrupted_removal_leaves_no_checkpoint_over_a_part_of_the_state(
    valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """kill -9 between two pages: a later run would continue from the checkpoint on incomplete counts."""

    class Killed(BaseException):
        pass

    monkeypatch.setattr(keyspace, "_SCAN_COUNT", 1)
    view = RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")
    keys = [TotalKey(f"account-{number}", 0) for number in range(20)]
    live, last = await both(view)
    for store, believed in ((view, live), (view.built(2), last)):
        totals = {key: {"tokens": "1"} for key in keys}
        await store.state.commit(0, believed, Changes(checkpoint=at(7, believed.generation), totals=totals))
    await view.rebuilds.end_rebuild(2)
    for remove, seen in ((view.generations.sweep, view.built(2)), (view.generations.forget, view)):
        looks, commands = [0], view.keyspace.commands

        async def cut(wanted: list[Command], looks: list[int] = looks) -> list[object]:
            if "UNLINK" in [each[0] for each in wanted]:
                looks[0] += 1
                if looks[0] > step:
                    raise Killed
            return await commands(wanted)  # noqa: B023 - ends with its round

        view.keyspace.commands = cut  # type: ignore[method-assign,assignment]  # a process that ends
        with contextlib.suppress(Killed):
            await remove(0)
        view.keyspace.commands = commands  # type: ignore[method-assign]  # the next one
        _, totals = await seen.totals.account_totals(0, keys)
        assert all(totals.values()) or await seen.state.load_checkpoint(0) is None
        await remove(0)
    await view.close()


async def test_other_processes_notice_a_swap_at_their_next_call(valkey: LocalValkey) -> None:
    """The processes remember the generation, and nothing notifies them."""
    namespace = f"test-{uuid.uuid4().hex[:12]}"
    worker, reader, rebuilder = (RedisLiveView(valkey.url, namespace=namespace) for _ in range(3))
    live, rebuilt = await both(rebuilder)
    await worker.state.read(0, live, ReadRequest())
    assert await tokens(reader) == (live, "7")
    await rebuilder.generations.swap(0, live, rebuilt)

    assert await tokens(reader) == (rebuilt, "9")
    with pytest.raises(Fenced):
        await worker.state.commit(0, live, counted(7, 1, 1_000))
    assert await worker.state.load_checkpoint(0) == rebuilt
    await worker.state.read(0, rebuilt, ReadRequest())
    await worker.state.commit(0, rebuilt, counted(7, 2, 10))
    assert await tokens(reader) == (at(7, 2), "10")
    await rebuilder.generations.sweep(0)
    keys = await asyncio.to_thread(reader.keyspace.server.run, [("KEYS", f"{namespace}:{{p0}}:*")])
    assert all(":generation" in key for key in keys[0])
    for each in (worker, reader, rebuilder):
        await each.close()


async def test_emptied_server_after_a_rebuild_has_no_state_rather_than_generation_1(valkey: LocalValkey) -> None:
    """The name of the live generation is lost with the keys."""
    view = RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")
    live, built = await both(view)
    await view.generations.swap(0, live, built)
    keys = await asyncio.to_thread(view.keyspace.server.run, [("KEYS", f"{view.keyspace.namespace}:*")])
    await asyncio.to_thread(view.keyspace.server.run, [("DEL", *keys[0])])

    with pytest.raises((Fenced, OperatorNeeded)):
        await view.state.read(0, built, ReadRequest())
    assert await view.state.load_checkpoint(0) is None
    await view.close()


@pytest.mark.parametrize("step", STEPS)
async def test_claim_in_the_middle_of_a_step_undoes_it(
    valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The earlier command has checked its claim, and the later one claims before the write."""
    store = RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")
    live, rebuilt = await both(store)
    first, last = command(store), command(store)
    await first.rebuilds.claim_rebuild("first")
    assert isinstance(last, RedisLiveView)
    run, key = Connection.run, f"{store.keyspace.namespace}:rebuilder"

    def overtaken(connection: Connection, commands: Sequence[Command]) -> list[object]:
        if commands[0] == ("MULTI",):
            last.keyspace.server.run([("SET", key, "last")])
        return run(connection, commands)

    monkeypatch.setattr(Connection, "run", overtaken)
    if step not in ("look", "backfilled"):
        with contextlib.suppress(Fenced):
            if step == "commit":
                built = first.built(2)
                await built.state.read(0, rebuilt, ReadRequest())
                await built.state.commit(0, rebuilt, counted(9, 2, 1_000))
            else:
                await STEPS[step](first, live, rebuilt)
    monkeypatch.undo()

    assert await tokens(store) == (live, "7")
    assert await store.rebuilds.rebuilding() == 2
    assert await tokens(store.built(2)) == (rebuilt, "9")
    assert await store.built(2).state.load_checkpoint(1) is None
    (exists,) = store.keyspace.server.run([("EXISTS", store.built(2).keyspace.keys(1).restoring)])
    assert not exists
    for each in (store, first, last):
        await each.close()


async def test_sweep_looks_again_if_a_generation_became_live_or_was_begun_meanwhile(
    valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generation that was superfluous at the first look may be in use at the removal."""
    store = RedisLiveView(valkey.url, namespace=f"test-{uuid.uuid4().hex[:12]}")
    live, rebuilt = await both(store)
    await store.rebuilds.end_rebuild(2)
    run, note = Connection.run, f"{store.keyspace.namespace}:rebuilding"

    def begun(connection: Connection, commands: Sequence[Command]) -> list[object]:
        if commands[0] == ("MULTI",):
            store.keyspace.server.run([("SET", note, 2, "NX")])
        return run(connection, commands)

    monkeypatch.setattr(Connection, "run", begun)
    assert await store.generations.sweep(0) == 0
    monkeypatch.undo()

    assert await tokens(store.built(2)) == (rebuilt, "9")
    assert await store.generations.swap(0, live, rebuilt)
    await store.close()
