"""The outbox of bindings: a crash, a second process and a person in between leave what the side tables planned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import pytest_asyncio

from aggregators.partitioning import partition_of
from pipeline.logs.bindings import Standings, append_plan, planned, standing
from pipeline.webhooks import binding_outbox
from pipeline.webhooks.binding_outbox import BindingOutbox
from schemas.clock import DAY_MS
from schemas.control import CloseRecord, MeterSetRecord
from schemas.errors import Transient
from schemas.log import EVENTS_TOPIC
from schemas.meters import MeterSet
from schemas.periods import AccountState, Billing, Binding
from tests.worlds.billing import BillingWorld
from tests.worlds.crashing import Crash, Crashing
from tests.worlds.reconciler import METER_SET, START_MS

ACME = "acme"
FREE = Binding(effective_from_ms=0, billing=Billing.FREE)


async def trial() -> BillingWorld:
    """`acme` is linked to a customer whose trial ends in two weeks: free now, mapped from then on."""
    world = BillingWorld(START_MS)
    await world.open()
    customer = world.stripe.customer()
    await world.link(ACME, customer)
    price = world.stripe.price(meter=world.stripe.meter())
    world.stripe.subscribe(customer, price, trial_end=START_MS // 1000 + 14 * DAY_MS // 1000)
    await world.deliver(world.stripe.happened())
    await world.process()
    return world


@pytest_asyncio.fixture
async def world() -> BillingWorld:
    """The world of `trial`."""
    return await trial()


def outbox(world: BillingWorld, tables: Any = None, log: Any = None) -> BindingOutbox:
    """The outbox of a new process."""
    accounts = world.accounts._replace(log=log or world.log)
    return BindingOutbox(tables or world.tables, accounts, world.store)


async def settle(world: BillingWorld) -> AccountState:
    """Drain until nothing is due; the account's state in the log."""
    while await outbox(world).relay():
        pass
    assert await world.tables.due_bindings() == []
    await world.fold_all()
    return await world.store.accounts.account(0, ACME)


def payers(state: AccountState) -> list[Billing]:
    """Who pays, in order."""
    return [payer.billing for payer in state.customers]


async def appended(world: BillingWorld) -> int:
    """The number of records in the usage log after its first two."""
    return (await world.log.bounds(EVENTS_TOPIC, 0)).next - 2


async def test_bindings_are_sent_once_in_their_order(world: BillingWorld) -> None:
    assert await outbox(world).relay() == 2
    assert await outbox(world).relay() == 0

    state = await settle(world)
    assert (payers(state), state.revision, await appended(world)) == ([Billing.FREE, Billing.MAPPED], 2, 2)


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_crash_at_any_call_leaves_what_was_planned(*, after: bool) -> None:
    calls, crashed = 0, True
    while crashed:
        calls, world = calls + 1, await trial()
        countdown = [calls]
        tables, log = (Crashing(inner, countdown, after=after) for inner in (world.tables, world.log))
        try:
            await outbox(world, tables, log).relay()
            crashed = False
        except Crash:
            pass
        state = await settle(world)
        assert (payers(state), state.repeated) == ([Billing.FREE, Billing.MAPPED], 0), calls
        assert await appended(world) == 2, calls
    assert calls > 8


async def test_two_processes_at_once_leave_what_was_planned(world: BillingWorld) -> None:
    """Both read the same standing, and one of them is told that its record changed nothing."""
    results = await asyncio.gather(outbox(world).relay(), outbox(world).relay(), return_exceptions=True)

    assert all(isinstance(result, int | Transient) for result in results)
    state = await settle(world)
    assert payers(state) == [Billing.FREE, Billing.MAPPED]


class _Between:
    """A log before one of whose next appends a person's command appends a record under the account's next revision."""

    def __init__(self, world: BillingWorld, does: str, before_append: int) -> None:
        self._world = world
        self._does = does
        self._left = before_append

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.log, name)

    async def append(self, *arguments: Any, **options: Any) -> int:
        """Append, after the command when its turn has come."""
        self._left -= 1
        if not self._left:
            plan = planned(await standing(self._world.accounts, self._world.store, ACME), ACME, FREE)
            if self._does == "closes":
                revision = plan.record.revision
                record = CloseRecord(account=ACME, revision=revision, instant_ms=START_MS - 40 * DAY_MS)
                plan = plan._replace(record=record)
            await append_plan(self._world.accounts, plan)
        return await self._world.log.append(*arguments, **options)


@pytest.mark.parametrize("before_append", [1, 2])
@pytest.mark.parametrize("does", ["binds", "closes"])
async def test_a_person_in_between_makes_the_outbox_read_the_standing_anew(
    world: BillingWorld, does: str, before_append: int
) -> None:
    with pytest.raises(Transient, match="another command changed the account"):
        await outbox(world, log=_Between(world, does, before_append)).relay()

    assert len(await world.tables.due_bindings()) == 2
    state = await settle(world)
    assert payers(state) == [Billing.FREE, Billing.MAPPED]


async def test_what_the_account_has_is_skipped_whoever_bound_it(world: BillingWorld) -> None:
    """The side tables were lost and made again: they plan what the log has."""
    for due in await world.tables.due_bindings():
        known = await standing(world.accounts, world.store, ACME)
        await append_plan(world.accounts, planned(known, ACME, due.binding))

    state = await settle(world)
    assert (state.revision, await appended(world)) == (2, 2)


