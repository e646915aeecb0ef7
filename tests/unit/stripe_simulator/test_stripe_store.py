"""One store yields events, the journal and deliveries; one clockwork runs due jobs in order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stripe_simulator import Simulator, SimulatorSettings
from stripe_simulator.clockwork import Clockwork
from stripe_simulator.journal import Journal
from stripe_simulator.mode import Mode
from stripe_simulator.resources import meter_events
from stripe_simulator.store import Object, previous_attributes
from stripe_simulator.usage import MeterEvent
from tests.services.stripe_wire import DAY_S, NOW_MS, NOW_S
from tests.worlds.clock import ManualClock


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 1}),
        ({"a": None}, {"a": 2}, {"a": None}),
        ({"m": {"x": 1, "y": 2}}, {"m": {"x": 1, "y": 3}}, {"m": {"y": 2}}),
        ({"m": {}}, {"m": {"x": "1"}}, {"m": {"x": None}}),
        ({"m": {"x": "1"}}, {"m": {}}, {"m": {"x": "1"}}),
        ({"m": None}, {"m": {"x": 1}}, {"m": None}),
        ({"m": {"x": 1}}, {"m": None}, {"m": {"x": 1}}),
        ({"l": [1, {"x": 1}]}, {"l": [1, {"x": 2}]}, {"l": [1, {"x": 1}]}),
    ],
    ids=[
        "nothing", "a value", "set", "one key of a map", "a new key", "a removed key", "a map from null",
        "a map to null", "a list",
    ],
)  # fmt: skip
def test_previous_attributes_are_the_old_values_of_what_changed(old: Object, new: Object, expected: Object) -> None:
    """As in Stripe's snapshot events: maps by key, with null for a key that is new, and lists whole."""
    assert previous_attributes(old, new) == expected


def _simulator(state: Path | None = None, seed: int = 0) -> Simulator:
    settings = SimulatorSettings(summary_lag_s=0, validation_delay_s=0, seed=seed)
    return Simulator(ManualClock(NOW_MS), settings, state)


def _events(mode: Mode) -> list[str]:
    return [event["type"] for event in mode.store.newest("event")][::-1]


def test_saving_yields_the_event_and_the_delivery() -> None:
    """Created, updated, deleted; nothing if nothing changed; a type of its own where one is given."""
    simulator = _simulator()
    store = simulator.test.store
    delivered: list[Object] = []
    store.subscribers.append(delivered.append)

    body = simulator.create_customer(False, {"name": "Ada"})
    store.save({**body, "name": "Eve"})
    store.save({**body, "name": "Eve"})
    store.save({**body, "name": "Eve"}, "customer.something")
    store.delete(body)

    types = ["customer.created", "customer.updated", "customer.something", "customer.deleted"]
    assert [event["type"] for event in delivered] == _events(simulator.test) == types
    assert delivered[1]["data"]["previous_attributes"] == {"name": "Ada"}
    assert [event["data"]["object"]["name"] for event in delivered] == ["Ada", "Eve", "Eve", "Eve"]
    assert store.get("customer", body["id"]) is None


def test_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    """Objects, events, ids and jobs: all as before, in memory and in the file."""
    simulator = _simulator(tmp_path / "journal")
    mode = simulator.test
    kept = simulator.create_customer(False, {"name": "Ada", "email": "a@b.c"})
    endpoint = {"id": "we_1", "object": "webhook_endpoint", "status": "enabled", "enabled_events": ["*"], "url": ""}
    mode.store.put(endpoint)
    size = (tmp_path / "journal").stat().st_size

    def fail() -> None:
        with mode.journal.transaction():
            mode.store.save({**kept, "name": "Eve", "email": "e@b.c"})
            simulator.create_customer(False, {})
            mode.store.delete(kept)
            mode.clockwork.schedule(NOW_MS, "usage.report", {"start_ms": 0, "end_ms": 0})
            raise RuntimeError("the transaction fails")

    with pytest.raises(RuntimeError):
        fail()

    assert [body["name"] for body in mode.store.newest("customer")] == ["Ada"]
    assert [body["id"] for body in mode.store.newest("customer", "email", "a@b.c")] == [kept["id"]]
    assert list(mode.store.newest("customer", "email", "e@b.c")) == []
    deliveries = list(mode.store.newest("simulator.delivery"))
    assert (_events(mode), deliveries, mode.clockwork.waiting()) == (["customer.created"], [], [])
    assert mode.outbox.empty()
    assert (tmp_path / "journal").stat().st_size == size
    untouched = _simulator()
    untouched.create_customer(False, {})
    assert mode.store.new_id("x") == untouched.test.store.new_id("x")
    simulator.close()


