"""Traffic by seed: `events` makes them one by one, `records` puts them into records of a partitioned topic.

Everything is kept well away from the limits, so that a few bytes or seconds of difference between a producer's and
the log's view never decide a decision. Nothing here reads a clock: pass `start_us`.
"""

from __future__ import annotations

import json
import random
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from oracle.rules import partition_of
from tests.traffic.faults import BAD_DATA, BAD_FIELDS, BAD_TIMES, BULKY, EVENT_FAULTS, RECORD_FAULTS, WHOLE_RECORDS

SECOND_US: Final = 1_000_000
HOUR_US, DAY_US = 3_600 * SECOND_US, 86_400 * SECOND_US

METER_SET: Final[Mapping[str, Any]] = {
    "version": 1,
    "meters": [
        {
            "slug": "api_requests",
            "event_type": "api.request",
            "aggregation": "count",
            "dimensions": {"method": "$.method", "region": "$.region"},
        },
        {
            "slug": "tokens",
            "event_type": "completion.finished",
            "aggregation": "sum",
            "value_path": "$.usage.tokens",
            "dimensions": {"model": "$.model"},
            "filters": [{"path": "$.model", "operator": "in", "values": ["small", "large"]}],
        },
        {
            "slug": "storage_gb",
            "event_type": "storage.sampled",
            "aggregation": "max",
            "value_path": "$.gigabytes",
            "dimensions": {"tier": "$.tier"},
            "scale": 3,
        },
        {
            "slug": "lowest_balance",
            "event_type": "balance.changed",
            "aggregation": "min",
            "value_path": "$.balance",
            "dimensions": {"currency": "$.currency"},
            "scale": 2,
            "allow_negative": True,
        },
        {"slug": "active_users", "event_type": "api.request", "aggregation": "unique", "value_path": "$.user"},
        {
            "slug": "seats",
            "event_type": "seats.changed",
            "aggregation": "latest",
            "value_path": "$.seats",
            "late": "quarantine",
        },
    ],
    "policy": {"window_ms": 259_200_000, "future_ms": 300_000, "grace_ms": 3_600_000, "event_bytes_max": 65_536},
}
"""The JSON form of a `schemas.meters.MeterSet`: all aggregations, and `api.request` feeds two meters."""

WINDOW_US: Final = 259_200 * SECOND_US

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """Share of each kind of traffic, 0 to 1; what is left is fresh, punctual and valid.

    `late` events are up to half a window old, `far_late` ones from a day older than the window to a month.
    `timeless` events have no time. `shared_id` takes the id of another account's event. `single` is the share of
    records that hold one event which is not in a list.
    """

    duplicate: float = 0.02
    retry: float = 0.02
    conflict: float = 0.005
    shared_id: float = 0.005
    late: float = 0.03
    far_late: float = 0.0
    ahead: float = 0.01
    timeless: float = 0.02
    unmetered: float = 0.02
    malformed: float = 0.02
    single: float = 0.1
    faults: tuple[str, ...] = EVENT_FAULTS + RECORD_FAULTS


class Sent(NamedTuple):
    """One event as its producer sends it.

    `kind` is `fresh`, a field of `Rates`, or for malformed events the reason with which they must be rejected.
    `body` is the event's JSON, or the whole record where `kind` is one of `RECORD_FAULTS`.
    """

    sent_us: int
    account: str
    kind: str
    body: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class TrafficRecord(NamedTuple):
    """One record for `usage.events`. `kinds` has an entry for each event, in order (one, if rejected as one)."""

    partition: int
    sent_ms: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]
    kinds: tuple[str, ...]


def account_name(number: int) -> str:
    """Mostly plain names; every tenth is not ASCII."""
    return f"konto_{number:06d}_ß" if number % 10 == 9 else f"acct_{number:06d}"


def rfc3339(time_us: int, *, shift_minutes: int = 0) -> str:
    """The instant with microseconds, written with an offset of that many minutes (`Z` for none)."""
    shift = timedelta(minutes=shift_minutes)
    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us) + shift).strftime("%Y-%m-%dT%H:%M:%S.%f")
    hours, minutes = divmod(abs(shift_minutes), 60)
    offset = f"{'-' if shift_minutes < 0 else '+'}{hours:02d}:{minutes:02d}" if shift_minutes else "Z"
    return text.zfill(26) + offset


