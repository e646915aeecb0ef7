"""The messages of the log's clients: warnings only, and each of them once in a while.

While a broker is away, aiokafka repeats the same lines many times a second.
"""

from __future__ import annotations

import logging
from typing import Final

REPEAT_AFTER_S: Final = 30.0
# The libraries use a few hundred messages; past this many the oldest are forgotten, and so told once more.
REMEMBERED_MAX: Final = 1_000
NAMES: Final = ("faust", "mode", "aiokafka")


class OncePerWhile(logging.Filter):
    """Lets a message (by its unformatted text) through once per `REPEAT_AFTER_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._told_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is told; the time is the record's own."""
        key = (record.name, str(record.msg))
        told_at = self._told_at.get(key)
        if told_at is not None and record.created - told_at < REPEAT_AFTER_S:
            return False
        self._told_at.pop(key, None)
        self._told_at[key] = record.created
        if len(self._told_at) > REMEMBERED_MAX:
            del self._told_at[next(iter(self._told_at))]
        return True


_FILTER: Final = OncePerWhile()


def quieten() -> None:
    """Apply this to every logger of the client libraries that exists by now. Safe to call again."""
    for name in NAMES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        # Filters are not inherited by child loggers, so each gets it.
        if isinstance(logger, logging.Logger) and name.split(".")[0] in NAMES and _FILTER not in logger.filters:
            logger.addFilter(_FILTER)
