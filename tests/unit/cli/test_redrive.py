"""`tidemark quarantine redrive`: what it appends, what it says before, and what it refuses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from typing import Any, Final, NamedTuple

import pytest

from aggregators.decode import decode
from pipeline.commands import quarantine
from pipeline.commands.quarantine import redriven
from pipeline.logs.redriving import Preview
from pipeline.logs.rejected import QuarantineEntry
from schemas.reasons import REMEDIES, UNCHANGED_BY_REDRIVE, Reason
from schemas.redrives import Redrive, RedriveCounts, RedriveState, Selection
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
        (10, 0, Reason.TOO_LARGE, True),
    )
)
FOUND: Final = Preview(
    RedriveCounts(20, 6, 3, 1, 2), Counter(wrong_partition=4, negative_quantity=2),
    Counter({("bad_quantity", "bad_quantity"): 2, ("too_far_in_future", "too_old"): 1}),
    {"bad_quantity": "$.tokens: text", "too_old": "time: 1999"}, Counter(acme=5, globex=1), 1, 1, 2,
)  # fmt: skip
BEGUN: Final = Redrive("rq_1", Selection("wrong_partition"), "ann", "fixed", [20], [5], begun_ms=ARRIVED_MS)


class Called(NamedTuple):
    """What the command did: positions sent as they are, and bulk redrives with who and why."""

    sent: list[str]
    bulk: list[tuple[Selection, str, str]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Called:
    """A quarantine of `ENTRIES`, of which `FOUND` is said. A redrive of `wrong_partition` did not end."""
    done = Called([], [])

    async def entries_at(_settings: Any, positions: Collection[str]) -> list[QuarantineEntry]:
        return [entry for entry in ENTRIES if entry.position in positions]

    async def send(_settings: Any, entries: list[QuarantineEntry]) -> int:
        done.sent.extend(entry.position for entry in entries)
        return len(entries)

    async def previewed(_settings: Any, selection: Selection) -> Preview:
        return FOUND if selection.cause != "too_large" else FOUND._replace(counts=RedriveCounts(20))

    async def running(_settings: Any, selection: Selection) -> Redrive | None:
        return BEGUN if selection == BEGUN.selection else None

    async def redrive(_settings: Any, selection: Selection, by: str, why: str, note: Any) -> Redrive:
        done.bulk.append((selection, by, why))
        ended = BEGUN._replace(counts=FOUND.counts, state=RedriveState.DONE)
        note(ended)
        return ended

    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    for function in (entries_at, send, previewed, running, redrive):
        monkeypatch.setattr(quarantine, function.__name__, function)
    return done


def redriving(*arguments: str, yes: bool = True) -> Result:
    return run(["quarantine", "redrive", *arguments, *(["--yes"] if yes else [])])


def test_redrive_says_what_will_become_of_the_events_and_sends_those_that_pass(called: Called) -> None:
    """An operator must not believe that twenty events are on their way if six are."""
    result = redriving("--meter", "tokens", "--since", "2026-03-10T12:00:00Z", "--by", "bob", "--why", "ticket 7")

    assert result.out.splitlines() == [
        "20 entries, 12 of them selected: 6 would pass now",
        "  4 were wrong_partition",
        "  2 were negative_quantity",
        "  5 of acme",
        "  1 of globex",
        "2 more entries are of the same events, which count once",
        "2 arrived again meanwhile, and do not count once more",
        "1 are older than the dedup window: the archive decides whether they arrived before",
        "1 count in no meter, and their ids are used up: add a meter first if they should",
        "2 would be rejected again as bad_quantity: $.tokens: text",
        f"    → {REMEDIES[Reason.BAD_QUANTITY]}",
        "1 would be rejected again as too_old, before too_far_in_future: time: 1999",
        f"    → {REMEDIES[Reason.TOO_OLD]}",
        "1 were cut, and are sent by their producer only",
        "8 are left out: no redrive helps them, or they were not selected",
        "rq_1: 6 events sent to usage.inbox; 3 would be rejected again and stay",
    ]
    assert called.bulk == [(Selection("", "tokens", 1_773_144_000_000), "bob", "ticket 7")]


def test_a_dry_run_sends_nothing_and_does_not_ask(called: Called) -> None:
    result = redriving("--dry-run", yes=False)

    assert (result.code, result.out.splitlines()[-1], called.bulk) == (0, "Nothing was sent.", [])


def test_redrive_asks_before_it_sends(called: Called) -> None:
    assert (redriving("--by", "bob", yes=False).code, called.bulk) == (2, [])


def test_a_redrive_that_did_not_end_goes_on_without_another_look(called: Called) -> None:
    result = redriving("--reason", "wrong_partition", "--by", "bob")

    assert result.out.splitlines()[0] == "going on with rq_1, which ann began at 2026-03-10T12:00:00.123Z"
    assert ("would pass" in result.out, len(called.bulk)) == (False, 1)


def test_nothing_that_passes_is_nothing_to_redrive(called: Called) -> None:
    result = redriving("--reason", "too_large")

    assert (result.code, result.out.splitlines()[-1], called.bulk) == (0, "nothing to redrive", [])


@pytest.mark.parametrize("position", ["usage.events-0@7.0", "usage.events-0@7.1"])
def test_redrive_sends_what_is_named_as_it_is(called: Called, position: str) -> None:
    """As `quarantine list` prints it. The operator knows why."""
    assert (redriving(position).code, called) == (0, ([position], []))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["usage.events-0@11.0"], "POSITIONS: usage.events-0@11.0 is not among the entries that are whole"),
        (["usage.events-0@10.0"], "POSITIONS: usage.events-0@10.0 is not among the entries that are whole"),
        (["11"], "POSITIONS: '11' is no position, such as usage.events-0@17.0"),
        (["usage.events-0@7.0", "--dry-run"], "POSITIONS: stand alone: leave out --reason, "),
        (["--reason", "nonsense"], "--reason: 'nonsense' is no reason; the reasons are bad_control, "),
        (["--since", "yesterday"], "--since: 'yesterday' "),
    ],
)
def test_redrive_of_what_is_not_there_is_refused(called: Called, arguments: list[str], said: str) -> None:
    result = redriving(*arguments)

    assert (result.code, result.err.count("\n"), called) == (2, 1, ([], []))
    assert result.err.startswith(f"tidemark: {said}")


def test_a_redrive_in_bulk_needs_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """There it notes how far it is."""
    monkeypatch.setenv("TIDEMARK_SECRET", "x" * 32)
    result = redriving("--reason", "too_old")

    assert (result.code, result.err.startswith("tidemark: TIDEMARK_SQL_URL: is not set, and a redrive")) == (2, True)


def test_list_refuses_a_reason_that_does_not_exist(called: Called) -> None:
    """Silence would say that there are no such events."""
    assert called == ([], [])
    assert run(["quarantine", "list", "--reason", "nonsense"]).err.startswith("tidemark: --reason: 'nonsense' is no")
