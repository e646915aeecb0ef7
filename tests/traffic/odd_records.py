"""Records that are broken or odd in one place or many, made byte by byte from a seed."""

from __future__ import annotations

import random
from typing import Any, Final

NOW_MS: Final = 1_795_982_400_000  # 2026-11-29T20:00:00Z
MADE_MAX: Final = 400
ACCOUNTS: Final = tuple(f"acct_{number:06d}" for number in range(8))
METER_SET: Final[dict[str, Any]] = {
    "version": 1,
    "policy": {"event_bytes_max": 2048},
    "meters": [
        {"slug": "calls", "event_type": "api.request", "aggregation": "count",
         "dimensions": {"method": "$.method", "region": "$.region"}},
        {"slug": "tokens", "event_type": "llm.completion", "aggregation": "sum", "value_path": "$.tokens",
         "dimensions": {"model": "$.model"},
         "filters": [{"path": "$.billable", "operator": "ne", "values": ["false"]}]},
        {"slug": "tokens_fine", "event_type": "llm.completion", "aggregation": "sum", "value_path": "$.tokens",
         "scale": 12, "allow_negative": True, "on_bad": "skip_meter"},
        {"slug": "storage", "event_type": "storage.sampled", "aggregation": "max", "value_path": "$.gigabytes",
         "scale": 3, "filters": [{"path": "$.region", "operator": "in", "values": ["eu", "us", "", "true", "7"]}]},
        {"slug": "coldest", "event_type": "storage.sampled", "aggregation": "min", "value_path": "$.gigabytes",
         "scale": 3, "allow_negative": True},
        {"slug": "users", "event_type": "user.active", "aggregation": "unique", "value_path": "$.user"},
        {"slug": "seats", "event_type": "seats.changed", "aggregation": "latest", "value_path": "$.seats",
         "allow_negative": True},
        {"slug": "deep", "event_type": "deep.thing", "aggregation": "sum", "value_path": "$.extra.a.b",
         "dimensions": {"model": "$.extra.model", "user": "$.user"}},
        {"slug": "stored", "event_type": "level.set", "aggregation": "time_weighted", "value_path": "$.gigabytes",
         "scale": 3, "series_path": "$.region"},
    ],
}  # fmt: skip

