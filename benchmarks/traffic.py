"""Generates usage events in less than a microsecond per event, with their expected totals.

A few hundred records are templates; each record that is sent repeats a template with new event ids. The expected totals
come from a plain dictionary, which sums each template once and shares no code with the fold.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from aggregators.partitioning import partition_of
from schemas.clock import MINUTE_MS

RECORD_EVENTS: Final = 1_000
# One record in so many is sent twice, like after a lost answer.
RESEND_EVERY: Final = 100
TEMPLATES_PER_PARTITION: Final = 40
SPAN_MS: Final = 40 * 60 * 1000
# The length of `2026-11-21T10:00`, the minute of a time.
MINUTE_CHARACTERS: Final = 16

# As in schemas/catalog.default.yaml: event type, share in percent, meter.
KINDS: Final = (
    ("api.request", 45, "api_requests"),
    ("llm.completion", 25, "tokens"),
    ("storage.sampled", 10, "storage_gb"),
    ("user.active", 10, "active_users"),
    ("seats.changed", 10, "seats"),
)


class Batch(NamedTuple):
    """A record to produce."""

    partition: int
    value: bytes


Latest = tuple[int, int]


class Sums:
    """The totals of a set of events, per account and meter."""

    def __init__(self) -> None:
        self.added: dict[tuple[str, str], int] = {}
        self.highest: dict[tuple[str, str], int] = {}
        self.distinct: dict[tuple[str, str], set[str]] = {}
        self.latest: dict[tuple[str, str], Latest] = {}

    def take(self, account: str, kind: str, data: dict[str, str | int | bool], time_us: int) -> None:
        """Add one event."""
        match kind:
            case "api.request":
                self._add((account, "api_requests"), 1)
            case "llm.completion":
                self._add((account, "tokens"), int(data["tokens"]))
            case "storage.sampled":
                self._raise((account, "storage_gb"), int(str(data["gigabytes"]).replace(".", "")))
            case "user.active":
                self.distinct.setdefault((account, "active_users"), set()).add(str(data["user"]))
            case _:
                self._set((account, "seats"), (time_us, int(data["seats"])))

    def merge(self, later: Sums, moved_us: int = 0) -> None:
        """Add the totals of later events whose times were moved."""
        for key, value in later.added.items():
            self._add(key, value)
        for key, value in later.highest.items():
            self._raise(key, value)
        for key, texts in later.distinct.items():
            self.distinct.setdefault(key, set()).update(texts)
        for key, (time_us, value) in later.latest.items():
            self._set(key, (time_us + moved_us, value))

    def totals(self) -> dict[tuple[str, str], int]:
        """The value of each (account, meter) in minor units."""
        return {
            **self.added,
            **self.highest,
            **{key: len(texts) for key, texts in self.distinct.items()},
            **{key: value for key, (_, value) in self.latest.items()},
        }

    def _add(self, key: tuple[str, str], value: int) -> None:
        self.added[key] = self.added.get(key, 0) + value

    def _raise(self, key: tuple[str, str], value: int) -> None:
        self.highest[key] = max(self.highest.get(key, 0), value)

    def _set(self, key: tuple[str, str], latest: Latest) -> None:
        current = self.latest.get(key)
        # Of two events with the same time, the later in the log counts.
        if current is None or current[0] <= latest[0]:
            self.latest[key] = latest


class _Template(NamedTuple):
    """A record with gaps for the event ids."""

    pieces: list[bytes]
    sums: Sums


class Traffic:
    """An endless, seeded stream of records, with the totals of the records taken so far."""

    def __init__(self, accounts: int, partitions: int, now_ms: int, seed: int = 1, span_ms: int = SPAN_MS) -> None:
        """`now_ms` is the latest event time: the events of a run lie in the 40 minutes before it, or in `span_ms`."""
        self._chance = random.Random(seed)
        self._now_ms, self._span_ms = now_ms, span_ms
        self._minutes: tuple[bytes, bytes] | None = None
        self._moved_us = 0
        names: list[list[str]] = [[] for _ in range(partitions)]
        for number in range(accounts):
            name = f"acct_{number:06d}"
            names[partition_of(name, partitions)].append(name)
        self._templates = [
            [self._template(group) for _ in range(TEMPLATES_PER_PARTITION)] if group else [] for group in names
        ]
        self._number = 0
        self.sums = Sums()
        self.sent = self.duplicates = 0

    def records(self, count: int) -> Iterator[Batch]:
        """The next `count` records of `RECORD_EVENTS` events each, spread evenly over the partitions."""
        last: Batch | None = None
        for _ in range(count):
            self._number += 1
            self.sent += RECORD_EVENTS
            if last is not None and self._number % RESEND_EVERY == 0:
                self.duplicates += RECORD_EVENTS
                yield last
                continue
            partition = self._number % len(self._templates)
            template = self._chance.choice(self._templates[partition])
            self.sums.merge(template.sums, self._moved_us)
            value = _with_fresh_ids(template.pieces)
            last = Batch(partition, value.replace(*self._minutes) if self._minutes else value)
            yield last

    def samples(self, count: int) -> list[bytes]:
        """Make up to `count` sample records, which do not enter the totals."""
        templates = [template for group in self._templates for template in group]
        return [_with_fresh_ids(template.pieces) for template in templates[:count]]

    def move_to(self, now_ms: int) -> None:
        """Move later events to the minute of `now_ms`. Only for traffic within one minute."""
        first = time_text(self._now_ms)[:MINUTE_CHARACTERS]
        assert self._span_ms <= MINUTE_MS, "only the text of one minute can be exchanged"
        self._minutes = (f'"time":"{first}'.encode(), f'"time":"{time_text(now_ms)[:MINUTE_CHARACTERS]}'.encode())
        self._moved_us = (now_ms // MINUTE_MS - self._now_ms // MINUTE_MS) * MINUTE_MS * 1000

    @property
    def counted(self) -> int:
        """The number of events sent so far without duplicates."""
        return self.sent - self.duplicates

    def _template(self, accounts: list[str]) -> _Template:
        chance, sums = self._chance, Sums()
        pieces, before = [], b"["
        for _ in range(RECORD_EVENTS):
            (kind,) = chance.choices([name for name, _, _ in KINDS], [share for _, share, _ in KINDS])
            account, data = chance.choice(accounts), self._data(kind)
            time_ms = self._now_ms - chance.randrange(self._span_ms)
            sums.take(account, kind, data, time_ms * 1000)
            event = {
                "specversion": "1.0", "id": "?", "source": "benchmark/api-7", "type": kind, "subject": account,
                "time": time_text(time_ms), "data": data,
            }  # fmt: skip
            head, tail = msgspec.json.encode(event).split(b'"?"')
            pieces.append(before + head + b'"')
            before = b'"' + tail + b","
        return _Template([*pieces, before[:-1] + b"]"], sums)

    def _data(self, kind: str) -> dict[str, str | int | bool]:
        chance = self._chance
        match kind:
            case "api.request":
                region = chance.choice(("eu-west-1", "us-east-1", "ap-south-1"))
                return {"method": chance.choice(("GET", "POST")), "region": region, "path": "/v1/things"}
            case "llm.completion":
                return {"model": chance.choice(("small", "medium", "large")), "tokens": chance.randrange(10, 4_000)}
            case "storage.sampled":
                return {"gigabytes": f"{chance.randrange(1, 900)}.{chance.randrange(1000):03d}", "bucket": "b1"}
            case "user.active":
                return {"user": f"u{chance.randrange(50)}", "plan": "team"}
            case _:
                return {"seats": chance.randrange(1, 500), "reason": "invited"}


def _with_fresh_ids(pieces: list[bytes]) -> bytes:
    text = os.urandom(16 * RECORD_EVENTS).hex()
    parts = [b""] * (2 * RECORD_EVENTS + 1)
    parts[::2] = pieces
    parts[1::2] = [
        f"{text[at : at + 8]}-{text[at + 8 : at + 12]}-{text[at + 12 : at + 16]}-"
        f"{text[at + 16 : at + 20]}-{text[at + 20 : at + 32]}".encode()
        for at in range(0, 32 * RECORD_EVENTS, 32)
    ]
    return b"".join(parts)


def time_text(instant_ms: int) -> str:
    """RFC 3339 with milliseconds, like the emitter."""
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=instant_ms)
    return instant.isoformat(timespec="milliseconds").replace("+00:00", "Z")
