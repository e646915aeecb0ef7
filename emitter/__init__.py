"""The SDK that applications import to report usage to Tidemark, and to ask what an account may do (`Access`).

It imports only Python's standard library, and any code may import it. The invariant: every event that `Emitter.emit`
takes is in the end accepted or rejected by the gateway, or dropped by the emitter. `Emitter.stats` counts all three
outcomes; callbacks report rejected and dropped events. No event is lost without a count.
"""

from emitter.access import Access, Allowed
from emitter.emitter import Emitter
from emitter.encoding import Event, uuid7
from emitter.pending import QueueFull, Stats
from emitter.transport import Answer, HttpTransport, Transport

__all__ = [
    "Access",
    "Allowed",
    "Answer",
    "Emitter",
    "Event",
    "HttpTransport",
    "QueueFull",
    "Stats",
    "Transport",
    "uuid7",
]
