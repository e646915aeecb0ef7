"""Events for the oracle, and instants around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from oracle.model import Oracle
from oracle.records import Place
from tests.traffic.generate import rfc3339

MARCH, APRIL, MAY = 1_772_323_200_000, 1_775_001_600_000, 1_777_593_600_000
JANUARY_31 = 1_769_817_600_000
HOUR, DAY = 3_600_000, 86_400_000
NOON = MARCH + 9 * DAY + 12 * HOUR


def event(data: object = None, **changes: object) -> dict[str, Any]:
    """An event of the meter `storage_gb` at `NOON`, of account `a`, with changes."""
    body: dict[str, Any] = {
        "specversion": "1.0",
        "id": "1",
        "source": "s",
        "type": "storage.sampled",
        "subject": "a",
        "time": rfc3339(NOON * 1000),
        "data": {"gigabytes": 1} if data is None else data,
    }
    return body | changes


def feed(oracle: Oracle, *bodies: Mapping[str, Any], at: int = NOON, offset: int | None = None) -> list[str]:
    """Feeds one batch to partition 0; returns each event's outcome, or the reason for its rejection."""
    number = len(oracle.rulings) if offset is None else offset
    oracle.feed(0, number, at, json.dumps(list(bodies)).encode())
    verdicts = [oracle.rulings[Place(0, number, index)] for index in range(len(bodies))]
    return [verdict.reason or verdict.outcome for verdict in verdicts]
