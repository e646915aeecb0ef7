"""An asyncio event loop with simulated time: if no task can run, time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Mapping
from typing import Any, Final

RESOLUTION_S: Final = 1e-6


class Stalled(Exception):
    """All tasks wait, and no timer is set."""


class _NoSelector(selectors.BaseSelector):
    """A selector that only moves time. Registered files (the loop's own pipe) never become ready."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled("every task waits and no timer is set")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class SimulatedLoop(asyncio.SelectorEventLoop):
    """A deterministic event loop: runs tasks in the order in which they became ready, and timers by time."""

    def __init__(self) -> None:
        self._simulated = _NoSelector()
        super().__init__(self._simulated)
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        """Simulated seconds since the start of the run."""
        return self._simulated.now_s


class SimulatedClock:
    """`schemas.clock.Clock` on a simulated loop. `skew_ms` is the error of the clock. It sleeps for `pause_s` at least:
    each look of who looks again and again costs a run real time."""

    def __init__(self, loop: SimulatedLoop, origin_ms: int, skew_ms: int = 0, pause_s: float = 0.0) -> None:
        self._loop = loop
        self._origin_ms = origin_ms
        self._pause_s = pause_s
        self.skew_ms = skew_ms

    def now_ms(self) -> int:
        return self._origin_ms + self.skew_ms + round(self._loop.time() * 1000)

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(max(duration_s, self._pause_s))

    def unhurried(self, pause_s: float) -> SimulatedClock:
        """The same clock for somebody who sleeps for `pause_s` at least."""
        return SimulatedClock(self._loop, self._origin_ms, self.skew_ms, pause_s)
