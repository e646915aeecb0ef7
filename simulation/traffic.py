"""The events of the producers, drawn from the seed: new, repeated, late, broken and foreign events."""

from __future__ import annotations

import json
import random
import uuid
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from schemas.clock import DAY_MS, HOUR_MS, MINUTE_MS
from simulation.faults import Fault, Faults

# Three hours before a month begins and the first slice of marks ends (by the default dedup window). Months, days and
# slices of the meter set's own dedup window therefore end within a run.
ORIGIN_MS: Final = 1_801_440_000_000 - 3 * HOUR_MS
WINDOW_MS: Final = 2 * HOUR_MS
# A duplicate with a new timestamp must arrive within the dedup window, even if the router is down for long.
REPEAT_MS_MAX: Final = WINDOW_MS - 50 * MINUTE_MS
PARTITIONS: Final = 2
ACCOUNTS: Final = ("ada", "bob", "cyd", "dora", "eve", "fay")
FREE: Final = "fay"
# The accounts of most samples, and how many of those are late.
HOT: Final = ACCOUNTS[2:4]
SAMPLED: Final = ("sample", "beat")
LATE_SAMPLES: Final = 0.5
# Accounts that are linked to customers at Stripe: nobody else binds them.
LINKED: Final = ("gil", "hal", "ivy")
REPEATABLE_MAX: Final = 600
LARGE_BATCHES: Final = 0.02
TIMELESS: Final = 0.06
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

POLICY: Final[dict[str, int]] = {
    "window_ms": WINDOW_MS,
    "future_ms": 5 * MINUTE_MS,
    "grace_ms": 20 * MINUTE_MS,
    "event_bytes_max": 2_048,
    "late_max_ms": 20 * DAY_MS,
}
METER_SET_VERSIONS: Final = 4
WITHOUT_A_METER: Final = 3
# A report bucket with several arrival hours, or an arrival hour with several report buckets.
REPORT_INTERVALS_MS: Final = (2 * HOUR_MS, 15 * MINUTE_MS)
METERS: Final[list[dict[str, Any]]] = [
    {"slug": "requests", "event_type": "request", "aggregation": "count", "dimensions": {"region": "$.region"},
     "stripe_event_name": "requests"},
    {"slug": "gigabytes", "event_type": "request", "aggregation": "sum", "value_path": "$.gb", "scale": 3,
     "stripe_event_name": "gigabytes"},
    {"slug": "peak", "event_type": "sample", "aggregation": "max", "value_path": "$.peak", "scale": 3,
     "on_bad": "skip_meter", "stripe_event_name": "peak"},
    {"slug": "lowest", "event_type": "balance", "aggregation": "min", "value_path": "$.balance", "scale": 2,
     "allow_negative": True, "dimensions": {"currency": "$.currency"}, "stripe_event_name": "lowest"},
    {"slug": "users", "event_type": "request", "aggregation": "unique", "value_path": "$.user",
     "on_bad": "skip_meter", "stripe_event_name": "users"},
    {"slug": "weight", "event_type": "request", "aggregation": "sum", "value_path": "$.weight", "scale": 2,
     "dimensions": {"kind": "$.kind"}, "on_bad": "skip_meter", "stripe_event_name": "weight"},
    {"slug": "teams", "event_type": "request", "aggregation": "unique", "value_path": "$.team",
     "on_bad": "skip_meter", "stripe_event_name": "teams"},
    {"slug": "seats", "event_type": "seats", "aggregation": "latest", "value_path": "$.seats", "late": "quarantine",
     "carry_over": True, "stripe_event_name": "seats"},
    {"slug": "stored", "event_type": "sample", "aggregation": "time_weighted", "value_path": "$.gb", "scale": 3,
     "series_path": "$.disk", "stands_s_max": 18_000, "stripe_event_name": "stored"},
    {"slug": "online", "event_type": "beat", "aggregation": "duration", "session_path": "$.session", "per": "minute",
     "session_gap_s_max": 5_400, "scale": 2, "dimensions": {"region": "$.region"}, "late": "quarantine",
     "stripe_event_name": "online"},
]  # fmt: skip
DISKS: Final = ("a", "b")
# Few events have these, so that most events count in every meter. The meters of `weight` and `team` skip the bad ones.
WEIGHTS: Final[tuple[Any, ...]] = (
    1,
    2.5,
    "3.25",
    0,
    -4,
    "1e1",
    # Sixteen digits: Stripe gets it in two parts.
    "12345678901234.56",
    None,
    0.125,
    "heavy",
    "007",
    True,
    {},
    10**17,
    "1" * 80,
    "1e400",
)
TEAMS: Final[tuple[Any, ...]] = ("red", "blue", 7, None, "", 1.5, [], "t" * 300)
KINDS: Final[tuple[Any, ...]] = ("big", "small", True, None, 1.5, {})
LATER_METER: Final[dict[str, Any]] = {
    "slug": "views", "event_type": "view", "aggregation": "count", "stripe_event_name": "views"
}  # fmt: skip


