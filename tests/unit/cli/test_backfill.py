"""A file of usage: what becomes of its rows, what a run that ends anywhere leaves, and that each event has one id."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.commands.backfill import BATCH_BYTES_MAX, BATCH_EVENTS, Backfill, Progress, Shape, format_of, read_events
from schemas.errors import InvalidInput, Transient
from tests.unit.cli.command_lines import run

SHAPE = Shape(("request",), "api.request")
CSV = "request,account,time,tokens,usage.region\nr-1,acme,2026-10-02T10:00:00Z,7,eu\nr-2,globex,,0.50,\n"


def read(path: Path, text: str | bytes, shape: Shape = SHAPE) -> list[dict[str, Any]]:
    """The events of a file."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [json.loads(raw) for raw in read_events(path, format_of(path), shape)]


def test_a_row_becomes_an_event_whose_data_are_the_other_columns(tmp_path: Path) -> None:
    """Dots nest, an empty cell is no value, and a number keeps its text."""
    first, second = read(tmp_path / "usage.csv", CSV)

    assert first == {
        "specversion": "1.0", "id": "r-1", "source": "tidemark-backfill", "type": "api.request", "subject": "acme",
        "time": "2026-10-02T10:00:00Z", "data": {"request": "r-1", "tokens": "7", "usage": {"region": "eu"}},
    }  # fmt: skip
    assert (second["data"], "time" in second) == ({"request": "r-2", "tokens": "0.50"}, False)


def test_parquet_keeps_exact_numbers_and_instants(tmp_path: Path) -> None:
    """Decimals as text, times in UTC, numbers as numbers, null as no value."""
    at = datetime(2026, 10, 2, 10, tzinfo=UTC)
    table = pa.table({
        "id": ["a", "b"], "account": ["acme", "acme"], "type": ["t", "t"], "time": [at, None],
        "tokens": pa.array([Decimal("0.10"), None], pa.decimal128(20, 2)), "calls": [2**60, 1],
    })  # fmt: skip
    path = tmp_path / "usage.parquet"
    parquet.write_table(table, path)

    first, second = (json.loads(raw) for raw in read_events(path, format_of(path), Shape()))

    assert (first["time"], first["data"]) == ("2026-10-02T10:00:00Z", {"tokens": "0.10", "calls": 2**60})
    assert (second["data"], "time" in second) == ({"calls": 1}, False)