def test_ids_depend_on_the_seed_alone() -> None:
    """Two runs of one seed agree to the last id, and another seed gives others."""
    one, two, other = (_simulator(seed=seed) for seed in (1, 1, 2))
    ids = [[simulator.create_customer(False, {})["id"] for _ in range(3)] for simulator in (one, two, other)]

    assert ids[0] == ids[1]
    assert set(ids[0]).isdisjoint(ids[2])
    assert len(set(ids[0])) == 3


def _everything(mode: Mode) -> tuple[Any, ...]:
    objects = {kind: list(mode.store.newest(kind)) for kind in ("customer", "billing.meter", "event", "v2.core.event")}
    total = mode.usage.total("mtr", "cus_one", 0, NOW_S + DAY_S)
    return objects, mode.usage.events, total, mode.clockwork.waiting(), mode.store.new_id("x")


def test_journal_replays_to_the_same_state(tmp_path: Path) -> None:
    """After every line: objects, events, usage, sums, jobs and the next id."""
    simulator = _simulator(tmp_path / "journal")
    mode = simulator.test
    simulator.create_customer(False, {"metadata": {"a": "b"}}, "cus_one")
    simulator.create_customer(True, {}, "cus_one")
    for number in range(4):
        customer = "cus_one" if number % 2 else "cus_none"
        mode.usage.receive(MeterEvent(f"id-{number}", "tokens", "mtr", customer, "0.5", NOW_S - number))
    simulator.catch_up()
    mode.store.save({**mode.fetch("customer", "cus_one"), "name": "Ada"})
    mode.store.delete(simulator.create_customer(False, {}))
    mode.usage.receive(MeterEvent("last", "tokens", "mtr", "cus_one", "7", NOW_S))
    mode.clockwork.set_time("clock_1", NOW_MS)
    lines = (tmp_path / "journal").read_bytes()
    simulator.close()

    replayed = _simulator(tmp_path / "journal")

    assert (tmp_path / "journal").read_bytes() == lines
    assert _everything(replayed.test) == _everything(mode)
    assert _everything(replayed.live) == _everything(simulator.live)
    assert replayed.test.now_ms("clock_1") == NOW_MS
    replayed.close()


def test_incomplete_last_line_is_cut(tmp_path: Path) -> None:
    """A process that died while it wrote has not answered that request."""
    path = tmp_path / "journal"
    simulator = _simulator(path)
    simulator.create_customer(False, {}, "cus_one")
    simulator.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'[["test.put",{"id":"cus_tw')

    replayed = _simulator(path)

    assert [body["id"] for body in replayed.test.store.newest("customer")] == ["cus_one"]
    assert path.read_bytes() == whole
    replayed.close()


def test_another_file_is_not_overwritten(tmp_path: Path) -> None:
    """Such as the database of an earlier version."""
    (tmp_path / "state").write_bytes(b"SQLite format 3\x00")

    with pytest.raises(ValueError, match="is not a journal"):
        _simulator(tmp_path / "state")


