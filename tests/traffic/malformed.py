"""Inputs that are broken, for every door by which bytes come in, and valid events between them, by seed.

A broken input never names the account `GOOD`, so what that account has counted comes from the valid events alone.
"""

from __future__ import annotations

import gzip
import hmac
import json
import random
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import cache
from hashlib import sha256
from typing import Final, NamedTuple

from aggregators.partitioning import partition_of
from tests.traffic.odd_records import NOW_MS, OddRecords

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GOOD: Final = "good"
WEBHOOK_SECRET: Final = "whsec_ours"
BODY_BYTES_MAX: Final = 200_000
# One of so many inputs has a valid event.
VALID_ONE_OF: Final = 6
PARTITIONS: Final = 2
BINARY_ATTRIBUTES: Final = ("specversion", "id", "source", "type", "subject", "time")


class Door(StrEnum):
    """Where an input comes in: requests with events, records of `usage.inbox` and of `usage.events`, deliveries of
    Stripe."""

    HTTP = "http"
    INBOX = "inbox"
    LOG = "log"
    WEBHOOK = "webhook"


class Sent(NamedTuple):
    """One request or record. `event`: the valid event of `GOOD` that the input has, or b"". `delivery`: the id of the
    Stripe event that the input is, or "". `is_cut`: the client goes away before the end of the body."""

    door: Door
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    event: bytes = b""
    delivery: str = ""
    partition: int = 0
    is_cut: bool = False


_NASTY: Final = (
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\\ud800",
    b"\\u0000", b"1e999999999", b"1e-999999999", b"-", b"9" * 400, b"0." + b"0" * 300 + b"1", b"[" * 600,
    b'{"a":' * 300, b"]" * 300, b'"', b"\\", b"\n", b"\r\n", b",", b"null", b"NaN", b"Infinity", b"{}", b'"id":"x",',
    b"/*", b"\x1b[2J",
)  # fmt: skip
_TYPES: Final = (
    b"application/cloudevents+json", b"application/cloudevents-batch+json", b"application/json",
    b"application/x-ndjson", b"application/ndjson",
)  # fmt: skip
_ODD_TYPES: Final = (
    b"", b"text/plain", b"application/xml", b"application/json; charset=utf-16", b"application/json;charset=\xff",
    b"application/cloudevents+avro", b"multipart/form-data; boundary=x", b"APPLICATION/JSON",
    b"application/json,text/x", b"x" * 5000, b"application/cloudevents", b"application/json; charset", b"\x00",
)  # fmt: skip
_ATTRIBUTE_VALUES: Final = (
    b"", b"%", b"%zz", b"%00", b"%ED%A0%80", b"%ff", b"a%0d%0aX-Admin: 1", b'"quoted"', b'"open', b"\xff", b"x" * 300,
    b"%F0%9F%98%80", b"a\tb", b"1.0", b"2", b"null", b"2026-11-29T19:00:00Z", b"2026-11-29T19:00:00", b"acct_000001",
)  # fmt: skip
_SIGNATURES: Final = (b"", b"t=1,v1=0", b"v1=", b"t=" + b"9" * 20, b"\xff", b"t=\xd9\xa1,v1=a", b"," * 5000)
# The time is that of the arrival, on every clock.
_EVENT: Final = (
    b'{"specversion":"1.0","id":"v%d","source":"s","type":"llm.completion","subject":"good",'
    b'"data":{"tokens":%d,"model":"small","billable":"true"}}'
)


@cache
def _bombs() -> list[tuple[bytes, bytes]]:
    """Small bodies that become large, or take long, with their encodings."""
    zeros = bytes(20_000_000)
    wide = zstd.compress(b"x" * 100, options={zstd.CompressionParameter.window_log: 27})
    return [
        (b"gzip", gzip.compress(zeros, 9)), (b"zstd", zstd.compress(zeros)), (b"gzip", gzip.compress(b"", 1) * 1500),
        (b"zstd", zstd.compress(b"") * 1500), (b"zstd", wide), (b"gzip", gzip.compress(gzip.compress(zeros))),
    ]  # fmt: skip


