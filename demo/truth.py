"""The files that producers write before sending. The expected counts come only from these files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emitter.transport import Answer, Transport
from schemas.clock import Clock


class TruthFile:
    """A file with one line `{"sent_at": ms, "events": […]}` per request, with the events' own bytes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = path.open("ab")
        self._clock = clock

    def write(self, batch: bytes) -> None:
        """Write a JSON list of events. Call before sending."""
        # The line breaks of JSON stand between values: a text has none.
        events = batch.replace(b"\n", b"")
        self._file.write(b'{"sent_at":%d,"events":%s}\n' % (self._clock.now_ms(), events))

    def write_events(self, events: Sequence[dict[str, Any]]) -> None:
        """Encode and write events. Call before sending."""
        self.write(json.dumps(list(events)).encode())

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


class WitnessedTransport:
    """A transport for the emitter that writes every request to the truth file before sending."""

    def __init__(self, inner: Transport, truth: TruthFile) -> None:
        self._inner = inner
        self._truth = truth
        self.sent_events = 0

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """See `emitter.transport.Transport`."""
        self._truth.write(body)
        self.sent_events += len(json.loads(body))
        return self._inner(body, headers)
