"""The kinds of fault, their rates in a run, and the record of the faults that occurred."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection
from enum import StrEnum
from typing import Final, NamedTuple


class Fault(StrEnum):
    """The kinds of fault. `only` cannot suppress faults of the traffic, which the producers draw."""

    REDIS_REFUSED = "redis does not answer"
    REDIS_ANSWER_LOST = "redis' answer is lost after success"
    CLICKHOUSE_REFUSED = "clickhouse does not answer"
    CLICKHOUSE_ANSWER_LOST = "clickhouse's answer is lost after success"
    SQL_REFUSED = "sql does not answer"
    SQL_ANSWER_LOST = "sql's answer is lost after success"
    LOG_REFUSED = "the log does not answer"
    LOG_ANSWER_LOST = "the log's answer is lost after success"
    STRIPE_REFUSED = "stripe does not answer a read"
    STRIPE_CONFLICT = "stripe answers 409"
    STRIPE_RATE_LIMITED = "stripe answers 429"
    STRIPE_SERVER_ERROR = "stripe answers 500"
    STRIPE_SERVER_ERROR_AFTER = "stripe answers 500 after it took the event"
    STRIPE_NO_ANSWER = "stripe does not answer"
    STRIPE_ANSWER_LOST = "stripe's answer is lost after it took the event"
    STRIPE_REJECTED = "stripe rejects an event after 200"
    STRIPE_READ_RATE_LIMITED = "stripe answers a read with 429"
    STRIPE_READ_FAILED = "stripe answers a read with 500"
    STRIPE_READ_SLOW = "stripe answers a read late"
    STRIPE_OBJECT_SILENT = "stripe does not answer for one object for long"
    WEBHOOK_DROPPED = "a webhook never comes"
    WEBHOOK_LATE = "a webhook comes late, after later ones"
    WEBHOOK_DOUBLED = "a webhook comes twice"
    WEBHOOK_WITHOUT_CUSTOMER = "a webhook does not name its customer"
    RECEIVER_CRASH = "the receiver dies after the append, before its answer"
    CRASH_BEFORE = "a process dies before a call"
    CRASH_AFTER = "a process dies after a call, before the answer"
    CRASH_AT_RANDOM = "a process dies at a random instant"
    OUTAGE = "a process stays down for long"
    STALL = "a process is suspended in the middle of a call"
    REBALANCE = "a partition moves to another process"
    ZOMBIE = "a process goes on with a partition that it lost"
    REDIS_LOST_SECOND = "redis loses its last second"
    REDIS_FAILED_OVER = "redis fails over to an older replica"
    REDIS_EMPTIED = "redis loses everything"
    LEDGER_EMPTIED = "sql loses the ledger of intents"
    CLOCK_SKEW = "a process's clock is wrong"
    PRODUCER_CRASH = "a producer dies before it knows the answer"
    METER_SET_CHANGED = "the meter set changes"
    BINDING_CHANGED = "an account is bound"
    CUSTOMER_CHANGED = "an account gets another customer"
    PAYER_CHANGED = "an account becomes free, or is billed again"
    CONTROL_REPEATED = "a control record comes again, perhaps after later ones"
    BINDING_LATE = "a binding cuts usage that is counted already"
    PERIOD_CLOSED = "a period is closed by a record"
    SUBSCRIPTION_CHANGED = "a subscription gets other items"
    SUBSCRIPTION_CANCELED = "a subscription is canceled, now or ahead"
    SUBSCRIPTION_PAUSED = "a subscription is paused or goes on"
    SUBSCRIPTION_SCHEDULED = "a subscription gets a schedule, or loses it"
    TRIAL = "a subscription begins with a trial, or the trial ends early"
    CUSTOMER_DELETED = "a customer is deleted"
    CARD_FAILS = "a customer's card fails, or another one pays"
    DASHBOARD_EDIT = "somebody edits an object at stripe"
    LINKED_LATE = "an account is linked after its customer's events"
    ACCOUNT_UNLINKED = "an account is unlinked"
    ACCOUNT_MOVED = "an account is linked to another customer"
    RESYNCED = "an operator resyncs while events arrive"
    CATALOG_REPLACED = "another catalog becomes active"
    OVERRIDE_CHANGED = "a person grants something or takes it back"
    ACCOUNT_FLUSHED = "an account is flushed"
    CORRECTED = "a person voids or amends an event"
    CORRECTION_REFUSED = "a person corrects what cannot be corrected"
    DUPLICATE = "the same event again"
    OTHER_PRODUCER = "another producer sends the same event"
    OLD_DUPLICATE = "the same event again after the dedup window"
    RETRY_OTHER_TIME = "the same event with another timestamp"
    OTHER_PERIOD = "the same event with a timestamp of another period"
    CONFLICT = "the same id with another source or payload"
    SHARED_ID = "another account uses the same id"
    LATE = "a late event"
    FAR_LATE = "an event older than the dedup window"
    AHEAD = "an event from the future"
    TIMELESS = "an event without a time"
    MALFORMED = "a malformed event"
    BROKEN_RECORD = "a record that is no JSON"
    FORGED_CONTROL = "a forged control record"
    FOREIGN_TICK = "a tick of another log"
    WRONG_PARTITION = "an event on a partition that is not its account's"
    RETENTION_PASSED = "the log forgets its first records"
    PERIOD_PASSED = "a period ends while its events are under way"
    INVOICE_PASSED = "an invoice bills usage"
    INVOICE_LATE = "usage is reported after its invoice is final"


# Faults caused by producers, operators or time. All other faults affect a service or a process.
OF_THE_TRAFFIC: Final = frozenset({
    Fault.PRODUCER_CRASH, Fault.METER_SET_CHANGED, Fault.BINDING_CHANGED, Fault.CUSTOMER_CHANGED, Fault.PAYER_CHANGED,
    Fault.CONTROL_REPEATED, Fault.BINDING_LATE, Fault.ACCOUNT_FLUSHED,
    Fault.CORRECTED, Fault.CORRECTION_REFUSED,
    Fault.PERIOD_CLOSED, Fault.SUBSCRIPTION_CHANGED, Fault.SUBSCRIPTION_CANCELED, Fault.SUBSCRIPTION_PAUSED,
    Fault.SUBSCRIPTION_SCHEDULED, Fault.TRIAL, Fault.CUSTOMER_DELETED, Fault.DASHBOARD_EDIT, Fault.LINKED_LATE,
    Fault.CARD_FAILS,
    Fault.ACCOUNT_UNLINKED, Fault.ACCOUNT_MOVED, Fault.RESYNCED, Fault.CATALOG_REPLACED, Fault.OVERRIDE_CHANGED,
    Fault.DUPLICATE, Fault.OTHER_PRODUCER, Fault.OLD_DUPLICATE, Fault.RETRY_OTHER_TIME,
    Fault.OTHER_PERIOD, Fault.CONFLICT, Fault.SHARED_ID, Fault.LATE, Fault.FAR_LATE, Fault.AHEAD, Fault.TIMELESS,
    Fault.MALFORMED, Fault.BROKEN_RECORD, Fault.FORGED_CONTROL, Fault.FOREIGN_TICK, Fault.WRONG_PARTITION,
    Fault.PERIOD_PASSED, Fault.INVOICE_PASSED, Fault.INVOICE_LATE,
})  # fmt: skip

SERVICE_FAULTS: Final = {
    "redis": (Fault.REDIS_REFUSED, Fault.REDIS_ANSWER_LOST),
    "clickhouse": (Fault.CLICKHOUSE_REFUSED, Fault.CLICKHOUSE_ANSWER_LOST),
    "log": (Fault.LOG_REFUSED, Fault.LOG_ANSWER_LOST),
    "stripe": (Fault.STRIPE_REFUSED, Fault.STRIPE_REFUSED),
    "sql": (Fault.SQL_REFUSED, Fault.SQL_ANSWER_LOST),
}


class Rates(NamedTuple):
    """The probabilities of faults per call, and the large faults that can occur in a run."""

    refused: float
    answer_lost: float
    crash: float
    stall: float
    stripe: float
    crashes_at_random: int
    rebalances: int
    lost_seconds: int
    fails_over: bool
    empties: bool
    skews: bool
    webhooks: float
    empties_ledger: bool

    @classmethod
    def drawn(cls, chance: random.Random) -> Rates:
        """Draw the rates of a run. A run without one kind of fault shows the effect of other kinds."""
        level = (0.0, 0.002, 0.01, 0.03)
        return cls(
            refused=chance.choice(level),
            answer_lost=chance.choice(level),
            crash=chance.choice((0.0, 0.001, 0.004, 0.01)),
            stall=chance.choice((0.0, 0.001, 0.003)),
            stripe=chance.choice((0.0, 0.1, 0.3)),
            crashes_at_random=chance.choice((0, 1, 3, 6)),
            rebalances=chance.choice((0, 1, 3)),
            lost_seconds=chance.choice((0, 0, 1, 2)),
            fails_over=chance.random() < 0.25,
            empties=chance.random() < 0.3,
            skews=chance.random() < 0.3,
            webhooks=chance.choice((0.0, 0.1, 0.3)),
            empties_ledger=chance.random() < 0.3,
        )

    def with_long_lives(self) -> Rates:
        """The same, but no call ends a process: what one that starts again would mend stays as it is."""
        return self._replace(refused=0.0, answer_lost=0.0, crash=0.0)


class Failure(NamedTuple):
    """An error that the run has found, and the place that found it."""

    where: str
    what: str


class Faults:
    """The faults that occurred. A fault's key is the same in every run of the seed; `only` names allowed faults."""

    def __init__(self, only: Collection[str] | None = None) -> None:
        self.active = True
        self.struck: list[str] = []
        self.counts: Counter[Fault] = Counter()
        self._only = None if only is None else frozenset(only)

    def strike(self, kind: Fault, key: str) -> bool:
        """Return whether the fault occurs, and record it if so."""
        name = f"{kind.name.lower()}@{key}"
        if not self.active or (self._only is not None and name not in self._only):
            return False
        self.struck.append(name)
        self.counts[kind] += 1
        return True

    def note(self, kind: Fault) -> None:
        """Record a fault of the traffic or of time."""
        self.counts[kind] += 1
