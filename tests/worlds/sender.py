"""A sender of intents that can be killed and restarted, between a log and a Stripe fake with faults."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from aggregators.report_records import parse_entries
from pipeline.billing.drawing import Drawing
from pipeline.billing.policy import SenderPolicy
from pipeline.billing.sender import StripeSender
from pipeline.logs.fake import FakeLog
from schemas.bills import Closings
from schemas.clock import HOUR_MS, MINUTE_MS
from schemas.log import REPORTS_TOPIC, Headers, TopicSpec
from schemas.periods import Billing
from schemas.reports import Intent, Payer, ReportEntry, ReportOutcome, StripeMeters
from sinks.sql.fake_intents import FakeIntentLedger
from sinks.stripe.fake import FakeStripe
from tests.worlds.clock import ManualClock

PERIOD_START_MS = 1_793_491_200_000  # 2026-11-01
PERIOD_END_MS = 1_796_083_200_000  # 2026-12-01
NOW_MS = 1_795_262_400_000  # 2026-11-21T12:00:00Z
ACCOUNT = "acct_memory"
POLICY = SenderPolicy(
    settle_ms=10 * MINUTE_MS, hold_retry_ms=MINUTE_MS, look_retry_ms=15 * MINUTE_MS, count_interval_ms=0
)


class Crash(Exception):
    """The process died here."""


class AheadClock:
    """The wrong clock of one process."""

    def __init__(self, right: ManualClock, ahead_ms: int) -> None:
        self._right = right
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return self._right.now_ms() + self._ahead_ms

    async def sleep(self, duration_s: float) -> None:
        await self._right.sleep(duration_s)


class CrashingLog(FakeLog):
    """A log whose next append may fail: `hook` says "before" or "after", and with which error."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.hook: Callable[[bytes], tuple[str, Exception] | None] = lambda _value: None

    async def append(
        self, topic: str, partition: int, value: bytes, *, key: bytes | None = None, headers: Headers = ()
    ) -> int:
        """Appends and confirms, unless the hook decides otherwise."""
        failure = self.hook(value)
        if failure and failure[0] == "before":
            raise failure[1]
        offset = await super().append(topic, partition, value, key=key, headers=headers)
        if failure:
            raise failure[1]
        return offset


class Bench:
    """A log, a Stripe fake, a clock, and a sender that can be killed and restarted."""

    def __init__(self, partitions: int = 1, policy: SenderPolicy = POLICY) -> None:
        self.clock = ManualClock(NOW_MS)
        self.log = CrashingLog(self.clock)
        self.stripe = FakeStripe(self.clock, lag_ms=MINUTE_MS)
        self.ledger = FakeIntentLedger()
        self.meters: StripeMeters | None = None
        self.closings: Closings | None = None
        self.drawing: Drawing | None = None
        self.billing: dict[str, tuple[Billing, str]] = {}
        self.asked: list[tuple[str, int]] = []
        self.replaced: set[str] = set()
        self.without_meter: set[str] = set()
        self.period_ends: dict[str, int] = {}
        self.partitions = partitions
        self.policy = policy
        self.sender = self.new_sender()
        self.offsets: dict[int, int] = {}

    async def start(self) -> Bench:
        """Creates the topic and the customers `cus_a` … `cus_d` of the accounts a … d."""
        await self.log.create_topics([TopicSpec(REPORTS_TOPIC, self.partitions, -1)])
        for name in "abcd":
            self.stripe.add_customer(f"cus_{name}")
            self.billing[name] = (Billing.MAPPED, f"cus_{name}")
        await self.assign()
        return self

    async def resolve(self, intent: Intent, instant_ms: int) -> Payer | None:
        """The payer of an intent."""
        self.asked.append((intent.account, instant_ms))
        if intent.identifier in self.replaced:
            return None
        return Payer(*self.billing[intent.account], self.period_ends.get(intent.account, intent.period_end_ms))

    def new_sender(self) -> StripeSender:
        """Another sender process; it talks to `meters` if given, otherwise to the fake."""
        meters = self.meters or self.stripe
        rng = random.Random(7)
        return StripeSender(
            self.log, self.ledger, meters, self.resolve, self.clock, rng, self.policy, self.closings, self.drawing
        )

    async def assign(self) -> None:
        """Asks the sender for its start, as the runner does."""
        for partition in range(self.partitions):
            self.offsets[partition] = await self.sender.start_offset(partition) or 0

    async def restart(self) -> None:
        """The process died; another one starts."""
        self.sender = self.new_sender()
        await self.assign()

    async def publish(self, *intents: Intent, partition: int = 0) -> None:
        """Writes intents as the relay does. Their meters exist at Stripe, except `without_meter`."""
        for intent in intents:
            if intent.event_name not in self.without_meter:
                self.stripe.add_meter(intent.event_name)
            await self.log.append(
                REPORTS_TOPIC, partition, intent.model_dump_json().encode(), key=intent.account.encode()
            )

    async def pump(self, rounds: int = 1) -> None:
        """Steps while there are records and idles between, as a runner does."""
        for _ in range(rounds):
            for partition in range(self.partitions):
                records = await self.log.read(REPORTS_TOPIC, partition, self.offsets[partition], 7)
                if records:
                    await self.sender.step(partition, records)
                    self.offsets[partition] = records[-1].next_offset
                else:
                    await self.sender.idle(partition)

    async def settle(self, rounds: int = 400, step_ms: int = 0) -> None:
        """Pumps until nothing is pending and everything is read."""
        for _ in range(rounds):
            await self.pump()
            self.clock.advance(step_ms)
            at_end = [
                self.offsets[partition] == (await self.log.bounds(REPORTS_TOPIC, partition)).next
                for partition in range(self.partitions)
            ]
            if all(at_end) and self.sender.status().pending == 0:
                return

    async def entries(self) -> list[ReportEntry]:
        """All entries of the topic."""
        entries: list[ReportEntry] = []
        for partition in range(self.partitions):
            for record in await self.log.read(REPORTS_TOPIC, partition, 0, 100_000):
                entries.extend(parse_entries(record.value))
        return entries

    async def outcomes(self) -> dict[str, ReportOutcome]:
        """The first outcome of each intent."""
        first: dict[str, ReportOutcome] = {}
        for entry in await self.entries():
            if isinstance(entry, ReportOutcome):
                first.setdefault(entry.identifier, entry)
        return first

    def counted(self) -> Counter[str]:
        """How often Stripe counts each identifier."""
        return Counter(stored.event.identifier for stored in self.stripe.accepted())


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