_STRINGS: Final = (
    b'"a"', b'"\xc3\xa9"', b'"\\u00e9"', b'"\\ud83d\\ude00"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\/"', b'""',
    b'"\x01"', b'"\x00"', b'"\x7f"', b'"\xff"', b'"\xed\xa0\x80"', b'"\xf0\x9f\x98\x80"', b'"\xf4\x90\x80\x80"',
    b'"\xc0\x80"', b'"\\x"', b'"\\u00"', b'"\\u0000"', b'"' + b"x" * 256 + b'"', b'"' + b"x" * 257 + b'"',
    b'"' + b"\xc3\xa9" * 256 + b'"', b'"' + b"\xf0\x9f\x98\x80" * 257 + b'"', b'"' + b"y" * 1900 + b'"',
    b'"12.5"', b'"0.1234"', b'"-1"', b'"1e3"', b'"007"', b'"+1"', b'" 1"', b'"1_0"', b'"999999999999999999"',
    b'"9999999999999999999"', b'"-999999999999999999"', b'"1."', b'".5"', b'"0"', b'"-0"', b'"00"', b'"0.000000000001"',
    b'"0.0000000000001"', b'"1.500000000000000000000000"', "\"\u0661\"".encode(), b'"false"', b'"true"',
)  # fmt: skip
_NUMBERS: Final = (
    b"0", b"-0", b"1", b"1.0", b"1.50", b"-1", b"1e3", b"1E+2", b"1e", b"1E400", b"1e999999999999999999999",
    b"0.0000001", b"0.000001", b"0.00001", b"-0.0", b"123456789012345678901234567890", b"1.", b"01", b".5", b"+1", b"-",
    b"999999999999999999", b"-999999999999999999", b"1000000000000000000", b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"0.1234", b"999999999999999.999",
    b"9999999999999999.99", b"999999.999999999999", b"1.000000", b"1" * 301, b"1" * 4301, b"0." + b"1" * 400,
)  # fmt: skip
_OTHERS: Final = (
    b"true", b"false", b"null", b"True", b"nul", b"NaN", b"Infinity", b"{}", b"[]", b'{"a":1}', b"[1,[2,[3]]]",
    b"[" * 62 + b"]" * 62, b"[" * 70 + b"]" * 70, b"[" * 198 + b"]" * 198, b"[" * 210 + b"]" * 210,
    b'{"a":' * 64 + b"1" + b"}" * 64, b'{"a":{"b":7},"model":"x"}', b'{"a":{"b":7,"b":"8"}}', b'{"a":{"b":[]}}',
    b'{"b":[{ "y":1, "x":[ ]}, -0.5],"a":{ }}', b'{"b":[1,-0]}', b'{"\xc3\xa9":1,"z":2,"a":null}',
    b"[" * 16 + b"]" * 16, b"[" * 17 + b"]" * 17,
    b'{"a":{"\\u0062":7}}', b'{"a":1e5}', b'{"a":"\\ud800"}', b'{"\\ud800":1}', b"[1,]", b"{,}", b'{"a"}', b"[}", b"",
)  # fmt: skip
_KEYS: Final = (
    b"specversion", b"id", b"source", b"type", b"subject", b"time", b"data", b"data_base64", b"tokens", b"model",
    b"method", b"region", b"billable", b"gigabytes", b"user", b"seats", b"extra", b"\\u0069d", b"i\\u0064", b"",
    b"tok\\u0065ns", b"\\ud800", b"\xc3\xa9",
)  # fmt: skip
_READ: Final = (
    b"tokens", b"model", b"method", b"region", b"billable", b"gigabytes", b"user", b"seats", b"extra", b"note",
    b"quantity",
)  # fmt: skip
_TIMES: Final = (
    b"2026-11-29T10:00:00Z", b"2026-11-29T20:00:00.123Z", b"2026-11-29T20:00:00.1Z", b"2026-02-30T00:00:00Z",
    b"2024-02-29T00:00:00Z", b"2026-11-29t10:00:00z", b"2026-11-29T10:00:60Z", b"2026-11-29T24:00:00Z",
    b"2026-11-29T10:00:00+01:00", b"2026-11-29 10:00:00Z", b"0000-01-01T00:00:00Z", b"1970-01-01T00:00:00Z",
    b"1969-12-31T23:59:59Z", b"2026-11-2\xd9\xa9T10:00:00Z", b"2026-11-29T10:00:00.12\xc2\xb2Z",
    b"2026-10-31T23:59:59.999Z", b"2026-11-01T00:00:00Z", b"2026-11-29T20:05:00Z", b"2026-11-29T20:05:00.001Z",
    b"2026-11-26T20:00:00Z", b"2026-12-01T00:00:00Z", b"9999-12-31T23:59:59Z", b"2026-11-29T10:00:00.0001Z", b"",
    b"2026-11-29T19:00:00.123456Z", b"2026-11-29T19:00:00.1234567891Z", b"2026-11-29T19:00:00.123456789Z",
    b"2026-11-29T19:00:00+00:00", b"2026-11-29T20:30:00.5-00:30", b"2026-11-29T19:00:00+24:00",
    b"2026-11-29T19:00:00.Z",
    b"2026-11-29T19:00:00+0000", b"2026-11-29T19:00:00+00:60", b"2026-11-29T19:00:00.1z", b"1970-01-01T00:30:00+01:00",
    b"2026-11-29T19:00:00.123456+05:30", b"2026-11-29T19:00:00-23:59",
    b"2026-00-10T00:00:00Z", b"2026-13-10T00:00:00Z", b"2026-11-00T00:00:00Z", b"2026-11-31T00:00:00Z",
)  # fmt: skip
_TYPES: Final = (
    b"api.request", b"llm.completion", b"storage.sampled", b"user.active", b"seats.changed", b"deep.thing", b"other",
    b"level.set", b"tidemark.adjusted.calls", b"tidemark.adjusted.stored",
)  # fmt: skip
_SPACES: Final = (b" ", b"\n", b"\t \r", b"\x0b", b"\x00", b" " * 50)
_RECORDS: Final = (b"", b"[", b"]", b"[]", b"[ ]", b"[,]", b"null", b" []", b"\x0b[]", b"{", b"{}", b"[{}]", b"[[]]")


