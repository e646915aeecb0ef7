"""Limits the log messages of Faust and aiokafka to warnings, and a repeated message to one per `REPEAT_AFTER_S`.

If a broker is down, aiokafka repeats the same lines many times a second.
"""

from __future__ import annotations

import logging
import math
from typing import Final

REPEAT_AFTER_S: Final = 30.0
# The libraries have a few hundred messages. Above this limit the filter forgets the oldest message.
REMEMBERED_MAX: Final = 1_000
NAMES: Final = ("faust", "mode", "aiokafka")


class OncePerWhile(logging.Filter):
    """Passes a message once per `REPEAT_AFTER_S`. Messages with the same unformatted text are equal."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_s: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message passes, by the record's own time."""
        key = (record.name, str(record.msg))
        if record.created - self._passed_s.get(key, -math.inf) < REPEAT_AFTER_S:
            return False
        self._passed_s.pop(key, None)
        self._passed_s[key] = record.created
        if len(self._passed_s) > REMEMBERED_MAX:
            del self._passed_s[next(iter(self._passed_s))]
        return True


_FILTER: Final = OncePerWhile()


def quieten() -> None:
    """Apply the filter to all existing loggers of the client libraries. Safe to call again."""
    for name in NAMES:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        # Child loggers do not inherit filters.
        if isinstance(logger, logging.Logger) and name.split(".")[0] in NAMES and _FILTER not in logger.filters:
            logger.addFilter(_FILTER)