class _Maker:
    """Makes the events of one seed. All randomness comes from one generator, in a fixed order of calls."""

    def __init__(self, seed: int, accounts: int) -> None:
        self.random = random.Random(seed)
        self.accounts = accounts

    def account(self) -> str:
        """Some accounts send much more than others."""
        return account_name(int(self.accounts * self.random.random() ** 2))

    def envelope(self, account: str, time_us: int, type_: str, data: Json) -> Json:
        shift_minutes = self.random.choice((0, 0, 0, 120, -330))
        return {
            "specversion": "1.0",
            "id": str(uuid.UUID(int=self.random.getrandbits(128), version=4)),
            "source": f"/service/{self.random.randrange(8)}",
            "type": type_,
            "subject": account,
            "time": rfc3339(time_us, shift_minutes=shift_minutes),
            "data": data,
        }

    def valid(self, account: str, time_us: int) -> Json:
        """An event that feeds at least one meter."""
        makers = (self.request, self.completion, self.storage, self.balance, self.seats)
        return self.random.choices(makers, (50, 30, 10, 5, 5))[0](account, time_us)

    def request(self, account: str, time_us: int) -> Json:
        data: Json = {"method": self.random.choice(("GET", "GET", "POST", "DELETE"))}
        if self.random.random() < 0.9:
            data["region"] = self.random.choice(("eu-west-1", "us-east-1", "São Paulo", 7, True))
        number = self.random.randrange(50)
        data["user"] = number if number % 5 == 0 else f"user_{number}"
        return self.envelope(account, time_us, "api.request", data)

    def completion(self, account: str, time_us: int) -> Json:
        tokens = self.random.randrange(1, 5_000)
        written = self.random.choice((tokens, tokens, str(tokens), f"{tokens}.00"))
        data = {"model": self.random.choice(("small", "large")), "usage": {"tokens": written}}
        return self.envelope(account, time_us, "completion.finished", data)

    def storage(self, account: str, time_us: int) -> Json:
        thousandths = self.random.randrange(1_000_000)
        # A producer's JSON number: Python writes the shortest text that names it, three decimals at most.
        written = self.random.choice((f"{thousandths / 1000:.3f}", thousandths / 1000, thousandths // 1000))
        data = {"gigabytes": written, "tier": self.random.choice(("hot", "cold"))}
        return self.envelope(account, time_us, "storage.sampled", data)

    def balance(self, account: str, time_us: int) -> Json:
        """Few different values on both sides of 0, so that the least comes again."""
        hundredths = self.random.randrange(-20, 20) * 25
        written = self.random.choice((f"{hundredths / 100:.2f}", hundredths / 100, hundredths // 100))
        data = {"balance": written, "currency": self.random.choice(("EUR", "USD"))}
        return self.envelope(account, time_us, "balance.changed", data)

    def seats(self, account: str, time_us: int) -> Json:
        return self.envelope(account, time_us, "seats.changed", {"seats": self.random.randrange(200)})

    def unmetered(self, account: str, time_us: int) -> Json:
        """A type that no meter wants, or one whose filter does not pass."""
        if self.random.random() < 0.5:
            return self.envelope(account, time_us, "page.viewed", {"page": "/pricing"})
        data = {"model": "experimental", "usage": {"tokens": "not even a number"}}
        return self.envelope(account, time_us, "completion.finished", data)

    def fault(self, reason: str, account: str, time_us: int) -> bytes:
        """An event, or a whole record, that must be rejected with this reason."""
        if reason in WHOLE_RECORDS:
            return WHOLE_RECORDS[reason](_encode(self.valid(account, time_us)))
        if reason == "not_an_event":
            return self.random.choice((b"42", b'"text"', b"null", b"true", b"[]"))
        far_us = self.random.randrange(2 * DAY_US, 60 * DAY_US)
        if reason == "too_far_in_future":
            time = self.random.choice((rfc3339(time_us + far_us), "9999-12-31T23:59:59Z"))
            return _encode(self.valid(account, time_us) | {"time": time})
        if reason == "too_far_in_past":
            time = self.random.choice((rfc3339(-far_us), "0001-01-01T00:00:00Z"))
            return _encode(self.valid(account, time_us) | {"time": time})
        if reason == "too_old":
            age_us = self.random.randrange(36 * DAY_US, 900 * DAY_US)
            return _encode(self.valid(account, time_us) | {"time": rfc3339(time_us - age_us)})
        if reason == "too_large":
            return _encode(self.valid(account, time_us) | {"extension": "x" * 100_000})
        if reason in ("missing_field", "bad_field", "bad_time"):
            return _encode(self.bad_envelope(reason, self.valid(account, time_us)))
        if reason in BAD_DATA:
            type_, choices = BAD_DATA[reason]
            data = self.random.choice(choices)
            event = self.envelope(account, time_us, type_, json.loads(data))
            # The number stays as it is written here: 1e400 would not survive a parser.
            return _encode(event | {"data": None}).replace(b'"data":null', b'"data":' + data.encode())
        return _encode(self.valid(account, time_us))

    def bad_envelope(self, reason: str, event: Json) -> Json:
        if reason == "missing_field":
            field = self.random.choice(("specversion", "id", "source", "type", "subject"))
            return _without(event, field)
        if reason == "bad_time":
            return event | {"time": self.random.choice(BAD_TIMES)}
        return event | self.random.choice(BAD_FIELDS)


def _without(event: Json, field: str) -> Json:
    return {name: value for name, value in event.items() if name != field}


def _encode(event: Json) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def events(
    seed: int,
    accounts: int,
    count: int,
    start_us: int,
    *,
    span_us: int = HOUR_US,
    rates: Rates | None = None,
) -> Iterator[Sent]:
    """`count` events, sent evenly over `[start_us, start_us + span_us)`, for `METER_SET`.

    Exact duplicates, retries and conflicts repeat one of the last 2 000 events.
    """
    maker, rates = _Maker(seed, accounts), rates or Rates()
    kinds = (
        "duplicate",
        "retry",
        "conflict",
        "shared_id",
        "late",
        "far_late",
        "ahead",
        "timeless",
        "unmetered",
        "malformed",
    )
    weights = [getattr(rates, kind) for kind in kinds]
    recent: deque[Json] = deque(maxlen=2_000)
    for number in range(count):
        now_us = start_us + span_us * number // count
        kind = maker.random.choices((*kinds, "fresh"), (*weights, max(0.0, 1 - sum(weights))))[0]
        account = maker.account()
        if kind == "malformed":
            # A hundred kilobytes each: seldom, or they would be most of the bytes.
            shares = [0.1 if fault in BULKY else 1 for fault in rates.faults]
            reason = maker.random.choices(rates.faults, shares)[0]
            headers = (
                (("tidemark-control", b"tick"), ("tidemark-signature", b"00")) if reason == "forged_control" else ()
            )
            yield Sent(now_us, account, reason, maker.fault(reason, account, now_us), headers)
            continue
        if kind in ("duplicate", "retry", "conflict", "shared_id") and not recent:
            kind = "fresh"
        event = _event(maker, kind, account, now_us, recent)
        recent.append(event)
        yield Sent(now_us, event["subject"], kind, _encode(event))


def _event(maker: _Maker, kind: str, account: str, now_us: int, recent: deque[Json]) -> Json:
    earlier = maker.random.choice(recent) if recent else {}
    match kind:
        case "duplicate":
            return earlier
        case "retry":
            return earlier | {"time": rfc3339(now_us)}
        case "conflict":
            return maker.valid(earlier["subject"], now_us) | {"id": earlier["id"]}
        case "shared_id":
            return maker.valid(account, now_us) | {"id": earlier["id"]}
        case "late":
            return maker.valid(account, now_us - maker.random.randrange(SECOND_US, WINDOW_US // 2))
        case "far_late":
            age_us = WINDOW_US + maker.random.randrange(DAY_US, 30 * DAY_US)
            made = maker.unmetered if maker.random.random() < 0.1 else maker.valid
            return made(account, now_us - age_us)
        case "ahead":
            return maker.valid(account, now_us + maker.random.randrange(120 * SECOND_US))
        case "timeless":
            event = maker.valid(account, now_us)
            return event | {"time": None} if maker.random.random() < 0.5 else _without(event, "time")
        case "unmetered":
            return maker.unmetered(account, now_us)
    return maker.valid(account, now_us - maker.random.randrange(30 * SECOND_US))


def records(
    seed: int,
    accounts: int,
    count: int,
    start_us: int,
    *,
    partitions: int = 1,
    batch_events_max: int = 100,
    span_us: int = HOUR_US,
    rates: Rates | None = None,
) -> Iterator[TrafficRecord]:
    """The same events as `events`, in records: batches of several accounts of one partition, and single events.

    A batch is sent with its last event, hence up to a batch's time after its first. With one partition there is no
    wrong one: such events are valid there, and `fresh`.
    """
    rates = rates or Rates()
    # Apart from the events' own, so that batching does not change what is sent.
    draw = random.Random(f"batches of {seed}")
    pending: dict[int, list[Sent]] = {partition: [] for partition in range(partitions)}
    limits = {partition: draw.randint(1, batch_events_max) for partition in pending}
    last_us = start_us
    for sent in events(seed, accounts, count, start_us, span_us=span_us, rates=rates):
        last_us = sent.sent_us
        partition = partition_of(sent.account, partitions)
        if sent.kind in RECORD_FAULTS:
            yield TrafficRecord(partition, last_us // 1000, None, sent.body, sent.headers, (sent.kind,))
            continue
        if sent.kind == "wrong_partition":
            sent = sent if partitions > 1 else sent._replace(kind="fresh")  # noqa: PLW2901
            partition = (partition + 1) % partitions
        # A list by itself would be a batch, so that only objects are sent alone.
        if sent.kind != "not_an_event" and draw.random() < rates.single:
            yield TrafficRecord(partition, last_us // 1000, sent.account.encode(), sent.body, (), (sent.kind,))
            continue
        pending[partition].append(sent)
        if len(pending[partition]) >= limits[partition]:
            yield _batch(partition, last_us, pending[partition])
            pending[partition] = []
            limits[partition] = draw.randint(1, batch_events_max)
    for partition, batch in pending.items():
        if batch:
            yield _batch(partition, last_us, batch)


def _batch(partition: int, sent_us: int, batch: list[Sent]) -> TrafficRecord:
    value = b"[" + b",".join(sent.body for sent in batch) + b"]"
    return TrafficRecord(partition, sent_us // 1000, None, value, (), tuple(sent.kind for sent in batch))