class Bench:
    """A clockwork whose jobs note when they ran, as the clock showed it."""

    def __init__(self, seed: str = "0") -> None:
        self.clock = ManualClock(1_000)
        self.ran: list[tuple[int, str]] = []
        handlers = {"note": self.note, "chain": self.chain, "fail": self.fail}
        self.clockwork = Clockwork(self.clock, Journal(), seed, handlers, "test")

    def add(self, due_ms: int, name: str, kind: str = "note", clock: str = "") -> int:
        """Schedule a job."""
        return self.clockwork.schedule(due_ms, kind, {"name": name, "clock": clock}, clock)

    def note(self, arguments: Mapping[str, Any]) -> None:
        """Note the time of the job's clock."""
        self.ran.append((self.clockwork.now_ms(arguments["clock"]), arguments["name"]))

    def chain(self, arguments: Mapping[str, Any]) -> None:
        """Schedule another job at the same instant and one a second later."""
        self.note(arguments)
        self.add(self.clockwork.now_ms(), "same instant")
        self.add(self.clockwork.now_ms() + 1_000, "later")

    def fail(self, arguments: Mapping[str, Any]) -> None:
        """Note, schedule, and fail."""
        self.note(arguments)
        self.add(0, "never")
        raise RuntimeError("a defect")


def test_jobs_run_in_order_at_their_own_time() -> None:
    """A late run shows each job the time at which it was due."""
    bench = Bench()
    for due_ms in (4_000, 2_000, 9_000, 3_000):
        bench.add(due_ms, str(due_ms))
    bench.clockwork.cancel(bench.add(2_500, "cancelled"))
    bench.clockwork.catch_up()
    assert bench.ran == []

    bench.clock.advance(4_000)
    bench.clockwork.catch_up()

    assert bench.ran == [(2_000, "2000"), (3_000, "3000"), (4_000, "4000")]
    assert bench.clockwork.now_ms() == 5_000
    assert bench.clockwork.waiting() == [(9_000, "", "note")]


def test_jobs_may_schedule_jobs() -> None:
    """Those that are due meanwhile run in the same pass, in their order."""
    bench = Bench()
    bench.add(2_000, "first", "chain")
    bench.add(2_500, "between")

    bench.clock.advance(10_000)
    bench.clockwork.catch_up()

    assert bench.ran == [(2_000, "first"), (2_000, "same instant"), (2_500, "between"), (3_000, "later")]


def test_seed_decides_the_order_of_equal_jobs() -> None:
    """One seed always gives one order, and some seed another."""
    orders = set()
    for seed in ("1", "1", "2", "3"):
        bench = Bench(seed)
        for number in range(6):
            bench.add(2_000, str(number))
        bench.clock.advance(5_000)
        bench.clockwork.catch_up()
        orders.add(tuple(name for _, name in bench.ran))

    assert len(orders) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple("012345")}


def test_test_clock_moves_alone() -> None:
    """Its jobs run when it is advanced, and the real clock's jobs do not."""
    bench = Bench()
    bench.clockwork.set_time("clock_1", 100_000)
    for due_ms in (150_000, 120_000):
        bench.add(due_ms, str(due_ms), clock="clock_1")
    bench.add(2_000, "real")
    bench.clockwork.catch_up()

    bench.clockwork.run("clock_1", 200_000)

    assert bench.ran == [(120_000, "120000"), (150_000, "150000")]
    assert (bench.clockwork.now_ms("clock_1"), bench.clockwork.now_ms()) == (200_000, 1_000)


def test_failed_job_stays_and_is_loud() -> None:
    """A defect of a resource must not lose the job, nor keep half of its changes."""
    bench = Bench()
    bench.add(500, "bad", "fail")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            bench.clockwork.catch_up()

    assert [name for _, name in bench.ran] == ["bad", "bad"]
    assert bench.clockwork.waiting() == [(500, "", "fail")]
    with pytest.raises(LookupError):
        bench.add(500, "x", "unknown kind")


def test_injected_event_needs_a_meter() -> None:
    """The admin route answers 400."""
    with pytest.raises(ValueError, match="no active meter"):
        meter_events.inject(_simulator().test, "tokens", "cus_one", "1", NOW_S)
