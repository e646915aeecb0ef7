"""Logs of one partition with records of every kind, by seed, and an oracle that has read the same records."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any, Final

from oracle.model import Oracle
from oracle.records import Place
from schemas.aggregations import Aggregation
from schemas.control import (
    BindingRecord,
    CloseRecord,
    Control,
    DedupDecision,
    DedupDecisionRecord,
    FlushRecord,
    MeterSetRecord,
    RestatementRecord,
    Tick,
)
from schemas.log import EVENTS_TOPIC, position
from schemas.meters import MeterSet
from schemas.periods import Billing, Binding, Interval
from schemas.restatement import (
    RestatementCell,
    RestatementContent,
    RestatementDistinct,
    RestatementTotal,
    packed,
)
from tests.traffic.generate import rfc3339
from tests.worlds.deployment import World

MARCH_MS: Final = 1_772_323_200_000  # 2026-03-01T00:00:00Z
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
ACCOUNTS: Final = ("a", "b", "kontö_ß")
METERS: Final[tuple[dict[str, Any], ...]] = (
    {"slug": "calls", "event_type": "call", "aggregation": "count", "dimensions": {"how": "$.how"}},
    {"slug": "exact", "event_type": "sum", "aggregation": "sum", "value_path": "$.n", "scale": 6},
    {"slug": "most", "event_type": "max", "aggregation": "max", "value_path": "$.n", "allow_negative": True},
    {"slug": "least", "event_type": "max", "aggregation": "min", "value_path": "$.n", "allow_negative": True,
     "on_bad": "skip_meter"},
    {"slug": "last", "event_type": "latest", "aggregation": "latest", "value_path": "$.n", "late": "quarantine",
     "carry_over": True},
    {"slug": "users", "event_type": "user", "aggregation": "unique", "value_path": "$.user",
     "dimensions": {"how": "$.how"}},
    {"slug": "both_calls", "event_type": "both", "aggregation": "count", "dimensions": {"a": "$.how", "b": "$.b.c"}},
    {"slug": "both_units", "event_type": "both", "aggregation": "sum", "value_path": "$.n",
     "filters": [{"path": "$.how", "operator": "ne", "values": ["y"]}]},
    {"slug": "stored", "event_type": "level", "aggregation": "time_weighted", "value_path": "$.n", "scale": 2,
     "dimensions": {"how": "$.how"}, "series_path": "$.user", "late": "quarantine"},
    {"slug": "ran", "event_type": "span", "aggregation": "duration", "value_path": "$.n", "start_path": "$.start"},
    {"slug": "online", "event_type": "mixed", "aggregation": "duration", "session_path": "$.user",
     "on_bad": "skip_meter"},
    {"slug": "beats", "event_type": "mixed", "aggregation": "sum", "value_path": "$.n", "late": "quarantine"},
)  # fmt: skip
ADJUSTED: Final = (*("calls",) * 4, "both_calls", "exact", "beats", "stored", "ran", "online", "users", "nothing")
STEPS: Final = 50
TYPES: Final = ("call", "sum", "max", "latest", "latest", "user", "both", "both", "none")
SAMPLES: Final = ("level", "span", "mixed")
NUMBERS: Final[tuple[object, ...]] = (
    1, 2, 5, 0, -1, True, 1.5, "1.5", "01", "0.0000001", "x", None, [], 10**18 - 1, 10**18,
)  # fmt: skip
TEXTS: Final[tuple[object, ...]] = ("x", "y", "z", "1", 1, True, "true", None, "", [1], 1.5, "é")
TIMES: Final = (None, "", "2026-03-01t11:00:00.5z", "2026-03-01T12:00:60Z", "2026-02-30T10:00:00Z")


class AnyLog:
    """A log, made by `write`.

    A log that is `checked` has only what the oracle knows: no restatement with content, and correct dedup decisions
    of repetitions within the window. Other logs have leaps of 40 days, wrong decisions and refused meter sets too.
    """

    def __init__(self, seed: int, *, checked: bool) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.checked = checked
        self.policy: dict[str, Any] = {
            "window_ms": DAY_MS if checked else self.chance.choice([2, 6, 24]) * HOUR_MS,
            "future_ms": 5 * MINUTE_MS,
            "grace_ms": self.chance.choice([0, MINUTE_MS, HOUR_MS]),
            "report_interval_ms": self.chance.choice([MINUTE_MS, 10 * MINUTE_MS, HOUR_MS]),
            "deferred_max": 100_000 if checked else self.chance.choice([0, 2, 100_000]),
            "keep_periods_ms": 0,
        }
        # Reported at Stripe from the start, and the version of the meter set in force.
        self._names = {meter["slug"]: meter["slug"] for meter in METERS if self.chance.random() < 0.6}
        self._version = 1
        self._pace_ms = self.chance.choice([500, 5_000, 60_000, 400_000])
        self._sent: list[dict[str, Any]] = []
        self._undecided: list[DedupDecision] = []
        self._decided: list[DedupDecision] = []
        self._revisions: Counter[str] = Counter()
        # The offsets that a record of an account's restatement may name; the last one is most often the right one.
        self._answers: dict[str, list[int]] = {account: [] for account in ACCOUNTS}
        # The accounts whose last restatement record begins a restatement.
        self._begun: set[str] = set()
        self.world = World(MARCH_MS - 50 * HOUR_MS, 1)
        self.oracle = Oracle(self._meter_set(METERS), partitions=1)

    async def write(self, steps: int = STEPS) -> None:
        """Append records."""
        chance, clock = self.chance, self.world.clock
        await self.world.start(self._meter_set(METERS))
        clock.ms = MARCH_MS - chance.choice([2 * MINUTE_MS, HOUR_MS, 3 * HOUR_MS])
        kinds = (self._events, self._bind, self._close, self._flush, self._meters, self._decide, self._restate)
        for _ in range(steps):
            clock.ms += chance.choice([0, 0, 1, chance.randrange(self._pace_ms)])
            if chance.random() < 0.05:
                clock.ms = (clock.ms // HOUR_MS + 1) * HOUR_MS + chance.choice([-1, 0, 1])
            if not self.checked and chance.random() < 0.03:
                clock.ms += chance.choice([DAY_MS, 40 * DAY_MS])
            (kind,) = chance.choices(kinds, (50, 10, 3, 8, 12, 6, 8))
            await kind()
        await self._control(Tick(log_id=self.world.log_id, partitions=1))
        self.oracle.tick(0, clock.ms)

    async def _control(self, control: Control) -> int:
        return await self.world.control(0, control)

    # Events

    async def _events(self) -> None:
        chance = self.chance
        events = [self._event() for _ in range(chance.choice([1, 1, 2, 5, 20]))]
        for _ in range(chance.choice([0, 0, 1, 3])):
            events.insert(chance.randrange(len(events) + 1), self._slow(self._event()))
        value = json.dumps(events if len(events) > 1 or chance.random() < 0.5 else events[0]).encode()
        if chance.random() < 0.03:
            value = chance.choice([value[:-2], b"[1]", b""])
        (headers,) = chance.choices(((), (("traceparent", b"00"),), (("tidemark-control", b"flush"),)), (90, 6, 4))
        offset = await self.world.log.append(EVENTS_TOPIC, 0, value, headers=headers)
        self.oracle.feed(0, offset, self.world.clock.ms, value, headers)
        self._sent += [event for event in events if "id" in event and "subject" in event]
        for index, event in enumerate(events):
            self._note(Place(0, offset, index), event)

    def _event(self) -> dict[str, Any]:
        chance, now_ms = self.chance, self.world.clock.ms
        late_ms = chance.choice([0, 0, 0, 0, 2 * MINUTE_MS, 5 * HOUR_MS, -7 * MINUTE_MS, 30 * DAY_MS])
        time_us = (now_ms - int(late_ms * chance.random())) * 1000 + chance.choice([0, 0, 1])
        if chance.random() < 0.1:
            time_us = chance.choice([MARCH_MS, now_ms // HOUR_MS * HOUR_MS]) * 1000 + chance.choice([0, -1, -1000])
        event = {
            "specversion": "1.0", "id": f"i{len(self._sent)}-{chance.random()}", "source": "s",
            "type": chance.choice(TYPES), "subject": chance.choice(ACCOUNTS),
            "time": rfc3339(time_us) if chance.random() < 0.95 else chance.choice(TIMES),
            "data": {name: chance.choice(values[: 3 if chance.random() < 0.8 else None])
                     for name, values in (("n", NUMBERS), ("how", TEXTS), ("user", TEXTS))}
                    | {"b": chance.choice([{"c": "x"}, {"c": "x"}, "s"])}
                    | {"start": rfc3339(time_us - chance.choice([0, 1, HOUR_MS * 1000, 35 * DAY_MS * 1000 + 1, -1]))},
        }  # fmt: skip
        if chance.random() < 0.15 and self._sent:
            before = chance.choice(self._sent[-60:])
            return before if chance.random() < 0.5 else event | {"id": before["id"], "subject": before["subject"]}
        if chance.random() < 0.02:
            del event[chance.choice(list(event))]
        return event

    def _slow(self, event: dict[str, Any]) -> dict[str, Any]:
        """A sample or an adjustment with the other fields of an event."""
        chance, renamed = self.chance, {"id": f"{event.get('id')}s"} if self.chance.random() < 0.9 else {}
        if chance.random() < 0.5:
            return event | renamed | {"type": chance.choice(SAMPLES)}
        return event | renamed | {"type": f"tidemark.adjusted.{chance.choice(ADJUSTED)}", "data": self._adjusted()}

    def _adjusted(self) -> dict[str, Any]:
        chance = self.chance
        quantity = chance.choice(["1", "-1", "-3", "7", "-2", "5", "0", "-0.5", "1.25", "0.0000001", "x", None])
        names = {"how": chance.choice(TEXTS[:4]), "a": "x", "b": "y"}
        return {"quantity": quantity, "dimensions": names, "by": "someone"}

    # Dedup decisions

    def _note(self, place: Place, event: dict[str, Any]) -> None:
        """Keep the decision that a deferred event needs."""
        waiting = self.oracle.waiting(place)
        if waiting is None and (self.checked or self.chance.random() < 0.8 or "subject" not in event):
            return
        time_us, fed = waiting or (self.world.clock.ms * 1000, ())
        self._undecided.append(
            DedupDecision(
                position=position(place.offset, place.event_index), account=event["subject"],
                time_us=time_us, new=self.checked or self.chance.random() < 0.7,
                metered=any(not each.is_sample for each in fed),
                quarantine=any(contribution.quarantine for contribution in fed),
            )
        )  # fmt: skip

    async def _decide(self) -> None:
        self.chance.shuffle(self._undecided)
        kept = self.chance.randrange(len(self._undecided) + 1)
        chosen, self._undecided = self._undecided[kept : kept + 50], self._undecided[:kept]
        # A decision may come again, and a decision may name what never waited.
        chosen += self.chance.sample(self._decided, min(len(self._decided), 1))
        chosen.append(DedupDecision(position=0, account="a", time_us=0, new=True, metered=True, quarantine=False))
        self._decided += chosen
        offset = await self._control(DedupDecisionRecord(decisions=tuple(chosen)))
        for index, decision in enumerate(chosen):
            place = Place(0, decision.position >> 16, decision.position & 0xFFFF)
            self.oracle.resolve(place, offset, index, self.world.clock.ms)
            if self.oracle.waiting(place) is not None:
                self._undecided.append(decision)

    # Accounts

    def _revision(self, account: str) -> int:
        """The next revision, or the last one again."""
        self._revisions[account] += self.chance.random() < 0.9
        return max(1, self._revisions[account])

    async def _bind(self) -> None:
        chance, account, now_ms = self.chance, self.chance.choice(ACCOUNTS), self.world.clock.ms
        billing = chance.choice([Billing.UNMAPPED] * 4 + [Billing.FREE, Billing.MAPPED])
        binding = Binding(
            effective_from_ms=(now_ms + chance.choice([0, -5 * HOUR_MS, -3 * DAY_MS, 6 * MINUTE_MS, HOUR_MS]))
            // MINUTE_MS * MINUTE_MS,
            anchor_ms=now_ms - chance.randrange(60 * DAY_MS), interval=chance.choice(list(Interval)), billing=billing,
            stripe_customer=chance.choice(["cus_1", "cus_2"]) if billing is Billing.MAPPED else "",
        )  # fmt: skip
        revision = self._revision(account)
        offset = await self._control(BindingRecord(account=account, revision=revision, binding=binding))
        self.oracle.bind(0, account, binding.model_dump(mode="json"), now_ms, offset, revision=revision)
        self._answer(account, offset)
        if chance.random() < 0.5:
            await self._begin(account, offset)

    def _answer(self, account: str, offset: int, *, begins: bool = False) -> None:
        self._answers[account].append(offset)
        (self._begun.add if begins else self._begun.discard)(account)

    async def _close(self) -> None:
        account, now_ms = self.chance.choice(ACCOUNTS), self.world.clock.ms
        revision, instant_ms = self._revision(account), now_ms + self.chance.choice([0, -HOUR_MS, -DAY_MS, DAY_MS])
        offset = await self._control(CloseRecord(account=account, revision=revision, instant_ms=instant_ms))
        self.oracle.close(0, account, instant_ms, now_ms, offset, revision=revision)
        self._answer(account, offset)

    async def _flush(self) -> None:
        account = self.chance.choice(ACCOUNTS)
        revision = self._revision(account)
        await self._control(FlushRecord(account=account, revision=revision))
        self.oracle.flush(0, account, self.world.clock.ms, revision=revision)

    async def _begin(self, account: str, answers: int) -> None:
        offset = await self._control(RestatementRecord(account=account, position=position(answers), begins=True))
        self.oracle.begin_restatement(0, account, answers, offset, self.world.clock.ms)
        self._answer(account, offset, begins=True)

    async def _restate(self) -> None:
        chance, account = self.chance, self.chance.choice(sorted(self._begun) or ACCOUNTS)
        if not self._answers[account]:
            return
        answers = self._answers[account][-1] if chance.random() < 0.9 else chance.choice(self._answers[account])
        if account not in self._begun or chance.random() < 0.1:
            await self._begin(account, answers)
        elif self.checked or chance.random() < 0.2:
            await self._control(RestatementRecord(account=account, position=position(answers), declined="no"))
            self.oracle.restatement(0, account, answers, declined=True, timestamp_ms=self.world.clock.ms)
        else:
            record = RestatementRecord(account=account, position=position(answers), content=packed(self._content()))
            await self._control(record)

    def _content(self) -> RestatementContent:
        """Usage that another count might have found: any will do, because only its effect is compared."""
        now_ms = self.world.clock.ms
        start_ms = now_ms // DAY_MS * DAY_MS - self.chance.choice([0, DAY_MS])
        end_ms, hour_ms, latest = start_ms + DAY_MS, now_ms // HOUR_MS * HOUR_MS, ((now_ms - 1_000) * 1000, position(1))
        month_ms = MARCH_MS if now_ms >= MARCH_MS else MARCH_MS - 28 * DAY_MS
        return RestatementContent(
            replaced=[(month_ms, ["exact", "last", "users", "calls"])],
            cells=[
                RestatementCell(hour_ms, hour_ms, start_ms, end_ms, "calls", "{}", Aggregation.COUNT, 0, 5),
                RestatementCell(hour_ms, hour_ms, start_ms, end_ms, "last", "{}", Aggregation.LATEST, 0, 5, *latest),
            ],
            totals=[
                RestatementTotal(start_ms, end_ms, "calls", 0, 5, 0, 0, self.chance.choice(["", "calls"]), 5),
                RestatementTotal(start_ms, end_ms, "last", 0, 7, *latest, "last", 7),
            ],
            distinct=[RestatementDistinct(start_ms, "users", [1, 2, 3])],
        )

    # Meter sets

    def _meter_set(self, meters: Any) -> dict[str, Any]:
        named = [
            {**meter, "stripe_event_name": self._names[meter["slug"]]} if meter["slug"] in self._names else meter
            for meter in meters
        ]
        return {"version": self._version, "meters": named, "policy": dict(self.policy)}

    async def _meters(self) -> None:
        """Change names at Stripe, the policy, and which meters there are; or send the version in force again."""
        chance = self.chance
        is_newer = chance.random() < 0.9
        self._version += is_newer
        for meter in METERS:
            if chance.random() < 0.4:
                self._names.pop(meter["slug"], None)
            elif chance.random() < 0.8:
                self._names[meter["slug"]] = meter["slug"] + chance.choice(["", "_2"])
        self.policy["grace_ms"] = chance.choice([0, MINUTE_MS, HOUR_MS])
        meters = [dict(meter) for meter in METERS if chance.random() < 0.9]
        if not self.checked and meters and chance.random() < 0.1:
            # Refused: a definition never changes.
            meters[0]["event_type"] = "another"
        made = self._meter_set(meters)
        await self._control(MeterSetRecord(meter_set=MeterSet.model_validate(made)))
        if is_newer:
            self.oracle.set_meter_set(0, made, self.world.clock.ms)