async def test_a_failing_account_does_not_hold_up_other_partitions() -> None:
    """The live view of one partition is lost and its log trimmed; the other partition's account is bound."""
    world = BillingWorld(START_MS, partitions=2)
    await world.open()
    for account in ("acme", "globex"):
        await world.link(account, world.stripe.customer())
    world.log._partitions[EVENTS_TOPIC, partition_of("acme", 2)].records.pop(0)

    with pytest.raises(Transient, match="rebuild redis"):
        await outbox(world).relay()

    assert [due.account for due in await world.tables.due_bindings()] == ["acme"]


class _Stalling:
    """Side tables of a process that stands still behind a call of `due_bindings`."""

    def __init__(self, inner: Any, call: int) -> None:
        self._inner, self._left = inner, call
        self.stands, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def due_bindings(self, *arguments: Any, **options: Any) -> Any:
        """The due bindings, given back when the process goes on."""
        due = await self._inner.due_bindings(*arguments, **options)
        self._left -= 1
        if not self._left:
            self.stands.set()
            await self.go_on.wait()
        return due


async def cancel(world: BillingWorld) -> None:
    """The customer cancels within the trial, so `acme` stays free for ever; the new owner sends that."""
    known = len(world.stripe.happened())
    (row,) = (await world.tables.mirror())["subscriptions"]
    world.stripe.cancel(str(row["id"]))
    await world.deliver(world.stripe.happened()[known:])
    await world.process()
    await outbox(world).relay()


@pytest.mark.parametrize("call", [1, 2], ids=["before the standing", "behind the standing"])
async def test_an_owner_that_stood_still_does_not_undo_a_newer_binding(world: BillingWorld, call: int) -> None:
    tables = _Stalling(world.tables, call)
    late = asyncio.create_task(outbox(world, tables).relay())
    await tables.stands.wait()
    await outbox(world).relay()
    world.clock.advance(DAY_MS)
    await cancel(world)
    tables.go_on.set()

    (result,) = await asyncio.gather(late, return_exceptions=True)

    assert result == 0 or isinstance(result, Transient), result
    assert payers(await settle(world)) == [Billing.FREE]


class _Interrupted:
    """A log that lets others act behind its first append."""

    def __init__(self, world: BillingWorld) -> None:
        self._world: BillingWorld | None = world
        self._log = world.log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def append(self, *arguments: Any, **options: Any) -> int:
        """Append; the first time, the new owner then sends the rest and a cancellation."""
        offset = await self._log.append(*arguments, **options)
        world, self._world = self._world, None
        if world is not None:
            await outbox(world).relay()
            await cancel(world)
        return offset


async def test_an_owner_that_is_overtaken_between_two_bindings_undoes_nothing(world: BillingWorld) -> None:
    with pytest.raises(Transient, match="another command changed the account"):
        await outbox(world, log=_Interrupted(world)).relay()

    assert payers(await settle(world)) == [Billing.FREE]


async def test_a_lost_partition_with_many_accounts_does_not_hold_up_other_partitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lost accounts come first and fill more pages than a round reads."""
    monkeypatch.setattr(binding_outbox, "PAGE_BINDINGS_MAX", 5)
    monkeypatch.setattr(binding_outbox, "ROUND_PAGES_MAX", 2)
    world = BillingWorld(START_MS, partitions=2)
    await world.open()
    names = [f"account {number:02}" for number in range(60)]
    lost = [name for name in names if partition_of(name, 2) == 0][:13]
    sound = next(name for name in reversed(names) if partition_of(name, 2) == 1)
    for account in (*lost, sound):
        await world.link(account, world.stripe.customer(""))
    await world.deliver(world.stripe.happened())
    await world.process()
    world.log._partitions[EVENTS_TOPIC, 0].records.pop(0)
    running = outbox(world)

    for _ in range(2):
        with pytest.raises(Transient, match="rebuild redis"):
            await running.relay()

    assert [due.account for due in await world.tables.due_bindings()] == lost
    assert running.status() == (len(lost), START_MS, 1)


class _Counting:
    """A log that counts the records that are read."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.records = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def read(self, *arguments: Any, **options: Any) -> Any:
        """The records."""
        records = await self._inner.read(*arguments, **options)
        self.records += len(records)
        return records


async def test_what_the_worker_has_not_folded_is_read_once_for_all_accounts() -> None:
    world = BillingWorld(START_MS)
    await world.open()
    for _ in range(3_000):
        await world.log.append(EVENTS_TOPIC, 0, b"{}", key=b"k", headers=())
    for number in range(20):
        await world.link(f"account {number}", world.stripe.customer(""))
    log = _Counting(world.log)

    assert await outbox(world, log=log).relay() == 20

    assert 3_000 <= log.records <= 3_100


async def test_a_standing_is_the_same_whether_the_tail_was_read_before_or_is_read_now(world: BillingWorld) -> None:
    """Also while the worker folds between two looks, and records of every kind come in between."""
    standings = Standings(world.accounts, world.store)
    assert await standings.of(ACME) == await standing(world.accounts, world.store, ACME)
    for round_ in range(4):
        await outbox(world).relay()
        known = await standing(world.accounts, world.store, ACME)
        binding = FREE.model_copy(update={"effective_from_ms": START_MS + round_ * DAY_MS})
        await append_plan(world.accounts, planned(known, ACME, binding))
        world.clock.advance(DAY_MS)
        later = METER_SET if isinstance(METER_SET, MeterSet) else MeterSet.model_validate(METER_SET)
        later = later.model_copy(update={"version": later.version + 1 + round_})
        await world.control(0, MeterSetRecord(meter_set=later))
        assert await standings.of(ACME) == await standing(world.accounts, world.store, ACME)
        assert (await standings.of(ACME)).state.revision == 3 + round_
        if round_ == 1:
            await world.fold_all()
            assert await standings.of(ACME) == await standing(world.accounts, world.store, ACME)
