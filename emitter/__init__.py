"""The SDK that applications import to report usage to Tidemark.

It stands alone: it imports nothing of the project and nothing but Python's standard library, and anybody may import
it. The invariant it keeps: every event given to `Emitter.emit` is in the end accepted by the gateway, rejected by it,
or dropped here, and each of the three is counted (`Emitter.stats`) and passed to a callback; none is lost in silence.
"""

from emitter.emitter import Emitter
from emitter.encoding import Event, uuid7
from emitter.pending import QueueFull, Stats
from emitter.transport import Answer, HttpTransport, Transport

__all__ = ["Answer", "Emitter", "Event", "HttpTransport", "QueueFull", "Stats", "Transport", "uuid7"]