class OddRecords:
    """A stream of records. Most events are plain; the others have what producers, bugs and attackers send."""

    def __init__(self, seed: int, oddness: float = 1.0) -> None:
        """`oddness` scales how often something is odd."""
        self._chance = random.Random(seed)
        self._oddness = oddness
        self._number = 0
        self._made: list[bytes] = []

    def record(self, events_max: int = 6) -> bytes:
        """The bytes of the next record."""
        value = b"[" + b",".join(self._event() for _ in range(self._chance.randrange(events_max))) + b"]"
        dice = self._chance.random() / self._oddness
        if dice < 0.05:
            at = self._chance.randrange(len(value))
            return value[:at] + bytes([self._chance.randrange(256)]) + value[at + 1 :]
        if dice < 0.08:
            return value[: self._chance.randrange(len(value) + 1)]
        if dice < 0.10:
            return value + self._pick(b" ", b"\n", b",", b"x", b"\x00", b"]", b" " * 3000)
        if dice < 0.16:
            return self._event() + self._pick(b"", b"", b" ", b" " * 2048, b"x")
        return self._pick(*_RECORDS) if dice < 0.165 else value

    def _odd(self, share: float) -> bool:
        return self._chance.random() < share * self._oddness

    def _pick(self, *items: bytes) -> bytes:
        return self._chance.choice(items)

    def _space(self) -> bytes:
        return self._pick(*_SPACES) if self._odd(0.005) else b""

    def _key(self) -> bytes:
        """Mostly one that a meter looks at."""
        return self._pick(*(_READ if self._chance.random() < 0.7 else _KEYS))

    def _value(self) -> bytes:
        return self._pick(*self._chance.choice((_STRINGS, _NUMBERS, _OTHERS)))

    def _event(self) -> bytes:
        chance = self._chance
        if len(self._made) >= MADE_MAX and chance.random() < 0.9:
            # Making an event takes longer than comparing what becomes of it.
            return chance.choice(self._made)
        self._number += 1
        number = self._number if not self._odd(0.1) else chance.randrange(self._number)
        data = {
            b"method": b'"GET"', b"region": self._pick(b'"eu"', b'"us"'), b"model": b'"small"',
            b"tokens": b"%d" % chance.randrange(1000), b"gigabytes": b'"1.5"', b"user": b'"u%d"' % chance.randrange(9),
            b"seats": b"7", b"quantity": self._pick(b'"-2"', b"1"),
            b"extra": b'{"a":{"b":%d},"model":"m"}' % chance.randrange(9),
        }  # fmt: skip
        fields = {
            b"specversion": b'"1.0"', b"id": b'"e%d"' % number, b"source": b'"s"',
            b"type": b'"' + self._pick(*_TYPES) + b'"', b"subject": b'"' + chance.choice(ACCOUNTS).encode() + b'"',
            b"time": b'"2026-11-29T19:%02d:%02d.%03dZ"' % tuple(map(chance.randrange, (60, 60, 1000))),
        }  # fmt: skip
        while self._odd(0.25):
            data[self._key()] = self._value()
        if self._odd(0.03):
            fields[self._pick(*_KEYS)] = self._value()
        if self._odd(0.06):
            fields[b"time"] = b'"' + self._pick(*_TIMES) + b'"'
        if self._odd(0.03):
            fields.pop(self._pick(*fields))
        if self._odd(0.005):
            data |= {b"k%d" % number: b"1" for number in range(chance.randrange(50, 80))}
        return self._object(list(fields.items()), list(data.items()))

    def _object(self, fields: list[tuple[bytes, bytes]], data: list[tuple[bytes, bytes]]) -> bytes:
        if self._odd(0.05):
            data.append((self._key(), self._value()))
        if self._odd(0.3):
            self._chance.shuffle(data)
        if not self._odd(0.03):
            fields.append((b"data", b"{" + b",".join(self._pair(*each) for each in data) + b"}"))
        if self._odd(0.02):
            fields.append((self._pick(*_KEYS), self._value()))
        if self._odd(0.3):
            self._chance.shuffle(fields)
        inside = b",".join(self._pair(*each) for each in fields)
        made = self._space() + b"{" + self._space() + inside + b"}" + self._space()
        if len(self._made) < MADE_MAX:
            self._made.append(made)
        return made

    def _pair(self, key: bytes, value: bytes) -> bytes:
        return self._space() + b'"' + key + b'"' + self._space() + b":" + self._space() + value + self._space()
