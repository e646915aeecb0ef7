"""The sender's promise: each intent is in Stripe exactly once, whatever dies, lags or lies in between."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.logs.memory import MemoryLog
from pipeline.processors.stripe_ledger import Ledger, parse_entries
from pipeline.processors.stripe_sender import SenderPolicy, StripeSender
from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from schemas.errors import OperatorNeeded, Transient
from schemas.log import REPORTS_TOPIC, Bounds, Headers, Record, TopicSpec
from schemas.periods import Billing
from schemas.reports import Attempt, Intent, MeterEvent, MeterSummary, Outcome, OutcomeStatus, SendResult, StripeMeters
from sinks.stripe.memory import MemoryFault, MemoryStripe
from tests.services.stripe import ManualClock

PERIOD_START_MS = 1_793_491_200_000  # 2026-11-01
PERIOD_END_MS = 1_796_083_200_000  # 2026-12-01
NOW_MS = 1_795_262_400_000  # 2026-11-21T12:00:00Z
ACCOUNT = "acct_memory"
POLICY = SenderPolicy(settle_ms=10 * MINUTE_MS, hold_retry_ms=MINUTE_MS, look_retry_ms=15 * MINUTE_MS)


class Crash(Exception):
    """The process died here."""


class CrashingLog(MemoryLog):
    """A log whose next append may fail: `hook` says "before" or "after", and which error."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.hook: Callable[[bytes], tuple[str, Exception] | None] = lambda _value: None

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Append, or not, and answer, or not."""
        failure = self.hook(value)
        if failure and failure[0] == "before":
            raise failure[1]
        offset = await super().append(topic, partition, value, key=key, headers=headers)
        if failure:
            raise failure[1]
        return offset


class Bench:
    """A log, a Stripe, a clock, and a sender that can be killed and started again."""

    def __init__(self, partitions: int = 1, policy: SenderPolicy = POLICY) -> None:
        self.clock = ManualClock(NOW_MS)
        self.log = CrashingLog(self.clock)
        self.stripe = MemoryStripe(self.clock, lag_ms=MINUTE_MS)
        self.meters: StripeMeters | None = None
        self.billing: dict[str, tuple[Billing, str]] = {}
        self.asked: list[tuple[str, int]] = []
        self.partitions = partitions
        self.policy = policy
        self.sender = self.new_sender()
        self.offsets: dict[int, int] = {}

    async def start(self) -> Bench:
        """Create the topic and the customers `cus_a` … `cus_d`; the accounts a … d are mapped to them."""
        await self.log.create_topics([TopicSpec(REPORTS_TOPIC, self.partitions, -1)])
        for name in "abcd":
            self.stripe.add_customer(f"cus_{name}")
            self.billing[name] = (Billing.MAPPED, f"cus_{name}")
        await self.assign()
        return self

    def new_sender(self) -> StripeSender:
        """Another process. It talks to `meters` where that is set, else to the twin."""

        async def resolve(account: str, instant_ms: int) -> tuple[Billing, str]:
            self.asked.append((account, instant_ms))
            return self.billing[account]

        meters = self.meters or self.stripe
        return StripeSender(self.log, meters, resolve, self.clock, random.Random(7), self.policy)

    async def assign(self) -> None:
        """The runner asks where to read."""
        for partition in range(self.partitions):
            self.offsets[partition] = await self.sender.start_offset(partition) or 0

    async def restart(self) -> None:
        """The process died; another one starts."""
        self.sender = self.new_sender()
        await self.assign()

    async def publish(self, *intents: Intent, partition: int = 0) -> None:
        """Write intents as the fold's drainer does."""
        for intent in intents:
            await self.log.append(
                REPORTS_TOPIC, partition, intent.model_dump_json().encode(), key=intent.account.encode()
            )

    async def pump(self, rounds: int = 1) -> None:
        """What a runner does: step where there are records, idle between."""
        for _ in range(rounds):
            for partition in range(self.partitions):
                records = await self.log.read(REPORTS_TOPIC, partition, self.offsets[partition], 7)
                if records:
                    await self.sender.step(partition, records)
                    self.offsets[partition] = records[-1].next_offset
                else:
                    await self.sender.idle(partition)

    async def settle(self, rounds: int = 400, step_ms: int = 0) -> None:
        """Pump until nothing is pending and everything is read."""
        for _ in range(rounds):
            await self.pump()
            self.clock.advance(step_ms)
            at_end = [
                self.offsets[partition] == (await self.log.bounds(REPORTS_TOPIC, partition)).next
                for partition in range(self.partitions)
            ]
            if all(at_end) and self.sender.status().pending == 0:
                return

    async def entries(self) -> list[Intent | Attempt | Outcome]:
        """The whole topic."""
        found: list[Intent | Attempt | Outcome] = []
        for partition in range(self.partitions):
            for record in await self.log.read(REPORTS_TOPIC, partition, 0, 100_000):
                found.extend(parse_entries(record.value))
        return found

    async def outcomes(self) -> dict[str, Outcome]:
        """The first outcome of each intent."""
        found: dict[str, Outcome] = {}
        for entry in await self.entries():
            if isinstance(entry, Outcome):
                found.setdefault(entry.identifier, entry)
        return found

    def held(self) -> Counter[str]:
        """How often Stripe counts each identifier."""
        return Counter(held.event.identifier for held in self.stripe.accepted())


