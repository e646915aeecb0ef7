"""When a partition is relayed to ClickHouse: less often while the partition is behind.

While a worker catches up, the same cells change with every flush, and each relay writes them again. Fewer relays save
the worker, Redis and ClickHouse this work. Nobody needs the rows of an hour at once that is still being counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# A partition with 2 000 active accounts changes most of its cells within a second at full speed.
BEHIND_INTERVAL_S: Final = 10.0


class RelayPace:
    """Says which calls of a relay are due. Keeps one time per partition."""

    def __init__(self, behind: Callable[[int], bool], now_s: Callable[[], float] = time.monotonic) -> None:
        """`behind` says whether as many records of a partition wait as one flush takes."""
        self._behind = behind
        self._now_s = now_s
        self._not_before_s: dict[int, float] = {}

    def due(self, partition: int) -> bool:
        """Whether to relay now: the partition is not behind, or its last complete relay is `BEHIND_INTERVAL_S` ago."""
        return not self._behind(partition) or self._now_s() >= self._not_before_s.get(partition, 0.0)

    def relayed(self, partition: int, *, complete: bool) -> None:
        """Note a relay. If it was not complete, the next one is due at once: the outbox would grow to its cap."""
        self._not_before_s[partition] = self._now_s() + BEHIND_INTERVAL_S if complete else 0.0
