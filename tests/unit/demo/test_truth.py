"""What the demo's application sends is a line of its truth file, however the emitter writes a request."""

from __future__ import annotations

import json
from pathlib import Path

from demo.truth import TruthFile
from emitter.encoding import Event, batch, encoded
from tests.worlds.clock import ManualClock


def test_a_request_of_several_events_is_one_line(tmp_path: Path) -> None:
    """The oracle reads a line for each request; a text of an event may hold an escaped line break."""
    events = [encoded(Event(f"op-{number}", "t", "acme", {"note": "a\nb"}, 1), "demo") for number in range(3)]
    file = TruthFile(tmp_path / "truth.jsonl", ManualClock(7))
    file.write(batch(events))
    file.close()

    (line,) = (tmp_path / "truth.jsonl").read_bytes().splitlines()
    assert [event["id"] for event in json.loads(line)["events"]] == ["op-0", "op-1", "op-2"]
    assert json.loads(line)["events"][0]["data"] == {"note": "a\nb"}