def make_intent(name: str, account: str = "a", delta: int = 5, bucket: int = 0, **changes: Any) -> Intent:
    """An intent of the hour that ended `bucket` hours before noon."""
    end_ms = NOW_MS - bucket * HOUR_MS
    fields: dict[str, object] = {
        "identifier": name,
        "livemode": False,
        "stripe_account": ACCOUNT,
        "log_id": "log",
        "meter": "tokens",
        "event_name": "tokens",
        "account": account,
        "period_start_ms": PERIOD_START_MS,
        "period_end_ms": PERIOD_END_MS,
        "bucket_start_ms": end_ms - HOUR_MS,
        "bucket_end_ms": end_ms,
        "delta_minor": delta,
        "scale": 2,
    }
    return Intent.model_validate({**fields, **changes})


async def test_intent_becomes_one_event_and_one_outcome() -> None:
    """The plain way, and what exactly is sent."""
    bench = await Bench().start()
    await bench.publish(make_intent("one", delta=1250))

    await bench.settle()

    expected = MeterEvent("one", "tokens", "cus_a", "12.5", NOW_MS // 1_000 - 1)
    assert [held.event for held in bench.stripe.events] == [expected]
    kinds = [entry.kind for entry in await bench.entries()]
    assert kinds == ["intent", "attempt", "outcome"]
    assert bench.sender.low_watermark(0) == 3


@pytest.mark.parametrize(
    ("changes", "expected_ms"),
    [
        ({}, NOW_MS - 1_000),
        ({"bucket_end_ms": PERIOD_END_MS + HOUR_MS, "bucket_start_ms": PERIOD_END_MS}, PERIOD_END_MS - 1_000),
        ({"period_start_ms": NOW_MS, "bucket_end_ms": NOW_MS - HOUR_MS}, NOW_MS),
        ({"period_start_ms": NOW_MS - 90 * DAY_MS, "bucket_end_ms": NOW_MS - 60 * DAY_MS}, NOW_MS - 34 * DAY_MS),
    ],
    ids=["bucket inside the period", "bucket after the period", "bucket before the period", "bucket too old"],
)
async def test_timestamp_lies_in_the_period_and_in_what_stripe_takes(changes: dict[str, Any], expected_ms: int) -> None:
    """Usage reported with an instant of the next period would land on the next invoice."""
    bench = await Bench().start()
    if expected_ms > NOW_MS:
        bench.clock.ms = expected_ms
    await bench.publish(make_intent("one", **changes))

    await bench.settle()

    assert [held.event.timestamp_s * 1_000 for held in bench.stripe.events] == [expected_ms]
    assert bench.asked == [("a", expected_ms)]


async def test_period_that_stripe_takes_no_more_is_a_dead_letter() -> None:
    """35 days after its end nothing of a period can be reported."""
    bench = await Bench().start()
    await bench.publish(make_intent("old", period_start_ms=NOW_MS - 80 * DAY_MS, period_end_ms=NOW_MS - 40 * DAY_MS))

    await bench.settle()

    assert (await bench.outcomes())["old"].status is OutcomeStatus.DEAD
    assert bench.stripe.sends == []


async def test_nothing_is_sent_before_the_partition_was_read_to_its_end() -> None:
    """Outcomes stand behind intents: sending half-way would repeat what is settled."""
    bench = await Bench().start()
    await bench.publish(*(make_intent(f"i{number}") for number in range(20)))
    await bench.settle()
    sends = len(bench.stripe.sends)

    await bench.restart()
    await bench.settle()

    assert len(bench.stripe.sends) == sends == 20


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", [b'"attempt"', b'"outcome"'], ids=["attempt", "outcome"])
async def test_crash_around_an_append_leaves_one_event(kind: bytes, moment: str) -> None:
    """Between attempt and send, and between send and outcome: found again, sent once."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.log.hook = lambda value: (moment, Crash()) if kind in value else None
    with pytest.raises(Crash):
        await bench.settle()
    bench.log.hook = lambda _value: None

    await bench.restart()
    await bench.settle()

    assert bench.held() == {"one": 1}
    assert (await bench.outcomes())["one"].status is OutcomeStatus.ACCEPTED


async def test_retries_are_the_same_to_the_byte_across_a_restart_and_a_rebinding() -> None:
    """Stripe refuses an Idempotency-Key with other parameters, and another customer would pay."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.stripe.fault = lambda _event: MemoryFault.LOST_ANSWER
    await bench.pump(3)

    bench.billing["a"] = (Billing.MAPPED, "cus_b")
    bench.clock.advance(HOUR_MS)
    await bench.restart()
    bench.stripe.fault = lambda _event: None
    await bench.settle()

    assert len(set(bench.stripe.sends)) == 1
    assert bench.held() == {"one": 1}
    assert (await bench.outcomes())["one"].stripe_customer == "cus_a"


@pytest.mark.parametrize(
    "fault",
    [
        MemoryFault.CONFLICT,
        MemoryFault.RATE_LIMITED,
        MemoryFault.SERVER_ERROR,
        MemoryFault.SERVER_ERROR_AFTER_COMMIT,
        MemoryFault.LOST_ANSWER,
        MemoryFault.NO_ANSWER,
    ],
    ids=str,
)
async def test_storm_of_unclear_answers_ends_with_one_event_each(fault: MemoryFault) -> None:
    """Four of five answers are bad for a while; afterwards everything is there once."""
    bench = await Bench().start()
    rng = random.Random(3)
    bench.stripe.fault = lambda _event: fault if rng.random() < 0.8 else None
    intents = [make_intent(f"i{number}", "abcd"[number % 4], bucket=number // 4) for number in range(24)]
    await bench.publish(*intents)

    await bench.settle(rounds=3_000, step_ms=1_000)

    assert bench.held() == {intent.identifier: 1 for intent in intents}
    assert bench.stripe.conflicts == 0


async def test_lanes_are_serial_even_where_accounts_share_a_customer() -> None:
    """Stripe takes one call at a time per meter and customer."""
    bench = await Bench(partitions=2).start()
    bench.billing = dict.fromkeys("abcd", (Billing.MAPPED, "cus_a"))
    for number in range(40):
        await bench.publish(make_intent(f"i{number}", "abcd"[number % 4]), partition=number % 2)

    await bench.settle()

    assert bench.stripe.conflicts == 0
    assert bench.held().total() == 40


async def test_backoff_grows_and_is_bounded() -> None:
    """An outage of hours must not become a flood of calls."""
    bench = await Bench().start()
    bench.stripe.fault = lambda _event: MemoryFault.NO_ANSWER
    await bench.publish(make_intent("one"))

    for _ in range(3_600):
        await bench.pump()
        bench.clock.advance(1_000)

    assert 30 <= len(bench.stripe.sends) <= 70


async def test_dead_letter_blocks_neither_its_lane_nor_others() -> None:
    """One refused event costs one event."""
    bench = await Bench().start()
    bench.stripe.fault = lambda event: MemoryFault.BAD_REQUEST if event.identifier == "bad" else None
    await bench.publish(make_intent("bad"), make_intent("good"), make_intent("other", "b"))

    await bench.settle()

    assert {key: value.status for key, value in (await bench.outcomes()).items()} == {
        "bad": OutcomeStatus.DEAD,
        "good": OutcomeStatus.ACCEPTED,
        "other": OutcomeStatus.ACCEPTED,
    }


async def test_dead_letter_after_an_unclear_answer_says_so() -> None:
    """The operator must look at Stripe before sending it by hand."""
    bench = await Bench().start()
    answers = iter([MemoryFault.LOST_ANSWER, MemoryFault.BAD_REQUEST])
    bench.stripe.fault = lambda _event: next(answers)
    await bench.publish(make_intent("one"))

    await bench.settle(step_ms=1_000)

    assert "Stripe may have it" in (await bench.outcomes())["one"].detail


async def test_free_account_is_settled_without_a_call() -> None:
    """Free usage is never sent."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.FREE, "")
    await bench.publish(make_intent("one"))

    await bench.settle()

    assert (await bench.outcomes())["one"].status is OutcomeStatus.FREE
    assert bench.stripe.sends == []


async def test_unmapped_intent_is_held_counted_and_sent_once_mapped() -> None:
    """It blocks nobody, the alarm knows the deadline, and the low watermark stays at it."""
    bench = await Bench().start()
    bench.billing["a"] = (Billing.UNMAPPED, "")
    await bench.publish(make_intent("held"), make_intent("other", "b"))
    await bench.pump(5)
    status = bench.sender.status()

    assert (status.pending, status.held) == (1, {"unmapped": 1})
    assert status.unmapped_deadline_ms == PERIOD_END_MS + 35 * DAY_MS
    assert status.low_watermarks == {0: 0}
    assert bench.held() == {"other": 1}

    bench.billing["a"] = (Billing.MAPPED, "cus_a")
    bench.clock.advance(2 * MINUTE_MS)
    await bench.settle()
    assert bench.held() == {"other": 1, "held": 1}


@pytest.mark.parametrize("changes", [{"livemode": True}, {"stripe_account": "acct_other"}], ids=["mode", "account"])
async def test_intent_of_another_mode_or_account_stops(changes: dict[str, Any]) -> None:
    """A test key must never bill, and a live key must never bill for somebody else (I12)."""
    bench = await Bench().start()
    await bench.publish(make_intent("one", **changes))

    with pytest.raises(OperatorNeeded, match="TIDEMARK_STRIPE_API_KEY"):
        await bench.settle()
    assert bench.stripe.sends == []


async def test_refused_key_stops_and_loses_nothing() -> None:
    """A revoked key must not turn a day's reports into dead letters."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    await bench.pump()
    bench.stripe.key_is_valid = False
    with pytest.raises(OperatorNeeded):
        await bench.settle()

    bench.stripe.key_is_valid = True
    await bench.restart()
    await bench.settle()

    assert bench.held() == {"one": 1}


@pytest.mark.parametrize("fault", [MemoryFault.LOST_ANSWER, MemoryFault.NO_ANSWER], ids=["delivered", "lost"])
async def test_after_the_window_it_looks_and_does_not_guess(fault: MemoryFault) -> None:
    """Down for 30 hours after a send without an answer: Stripe has forgotten the identifier."""
    bench = await Bench().start()
    await bench.publish(make_intent("before", delta=700))
    await bench.settle()
    await bench.publish(make_intent("doubt", delta=5))
    bench.stripe.fault = lambda _event: fault
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle()

    assert bench.held() == {"before": 1, "doubt": 1}
    assert bench.sender.status().counts["looked_present" if fault is MemoryFault.LOST_ANSWER else "looked_absent"] == 1


async def test_two_in_doubt_with_one_sum_that_fits_both_are_held() -> None:
    """One of two equal events is missing and nothing tells which: a person decides, nothing is repeated."""
    bench = await Bench(partitions=2).start()
    bench.billing["b"] = (Billing.MAPPED, "cus_a")
    bench.stripe.fault = lambda event: MemoryFault.LOST_ANSWER if event.identifier == "one" else MemoryFault.NO_ANSWER
    await bench.publish(make_intent("one", "a"))
    await bench.publish(make_intent("two", "b"), partition=1)
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle(rounds=10)

    assert bench.sender.status().held == {"unknown": 2}
    assert bench.held() == {"one": 1}


async def test_recent_send_of_the_lane_delays_the_verdict() -> None:
    """A sum that may not show the latest send would lie: equal amounts would cancel out."""
    bench = await Bench().start()
    bench.stripe.lag_ms = 5 * MINUTE_MS
    bench.stripe.fault = lambda _event: MemoryFault.LOST_ANSWER
    await bench.publish(make_intent("doubt"))
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)
    await bench.publish(make_intent("fresh", "b"))
    bench.billing["b"] = (Billing.MAPPED, "cus_a")

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.held() == {"doubt": 1, "fresh": 1}


async def test_send_of_another_process_during_the_look_voids_it() -> None:
    """An equal amount that arrives between reading the log and reading the sum would pass for the lost event."""
    bench = await Bench(partitions=2).start()

    class Busy(MemoryStripe):
        async def summary(self, event_name: str, stripe_customer: str, start_s: int, end_s: int) -> MeterSummary:
            if "other" not in bench.held():
                other, at_ms = make_intent("other"), bench.clock.now_ms()
                event = MeterEvent("other", "tokens", "cus_a", "0.05", NOW_MS // 1_000 - 1)
                attempt = Attempt(
                    identifier="other",
                    stripe_customer="cus_a",
                    timestamp_s=event.timestamp_s,
                    value=event.value,
                    attempted_at_ms=at_ms,
                )
                outcome = Outcome(
                    identifier="other", status=OutcomeStatus.ACCEPTED, stripe_customer="cus_a", settled_at_ms=at_ms
                )
                for entry in (other, attempt, outcome):
                    await bench.log.append(REPORTS_TOPIC, 1, entry.model_dump_json().encode())
                self.inject(event)
            return await super().summary(event_name, stripe_customer, start_s, end_s)

    bench.stripe = Busy(bench.clock)
    bench.stripe.add_customer("cus_a")
    bench.stripe.fault = lambda _event: MemoryFault.NO_ANSWER
    await bench.restart()
    await bench.publish(make_intent("doubt"))
    await bench.pump(3)
    bench.stripe.fault = lambda _event: None
    bench.clock.advance(30 * HOUR_MS)

    await bench.restart()
    await bench.settle(step_ms=MINUTE_MS)

    assert bench.held() == {"other": 1, "doubt": 1}


async def test_republished_intents_are_not_sent_again() -> None:
    """A rebuild makes the same intents and publishes them again, months later too."""
    bench = await Bench().start()
    intents = [make_intent(f"i{number}", bucket=number) for number in range(5)]
    await bench.publish(*intents)
    await bench.settle()

    bench.clock.advance(3 * DAY_MS)
    await bench.publish(*intents)
    await bench.restart()
    await bench.settle()

    assert bench.held() == {intent.identifier: 1 for intent in intents}


async def test_suspended_owner_that_wakes_after_days_sends_nothing_twice() -> None:
    """It believes that it owns the partition, and Stripe has forgotten the identifier: the log has not."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    sleeper = bench.sender
    sleeper_offset = bench.offsets[0]
    records = await bench.log.read(REPORTS_TOPIC, 0, sleeper_offset)
    await bench.restart()
    await bench.settle()

    bench.clock.advance(30 * HOUR_MS)
    await sleeper.step(0, records)
    for _ in range(3):
        sleeper_offset = records[-1].next_offset
        records = await bench.log.read(REPORTS_TOPIC, 0, sleeper_offset) or records
        await sleeper.step(0, records)

    assert bench.held() == {"one": 1}


async def test_attempt_of_a_sender_that_had_not_seen_the_first_is_not_in_force() -> None:
    """Else a suspended sender's late attempt would look as if somebody had looked, and restart the window."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))
    bench.stripe.fault = lambda _event: MemoryFault.LOST_ANSWER
    await bench.pump(3)
    bench.clock.advance(30 * HOUR_MS)
    late = Attempt(
        identifier="one",
        stripe_customer="cus_b",
        timestamp_s=NOW_MS // 1_000,
        value="0.05",
        attempted_at_ms=bench.clock.now_ms(),
    )
    await bench.log.append(REPORTS_TOPIC, 0, late.model_dump_json().encode())
    bench.stripe.fault = lambda _event: None

    await bench.restart()
    await bench.settle()

    assert bench.held() == {"one": 1}
    assert bench.sender.status().counts["looked_present"] == 1


async def test_one_broken_meter_holds_its_own_intents_only() -> None:
    """A meter with another formula in Stripe is an operator's matter, not a reason to stop billing."""
    bench = await Bench().start()

    class Picky(MemoryStripe):
        async def ensure_meter(self, event_name: str, display_name: str) -> str:
            if event_name == "broken":
                raise OperatorNeeded("the Stripe meter of broken is deactivated")
            return await super().ensure_meter(event_name, display_name)

    bench.stripe = Picky(bench.clock)
    bench.stripe.add_customer("cus_a")
    await bench.restart()
    await bench.publish(make_intent("held", event_name="broken"), make_intent("sent"))

    await bench.pump(6)

    assert bench.held() == {"sent": 1}
    assert bench.sender.status().held == {"meter": 1}


async def test_entry_of_another_version_stops_and_foreign_bytes_do_not() -> None:
    """An outcome that is not understood could be sent again; garbage cannot be an outcome."""
    assert parse_entries(b"\xff\xfe") == parse_entries(None) == parse_entries(b'["x", 1]') == []
    with pytest.raises(OperatorNeeded, match="version"):
        parse_entries(b'{"kind": "outcome", "identifier": "x", "status": "paused"}')


async def test_unresolved_intents_are_bounded() -> None:
    """Beyond the limit it stops with the remedy instead of filling the memory."""
    ledger = Ledger(pending_max=2)
    record = Record(REPORTS_TOPIC, 0, 0, NOW_MS, None, None)
    for number in range(2):
        ledger.apply(record._replace(offset=number, value=make_intent(f"i{number}").model_dump_json().encode()))

    with pytest.raises(OperatorNeeded, match="unmapped"):
        ledger.apply(record._replace(offset=2, value=make_intent("i2").model_dump_json().encode()))


async def test_end_of_a_partition_without_records_at_its_last_offsets_is_noticed() -> None:
    """Kafka's transaction markers take offsets that no consumer ever sees."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))

    class Gapped(CrashingLog):
        async def bounds(self, topic: str, partition: int) -> Bounds:
            found = await super().bounds(topic, partition)
            return found._replace(next=found.next + 1)

    bench.log.__class__ = Gapped
    await bench.restart()
    await bench.pump(6)

    assert bench.held() == {"one": 1}


FAULTS = [
    MemoryFault.LOST_ANSWER,
    MemoryFault.NO_ANSWER,
    MemoryFault.SERVER_ERROR,
    MemoryFault.SERVER_ERROR_AFTER_COMMIT,
    MemoryFault.RATE_LIMITED,
    MemoryFault.CONFLICT,
]


class Chaos:
    """Draws everything that happens from one seed, and knows nothing of how the sender works."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self.bench = bench
        self.rng = rng
        self.published: dict[str, Intent] = {}
        self.owners = [bench.sender]
        self.offsets = [dict(bench.offsets)]

    async def happen(self) -> None:
        """One random thing."""
        bench, rng = self.bench, self.rng
        thing = rng.random()
        if thing < 0.25:
            await self._publish()
        elif thing < 0.85:
            await self._run()
        elif thing < 0.93:
            bench.clock.advance(rng.choice([1_000, MINUTE_MS, 20 * MINUTE_MS, 3 * HOUR_MS, 30 * HOUR_MS]))
        else:
            await self._another_owner(keep_old=rng.random() < 0.5)

    async def _publish(self) -> None:
        rng = self.rng
        if self.published and rng.random() < 0.2:
            intent = rng.choice(list(self.published.values()))
        else:
            account = rng.choice("abcd")
            intent = make_intent(f"i{len(self.published)}", account, rng.choice([1, 1, 2, 5, -1]))
        self.published[intent.identifier] = intent
        await self.bench.publish(intent, partition="abcd".index(intent.account) % 2)

    async def _run(self) -> None:
        """One or two owners at once, all but one only believing to be it, are fed some records of a partition."""
        chosen = self.rng.sample(range(len(self.owners)), min(len(self.owners), self.rng.choice([1, 1, 2])))
        ends = await asyncio.gather(*(self._feed(owner) for owner in chosen))
        dead = [owner for owner, survived in zip(chosen, ends, strict=True) if not survived]
        for owner in sorted(dead, reverse=True):
            del self.owners[owner], self.offsets[owner]
        if dead:
            await self._another_owner(keep_old=True)

    async def _feed(self, owner: int) -> bool:
        """Whether the owner survived it."""
        sender, offsets, partition = self.owners[owner], self.offsets[owner], self.rng.randrange(2)
        records = await self.bench.log.read(REPORTS_TOPIC, partition, offsets[partition], self.rng.randrange(1, 9))
        try:
            if records:
                await sender.step(partition, records)
                offsets[partition] = records[-1].next_offset
            else:
                await sender.idle(partition)
        except Crash:
            return False
        return True

    async def _another_owner(self, *, keep_old: bool) -> None:
        if not keep_old or len(self.owners) >= 3:
            self.owners.clear()
            self.offsets.clear()
        self.bench.sender = self.bench.new_sender()
        await self.bench.assign()
        self.owners.append(self.bench.sender)
        self.offsets.append(dict(self.bench.offsets))

    def fail_append(self, _value: bytes) -> tuple[str, Exception] | None:
        """Now and then an append fails, before or after it is durable, with a crash or without."""
        if self.rng.random() >= 0.06:
            return None
        error = Crash() if self.rng.random() < 0.5 else Transient("the log did not answer")
        return self.rng.choice(["before", "after"]), error


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
async def test_random_crashes_rebalances_and_lost_answers_never_count_twice(seed: int) -> None:
    """Whatever the interleaving: nothing is ever in Stripe twice; once the faults stop, every intent is there
    exactly once or is held because nobody could tell."""
    rng = random.Random(seed)
    bench = await Bench(partitions=2).start()
    bench.billing["d"] = (Billing.MAPPED, "cus_a")
    chaos = Chaos(bench, rng)
    bench.log.hook = chaos.fail_append
    bench.stripe.fault = lambda _event: rng.choice(FAULTS) if rng.random() < 0.4 else None
    for _ in range(120):
        try:
            await chaos.happen()
        except (Crash, Transient):
            continue

    bench.log.hook = lambda _value: None
    bench.stripe.fault = lambda _event: None
    await bench.restart()
    await bench.settle(rounds=300, step_ms=5 * MINUTE_MS)

    # An append that failed before it was durable published nothing.
    chaos.published = {entry.identifier: entry for entry in await bench.entries() if isinstance(entry, Intent)}
    counted = bench.held()
    held = set(chaos.published) - set(await bench.outcomes())
    assert max(counted.values(), default=0) <= 1, f"counted twice, seed {seed}"
    assert all(outcome.status is OutcomeStatus.ACCEPTED for outcome in (await bench.outcomes()).values())
    assert set(chaos.published) - held <= set(counted), f"missing, seed {seed}"
    assert bench.sender.status().held.get("unknown", 0) == len(held), f"stuck without a reason, seed {seed}"
    _check_sums(bench, chaos, held)


def _check_sums(bench: Bench, chaos: Chaos, held: set[str]) -> None:
    """What Stripe counts for each customer is what was intended, except for what is openly held."""
    customers = {"a": "cus_a", "b": "cus_b", "c": "cus_c", "d": "cus_a"}
    expected: defaultdict[str, Decimal] = defaultdict(Decimal)
    for intent in chaos.published.values():
        if intent.identifier not in held:
            expected[customers[intent.account]] += Decimal(intent.delta_minor).scaleb(-intent.scale)
    found: defaultdict[str, Decimal] = defaultdict(Decimal)
    for item in bench.stripe.accepted():
        if item.event.identifier not in held:
            found[item.event.stripe_customer] += Decimal(item.event.value)
    assert {key: value for key, value in expected.items() if value} == {
        key: value for key, value in found.items() if value
    }


async def test_no_outcome_is_written_for_a_send_that_was_cancelled() -> None:
    """The runner cancels a step when the partition is lost: nothing runs on behind its back."""
    bench = await Bench().start()
    await bench.publish(make_intent("one"))

    class Hanging(MemoryStripe):
        async def send(self, event: MeterEvent) -> SendResult:
            raise TimeoutError(event.identifier)

    bench.stripe = Hanging(bench.clock)
    await bench.restart()
    with pytest.raises(TimeoutError):
        await bench.pump(3)
    await bench.sender.revoked(0)

    assert [entry.kind for entry in await bench.entries()] == ["intent", "attempt"]
