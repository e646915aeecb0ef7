"""Bulk redrives, from the quarantine through the inbox to the totals: each event counts once, whoever ends when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from itertools import count
from typing import Any, Final

import pytest

from aggregators.partitioning import partition_of
from pipeline.ingest.router import RouterProcessor
from pipeline.logs import redriving
from pipeline.logs.control_records import append_everywhere
from pipeline.logs.marked import Identity, marked
from pipeline.logs.quarantine import Header, append_entry
from pipeline.logs.redriving import Judge, Preview, Redriving, preview
from schemas.adjustments import adjusted_type
from schemas.clock import DAY_MS, HOUR_MS
from schemas.control import MeterSetRecord
from schemas.errors import Fenced, InvalidInput
from schemas.log import EVENTS_TOPIC, INBOX_TOPIC, REJECTED_TOPIC
from schemas.meters import MeterSet
from schemas.redrives import Redrive, RedriveCounts, Redrives, RedriveState, Selection
from schemas.rollup import TotalKey
from sinks.sql.fake import FakeSideTables
from tests.services.postgres import LOG_ID, SCOPE, last_link_pays
from tests.worlds.crashing import Crash, Crashing
from tests.worlds.deployment import SECRET, World

NOW_MS: Final = 1_795_257_000_000
NOVEMBER_MS: Final = 1_793_491_200_000
TOKENS: Final = {
    "slug": "tokens", "event_type": "completion", "aggregation": "sum", "value_path": "$.tokens", "unit": "tokens",
}  # fmt: skip
CALLS: Final = {"slug": "calls", "event_type": "call", "aggregation": "count", "unit": "calls"}
BEFORE: Final = MeterSet.model_validate({"version": 1, "meters": [TOKENS, CALLS]})
AFTER: Final = MeterSet.model_validate({"version": 2, "meters": [{**TOKENS, "allow_negative": True}, CALLS]})
ALL: Final = Selection()
ACCOUNTS: Final = ("acme", "globex", "initech")


def event(event_id: str, account: str, tokens: object, **changes: Any) -> bytes:
    """An event, whose time is that of the test unless it is changed."""
    return json.dumps({
        "specversion": "1.0", "id": event_id, "source": "test", "type": "completion", "subject": account,
        "time": "2026-11-21T10:30:00Z", "data": {"tokens": tokens}, **changes,
    }).encode()  # fmt: skip


class Deployment:
    """A log, a worker and a router on fakes, with events that the meters before the correction reject."""

    def __init__(self) -> None:
        self.world = World(NOW_MS)
        self.tables = FakeSideTables(last_link_pays)
        self.routed: Counter[int] = Counter()

    async def start(self) -> None:
        await self.tables.migrate(SCOPE, LOG_ID)
        await self.world.start(BEFORE)

    async def send(self, account: str, *raws: bytes, partition: int | None = None) -> None:
        """Append events and have them counted."""
        home = partition_of(account, self.world.partitions) if partition is None else partition
        await self.world.log.append(EVENTS_TOPIC, home, b"[" + b",".join(raws) + b"]")
        await self.world.fold_all()

    async def correct(self) -> None:
        """Let a meter take what it refused."""
        await append_everywhere(self.world.log, SECRET, MeterSetRecord(meter_set=AFTER))
        await self.world.fold_all()

    async def settle(self) -> None:
        """Route what is in the inbox, and count it."""
        router = RouterProcessor(self.world.log)
        for partition in range(self.world.partitions):
            await router.start_offset(partition)
            while records := await self.world.log.read(INBOX_TOPIC, partition, self.routed[partition]):
                await router.step(partition, records)
                self.routed[partition] = records[-1].next_offset
        await self.world.fold_all()

    async def totals(self) -> dict[str, str | None]:
        """The tokens of each account."""
        found = {}
        for account in ACCOUNTS:
            key = TotalKey(account, NOVEMBER_MS)
            home = partition_of(account, self.world.partitions)
            _, totals = await self.world.store.totals.account_totals(home, [key])
            found[account] = totals.get(key, {}).get("tokens")
        return found

    async def quarantined(self) -> int:
        """How many entries the quarantine has."""
        return sum([len(await self.world.records(partition, REJECTED_TOPIC)) for partition in range(2)])

    def judge(self, selection: Selection = ALL, meter_set: MeterSet | None = AFTER) -> Judge:
        return Judge(selection, meter_set, self.world.clock.now_ms())

    async def redrive(
        self, selection: Selection = ALL, log: Any = None, redrives: Any = None, number: int = 1
    ) -> Redrive:
        """Begin or go on, to the end."""
        redrives_: Redrives = redrives or self.tables.redrives
        driver = Redriving(log or self.world.log, redrives_, self.world.clock)
        redrive = await driver.begin(f"rq_{number}", selection, "ann", "allowed now")
        while redrive.state is RedriveState.RUNNING:
            redrive = await driver.step(redrive, self.judge(selection))
        return redrive

    async def previewed(self, selection: Selection = ALL) -> Preview:
        async def arrived(identities: Collection[Identity]) -> Collection[Identity]:
            return await marked(self.world.store.marks, SECRET, self.world.partitions, identities)

        return await preview(self.world.log, self.judge(selection), arrived, lambda: False)


async def rejected() -> Deployment:
    """Of each account three negative events, two that stay wrong, and one good one that was counted."""
    deployment = Deployment()
    await deployment.start()
    for account in ACCOUNTS:
        good = event("good", account, 100)
        bad = [event(f"bad-{number}", account, "many") for number in range(2)]
        await deployment.send(
            account, *(event(f"op-{number}", account, -1 - number) for number in range(3)), *bad, good
        )
    await deployment.correct()
    assert await deployment.quarantined() == 15
    return deployment


COUNTED: Final = dict.fromkeys(ACCOUNTS, "94")


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redriving, "STEP_RECORDS", 4)


async def test_what_passes_now_is_sent_and_what_still_fails_stays() -> None:
    deployment = await rejected()
    done = await deployment.redrive()
    await deployment.settle()

    assert (done.counts, done.state) == (RedriveCounts(15, 9, 6, 0, 0), RedriveState.DONE)
    assert (await deployment.totals(), await deployment.quarantined()) == (COUNTED, 15)


async def test_events_go_in_the_order_in_which_they_were_rejected() -> None:
    deployment = await rejected()
    await deployment.redrive()

    sent: dict[str, list[str]] = {account: [] for account in ACCOUNTS}
    for partition in range(2):
        for record in await deployment.world.records(partition, INBOX_TOPIC):
            for each in json.loads(record.value or b""):
                sent[each["subject"]].append(each["id"])
    assert sent == {account: ["op-0", "op-1", "op-2"] for account in ACCOUNTS}


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
async def test_a_redrive_that_is_killed_at_any_call_counts_each_event_once(after: bool) -> None:
    """The next process begins with what the store has, as the command does."""
    for calls in count(1):
        deployment = await rejected()
        countdown = [calls]
        log = Crashing(deployment.world.log, countdown, after=after)
        redrives = Crashing(deployment.tables.redrives, countdown, after=after)
        try:
            await deployment.redrive(log=log, redrives=redrives)
        except Crash:
            done = await deployment.redrive(number=2)
            await deployment.settle()
            assert await deployment.totals() == COUNTED, f"after a kill at call {calls}"
            assert (done.counts.sent, done.counts.failing) == (9, 6)
            assert len(await deployment.tables.redrives.listed(10)) <= 2
        else:
            break
    assert calls > 20


async def test_a_redrive_goes_on_with_the_next_entry() -> None:
    """Not with the first one: a redrive of millions of entries is not begun again."""
    deployment = await rejected()
    driver = Redriving(deployment.world.log, deployment.tables.redrives, deployment.world.clock)
    first = await driver.step(await driver.begin("rq_1", Selection(), "ann", "why"), deployment.judge())
    # These come after the beginning, and are not of this redrive.
    await deployment.send("acme", event("later", "acme", "many"))

    again = await driver.begin("rq_2", Selection(), "bob", "why")
    assert again == first
    while again.state is RedriveState.RUNNING:
        again = await driver.step(again, deployment.judge())
    assert again.counts == RedriveCounts(15, 9, 6, 0, 0)


async def test_one_of_two_processes_goes_on() -> None:
    deployment = await rejected()
    driver = Redriving(deployment.world.log, deployment.tables.redrives, deployment.world.clock)
    begun = await driver.begin("rq_1", Selection(), "ann", "why")
    await driver.step(begun, deployment.judge())
    with pytest.raises(Fenced):
        await driver.step(begun, deployment.judge())
    await deployment.redrive()
    await deployment.settle()

    assert await deployment.totals() == COUNTED


async def test_redriven_twice_and_sent_again_meanwhile_counts_once() -> None:
    deployment = await rejected()
    await deployment.send("acme", event("op-1", "acme", -2))
    for number in range(2):
        await deployment.redrive(number=number)
        await deployment.settle()

    assert await deployment.totals() == COUNTED


async def test_late_events_wait_for_the_archive_and_too_old_ones_stay() -> None:
    """A redrive changes neither rule (I9)."""
    deployment = Deployment()
    await deployment.start()
    await deployment.send("acme", event("op-1", "acme", -1), event("op-2", "acme", -1, time="2026-10-25T10:30:00Z"))
    deployment.world.clock.advance(10 * DAY_MS)
    await deployment.send("acme", event("now", "acme", 7, time="2026-12-01T10:30:00Z"))
    await deployment.correct()
    found = await deployment.previewed()
    done = await deployment.redrive()
    await deployment.settle()

    assert (found.old, found.failing) == (1, {("negative_quantity", "too_old"): 1})
    assert done.counts == RedriveCounts(2, 1, 1, 0, 0)
    home = partition_of("acme", deployment.world.partitions)
    _, waiting = await deployment.world.store.deferred.deferred(home, 10)
    assert [json.loads(each.raw)["id"] for each in waiting] == ["op-1"]


async def test_a_preview_says_what_the_redrive_does_then() -> None:
    deployment = await rejected()
    await deployment.send("acme", event("op-0", "acme", -1))
    await deployment.send("acme", event("twice", "acme", "many"), event("twice", "acme", "many"))
    found = await deployment.previewed()
    done = await deployment.redrive()

    assert found.counts == done.counts == RedriveCounts(17, 9, 8, 0, 0)
    assert found.passing == {"negative_quantity": 9}
    assert found.failing == {("bad_quantity", "bad_quantity"): 8}
    assert found.accounts == dict.fromkeys(ACCOUNTS, 3)
    assert (found.arrived, found.old, found.unmetered, found.is_whole) == (1, 0, 0, True)


@pytest.mark.parametrize(
    ("selection", "sent", "failing"),
    [
        pytest.param(Selection(), 3, 3, id="all"),
        pytest.param(Selection("negative_quantity"), 2, 0, id="a reason"),
        pytest.param(Selection("bad_quantity"), 0, 1, id="a reason that is still in force"),
        pytest.param(Selection("", "tokens"), 3, 1, id="a meter"),
        pytest.param(Selection("", "calls"), 0, 1, id="another meter"),
        pytest.param(Selection("period_closed"), 1, 0, id="a reason that no redrive helps"),
        pytest.param(Selection("wrong_partition"), 0, 1, id="a type of this system"),
        pytest.param(Selection("", "", NOW_MS + HOUR_MS), 1, 0, id="since"),
        pytest.param(Selection("", "", NOW_MS + HOUR_MS + 1), 0, 0, id="since later"),
    ],
)
async def test_a_selection(selection: Selection, sent: int, failing: int) -> None:
    """Entries of several kinds, some of which no redrive helps."""
    deployment = Deployment()
    await deployment.start()
    entries = [
        ("negative_quantity", event("op-1", "acme", -1), NOW_MS),
        ("negative_quantity", event("op-2", "acme", -1), NOW_MS),
        ("bad_quantity", event("op-3", "acme", "many"), NOW_MS),
        ("too_far_in_future", event("op-4", "acme", 1), NOW_MS + HOUR_MS),
        ("too_far_in_future", event("op-5", "acme", 1, type="call", time="2030-11-21T10:30:00Z"), NOW_MS),
        ("period_closed", event("op-6", "acme", 1), NOW_MS),
        ("bad_json", b"{", NOW_MS),
        ("wrong_partition", event("op-7", "acme", 1, type=adjusted_type("tokens"), data={"quantity": "9"}), NOW_MS),
    ]  # fmt: skip
    for reason, raw, at_ms in entries:
        place = [(Header.PARTITION, b"0"), (Header.OFFSET, b"7"), (Header.STREAM_TIME_MS, str(at_ms).encode())]
        await append_entry(deployment.world.log, 0, reason, "", EVENTS_TOPIC, raw, tuple(place))
    counts = (await deployment.redrive(selection)).counts

    assert (counts.looked, counts.sent, counts.failing) == (8, sent, failing)


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection("nonsense"), "cause: 'nonsense' is no reason"),
        (Selection("", "x"), "meter: 'x' is not in the meter"),
    ],
    ids=["a reason", "a meter"],
)
def test_a_selection_of_what_does_not_exist_is_refused(selection: Selection, said: str) -> None:
    """Silence would say that there are no such events."""
    with pytest.raises(InvalidInput, match=said):
        Judge(selection, AFTER, NOW_MS)


async def test_an_event_in_two_entries_is_sent_once_in_a_step_and_a_cut_one_not() -> None:
    deployment = Deployment()
    await deployment.start()
    log, raw = deployment.world.log, event("op-1", "acme", -1)
    for _ in range(2):
        await append_entry(log, 0, "negative_quantity", "", EVENTS_TOPIC, raw, ())
    await append_entry(log, 0, "too_large", "", EVENTS_TOPIC, b"x" * 1_200_000, (), cut=True)

    assert (await deployment.redrive()).counts == RedriveCounts(3, 1, 0, 1, 1)


async def test_a_list_in_one_entry_is_sent_event_by_event() -> None:
    """A record that was rejected as a whole, because a limit was smaller then."""
    deployment = Deployment()
    await deployment.start()
    whole = b"[" + b",".join(event(f"op-{number}", "acme", -1, time=None) for number in range(2)) + b"]"
    await append_entry(deployment.world.log, 0, "too_large", "", EVENTS_TOPIC, whole, ())
    await deployment.correct()
    await deployment.redrive()
    await deployment.settle()

    assert (await deployment.totals())["acme"] == "-2"
