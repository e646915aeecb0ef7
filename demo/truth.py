"""What producers wrote down before they sent it: the demo's only source of what must be counted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emitter.transport import Answer, Transport
from schemas.clock import Clock


class TruthFile:
    """One line a request: `{"sent_at": ms, "events": […]}`, with the events' own bytes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._file = path.open("ab")
        self._clock = clock

    def write(self, batch: bytes) -> None:
        """Write down a JSON list of events that is about to be sent."""
        self._file.write(b'{"sent_at":%d,"events":%s}\n' % (self._clock.now_ms(), batch))

    def write_events(self, events: Sequence[dict[str, Any]]) -> None:
        """The same for events that are not encoded yet."""
        self.write(json.dumps(list(events)).encode())

    def close(self) -> None:
        """Flush to the file."""
        self._file.close()


class WitnessedTransport:
    """The emitter's transport, with every request written down before it is sent."""

    def __init__(self, inner: Transport, truth: TruthFile) -> None:
        self._inner = inner
        self._truth = truth
        self.sent_events = 0

    def __call__(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """See `emitter.transport.Transport`."""
        self._truth.write(body)
        self.sent_events += len(json.loads(body))
        return self._inner(body, headers)
