"""Random histories of gauges, spans and sessions, for the measurer and for the naive oracle.

`python -m tests.measures` writes many of them, or one of them again.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, NamedTuple, TypeVar

from oracle.areas import Sample, pieces
from oracle.rules import binding_of, period_containing
from pipeline.logs.control_records import append_everywhere
from pipeline.rollup.measurer import Measurer
from schemas.adjustments import ADJUSTED_PREFIX
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.control import BindingRecord, CorrectionRecord, MeterSetRecord
from schemas.log import EVENTS_TOPIC
from schemas.meters import MeterSet
from schemas.periods import Billing, Binding, Interval
from sinks.clickhouse.fake_measures import FakeMeasures
from tests.traffic.generate import rfc3339
from tests.worlds.crashing import Crash, Crashing
from tests.worlds.deployment import SECRET
from tests.worlds.reconciler import Deployment

ACCOUNTS: Final = ("eve", "fay")
DELAY_MS: Final = 2 * MINUTE_MS
METERS: Final[tuple[dict[str, Any], ...]] = (
    {"slug": "disk", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.level", "scale": 2,
     "dimensions": {"site": "$.site"}, "allow_negative": True, "stripe_event_name": "disk"},
    {"slug": "boxes", "event_type": "gauge", "aggregation": "time_weighted", "value_path": "$.level", "scale": 2,
     "series_path": "$.box", "stands_s_max": 5400, "per": "minute", "allow_negative": True},
    {"slug": "most", "event_type": "gauge", "aggregation": "peak", "value_path": "$.level", "scale": 2,
     "series_path": "$.box", "on_bad": "skip_meter", "stripe_event_name": "most"},
    {"slug": "jobs", "event_type": "job", "aggregation": "duration", "value_path": "$.cpus", "start_path": "$.began",
     "scale": 3, "stripe_event_name": "jobs"},
    {"slug": "calls", "event_type": "beat", "aggregation": "duration", "session_path": "$.call", "per": "second",
     "session_gap_s_max": 2400, "dimensions": {"site": "$.site"}, "stripe_event_name": "calls"},
    {"slug": "days", "event_type": "beat", "aggregation": "duration", "session_path": "$.call",
     "session_gap_s_max": 100_000},
)  # fmt: skip
BY_SLUG: Final = {str(meter["slug"]): meter for meter in METERS}
REPORTED: Final = frozenset(slug for slug, meter in BY_SLUG.items() if "stripe_event_name" in meter)
AGES_MS: Final = (0, 0, 0, MINUTE_MS, 50 * MINUTE_MS, 3 * HOUR_MS, 30 * HOUR_MS, 90 * HOUR_MS)
LEAPS_MS: Final = (1, MINUTE_MS, 20 * MINUTE_MS, HOUR_MS, 2 * HOUR_MS, 5 * HOUR_MS, 20 * HOUR_MS)
SPANS_MS: Final = (0, 1, MINUTE_MS, 70 * MINUTE_MS, 26 * HOUR_MS, 35 * DAY_MS)
SPAN_MS_MAX: Final = 35 * DAY_MS
LEVELS: Final = ("0", "1", "-0.5", "7.25")

_Of = TypeVar("_Of")
Key = tuple[str, str, str, int]
"""Account, meter, site and the start of a piece or an hour."""


class Sent(NamedTuple):
    """An event, and the samples that it is, by meter and site."""

    body: dict[str, Any]
    time_us: int
    samples: dict[tuple[str, str], Sample]


class MeasuredHistory:
    """Writes one history, which the measurer measures now and then.

    The process of the measurer ends before (or after) the `crash_at`-th call of a store or the log; another follows.
    `crowd`: two processes measure at the same time.
    """

    def __init__(self, seed: int, *, crash_at: int = 0, after: bool = False, crowd: bool = False) -> None:
        self.chance = random.Random(seed)
        self.world = Deployment()
        self.sent: list[Sent] = []
        self.standing: dict[tuple[str, str, str], dict[str, Sample]] = defaultdict(dict)
        """The samples that count, by account, meter and site, and by the ids of events."""
        self.late_max_ms = self.chance.choice([2 * HOUR_MS, 2 * DAY_MS, 4 * DAY_MS, 10 * DAY_MS])
        # A boundary moves as long as its period is not closed.
        self._grace_ms = self.chance.choice([HOUR_MS, 30 * HOUR_MS])
        self.countdown, self._after, self._crowd = [crash_at], after, crowd
        # A meter that comes later counts no sample from before.
        self._new = self.chance.choice(["", "", "boxes", "jobs"])
        self.measurer, self.other = self.new_measurer(), self.new_measurer()

    def new_measurer(self) -> Measurer:
        world = self.world
        samples, measured = FakeMeasures(world.clickhouse), world.store.measured
        reached = (world.log, world.store.accounts, world.clickhouse, samples, measured)
        # They pass calls on.
        wrapped: list[Any] = [
            _Slow(each, self.chance) if self._crowd else Crashing(each, self.countdown, after=self._after)
            for each in reached
        ]
        wrapped.append(DELAY_MS)
        return Measurer(*wrapped)

    def _meter_set(self) -> dict[str, Any]:
        meters = [meter for meter in METERS if meter["slug"] != self._new]
        policy = {"grace_ms": self._grace_ms, "keep_periods_ms": 36_600 * DAY_MS, "late_max_ms": self.late_max_ms}
        return {"version": 1 if self._new else 2, "meters": meters, "policy": policy}

    async def write(self, steps: int = 25) -> None:
        world, chance = self.world, self.chance
        world.stripe.add_customer("cus_1")
        await world.world.start(self._meter_set())
        await world.prepare_to_send()
        for account in ACCOUNTS:
            await self.bind(account, world.clock.ms - 70 * DAY_MS)
        for step in range(steps):
            await world.advance(chance.choice(LEAPS_MS))
            if step == steps // 3 and self._new:
                self._new = ""
                later = MeterSetRecord(meter_set=MeterSet.model_validate(self._meter_set()))
                await append_everywhere(world.log, SECRET, later)
            await self._something()
            if chance.random() < 0.6:
                await self.measure()
            if chance.random() < 0.1:
                self.measurer = self.new_measurer()
        await self.rest()

    async def _something(self) -> None:
        chance, now_ms = self.chance, self.world.clock.ms
        if chance.random() < 0.15:
            await self.bind(chance.choice(ACCOUNTS), now_ms + chance.choice([0, -20 * HOUR_MS, -5 * HOUR_MS, HOUR_MS]))
        if chance.random() < 0.1:
            account, instant_ms = chance.choice(ACCOUNTS), now_ms - chance.choice([HOUR_MS, DAY_MS, 8 * DAY_MS])
            if period_containing(await self._bindings(account), instant_ms)[1] < now_ms:
                await self.world.close_period(account, instant_ms)
        for _ in range(chance.choice([0, 0, 1, 2, 5])):
            await self.emit()
        if self.sent and chance.random() < 0.25:
            first = chance.choice(self.sent)
            await self.void(first, counts=chance.random() < 0.9)
            if chance.random() < 0.3:
                await self.send(self._event(first))
        if chance.random() < 0.2:
            await self.views()

    async def rest(self) -> None:
        """Measure until nothing is told any more, and bring all of it to every view."""
        for _ in range(4):
            await self.world.advance(HOUR_MS)
            await self.measure()
        await self.world.advance(HOUR_MS)
        await self.world.catch_up()
        await self.views()

    async def views(self) -> None:
        """Bring to ClickHouse and Stripe what is counted."""
        await self.world.relay()
        await self.world.publish()
        await self.world.send()

    async def measure(self) -> int:
        """Let the measurer see all that is in the log. Another one follows a crash, and another pass the archive."""
        await self.world.catch_up()
        partitions = range(self.world.world.partitions)
        if self._crowd:
            both = [each.measure(at) for at in partitions for each in (self.measurer, self.other)]
            return sum(measured.told for measured in await asyncio.gather(*both))
        try:
            return sum([(await self.measurer.measure(at)).told for at in partitions])
        except Crash:
            self.measurer = self.new_measurer()
            return await self.measure()

    # What happens

    async def bind(self, account: str, from_ms: int) -> None:
        chance, world = self.chance, self.world
        now_ms = world.clock.ms // MINUTE_MS * MINUTE_MS
        binding = Binding(
            effective_from_ms=from_ms // MINUTE_MS * MINUTE_MS,
            anchor_ms=now_ms - chance.randrange(60 * DAY_MS),
            interval=chance.choice([Interval.DAY, Interval.WEEK, Interval.MONTH]),
            billing=Billing.MAPPED,
            stripe_customer=self._payer(),
        )
        record = BindingRecord(account=account, revision=world.world.revision(account), binding=binding)
        await world.world.control(world.partition(account), record)

    def _payer(self) -> str:
        return "cus_1"

    async def emit(self) -> None:
        """A sample, an event that is none, or a duplicate, perhaps with other content: the first arrival counts."""
        is_twin = bool(self.sent) and self.chance.random() < 0.15
        sent = self._event(self.chance.choice(self.sent[-8:]) if is_twin else None)
        # The repetition of an event that was rejected is no duplicate.
        taken = [each for each in self.sent if each.samples]
        if taken and self.chance.random() < 0.1:
            first = self.chance.choice(taken)
            await self._append({**first.body, "data": self.chance.choice([first.body, sent.body])["data"]})
        else:
            await self.send(sent)

    async def void(self, sent: Sent, *, counts: bool = True) -> None:
        """Void an event. The record of one that does not count is settled outside."""
        world, account = self.world, sent.body["subject"]
        record = CorrectionRecord(
            account=account, correction=f"c{self.chance.random()}", event=sent.body["id"], kind="void", by="eve",
            reason="a test", counts=counts,
        )  # fmt: skip
        await world.world.control(world.partition(account), record)
        for slug, site in sent.samples if counts else ():
            self.standing[account, slug, site].pop(sent.body["id"], None)

    async def _append(self, body: Mapping[str, Any]) -> int:
        world = self.world
        return await world.log.append(EVENTS_TOPIC, world.partition(body["subject"]), json.dumps(body).encode())

    async def send(self, sent: Sent) -> None:
        """Append an event. Its samples stand from now on, unless its identity is known."""
        offset = await self._append(sent.body)
        if any(sent.body["id"] == before.body["id"] for before in self.sent):
            return
        samples = {key: sample._replace(position=offset) for key, sample in sent.samples.items()}
        self.sent.append(sent)
        earliest_us = (self.world.clock.ms - self.late_max_ms) * 1000
        for (slug, site), sample in samples.items():
            if slug != self._new and sample.time_us >= earliest_us:
                self.standing[sent.body["subject"], slug, site][sent.body["id"]] = sample

    def _event(self, like: Sent | None = None) -> Sent:
        """Another event, perhaps with the time, the type and the account of one that came before."""
        chance, now_ms = self.chance, self.world.clock.ms
        time_us = (now_ms - chance.choice(AGES_MS) - chance.choice([0, chance.randrange(1_000)])) * 1000
        time_us += chance.choice([0, 0, 1, -1]) if time_us < now_ms * 1000 else 0
        body: dict[str, Any] = {
            "specversion": "1.0", "id": f"e{len(self.sent)}", "source": "s",
            "type": chance.choice(["gauge", "job", "beat"]), "subject": chance.choice(ACCOUNTS),
        }  # fmt: skip
        if like is not None:
            time_us = like.time_us
            body |= {"type": like.body["type"], "subject": like.body["subject"]}
        make = {"gauge": self._gauge, "job": self._job, "beat": self._beat}[body["type"]]
        data, samples = make(time_us)
        return Sent({**body, "time": rfc3339(time_us), "data": data}, time_us, samples)

    def _gauge(self, time_us: int) -> tuple[dict[str, Any], dict[tuple[str, str], Sample]]:
        chance = self.chance
        site, box, level = chance.choice(["", "north"]), chance.choice("ab"), chance.choice((*LEVELS, "0.001", None))
        data = {"level": level, "site": site, "box": box}
        if level not in LEVELS:
            return data, {}
        minor = int(Decimal(level) * 100)
        sample = Sample(time_us, 0, minor, box)
        kept = {("disk", site): sample._replace(series=""), ("boxes", ""): sample}
        return data, kept if minor < 0 else kept | {("most", ""): sample}

    def _job(self, time_us: int) -> tuple[dict[str, Any], dict[tuple[str, str], Sample]]:
        chance = self.chance
        began_us = time_us - chance.choice(SPANS_MS) * 1000 - chance.choice([0, 0, 0, 1, -1])
        cpus = chance.choice(["1", "2", "0.125", "1", "2", "-1"])
        data = {"cpus": cpus, "began": rfc3339(began_us)}
        if cpus == "-1" or not 0 <= time_us - began_us <= SPAN_MS_MAX * 1000:
            return data, {}
        return data, {("jobs", ""): Sample(time_us, 0, int(Decimal(str(cpus)) * 1000), start_us=began_us)}

    def _beat(self, time_us: int) -> tuple[dict[str, Any], dict[tuple[str, str], Sample]]:
        site, call = self.chance.choice(["", "north"]), self.chance.choice("ab")
        sample = Sample(time_us, 0, 1, call)
        return {"call": call, "site": site}, {("calls", site): sample, ("days", ""): sample}

    # What is right, and what is there

    async def _bindings(self, account: str) -> list[Any]:
        """The bindings in effect."""
        state = await self.world.store.accounts.account(self.world.partition(account), account)
        return [binding_of(each.model_dump(mode="json")) for each in state.bindings]

    async def must(self) -> dict[Key, int]:
        """What the naive oracle says that every piece must hold; pieces with 0 are left out."""
        world = self.world
        until_ms = world.clock.ms - HOUR_MS - DELAY_MS
        must: dict[Key, int] = {}
        for (account, slug, site), known in self.standing.items():
            samples = list(known.values())
            bindings = await self._bindings(account)
            first_us = min([s.time_us if s.start_us is None else s.start_us for s in samples], default=until_ms * 1000)
            start_ms, end_ms = period_containing(bindings, first_us // 1000)
            while start_ms < until_ms:
                held = pieces(BY_SLUG[slug], samples, (start_ms * 1000, end_ms * 1000), until_ms * 1000)
                must |= {(account, slug, site, start_us // 1000): minor for start_us, minor in held.items()}
                start_ms, end_ms = period_containing(bindings, end_ms)
        return must

    def told(self) -> dict[Key, int]:
        """What the archived adjustments add up to, alike."""
        told: Counter[Key] = Counter()
        for row in self.world.clickhouse.events.values():
            if row.id.startswith("m:") and row.type.startswith(ADJUSTED_PREFIX):
                data = json.loads(row.data)
                _, slug, _, start, _ = row.id.split(":")
                minor = int(Decimal(data["quantity"]) * 10 ** BY_SLUG[slug].get("scale", 0))
                told[row.account, slug, data["dimensions"].get("site", ""), int(start)] += minor
        return _without_0(told)

    def hourly(self) -> dict[Key, int]:
        """`usage_hourly`, by the hour of the usage."""
        sums: Counter[Key] = Counter()
        for row in self.world.clickhouse.cells.values():
            site = json.loads(row.dimensions).get("site", "")
            sums[row.account, row.meter, site, row.hour_ms] += row.value_minor
        return _without_0(sums)

    def billed(self) -> dict[str, int]:
        """What Stripe's meters have, in minor units. All accounts have one customer."""
        sums: Counter[str] = Counter()
        for stored in self.world.stripe.events:
            slug = stored.event.event_name
            sums[slug] += int(Decimal(stored.event.value) * 10 ** BY_SLUG[slug].get("scale", 0))
        return _without_0(sums)

    async def differences(self) -> list[str]:
        """Where a view differs from what the naive oracle says. A late piece counts in a later period, so totals of
        periods are compared in sum; the reconciler recounts each of them."""
        must = await self.must()
        hours, accounts, meters = Counter[Key](), Counter[tuple[str, str]](), Counter[str]()
        for (account, slug, site, start_ms), minor in must.items():
            hours[account, slug, site, start_ms // HOUR_MS * HOUR_MS] += minor
            accounts[account, slug] += minor
            meters[slug] += minor if slug in REPORTED else 0
        compared: list[tuple[str, Mapping[Any, int], Mapping[Any, int]]] = [
            ("told", self.told(), must),
            ("usage_hourly", self.hourly(), _without_0(hours)),
            ("live view", self.world.live(), _without_0(accounts)),
            ("Stripe", self.billed(), _without_0(meters)),
        ]
        found = [
            f"{view}: {key}: {has.get(key, 0)}, must be {should.get(key, 0)}"
            for view, has, should in compared
            for key in sorted({*has, *should})
            if has.get(key, 0) != should.get(key, 0)
        ]
        report = await self.world.reconcile()
        rows = [row for row in report.rows if "not settled" not in row.detail]
        return found + [f"reconciler: {row}" for row in rows if report.differences]


def history_of(seed: int) -> MeasuredHistory:
    """The history of a seed. Every fourth one is measured by two processes at the same time, and every fourth one by a
    process that ends."""
    kind = seed % 4
    return MeasuredHistory(seed, crash_at=1 + seed % 97 if kind == 1 else 0, after=seed % 8 == 1, crowd=kind == 3)


class _Slow:
    """Lets others go first, sometimes, before a call acts and after."""

    def __init__(self, inner: Any, chance: random.Random) -> None:
        self._inner, self._chance = inner, random.Random(chance.random())

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(attribute):
            return attribute

        async def call(*arguments: Any, **options: Any) -> Any:
            for _ in range(self._chance.randrange(3)):
                await asyncio.sleep(0)
            answer = await attribute(*arguments, **options)
            for _ in range(self._chance.randrange(3)):
                await asyncio.sleep(0)
            return answer

        return call


def _without_0(sums: Mapping[_Of, int]) -> dict[_Of, int]:
    return {key: minor for key, minor in sums.items() if minor}
