"""What `tidemark quarantine redrive` appends: the bytes of the entry, and the first arrival's time if there is none."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from aggregators.decode import decode
from pipeline.commands.operations import QuarantineEntry, redriven

ARRIVED_MS: Final = 1_773_144_000_123
EVENT: Final[dict[str, Any]] = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "subject": "acme"}


def entry(value: bytes) -> QuarantineEntry:
    """An entry that first arrived at `ARRIVED_MS`."""
    return QuarantineEntry("usage.events", 0, 7, 0, "wrong_partition", "", ARRIVED_MS, value, cut=False)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(json.dumps(EVENT).encode(), id="absent"),
        pytest.param(json.dumps({**EVENT, "time": None}).encode(), id="null"),
        pytest.param(json.dumps({**EVENT, "data": {"v": 1}}, indent=1).encode() + b" \n", id="space after it"),
    ],
)
def test_an_event_without_a_time_gets_that_of_its_first_arrival(value: bytes) -> None:
    """Two redrives a window apart would otherwise be two events with two times."""
    ((_, event),) = decode(redriven(entry(value)), 1_000).events

    assert event.time == "2026-03-10T12:00:00.123Z"
    assert (event.id, event.data) == ("1", json.loads(value).get("data"))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(json.dumps({**EVENT, "time": "2026-03-01T00:00:00Z"}).encode(), id="its own time"),
        pytest.param(b'{"specversion":"1.0"}', id="no event"),
        pytest.param(b"[1,2]", id="a list"),
        pytest.param(b"[" + json.dumps(EVENT).encode() + b"]", id="a list of one event"),
        pytest.param(b"\xff", id="no text"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_other_entries_keep_their_bytes(value: bytes) -> None:
    assert redriven(entry(value)) == value
