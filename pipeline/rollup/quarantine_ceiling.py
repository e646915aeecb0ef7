"""Stops a worker before it quarantines most of what comes: a bad deploy must not divert a day of usage unseen."""

from __future__ import annotations

from typing import Final

from schemas.errors import OperatorNeeded

# A share of fewer events says little. The share is that of the last 10 000 to 20 000 events.
EVENTS_MIN: Final = 1_000
EVENTS_MAX: Final = 20_000


class QuarantineCeiling:
    """The share of quarantined events among the last events of each partition.

    The counts are of this process: after a restart the first `EVENTS_MIN` events of a partition are not judged.
    """

    def __init__(self, percent_max: int) -> None:
        """With a `percent_max` of 100 nothing is ever refused."""
        self._percent_max = percent_max
        # Received and quarantined events, by partition.
        self._counts: dict[int, tuple[int, int]] = {}

    def check(self, partition: int, received: int, quarantined: int) -> None:
        """Add the events of a flush that is not written yet. Raises `OperatorNeeded` if the share is too high."""
        before = self._counts.get(partition, (0, 0))
        received, quarantined = before[0] + received, before[1] + quarantined
        if received >= EVENTS_MIN and quarantined * 100 > received * self._percent_max:
            raise OperatorNeeded(
                f"{quarantined} of the last {received} events of partition {partition} cannot be counted, more than "
                f"TIDEMARK_QUARANTINE_PERCENT_MAX ({self._percent_max}) allows. Nothing of this flush was written. "
                "Repair the producer or the meter set, or raise the setting to have the events quarantined"
            )
        if received > EVENTS_MAX:
            received, quarantined = received // 2, quarantined // 2
        self._counts[partition] = received, quarantined