def signature(body: bytes, secret: str = WEBHOOK_SECRET) -> bytes:
    """The header by which Stripe signs a body now."""
    at_s = b"%d" % (NOW_MS // 1000)
    return b"t=%s,v1=%s" % (at_s, hmac.new(secret.encode(), at_s + b"." + body, sha256).hexdigest().encode())


class Malformed:
    """A stream of inputs. The same seed gives the same inputs."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._records = OddRecords(seed)
        self._bombs = _bombs()
        self._number = 0
        self._makers: Mapping[Door, Callable[[], Sent]] = {
            Door.HTTP: self._request, Door.INBOX: self._inbox, Door.LOG: self._record, Door.WEBHOOK: self._delivery,
        }  # fmt: skip

    def inputs(self, count: int) -> list[Sent]:
        """The next inputs, so many of them broken, and the valid ones between them."""
        found = list[Sent]()
        for _ in range(count):
            (door,) = self._chance.choices(list(Door), (45, 20, 25, 10))
            found.append(self._makers[door]())
            if self._chance.randrange(VALID_ONE_OF) == 0:
                found.append(self._valid(door))
        return found

    # Valid events

    def _valid(self, door: Door) -> Sent:
        self._number += 1
        if door is Door.WEBHOOK:
            body = _stripe_event(f"v{self._number}")
            return Sent(door, ((b"stripe-signature", signature(body)),), body, delivery=f"evt_v{self._number}")
        event = _EVENT % (self._number, self._chance.randrange(1, 1000))
        if door is Door.HTTP:
            return self._lines(event)
        headers = ((b"content-type", _TYPES[0]),) if self._chance.random() < 0.5 else ()
        return Sent(door, headers, event, event, partition=partition_of(GOOD, PARTITIONS))

    def _lines(self, event: bytes) -> Sent:
        """A request with one event, alone or on a line among broken lines."""
        if self._chance.random() < 0.5:
            return self._encoded(_TYPES[0], event)._replace(event=event)
        lines = [self._broken(self._records.record(2)[1:-1]).replace(b"\n", b" ") for _ in range(3)]
        lines.insert(self._chance.randrange(4), event)
        return self._encoded(_TYPES[3], b"\n".join(lines))._replace(event=event)

    def _encoded(self, media_type: bytes, body: bytes) -> Sent:
        """A request whose body is compressed as its header says, or not at all."""
        headers = [(b"content-type", media_type)]
        encoding = self._chance.choice((b"", b"", b"gzip", b"zstd"))
        if encoding:
            body = gzip.compress(body, 1) if encoding == b"gzip" else zstd.compress(body)
            headers.append((b"content-encoding", encoding))
        return Sent(Door.HTTP, tuple(headers), body)

    # Broken inputs

    def _request(self) -> Sent:
        dice = self._chance.random()
        if dice < 0.15:
            return self._binary()
        if dice < 0.25:
            return self._compressed()
        if dice < 0.30:
            headers = ((b"content-type", self._chance.choice(_ODD_TYPES)),)
            return Sent(Door.HTTP, headers, self._records.record(2))
        if dice < 0.302:
            return Sent(Door.HTTP, ((b"content-type", _TYPES[1]),), self._huge())
        if dice < 0.33:
            return Sent(Door.HTTP, ((b"content-type", _TYPES[1]),), self._records.record(), is_cut=True)
        media_type, record = self._chance.choice(_TYPES), self._records.record()
        if media_type in _TYPES[3:]:
            record = record[1:-1].replace(b"},{", b"}\n{")
        elif media_type == _TYPES[0]:
            record = self._records.record(2)[1:-1]
        # What is odd need not be broken too.
        return self._encoded(media_type, self._broken(record) if self._chance.random() < 0.6 else record)

    def _huge(self) -> bytes:
        return self._chance.choice(
            (b"[" + b"1," * 10_000 + b"1]", b"[" + b"1," * 3_000 + b"1]", b" " * (BODY_BYTES_MAX + 1), b"[]", b"",
             b"[" * 50_000, b'{"a":"' + b"x" * 150_000 + b'"}')
        )  # fmt: skip

    def _attributes(self) -> list[tuple[bytes, bytes]]:
        chance, attributes = self._chance, dict.fromkeys(BINARY_ATTRIBUTES, b"x")
        attributes |= {"specversion": b"1.0", "type": b"llm.completion", "subject": b"acct_000002"}
        attributes |= {"id": b"b%d" % chance.randrange(1 << 30), "time": b"2026-11-29T19:10:00Z"}
        for _ in range(chance.randrange(1, 3)):
            attributes[chance.choice((*BINARY_ATTRIBUTES, "data", "", "\xff", "x-y"))] = chance.choice(
                _ATTRIBUTE_VALUES
            )
        pairs = [(name.encode("latin-1"), value) for name, value in attributes.items()]
        return [*pairs, pairs[chance.randrange(6)]] if chance.random() < 0.1 else pairs

    def _data(self) -> bytes:
        data = b'{"tokens":%d,"model":"small"}' % self._chance.randrange(100)
        return self._broken(data) if self._chance.random() < 0.5 else data

    def _binary(self) -> Sent:
        headers = [(b"ce-" + name, value) for name, value in self._attributes()]
        if self._chance.random() < 0.7:
            headers.append((b"content-type", self._chance.choice((_TYPES[2], *_ODD_TYPES))))
        return Sent(Door.HTTP, tuple(headers), self._data())

    def _compressed(self) -> Sent:
        """A body whose compression is broken, or a bomb."""
        chance, body = self._chance, self._records.record()
        encoding, packed = chance.choice(((b"gzip", gzip.compress(body, 1)), (b"zstd", zstd.compress(body))))
        dice = chance.randrange(7)
        if dice == 0:
            packed = packed[: chance.randrange(len(packed))]
        elif dice == 1:
            packed = self._broken(packed)
        elif dice == 2:
            packed += chance.choice((b"x", b"\x00" * 9, packed, packed[:9]))
        elif dice == 3:
            encoding = chance.choice(
                (b"zstd", b"gzip", b"x-gzip", b"br", b"deflate", b"gzip, gzip", b"\xff", b"identity")
            )
        elif dice == 4:
            packed = body
        elif dice == 5 and chance.random() < 0.1:
            encoding, packed = chance.choice(self._bombs)
        headers = ((b"content-type", chance.choice(_TYPES)), (b"content-encoding", encoding))
        return Sent(Door.HTTP, headers, packed)

    def _inbox(self) -> Sent:
        chance = self._chance
        if chance.random() < 0.3:
            headers = [(b"ce_" + name, value) for name, value in self._attributes()]
            return Sent(Door.INBOX, tuple(headers), self._data())
        record = self._records.record()
        body = self._broken(record) if chance.random() < 0.7 else record
        headers = [(b"content-type", chance.choice((*_TYPES, *_ODD_TYPES)))] if chance.random() < 0.5 else []
        return Sent(Door.INBOX, tuple(headers), body)

    def _record(self) -> Sent:
        chance, record = self._chance, self._records.record()
        body = self._broken(record) if chance.random() < 0.7 else record
        headers = ((b"tidemark-control", chance.choice((b"", b"tick", b"flush", b"\xff"))),)
        forged = headers if chance.random() < 0.03 else ()
        return Sent(Door.LOG, forged, body, partition=chance.randrange(PARTITIONS))

    def _delivery(self) -> Sent:
        body = self._broken(_stripe_event(f"b{self._chance.randrange(1 << 30)}"))
        if self._chance.random() < 0.15:
            odd = self._chance.choice(_SIGNATURES)
            return Sent(Door.WEBHOOK, ((b"stripe-signature", odd),), body)
        return Sent(Door.WEBHOOK, ((b"stripe-signature", signature(body)),), body)

    def _broken(self, body: bytes) -> bytes:
        """The bytes after one to three accidents."""
        for _ in range(self._chance.choice((1, 1, 1, 2, 3))):
            body = self._accident(body)
        return body

    def _accident(self, body: bytes) -> bytes:
        chance = self._chance
        at, other = sorted((chance.randrange(len(body) + 1), chance.randrange(len(body) + 1)))
        nasty = chance.choice(_NASTY)
        return chance.choice(
            (body[:at], body[at:], body[:at] + nasty + body[at:], body[:at] + nasty + body[other:],
             body[:at] + body[other:], body[:other] + body[at:], body + body,
             body[:at] + bytes([chance.randrange(256)]) + body[at + 1 :])
        )  # fmt: skip


def _stripe_event(name: str) -> bytes:
    thing = {"object": "customer", "id": f"cus_{name}", "name": "Zoë", "metadata": {}}
    event = {
        "object": "event", "id": f"evt_{name}", "type": "customer.updated", "created": NOW_MS // 1000,
        "livemode": False, "data": {"object": thing}, "request": None,
    }  # fmt: skip
    return json.dumps(event, ensure_ascii=False).encode()