def meter_set(version: int, report_interval_ms: int) -> dict[str, Any]:
    """The meter set as JSON. Version 2 adds a meter, 3 removes that meter, 4 adds it again with a longer grace and
    takes older events. The meter `weight` takes negative quantities from version 2 on, and does not skip in version 3.
    """
    policy = {**POLICY, "report_interval_ms": report_interval_ms}
    if version == METER_SET_VERSIONS:
        policy["grace_ms"] *= 2
        policy["late_max_ms"] *= 2
    later = [] if version in (1, WITHOUT_A_METER) else [LATER_METER]
    changes = {"allow_negative": version > 1, "on_bad": "reject_event" if version == WITHOUT_A_METER else "skip_meter"}
    meters = [meter | changes if meter["slug"] == "weight" else meter for meter in METERS]
    return {"version": version, "meters": meters + later, "policy": policy}


def customers(account: str) -> tuple[str, str]:
    """The possible payers of an account: the first customer and a later one."""
    return f"cus_{account}", f"cus_{account}_later"


class Sent(NamedTuple):
    """The first sending of an event: producer, time of sending, event time (of sending if it has none) and JSON
    object."""

    producer: str
    at_ms: int
    time_ms: int
    body: dict[str, Any]


class Traffic:
    """Draws the events of one producer, and repeats recent events of all producers, which share `sent`."""

    def __init__(
        self, producer: str, chance: random.Random, faults: Faults, sent: deque[Sent], accounts: Sequence[str]
    ) -> None:
        self._producer = producer
        self._chance = chance
        self._faults = faults
        self._sent = sent
        self._accounts = accounts

    def batch(self, now_ms: int) -> list[Any]:
        """Draw one to sixty events as JSON values; some are duplicates, some are malformed."""
        size = 60 if self._chance.random() < LARGE_BATCHES else self._chance.choice((1, 1, 3, 6, 12))
        return [self._one(now_ms) for _ in range(size)]

    def _one(self, now_ms: int) -> Any:
        draw = self._chance.random()
        if draw < 0.22 and (again := self._repeat(now_ms)) is not None:
            return again
        if draw < 0.28:
            return self._malformed(now_ms)
        return self._fresh(now_ms)

    def _fresh(self, now_ms: int) -> dict[str, Any]:
        # uuid4 would take randomness from the system, not from the seed.
        event_id = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        account, time_ms = self._chance.choice(self._accounts), now_ms + self._drift_ms(now_ms)
        payload = self._payload()
        if payload["type"] in SAMPLED and self._chance.random() < LATE_SAMPLES:
            # Many late samples of few hours: what was just told changes again.
            account, time_ms = self._chance.choice(HOT), now_ms - self._chance.randrange(WINDOW_MS - 10 * MINUTE_MS)
        body = {
            "specversion": "1.0",
            "id": event_id,
            "source": "/simulation",
            "subject": account,
            "time": time_text(time_ms, self._chance.randrange(1000)),
            **payload,
        }
        if self._chance.random() < TIMELESS:
            self._faults.note(Fault.TIMELESS)
            time_ms = now_ms
            _without_time(body, self._chance)
        self._sent.append(Sent(self._producer, now_ms, time_ms, body))
        return body

    def _payload(self) -> dict[str, Any]:
        chance = self._chance
        kind = chance.choice(("request", "request", "request", *SAMPLED, *SAMPLED, "balance", "seats", "view"))
        match kind:
            case "request":
                data: dict[str, Any] = {
                    "region": chance.choice(("eu", "us")),
                    "gb": f"{chance.randrange(5)}.{chance.randrange(1000):03d}",
                    "user": f"user-{chance.randrange(8)}",
                    "weight": chance.choice(WEIGHTS if chance.random() < 0.2 else WEIGHTS[:4]),
                    "kind": chance.choice(KINDS if chance.random() < 0.1 else KINDS[:2]),
                    "team": chance.choice(TEAMS if chance.random() < 0.2 else TEAMS[:3]),
                }
                if chance.random() < 0.5:
                    # It counts in meters that take adjustments only, so that it can be voided.
                    del data["user"], data["team"]
            case "sample":
                level = chance.choice((chance.randrange(50), f"{chance.randrange(50)}.5"))
                data = {"gb": level, "disk": chance.choice(DISKS)}
                if chance.random() < 0.3:
                    data["peak"] = level
            case "beat":
                data = {"session": chance.choice(("one", "one", "two")), "region": chance.choice(("eu", "us"))}
            case "balance":
                # Few values on both sides of 0: the minimum comes again.
                balance = f"{chance.randrange(-9, 9)}.{chance.choice((0, 25))}"
                data = {"balance": balance, "currency": chance.choice(("eur", "usd"))}
            case "seats":
                data = {"seats": chance.randrange(100)}
            case _:
                data = {"page": "/"}
        return {"type": kind, "data": data}

    def _drift_ms(self, now_ms: int) -> int:
        """The difference between event time and now."""
        draw = self._chance.random()
        if draw < 0.10:
            self._faults.note(Fault.LATE)
            return -self._chance.randrange(WINDOW_MS - 10 * MINUTE_MS)
        if draw < 0.13:
            self._faults.note(Fault.FAR_LATE)
            return -WINDOW_MS - self._chance.randrange(MINUTE_MS, 40 * DAY_MS)
        if draw < 0.16:
            self._faults.note(Fault.AHEAD)
            return self._chance.choice((2 * MINUTE_MS, 4 * MINUTE_MS, HOUR_MS))
        if draw < 0.20:
            # Exactly at an hour or at a period's end, or one millisecond before.
            return HOUR_MS * self._chance.choice((0, 1)) - now_ms % HOUR_MS - self._chance.choice((0, 1))
        return -self._chance.randrange(MINUTE_MS)

    def _repeat(self, now_ms: int) -> dict[str, Any] | None:
        """Repeat an event: an old event unchanged, or an event within the dedup window.

        An event from the future was refused at first and is old only after its own time. Earlier, another arrival with
        another time may have been counted and its mark may be gone.
        """
        old_ms = now_ms - WINDOW_MS - 10 * MINUTE_MS
        # Without a time, each arrival has a time of its own: only the dedup window finds such a repetition.
        old = [sent for sent in self._sent if max(sent.at_ms, sent.time_ms) < old_ms and sent.body.get("time")]
        if old and self._chance.random() < 0.2:
            self._faults.note(Fault.OLD_DUPLICATE)
            return self._again(self._chance.choice(old)).body
        within = [sent for sent in self._sent if now_ms - sent.at_ms < REPEAT_MS_MAX]
        if not within:
            return None
        sent, draw = self._again(self._chance.choice(within)), self._chance.random()
        if draw < 0.5:
            self._faults.note(Fault.DUPLICATE)
            return sent.body
        if draw < 0.7:
            self._faults.note(Fault.RETRY_OTHER_TIME)
            again = {**sent.body, "time": time_text(now_ms, self._chance.randrange(1000))}
            return _without_time(again, self._chance) if self._chance.random() < TIMELESS else again
        if draw < 0.8:
            self._faults.note(Fault.OTHER_PERIOD)
            midnight_ms = now_ms // DAY_MS * DAY_MS
            return {**sent.body, "time": time_text(midnight_ms - self._chance.choice((0, 1, 1000)), 0)}
        if draw < 0.93:
            self._faults.note(Fault.CONFLICT)
            conflicting = {"source": "/another"} if self._chance.random() < 0.3 else self._payload()
            return {**sent.body, **conflicting}
        self._faults.note(Fault.SHARED_ID)
        other = self._chance.choice([account for account in self._accounts if account != sent.body["subject"]])
        return {**sent.body, "subject": other}

    def _again(self, sent: Sent) -> Sent:
        """Record a repetition of another producer's event; either may arrive first."""
        if sent.producer != self._producer:
            self._faults.note(Fault.OTHER_PRODUCER)
        return sent

    def _malformed(self, now_ms: int) -> Any:
        self._faults.note(Fault.MALFORMED)
        body = dict(self._fresh(now_ms))
        self._sent.pop()
        match self._chance.randrange(8):
            case 0:
                del body["subject"]
            case 1:
                body["time"] = "yesterday"
            case 2:
                body.update(type="request", data={"region": "eu", "gb": "1.23456", "user": "u"})
            case 3:
                body.update(type="sample", data={"gb": -1})
            case 4:
                body.update(type="sample", data={})
            case 5:
                body["data"] = {"text": "x" * 3_000}
            case 6:
                body.update(type="seats", data={"seats": "1e30"})
            case _:
                return self._chance.choice((None, 17, [], "event"))
        return body


def _without_time(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Take the time out of an event: CloudEvents' `time` is optional, and null is the same as absent."""
    if chance.random() < 0.5:
        del body["time"]
    else:
        body["time"] = None
    return body


def time_text(instant_ms: int, more_us: int) -> str:
    """RFC 3339 in UTC, with microseconds."""
    return (_EPOCH + timedelta(milliseconds=instant_ms, microseconds=more_us)).isoformat().replace("+00:00", "Z")


def encoded(events: list[Any]) -> bytes:
    """A batch as a record's value."""
    return json.dumps(events).encode()


def account_of(event: Any) -> str:
    """The account that an event names; "" if it names none."""
    account = event.get("subject") if isinstance(event, dict) else None
    return account if isinstance(account, str) else ""
