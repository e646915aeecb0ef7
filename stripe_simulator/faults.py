"""What goes wrong on purpose: a list of faults, each used up by the requests it matches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

FAULTS_MAX = 1_000


class FaultKind(StrEnum):
    """`*_after_commit`: the request is executed and its answer lost, the case that doubles bills."""

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


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault for the next `count` requests that match (-1: for ever), each with `probability`.

    A request matches by method, by the beginning of its path and, where `contains` is set, by a parameter
    that contains this text (an identifier, a customer). `reason` is the value of Stripe-Rate-Limited-Reason
    for `rate_limited` and the error code for `rejected`.
    """

    kind: FaultKind
    count: int = 1
    probability: float = 1.0
    method: str = "POST"
    path: str = "/v1/billing/meter_events"
    contains: str = ""
    reason: str = ""

    def matches(self, method: str, path: str, params: object) -> bool:
        """Whether a request is of the kind this fault waits for."""
        if method != self.method or not path.startswith(self.path):
            return False
        return not self.contains or any(self.contains in value for value in _texts(params))


def _texts(params: object) -> Iterator[str]:
    if isinstance(params, dict):
        for value in params.values():
            yield from _texts(value)
    elif params is not None:
        yield str(params)


class FaultPlan:
    """The faults still to happen. At most `FAULTS_MAX` are kept; `add` raises `ValueError` beyond."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._waiting: list[tuple[Fault, int]] = []
        self._happened: dict[str, int] = {}

    def add(self, fault: Fault) -> None:
        """Append a fault; earlier ones go first."""
        if len(self._waiting) >= FAULTS_MAX:
            raise ValueError(f"at most {FAULTS_MAX} faults may wait: clear some first")
        if fault.count:
            self._waiting.append((fault, fault.count))

    def clear(self) -> None:
        """Forget the faults that have not happened."""
        self._waiting.clear()

    def take(self, method: str, path: str, params: object) -> Fault | None:
        """The fault that befalls this request, or None."""
        for index, (fault, left) in enumerate(self._waiting):
            if not fault.matches(method, path, params) or self._random.random() >= fault.probability:
                continue
            if left == 1:
                del self._waiting[index]
            elif left > 1:
                self._waiting[index] = (fault, left - 1)
            self._happened[fault.kind] = self._happened.get(fault.kind, 0) + 1
            return fault
        return None

    def waiting(self) -> list[tuple[Fault, int]]:
        """The faults and how often each may still happen."""
        return list(self._waiting)

    def happened(self) -> dict[str, int]:
        """How many faults of each kind befell a request."""
        return dict(self._happened)
