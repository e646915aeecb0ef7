"""What `tidemark quarantine redrive` appends: the bytes of the entry, and the first arrival's time if there is none."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from aggregators.decode import decode
from pipeline.commands import operations
from pipeline.commands.operations import QuarantineEntry, redriven
from schemas.reasons import UNCHANGED_BY_REDRIVE, Reason
from tests.documents import REDRIVE
from tests.unit.cli.command_lines import Result, run

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


def test_reasons_that_a_redrive_does_not_help_are_those_of_the_document() -> None:
    assert {reason for reason, text in REDRIVE.items() if text.startswith("no")} == UNCHANGED_BY_REDRIVE


ENTRIES: Final = tuple(
    QuarantineEntry("usage.events", 0, offset, place, reason, "", ARRIVED_MS, b"{}", cut=cut)
    for offset, place, reason, cut in (
        (7, 0, Reason.WRONG_PARTITION, False),
        (7, 1, Reason.BAD_JSON, False),
        (8, 0, Reason.PERIOD_CLOSED, False),
        (9, 0, Reason.TOO_OLD, False),
        (10, 0, Reason.TOO_LARGE, True),
    )
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The positions that a redrive has sent, from a quarantine of `ENTRIES`."""
    positions: list[str] = []

    async def quarantined(_settings: Any, reason: str | None, _limit: int) -> list[QuarantineEntry]:
        return [entry for entry in ENTRIES if reason in (None, entry.reason)]

    async def redrive(_settings: Any, entries: list[QuarantineEntry]) -> int:
        positions.extend(entry.position for entry in entries)
        return len(entries)

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    monkeypatch.setattr(operations, "quarantined", quarantined)
    monkeypatch.setattr(operations, "redrive", redrive)
    return positions


def redriving(*arguments: str) -> Result:
    return run(["quarantine", "redrive", *arguments, "--yes"])


def test_redrive_leaves_out_what_would_be_rejected_again(sent: list[str]) -> None:
    """An operator must not believe that twenty-five events are on their way if two are."""
    result = redriving()

    assert sent == ["usage.events-0@7.0", "usage.events-0@9.0"]
    assert "2 events are left out: they would be rejected again as they are" in result.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param(["usage.events-0@9.0"], ["usage.events-0@9.0"], id="a position"),
        pytest.param(["usage.events-0@7.1"], ["usage.events-0@7.1"], id="a position that a redrive does not help"),
        pytest.param(["--reason", "period_closed"], ["usage.events-0@8.0"], id="a reason"),
    ],
)
def test_redrive_sends_what_is_named(sent: list[str], arguments: list[str], expected: list[str]) -> None:
    """As `quarantine list` prints it. The operator knows why."""
    assert (redriving(*arguments).code, sent) == (0, expected)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["usage.events-0@11.0"], "POSITIONS: usage.events-0@11.0 is not among the newest 10000 entries"),
        (
            ["usage.events-0@10.0"],
            "POSITIONS: usage.events-0@10.0 is not among the newest 10000 entries that are whole",
        ),
        (["11"], "POSITIONS: '11' is no position, such as usage.events-0@17.0"),
        (["--reason", "nonsense"], "--reason: 'nonsense' is no reason; the reasons are bad_control, "),
    ],
)
def test_redrive_of_what_is_not_there_is_refused(sent: list[str], arguments: list[str], said: str) -> None:
    result = redriving(*arguments)

    assert (result.code, result.err.count("\n"), sent) == (2, 1, [])
    assert result.err.startswith(f"tidemark: {said}")


def test_list_refuses_a_reason_that_does_not_exist(sent: list[str]) -> None:
    """Silence would say that there are no such events."""
    assert run(["quarantine", "list", "--reason", "nonsense"]).err.startswith("tidemark: --reason: 'nonsense' is no")