def test_several_columns_name_a_row_and_no_two_rows_share_an_id(tmp_path: Path) -> None:
    """`a` with `b-c` is not `a-b` with `c`, and the same row has the same id in another file."""
    text = "day,host,account\na,b-c,x\na-b,c,x\na,b-c,x\n"
    ids = [event["id"] for event in read(tmp_path / "one.csv", text, Shape(("day", "host"), "t"))]

    assert (ids[0] == ids[2], ids[0] == ids[1]) == (True, False)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        pytest.param("u.csv", "id,account\n1,acme\n", "row 1 has no 'request'", id="no id"),
        pytest.param("u.csv", "request,tokens\n1,7\n", "row 1 has no 'account'", id="no account"),
        pytest.param("u.csv", "request,account\n1,a,surplus\n", "as many cells", id="too many cells"),
        pytest.param("u.csv", "request,account\n1\n", "as many cells", id="too few cells"),
        pytest.param("u.csv", "request,account,account\n", "'account' twice", id="a column twice"),
        pytest.param("u.csv", "request,account,a,a.b\n1,x,1,2\n", "cannot both", id="a value and an object"),
        pytest.param("u.csv", "request,account,a.b,a\n1,x,2,1\n", "cannot both", id="an object and a value"),
        pytest.param("u.csv", b"request,account\n1,\xff\n", "not CSV in UTF-8", id="not UTF-8"),
        pytest.param("u.parquet", "PAR1", "is not Parquet", id="not Parquet"),
        pytest.param("u.ndjson", b"x" * (BATCH_BYTES_MAX + 1), "line 1 has more", id="no lines"),
        pytest.param("u.txt", "", "--format", id="unknown format"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_row(tmp_path: Path, name: str, text: Any, says: str) -> None:
    """Before anything of that row is sent."""
    with pytest.raises(InvalidInput, match=says):
        read(tmp_path / name, text)


class Gateway:
    """Counts each identity once, as the product does, rejects numbers that end in 7, and can die at a call."""

    def __init__(self) -> None:
        self.events: dict[str, int] = {}
        self.calls = 0
        self.dies_at = -1

    def __call__(self, batch: Sequence[bytes]) -> Mapping[str, Any]:
        self.calls += 1
        results: list[dict[str, Any]] = []
        for index, raw in enumerate(batch):
            event_id = json.loads(raw)["id"]
            if event_id.endswith("7"):
                results.append({"index": index, "status": "rejected", "reason": "bad_field", "remedy": "correct it"})
                continue
            results.append({"index": index, "status": "duplicate" if event_id in self.events else "accepted"})
            self.events[event_id] = self.events.get(event_id, 0) + 1
        if self.calls == self.dies_at:
            raise Transient("the answer is lost")
        statuses = [result["status"] for result in results]
        counts = {name: statuses.count(status) for name, status in STATUSES.items()}
        return {**counts, "events": results}


STATUSES = {"accepted": "accepted", "duplicates": "duplicate", "rejected": "rejected"}
EVENTS = 2 * BATCH_EVENTS + 500


def backfill(path: Path, gateway: Gateway, about: str = "") -> Backfill:
    """A run of the command."""
    return Backfill(path, read_events(path, "ndjson", Shape()), gateway, about)


def note(_progress: Progress) -> None:
    """Nobody looks."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of events, of which a tenth is rejected."""
    path = tmp_path / "events.ndjson"
    path.write_text("".join(f'{{"id": "e-{number}", "type": "t"}}\n' for number in range(EVENTS)))
    return path


def test_the_counts_come_first_and_leave_nothing(path: Path) -> None:
    """The file of events is alone afterwards."""
    outcome = backfill(path, Gateway()).dry_run(note)

    assert (outcome.progress.rows, outcome.progress.accepted, outcome.progress.rejected) == (EVENTS, 2_250, 250)
    assert outcome.valid == {("t", "without a time"[:7]): 2_250}
    assert outcome.reasons == {("bad_field", "correct it"): 250}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("dies_at", [-1, 1, 2, 3])
def test_a_run_that_ends_anywhere_goes_on_and_keeps_each_rejected_event_once(path: Path, dies_at: int) -> None:
    """The batch whose answer was lost is sent again; the ones before are not."""
    gateway = Gateway()
    gateway.dies_at = dies_at
    if dies_at > 0:
        with pytest.raises(Transient):
            backfill(path, gateway).send(note)

    outcome = backfill(path, gateway).send(note)

    progress = outcome.progress
    assert (progress.rows, progress.accepted + progress.duplicates, progress.rejected) == (EVENTS, 2_250, 250)
    assert gateway.calls == 3 + (dies_at > 0)
    assert len(gateway.events) == 2_250
    kept = [json.loads(line) for line in (path.parent / "events.ndjson.rejected.ndjson").read_text().splitlines()]
    assert [each["row"] for each in kept] == list(range(8, EVENTS + 1, 10))
    assert json.loads(kept[0]["event"])["id"] == "e-7"


def test_a_killed_run_between_its_two_writes_keeps_rejected_events_once(path: Path) -> None:
    """The rejected events are there, and the progress is still the one before."""
    gateway = Gateway()
    gateway.dies_at = 2
    with pytest.raises(Transient):
        backfill(path, gateway).send(note)
    rejected = path.parent / "events.ndjson.rejected.ndjson"
    with rejected.open("ab") as file:
        file.write(b'{"row": 1008}\n{"row": 10')

    backfill(path, gateway).send(note)

    assert [json.loads(line)["row"] for line in rejected.read_text().splitlines()] == list(range(8, EVENTS + 1, 10))


def test_a_finished_file_is_not_sent_again_and_a_changed_one_is(path: Path) -> None:
    """The progress is of the bytes, not of the name."""
    gateway = Gateway()
    backfill(path, gateway).send(note)
    assert backfill(path, gateway).progress().is_done
    calls = gateway.calls
    backfill(path, gateway).send(note)
    assert gateway.calls == calls

    path.write_text('{"id": "e-1", "type": "t"}\n')
    outcome = backfill(path, gateway).send(note)

    assert (outcome.progress.rows, outcome.progress.duplicates) == (1, 1)


def test_a_run_at_another_gateway_begins_at_the_first_row(path: Path) -> None:
    """One that was stopped at staging went on at production, which lacked the first rows for ever."""
    staging, production = Gateway(), Gateway()
    staging.dies_at = 3
    with pytest.raises(Transient):
        backfill(path, staging, "https://staging ndjson").send(note)

    outcome = backfill(path, production, "https://production ndjson").send(note)

    assert (outcome.progress.accepted, len(production.events)) == (2_250, 2_250)


@pytest.mark.parametrize("spaces", [True, False], ids=["as it was written", "written again by another program"])
def test_rejected_events_that_were_corrected_are_sent_from_their_file(path: Path, spaces: bool) -> None:
    """Each line was rejected again, because the line is no event."""
    gateway = Gateway()
    backfill(path, gateway).send(note)
    rejected = path.parent / "events.ndjson.rejected.ndjson"
    corrected = []
    for line in rejected.read_text().splitlines():
        kept = json.loads(line)
        kept["event"] = kept["event"].replace('7"', '7b"')
        corrected.append(json.dumps(kept, separators=None if spaces else (",", ":")))
    rejected.write_text("\n".join(corrected))

    outcome = backfill(rejected, gateway).send(note)

    assert (outcome.progress.accepted, outcome.progress.rejected) == (250, 0)
    assert {"e-7b", "e-2497b"} < gateway.events.keys()


def test_a_garbled_progress_file_only_costs_time(path: Path) -> None:
    """The events are sent again, and each counts once."""
    gateway = Gateway()
    backfill(path, gateway).send(note)
    (path.parent / "events.ndjson.progress").write_text('{"rows": ')

    outcome = backfill(path, gateway).send(note)

    assert (outcome.progress.duplicates, len(gateway.events)) == (2_250, 2_250)


def test_the_command_waits_as_the_gateway_asks_and_a_look_forgets_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key with few events a second asks for minutes; `--again` without `--send` deleted the progress."""
    gateway, waited = Gateway(), list[float]()
    answers = [httpx.Response(429, headers={"retry-after": "200"}, json={"error": {"code": "too_fast"}})]

    def answered(request: httpx.Request) -> httpx.Response:
        if answers:
            return answers.pop()
        return httpx.Response(202, json=gateway(request.content.split(b"\n")))

    client = httpx.Client(transport=httpx.MockTransport(answered), base_url="http://gateway")
    # The package has the command under the name of its module.
    monkeypatch.setattr(sys.modules["pipeline.cli.backfill"], "_gateway_client", lambda: client)
    monkeypatch.setattr(time, "sleep", waited.append)
    sent = run(["backfill", str(path), "--send"])
    assert (sent.code, waited) == (1, [200.0])
    progress = path.with_name("events.ndjson.progress").read_bytes()

    client = httpx.Client(transport=httpx.MockTransport(answered), base_url="http://gateway")
    assert "Nothing was written" in run(["backfill", str(path), "--again"]).out

    assert path.with_name("events.ndjson.progress").read_bytes() == progress
