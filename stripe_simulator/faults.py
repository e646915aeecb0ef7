"""Deliberate faults. A fault applies to a number of matching requests."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum

import msgspec

FAULTS_MAX = 1_000


class FaultKind(StrEnum):
    """The kinds of faults. `*_after_commit`: the request is executed and its answer lost, which can double bills."""

    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    SERVER_ERROR_AFTER_COMMIT = "server_error_after_commit"
    CONFLICT = "conflict"
    TIMEOUT = "timeout"
    TIMEOUT_AFTER_COMMIT = "timeout_after_commit"
    CONNECTION_DROPPED = "connection_dropped"
    CONNECTION_DROPPED_AFTER_COMMIT = "connection_dropped_after_commit"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    REJECTED = "rejected"
    DELIVERY_DROPPED = "delivery_dropped"
    DELIVERY_DUPLICATED = "delivery_duplicated"
    DELIVERY_DELAYED = "delivery_delayed"


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A fault for the next `count` matching requests (-1: for ever); a request is hit with `probability`.

    A request matches by method, by the beginning of its path and, if `contains` is set, by a parameter that contains
    this text. `reason` is the value of Stripe-Rate-Limited-Reason for `rate_limited`, and the error code for
    `rejected`. With `until_ms`, the fault ends then.

    A `delivery_*` fault matches deliveries of webhooks; `contains` looks at the URL and at the event's type and id. A
    dropped attempt fails: with a count until a retry, with `until_ms` for the window of an outage. `reason` is the
    number of deliveries for `delivery_duplicated` (2), and for `delivery_delayed` the delay in seconds, as `60` or at
    random as `0-60`, which reorders.
    """

    kind: FaultKind
    count: int = 1
    probability: float = 1.0
    method: str = "POST"
    path: str = "/v1/billing/meter_events"
    contains: str = ""
    reason: str = ""
    until_ms: int = 0

    def is_of_deliveries(self) -> bool:
        """Whether the fault matches deliveries, not requests."""
        return self.kind.startswith("delivery_")

    def matches(self, method: str, path: str, params: object) -> bool:
        """Whether the fault matches this request, or this delivery if `method` is the fault's own kind."""
        if method != (self.kind if self.is_of_deliveries() else self.method):
            return False
        if not (self.is_of_deliveries() or path.startswith(self.path)):
            return False
        return not self.contains or any(self.contains in value for value in _texts(params))

    def span(self) -> tuple[int, int]:
        """The two numbers of a `reason` such as `60` or `0-60`. Raises `ValueError`."""
        low, _, high = (self.reason or ("2" if self.kind is FaultKind.DELIVERY_DUPLICATED else "0-60")).partition("-")
        if int(high or low) < int(low):
            raise ValueError(f"the reason {self.reason} is no range")
        return int(low), int(high or low)


def _texts(params: object) -> Iterator[str]:
    if isinstance(params, dict | list):
        for value in params.values() if isinstance(params, dict) else params:
            yield from _texts(value)
    elif params is not None:
        yield str(params)


class FaultPlan:
    """The faults that have not happened yet, at most `FAULTS_MAX`.

    `waiting` has them with the number of times that they may still happen, `happened` the faults that did, by kind.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.waiting: list[tuple[Fault, int]] = []
        self.happened: Counter[str] = Counter()

    def add(self, fault: Fault) -> None:
        """Append a fault; earlier faults are applied first. Raises `ValueError` beyond `FAULTS_MAX` faults."""
        if len(self.waiting) >= FAULTS_MAX:
            raise ValueError(f"at most {FAULTS_MAX} faults may wait: clear some first")
        if fault.kind in (FaultKind.DELIVERY_DUPLICATED, FaultKind.DELIVERY_DELAYED):
            fault.span()
        if fault.count:
            self.waiting.append((fault, fault.count))

    def clear(self, kind: str = "") -> None:
        """Delete the faults that have not happened yet, of one kind or all."""
        self.waiting = [(fault, left) for fault, left in self.waiting if kind and fault.kind != kind]

    def take(self, method: str, path: str, params: object, now_ms: int) -> Fault | None:
        """The fault for this request or delivery, or None. Uses up one application of the fault."""
        for index, (fault, left) in enumerate(self.waiting):
            if 0 < fault.until_ms <= now_ms:
                continue
            if not fault.matches(method, path, params) or self._random.random() >= fault.probability:
                continue
            self.waiting[index : index + 1] = [(fault, left - (left > 0))] if left != 1 else []
            self.happened[fault.kind] += 1
            return fault
        return None

    def delay_ms(self, asked: list[str], now_ms: int) -> int:
        """The delay of a new delivery by a fault."""
        fault = self.take(FaultKind.DELIVERY_DELAYED, "", asked, now_ms)
        low, high = fault.span() if fault else (0, 0)
        return self._random.randint(1_000 * low, 1_000 * high)
